//! Random lives of a farm: what holds after every command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_model::ids::{TaskId, Token};
use oast_model::ledger::{Answer, Command, Rejected};
use oast_model::principal::{Principal, PrincipalKind, Role};
use oast_model::priority::Priority;
use oast_model::task::{Outcome, Report};
use proptest::prelude::*;
use proptest::sample::Index;

use super::farm::{Farm, pipeline, team};

#[derive(Clone, Debug)]
enum Step {
    Submit(usize, Option<Priority>),
    Request(usize, u8),
    Schedule,
    /// Two leaders' worth of grants without looking at the applied state in between.
    Pipelined,
    Read(Index, u8),
    Fail(Index),
    Error(Index),
    Release(Index),
    Expire(Index),
    Late(Index),
    Restart(usize),
    Cancel(Index),
    Quota(usize, u32, u32),
    Pass(u16),
    PassLong,
    Reload,
}

const TEAMS: [&str; 3] = ["ads", "core", "web"];
const WORKERS: [&str; 3] = ["w1", "w2", "w3"];

fn step() -> impl Strategy<Value = Step> {
    let priority = prop::option::of(prop::sample::select(Priority::ALL.to_vec()));
    let lease = any::<Index>;
    prop_oneof![
        4 => (0..3usize, priority).prop_map(|(team, priority)| Step::Submit(team, priority)),
        2 => (0..3usize, 0..12u8).prop_map(|(team, id)| Step::Request(team, id)),
        4 => Just(Step::Schedule),
        2 => Just(Step::Pipelined),
        4 => (lease(), 0..4u8).prop_map(|(lease, group)| Step::Read(lease, group)),
        2 => lease().prop_map(Step::Fail),
        2 => lease().prop_map(Step::Error),
        1 => lease().prop_map(Step::Release),
        1 => lease().prop_map(Step::Expire),
        1 => lease().prop_map(Step::Late),
        1 => (0..3usize).prop_map(Step::Restart),
        1 => lease().prop_map(Step::Cancel),
        1 => (0..3usize, 0..4u32, 1..3u32).prop_map(|(team, slots, more)| Step::Quota(team, slots, more)),
        3 => any::<u16>().prop_map(Step::Pass),
        1 => Just(Step::PassLong),
        1 => Just(Step::Reload),
    ]
}

struct Life {
    farm: Farm,
    newest: Token,
    over: Vec<Token>,
    answers: BTreeMap<(usize, u8), (Answer, oast_model::time::Timestamp)>,
}

