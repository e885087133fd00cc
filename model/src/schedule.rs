//! Who does what next. Pure; called by the leader, re-checked when a grant is applied.
//!
//! ```text
//! bands, strictly:     repair > rollout > interactive > normal > batch
//!   in a band, teams:  within the quota before borrowers; then who has less than its share
//!     in a team:       older runs first
//!       a task:        to a free worker that can do it, preferably one that holds its past
//! ```
//!
//! *Share.* Weighted dominant-resource fairness: the dimensions are all slots and the slots
//! of each kind of task, a team's share is the largest of its parts of them, and what it should have
//! is its weight among the teams that want something in the band. A team that stays below
//! that also with the next lease goes first; among those for whom it is a question of
//! fractions a virtual time decides, which each grant moves by 1 / weight; so a slot that three teams
//! share goes round, and a team of weight 3 gets three of four. Who has its share already comes last.
//! Whoever waits is never passed for ever: shares fall as leases end, and virtual time rises.
//!
//! *Quota.* A team holds at most `slots + borrow`; what it holds beyond `slots` is borrowed, and
//! borrowers come after the others of the band. *Reserve.* Some slots that can carry out batches are kept
//! free for repairs and rollbacks, which stand beyond quotas ([`Rules::reserve`]). Running work is
//! never taken away.
//!
//! Proposed grants that are not applied yet are an [`Overlay`], which counts as if they were.
//! Only integers, and every tie is broken by names and numbers: the same state gives the same
//! grants in the same order. The cost depends on the lanes (bands, teams and classes with ready tasks),
//! the connected workers and the grants made; never on the number of open tasks
//! ([`crate::ledger::Index`]).

mod floor;
mod overlay;
mod share;
mod waiting;

use std::collections::BTreeSet;

use crate::class::Kind;
use crate::digest::Digest;
use crate::ids::TaskId;
use crate::ledger::Ledger;
use crate::names::{TeamName, WorkerName};
use crate::priority::Band;
use crate::time::Timestamp;

use floor::{Floor, Past};
use share::{Contest, Teams};

pub use overlay::{Overlay, Pace};
pub use waiting::{Queue, Waiting, waiting};

/// Slots kept free for repairs and rollbacks unless the farm says otherwise.
pub const RESERVE: u32 = 1;
/// The reserve is at most one of so many slots: a farm of three slots keeps none back.
pub const RESERVE_PART: u32 = 4;
/// Most grants of one decision, so that no decision is slow; the next one goes on.
pub const GRANTS_MAX: usize = 128;
/// Most grants that are proposed and not applied. More would only wait in the log's queue.
pub const ASSUMED_MAX: usize = 1024;
/// Most tasks that became ready since the last command and are looked at.
const DUE_MAX: usize = 256;

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

/// What the farm's operators decide about scheduling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Slots of workers that carry out batches, kept free for repairs and rollbacks. Never more
    /// than one of [`RESERVE_PART`] of them.
    pub reserve: u32,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { reserve: RESERVE }
    }
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
    /// Whose share it uses.
    pub team: TeamName,
    /// In which dimension.
    pub kind: Kind,
    /// In which band.
    pub band: Band,
    /// What it does to the band's virtual time.
    pub pace: Pace,
}

/// The grants to propose now, in order. Each that is proposed has to be assumed by the overlay.
pub fn schedule<'a>(
    ledger: &'a Ledger,
    overlay: &'a Overlay,
    sessions: impl IntoIterator<Item = &'a Session>,
    rules: &Rules,
    now: Timestamp,
) -> Vec<Grant> {
    let mut grants = Vec::new();
    let room = ASSUMED_MAX.saturating_sub(overlay.len()).min(GRANTS_MAX);
    let mut floor = Floor::of(ledger, overlay, sessions, rules);
    if floor.is_full() {
        return grants;
    }
    let mut teams = Teams::of(ledger, overlay);
    for band in Band::ALL {
        if grants.len() >= room || floor.is_full() {
            break;
        }
        let mut contest = Contest::of(ledger, overlay, &floor, &mut teams, band, now);
        while grants.len() < room
            && let Some(next) = contest.pop()
        {
            let Some(task) = ledger.tasks().get(&next.turn.task) else {
                continue;
            };
            if teams.quota_reached(&next.lane.team, band) {
                // Lanes of the same team find the same.
                continue;
            }
            let past = Past::of(ledger, task);
            let Some(seat) = floor.pick(&next.lane.class, &past, band) else {
                // Slots only become fewer within a turn: the lane is done.
                continue;
            };
            let kind = next.lane.class.kind;
            let session = floor.take(seat, band);
            grants.push(Grant {
                task: task.id,
                worker: session.worker.clone(),
                incarnation: session.incarnation,
                team: next.lane.team.clone(),
                kind,
                band,
                pace: teams.charge(&next.lane.team, band, kind),
            });
            contest.advance(&next, &floor, &teams);
        }
    }
    grants
}
