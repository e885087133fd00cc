//! Calendars: the five fields of cron, and when they next come true.
//!
//! `minute hour day-of-month month day-of-week`, each `*`, a number, a range
//! `a-b`, a step `*/n` or `a-b/n`, or a list of these; months and days of the week
//! also by their English names. When both days are limited, either is enough, as
//! in every cron.
//!
//! Where clocks are put forward, a time that does not exist fires at the first
//! moment after the gap. Where they are put back, a time that comes twice fires
//! at the first, unless the hour is `*`: then every hour counts, both of them too.
//!
//! Zone rules are those that this program was built with, so every member computes
//! the same; all the same it is the leader who decides and the log that tells.

use std::str::FromStr;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};

use crate::time::Timestamp;

/// Days that are looked through; 29 February is at most eight years away.
const DAYS_MAX: usize = 9 * 366;

/// Why a text is no calendar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// Not five fields.
    #[error("a calendar has five fields, minute hour day month weekday; this has {0}")]
    Fields(usize),
    /// A field that cannot be read.
    #[error("the {field} `{text}` is not a number, range, list or step")]
    Syntax {
        /// Which field.
        field: &'static str,
        /// What stands there.
        text: String,
    },
    /// A number that the field does not have.
    #[error("the {field} is between {least} and {most}, found {number}")]
    Range {
        /// Which field.
        field: &'static str,
        /// The least number.
        least: u8,
        /// The greatest number.
        most: u8,
        /// What stands there.
        number: u32,
    },
    /// A date that no year has.
    #[error("it never comes true: no such month has such a day")]
    Never,
}

/// Five fields as sets of numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    every_hour: bool,
    /// Which of the two kinds of day are limited, by the first character as cron has it.
    days_limited: bool,
    weekdays_limited: bool,
}

struct Field {
    name: &'static str,
    least: u8,
    most: u8,
    words: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        name: "minute",
        least: 0,
        most: 59,
        words: &[],
    },
    Field {
        name: "hour",
        least: 0,
        most: 23,
        words: &[],
    },
    Field {
        name: "day of the month",
        least: 1,
        most: 31,
        words: &[],
    },
    Field {
        name: "month",
        least: 1,
        most: 12,
        words: &[
            "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
        ],
    },
    // 7 is Sunday too.
    Field {
        name: "day of the week",
        least: 0,
        most: 7,
        words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    },
];

impl Field {
    fn set(&self, text: &str) -> Result<u64, CronError> {
        text.split(',')
            .try_fold(0, |set, part| Ok(set | self.part(part)?))
    }

    fn part(&self, text: &str) -> Result<u64, CronError> {
        let syntax = || CronError::Syntax {
            field: self.name,
            text: text.to_owned(),
        };
        let (range, step) = match text.split_once('/') {
            None => (text, None),
            Some((range, step)) => {
                let step: u32 = digits(step).filter(|step| *step > 0).ok_or_else(syntax)?;
                (range, Some(step))
            }
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (self.least, self.most),
            Some((from, to)) => (self.number(from, &syntax)?, self.number(to, &syntax)?),
            None => {
                let from = self.number(range, &syntax)?;
                // `5/15` means from 5 on, as in most crons.
                (from, if step.is_some() { self.most } else { from })
            }
        };
        if from > to {
            return Err(syntax());
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        Ok((from..=to).step_by(step).fold(0, |set, n| set | 1 << n))
    }

    fn number(&self, text: &str, syntax: &impl Fn() -> CronError) -> Result<u8, CronError> {
        let lower = text.to_ascii_lowercase();
        if let Some(index) = self.words.iter().position(|word| *word == lower) {
            return Ok(self.least + u8::try_from(index).unwrap_or(u8::MAX));
        }
        let number = digits(text).ok_or_else(syntax)?;
        match u8::try_from(number) {
            Ok(number) if (self.least..=self.most).contains(&number) => Ok(number),
            _ => Err(CronError::Range {
                field: self.name,
                least: self.least,
                most: self.most,
                number,
            }),
        }
    }
}

fn digits(text: &str) -> Option<u32> {
    let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all { text.parse().ok() } else { None }
}

impl FromStr for Schedule {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(CronError::Fields(fields.len()));
        };
        let mut weekdays = FIELDS[4].set(weekday)?;
        if weekdays & 1 << 7 != 0 {
            weekdays |= 1;
        }
        let schedule = Self {
            minutes: FIELDS[0].set(minute)?,
            hours: FIELDS[1].set(hour)?,
            days: FIELDS[2].set(day)?,
            months: FIELDS[3].set(month)?,
            weekdays,
            every_hour: hour == "*",
            days_limited: !day.starts_with('*'),
            weekdays_limited: !weekday.starts_with('*'),
        };
        if schedule.is_possible() {
            Ok(schedule)
        } else {
            Err(CronError::Never)
        }
    }
}

