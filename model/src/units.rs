//! Quantities that carry their unit: durations (`30s`), sizes (`4GiB`), shares (`25%`).
//!
//! Files and records hold them as the text people write, so a reader of either
//! never has to guess a unit. A bare number is refused for the same reason.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest duration that can be written: 366 days.
pub const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The largest size that can be written: 64 TiB, the largest disk any cloud sells.
pub const SIZE_MAX: u64 = 64 << 40;

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration at all.
    #[error("a duration is a number with a unit, such as 30s, 5m, 1h30m or 250ms")]
    Duration,
    /// A number without a unit.
    #[error("a duration needs a unit: did you mean {0}s?")]
    DurationWithoutUnit(u64),
    /// Above [`DURATION_MAX`].
    #[error("a duration is at most 366d")]
    DurationTooLong,
    /// Not a size at all.
    #[error("a size is a whole number with a unit, such as 512MiB or 4GiB")]
    Size,
    /// A number without a unit.
    #[error("a size needs a unit: did you mean {0}GiB?")]
    SizeWithoutUnit(u64),
    /// Units of 1000 are too easily taken for units of 1024.
    #[error("sizes count in units of 1024: write {0}")]
    SizeDecimal(String),
    /// Above [`SIZE_MAX`].
    #[error("a size is at most 64TiB")]
    SizeTooLarge,
    /// Not a count or percentage.
    #[error("an amount is a whole number such as 2, or a percentage such as 25%")]
    Amount,
    /// A percentage outside 1-100.
    #[error("a percentage is between 1% and 100%")]
    Percent,
}

/// A length of time, written with units: `250ms`, `30s`, `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeSpan(Duration);

const SPAN_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl TimeSpan {
    /// A whole number of milliseconds, at most [`DURATION_MAX`].
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A whole number of seconds, at most [`DURATION_MAX`].
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The same as a standard duration.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// Whole milliseconds; there is nothing finer.
    pub const fn as_millis(self) -> u64 {
        self.0.as_secs() * 1_000 + self.0.subsec_millis() as u64
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Ok(bare) = text.parse::<u64>() {
            return if bare == 0 {
                Ok(Self::default())
            } else {
                Err(UnitError::DurationWithoutUnit(bare))
            };
        }
        let mut rest = text;
        let mut millis: u64 = 0;
        let mut last_unit = u64::MAX;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or(UnitError::Duration)?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let (_, scale) = SPAN_UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or(UnitError::Duration)?;
            // Large units first, each once: `1h30m`, never `30m1h` or `1m1m`.
            if *scale >= last_unit {
                return Err(UnitError::Duration);
            }
            last_unit = *scale;
            if number.is_empty() {
                return Err(UnitError::Duration);
            }
            millis = number
                .parse::<u64>()
                .ok()
                .and_then(|n| n.checked_mul(*scale))
                .and_then(|n| n.checked_add(millis))
                .ok_or(UnitError::DurationTooLong)?;
            rest = tail;
        }
        if text.is_empty() {
            return Err(UnitError::Duration);
        }
        let span = Duration::from_millis(millis);
        if span > DURATION_MAX {
            Err(UnitError::DurationTooLong)
        } else {
            Ok(Self(span))
        }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in SPAN_UNITS {
            if left >= scale {
                write!(f, "{}{unit}", left / scale)?;
                left %= scale;
            }
        }
        Ok(())
    }
}

/// A number of bytes, written in units of 1024: `512MiB`, `4GiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

const SIZE_UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl ByteSize {
    /// A whole number of bytes, at most [`SIZE_MAX`].
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| UnitError::Size)?;
        if unit.is_empty() {
            return if number == 0 {
                Ok(Self(0))
            } else {
                Err(UnitError::SizeWithoutUnit(number))
            };
        }
        if let Some((name, shift)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            let _ = name;
            return number
                .checked_mul(1 << shift)
                .filter(|bytes| *bytes <= SIZE_MAX)
                .map(Self)
                .ok_or(UnitError::SizeTooLarge);
        }
        // `4GB`, `4G` and `4gib` are close enough to say what was meant.
        let initial = unit.chars().next().map(|c| c.to_ascii_uppercase());
        match SIZE_UNITS
            .iter()
            .find(|(name, _)| name.chars().next() == initial)
        {
            Some((name, _)) => Err(UnitError::SizeDecimal(format!("{number}{name}"))),
            None => Err(UnitError::Size),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = SIZE_UNITS
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or(&("B", 0));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

/// A share of a group: a count of members, or a percentage of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Amount {
    /// This many members.
    Count(u32),
    /// This share of the group, 1 to 100.
    Percent(u8),
}

