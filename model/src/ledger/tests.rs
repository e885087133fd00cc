//! A farm in a test: commands in, state and effects out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::bake::BakedImage;
use crate::fleet::{InstanceState, InstanceView, Observation};
use crate::names::{InstanceName, RepositoryName};
use crate::pipeline::{
    ApiVersion, Arch, Bake, Base, Disk, Distribution, Engine, OnFailure, Pipeline, Publish,
    Strategy,
};
use crate::resource::{
    self, ChannelRef, Drain, Health, HealthHttp, Provider, Resource, Role, ScaleSet, Serve,
};
use crate::rollout::{Decision, Situation, instance_names, plan};
use crate::schedule::{Overlay, Rules, Session, schedule};
use crate::task::{
    BatchAction, BatchInstance, BatchOutput, Origin, Outcome, Output, Report, SourceOutput, Work,
};
use crate::units::TimeSpan;

mod recorded;

struct World {
    ledger: Ledger,
    /// Everything that was asked, for the recorded log.
    log: Vec<(Timestamp, Request)>,
    now: Timestamp,
    seen: Observation,
    /// How often each instance was given a version.
    deployed: BTreeMap<(InstanceName, VersionRef), u32>,
    bad: Option<VersionRef>,
    out_of_service_max: usize,
}

fn name<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a good name")
}

fn pipeline() -> Pipeline {
    Pipeline {
        api_version: ApiVersion::V1,
        name: name("web"),
        team: name("payments"),
        inputs: BTreeMap::new(),
        triggers: Vec::new(),
        bake: Bake {
            from: Base::Distribution {
                distribution: Distribution::Debian,
                release: "12".into(),
            },
            engine: Engine::Disk,
            arch: Arch::Amd64,
            mirror: None,
            sources: Vec::new(),
            packages: Vec::new(),
            disk: Disk::default(),
            env: BTreeMap::new(),
            steps: Vec::new(),
        },
        test: Vec::new(),
        publish: Publish {
            image: name("web"),
            channel: name("candidate"),
            regions: Vec::new(),
        },
        priority: None,
        concurrency: None,
        rollout: vec![crate::pipeline::Rollout {
            fleet: name("web-prod"),
            strategy: Strategy {
                soak: TimeSpan::from_secs(1),
                ..Strategy::default()
            },
            gates: Vec::new(),
            on_failure: OnFailure::Rollback,
        }],
    }
}

fn fleet(count: u32) -> resource::Fleet {
    resource::Fleet {
        name: name("web-prod"),
        team: name("payments"),
        provider: Provider::Local,
        sets: vec![ScaleSet {
            name: name("a"),
            region: None,
            count,
        }],
        listen: "127.0.0.1:8080".parse().expect("an address"),
        serve: Serve { port: 80 },
        health: Health {
            http: HealthHttp {
                port: 80,
                path: "/".into(),
                status: 200,
            },
            interval: TimeSpan::from_millis(100),
            timeout: TimeSpan::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 2,
        },
        drain: Drain {
            timeout: TimeSpan::from_secs(1),
        },
        channel: ChannelRef {
            image: name("web"),
            channel: name("candidate"),
        },
    }
}

impl World {
    fn new(instances: u32) -> World {
        let mut world = World {
            ledger: Ledger::new(),
            log: Vec::new(),
            now: Timestamp::from_millis(1_000_000),
            seen: Observation::default(),
            deployed: BTreeMap::new(),
            bad: None,
            out_of_service_max: 0,
        };
        world.farm(Command::InitFarm {
            name: "test".into(),
            admin: "h".into(),
            worker: "w".into(),
        });
        let team = resource::Team::new(name("payments"));
        world.farm(Command::ApplyResource {
            resource: Box::new(Resource::Team(team)),
            expected: Some(0),
        });
        world.resize(instances);
        let repository = resource::Repository {
            name: name("web"),
            team: name("payments"),
            url: "http://127.0.0.1/git/web.git".into(),
            branches: Vec::new(),
            path: "oast.yaml".into(),
            poll: None,
            webhook_secret: None,
            credentials: None,
        };
        world.farm(Command::ApplyResource {
            resource: Box::new(Resource::Repository(repository)),
            expected: None,
        });
        world.farm(Command::BeginIncarnation {
            worker: name("w1"),
            incarnation: 1,
        });
        world
    }

    fn resize(&mut self, instances: u32) {
        self.farm(Command::ApplyResource {
            resource: Box::new(Resource::Fleet(fleet(instances))),
            expected: None,
        });
    }

