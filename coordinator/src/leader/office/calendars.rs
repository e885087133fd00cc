//! When calendars come due. The next time of an expression is looked for once and kept until the
//! calendar changes: a turn only compares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oast_model::ledger::{CronState, Ledger};
use oast_model::names::{PipelineName, TeamName};
use oast_model::pipeline::cron;
use oast_model::time::Timestamp;

/// Whose calendar.
type Key = (TeamName, PipelineName);

#[derive(Debug)]
struct Known {
    state: Arc<CronState>,
    /// The first time of each expression after it was fired last.
    next: Vec<Timestamp>,
}

impl Known {
    fn of(state: Arc<CronState>) -> Known {
        let next = state.crons.iter();
        let next = next.filter_map(|cron| next_after(cron, state.fired));
        Known {
            next: next.collect(),
            state,
        }
    }
}

/// The farm's calendars, as they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Calendars(BTreeMap<Key, Known>);

impl Calendars {
    /// Calendars that came due since they were fired last, and how long the others have time.
    pub(super) fn due(&mut self, view: &Ledger, wall: Timestamp) -> (Vec<Key>, Option<Duration>) {
        let crons = view.crons();
        self.0.retain(|key, _| crons.contains(key));
        let mut due = Vec::new();
        let mut rest: Option<Duration> = None;
        for key in crons.keys() {
            let Some(state) = crons.get_shared(key) else {
                continue;
            };
            let known = match self.0.get(key) {
                Some(known) if Arc::ptr_eq(&known.state, &state) => known,
                _ => {
                    self.0.insert(key.clone(), Known::of(state));
                    &self.0[key]
                }
            };
            for first in &known.next {
                if *first > wall {
                    // A clock that stands a little before it must not make a hot loop.
                    let left = first.since(wall) + Duration::from_millis(1);
                    rest = Some(rest.map_or(left, |rest| rest.min(left)));
                }
            }
            if known.next.iter().any(|first| *first <= wall) {
                due.push(key.clone());
            }
        }
        (due, rest)
    }

    /// The newest time, of any expression of a calendar that is due, that is not after `wall`: it
    /// stands for all that were missed.
    pub(super) fn newest(&self, key: &Key, wall: Timestamp) -> Option<Timestamp> {
        let state = &self.0.get(key)?.state;
        let newest = state.crons.iter().filter_map(|cron| {
            let after = |time| next_after(cron, time).filter(|later| *later <= wall);
            std::iter::successors(after(state.fired), |time| after(*time)).last()
        });
        newest.max()
    }
}

/// An expression that was stored by a newer version and means nothing here never comes.
fn next_after((text, zone): &(String, String), after: Timestamp) -> Option<Timestamp> {
    let schedule: cron::Schedule = text.parse().ok()?;
    schedule.next_after(after, &cron::zone(zone)?)
}

#[cfg(test)]
mod tests {
    use oast_model::codec;
    use oast_model::digest::Digest;
    use oast_model::ledger::SubmitRun;
    use oast_model::task::Origin;

    use super::*;

    const MINUTE: u64 = 60_000;

    fn at(minutes: u64) -> Timestamp {
        Timestamp::from_millis(minutes * MINUTE)
    }

    fn keyed() -> Key {
        let team = "shop".parse().expect("a good name");
        (team, "web".parse().expect("a good name"))
    }

    /// A ledger with one calendar, as it is loaded from a store.
    fn ledger(crons: &[&str], fired: Timestamp) -> Ledger {
        let state = CronState {
            crons: crons
                .iter()
                .map(|cron| ((*cron).to_owned(), "UTC".to_owned()))
                .collect(),
            submit: SubmitRun {
                team: keyed().0,
                repository: None,
                origin: Origin::Upload {
                    tree: Digest::of(b"tree"),
                    commit: None,
                    dirty: false,
                },
                path: "oast.yaml".into(),
                cause: String::new(),
                inputs: BTreeMap::new(),
                priority: None,
            },
            fired,
        };
        let mut ledger = Ledger::for_loading();
        let mut key = vec![ledger.crons().tag()];
        key.extend(codec::encode(&keyed()));
        ledger.load(&key, &codec::encode(&state)).expect("a record");
        ledger.finish_loading();
        ledger
    }

    #[test]
    fn a_calendar_comes_due_at_its_time_and_stands_for_what_was_missed() {
        let ledger = ledger(&["*/10 * * * *", "5 * * * *"], at(1));
        let mut calendars = Calendars::default();
        let (due, rest) = calendars.due(&ledger, at(2));
        assert_eq!(due, []);
        assert_eq!(rest, Some(Duration::from_millis(3 * MINUTE + 1)));
        let (due, _) = calendars.due(&ledger, at(5));
        assert_eq!(due, [keyed()]);
        assert_eq!(calendars.newest(&keyed(), at(5)), Some(at(5)));
        let (due, rest) = calendars.due(&ledger, at(34));
        assert_eq!(due, [keyed()]);
        assert_eq!(calendars.newest(&keyed(), at(34)), Some(at(30)));
        assert_eq!(rest, None, "both have come");
    }

    #[test]
    fn a_calendar_that_was_fired_or_changed_is_looked_at_again() {
        let mut calendars = Calendars::default();
        let before = ledger(&["*/10 * * * *"], at(1));
        assert_eq!(calendars.due(&before, at(10)).0.len(), 1);
        let fired = ledger(&["*/10 * * * *"], at(10));
        assert_eq!(calendars.due(&fired, at(11)).0, []);
        let changed = ledger(&["11 * * * *"], at(10));
        assert_eq!(calendars.due(&changed, at(11)).0.len(), 1);
        let unknown = ledger(&["every full moon"], at(10));
        assert_eq!(calendars.due(&unknown, at(1000)), (Vec::new(), None));
        assert_eq!(
            calendars.due(&Ledger::new(), at(1000)),
            (Vec::new(), None),
            "there is none any more"
        );
    }
}