impl Amount {
    /// How many of `total` this is, rounded down but never to nothing, never above `total`.
    ///
    /// For a limit such as "at most this many at once": rounding up could take
    /// away more than was allowed, and nothing at all would never end.
    pub fn of(self, total: NonZeroU32) -> u32 {
        let total = total.get();
        match self {
            Self::Count(count) => count.min(total),
            Self::Percent(percent) => {
                let share = u64::from(total) * u64::from(percent) / 100;
                u32::try_from(share).unwrap_or(total).clamp(1, total)
            }
        }
    }

    /// Whether this is the count nought.
    pub const fn is_zero(self) -> bool {
        matches!(self, Self::Count(0))
    }
}

impl FromStr for Amount {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if let Some(number) = text.strip_suffix('%') {
            if !digits(number) {
                return Err(UnitError::Amount);
            }
            return match number.parse::<u8>() {
                Ok(percent @ 1..=100) => Ok(Self::Percent(percent)),
                _ => Err(UnitError::Percent),
            };
        }
        if !digits(text) {
            return Err(UnitError::Amount);
        }
        text.parse().map(Self::Count).map_err(|_| UnitError::Amount)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

macro_rules! text_forms {
    ($($name:ident)*) => { $(
        impl TryFrom<String> for $name {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )* };
}

text_forms!(TimeSpan ByteSize Amount);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_in_their_largest_units() {
        for (text, millis, printed) in [
            ("0", 0, "0s"),
            ("250ms", 250, "250ms"),
            ("90s", 90_000, "1m30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1d1ms", 86_400_001, "1d1ms"),
        ] {
            let span: TimeSpan = text.parse().expect(text);
            assert_eq!(span.as_millis(), millis, "{text}");
            assert_eq!(span.to_string(), printed);
            assert_eq!(printed.parse::<TimeSpan>(), Ok(span));
        }
        assert_eq!(
            "30".parse::<TimeSpan>(),
            Err(UnitError::DurationWithoutUnit(30))
        );
        for bad in [
            "", "s", "30 s", "1.5h", "-1s", "30m1h", "1m1m", "5x", "30s!",
        ] {
            assert_eq!(bad.parse::<TimeSpan>(), Err(UnitError::Duration), "{bad}");
        }
        assert_eq!("367d".parse::<TimeSpan>(), Err(UnitError::DurationTooLong));
        assert_eq!(
            "99999999999999999999d".parse::<TimeSpan>(),
            Err(UnitError::DurationTooLong)
        );
    }

    #[test]
    fn sizes_read_and_print_in_their_largest_exact_unit() {
        for (text, bytes, printed) in [
            ("0", 0, "0B"),
            ("512MiB", 512 << 20, "512MiB"),
            ("2048MiB", 2 << 30, "2GiB"),
            ("1537KiB", 1537 << 10, "1537KiB"),
        ] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, printed));
        }
        assert_eq!("4".parse::<ByteSize>(), Err(UnitError::SizeWithoutUnit(4)));
        assert_eq!(
            "4GB".parse::<ByteSize>(),
            Err(UnitError::SizeDecimal("4GiB".into()))
        );
        assert_eq!(
            "4m".parse::<ByteSize>(),
            Err(UnitError::SizeDecimal("4MiB".into()))
        );
        assert_eq!("x".parse::<ByteSize>(), Err(UnitError::Size));
        assert_eq!("65TiB".parse::<ByteSize>(), Err(UnitError::SizeTooLarge));
    }

    #[test]
    fn a_percentage_of_a_small_group_is_at_least_one_and_never_more_than_its_share() {
        let of = |amount: Amount, total| amount.of(NonZeroU32::new(total).expect("not zero"));
        assert_eq!(of(Amount::Percent(25), 6), 1);
        assert_eq!(of(Amount::Percent(25), 8), 2);
        assert_eq!(of(Amount::Percent(1), 6), 1);
        assert_eq!(of(Amount::Percent(100), 6), 6);
        assert_eq!(of(Amount::Count(9), 6), 6);
        assert_eq!("0%".parse::<Amount>(), Err(UnitError::Percent));
        assert_eq!("101%".parse::<Amount>(), Err(UnitError::Percent));
        assert_eq!("a few".parse::<Amount>(), Err(UnitError::Amount));
        assert_eq!("%".parse::<Amount>(), Err(UnitError::Amount));
    }
}