impl Schedule {
    fn is_possible(&self) -> bool {
        const LONGEST: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        if !self.days_limited || self.weekdays_limited {
            return true;
        }
        (1..=12u8)
            .filter(|month| self.months & 1 << month != 0)
            .any(|month| (1..=LONGEST[usize::from(month) - 1]).any(|day| self.days & 1 << day != 0))
    }

    fn has_day(&self, date: Date) -> bool {
        let month = self.months & 1 << date.month() != 0;
        let day = self.days & 1 << date.day() != 0;
        let weekday = self.weekdays & 1 << date.weekday().to_sunday_zero_offset() != 0;
        let either = self.days_limited && self.weekdays_limited;
        month
            && if either {
                day || weekday
            } else {
                day && weekday
            }
    }

    /// The first time after `after`, or none within the years that are looked through.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let millis = i64::try_from(after.as_millis()).ok()?;
        let start = jiff::Timestamp::from_millisecond(millis).ok()?;
        // From the day before: an offset can move a moment into another date.
        let mut date = zone.to_datetime(start).date().yesterday().ok()?;
        for _ in 0..DAYS_MAX {
            if self.has_day(date) {
                let next = self
                    .times(date)
                    .flat_map(|local| self.moments(local, zone))
                    .filter(|m| *m > start)
                    .min();
                if let Some(next) = next {
                    return u64::try_from(next.as_millisecond())
                        .ok()
                        .map(Timestamp::from_millis);
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The local times of a day that has this.
    fn times(&self, date: Date) -> impl Iterator<Item = DateTime> + '_ {
        let hours = (0..24i8).filter(|hour| self.hours & 1 << hour != 0);
        hours.flat_map(move |hour| {
            let minutes = (0..60i8).filter(|minute| self.minutes & 1 << minute != 0);
            minutes.map(move |minute| date.at(hour, minute, 0, 0))
        })
    }

    /// The moments of a local time: usually one.
    fn moments(&self, local: DateTime, zone: &TimeZone) -> Vec<jiff::Timestamp> {
        let ambiguous = zone.to_ambiguous_timestamp(local);
        let both = match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => [Some(ambiguous), None],
            AmbiguousOffset::Gap { .. } => {
                // Every time in the gap fires together, right after it.
                return first_after_gap(local, zone).into_iter().collect();
            }
            AmbiguousOffset::Fold { .. } if self.every_hour => {
                [Some(ambiguous), Some(zone.to_ambiguous_timestamp(local))]
            }
            AmbiguousOffset::Fold { .. } => [Some(ambiguous), None],
        };
        let [first, second] = both;
        let earlier = first.and_then(|a| a.earlier().ok());
        let later = second.and_then(|a| a.later().ok());
        earlier.into_iter().chain(later).collect()
    }
}

/// The first moment after the gap that swallows a local time.
fn first_after_gap(local: DateTime, zone: &TimeZone) -> Option<jiff::Timestamp> {
    // `earlier` reads the time with the offset after the gap, so it lies before the change.
    let before = zone.to_ambiguous_timestamp(local).earlier().ok()?;
    zone.following(before)
        .next()
        .map(|transition| transition.timestamp())
}

/// A zone by its IANA name, from the rules that this program was built with.
pub fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" {
        return Some(TimeZone::UTC);
    }
    TimeZoneDatabase::bundled().get(name).ok()
}