    fn ask(
        &mut self,
        principal: Principal,
        id: Option<&str>,
        command: Command,
    ) -> Result<Answer, Rejected> {
        self.now += Duration::from_millis(1);
        let before = self.ledger.clone();
        let request = Request {
            principal,
            request_id: id.map(str::to_owned),
            command,
        };
        self.log.push((self.now, request.clone()));
        let applied = self.ledger.apply(self.now, request);
        if applied.result.is_err() {
            // A refusal changes nothing but the number.
            let mut before = before;
            before.farm.get_mut(&0).expect("there").seq = applied.seq;
            before.drain();
            self.ledger.drain();
            assert_eq!(
                before.digest(),
                self.ledger.digest(),
                "{:?}",
                applied.result
            );
        }
        self.ledger.drain();
        applied.result
    }

    fn farm(&mut self, command: Command) -> Answer {
        self.ask(Principal::farm(), None, command)
            .expect("the farm may")
    }

    fn worker(&mut self, token: Token, report: Report) -> Result<Answer, Rejected> {
        self.ask(
            Principal::worker("w1"),
            None,
            Command::Report {
                token,
                report: Box::new(report),
            },
        )
    }

    fn push(&mut self, commit: &str) -> RunId {
        let refs = BTreeMap::from([("main".to_owned(), commit.to_owned())]);
        let repository: RepositoryName = name("web");
        match self.farm(Command::ObserveRefs { repository, refs }) {
            Answer::Run(run) => run,
            other => panic!("no run: {other:?}"),
        }
    }

    /// Grants and carries out everything that is ready; returns whether anything was.
    fn work(&mut self) -> bool {
        let session = Session {
            worker: name("w1"),
            incarnation: 1,
            region: "local".into(),
            arch: "amd64".into(),
            capabilities: ["source", "bake", "test", "publish", "batch"]
                .map(str::to_owned)
                .into(),
            providers: ["local".to_owned()].into(),
            slots: 4,
            cached: Default::default(),
            cordoned: false,
        };
        let grants = schedule(
            &self.ledger,
            &Overlay::default(),
            &[session],
            &Rules::default(),
            self.now,
        );
        let any = !grants.is_empty();
        for grant in grants {
            let answer = self.farm(Command::GrantLease {
                task: grant.task,
                worker: grant.worker,
                incarnation: grant.incarnation,
            });
            let Answer::Lease(token) = answer else {
                panic!("no lease: {answer:?}")
            };
            let assignment = self
                .ledger
                .assignment(token)
                .expect("a live lease has work");
            let output = self.carry_out(token, assignment.work);
            self.worker(
                token,
                Report::Finished(Outcome::Succeeded(Box::new(output))),
            )
            .expect("taken");
        }
        any
    }

    fn carry_out(&mut self, token: Token, work: Work) -> Output {
        match work {
            Work::Source { .. } => Output::Source(Box::new(SourceOutput {
                tree: Digest::of(b"tree"),
                pipeline: pipeline(),
                subject: None,
                author: None,
            })),
            Work::Bake { .. } => {
                let layer = Layer {
                    key: Digest::of(b"key"),
                    parent: None,
                    manifest: Digest::of(b"layer"),
                    size: 1,
                    title: "base".into(),
                    worker: name("w1"),
                    made_at: self.now,
                };
                self.worker(token, Report::StepStarted { step: 0 })
                    .expect("taken");
                let done = Report::StepFinished {
                    step: 0,
                    layer,
                    cached: false,
                    took_ms: 1,
                };
                self.worker(token, done).expect("taken");
                assert!(self.worker(token, Report::StepStarted { step: 0 }).is_err());
                Output::Baked(BakedImage {
                    base: "debian-12".into(),
                    arch: Arch::Amd64,
                    layers: vec![Digest::of(b"layer")],
                    disk: Digest::of(b"disk"),
                    disk_size: 1,
                    disk_digest: Digest::of(b"raw"),
                    packages: Digest::of(b"packages"),
                    package_count: 1,
                    bills: None,
                    provenance: None,
                })
            }
            Work::Test { .. } => Output::Tested(Vec::new()),
            Work::Publish { .. } => Output::Published,
            Work::Batch { order, image, .. } => {
                let mut instances = Vec::new();
                let out: std::collections::BTreeSet<_> =
                    crate::rollout::unavailable(&fleet(self.total()), &self.seen)
                        .into_iter()
                        .chain(order.instances.clone())
                        .collect();
                if self
                    .ledger
                    .fleets()
                    .get(&order.fleet)
                    .expect("there")
                    .good
                    .is_some()
                {
                    self.out_of_service_max = self.out_of_service_max.max(out.len());
                }
                for instance in order.instances {
                    let before = self
                        .seen
                        .instance(&instance)
                        .and_then(|seen| seen.version.clone());
                    let version = match &order.action {
                        BatchAction::Deploy(version) => Some(version.clone()),
                        BatchAction::Restart => before.clone(),
                    };
                    assert_eq!(
                        image.as_ref().map(|image| image.version.clone()),
                        match &order.action {
                            BatchAction::Deploy(version) => Some(version.clone()),
                            BatchAction::Restart => None,
                        }
                    );
                    let good = version != self.bad;
                    if let Some(version) = &version {
                        *self
                            .deployed
                            .entry((instance.clone(), version.clone()))
                            .or_default() += 1;
                    }
                    self.seen.instances.retain(|seen| seen.name != instance);
                    self.seen.instances.push(InstanceView {
                        name: instance.clone(),
                        version,
                        state: InstanceState::Running,
                        healthy: good,
                        in_rotation: good,
                        direct: None,
                        replaced: 0,
                        note: String::new(),
                    });
                    instances.push(BatchInstance {
                        name: instance,
                        before,
                        good,
                        note: "no answer".into(),
                    });
                }
                Output::Batch(BatchOutput {
                    instances,
                    readings: Vec::new(),
                })
            }
        }
    }

