//! Batches on a local cloud whose instances are servers of the test process.

use futures_util::stream::BoxStream;
use oast_artifacts::{ArtifactStore, Digest, SegmentKey};
use oast_model::fleet::{GateOutcome, VersionRef};
use oast_model::ids::{Seq, TaskId, Token};
use oast_model::names::InstanceName;
use oast_model::pipeline::HttpCheck;
use oast_model::task::BatchAction;
use oast_model::units::TimeSpan;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fleet::tests::fleet;
use crate::lease::{Contact, Lease};
use crate::local_cloud::tests::{Farm, dir, farm};
use crate::provider::{InstanceObservation, SetObservation, SetSpec, Target};
use crate::runner::log::TaskLog;

const TTL: Duration = Duration::from_secs(3600);

struct Bench {
    farm: Farm,
    store: ArtifactStore,
    fleet: Fleet,
    executor: Executor,
    _keep: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Bench {
        let (keep, folder) = dir();
        let farm = farm(&folder).await;
        let clock = farm.process.clock.clone();
        Bench {
            store: ArtifactStore::open(&folder.join("store")).unwrap(),
            fleet: fleet("127.0.0.1:0".parse().unwrap(), 80),
            executor: Executor {
                provider: Arc::new(farm.provider.clone()),
                clock,
            },
            farm,
            _keep: keep,
        }
    }

    /// An attempt of task `task` under lease `token`; in contact with the leader or not.
    fn attempt(&self, task: u64, token: u64, contact: bool) -> (Attempt, CancellationToken) {
        let clock = self.farm.process.clock.clone();
        let heard = Contact::new(clock.clone(), Duration::from_secs(1));
        if contact {
            heard.heard(clock.monotonic(), TTL);
        }
        let task = TaskId {
            seq: Seq::from_u64(task),
            ordinal: 0,
        };
        let key = SegmentKey {
            run: "r-1".to_owned(),
            task: task.to_string(),
            attempt: token,
        };
        let log = TaskLog::begin(&self.store, &key, clock, std::iter::empty()).unwrap();
        let ended = CancellationToken::new();
        let lease = Lease::new(Token::from_u64(token), ended.clone(), Arc::new(heard));
        (Attempt::alone(task, lease, log), ended)
    }

    fn batch(&self, instances: &[&str], version: Option<u32>, gates: Vec<Gate>) -> Batch {
        let version = version.map(|number| VersionRef {
            image: "web".parse().unwrap(),
            number,
        });
        Batch {
            order: BatchOrder {
                fleet: self.fleet.name.clone(),
                generation: 1,
                instances: instances
                    .iter()
                    .map(|name| InstanceName::new(*name).unwrap())
                    .collect(),
                action: version
                    .clone()
                    .map_or(BatchAction::Restart, BatchAction::Deploy),
                batch: Some(0),
            },
            fleet: self.fleet.clone(),
            image: version.map(|version| DeployImage {
                layers: vec![
                    Digest::of(b"base"),
                    Digest::of(&version.number.to_le_bytes()),
                ],
                disk: Digest::of(b"disk"),
                version,
            }),
            gates,
            healthy_deadline: Duration::from_secs(20),
        }
    }

    async fn seen(&self, id: &str) -> Option<InstanceObservation> {
        let seen = self.farm.provider.observe("web-prod").await.unwrap();
        seen.instance("web-prod--web", id).cloned()
    }

    fn starts(&self) -> Vec<String> {
        let journal = self.farm.fake.journal();
        journal
            .into_iter()
            .filter(|line| line.starts_with("start"))
            .collect()
    }
}

