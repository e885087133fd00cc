//! Priorities that people choose, and the strict bands in which tasks are scheduled.
//!
//! ```text
//! repair > rollout > interactive > normal > batch
//! ```
//!
//! A band is served before every lower one; within a band teams share (see [`crate::schedule`]).
//! The two highest belong to the farm: nobody can ask for them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::task::{Task, TaskOwner};

/// Priority number of a batch that brings a version.
pub const BATCH_PRIORITY: u8 = 180;
/// Priority number of a batch that goes back.
pub const ROLLBACK_PRIORITY: u8 = 220;

/// How urgent a run is, as its pipeline or whoever starts it says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody sits and waits.
    Interactive,
    /// As everybody's.
    #[default]
    Normal,
    /// Whenever nothing else is to be done.
    Batch,
}

impl Priority {
    /// Every one, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Interactive, Priority::Normal, Priority::Batch];

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Normal => "normal",
            Priority::Batch => "batch",
        }
    }

    /// The number that a task stores; higher goes first.
    pub const fn number(self) -> u8 {
        match self {
            Priority::Interactive => 140,
            Priority::Normal => 100,
            Priority::Batch => 60,
        }
    }
}

/// A word that is no priority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no priority: interactive, normal or batch")]
pub struct ParsePriorityError(String);

impl FromStr for Priority {
    type Err = ParsePriorityError;

    fn from_str(text: &str) -> Result<Priority, ParsePriorityError> {
        Priority::ALL
            .into_iter()
            .find(|priority| priority.as_str() == text)
            .ok_or_else(|| ParsePriorityError(text.to_owned()))
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A strict class of tasks; a lower one gets a worker only when no higher one can use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    /// A fleet goes back, or an instance is brought back. Beyond every quota, and slots are kept free for it.
    Repair,
    /// A fleet goes forward.
    Rollout,
    /// A run for which somebody waits.
    Interactive,
    /// Any other run.
    Normal,
    /// A run that has time.
    Batch,
}

impl Band {
    /// Every one, the first served first.
    pub const ALL: [Band; 5] = [
        Band::Repair,
        Band::Rollout,
        Band::Interactive,
        Band::Normal,
        Band::Batch,
    ];

    /// The band of a task.
    pub fn of(task: &Task) -> Band {
        match task.owner {
            TaskOwner::Fleet(_) => Band::Repair,
            TaskOwner::Rollout(_) if task.priority >= ROLLBACK_PRIORITY => Band::Repair,
            TaskOwner::Rollout(_) => Band::Rollout,
            TaskOwner::Run(_) if task.priority >= Priority::Interactive.number() => {
                Band::Interactive
            }
            TaskOwner::Run(_) if task.priority >= Priority::Normal.number() => Band::Normal,
            TaskOwner::Run(_) => Band::Batch,
        }
    }

    /// As people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Band::Repair => "repair",
            Band::Rollout => "rollout",
            Band::Interactive => "interactive",
            Band::Normal => "normal",
            Band::Batch => "batch",
        }
    }

    /// Whether its leases count against the team's share and quota.
    pub const fn counts(self) -> bool {
        !matches!(self, Band::Repair)
    }
}

impl fmt::Display for Band {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
