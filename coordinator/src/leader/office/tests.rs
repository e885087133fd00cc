//! An office with a small ledger: what it decides, and when.

use std::collections::{BTreeMap, BTreeSet};

use oast_model::digest::Digest;
use oast_model::ledger::{Answer, Request, SubmitRun};
use oast_model::principal::Principal;
use oast_model::resource::{Resource, Team};
use oast_model::schedule::Session;
use oast_model::task::Origin;

use super::*;

const TTL: Duration = Duration::from_secs(5);

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a good name")
}

struct Farm {
    ledger: Ledger,
    office: Office,
    /// The newest time that the ledger has seen.
    applied: Timestamp,
    term: Option<u64>,
    now: Duration,
    wall: Timestamp,
}

impl Farm {
    /// A farm with one run whose source task is ready.
    fn new() -> Farm {
        let at = Timestamp::from_millis(1_000_000);
        let mut farm = Farm {
            ledger: Ledger::new(),
            office: Office::new(TTL),
            applied: at,
            term: Some(1),
            now: Duration::from_secs(100),
            wall: at,
        };
        farm.apply(Command::InitFarm {
            name: "test".into(),
            admin: "a".into(),
            worker: "w".into(),
        });
        let team = Team::new(name("shop"));
        farm.apply(Command::ApplyResource {
            resource: Box::new(Resource::Team(team)),
            expected: None,
        });
        farm.apply(Command::BeginIncarnation {
            worker: name("w1"),
            incarnation: 7,
        });
        farm.apply(Command::SubmitRun(SubmitRun {
            team: name("shop"),
            repository: None,
            origin: Origin::Upload {
                tree: Digest::of(b"tree"),
                commit: None,
                dirty: false,
            },
            path: "oast.yaml".into(),
            cause: "test".into(),
            inputs: BTreeMap::new(),
            priority: None,
        }));
        farm
    }

    fn apply(&mut self, command: Command) -> Answer {
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command,
        };
        let applied = self.ledger.apply(self.applied, request);
        applied.result.expect("the farm may")
    }

    fn connect(&mut self) -> SessionId {
        let session = Session {
            worker: name("w1"),
            incarnation: 7,
            region: "here".into(),
            arch: "amd64".into(),
            capabilities: ["source".to_owned()].into(),
            providers: BTreeSet::new(),
            slots: 1,
            cached: BTreeSet::new(),
            cordoned: false,
        };
        let connected = Connected {
            session,
            version: "1".into(),
            connected_at: self.wall,
            told: BTreeSet::new(),
            watching: Vec::new(),
        };
        let term = self.term.expect("leads");
        self.office
            .admit(term, self.term, connected, self.now)
            .expect("the same term")
    }

    fn turn(&mut self) -> Vec<Act> {
        self.office.turn(Look {
            view: &self.ledger,
            applied: self.applied,
            term: self.term,
            now: self.now,
            wall: self.wall,
        });
        self.office.take_acts()
    }

    fn pass(&mut self, span: Duration) {
        self.now += span;
        self.wall += span;
    }

    /// Proposes what the office wants and applies it.
    fn settle(&mut self, acts: Vec<Act>) -> Vec<Command> {
        let mut commands = Vec::new();
        for act in acts {
            if let Act::Propose { key, command } = act {
                commands.push(Command::clone(&command));
                self.apply(*command);
                self.office.answered(&key, Outcome::Applied, self.now);
            }
        }
        commands
    }
}

fn kinds(commands: &[Command]) -> Vec<u32> {
    commands.iter().map(Command::kind).collect()
}

const GRANT: u32 = 10;
const EXPIRE: u32 = 11;

