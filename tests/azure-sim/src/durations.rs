//! How long an operation takes: what was recorded from Azure (`contract/durations.tsv`).
//!
//! A recording gives the least, the middle and the most. Half of our operations take between the
//! least and the middle; of the other half most take little more than the middle, because a
//! recorded maximum is one outlier among few: one in ten reaches into the long tail.

use std::collections::BTreeMap;

use crate::dice::Dice;

const RECORDED: &str = include_str!("../contract/durations.tsv");

/// One row, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The fastest.
    pub min: u64,
    /// The one in the middle.
    pub median: u64,
    /// The slowest.
    pub max: u64,
}

/// The table, and how it is used.
#[derive(Debug)]
pub struct Durations {
    rows: BTreeMap<&'static str, Recorded>,
    /// Everything takes so many thousandths of its recorded time.
    pub per_mille: u64,
    /// Always the middle, so that a schedule can be computed beforehand.
    pub steady: bool,
}

impl Default for Durations {
    fn default() -> Durations {
        let rows = RECORDED
            .lines()
            .filter(|line| !line.starts_with('#'))
            .skip(1);
        Durations {
            rows: rows.filter_map(row).collect(),
            per_mille: 1000,
            steady: false,
        }
    }
}

fn row(line: &'static str) -> Option<(&'static str, Recorded)> {
    let mut cells = line.split('\t');
    let name = cells.next()?;
    let _count = cells.next()?;
    let mut ms = || Some((cells.next()?.parse::<f64>().ok()? * 1000.0) as u64);
    let recorded = Recorded {
        min: ms()?,
        median: ms()?,
        max: ms()?,
    };
    Some((name, recorded))
}

impl Durations {
    /// What was recorded for an operation, for example `PUT /disks/{}`.
    ///
    /// # Panics
    /// The table has no such row: which rows the simulator asks for is fixed in its code.
    #[must_use]
    pub fn recorded(&self, operation: &str) -> Recorded {
        *self
            .rows
            .get(operation)
            .unwrap_or_else(|| panic!("durations.tsv has no row {operation:?}"))
    }

    /// How long it takes this time, in virtual milliseconds; never zero.
    pub fn take(&self, operation: &str, dice: &mut Dice) -> u64 {
        let Recorded { min, median, max } = self.recorded(operation);
        let ms = match dice.between(0, 9) {
            _ if self.steady => median,
            0..5 => dice.between(min, median),
            5..9 => dice.between(median, median + (max - median) / 8),
            _ => dice.between(median, max),
        };
        (ms * self.per_mille / 1000).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gallery_version_takes_the_minutes_that_were_recorded() {
        let durations = Durations::default();
        let mut dice = Dice::new(1);
        let name = "PUT /galleries/{}/images/{}/versions/{}";
        let taken: Vec<u64> = (0..200).map(|_| durations.take(name, &mut dice)).collect();
        let Recorded { min, median, max } = durations.recorded(name);
        assert_eq!((min, median, max), (676_100, 743_500, 780_500));
        assert!(taken.iter().all(|ms| (min..=max).contains(ms)));
        let below = taken.iter().filter(|ms| **ms <= median).count();
        assert!(
            (60..140).contains(&below),
            "{below} of 200 below the middle"
        );
    }
}
