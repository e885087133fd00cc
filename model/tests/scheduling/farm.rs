//! A farm of commands: teams, workers and runs, without a log, a clock or a network.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_model::digest::Digest;
use oast_model::ids::{RunId, Token};
use oast_model::ledger::{Answer, Changes, Command, Ledger, Rejected, Request, SubmitRun};
use oast_model::names::{TeamName, WorkerName};
use oast_model::pipeline::{self, Pipeline};
use oast_model::principal::Principal;
use oast_model::priority::Priority;
use oast_model::resource::{Quota, Resource, Team};
use oast_model::schedule::{Grant, Overlay, Rules, Session, schedule};
use oast_model::task::{Origin, Outcome, Output, Report, SourceOutput};
use oast_model::time::Timestamp;

/// What a worker can do unless a test says otherwise.
pub const KINDS: [&str; 5] = ["source", "bake", "test", "publish", "batch"];

/// A farm in a test.
#[derive(Clone, Debug)]
pub struct Farm {
    pub ledger: Ledger,
    pub now: Timestamp,
    pub overlay: Overlay,
    pub sessions: Vec<Session>,
    pub rules: Rules,
    /// History records that were taken away.
    pub archived: u64,
}

/// A name.
pub fn team(name: &str) -> TeamName {
    name.parse().expect("a good name")
}

/// A pipeline of a team, as its file says it; `more` are further keys.
pub fn pipeline(of: &str, more: &str) -> Pipeline {
    let text = format!(
        "apiVersion: oast/v1\nname: web\nteam: {of}\nbake:\n  from: debian-12\npublish: {{ image: {of}-web, channel: candidate }}\n{more}"
    );
    let checked = pipeline::parse("oast.yaml", &text);
    checked
        .value
        .unwrap_or_else(|| panic!("{text}: {:?}", checked.problems))
}

impl Farm {
    /// A farm without teams and workers, and without a reserve.
    pub fn new() -> Farm {
        let mut farm = Farm {
            ledger: Ledger::new(),
            now: Timestamp::from_millis(1_000_000),
            overlay: Overlay::default(),
            sessions: Vec::new(),
            rules: Rules { reserve: 0 },
            archived: 0,
        };
        farm.decide(Command::InitFarm {
            name: "test".into(),
            admin: "h".into(),
            worker: "w".into(),
        });
        farm
    }

    /// Applies a command.
    pub fn ask(
        &mut self,
        principal: Principal,
        request_id: Option<String>,
        command: Command,
    ) -> Result<Answer, Rejected> {
        let request = Request {
            principal,
            request_id,
            command,
        };
        self.ledger.apply(self.now, request).result
    }

    /// Takes away what changed, as the store would.
    pub fn drain(&mut self) -> Changes {
        let changes = self.ledger.drain();
        self.archived += changes.history.len() as u64;
        changes
    }

    /// Applies a command of the farm's own that cannot be refused.
    pub fn decide(&mut self, command: Command) -> Answer {
        self.ask(Principal::farm(), None, command)
            .expect("the farm may")
    }

    /// Declares a team.
    pub fn team(&mut self, name: &str, weight: u32, quota: Option<(u32, u32)>) {
        let spec = Team {
            weight,
            quota: quota.map(|(slots, borrow)| Quota { slots, borrow }),
            ..Team::new(team(name))
        };
        self.decide(Command::ApplyResource {
            resource: Box::new(Resource::Team(spec)),
            expected: None,
        });
    }

    /// Connects a worker that can do everything.
    pub fn worker(&mut self, name: &str, slots: u32) {
        self.specialist(name, slots, &KINDS);
    }

    /// Connects a worker that can do some kinds.
    pub fn specialist(&mut self, name: &str, slots: u32, kinds: &[&str]) {
        let worker: WorkerName = name.parse().expect("a good name");
        self.decide(Command::BeginIncarnation {
            worker: worker.clone(),
            incarnation: 1,
        });
        self.sessions.push(Session {
            worker,
            incarnation: 1,
            region: "local".into(),
            arch: "amd64".into(),
            capabilities: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            providers: BTreeSet::from(["local".to_owned()]),
            slots,
            cached: BTreeSet::new(),
            cordoned: false,
        });
    }

    /// What starts a run of a team.
    pub fn submission(of: &str, priority: Option<Priority>) -> SubmitRun {
        SubmitRun {
            team: team(of),
            repository: None,
            origin: Origin::Upload {
                tree: Digest::of(b"tree"),
                commit: None,
                dirty: true,
            },
            path: "oast.yaml".into(),
            cause: "test".into(),
            inputs: BTreeMap::new(),
            priority,
        }
    }

    /// Starts a run, which is one source task.
    pub fn submit(&mut self, of: &str, priority: Option<Priority>) -> RunId {
        match self.decide(Command::SubmitRun(Farm::submission(of, priority))) {
            Answer::Run(run) => run,
            other => panic!("no run: {other:?}"),
        }
    }

    /// What the scheduler wants now.
    pub fn wanted(&self) -> Vec<Grant> {
        schedule(
            &self.ledger,
            &self.overlay,
            &self.sessions,
            &self.rules,
            self.now,
        )
    }

    /// One turn of a leader: what is wanted is proposed, applied and seen.
    pub fn turn(&mut self) -> Vec<(Token, Grant)> {
        let mut granted = Vec::new();
        for grant in self.wanted() {
            self.overlay.assume(grant.clone());
            match self.grant(&grant) {
                Ok(Answer::Lease(token)) => granted.push((token, grant)),
                other => panic!("{grant:?}: {other:?}"),
            }
        }
        for (_, grant) in &granted {
            self.overlay.settle(grant.task, true);
        }
        granted
    }

    /// Applies a grant.
    pub fn grant(&mut self, grant: &Grant) -> Result<Answer, Rejected> {
        let command = Command::GrantLease {
            task: grant.task,
            worker: grant.worker.clone(),
            incarnation: grant.incarnation,
        };
        self.ask(Principal::farm(), None, command)
    }

    /// A worker reports.
    pub fn report(&mut self, token: Token, report: Report) -> Result<Answer, Rejected> {
        let holder = self.ledger.leases().get(&token);
        let worker = holder.map_or_else(|| "nobody".to_owned(), |lease| lease.worker.to_string());
        let command = Command::Report {
            token,
            report: Box::new(report),
        };
        self.ask(Principal::worker(&worker), None, command)
    }

    /// Ends a lease, and with a source task its run.
    pub fn end(&mut self, token: Token) {
        let outcome = Outcome::Failed {
            reason: "it is a test".into(),
            details: Vec::new(),
        };
        self.report(token, Report::Finished(outcome))
            .expect("a live lease");
    }

    /// A source task was done.
    pub fn source_done(&mut self, token: Token, pipeline: Pipeline) {
        let output = Output::Source(Box::new(SourceOutput {
            tree: Digest::of(b"tree"),
            pipeline,
            subject: None,
            author: None,
        }));
        self.report(
            token,
            Report::Finished(Outcome::Succeeded(Box::new(output))),
        )
        .expect("a live lease");
    }

    /// The ledger as it is after a restart.
    pub fn reload(&mut self) {
        self.drain();
        let mut ledger = Ledger::for_loading();
        for (key, value) in self.ledger.records() {
            ledger.load(&key, &value).expect("readable");
        }
        ledger.finish_loading();
        assert_eq!(ledger.digest(), self.ledger.digest());
        self.ledger = ledger;
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// How many slots a team holds.
    pub fn held(&self, of: &str) -> u32 {
        self.ledger.index().usage(&team(of)).counted()
    }
}