#[test]
fn a_ready_task_is_proposed_once_until_its_answer_is_there() {
    let mut farm = Farm::new();
    farm.connect();
    let acts = farm.turn();
    assert_eq!(acts.len(), 1, "{acts:?}");
    assert!(farm.turn().is_empty(), "it is on its way");
    assert_eq!(kinds(&farm.settle(acts)), [GRANT]);
    let acts = farm.turn();
    let told = |act: &Act| {
        matches!(act, Act::Send { note: Note::Assignments { begin, ended, .. }, .. }
            if begin.len() == 1 && ended.is_empty())
    };
    assert!(acts.len() == 1 && told(&acts[0]), "{acts:?}");
    assert!(farm.turn().is_empty(), "the worker was told");
}

#[test]
fn what_was_refused_rests_before_it_is_proposed_again() {
    let mut farm = Farm::new();
    farm.connect();
    let acts = farm.turn();
    let Act::Propose { key, .. } = &acts[0] else {
        panic!("{acts:?}");
    };
    farm.office.answered(key, Outcome::NotApplied, farm.now);
    assert!(farm.turn().is_empty());
    farm.pass(REFUSED_PAUSE);
    assert_eq!(farm.turn().len(), 1);
}

#[test]
fn a_new_term_gives_every_lease_its_full_time() {
    let mut farm = Farm::new();
    let session = farm.connect();
    let acts = farm.turn();
    farm.settle(acts);
    farm.turn();
    farm.pass(TTL - Duration::from_millis(1));
    assert!(farm.turn().is_empty());
    farm.term = Some(2);
    let acts = farm.turn();
    let closed = |act: &Act| matches!(act, Act::Close { session: over } if *over == session);
    assert!(acts.len() == 1 && closed(&acts[0]), "{acts:?}");
    farm.pass(TTL - Duration::from_millis(1));
    assert!(farm.turn().is_empty());
    farm.pass(Duration::from_millis(1));
    let acts = farm.turn();
    assert_eq!(kinds(&farm.settle(acts)), [EXPIRE]);
}

/// Found by the simulation: work was given to a worker whose heartbeats were held up, was taken away
/// at once for its silence, and was given to it again, a hundred times a second.
#[test]
fn a_silent_session_is_over_and_gets_no_work() {
    let mut farm = Farm::new();
    let session = farm.connect();
    let acts = farm.turn();
    assert_eq!(kinds(&farm.settle(acts)), [GRANT]);
    farm.turn();
    farm.pass(TTL);
    let acts = farm.turn();
    let closed = |act: &Act| matches!(act, Act::Close { session: over } if *over == session);
    assert!(closed(&acts[0]), "{acts:?}");
    assert_eq!(kinds(&farm.settle(acts)), [EXPIRE]);
    assert!(farm.turn().is_empty(), "there is nobody to do it");
    // A heartbeat that was held up until now is not answered: its worker would take the answer for
    // a lease that lasts.
    assert!(!farm.office.hear(session, farm.now));
    farm.connect();
    let acts = farm.turn();
    assert_eq!(kinds(&farm.settle(acts)), [GRANT], "it is back");
    farm.pass(TTL - Duration::from_millis(1));
    assert!(
        farm.turn()
            .iter()
            .all(|act| !matches!(act, Act::Close { .. }))
    );
}

/// The leader before ran ahead by an hour, or our calendar was set back: nothing waits for that.
#[test]
fn a_leader_whose_calendar_is_behind_grants_at_once() {
    let mut farm = Farm::new();
    farm.wall = Timestamp::from_millis(1_000_000 - 400_000);
    farm.connect();
    let acts = farm.turn();
    assert_eq!(kinds(&farm.settle(acts)), [GRANT]);
}

#[test]
fn a_second_session_of_a_worker_ends_the_first_and_a_lost_one_keeps_its_lease() {
    let mut farm = Farm::new();
    let first = farm.connect();
    let acts = farm.turn();
    farm.settle(acts);
    let second = farm.connect();
    let acts = farm.turn();
    assert!(matches!(acts[0], Act::Close { session } if session == first));
    assert!(matches!(acts[1], Act::Send { session, .. } if session == second));
    assert!(!farm.office.hear(first, farm.now));
    farm.office.undelivered(second);
    assert!(farm.turn().is_empty());
    assert_eq!(farm.ledger.leases().len(), 1);
}
