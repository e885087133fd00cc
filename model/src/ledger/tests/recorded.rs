//! A recorded log and a recorded state: old bytes keep their meaning.
//!
//! `model/testdata/ledger/` holds what an earlier build wrote: every command of a farm's life as
//! it stood in the log, the records in the middle of it, and the digests along the way. Replaying it
//! with this build must give the same digests, or an upgraded member and an old one would part.
//! What to do when it does not: CONTRIBUTING, "Change what is replicated".
//!
//! ```text
//! log-N.bin      { u64 now_ms | u32 kind | u32 length | MessagePack of Request }*
//! state-N.bin    { u32 length | key | u32 length | value }*      after HALF of the commands
//! digests-N.txt  number of commands applied, digest
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::*;
use crate::codec;
use crate::principal::{PrincipalKind, Role as UserRole};

/// Recordings, oldest first. A new one is added when kinds are added; old ones stay.
const RECORDINGS: [u32; 1] = [1];
/// A digest is recorded every so many commands.
const STRIDE: usize = 20;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/ledger")
        .join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).expect("the recording is part of the repository")
}

fn hex(digest: StateDigest) -> String {
    let bytes = digest.to_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (head, rest) = bytes.split_first_chunk().expect("a whole number");
    *bytes = rest;
    *head
}

fn field(bytes: &mut &[u8]) -> Vec<u8> {
    let length = u32::from_le_bytes(number(bytes)) as usize;
    let (head, rest) = bytes.split_at(length);
    *bytes = rest;
    head.to_vec()
}

struct Recorded {
    now: Timestamp,
    kind: u32,
    body: Vec<u8>,
}

fn log(recording: u32) -> Vec<Recorded> {
    let bytes = read(&format!("log-{recording}.bin"));
    let mut rest = &bytes[..];
    let mut log = Vec::new();
    while !rest.is_empty() {
        log.push(Recorded {
            now: Timestamp::from_millis(u64::from_le_bytes(number(&mut rest))),
            kind: u32::from_le_bytes(number(&mut rest)),
            body: field(&mut rest),
        });
    }
    log
}

fn apply(ledger: &mut Ledger, recorded: &Recorded) {
    let request: Request = codec::decode(&recorded.body).expect("an old command is understood");
    assert_eq!(request.command.kind(), recorded.kind);
    ledger.apply(recorded.now, request);
    ledger.drain();
}

fn digests(recording: u32) -> BTreeMap<usize, String> {
    let text = String::from_utf8(read(&format!("digests-{recording}.txt"))).expect("text");
    text.lines()
        .map(|line| line.split_once(' ').expect("two words"))
        .map(|(count, digest)| (count.parse().expect("a number"), digest.to_owned()))
        .collect()
}

#[test]
fn the_recorded_log_still_means_the_same() {
    for recording in RECORDINGS {
        let expected = digests(recording);
        let mut ledger = Ledger::new();
        let mut compared = 0;
        for (count, recorded) in (1..).zip(log(recording)) {
            apply(&mut ledger, &recorded);
            if let Some(digest) = expected.get(&count) {
                assert_eq!(
                    &hex(ledger.digest()),
                    digest,
                    "recording {recording} after command {count}, of kind {}",
                    recorded.kind
                );
                compared += 1;
            }
        }
        assert_eq!(compared, expected.len());
    }
}

#[test]
fn the_recorded_state_still_loads_and_goes_on_the_same_way() {
    for recording in RECORDINGS {
        let bytes = read(&format!("state-{recording}.bin"));
        let mut rest = &bytes[..];
        let mut ledger = Ledger::for_loading();
        while !rest.is_empty() {
            let key = field(&mut rest);
            ledger
                .load(&key, &field(&mut rest))
                .expect("an old record is understood");
        }
        ledger.finish_loading();
        let log = log(recording);
        let half = log.len() / 2;
        let expected = digests(recording);
        assert_eq!(hex(ledger.digest()), expected[&half]);
        for recorded in &log[half..] {
            apply(&mut ledger, recorded);
        }
        assert_eq!(hex(ledger.digest()), expected[&log.len()]);
    }
}

