//! Durations and sizes the way people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Text that is not a duration or a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a number with a unit.
    #[error(
        "{text:?} is not a duration: write a whole number and a unit, e.g. 250ms, 30s, 5m, 2h, 7d"
    )]
    Span {
        /// As given.
        text: String,
    },
    /// Not a number with a unit.
    #[error(
        "{text:?} is not a size: write a whole number and a unit, e.g. 512B, 64KiB, 4MiB, 30GiB"
    )]
    Size {
        /// As given.
        text: String,
    },
}

/// A duration written as a whole number and one unit: `250ms`, `30s`, `5m`, `2h`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// A number of bytes written as a whole number and one unit: `512B`, `64KiB`, `4MiB`, `30GiB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

/// Largest first, so that printing picks the biggest unit that divides evenly.
const SPANS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

/// Largest first. Decimal units are refused: people mean the binary ones and get neither wrong.
const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Splits `12ms` into 12 and the factor of `ms`, multiplied.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn largest(value: u64, units: &[(&'static str, u64)]) -> (u64, &'static str) {
    let fits = units
        .iter()
        .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    let (unit, factor) = fits.copied().unwrap_or_else(|| units[units.len() - 1]);
    (value / factor, unit)
}

impl Span {
    /// A span of whole seconds, for defaults.
    #[must_use]
    pub const fn secs(s: u64) -> Span {
        Span(Duration::from_secs(s))
    }

    /// A span of milliseconds, for defaults.
    #[must_use]
    pub const fn millis(ms: u64) -> Span {
        Span(Duration::from_millis(ms))
    }
}

impl Size {
    /// A size in MiB, for defaults.
    #[must_use]
    pub const fn mib(n: u64) -> Size {
        Size(n << 20)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Span, UnitError> {
        let ms = scaled(text, &SPANS).ok_or_else(|| UnitError::Span {
            text: text.to_owned(),
        })?;
        Ok(Span(Duration::from_millis(ms)))
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        scaled(text, &SIZES)
            .map(Size)
            .ok_or_else(|| UnitError::Size {
                text: text.to_owned(),
            })
    }
}

impl TryFrom<String> for Span {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Span, UnitError> {
        text.parse()
    }
}

impl TryFrom<String> for Size {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Size, UnitError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (number, unit) = largest(ms, &SPANS);
        write!(f, "{number}{unit}")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = largest(self.0, &SIZES);
        write!(f, "{number}{unit}")
    }
}