    fn total(&self) -> u32 {
        self.ledger.fleets().get("web-prod").expect("there").total()
    }

    /// The leader's reconciler: one decision.
    fn reconcile(&mut self) -> bool {
        let fleet = self.ledger.fleets().get("web-prod").expect("there").clone();
        let rollout = fleet
            .active
            .and_then(|id| self.ledger.rollouts().get(&id).cloned());
        let situation = Situation {
            fleet: &fleet,
            rollout: rollout.as_ref(),
            in_repair: &[],
            seen: &self.seen,
            now: self.now,
        };
        let probed = rollout.as_ref().map(|rollout| {
            (
                rollout.id,
                u32::try_from(rollout.batches.len())
                    .expect("few")
                    .saturating_sub(1),
            )
        });
        let seen = Observation {
            probed,
            ..self.seen.clone()
        };
        let situation = Situation {
            seen: &seen,
            ..situation
        };
        match plan(&situation) {
            Decision::Begin(begin) => {
                self.farm(Command::BeginBatch(begin));
                true
            }
            Decision::Judge {
                rollout,
                batch,
                open,
                reason,
                readings,
            } => {
                self.farm(Command::JudgeBatch {
                    rollout,
                    batch,
                    open,
                    reason,
                    readings,
                });
                true
            }
            Decision::Conclude(rollout) => {
                self.farm(Command::ConcludeRollout {
                    rollout,
                    debt: Vec::new(),
                });
                true
            }
            Decision::Wait {
                until: Some(until), ..
            } => {
                self.now = until;
                true
            }
            Decision::Wait { until: None, .. } | Decision::Rest => false,
        }
    }

    fn settle(&mut self) {
        for _ in 0..500 {
            let worked = self.work();
            if !self.reconcile() && !worked {
                return;
            }
        }
        panic!("the farm does not come to rest");
    }

    fn version(&self, number: u32) -> VersionRef {
        VersionRef {
            image: name("web"),
            number,
        }
    }

    fn runs_everywhere(&self, version: &VersionRef) -> bool {
        let names: Vec<_> = instance_names(&fleet(self.total())).collect();
        names.iter().all(|name| {
            self.seen
                .instance(name)
                .is_some_and(|seen| seen.version.as_ref() == Some(version))
        })
    }
}

#[test]
fn a_push_becomes_the_running_fleet_and_a_bad_one_comes_back() {
    let mut world = World::new(6);
    world.push("c1");
    world.settle();
    assert!(world.runs_everywhere(&world.version(1)));
    world.push("c2");
    world.settle();
    assert!(world.runs_everywhere(&world.version(2)));
    assert_eq!(world.out_of_service_max, 1);

    world.bad = Some(world.version(3));
    world.push("c3");
    world.settle();
    assert!(world.runs_everywhere(&world.version(2)));
    let hit = world
        .deployed
        .keys()
        .filter(|(_, version)| version.number == 3)
        .count();
    assert_eq!(hit, 1, "only the canary ever had the bad version");
    let fleet = world.ledger.fleets().get("web-prod").expect("there");
    assert_eq!(
        fleet.last.map(|(_, phase)| phase),
        Some(RolloutPhase::RolledBack)
    );
    assert!(fleet.barred.contains(&world.version(3)));
    assert!(world.ledger.runs().is_empty() && world.ledger.tasks().is_empty());

    world.bad = None;
    world.push("c4");
    world.settle();
    assert!(world.runs_everywhere(&world.version(4)));
    for ((instance, version), times) in &world.deployed {
        let allowed = if version.number == 2 { 2 } else { 1 };
        assert!(
            *times <= allowed,
            "{instance} was given {version} {times} times"
        );
    }
}

