//! Who does what next. Pure; called by the leader, re-checked when a grant is applied.
//!
//! Order: priority, then the team that holds the fewest leases, then age. A task goes to
//! the worker that can do it, has a free slot, and preferably did it before or holds its
//! layers. Why a task waits is a value that users read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::digest::Digest;
use crate::fleet::VersionRef;
use crate::ids::TaskId;
use crate::ledger::{Ledger, Run};
use crate::names::{TeamName, WorkerName};
use crate::pipeline::Arch;
use crate::task::{Task, TaskKind, TaskOwner, TaskPhase};
use crate::time::Timestamp;

/// A connected worker, as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its name.
    pub worker: WorkerName,
    /// Which start of it.
    pub incarnation: u64,
    /// Where it is.
    pub region: String,
    /// Machine architecture that it bakes for.
    pub arch: String,
    /// Kinds of task it takes.
    pub capabilities: BTreeSet<String>,
    /// Providers it can reach.
    pub providers: BTreeSet<String>,
    /// Tasks it runs side by side.
    pub slots: u32,
    /// Keys of layers in its cache.
    pub cached: BTreeSet<Digest>,
    /// It takes nothing new.
    pub cordoned: bool,
}

/// A task that should be leased to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The task.
    pub task: TaskId,
    /// The worker.
    pub worker: WorkerName,
    /// Which start of it.
    pub incarnation: u64,
}

/// Why a task has no worker yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It failed by an error of ours and waits before the next attempt.
    Backoff(Timestamp),
    /// No worker is connected.
    NoWorker,
    /// No connected worker can do it.
    NoCapable(String),
    /// Every worker that can do it is busy.
    Busy(usize),
    /// It will be granted at once.
    Next,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Backoff(until) => write!(f, "waits until {until} after an error"),
            Waiting::NoWorker => f.write_str("no worker is connected"),
            Waiting::NoCapable(what) => write!(f, "no connected worker can {what}"),
            Waiting::Busy(1) => f.write_str("the one worker that can do it is busy"),
            Waiting::Busy(count) => write!(f, "all {count} workers that can do it are busy"),
            Waiting::Next => f.write_str("is about to start"),
        }
    }
}

/// What a task needs of a worker.
struct Needs {
    capability: &'static str,
    arch: Option<Arch>,
    provider: Option<&'static str>,
}

impl Needs {
    fn met_by(&self, session: &Session) -> bool {
        session.capabilities.contains(self.capability)
            && self.arch.is_none_or(|arch| session.arch == arch.as_str())
            && self
                .provider
                .is_none_or(|provider| session.providers.contains(provider))
    }

    fn describe(&self) -> String {
        match (self.arch, self.provider) {
            (Some(arch), _) => format!("{} for {}", self.capability, arch.as_str()),
            (_, Some(provider)) => format!("reach the provider `{provider}`"),
            _ => format!("do a {} task", self.capability),
        }
    }
}

fn run_of<'a>(ledger: &'a Ledger, task: &Task) -> Option<&'a Run> {
    match task.owner {
        TaskOwner::Run(id) => ledger.runs().get(&id),
        _ => None,
    }
}

fn needs(ledger: &Ledger, task: &Task) -> Needs {
    let arch = match task.kind {
        TaskKind::Bake | TaskKind::Test => run_of(ledger, task)
            .and_then(|run| run.pipeline.as_ref())
            .map(|pipeline| pipeline.bake.arch),
        _ => None,
    };
    let provider = match &task.kind {
        TaskKind::Batch(order) => ledger
            .fleets()
            .get(&order.fleet)
            .map(|fleet| fleet.spec.provider.as_str()),
        _ => None,
    };
    Needs {
        capability: task.kind.as_str(),
        arch,
        provider,
    }
}

/// Free slots and fair shares while grants are made.
struct Load {
    busy: BTreeMap<(WorkerName, u64), u32>,
    teams: BTreeMap<TeamName, u32>,
}

impl Load {
    fn of(ledger: &Ledger) -> Load {
        let mut load = Load {
            busy: BTreeMap::new(),
            teams: BTreeMap::new(),
        };
        for (_, lease) in ledger.leases().iter() {
            if let Some(task) = ledger.tasks().get(&lease.task) {
                load.add(&lease.worker, lease.incarnation, &task.team);
            }
        }
        load
    }

