//! What the leader has proposed and does not see applied yet.
//!
//! ```text
//! schedule -> Grant --assume--> counted as held --settle(applied)--> the ledger counts it
//!                                               --settle(refused)--> as if it had never been
//! ```
//!
//! The virtual times of teams stand here too. They are memory of one leader: a new one begins
//! with everybody equal, which costs no team more than a fraction of one slot.

use std::collections::BTreeMap;

use super::Grant;
use crate::ids::TaskId;
use crate::names::TeamName;
use crate::priority::Band;

/// Virtual time that one grant of weight 1 takes. Divisible by every weight up to 20, or the
/// remainders of many grants would favour some.
pub(super) const STRIDE: u64 = 232_792_560 << 4;
/// Teams whose times are kept before those that are of no more use are dropped.
const KEPT_MAX: usize = 1024;

/// What a grant does to its band's virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// The band's time when it was decided.
    pub(super) clock: u64,
    /// The team's time before it.
    pub(super) start: u64,
    /// By how much the team's time rises.
    pub(super) charge: u64,
}

/// Virtual times of one band.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Times {
    clock: u64,
    teams: BTreeMap<TeamName, u64>,
}

/// Proposed grants and virtual times, of one member. Every proposal gets its answer, also one of an earlier
/// term, so nothing has to be forgotten when leadership changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    assumed: BTreeMap<TaskId, Grant>,
    times: [Times; Band::ALL.len()],
}

impl Overlay {
    /// Counts a grant that is being proposed.
    pub fn assume(&mut self, grant: Grant) {
        let times = &mut self.times[grant.band as usize];
        times.clock = times.clock.max(grant.pace.clock);
        let time = times.teams.entry(grant.team.clone()).or_default();
        *time = (*time).max(grant.pace.start) + grant.pace.charge;
        if times.teams.len() > KEPT_MAX {
            let clock = times.clock;
            times.teams.retain(|_, time| *time > clock);
        }
        self.assumed.insert(grant.task, grant);
    }

    /// A proposal has its answer: the ledger has it now, or it was refused or lost.
    pub fn settle(&mut self, task: TaskId, applied: bool) {
        let Some(grant) = self.assumed.remove(&task) else {
            return;
        };
        if applied {
            return;
        }
        let times = &mut self.times[grant.band as usize];
        if let Some(time) = times.teams.get_mut(&grant.team) {
            *time = time.saturating_sub(grant.pace.charge);
        }
    }

    /// Whether a grant of this task is on its way.
    pub fn contains(&self, task: TaskId) -> bool {
        self.assumed.contains_key(&task)
    }

    /// Grants on their way, by task.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.assumed.values()
    }

    /// How many grants are on their way.
    pub fn len(&self) -> usize {
        self.assumed.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.assumed.is_empty()
    }

    /// A team's virtual time: whoever wanted nothing for a while begins with the others.
    pub(super) fn time(&self, band: Band, team: &TeamName) -> u64 {
        let times = &self.times[band as usize];
        let own = times.teams.get(team).copied().unwrap_or(0);
        own.max(times.clock)
    }
}