#[test]
fn every_kind_of_command_is_in_a_recording() {
    let kinds: BTreeSet<u32> = RECORDINGS
        .iter()
        .flat_map(|recording| log(*recording))
        .map(|recorded| recorded.kind)
        .collect();
    let all: BTreeSet<u32> = (1..=Command::LAST_KIND).collect();
    let missing: Vec<_> = all.difference(&kinds).collect();
    assert!(
        missing.is_empty(),
        "kinds {missing:?} are in no recording: extend `everything()`, then `cargo xtask record`"
    );
}

fn admin() -> Principal {
    Principal {
        name: "ann".into(),
        kind: PrincipalKind::User,
        role: UserRole::Admin,
        team: None,
    }
}

/// A farm's life with every command in it.
fn everything() -> World {
    let mut world = World::new(4);
    let request = |world: &mut World, id: &str, command: Command| {
        world.ask(admin(), Some(id), command).expect("ann may")
    };
    let create = |who: &str| Command::CreateToken {
        hash: format!("hash of {who}"),
        name: who.into(),
        role: UserRole::Operator,
        team: Some(name("payments")),
    };
    request(&mut world, "t1", create("bob"));
    request(&mut world, "t2", create("cy"));
    request(
        &mut world,
        "t3",
        Command::RevokeToken { name: "bob".into() },
    );
    request(
        &mut world,
        "s1",
        Command::SetSecret {
            team: name("payments"),
            name: name("key"),
        },
    );
    let ads = resource::Team {
        name: name("ads"),
        description: Some("about to go".into()),
        members: Vec::new(),
        weight: 1,
        quota: None,
        retention: None,
    };
    let resource = Box::new(Resource::Team(ads));
    request(
        &mut world,
        "r1",
        Command::ApplyResource {
            resource,
            expected: Some(0),
        },
    );
    request(
        &mut world,
        "r2",
        Command::DeleteResource {
            kind: resource::ResourceKind::Team,
            name: "ads".into(),
        },
    );
    for hash in ["j1", "j2"] {
        let token = Command::CreateJoinToken {
            hash: hash.into(),
            worker: None,
            ttl_ms: 3_600_000,
        };
        request(&mut world, hash, token);
    }
    let joins = Command::JoinWorker(JoinWorker {
        token: "j1".into(),
        worker: name("w1"),
        request_id: "j".into(),
        key: Digest::of(b"key"),
        chain: vec![vec![1, 2, 3]],
    });
    world.farm(joins);
    let id = JoinToken::id("j2").to_owned();
    request(&mut world, "j3", Command::RevokeJoinToken { id });
    request(&mut world, "v1", Command::HoldVersion { held: true });
    assert!(
        world
            .ask(Principal::farm(), None, Command::RaiseVersion { to: 1 })
            .is_err()
    );
    request(&mut world, "v2", Command::HoldVersion { held: false });
    world.farm(Command::RaiseVersion { to: 1 });

    // Pushes: two good ones, a bad one that is rolled back.
    world.push("c1");
    world.settle();
    world.push("c2");
    world.settle();
    world.bad = Some(world.version(3));
    world.push("c3");
    world.settle();
    world.bad = None;

    // By hand: begun, begun again while one is open, aborted.
    let begin = |version| Command::BeginRollout {
        fleet: name("web-prod"),
        version,
    };
    let (first, second) = (world.version(1), world.version(2));
    request(&mut world, "b1", begin(Some(first)));
    world.settle();
    let begun = request(&mut world, "b2", begin(Some(second)));
    world.reconcile();
    if let Answer::Rollout(Some(rollout)) = begun {
        let reason = "changed my mind".to_owned();
        request(&mut world, "a1", Command::AbortRollout { rollout, reason });
    }
    world.settle();

    // Uploads, asked twice; one is cancelled, one loses its worker twice.
    let submit = || {
        Command::SubmitRun(SubmitRun {
            team: name("payments"),
            repository: None,
            origin: Origin::Upload {
                tree: Digest::of(b"upload"),
                commit: Some("c0".into()),
                dirty: true,
            },
            path: "oast.yaml".into(),
            cause: "by hand".into(),
            inputs: BTreeMap::from([("size".to_owned(), "small".to_owned())]),
            priority: None,
        })
    };
    let first = request(&mut world, "u1", submit());
    assert_eq!(request(&mut world, "u1", submit()), first);
    let Answer::Run(run) = request(&mut world, "u2", submit()) else {
        panic!("no run")
    };
    let reason = "enough".to_owned();
    request(&mut world, "u3", Command::CancelRun { run, reason });
    // It is tried again, and what it was is not kept for long.
    let Command::SubmitRun(again) = submit() else {
        panic!("a submission")
    };
    let retry = RetryRun {
        run,
        submit: again,
        source: None,
        steps: Vec::new(),
        baked: None,
    };
    request(&mut world, "u4", Command::RetryRun(Box::new(retry)));
    let gone = Pruned {
        number: 1,
        kind: RUN,
        id: run.0,
        team: name("payments"),
    };
    world.farm(Command::PruneHistory {
        records: vec![gone],
    });
    let Answer::Run(run) = first else {
        panic!("no run: {first:?}")
    };
    let task = world.ledger.runs().get(&run).expect("open").tasks[0];
    let grant = |incarnation| Command::GrantLease {
        task,
        worker: name("w1"),
        incarnation,
    };
    let Answer::Lease(token) = world.farm(grant(1)) else {
        panic!("no lease")
    };
    let reason = "silent for 3 s".to_owned();
    world.farm(Command::ExpireLease { token, reason });
    world.now += Duration::from_secs(600);
    world.farm(grant(1));
    world.farm(Command::BeginIncarnation {
        worker: name("w1"),
        incarnation: 2,
    });
    let late = Report::Finished(Outcome::Released);
    assert!(world.worker(token, late).is_err());
    let cron = Command::FireCron {
        pipeline: name("web"),
        team: name("payments"),
        due: world.now,
    };
    // Nobody declared a calendar: a refusal is recorded too.
    let _ = world.ask(Principal::farm(), None, cron);

    // A day later the answers are forgotten.
    world.now += REQUEST_MEMORY + Duration::from_secs(1);
    for _ in 0..5 {
        world.farm(Command::RaiseVersion { to: 1 });
    }
    world
}