#[test]
fn a_stale_token_changes_nothing() {
    let mut world = World::new(1);
    let run = world.push("c1");
    let task = world.ledger.runs().get(&run).expect("open").tasks[0];
    let grant = Command::GrantLease {
        task,
        worker: name("w1"),
        incarnation: 1,
    };
    let Answer::Lease(old) = world.farm(grant.clone()) else {
        panic!("no lease")
    };
    assert!(
        world.ask(Principal::farm(), None, grant.clone()).is_err(),
        "one lease at a time"
    );
    world.farm(Command::ExpireLease {
        token: old,
        reason: "silent for 3 s".into(),
    });
    let Answer::Lease(new) = world.farm(grant) else {
        panic!("no lease")
    };
    assert!(new > old);
    let late = world.worker(
        old,
        Report::Finished(Outcome::Skipped {
            reason: "late".into(),
        }),
    );
    assert_eq!(late, Err(Rejected::StaleToken { token: old }));
    let foreign = world.ask(
        Principal::worker("w2"),
        None,
        Command::Report {
            token: new,
            report: Box::new(Report::Finished(Outcome::Released)),
        },
    );
    assert_eq!(foreign, Err(Rejected::StaleToken { token: new }));
}

#[test]
fn a_new_incarnation_frees_what_its_predecessor_held() {
    let mut world = World::new(1);
    let run = world.push("c1");
    let task = world.ledger.runs().get(&run).expect("open").tasks[0];
    world.farm(Command::GrantLease {
        task,
        worker: name("w1"),
        incarnation: 1,
    });
    world.farm(Command::BeginIncarnation {
        worker: name("w1"),
        incarnation: 2,
    });
    assert!(world.ledger.leases().is_empty());
    let old = Command::GrantLease {
        task,
        worker: name("w1"),
        incarnation: 1,
    };
    assert!(world.ask(Principal::farm(), None, old).is_err());
    world.farm(Command::GrantLease {
        task,
        worker: name("w1"),
        incarnation: 2,
    });
}

#[test]
fn errors_of_ours_are_tried_again_and_then_given_up() {
    let mut world = World::new(1);
    let run = world.push("c1");
    let task = world.ledger.runs().get(&run).expect("open").tasks[0];
    for attempt in 1..=crate::task::ERRORED_ATTEMPTS_MAX {
        world.now += Duration::from_secs(60);
        let grant = Command::GrantLease {
            task,
            worker: name("w1"),
            incarnation: 1,
        };
        let Answer::Lease(token) = world.farm(grant.clone()) else {
            panic!("no lease")
        };
        let outcome = Outcome::Errored {
            reason: "the disk is full".into(),
        };
        world
            .worker(token, Report::Finished(outcome))
            .expect("taken");
        if attempt < crate::task::ERRORED_ATTEMPTS_MAX {
            assert!(
                world.ask(Principal::farm(), None, grant).is_err(),
                "it waits first"
            );
        }
    }
    assert!(world.ledger.runs().is_empty(), "given up and in history");
}

#[test]
fn the_same_request_id_is_the_same_run() {
    let mut world = World::new(1);
    let ann = Principal {
        name: "ann".into(),
        kind: crate::principal::PrincipalKind::User,
        role: Role::Operator,
        team: Some(name("payments")),
    };
    let submit = |tree: &[u8]| {
        Command::SubmitRun(SubmitRun {
            team: name("payments"),
            repository: None,
            origin: Origin::Upload {
                tree: Digest::of(tree),
                commit: None,
                dirty: true,
            },
            path: "oast.yaml".into(),
            cause: "oast run".into(),
            inputs: BTreeMap::new(),
            priority: None,
        })
    };
    let first = world.ask(ann.clone(), Some("q1"), submit(b"1"));
    assert!(matches!(first, Ok(Answer::Run(_))));
    assert_eq!(world.ask(ann.clone(), Some("q1"), submit(b"1")), first);
    assert_eq!(world.ledger.runs().len(), 1);
    assert_ne!(world.ask(ann.clone(), Some("q2"), submit(b"2")), first);
    world.now += REQUEST_MEMORY;
    assert_ne!(
        world.ask(ann, Some("q1"), submit(b"1")),
        first,
        "forgotten after a day"
    );
}

