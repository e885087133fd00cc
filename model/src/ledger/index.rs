//! What is derived from the tables, so that no question looks at every task or lease.
//!
//! ```text
//! command -> tables (what changed is noted) -> Index::follow: the same places of the index
//! load    -> tables                          -> Index::of: all of them
//! ```
//!
//! Nothing here is stored or part of the digest. Both ways must end in the same index, which a
//! property test compares after random commands. The index shares its structure with its clones,
//! as the tables do, so a view of the state has it for nothing.
//!
//! A task that waits stands in one of three places: *ready* in the lane of its band, class and
//! team; *later*, by time, when it waits after an error; or *held* behind its concurrency group.
//! A task moves from later to ready when a command's time has passed: the index itself has no
//! clock, so readers with a newer time look at the beginning of *later* as well
//! ([`Index::due`]).

mod group;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use group::Groups;
pub use group::{Group, GroupKey};

use super::{Lease, Ledger};
use crate::class::{Class, KINDS, Kind};
use crate::fleet::VersionRef;
use crate::ids::{RunId, Seq, TaskId, Token};
use crate::names::{TeamName, WorkerName};
use crate::priority::Band;
use crate::task::{Task, TaskOwner, TaskPhase};
use crate::time::Timestamp;

/// Most tasks that one command moves from later to ready, so that no command is slow.
const MOVED_MAX: usize = 256;

type Bounds<T> = (Bound<T>, Bound<T>);

/// Ready tasks that differ in nothing but their turn.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    /// What they need.
    pub class: Class,
    /// Whose they are.
    pub team: TeamName,
}

/// A task's place within its team and band: older work is finished before newer is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// When the run or rollout began, as its sequence.
    pub age: Seq,
    /// The task.
    pub task: TaskId,
}

/// Where a waiting task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// It can be leased.
    Ready,
    /// It can be leased from this time on.
    Later(Timestamp),
    /// Another run holds its concurrency group.
    Held,
}

/// A waiting task in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its band.
    pub band: Band,
    /// Its lane.
    pub lane: Arc<Lane>,
    /// Its turn.
    pub turn: Turn,
    /// Where it stands.
    pub at: At,
}

/// What a team holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Leases by kind, without those of the band that counts for nobody.
    pub kinds: [u32; KINDS],
    /// Leases for repairs and rollbacks.
    pub repair: u32,
}

impl Usage {
    /// Leases that count against share and quota.
    pub fn counted(&self) -> u32 {
        self.kinds.iter().sum()
    }

    /// Adds a lease.
    pub fn add(&mut self, band: Band, kind: Kind) {
        *self.slot(band, kind) += 1;
    }

    fn take(&mut self, band: Band, kind: Kind) {
        let slot = self.slot(band, kind);
        *slot = slot.checked_sub(1).expect("a lease is counted once");
    }

    fn slot(&mut self, band: Band, kind: Kind) -> &mut u32 {
        if band.counts() {
            &mut self.kinds[kind.index()]
        } else {
            &mut self.repair
        }
    }
}

/// A lease as it is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holding {
    worker: WorkerName,
    incarnation: u64,
    team: TeamName,
    kind: Kind,
    band: Band,
}

/// What is derived from the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Newest time of a command: what became ready until then is in its lane.
    watermark: Timestamp,
    ready: [OrdMap<Arc<Lane>, OrdSet<Turn>>; Band::ALL.len()],
    later: OrdSet<(Timestamp, TaskId)>,
    places: OrdMap<TaskId, Place>,
    holdings: OrdMap<Token, Holding>,
    held: OrdMap<WorkerName, OrdMap<u64, OrdSet<Token>>>,
    usage: OrdMap<TeamName, Usage>,
    run_teams: OrdMap<RunId, TeamName>,
    team_runs: OrdMap<TeamName, usize>,
    groups: Groups,
    /// Runs of which an image version came.
    published: OrdSet<RunId>,
}

/// Which records changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub(super) tasks: BTreeSet<TaskId>,
    pub(super) leases: BTreeSet<Token>,
    pub(super) runs: BTreeSet<RunId>,
    pub(super) versions: BTreeSet<VersionRef>,
}

/// What readers ask.
impl Index {
    /// Lanes of a band that have a ready task, with their tasks in turn.
    pub fn lanes(&self, band: Band) -> impl Iterator<Item = (&Arc<Lane>, &OrdSet<Turn>)> {
        self.ready[band as usize].iter()
    }

    /// Tasks that stand in *later* although `now` has come, the first `limit` of them.
    pub fn due(&self, now: Timestamp, limit: usize) -> impl Iterator<Item = &Place> {
        self.later
            .iter()
            .take_while(move |(at, _)| *at <= now)
            .take(limit)
            .filter_map(|(_, task)| self.places.get(task))
    }

    /// The next time after `now` at which a waiting task becomes ready.
    pub fn next_ready(&self, now: Timestamp) -> Option<Timestamp> {
        let last = TaskId {
            seq: Seq::from_u64(u64::MAX),
            ordinal: u16::MAX,
        };
        let after: Bounds<(Timestamp, TaskId)> = (Bound::Excluded((now, last)), Bound::Unbounded);
        let next = self.later.range::<_, (Timestamp, TaskId)>(after).next();
        next.map(|(at, _)| *at)
    }