/// The files of a recording.
struct Recording {
    log: Vec<u8>,
    state: Vec<u8>,
    digests: String,
}

fn record(world: &World) -> Recording {
    let mut recording = Recording {
        log: Vec::new(),
        state: Vec::new(),
        digests: String::new(),
    };
    let mut ledger = Ledger::new();
    let half = world.log.len() / 2;
    for (count, (now, request)) in (1..).zip(&world.log) {
        recording.log.extend(now.as_millis().to_le_bytes());
        recording.log.extend(request.command.kind().to_le_bytes());
        put(&mut recording.log, &codec::encode(request));
        ledger.apply(*now, request.clone());
        ledger.drain();
        if count % STRIDE == 0 || count == half || count == world.log.len() {
            let _ = writeln!(recording.digests, "{count} {}", hex(ledger.digest()));
        }
        if count == half {
            for (key, value) in ledger.records() {
                put(&mut recording.state, &key);
                put(&mut recording.state, &value);
            }
        }
    }
    assert_eq!(hex(ledger.digest()), hex(world.ledger.digest()));
    recording
}

fn put(bytes: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).expect("short");
    bytes.extend(length.to_le_bytes());
    bytes.extend(field);
}

/// With `OAST_RECORD=1`, as `cargo xtask record` sets it, this replaces the newest recording.
#[test]
fn the_same_life_is_recorded_in_the_same_bytes() {
    let recorded = record(&everything());
    let again = record(&everything());
    assert_eq!(recorded.digests, again.digests);
    assert!(recorded.log == again.log && recorded.state == again.state);
    if std::env::var_os("OAST_RECORD").is_some() {
        let number = RECORDINGS[RECORDINGS.len() - 1];
        let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).expect("written");
        write(&format!("log-{number}.bin"), &recorded.log);
        write(&format!("state-{number}.bin"), &recorded.state);
        write(
            &format!("digests-{number}.txt"),
            recorded.digests.as_bytes(),
        );
    }
}
