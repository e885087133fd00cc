//! Identities that the ledger hands out. All of them are one sequence.
//!
//! `Seq` numbers commands in the order of the log, one per command; run ids,
//! rollout ids, task ids and fencing tokens are the sequence of the command that
//! made them. The epoch in the high bits rises on restore and on forced recovery,
//! so that no number is ever issued twice: it is the second of the restore, counted from
//! [`EPOCH_ORIGIN`], so that a second restore from the same old file does not repeat what
//! the first one issued (docs/decisions/0018).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Bits of a [`Seq`] that count commands within one epoch. A counter that is used up carries
/// into the epoch, which stays below the clock's: nothing commits 2^32 commands a second.
const COUNTER_BITS: u32 = 32;

/// Where epochs are counted from: 2026-01-01T00:00:00Z.
pub const EPOCH_ORIGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// Position of a command in the history of the farm: `epoch | counter`.
///
/// Also the fencing token of a lease: the sequence of its grant.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(u64);

impl Seq {
    /// Before the first command.
    pub const ZERO: Seq = Seq(0);

    /// The sequence whose wire form is `raw`.
    pub const fn from_u64(raw: u64) -> Seq {
        Seq(raw)
    }

    /// Wire form.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The second of the last restore or forced recovery before this command; 0 without one.
    pub const fn epoch(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Place within the epoch.
    pub const fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }

    /// The sequence of the following command.
    pub fn next(self) -> Seq {
        Seq(self
            .0
            .checked_add(1)
            .expect("2^64 numbers last longer than any farm"))
    }

    /// Before the first command of `epoch`; none when the epoch does not fit.
    pub const fn begin(epoch: u64) -> Option<Seq> {
        if epoch >= 1 << (64 - COUNTER_BITS) {
            return None;
        }
        Some(Seq(epoch << COUNTER_BITS))
    }

    /// The epoch that a restore at `now` begins: higher than `self`'s and than that of every
    /// restore before, whichever state that one began from.
    pub fn next_epoch(self, now: Timestamp) -> u64 {
        (now.since(EPOCH_ORIGIN).as_secs()).max(self.epoch() + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.epoch() == 0 {
            write!(f, "{}", self.counter())
        } else {
            write!(f, "{}.{}", self.epoch(), self.counter())
        }
    }
}

/// A text that should have been an identity and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {kind}; one looks like {example}")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    example: &'static str,
}

impl FromStr for Seq {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Seq, ParseIdError> {
        let error = || ParseIdError {
            text: text.into(),
            kind: "sequence number",
            example: "42",
        };
        let (epoch, counter) = match text.split_once('.') {
            Some((epoch, counter)) => (epoch.parse::<u64>().map_err(|_| error())?, counter),
            None => (0, text),
        };
        let counter = counter.parse::<u64>().map_err(|_| error())?;
        if epoch >= 1 << (64 - COUNTER_BITS) || counter >= 1 << COUNTER_BITS {
            return Err(error());
        }
        Ok(Seq(epoch << COUNTER_BITS | counter))
    }
}

macro_rules! sequence_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Seq);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "-{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<$name, ParseIdError> {
                let error = || ParseIdError {
                    text: text.into(),
                    kind: $kind,
                    example: concat!($prefix, "-42"),
                };
                let rest = text.strip_prefix(concat!($prefix, "-")).ok_or_else(error)?;
                rest.parse().map($name).map_err(|_| error())
            }
        }
    };
}

sequence_id!(
    /// One execution of a pipeline revision.
    RunId, "r", "run id"
);
sequence_id!(
    /// One move of a fleet from a version to another.
    RolloutId, "ro", "rollout id"
);

/// Fencing token of one attempt: the sequence of its grant. Rides on every report.
pub type Token = Seq;

/// What is scheduled and leased. One command may create several tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId {
    /// Command that created the task.
    pub seq: Seq,
    /// Place among the tasks of that command.
    pub ordinal: u16,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t-{}-{}", self.seq, self.ordinal)
    }
}

impl FromStr for TaskId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<TaskId, ParseIdError> {
        let error = || ParseIdError {
            text: text.into(),
            kind: "task id",
            example: "t-42-0",
        };
        let (seq, ordinal) = text
            .strip_prefix("t-")
            .and_then(|rest| rest.rsplit_once('-'))
            .ok_or_else(error)?;
        Ok(TaskId {
            seq: seq.parse().map_err(|_| error())?,
            ordinal: ordinal.parse().map_err(|_| error())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_as_they_print() {
        let late = Seq::from_u64(3 << COUNTER_BITS | 77);
        assert_eq!(late.to_string(), "3.77");
        assert_eq!("3.77".parse::<Seq>(), Ok(late));
        assert_eq!(
            "r-12".parse::<RunId>().map(|id| id.to_string()),
            Ok("r-12".into())
        );
        assert_eq!(
            "t-3.77-2".parse::<TaskId>(),
            Ok(TaskId {
                seq: late,
                ordinal: 2
            })
        );
        assert!("12".parse::<RunId>().is_err());
        assert!("4294967296.1".parse::<Seq>().is_err());
    }

    #[test]
    fn a_restore_outranks_every_restore_before_it() {
        let at = |seconds| EPOCH_ORIGIN + std::time::Duration::from_secs(seconds);
        let old = Seq::from_u64(400);
        let first = Seq::begin(old.next_epoch(at(1_000))).expect("fits");
        // It ran, and was lost; the same old file is restored again.
        let used = (0..500).fold(first, |seq, _| seq.next());
        let second = Seq::begin(old.next_epoch(at(1_001))).expect("fits");
        assert!(second > used && used > old);
        // A clock that was set back still leads upwards from what the file knows.
        assert!(Seq::begin(used.next_epoch(Timestamp::EPOCH)).expect("fits") > used);
        assert_eq!(Seq::begin(1 << 32), None);
    }

    #[test]
    fn a_later_epoch_outranks_every_earlier_number() {
        assert!(Seq::from_u64(1 << COUNTER_BITS) > Seq::from_u64((1 << COUNTER_BITS) - 1));
    }
}