    /// Where a waiting task stands.
    pub fn place(&self, task: TaskId) -> Option<&Place> {
        self.places.get(&task)
    }

    /// Number of tasks that wait.
    pub fn waiting(&self) -> usize {
        self.places.len()
    }

    /// What a team holds.
    pub fn usage(&self, team: &TeamName) -> Usage {
        self.usage.get(team).copied().unwrap_or_default()
    }

    /// The newest lease of a team that counts against its quota. Looks at all leases.
    pub(super) fn newest_counted(&self, team: &TeamName) -> Option<Token> {
        let counted = |holding: &Holding| holding.team == *team && holding.band.counts();
        self.holdings
            .iter()
            .rev()
            .find(|(_, holding)| counted(holding))
            .map(|(token, _)| *token)
    }

    /// Teams that hold something.
    pub fn usages(&self) -> impl Iterator<Item = (&TeamName, &Usage)> {
        self.usage.iter()
    }

    /// Live leases of one start of a worker, oldest first.
    pub fn leases_of(&self, worker: &WorkerName, incarnation: u64) -> impl Iterator<Item = Token> {
        let tokens = self.held.get(worker).and_then(|all| all.get(&incarnation));
        tokens.into_iter().flat_map(|tokens| tokens.iter().copied())
    }

    /// How many live leases one start of a worker has.
    pub fn load_of(&self, worker: &WorkerName, incarnation: u64) -> usize {
        self.held
            .get(worker)
            .and_then(|all| all.get(&incarnation))
            .map_or(0, OrdSet::len)
    }

    /// Starts of workers that have a live lease, with their leases.
    pub fn holders(&self) -> impl Iterator<Item = (&WorkerName, u64, &OrdSet<Token>)> {
        self.held.iter().flat_map(|(worker, all)| {
            all.iter()
                .map(move |(incarnation, tokens)| (worker, *incarnation, tokens))
        })
    }

    /// Every live lease of a worker, whichever start holds it.
    pub(super) fn leases_of_all(&self, worker: &WorkerName) -> Vec<Token> {
        let all = self.held.get(worker);
        let mut tokens: Vec<Token> = all
            .into_iter()
            .flat_map(|all| all.iter())
            .flat_map(|(_, tokens)| tokens.iter().copied())
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// Whether an image version came of a run.
    pub fn published(&self, run: RunId) -> bool {
        self.published.contains(&run)
    }

    /// How many open runs a team has.
    pub fn runs_of(&self, team: &TeamName) -> usize {
        self.team_runs.get(team).copied().unwrap_or(0)
    }

    /// A concurrency group in which a run is open.
    pub fn group(&self, key: &GroupKey) -> Option<&Group> {
        self.groups.get(key)
    }

    /// The concurrency group that an open run is in.
    pub fn group_of(&self, run: RunId) -> Option<&GroupKey> {
        self.groups.of_run(run)
    }

    /// Whether a run may have a task leased now, as far as its concurrency group goes.
    pub fn admitted(&self, run: RunId) -> bool {
        self.groups.admitted(run)
    }
}

/// How it follows the tables.
impl Index {
    /// The index of a loaded ledger.
    pub(super) fn of(ledger: &Ledger, watermark: Timestamp) -> Index {
        let mut index = Index {
            watermark,
            ..Index::default()
        };
        let touched = Touched {
            tasks: ledger.tasks.keys().copied().collect(),
            leases: ledger.leases.keys().copied().collect(),
            runs: ledger.runs.keys().copied().collect(),
            versions: ledger.versions.keys().cloned().collect(),
        };
        index.follow(ledger, touched, watermark);
        index
    }

    /// A time that is not after the newest command's: whatever happened is in the records.
    pub(super) fn watermark_of(ledger: &Ledger) -> Timestamp {
        let tasks = ledger.tasks.iter().map(|(_, task)| {
            let attempt = task.attempts.last();
            let granted = attempt.map_or(task.created_at, |attempt| attempt.granted_at);
            let ended = attempt
                .and_then(|attempt| attempt.ended.as_ref())
                .map_or(granted, |(at, _)| *at);
            task.created_at.max(granted).max(ended)
        });
        tasks.max().unwrap_or_default()
    }

    /// The same index with every due task in its lane, for comparison.
    pub(super) fn settled(&self) -> Index {
        let mut index = self.clone();
        index.advance(usize::MAX);
        index
    }

    pub(super) fn watermark(&self) -> Timestamp {
        self.watermark
    }

