//! Handshakes over real sockets with chains made here, on a clock that the test moves.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use oast_model::time::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::{Clock, ManualClock, SharedClock};
use crate::metrics::{Metric, Metrics};

const HOUR: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(10);

/// A farm's root and a clock.
struct Farm {
    root: Authority,
    clock: ManualClock,
    folder: TempDir,
}

impl Farm {
    fn new(name: &str) -> Farm {
        let clock = ManualClock::default();
        let root = Authority::found(name, clock.wall(), 100 * HOUR).expect("a root");
        Farm {
            root,
            clock,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    fn lives(&self, leaf: Duration) -> Lives {
        Lives {
            now: self.clock.wall(),
            leaf,
            issuer: 50 * HOUR,
        }
    }

    fn open(&self, folder: &Path, role: Role) -> Result<Identity, IdentityError> {
        at(folder, role, self.shared())
    }

    fn shared(&self) -> SharedClock {
        std::sync::Arc::new(self.clock.clone())
    }

    fn member(&self, name: &str) -> Identity {
        let hosts = ["127.0.0.1".to_owned()];
        let files = Files::member(&self.root, name, &hosts, self.lives(HOUR)).expect("signed");
        self.keep(name, &files, Role::Member)
    }

    fn worker(&self, name: &str) -> Identity {
        let files = Files::worker(&self.root, name, self.lives(HOUR)).expect("signed");
        self.keep(name, &files, Role::Worker)
    }

    fn keep(&self, name: &str, files: &Files, role: Role) -> Identity {
        let folder = self.folder.path().join(name);
        files.create(&folder).expect("files");
        self.open(&folder, role).expect("an identity")
    }
}

fn at(folder: &Path, role: Role, clock: SharedClock) -> Result<Identity, IdentityError> {
    Identity::open(Options {
        folder: folder.to_owned(),
        farm: None,
        role,
        name: None,
        clock,
        metrics: Metrics::new(),
    })
}

/// What both ends found.
#[derive(Debug)]
struct Met {
    /// Who called, as the answering end sees it; none when it refused or nobody came.
    caller: Option<Option<Name>>,
    /// What the calling end got: "hello", or why not.
    answer: Result<String, String>,
}

/// One connection: the answering end says hello, the calling end reads it.
async fn meet(acceptor: &Acceptor, dialer: &Dialer) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (calls, calls_no_more) = tokio::sync::oneshot::channel::<()>();
    let answering = async {
        let (stream, peer) = tokio::select! {
            biased;
            accepted = listener.accept() => accepted.expect("a caller"),
            _ = calls_no_more => return None,
        };
        let mut accepted = acceptor.accept(stream, peer).await?;
        // The caller may have gone when it did not like us.
        let _ = accepted.stream.write_all(b"hello").await;
        let _ = accepted.stream.shutdown().await;
        Some(accepted.who)
    };
    let calling = async {
        let answer = call(dialer, address).await;
        drop(calls);
        answer
    };
    let (caller, answer) = tokio::join!(answering, calling);
    Met { caller, answer }
}

async fn call(dialer: &Dialer, address: SocketAddr) -> Result<String, String> {
    let told = |error: std::io::Error| match reason(&error) {
        Some(refused) => refused.problem.to_string(),
        None => error.to_string(),
    };
    let mut line = dialer.dial(&address.to_string()).await.map_err(told)?;
    let mut text = String::new();
    line.read_to_string(&mut text).await.map_err(told)?;
    Ok(text)
}

fn acceptor(identity: &Identity, purpose: Purpose) -> Acceptor {
    Acceptor::new(identity.clone(), purpose, PATIENCE)
}

fn failures(identity: &Identity, reason: &str) -> f64 {
    let failed = identity.metrics().counters(Metric::TlsHandshakeFailures);
    failed.with(&[reason]).get()
}

fn handshakes(identity: &Identity, kind: &str) -> f64 {
    let done = identity.metrics().counters(Metric::TlsHandshakes);
    done.with(&[kind]).get()
}

#[tokio::test]
async fn members_and_workers_of_one_farm_know_each_other_by_name() {
    let farm = Farm::new("acme");
    let (m1, m2, w1) = (farm.member("m1"), farm.member("m2"), farm.worker("w1"));
    for caller in [&m2, &w1] {
        let met = meet(&acceptor(&m1, Purpose::Farm), &Dialer::farm(caller.clone())).await;
        assert_eq!(met.answer.as_deref(), Ok("hello"));
        assert_eq!(met.caller, Some(Some(caller.current().name().clone())));
    }
    assert_eq!(m2.current().name().to_string(), "oast://acme/member/m2");
}

#[tokio::test]
async fn a_second_connection_resumes_the_session_of_the_first() {
    let farm = Farm::new("acme");
    // The member's clock goes ahead of the worker's.
    let (m1, clock) = (farm.member("m1"), ManualClock::default());
    let shared = std::sync::Arc::new(clock.clone());
    let m1 = at(m1.folder(), Role::Member, shared).expect("an identity");
    let files = Files::worker(&farm.root, "w1", farm.lives(HOUR / 2)).expect("signed");
    let w1 = farm.keep("w1", &files, Role::Worker);
    let (acceptor, dialer) = (acceptor(&m1, Purpose::Farm), Dialer::farm(w1.clone()));
    for _ in 0..3 {
        let met = meet(&acceptor, &dialer).await;
        assert_eq!(met.caller, Some(Some(w1.current().name().clone())));
    }
    assert_eq!(handshakes(&m1, "full"), 1.0);
    assert_eq!(handshakes(&m1, "resumed"), 2.0);
    // After its end a certificate is refused, in a resumed session as in a new one.
    clock.advance(HOUR / 2 + Duration::from_secs(5));
    let met = meet(&acceptor, &dialer).await;
    assert_eq!(met.caller, None, "{met:?}");
    assert_eq!(failures(&m1, "expired"), 1.0);
}

#[tokio::test]
async fn another_farms_member_is_refused_by_both_ends_with_its_name() {
    let (ours, theirs) = (Farm::new("acme"), Farm::new("evil"));
    let (m1, stranger) = (ours.member("m1"), theirs.member("m1"));
    let met = meet(
        &acceptor(&m1, Purpose::Farm),
        &Dialer::farm(stranger.clone()),
    )
    .await;
    let text = met.answer.expect_err("the caller judges first");
    assert!(
        text.contains("oast://acme/member/m1 belongs to the farm `acme`, this is `evil`"),
        "{text}"
    );

    // A caller that believes anybody is judged by us.
    let pinned = Dialer::pinned(&ours.root.certificate().pin(), ours.shared()).expect("a pin");
    let met = meet(&acceptor(&m1, Purpose::Farm), &pinned).await;
    assert_eq!(met.caller, Some(None), "nobody in particular: {met:?}");
    let gullible = believing(&stranger, &ours);
    let met = meet(&acceptor(&m1, Purpose::Farm), &Dialer::farm(gullible)).await;
    assert_eq!(met.caller, None);
    assert_eq!(failures(&m1, "unknown_authority"), 1.0);
    let text = met.answer.expect_err("refused");
    assert!(
        text.contains("does not know who signed the certificate"),
        "{text}"
    );
    assert!(text.contains("oast://acme/member/m9"), "{text}");
}

/// A stranger that calls itself one of ours, with a root of its own, and believes ours.
fn believing(stranger: &Identity, ours: &Farm) -> Identity {
    let clock = ours.clock.clone();
    let root = Authority::found("acme", clock.wall(), HOUR).expect("a root of the same name");
    let files = Files::member(&root, "m9", &[], ours.lives(HOUR / 2)).expect("signed");
    let folder = stranger.folder().join("gullible");
    files.create(&folder).expect("files");
    let both = Bundle {
        chain: vec![root.certificate().clone(), ours.root.certificate().clone()],
        key: None,
    };
    both.replace(&folder.join(CA_FILE)).expect("both roots");
    ours.open(&folder, Role::Member).expect("an identity")
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_or_has_not_come_is_refused_with_both_times() {
    let farm = Farm::new("acme");
    let lives = farm.lives(Duration::from_secs(60));
    let files = Files::worker(&farm.root, "w1", lives).expect("signed");
    let short = farm.keep("w1", &files, Role::Worker);
    let dialer = Dialer::farm(short);

    // By the member's clock it is over, by the worker's not yet: the member says so.
    let ahead = ManualClock::default();
    ahead.advance(Duration::from_secs(62));
    let m1 = farm.member("m1");
    let shared = std::sync::Arc::new(ahead);
    let m1 = at(m1.folder(), Role::Member, shared).expect("an identity");
    let met = meet(&acceptor(&m1, Purpose::Farm), &dialer).await;
    assert_eq!((met.caller, failures(&m1, "expired")), (None, 1.0));
    let text = met.answer.expect_err("expired");
    assert!(
        text.contains("time of the certificate is over or has not come"),
        "{text}"
    );
    assert!(text.contains("oast://acme/worker/w1"), "{text}");
    let kept = dialer.refusal().map(|refused| refused.problem.to_string());
    assert_eq!(kept.as_ref(), Some(&text));
    assert_eq!(dialer.refusal(), None, "each is given once");

    // By the worker's own clock: it knows without asking.
    farm.clock.advance(Duration::from_secs(62));
    let met = meet(&acceptor(&m1, Purpose::Farm), &dialer).await;
    assert_eq!((met.caller, failures(&m1, "expired")), (None, 1.0));
    let text = met.answer.expect_err("expired");
    let says = "the certificate of oast://acme/worker/w1 expired at 2026-01-01T00:01:00.000Z";
    assert!(text.contains(says), "{text}");

    // The same certificate on a machine whose clock is behind.
    let begun = lives.now;
    farm.clock
        .set_wall(Timestamp::from_millis(begun.as_millis() - 3_600_000));
    let met = meet(&acceptor(&m1, Purpose::Farm), &dialer).await;
    let text = met
        .answer
        .expect_err("the member's is not valid yet either");
    assert!(text.contains("is valid from"), "{text}");
    assert!(text.contains("set the clock"), "{text}");
}

#[tokio::test]
async fn a_host_that_the_certificate_does_not_name_is_refused_by_the_caller() {
    let farm = Farm::new("acme");
    let hosts = ["m1.example".to_owned(), "10.0.0.1".to_owned()];
    let files = Files::member(&farm.root, "m1", &hosts, farm.lives(HOUR)).expect("signed");
    let m1 = farm.keep("m1", &files, Role::Member);
    let met = meet(
        &acceptor(&m1, Purpose::Farm),
        &Dialer::farm(farm.worker("w1")),
    )
    .await;
    let text = met.answer.expect_err("called as 127.0.0.1");
    assert!(text.contains("is not for the host 127.0.0.1"), "{text}");
    assert!(text.contains("m1.example, 10.0.0.1"), "{text}");
    assert!(text.contains("--host 127.0.0.1"), "{text}");
}

#[tokio::test]
async fn a_worker_cannot_answer_as_a_member_and_an_issuer_makes_no_other_member() {
    let farm = Farm::new("acme");
    let (m1, w1) = (farm.member("m1"), farm.worker("w1"));
    let worker_listens = acceptor(&w1, Purpose::Farm);
    let met = meet(&worker_listens, &Dialer::farm(m1.clone())).await;
    let text = met
        .answer
        .expect_err("a worker's certificate answers nothing");
    assert!(text.contains("oast://acme/worker/w1"), "{text}");

    let issuer = m1.current().issuer().expect("a member's").clone();
    let key = Key::generate().expect("a key");
    let order = Order {
        name: Name::new("acme", Role::Member, "m2").expect("a name"),
        hosts: vec!["127.0.0.1".into()],
        key: PublicKey::read(&key.public().expect("public")).expect("read"),
        now: farm.clock.wall(),
        life: HOUR,
    };
    let forged = issuer
        .issue(&order)
        .expect("the key signs what it is given");
    let chain = vec![forged, issuer.certificate().clone()];
    let files = Files::joined(vec![farm.root.certificate().clone()], key, chain);
    let folder = farm.folder.path().join("forged");
    files.create(&folder).expect("files");
    let error = farm.open(&folder, Role::Member).expect_err("not believed");
    assert!(
        error.to_string().contains("would be refused by the farm"),
        "{error}"
    );
    // A worker it may make.
    let key = Key::generate().expect("a key");
    let order = Order {
        name: Name::new("acme", Role::Worker, "w2").expect("a name"),
        key: PublicKey::read(&key.public().expect("public")).expect("read"),
        ..order
    };
    let chain = vec![
        issuer.issue(&order).expect("signed"),
        issuer.certificate().clone(),
    ];
    let files = Files::joined(vec![farm.root.certificate().clone()], key, chain);
    let w2 = farm.keep("w2", &files, Role::Worker);
    let met = meet(&acceptor(&m1, Purpose::Farm), &Dialer::farm(w2)).await;
    assert_eq!(met.answer.as_deref(), Ok("hello"));
}

#[tokio::test]
async fn who_knows_the_pin_or_the_root_needs_no_certificate_and_is_nobody() {
    let farm = Farm::new("acme");
    let m1 = farm.member("m1");
    let root = farm.root.certificate().clone();
    let trusting = Dialer::trusting(std::slice::from_ref(&root), farm.shared()).expect("a root");
    let pinned = Dialer::pinned(&root.pin(), farm.shared()).expect("a pin");
    for dialer in [&trusting, &pinned] {
        for purpose in [Purpose::People, Purpose::Farm] {
            let met = meet(&acceptor(&m1, purpose), dialer).await;
            assert_eq!(met.answer.as_deref(), Ok("hello"));
            assert_eq!(met.caller, Some(None));
        }
    }
    let other = Farm::new("other");
    let wrong = Dialer::pinned(&other.root.certificate().pin(), farm.shared()).expect("a pin");
    let met = meet(&acceptor(&m1, Purpose::Farm), &wrong).await;
    let text = met.answer.expect_err("another root");
    assert!(text.contains("no root with the pin sha256:"), "{text}");
    let wrong = Dialer::trusting(&[other.root.certificate().clone()], farm.shared());
    let met = meet(&acceptor(&m1, Purpose::People), &wrong.expect("a root")).await;
    let text = met.answer.expect_err("an unknown authority");
    assert!(
        text.contains("oast context set NAME --addr ADDRESS --ca FILE"),
        "{text}"
    );
    for bad in ["", "sha256:12", "md5:00"] {
        assert!(Dialer::pinned(bad, farm.shared()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn who_speaks_no_tls_is_told_so_and_so_is_who_meets_no_tls() {
    let farm = Farm::new("acme");
    let m1 = farm.member("m1");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = acceptor(&m1, Purpose::People);
    let answering = async {
        let (stream, peer) = listener.accept().await.expect("a caller");
        acceptor.accept(stream, peer).await.is_none()
    };
    let calling = async {
        let mut tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .expect("sent");
        let mut text = Vec::new();
        // A reset after the answer is as good as an end.
        let _ = tcp.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    };
    let (refused, text) = tokio::join!(answering, calling);
    assert!(refused);
    assert!(text.contains("this port speaks TLS only"), "{text}");
    assert_eq!(failures(&m1, "no_tls"), 1.0);

    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = plain.local_addr().expect("an address");
    let answering = async {
        let (mut stream, _) = plain.accept().await.expect("a caller");
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        stream
    };
    let dialer = Dialer::farm(farm.worker("w1"));
    let (_stream, text) = tokio::join!(answering, call(&dialer, address));
    let text = text.expect_err("no TLS there");
    assert!(text.contains("the other end does not speak TLS"), "{text}");
}

#[tokio::test]
async fn a_member_renews_at_two_thirds_and_new_connections_show_the_new_certificate() {
    let farm = Farm::new("acme");
    let (m1, w1) = (farm.member("m1"), farm.worker("w1"));
    let first = m1.current().certificate().clone();
    let stop = tokio_util::sync::CancellationToken::new();
    let renewer = OwnIssuer {
        identity: m1.clone(),
        life: HOUR,
    };
    let keeper = keep(m1.clone(), renewer, stop.clone());
    let renewals = m1
        .metrics()
        .counters(Metric::TlsRenewals)
        .with(&["renewed"]);
    let driver = async {
        let due = first.renew_at();
        while farm.clock.wall() < due {
            assert_eq!(renewals.get(), 0.0, "too early: {:?}", farm.clock);
            farm.clock.wait_for_sleepers(1).await;
            farm.clock.advance_to_next();
            tokio::task::yield_now().await;
        }
        farm.clock.wait_for_sleepers(1).await;
        assert_eq!(renewals.get(), 1.0);
        stop.cancel();
    };
    tokio::join!(keeper, driver);
    let second = m1.current().certificate().clone();
    assert_ne!(first.public_key(), second.public_key());
    assert!(second.not_after() > first.not_after());
    assert_eq!(first.hosts(), second.hosts());
    // The old one is over, the new one is not.
    let late = first.not_after() + Duration::from_secs(1);
    farm.clock.set_wall(late);
    let fresh = Files::worker(&farm.root, "w3", farm.lives(HOUR)).expect("signed");
    let w3 = farm.keep("w3", &fresh, Role::Worker);
    let met = meet(&acceptor(&m1, Purpose::Farm), &Dialer::farm(w3)).await;
    assert_eq!(met.answer.as_deref(), Ok("hello"));
    drop(w1);
}

#[tokio::test]
async fn files_that_an_operator_replaces_are_taken_and_bad_ones_are_not() {
    let farm = Farm::new("acme");
    let m1 = farm.member("m1");
    let before = m1.current().certificate().clone();
    assert!(!m1.changed());
    std::fs::write(m1.folder().join(IDENTITY_FILE), "rubbish").expect("written");
    assert!(m1.changed());
    let error = m1.reload().expect_err("rubbish");
    assert!(
        error
            .to_string()
            .contains("identity.pem holds no certificate"),
        "{error}"
    );
    assert_eq!(*m1.current().certificate(), before);
    let hosts = ["127.0.0.1".to_owned()];
    let files = Files::member(&farm.root, "m1", &hosts, farm.lives(HOUR)).expect("signed");
    files.replace(m1.folder()).expect("replaced");
    m1.reload().expect("good");
    assert_ne!(*m1.current().certificate(), before);
    assert!(!m1.changed());
}

#[test]
fn files_with_keys_are_their_owners_alone_and_nothing_is_overwritten() {
    use std::os::unix::fs::PermissionsExt;
    let farm = Farm::new("acme");
    let m1 = farm.member("m1");
    let mode = |file: &str| {
        let metadata = std::fs::metadata(m1.folder().join(file)).expect("a file");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode(IDENTITY_FILE), mode(ISSUER_FILE)), (0o600, 0o600));
    let files = Files::worker(&farm.root, "w1", farm.lives(HOUR)).expect("signed");
    let error = files.create(m1.folder()).expect_err("there already");
    assert!(matches!(error, FileError::Exists { .. }), "{error}");
    let path = m1.folder().join(IDENTITY_FILE);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
    let error = farm
        .open(m1.folder(), Role::Member)
        .expect_err("others may read it");
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn an_identity_of_another_role_farm_or_name_is_refused_at_the_start() {
    let farm = Farm::new("acme");
    let w1 = farm.worker("w1");
    let open = |role, farm_name: Option<&str>, name: Option<&str>| {
        let error = Identity::open(Options {
            folder: w1.folder().to_owned(),
            farm: farm_name.map(str::to_owned),
            role,
            name: name.map(str::to_owned),
            clock: farm.shared(),
            metrics: Metrics::new(),
        });
        error.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(open(Role::Worker, Some("acme"), Some("w1")), Ok(()));
    for (role, farm_name, name, says) in [
        (
            Role::Member,
            None,
            None,
            "is a worker's, and this process is a member",
        ),
        (
            Role::Worker,
            Some("other"),
            None,
            "belongs to the farm `acme`",
        ),
        (Role::Worker, None, Some("w2"), "is worker `w1`'s"),
    ] {
        let text = open(role, farm_name, name).expect_err("refused");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn an_issuer_signs_nothing_that_outlives_it_and_nothing_after_its_end() {
    let farm = Farm::new("acme");
    let issuer = farm
        .root
        .delegate("m1", farm.clock.wall(), HOUR)
        .expect("an issuer");
    let order = |now| Order {
        name: Name::new("acme", Role::Worker, "w1").expect("a name"),
        hosts: Vec::new(),
        key: PublicKey::read(issuer.certificate().public_key()).expect("a key"),
        now,
        life: 10 * HOUR,
    };
    let signed = issuer.issue(&order(farm.clock.wall())).expect("signed");
    assert_eq!(signed.not_after(), issuer.certificate().not_after());
    let late = issuer.certificate().not_after();
    let error = issuer.issue(&order(late)).expect_err("over");
    assert!(
        error.to_string().contains("oast operator pki issue member"),
        "{error}"
    );
}