impl Life {
    fn new() -> Life {
        let mut farm = Farm::new();
        for name in TEAMS {
            farm.team(name, 1, None);
        }
        for name in WORKERS {
            farm.worker(name, 2);
        }
        Life {
            farm,
            newest: Token::ZERO,
            over: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    fn lease(&self, which: &Index) -> Option<Token> {
        let live: Vec<Token> = self.farm.ledger.leases().keys().copied().collect();
        (!live.is_empty()).then(|| live[which.index(live.len())])
    }

    fn granted(&mut self, token: Token) {
        assert!(token > self.newest, "tokens strictly rise");
        self.newest = token;
    }

    fn finish(&mut self, which: &Index, outcome: Outcome) {
        if let Some(token) = self.lease(which) {
            self.farm
                .report(token, Report::Finished(outcome))
                .expect("a live lease");
            self.over.push(token);
        }
    }

    fn take(&mut self, step: Step) {
        let farm = &mut self.farm;
        match step {
            Step::Submit(place, priority) => {
                farm.submit(TEAMS[place], priority);
            }
            Step::Request(place, id) => self.request(place, id),
            Step::Schedule => {
                for (token, _) in farm.turn() {
                    self.granted(token);
                }
            }
            Step::Pipelined => self.pipelined(),
            Step::Read(which, group) => self.read(&which, group),
            Step::Fail(which) => {
                let (reason, details) = ("wrong".to_owned(), Vec::new());
                self.finish(&which, Outcome::Failed { reason, details });
            }
            Step::Error(which) => {
                let reason = "no disk".to_owned();
                self.finish(&which, Outcome::Errored { reason });
            }
            Step::Release(which) => self.finish(&which, Outcome::Released),
            Step::Expire(which) => {
                if let Some(token) = self.lease(&which) {
                    let reason = "silent".to_owned();
                    self.farm.decide(Command::ExpireLease { token, reason });
                    self.over.push(token);
                }
            }
            Step::Late(which) => self.late(&which),
            Step::Restart(place) => {
                let session = &mut farm.sessions[place];
                session.incarnation += 1;
                let command = Command::BeginIncarnation {
                    worker: session.worker.clone(),
                    incarnation: session.incarnation,
                };
                farm.decide(command);
            }
            Step::Cancel(which) => {
                let open: Vec<_> = farm.ledger.runs().keys().copied().collect();
                if !open.is_empty() {
                    let run = open[which.index(open.len())];
                    let reason = "enough".to_owned();
                    farm.decide(Command::CancelRun { run, reason });
                }
            }
            Step::Quota(place, slots, borrow) => farm.team(TEAMS[place], 1, Some((slots, borrow))),
            Step::Pass(ms) => farm.pass(Duration::from_millis(u64::from(ms))),
            Step::PassLong => farm.pass(Duration::from_secs(9 * 60 * 60)),
            Step::Reload => farm.reload(),
        }
    }

    /// The same id within a day is the same run; after a day it is another one.
    fn request(&mut self, place: usize, id: u8) {
        let who = Principal {
            name: format!("ann-of-{}", TEAMS[place]),
            kind: PrincipalKind::User,
            role: Role::Operator,
            team: Some(team(TEAMS[place])),
        };
        let command = Command::SubmitRun(Farm::submission(TEAMS[place], None));
        let answer = self
            .farm
            .ask(who, Some(format!("q{id}")), command)
            .expect("ann may");
        let now = self.farm.now;
        let before = self.answers.get(&(place, id));
        let day = oast_model::ledger::REQUEST_MEMORY;
        match before {
            Some((before, at)) if now.since(*at) < day => assert_eq!(answer, *before),
            Some((before, _)) => assert_ne!(answer, *before),
            None => {}
        }
        if before.is_none_or(|(before, _)| *before != answer) {
            self.answers.insert((place, id), (answer, now));
        }
    }

    /// Decides twice before anything is applied, then applies all of it.
    fn pipelined(&mut self) {
        let mut grants = Vec::new();
        for _ in 0..2 {
            for grant in self.farm.wanted() {
                self.farm.overlay.assume(grant.clone());
                grants.push(grant);
            }
        }
        let tasks: BTreeSet<TaskId> = grants.iter().map(|grant| grant.task).collect();
        assert_eq!(tasks.len(), grants.len(), "a task is granted once");
        for grant in grants {
            let answer = self.farm.grant(&grant);
            let Ok(Answer::Lease(token)) = answer else {
                panic!("{grant:?}: {answer:?}")
            };
            self.granted(token);
            self.farm.overlay.settle(grant.task, true);
        }
    }

    /// A source task is done, with a pipeline that may be in a group.
    fn read(&mut self, which: &Index, group: u8) {
        let Some(token) = self.lease(which) else {
            return;
        };
        let lease = self.farm.ledger.leases().get(&token).expect("live");
        let task = self.farm.ledger.tasks().get(&lease.task).expect("leased");
        if task.kind != oast_model::task::TaskKind::Source {
            return;
        }
        let more = match group {
            0 => "",
            1 => "concurrency: { group: deploy }\n",
            2 => "priority: batch\nconcurrency: { group: deploy, max: 2 }\n",
            _ => "concurrency: { group: deploy, cancelInProgress: true }\n",
        };
        let read = pipeline(task.team.as_str(), more);
        self.farm.source_done(token, read);
        self.over.push(token);
    }

    /// A report under a lease that is over changes nothing.
    fn late(&mut self, which: &Index) {
        if self.over.is_empty() {
            return;
        }
        let token = self.over[which.index(self.over.len())];
        self.farm.drain();
        let before = self.records();
        let late = self.farm.report(token, Report::Finished(Outcome::Released));
        assert_eq!(late, Err(Rejected::StaleToken { token }));
        self.farm.drain();
        assert!(
            before == self.records(),
            "a refused report changed a record"
        );
    }

    /// Every record but the farm's own, which counts commands, and answers, which are forgotten.
    fn records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let records = self.farm.ledger.records();
        records
            .filter(|(key, _)| ![0, 16].contains(&key[0]))
            .collect()
    }

    fn check(&self) {
        let ledger = &self.farm.ledger;
        assert!(ledger.index_holds(), "the index is not what the tables say");
        assert_eq!(ledger.quota_violations(), Vec::new());
        let leased: BTreeSet<TaskId> = ledger.leases().iter().map(|(_, l)| l.task).collect();
        assert_eq!(leased.len(), ledger.leases().len(), "one live token a task");
        for (token, lease) in ledger.leases().iter() {
            let task = ledger.tasks().get(&lease.task).expect("a lease has a task");
            assert_eq!(task.token(), Some(*token));
        }
        for session in &self.farm.sessions {
            let load = ledger.index().load_of(&session.worker, session.incarnation);
            assert!(load <= session.slots as usize, "{} slots", session.slots);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_of_leases_quotas_and_indices_hold_in_every_life(
        steps in proptest::collection::vec(step(), 1..150),
    ) {
        let mut life = Life::new();
        for step in steps {
            life.take(step);
            life.check();
        }
    }
}