    /// Brings the index up to date after a command at `now`.
    pub(super) fn follow(&mut self, ledger: &Ledger, mut touched: Touched, now: Timestamp) {
        // Versions are never taken out again.
        let versions = touched.versions.iter();
        self.published.extend(
            versions
                .filter_map(|version| ledger.versions.get(version))
                .map(|version| version.run),
        );
        for token in &touched.leases {
            self.count_lease(ledger, *token);
        }
        let mut regrouped = BTreeSet::new();
        for run in &touched.runs {
            self.count_run(ledger, *run);
            self.groups.follow(ledger, *run, &mut regrouped);
        }
        for key in regrouped {
            for run in self.groups.admit(&key) {
                if let Some(run) = ledger.runs.get(&run) {
                    touched.tasks.extend(run.tasks.iter().copied());
                }
            }
        }
        self.watermark = self.watermark.max(now);
        for task in touched.tasks {
            self.take_place(task);
            if let Some(task) = ledger.tasks.get(&task) {
                self.give_place(ledger, task);
            }
        }
        self.advance(MOVED_MAX);
    }

    /// Moves what became ready into its lane.
    pub(super) fn advance(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some((at, task)) = self.later.get_min().copied() else {
                return;
            };
            if at > self.watermark {
                return;
            }
            self.later.remove(&(at, task));
            let place = self
                .places
                .get_mut(&task)
                .expect("what is later has a place");
            place.at = At::Ready;
            let place = place.clone();
            self.enter_lane(place.band, place.lane, place.turn);
        }
    }

    fn give_place(&mut self, ledger: &Ledger, task: &Task) {
        let TaskPhase::Ready { not_before } = task.phase else {
            return;
        };
        let band = Band::of(task);
        let age = match &task.owner {
            TaskOwner::Run(run) => run.0,
            TaskOwner::Rollout(rollout) => rollout.0,
            TaskOwner::Fleet(_) => task.id.seq,
        };
        let turn = Turn { age, task: task.id };
        let lane = Lane {
            class: Class::of(ledger, task),
            team: task.team.clone(),
        };
        let known = self.ready[band as usize].get_key_value(&lane);
        let lane = known.map_or_else(|| Arc::new(lane.clone()), |(known, _)| Arc::clone(known));
        let held = match task.owner {
            TaskOwner::Run(run) => !self.groups.admitted(run),
            _ => false,
        };
        let at = if held {
            At::Held
        } else if not_before > self.watermark {
            self.later.insert((not_before, task.id));
            At::Later(not_before)
        } else {
            self.enter_lane(band, Arc::clone(&lane), turn);
            At::Ready
        };
        let place = Place {
            band,
            lane,
            turn,
            at,
        };
        self.places.insert(task.id, place);
    }

    fn enter_lane(&mut self, band: Band, lane: Arc<Lane>, turn: Turn) {
        self.ready[band as usize]
            .entry(lane)
            .or_default()
            .insert(turn);
    }

    fn take_place(&mut self, task: TaskId) {
        let Some(place) = self.places.remove(&task) else {
            return;
        };
        match place.at {
            At::Held => {}
            At::Later(at) => {
                self.later.remove(&(at, task));
            }
            At::Ready => {
                let lanes = &mut self.ready[place.band as usize];
                let turns = lanes.get_mut(&place.lane).expect("a ready task has a lane");
                turns.remove(&place.turn);
                if turns.is_empty() {
                    lanes.remove(&place.lane);
                }
            }
        }
    }

    fn count_lease(&mut self, ledger: &Ledger, token: Token) {
        if let Some(old) = self.holdings.remove(&token) {
            self.discount(token, &old);
        }
        let Some(Lease {
            task,
            worker,
            incarnation,
            ..
        }) = ledger.leases.get(&token)
        else {
            return;
        };
        let task = ledger.tasks.get(task).expect("a live lease has a task");
        let holding = Holding {
            worker: worker.clone(),
            incarnation: *incarnation,
            team: task.team.clone(),
            kind: Kind::of(&task.kind),
            band: Band::of(task),
        };
        let starts = self.held.entry(holding.worker.clone()).or_default();
        starts.entry(holding.incarnation).or_default().insert(token);
        let usage = self.usage.entry(holding.team.clone()).or_default();
        usage.add(holding.band, holding.kind);
        self.holdings.insert(token, holding);
    }

    fn discount(&mut self, token: Token, old: &Holding) {
        let starts = self.held.get_mut(&old.worker).expect("it was counted");
        let tokens = starts.get_mut(&old.incarnation).expect("it was counted");
        tokens.remove(&token);
        if tokens.is_empty() {
            starts.remove(&old.incarnation);
        }
        if starts.is_empty() {
            self.held.remove(&old.worker);
        }
        let usage = self.usage.get_mut(&old.team).expect("it was counted");
        usage.take(old.band, old.kind);
        if *usage == Usage::default() {
            self.usage.remove(&old.team);
        }
    }

    fn count_run(&mut self, ledger: &Ledger, run: RunId) {
        let now = ledger.runs.get(&run);
        match (self.run_teams.contains_key(&run), now) {
            (false, Some(run)) => {
                self.run_teams.insert(run.id, run.team.clone());
                *self.team_runs.entry(run.team.clone()).or_default() += 1;
            }
            (true, None) => {
                let team = self.run_teams.remove(&run).expect("it was counted");
                let count = self.team_runs.get_mut(&team).expect("it was counted");
                *count -= 1;
                if *count == 0 {
                    self.team_runs.remove(&team);
                }
            }
            _ => {}
        }
    }
}