    fn add(&mut self, worker: &WorkerName, incarnation: u64, team: &TeamName) {
        *self.busy.entry((worker.clone(), incarnation)).or_default() += 1;
        *self.teams.entry(team.clone()).or_default() += 1;
    }

    fn free(&self, session: &Session) -> u32 {
        let key = (session.worker.clone(), session.incarnation);
        session
            .slots
            .saturating_sub(self.busy.get(&key).copied().unwrap_or(0))
    }

    fn share(&self, team: &TeamName) -> u32 {
        self.teams.get(team).copied().unwrap_or(0)
    }
}

/// The grants to propose now. `pending` are tasks whose grant is proposed and not yet applied.
pub fn schedule(
    ledger: &Ledger,
    sessions: &[Session],
    pending: &BTreeSet<TaskId>,
    now: Timestamp,
) -> Vec<Grant> {
    let mut load = Load::of(ledger);
    let mut ready: Vec<&Task> = ledger
        .tasks()
        .iter()
        .map(|(_, task)| task)
        .filter(|task| matches!(task.phase, TaskPhase::Ready { not_before } if not_before <= now))
        .filter(|task| !pending.contains(&task.id))
        .collect();
    let mut grants = Vec::new();
    while !ready.is_empty() {
        let next = (0..ready.len())
            .min_by_key(|place| {
                let task = ready[*place];
                (
                    std::cmp::Reverse(task.priority),
                    load.share(&task.team),
                    task.id,
                )
            })
            .expect("there is a ready task");
        let task = ready.swap_remove(next);
        let wanted = needs(ledger, task);
        let session = sessions
            .iter()
            .filter(|session| !session.cordoned && wanted.met_by(session) && load.free(session) > 0)
            .max_by_key(|session| {
                (
                    affinity(ledger, task, session),
                    load.free(session),
                    std::cmp::Reverse(&session.worker),
                )
            });
        if let Some(session) = session {
            load.add(&session.worker, session.incarnation, &task.team);
            grants.push(Grant {
                task: task.id,
                worker: session.worker.clone(),
                incarnation: session.incarnation,
            });
        }
    }
    grants
}

/// How much of the task's past is on that worker: its own layers, then those of the version
/// before, then the run's other tasks.
fn affinity(ledger: &Ledger, task: &Task, session: &Session) -> u32 {
    const LAYER: usize = 64;
    const VERSION: usize = 16;
    let layers = task
        .finished_layers()
        .filter(|layer| session.cached.contains(&layer.key))
        .count();
    let Some(run) = run_of(ledger, task) else {
        return u32::try_from(layers * LAYER).unwrap_or(u32::MAX);
    };
    let before = task.kind == TaskKind::Bake
        && newest_baker(ledger, run).is_some_and(|worker| *worker == session.worker);
    let siblings = run
        .tasks
        .iter()
        .filter_map(|id| ledger.tasks().get(id)?.attempts.last())
        .filter(|attempt| {
            attempt.worker == session.worker && attempt.incarnation == session.incarnation
        })
        .count();
    let points = layers * LAYER + usize::from(before) * VERSION + siblings;
    u32::try_from(points).unwrap_or(u32::MAX)
}

/// Who baked the newest version of the image that the run makes.
fn newest_baker<'a>(ledger: &'a Ledger, run: &Run) -> Option<&'a WorkerName> {
    let image = &run.pipeline.as_ref()?.publish.image;
    let number = ledger.images().get(image)?.newest;
    let version = VersionRef {
        image: image.clone(),
        number,
    };
    ledger.versions().get(&version)?.baked_by.as_ref()
}

/// Why a ready task has no worker.
pub fn waiting(ledger: &Ledger, task: &Task, sessions: &[Session], now: Timestamp) -> Waiting {
    if let TaskPhase::Ready { not_before } = task.phase
        && not_before > now
    {
        return Waiting::Backoff(not_before);
    }
    if sessions.is_empty() {
        return Waiting::NoWorker;
    }
    let wanted = needs(ledger, task);
    let load = Load::of(ledger);
    let capable: Vec<&Session> = sessions
        .iter()
        .filter(|session| !session.cordoned && wanted.met_by(session))
        .collect();
    if capable.is_empty() {
        return Waiting::NoCapable(wanted.describe());
    }
    if capable.iter().all(|session| load.free(session) == 0) {
        return Waiting::Busy(capable.len());
    }
    Waiting::Next
}
