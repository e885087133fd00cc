//! The newest changes of runs, rollouts and fleets, in the order of the log.
//!
//! Filled by every member while it applies, published with the state, bounded: each change is a
//! number and a name, and the newest ones hold the state as it was (shared with the ledger). An
//! older change stands for the state as it is, which is right for the last change of an object; an
//! earlier one of the same object has a later one to speak for it. So whoever resumes far behind
//! still sees where everything came to, and nobody sees anything twice.
//!
//! The feed begins where the member's state was when it was opened or replaced by a snapshot:
//! [`Feed::floor`]. A clone is cheap, for it is part of every published view.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use oast_model::ids::{RolloutId, RunId, Seq};
use oast_model::ledger::{Effect, FleetRecord, Ledger, Rollout, Run};
use oast_model::names::{FleetName, TeamName};
use oast_model::task::Task;

/// Changes that are kept.
const CHANGES_MAX: usize = 65_536;
/// Changes that are kept with the state as it was.
const STATES_MAX: usize = 4096;

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A run.
    Run(RunId),
    /// A rollout.
    Rollout(RolloutId),
    /// A fleet.
    Fleet(FleetName),
}

/// What it was then.
#[derive(Clone, Debug)]
pub enum State {
    /// An open run with its tasks.
    Run(Arc<Run>, Vec<Arc<Task>>),
    /// An open rollout with its tasks.
    Rollout(Arc<Rollout>, Vec<Arc<Task>>),
    /// A fleet.
    Fleet(Arc<FleetRecord>),
    /// The team's fleet was deleted.
    Deleted(TeamName),
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The command.
    pub seq: Seq,
    /// What it changed.
    pub what: What,
    /// Absent for an older change, and for one with which the object went to history.
    pub state: Option<State>,
}

/// The newest changes.
#[derive(Clone, Debug)]
pub struct Feed {
    floor: Seq,
    /// Shared, because a vector that is part of a view copies its last piece with every change.
    changes: Vector<Arc<Change>>,
    /// The newest change of each object that is in `changes`.
    latest: OrdMap<What, Seq>,
}

impl Feed {
    /// A feed of what comes after `floor`.
    #[must_use]
    pub fn new(floor: Seq) -> Feed {
        Feed {
            floor,
            changes: Vector::new(),
            latest: OrdMap::new(),
        }
    }

    /// Every change after this number is here.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// Takes along what a command did. `deleted` is a fleet that it may have deleted.
    pub fn note(
        &mut self,
        ledger: &Ledger,
        seq: Seq,
        effects: &[Effect],
        deleted: Option<(FleetName, TeamName)>,
    ) {
        for effect in effects {
            let (what, state) = match effect {
                Effect::RunChanged(id) => {
                    let run = ledger.runs().get_shared(id);
                    // Said along with one of its rollouts, without a change of its own.
                    if run.as_ref().is_some_and(|run| run.changed != seq) {
                        continue;
                    }
                    let state = run.map(|run| {
                        let tasks = run.tasks.iter();
                        let tasks = tasks.filter_map(|task| ledger.tasks().get_shared(task));
                        let tasks = tasks.collect();
                        State::Run(run, tasks)
                    });
                    (What::Run(*id), state)
                }
                Effect::RolloutChanged(id) => {
                    let rollout = ledger.rollouts().get_shared(id);
                    let state = rollout.map(|rollout| {
                        let tasks = rollout.batches.iter();
                        let tasks =
                            tasks.filter_map(|batch| ledger.tasks().get_shared(&batch.task));
                        let tasks = tasks.collect();
                        State::Rollout(rollout, tasks)
                    });
                    (What::Rollout(*id), state)
                }
                Effect::FleetChanged(name) => {
                    let fleet = ledger.fleets().get_shared(name);
                    (What::Fleet(name.clone()), fleet.map(State::Fleet))
                }
                Effect::TasksChanged
                | Effect::LeaseGranted { .. }
                | Effect::LeaseEnded { .. }
                | Effect::ResourcesChanged => continue,
            };
            self.push(seq, what, state);
        }
        if let Some((name, team)) = deleted.filter(|(name, _)| !ledger.fleets().contains(name)) {
            self.push(seq, What::Fleet(name), Some(State::Deleted(team)));
        }
    }