/// A gate that wants this text in the page, which is `<id> <version>`.
fn says(text: &str) -> Vec<Gate> {
    vec![Gate::Http(HttpCheck {
        port: None,
        path: "/".to_owned(),
        status: 200,
        contains: Some(text.to_owned()),
        timeout: TimeSpan::from_secs(2),
    })]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_repeated_under_a_higher_token_replaces_nothing_twice() {
    let bench = Bench::new().await;
    let three = ["web-0", "web-1", "web-2"];
    let (attempt, _) = bench.attempt(10, 11, true);
    let output = bench
        .executor
        .run(&attempt, &bench.batch(&three, Some(1), Vec::new()))
        .await
        .unwrap();
    assert!(
        output
            .instances
            .iter()
            .all(|i| i.good && i.before.is_none()),
        "{output:?}"
    );

    let update = bench.batch(&three[..2], Some(2), says(" 2"));
    let (attempt, _) = bench.attempt(20, 21, true);
    let output = bench.executor.run(&attempt, &update).await.unwrap();
    assert!(output.instances.iter().all(|i| i.good), "{output:?}");
    let before: Vec<String> = output
        .instances
        .iter()
        .map(|i| i.before.clone().unwrap().to_string())
        .collect();
    assert_eq!(before, ["web:1", "web:1"]);
    assert!(
        output
            .readings
            .iter()
            .all(|r| r.outcome == GateOutcome::Open)
    );
    assert_eq!(output.readings.len(), 2);
    let starts = bench.starts();
    assert_eq!(starts.len(), 5, "{starts:?}");

    let (attempt, _) = bench.attempt(20, 22, true);
    let output = bench.executor.run(&attempt, &update).await.unwrap();
    assert!(output.instances.iter().all(|i| i.good), "{output:?}");
    assert_eq!(bench.starts(), starts);
    for id in ["0", "1"] {
        let seen = bench.seen(id).await.unwrap();
        assert!(seen.is_serving() && seen.replaced == 1, "{seen:?}");
    }
    bench.farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shut_gate_keeps_the_instance_out_of_rotation_and_going_back_works() {
    let bench = Bench::new().await;
    let one = ["web-0"];
    let (attempt, _) = bench.attempt(10, 11, true);
    let first = bench.batch(&one, Some(1), says(" 1"));
    let output = bench.executor.run(&attempt, &first).await.unwrap();
    assert!(output.instances[0].good, "{output:?}");

    let (attempt, _) = bench.attempt(20, 21, true);
    let broken = bench.batch(&one, Some(3), says("never said"));
    let output = bench.executor.run(&attempt, &broken).await.unwrap();
    assert!(!output.instances[0].good, "{output:?}");
    assert_eq!(output.readings[0].outcome, GateOutcome::Shut);
    let seen = bench.seen("0").await.unwrap();
    assert!(seen.draining && !seen.is_serving(), "{seen:?}");

    // The way back has no gates and takes the drained instance as it finds it.
    let (attempt, _) = bench.attempt(30, 31, true);
    let back = bench.batch(&one, Some(1), Vec::new());
    let output = bench.executor.run(&attempt, &back).await.unwrap();
    assert!(output.instances[0].good, "{output:?}");
    assert!(bench.seen("0").await.unwrap().is_serving());
    bench.farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_instance_is_started_again_without_a_replacement() {
    let bench = Bench::new().await;
    let one = ["web-0"];
    let (attempt, _) = bench.attempt(10, 11, true);
    let first = bench.batch(&one, Some(1), Vec::new());
    bench.executor.run(&attempt, &first).await.unwrap();
    bench.farm.fake.crash("web-prod--web", "0");
    let mut stream = bench.farm.provider.watch("web-prod");
    while let Some(item) = stream.next().await {
        let fleet = item.unwrap();
        let stopped = fleet.instance("web-prod--web", "0").unwrap().phase;
        if stopped == crate::provider::Phase::Stopped {
            break;
        }
    }
    for token in [21, 22] {
        let (attempt, _) = bench.attempt(20, token, true);
        let again = bench.batch(&one, None, Vec::new());
        let output = bench.executor.run(&attempt, &again).await.unwrap();
        assert!(output.instances[0].good, "{output:?}");
    }
    let seen = bench.seen("0").await.unwrap();
    assert!(seen.is_serving() && seen.replaced == 0, "{seen:?}");
    assert_eq!(bench.starts().len(), 2, "{:?}", bench.starts());
    bench.farm.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_contact_to_the_leader_nothing_is_changed_and_an_ended_lease_stops() {
    let bench = Bench::new().await;
    let (attempt, ended) = bench.attempt(10, 11, false);
    let batch = bench.batch(&["web-0"], Some(1), Vec::new());
    let running = bench.executor.run(&attempt, &batch);
    tokio::pin!(running);
    let clock = bench.farm.process.clock.clone();
    let waited = timeout(&*clock, Duration::from_millis(300), &mut running).await;
    assert!(waited.is_err(), "{waited:?}");
    assert!(
        bench
            .farm
            .provider
            .observe("web-prod")
            .await
            .unwrap()
            .sets
            .is_empty()
    );
    ended.cancel();
    // The contact has not changed, but the end of the lease wakes whoever waits for a permit.
    let halt = running.await.unwrap_err();
    assert!(matches!(halt, Halt::Errored { .. }), "{halt:?}");
    assert!(bench.starts().is_empty());
    bench.farm.end().await;
}

/// A cloud in which somebody else replaces an instance just before it is put into rotation.
#[derive(Debug)]
struct Meddled {
    provider: Arc<dyn Provider>,
    /// What they replace it by, once.
    image: std::sync::Mutex<Option<ImageRef>>,
}

#[tonic::async_trait]
impl Provider for Meddled {
    async fn observe(&self, fleet: &str) -> Result<FleetObservation, ProviderError> {
        self.provider.observe(fleet).await
    }

    fn watch(&self, fleet: &str) -> BoxStream<'static, Result<FleetObservation, ProviderError>> {
        self.provider.watch(fleet)
    }

    async fn ensure_set(&self, id: &str, spec: &SetSpec) -> Result<SetObservation, ProviderError> {
        self.provider.ensure_set(id, spec).await
    }

    async fn delete_set(&self, id: &str, set: &str) -> Result<(), ProviderError> {
        self.provider.delete_set(id, set).await
    }

    async fn create(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError> {
        self.provider.create(target, image).await
    }

    async fn reimage(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError> {
        self.provider.reimage(target, image).await
    }

    async fn restart(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        self.provider.restart(target).await
    }

    async fn delete(&self, target: &Target) -> Result<(), ProviderError> {
        self.provider.delete(target).await
    }

    async fn drain(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        self.provider.drain(target).await
    }

    async fn undrain(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        let other = self.image.lock().unwrap().take();
        if let Some(image) = other {
            let theirs = Target {
                operation_id: "theirs".to_owned(),
                if_match: None,
                ..target.clone()
            };
            self.provider.reimage(&theirs, &image).await?;
        }
        self.provider.undrain(target).await
    }

    async fn prefetch(&self, image: &ImageRef) -> Result<(), ProviderError> {
        self.provider.prefetch(image).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_replaced_the_judged_instance_is_not_put_into_rotation() {
    let mut bench = Bench::new().await;
    let one = ["web-0"];
    let (attempt, _) = bench.attempt(10, 11, true);
    let first = bench.batch(&one, Some(1), Vec::new());
    bench.executor.run(&attempt, &first).await.unwrap();

    let theirs = bench.batch(&one, Some(3), Vec::new()).image;
    bench.executor.provider = Arc::new(Meddled {
        provider: Arc::new(bench.farm.provider.clone()),
        image: std::sync::Mutex::new(theirs.as_ref().map(image_ref)),
    });
    let (attempt, _) = bench.attempt(20, 21, true);
    let update = bench.batch(&one, Some(2), says(" 2"));
    let halt = bench.executor.run(&attempt, &update).await.unwrap_err();
    assert!(
        matches!(&halt, Halt::Errored { .. })
            && format!("{halt:?}").contains("changed after it was judged"),
        "{halt:?}"
    );
    let seen = bench.seen("0").await.unwrap();
    assert!(seen.draining && seen.image.version == "3", "{seen:?}");
    bench.farm.end().await;
}