/// The zone names that are near to one that is not known.
pub fn nearest_zone(name: &str) -> Option<String> {
    let database = TimeZoneDatabase::bundled();
    let names: Vec<String> = database.available().map(|name| name.to_string()).collect();
    // `Berlin` is what people write for `Europe/Berlin`.
    let city = names.iter().find(|known| {
        known
            .rsplit('/')
            .next()
            .is_some_and(|city| city.eq_ignore_ascii_case(name))
    });
    match city {
        Some(city) => Some(city.clone()),
        None => crate::document::suggest::nearest(name, names.iter().map(String::as_str))
            .map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let moment: jiff::Timestamp = text.parse().expect("a moment");
        Timestamp::from_millis(u64::try_from(moment.as_millisecond()).expect("after 1970"))
    }

    /// The next few firings, printed in UTC.
    fn firings(cron: &str, name: &str, after: &str, count: usize) -> Vec<String> {
        let schedule: Schedule = cron.parse().expect(cron);
        let zone = zone(name).expect("a zone");
        let mut now = at(after);
        (0..count)
            .map(|_| {
                now = schedule.next_after(now, &zone).expect("a next time");
                let millis = i64::try_from(now.as_millis()).expect("small");
                jiff::Timestamp::from_millisecond(millis)
                    .expect("in range")
                    .to_string()
            })
            .collect()
    }

    #[test]
    fn calendars_fire_when_cron_would() {
        assert_eq!(
            firings("0 3 * * 1", "UTC", "2026-11-23T03:00:00Z", 2),
            ["2026-11-30T03:00:00Z", "2026-12-07T03:00:00Z"]
        );
        assert_eq!(
            firings("*/20 9-10 * * mon-fri", "UTC", "2026-11-20T10:30:00Z", 3),
            [
                "2026-11-20T10:40:00Z",
                "2026-11-23T09:00:00Z",
                "2026-11-23T09:20:00Z"
            ]
        );
        // Either kind of day is enough: the 13th, or a Friday.
        assert_eq!(
            firings("0 0 13 * 5", "UTC", "2026-12-05T00:00:00Z", 3),
            [
                "2026-12-11T00:00:00Z",
                "2026-12-13T00:00:00Z",
                "2026-12-18T00:00:00Z"
            ]
        );
        assert_eq!(
            firings("0 0 29 2 *", "UTC", "2097-01-01T00:00:00Z", 1),
            ["2104-02-29T00:00:00Z"]
        );
        assert_eq!(
            firings("0 12 * * 7", "UTC", "2026-11-23T00:00:00Z", 1),
            ["2026-11-29T12:00:00Z"]
        );
    }

    #[test]
    fn a_missing_hour_fires_once_after_the_gap() {
        // 2026-03-29: 02:00 becomes 03:00 in Berlin, at 01:00Z.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        assert_eq!(
            firings("*/15 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"]
        );
    }

    #[test]
    fn a_repeated_hour_fires_once_unless_every_hour_counts() {
        // 2026-10-25: 03:00 becomes 02:00 in Berlin, at 01:00Z.
        assert_eq!(
            firings("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]
        );
        assert_eq!(
            firings("30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 3),
            [
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:30:00Z"
            ]
        );
    }

    #[test]
    fn what_is_no_calendar_is_refused_with_the_field() {
        for (text, message) in [
            (
                "0 3 * *",
                "a calendar has five fields, minute hour day month weekday; this has 4",
            ),
            ("60 3 * * *", "the minute is between 0 and 59, found 60"),
            (
                "0 x * * *",
                "the hour `x` is not a number, range, list or step",
            ),
            (
                "0 3 0 * *",
                "the day of the month is between 1 and 31, found 0",
            ),
            (
                "*/0 * * * *",
                "the minute `*/0` is not a number, range, list or step",
            ),
            (
                "0 5-3 * * *",
                "the hour `5-3` is not a number, range, list or step",
            ),
            (
                "0 0 31 2 *",
                "it never comes true: no such month has such a day",
            ),
            (
                "@daily",
                "a calendar has five fields, minute hour day month weekday; this has 1",
            ),
        ] {
            assert_eq!(
                text.parse::<Schedule>().expect_err(text).to_string(),
                message
            );
        }
    }

    #[test]
    fn zones_are_known_by_name_and_cities_are_understood() {
        assert!(zone("Europe/Berlin").is_some());
        assert!(zone("Mars/Olympus").is_none());
        assert_eq!(nearest_zone("Berlin").as_deref(), Some("Europe/Berlin"));
        assert_eq!(
            nearest_zone("Europe/Berlni").as_deref(),
            Some("Europe/Berlin")
        );
    }
}
