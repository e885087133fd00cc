//! How much room the file system of a data directory has, in three words.
//!
//! ```text
//!            free < reserve                      free < reserve / 4
//!   Room ------------------------> Low ------------------------> Full
//!    ^   free >= reserve * 5/4      |  ^   free >= reserve / 2     |
//!    '------------------------------'  '---------------------------'
//! ```
//!
//! What follows from them is decided where something would be written; who looks at the disk is
//! `operations::space`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Part of the reserve below which nothing is written any more.
const CRITICAL_SHARE: u64 = 4;

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Space {
    /// Enough.
    #[default]
    Room = 0,
    /// Less than the reserve: no proposals.
    Low = 1,
    /// Nearly nothing: no entries either.
    Full = 2,
}

impl Space {
    /// The state after `free` bytes were seen. Leaving a worse state needs more than entering it,
    /// so that a disk at the edge does not make a member change its mind every moment.
    pub(crate) fn after(self, free: u64, reserve: u64) -> Space {
        let critical = critical(reserve);
        let low = match self {
            Space::Room => reserve,
            Space::Low | Space::Full => reserve + reserve / 4,
        };
        let full = match self {
            Space::Room | Space::Low => critical,
            Space::Full => critical * 2,
        };
        if free < full {
            Space::Full
        } else if free < low {
            Space::Low
        } else {
            Space::Room
        }
    }
}

/// Below this many free bytes nothing is written.
pub(crate) fn critical(reserve: u64) -> u64 {
    reserve / CRITICAL_SHARE
}

/// What the rest of the member looks at. Clones are the same gauge.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU8>);

impl Gauge {
    /// How much room there was at the last look.
    #[must_use]
    pub fn space(&self) -> Space {
        match self.0.load(Ordering::Relaxed) {
            0 => Space::Room,
            1 => Space::Low,
            _ => Space::Full,
        }
    }

    pub(crate) fn set(&self, space: Space) {
        self.0.store(space as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_leaves_a_worse_state_only_with_room_to_spare() {
        let reserve = 400;
        let walk = [
            (1_000, Space::Room),
            (400, Space::Room),
            (399, Space::Low),
            (499, Space::Low),
            (500, Space::Room),
            (100, Space::Low),
            (99, Space::Full),
            (199, Space::Full),
            (200, Space::Low),
            (0, Space::Full),
            (10_000, Space::Room),
        ];
        let mut space = Space::Room;
        for (free, expected) in walk {
            space = space.after(free, reserve);
            assert_eq!(space, expected, "after {free}");
        }
    }
}
