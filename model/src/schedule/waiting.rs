//! Why a task has no worker, as users read it.

use std::fmt;

use super::floor::Floor;
use super::share::{Contest, Teams};
use super::{Overlay, Rules, Session};
use crate::ids::RunId;
use crate::ledger::{At, Index, Ledger};
use crate::names::{RegionName, TeamName};
use crate::priority::Band;
use crate::task::{Task, TaskOwner, TaskPhase};
use crate::time::Timestamp;

/// Places in a queue are counted up to here; who stands behind is told "more than".
pub const COUNTED_MAX: usize = 100;

/// Why a task has no worker yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It failed by an error of ours and waits before the next attempt.
    Backoff(Timestamp),
    /// Another run holds its concurrency group, or comes before it there.
    Group {
        /// The group.
        group: String,
        /// The run.
        run: Option<RunId>,
    },
    /// Its team holds as much as it may.
    Quota {
        /// The team.
        team: TeamName,
        /// What it holds.
        held: u32,
        /// Its own slots.
        slots: u32,
        /// What it may borrow besides.
        borrow: u32,
    },
    /// No worker is connected.
    NoWorker,
    /// No connected worker can do it.
    NoCapable(String),
    /// Workers can do it, but none in the region.
    NoRegion(RegionName),
    /// What is free is kept for repairs and rollbacks.
    Reserve(u32),
    /// Every worker that can do it is busy.
    Busy {
        /// How many can do it.
        workers: usize,
        /// Who is served first.
        queue: Queue,
    },
    /// It will be granted at once.
    Next,
}

/// Who is served before a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The task's band.
    pub band: Band,
    /// Teams whose share is due earlier.
    pub teams: usize,
    /// Tasks of the same team, counted up to [`COUNTED_MAX`].
    pub own: usize,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.own >= COUNTED_MAX {
            "or more "
        } else {
            ""
        };
        let tasks = if self.own == 1 { "task" } else { "tasks" };
        let teams = if self.teams == 1 { "team" } else { "teams" };
        match (self.teams, self.own) {
            (0, 0) => write!(f, "next in band {}", self.band),
            (0, own) => write!(
                f,
                "after {own} {more}{tasks} of its team in band {}",
                self.band
            ),
            (count, 0) => write!(
                f,
                "in band {} the share of {count} other {teams} is due first",
                self.band
            ),
            (count, own) => write!(
                f,
                "after {own} {more}{tasks} of its team in band {}, where the share of {count} other {teams} is due first",
                self.band
            ),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Backoff(until) => write!(f, "waits until {until} after an error"),
            Waiting::Group {
                group,
                run: Some(run),
            } => write!(f, "run {run} holds the concurrency group `{group}`"),
            Waiting::Group { group, run: None } => {
                write!(f, "waits for the concurrency group `{group}`")
            }
            Waiting::Quota {
                team,
                held,
                slots,
                borrow,
            } => write!(
                f,
                "team `{team}` holds {held} slots; its quota is {slots} and {borrow} borrowed"
            ),
            Waiting::NoWorker => f.write_str("no worker is connected"),
            Waiting::NoCapable(what) => write!(f, "no connected worker can {what}"),
            Waiting::NoRegion(region) => {
                write!(
                    f,
                    "no connected worker that can do it is in region `{region}`"
                )
            }
            Waiting::Reserve(1) => {
                f.write_str("the one free slot is kept for repairs and rollbacks")
            }
            Waiting::Reserve(count) => {
                write!(
                    f,
                    "the {count} free slots are kept for repairs and rollbacks"
                )
            }
            Waiting::Busy { workers: 1, queue } => {
                write!(f, "the one worker that can do it is busy; {queue}")
            }
            Waiting::Busy { workers, queue } => {
                write!(f, "all {workers} workers that can do it are busy; {queue}")
            }
            Waiting::Next => f.write_str("is about to start"),
        }
    }
}

/// Why a ready task has no worker.
pub fn waiting(
    ledger: &Ledger,
    task: &Task,
    sessions: &[Session],
    rules: &Rules,
    now: Timestamp,
) -> Waiting {
    if let TaskPhase::Ready { not_before } = task.phase
        && not_before > now
    {
        return Waiting::Backoff(not_before);
    }
    let index = ledger.index();
    let Some(place) = index.place(task.id) else {
        // Leased or over meanwhile.
        return Waiting::Next;
    };
    if place.at == At::Held {
        return held(index, task);
    }
    let band = place.band;
    let team = &place.lane.team;
    let quota = ledger.teams().get(team).and_then(|team| team.spec.quota);
    let used = index.usage(team).counted();
    if let Some(quota) = quota
        && band.counts()
        && used >= quota.limit()
    {
        return Waiting::Quota {
            team: team.clone(),
            held: used,
            slots: quota.slots,
            borrow: quota.borrow,
        };
    }
    let overlay = Overlay::default();
    let floor = Floor::of(ledger, &overlay, sessions, rules);
    if floor.is_empty() {
        return Waiting::NoWorker;
    }
    let class = &place.lane.class;
    let (workers, free) = floor.able(class);
    if workers == 0 {
        let anywhere = crate::class::Class {
            region: None,
            ..class.clone()
        };
        return match &class.region {
            Some(region) if floor.able(&anywhere).0 > 0 => Waiting::NoRegion(region.clone()),
            _ => Waiting::NoCapable(class.to_string()),
        };
    }
    if floor.has_room(class, band) {
        return Waiting::Next;
    }
    if free > 0 {
        return Waiting::Reserve(free);
    }
    let mut teams = Teams::of(ledger, &overlay);
    let mut contest = Contest::without_limits(ledger, &overlay, &mut teams, band, now);
    contest.settle(&floor, &mut teams);
    Waiting::Busy {
        workers,
        queue: Queue {
            band,
            teams: contest.teams_before(&place.lane),
            own: contest.own_before(team, place.turn, COUNTED_MAX),
        },
    }
}

fn held(index: &Index, task: &Task) -> Waiting {
    let TaskOwner::Run(run) = task.owner else {
        return Waiting::Next;
    };
    let key = index.group_of(run);
    let before = key
        .and_then(|key| index.group(key))
        .and_then(|group| group.before(run));
    Waiting::Group {
        group: key.map(|key| key.group.clone()).unwrap_or_default(),
        run: before,
    }
}