    fn push(&mut self, seq: Seq, what: What, state: Option<State>) {
        // Several effects of one command on one object are one change.
        if self.latest.insert(what.clone(), seq) == Some(seq) {
            return;
        }
        self.changes
            .push_back(Arc::new(Change { seq, what, state }));
        if let Some(place) = self.changes.len().checked_sub(STATES_MAX + 1)
            && let Some(old) = self.changes.get_mut(place)
            && !matches!(old.state, None | Some(State::Deleted(_)))
        {
            Arc::make_mut(old).state = None;
        }
        if self.changes.len() > CHANGES_MAX
            && let Some(old) = self.changes.pop_front()
        {
            self.floor = old.seq;
            if self.latest.get(&old.what) == Some(&old.seq) {
                self.latest.remove(&old.what);
            }
        }
    }

    /// Changes after `seq`, oldest first. What is returned for a `seq` below the floor has gaps.
    pub fn after(&self, seq: Seq) -> impl Iterator<Item = &Change> {
        let first = self.changes.binary_search_by(|change| {
            if change.seq <= seq {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Greater
            }
        });
        let first = first.unwrap_or_else(|place| place);
        (first..self.changes.len())
            .filter_map(|place| self.changes.get(place).map(|change| &**change))
    }

    /// Whether no later change of the same object is here.
    #[must_use]
    pub fn is_latest(&self, change: &Change) -> bool {
        self.latest.get(&change.what) == Some(&change.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64) -> What {
        What::Run(RunId(Seq::from_u64(number)))
    }

    fn fill(feed: &mut Feed, seqs: std::ops::RangeInclusive<u64>, objects: u64) {
        for seq in seqs {
            let what = run(seq % objects);
            let deleted = State::Deleted(TeamName::new("t").unwrap());
            // Any state will do to see whether it is kept; this one always is.
            let state = (seq % 2 == 0).then_some(deleted);
            feed.push(Seq::from_u64(seq), what, state);
        }
    }

    #[test]
    fn changes_are_found_behind_any_number_and_the_oldest_go_first() {
        let mut feed = Feed::new(Seq::from_u64(4));
        fill(&mut feed, 5..=20, 3);
        let seqs = |feed: &Feed, after: u64| -> Vec<u64> {
            let found = feed.after(Seq::from_u64(after));
            found.map(|change| change.seq.as_u64()).collect()
        };
        assert_eq!(feed.floor(), Seq::from_u64(4));
        assert_eq!(seqs(&feed, 4), (5..=20).collect::<Vec<_>>());
        assert_eq!(seqs(&feed, 18), [19, 20]);
        assert_eq!(seqs(&feed, 20), [0_u64; 0]);
        let latest = feed
            .after(Seq::ZERO)
            .filter(|change| feed.is_latest(change));
        assert_eq!(
            latest.map(|c| c.seq.as_u64()).collect::<Vec<_>>(),
            [18, 19, 20]
        );

        let most = CHANGES_MAX as u64;
        fill(&mut feed, 21..=20 + most, 1000);
        assert_eq!(feed.floor(), Seq::from_u64(20));
        assert_eq!(feed.changes.len(), CHANGES_MAX);
        assert_eq!(feed.latest.len(), 1000);
    }

    #[test]
    fn one_command_changes_an_object_once() {
        let mut feed = Feed::new(Seq::ZERO);
        feed.push(Seq::from_u64(1), run(7), None);
        feed.push(Seq::from_u64(1), run(7), None);
        feed.push(Seq::from_u64(1), run(8), None);
        assert_eq!(feed.after(Seq::ZERO).count(), 2);
    }
}
