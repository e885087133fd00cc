//! Virtual time: moments, and the clock that makes them from real time.
//!
//! ```text
//! Scaled(1)    recorded durations pass as they did in Azure
//! Scaled(600)  a 12-minute replication takes 1.2 s
//! Stepped      time stands still until somebody says how far to go
//! ```
//!
//! Nothing here reads a clock: whoever serves requests passes the real time that has gone by, so a
//! test that passes zero has a simulator without time of its own.

use std::time::Duration;

/// Milliseconds of virtual time since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// Where virtual time begins when nobody says otherwise: 2026-01-05T08:00:00Z, a Monday.
pub const BEGINNING: Moment = Moment(1_767_600_000_000);

impl Moment {
    /// This much later.
    #[must_use]
    pub fn after(self, ms: u64) -> Moment {
        Moment(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to here; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// `2026-01-05T08:00:00.0000000+00:00`, as Azure writes times.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let (year, month, day) = date(self.0 / DAY);
        let (hour, minute, second) = hands(self.0 % DAY);
        let ms = self.0 % 1000;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}0000+00:00")
    }

    /// `2026-01-05T08:00:00Z`, as shared access signatures have it.
    #[must_use]
    pub fn short(self) -> String {
        format!("{}Z", &self.rfc3339()[..19])
    }

    /// `Mon, 05 Jan 2026 08:00:00 GMT`, as HTTP headers and Scheduled Events have it.
    #[must_use]
    pub fn rfc1123(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let days = self.0 / DAY;
        let (year, month, day) = date(days);
        let (hour, minute, second) = hands(self.0 % DAY);
        let weekday = DAYS[usize::try_from(days % 7).expect("below seven")];
        let month = MONTHS[usize::try_from(month - 1).expect("below twelve")];
        format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

const DAY: u64 = 86_400_000;

fn hands(ms: u64) -> (u64, u64, u64) {
    (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60)
}

/// Year, month and day of a day counted from 1970, by the usual era arithmetic.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// How virtual time follows real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// So many virtual milliseconds for each real one; at least 1.
    Scaled(u64),
    /// Only [`Clock::step`] moves it.
    Stepped,
}

/// Virtual time, anchored at the last change of pace.
#[derive(Clone, Debug)]
pub struct Clock {
    pace: Pace,
    anchor: Moment,
    anchored_at: Duration,
}

impl Clock {
    /// A clock that shows `start` when no real time has gone by.
    #[must_use]
    pub fn new(pace: Pace, start: Moment) -> Clock {
        Clock {
            pace,
            anchor: start,
            anchored_at: Duration::ZERO,
        }
    }

    /// The virtual time after `real` has gone by since the process began.
    #[must_use]
    pub fn now(&self, real: Duration) -> Moment {
        match self.pace {
            Pace::Stepped => self.anchor,
            Pace::Scaled(factor) => {
                let passed = real.saturating_sub(self.anchored_at).as_micros();
                let virtual_ms = passed * u128::from(factor) / 1000;
                self.anchor
                    .after(u64::try_from(virtual_ms).unwrap_or(u64::MAX))
            }
        }
    }

    /// Moves time forward.
    pub fn step(&mut self, ms: u64) {
        self.anchor = self.anchor.after(ms);
    }

    /// Changes the pace from now on; time does not jump.
    pub fn set(&mut self, pace: Pace, real: Duration) {
        self.anchor = self.now(real);
        self.anchored_at = real;
        self.pace = pace;
    }

    /// The pace in force.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_azure_writes_them() {
        let leap = Moment(1_709_210_096_789);
        assert_eq!(leap.rfc3339(), "2024-02-29T12:34:56.7890000+00:00");
        assert_eq!(leap.rfc1123(), "Thu, 29 Feb 2024 12:34:56 GMT");
        assert_eq!(BEGINNING.short(), "2026-01-05T08:00:00Z");
        assert_eq!(BEGINNING.rfc1123(), "Mon, 05 Jan 2026 08:00:00 GMT");
    }

    #[test]
    fn a_scaled_clock_runs_faster_and_does_not_jump_when_the_pace_changes() {
        let mut clock = Clock::new(Pace::Scaled(600), BEGINNING);
        let second = Duration::from_secs(1);
        assert_eq!(clock.now(second), BEGINNING.after(600_000));
        clock.set(Pace::Stepped, second);
        assert_eq!(clock.now(second * 9), BEGINNING.after(600_000));
        clock.step(5);
        assert_eq!(clock.now(second * 9), BEGINNING.after(600_005));
    }
}