#[test]
fn a_batch_beyond_the_budget_or_for_an_old_generation_is_refused() {
    let mut world = World::new(4);
    world.push("c1");
    world.settle();
    world.push("c2");
    while world.ledger.rollouts().is_empty() {
        assert!(world.work());
    }
    let fleet = world
        .ledger
        .fleets()
        .get("web-prod")
        .expect("there")
        .clone();
    let begin = BeginBatch {
        fleet: name("web-prod"),
        generation: fleet.generation,
        rollout: fleet.active,
        instances: vec![name("a-0"), name("a-1")],
        action: BatchAction::Deploy(world.version(2)),
        unavailable: Vec::new(),
    };
    let mut ask =
        |begin: BeginBatch| world.ask(Principal::farm(), None, Command::BeginBatch(begin));
    assert!(
        matches!(ask(begin.clone()), Err(Rejected::Forbidden(_))),
        "two out of service"
    );
    let old = BeginBatch {
        generation: fleet.generation - 1,
        ..begin.clone()
    };
    assert!(matches!(ask(old), Err(Rejected::WrongState(_))));
    let wrong = BeginBatch {
        instances: vec![name("a-0")],
        action: BatchAction::Deploy(VersionRef {
            image: name("web"),
            number: 1,
        }),
        ..begin.clone()
    };
    assert!(matches!(ask(wrong), Err(Rejected::Forbidden(_))));
    let one = BeginBatch {
        instances: vec![name("a-0")],
        ..begin.clone()
    };
    assert!(ask(one.clone()).is_ok());
    assert!(
        ask(BeginBatch {
            instances: vec![name("a-1")],
            ..one
        })
        .is_err(),
        "one batch at a time"
    );
}

#[test]
fn a_crashed_instance_is_started_again_without_a_rollout() {
    let mut world = World::new(3);
    world.push("c1");
    world.settle();
    world.seen.instances[1].state = InstanceState::Stopped;
    world.seen.instances[1].healthy = false;
    world.settle();
    assert!(world.seen.instances.iter().all(InstanceView::available));
    assert!(world.ledger.tasks().is_empty());
}

#[test]
fn an_instance_that_a_called_off_batch_left_drained_is_put_back_without_a_rollout() {
    let mut world = World::new(3);
    world.push("c1");
    world.settle();
    world.seen.instances[1].in_rotation = false;
    world.settle();
    assert!(world.seen.instances.iter().all(InstanceView::available));
    assert!(world.ledger.tasks().is_empty());
    // One that is not well is no business of a repair: nothing would make it better.
    world.seen.instances[1].in_rotation = false;
    world.seen.instances[1].healthy = false;
    assert!(!world.reconcile());
}

#[test]
fn instances_that_missed_a_rollout_get_the_good_version_within_the_budget() {
    let mut world = World::new(3);
    world.push("c1");
    world.settle();
    world.resize(1);
    world.push("c2");
    world.settle();
    world.resize(3);
    assert!(!world.runs_everywhere(&world.version(2)));
    world.settle();
    assert!(world.runs_everywhere(&world.version(2)));
    assert_eq!(world.out_of_service_max, 1);
    assert!(world.ledger.tasks().is_empty());
}

#[test]
fn a_snapshot_is_the_same_ledger() {
    let mut world = World::new(3);
    world.push("c1");
    world.settle();
    world.push("c2");
    world.work();
    let mut copy = Ledger::for_loading();
    for (key, value) in world.ledger.records() {
        copy.load(&key, &value).expect("readable");
    }
    copy.finish_loading();
    assert_eq!(copy.digest(), world.ledger.digest());
    assert_eq!(copy.seq(), world.ledger.seq());
    let (mut left, mut right) = (world.ledger.clone(), copy);
    for ledger in [&mut left, &mut right] {
        let cancel = Command::CancelRun {
            run: *world.ledger.runs().keys().next().expect("open"),
            reason: "enough".into(),
        };
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command: cancel,
        };
        let applied = ledger.apply(world.now, request);
        assert_eq!(applied.result, Ok(Answer::Done));
        ledger.drain();
    }
    assert_eq!(left.digest(), right.digest());
}
