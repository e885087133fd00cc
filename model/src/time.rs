//! Points in time as replicated state stores them: whole milliseconds since the Unix epoch.
//!
//! `model` never reads a clock, so a [`Timestamp`] always arrives as an argument: the leader
//! stamps a command, everybody else computes with the stamp. Arithmetic saturates, because a
//! deadline that a user set absurdly far away must stay far away instead of wrapping into the past.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01T00:00:00Z. Serialized as the integer, shown as RFC 3339.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The Unix epoch, used as "never yet" only where a field's documentation says so.
    pub const EPOCH: Timestamp = Timestamp(0);
    /// Later than anything the farm computes with.
    pub const FAR_FUTURE: Timestamp = Timestamp(u64::MAX);

    /// Builds a timestamp from milliseconds since the epoch.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Timestamp(ms)
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`, zero when `earlier` is in fact later.
    #[must_use]
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Whole milliseconds of a duration, saturating at the end of the range.
fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, d: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(millis(d)))
    }
}

impl AddAssign<Duration> for Timestamp {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    fn sub(self, d: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(millis(d)))
    }
}

impl Sub<Timestamp> for Timestamp {
    type Output = Duration;

    fn sub(self, earlier: Timestamp) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds, or the bare number when the calendar ends before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calendar = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        match calendar {
            Some(t) => write!(f, "{t:.3}"),
            None => write!(f, "{}ms", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_rfc_3339_with_milliseconds() {
        assert_eq!(
            Timestamp(1_795_415_874_005).to_string(),
            "2026-11-23T06:37:54.005Z"
        );
        assert_eq!(Timestamp::EPOCH.to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::FAR_FUTURE.to_string(), "18446744073709551615ms");
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Timestamp(5) - Duration::from_secs(1), Timestamp::EPOCH);
        assert_eq!(Timestamp::FAR_FUTURE + Duration::MAX, Timestamp::FAR_FUTURE);
        assert_eq!(Timestamp(5) - Timestamp(9), Duration::ZERO);
        assert_eq!(Timestamp(9) - Timestamp(5), Duration::from_millis(4));
    }

    #[test]
    fn wire_form_is_the_integer() {
        assert_eq!(
            serde_json::to_string(&Timestamp(7)).expect("an integer"),
            "7"
        );
        assert_eq!(
            serde_json::from_str::<Timestamp>("7").expect("an integer"),
            Timestamp(7)
        );
    }
}
