//! The whole local cloud over a runtime of in-process servers: control API, balancer, durability.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::{SystemClock, timeout};
use oast_daemon::health::Health;
use oast_daemon::metrics::Metrics;
use oast_daemon::secret::Secret;
use oast_daemon::task::Tasks;

use super::*;
use crate::provider::conformance::{self, Setup};
use crate::provider::local::LocalProvider;
use crate::provider::{
    ErrorKind, FleetObservation, HealthCheck, ImageRef, InstanceObservation, Phase as Seen,
    Provider, SetSpec, Target,
};

pub(crate) mod fake;

use fake::Fake;

const TOKEN: &str = "correct-horse-battery";
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Farm {
    cloud: Running,
    pub(crate) process: Process,
    pub(crate) fake: Fake,
    pub(crate) provider: LocalProvider,
}

pub(crate) async fn farm(dir: &Utf8PathBuf) -> Farm {
    let clock = SystemClock::shared();
    let tasks = Tasks::new(clock.clone(), CancellationToken::new());
    let process = Process {
        clock,
        tasks: tasks.clone(),
        metrics: Metrics::new(),
        health: Health::default(),
    };
    let token_file = dir.join("token");
    std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
    let config = LocalCloudConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: dir.join("cloud"),
        store_dir: dir.join("store"),
        token_file,
        ..LocalCloudConfig::default()
    };
    let fake = Fake::new(&tasks);
    let cloud = start(&config, || Ok(Arc::new(fake.clone())), &process)
        .await
        .unwrap();
    let provider = LocalProvider::new(
        cloud.address,
        Secret::new(TOKEN.to_owned()),
        process.clock.clone(),
    )
    .unwrap();
    Farm {
        cloud,
        process,
        fake,
        provider,
    }
}

impl Farm {
    /// Ends the process's tasks as its death does, and waits until the lock is free.
    pub(crate) async fn end(self) {
        self.process.tasks.cancelled().cancel();
        self.process.tasks.finish(PATIENCE).await.unwrap();
        self.cloud.ended().await;
    }

    async fn wait(&self, done: impl Fn(&FleetObservation) -> bool) -> FleetObservation {
        let mut newest = None;
        let mut seen = self.provider.watch("prod");
        let waiting = async {
            while let Some(item) = seen.next().await {
                let fleet = item.unwrap();
                if done(&fleet) {
                    return fleet;
                }
                newest = Some(fleet);
            }
            unreachable!("the stream has no end")
        };
        let found = timeout(&SystemClock, PATIENCE, waiting).await;
        found.unwrap_or_else(|_| panic!("not reached, in the end: {newest:#?}"))
    }

    async fn serving(&self, count: usize) -> FleetObservation {
        self.wait(|f| {
            f.sets[0]
                .instances
                .iter()
                .filter(|i| i.is_serving())
                .count()
                == count
        })
        .await
    }
}

pub(crate) fn dir() -> (tempfile::TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}

fn spec(name: &str) -> SetSpec {
    SetSpec {
        name: name.to_owned(),
        fleet: "prod".to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        service_port: 80,
        health: HealthCheck {
            path: "/".to_owned(),
            status: 200,
            interval: Duration::from_millis(20),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 2,
        },
        drain_timeout: Duration::from_secs(5),
        model: None,
        tags: [("owner".to_owned(), "test".to_owned())].into(),
    }
}

fn image(version: &str) -> ImageRef {
    ImageRef {
        name: "web".to_owned(),
        version: version.to_owned(),
        layers: vec!["base".to_owned(), format!("app{version}")],
        base_layers: 1,
    }
}

fn target(operation: &str, id: &str) -> Target {
    Target {
        operation_id: operation.to_owned(),
        caller_token: "7".to_owned(),
        set: "web".to_owned(),
        id: id.to_owned(),
        if_match: None,
    }
}

async fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn one<'a>(fleet: &'a FleetObservation, id: &str) -> &'a InstanceObservation {
    fleet.instance("web", id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_local_provider_conforms() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    let setup = Setup {
        spec: spec("web"),
        images: [image("1"), image("2")],
        patience: PATIENCE,
    };
    conformance::run(&farm.provider, &setup, &SystemClock)
        .await
        .unwrap();
    farm.end().await;
}

/// The goal: what was accepted survives the process, and what runs afterwards is what was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_cloud_brings_its_instances_back() {
    let (_keep, dir) = dir();
    let before = farm(&dir).await;
    before
        .provider
        .ensure_set("set", &spec("web"))
        .await
        .unwrap();
    for id in ["0", "1"] {
        before
            .provider
            .create(&target(&format!("c{id}"), id), &image("1"))
            .await
            .unwrap();
    }
    before.serving(2).await;
    before
        .provider
        .reimage(&target("r1", "1"), &image("2"))
        .await
        .unwrap();
    before.provider.drain(&target("d0", "0")).await.unwrap();
    let old = before
        .wait(|f| one(f, "1").is_serving() && one(f, "0").drained)
        .await;
    before.end().await;

    let after = farm(&dir).await;
    let new = after
        .wait(|f| one(f, "1").is_serving() && one(f, "0").drained)
        .await;
    assert_eq!(
        new.sets[0].address, old.sets[0].address,
        "a picked port is kept"
    );
    for id in ["0", "1"] {
        let (old, new) = (one(&old, id), one(&new, id));
        assert_eq!(
            (&new.etag, &new.image, new.replaced),
            (&old.etag, &old.image, old.replaced)
        );
        assert_eq!(new.direct, old.direct, "a direct address is kept");
    }
    // The repeat of an operation from before the restart is still the same operation.
    let repeat = after
        .provider
        .reimage(&target("r1", "1"), &image("2"))
        .await
        .unwrap();
    assert_eq!(repeat.replaced, 1);
    assert!(get(new.sets[0].address.unwrap()).await.ends_with("1 2"));
    assert!(
        get(one(&new, "0").direct.unwrap()).await.ends_with("0 1"),
        "drained, still reachable"
    );
    after.end().await;
}

/// The goal: the gap of a replacement holds only stop and start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_root_is_prepared_before_the_old_boot_stops() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    farm.provider.ensure_set("set", &spec("web")).await.unwrap();
    farm.provider
        .create(&target("c", "0"), &image("1"))
        .await
        .unwrap();
    farm.serving(1).await;
    farm.provider
        .reimage(&target("r", "0"), &image("2"))
        .await
        .unwrap();
    farm.wait(|f| one(f, "0").is_serving() && one(f, "0").image.version == "2")
        .await;
    let journal = farm.fake.journal();
    let tail: Vec<&str> = journal
        .iter()
        .rev()
        .take(3)
        .rev()
        .map(String::as_str)
        .collect();
    assert_eq!(
        tail,
        ["prepare web/0#2 2", "stop web/0#1 1", "start web/0#2 2"]
    );
    farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_stays_stopped_with_its_reason_until_it_is_restarted() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    farm.provider.ensure_set("set", &spec("web")).await.unwrap();
    farm.provider
        .create(&target("c", "0"), &image("1"))
        .await
        .unwrap();
    farm.serving(1).await;
    farm.fake.crash("web", "0");
    let fleet = farm.wait(|f| one(f, "0").phase == Seen::Stopped).await;
    assert_eq!(one(&fleet, "0").note, "killed by signal 9");
    farm.provider.restart(&target("s", "0")).await.unwrap();
    let fleet = farm.serving(1).await;
    assert_eq!(one(&fleet, "0").replaced, 0, "a restart is no replacement");
    farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_does_not_boot_or_answers_wrongly_says_why() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    farm.provider.ensure_set("set", &spec("web")).await.unwrap();
    farm.provider
        .create(&target("c0", "0"), &image("unbootable"))
        .await
        .unwrap();
    farm.provider
        .create(&target("c1", "1"), &image("sick"))
        .await
        .unwrap();
    let fleet = farm
        .wait(|f| {
            let is = |id, note| f.instance("web", id).is_some_and(|i| i.note == note);
            is("0", "this image does not boot") && is("1", "answered 500 instead of 200")
        })
        .await;
    assert_eq!(one(&fleet, "0").phase, Seen::Failed);
    assert_eq!(one(&fleet, "1").phase, Seen::Running);
    // Both leave the broken image by a reimage.
    for id in ["0", "1"] {
        farm.provider
            .reimage(&target(&format!("r{id}"), id), &image("1"))
            .await
            .unwrap();
    }
    farm.serving(2).await;
    farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sets_of_a_fleet_share_one_address_and_two_fleets_do_not() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    let first = farm.provider.ensure_set("a", &spec("web")).await.unwrap();
    let shared = SetSpec {
        listen: first.address.unwrap(),
        ..spec("web-b")
    };
    let second = farm.provider.ensure_set("b", &shared).await.unwrap();
    assert_eq!(second.address, first.address);
    let other = SetSpec {
        fleet: "test".to_owned(),
        ..SetSpec {
            name: "x".to_owned(),
            ..shared
        }
    };
    let err = farm.provider.ensure_set("x", &other).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Permanent);
    assert!(err.reason.contains("is the address of fleet prod"), "{err}");
    farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_the_token_are_denied() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    let wrong = Secret::new("something else entirely".to_owned());
    let stranger = LocalProvider::new(farm.cloud.address, wrong, SystemClock::shared()).unwrap();
    assert_eq!(
        stranger.observe("prod").await.unwrap_err().kind,
        ErrorKind::Denied
    );
    farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_whose_port_is_taken_is_refused_with_the_way_out() {
    let (_keep, dir) = dir();
    let farm = farm(&dir).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = SetSpec {
        listen: taken.local_addr().unwrap(),
        ..spec("web")
    };
    let err = farm.provider.ensure_set("set", &spec).await.unwrap_err();
    assert!(
        err.reason.contains("give the set another `listen` address"),
        "{err}"
    );
    assert!(
        farm.provider.observe("prod").await.unwrap().sets.is_empty(),
        "no half-made set"
    );
    farm.end().await;
}
