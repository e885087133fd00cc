//! What is over: how it leaves the live state, and when it is no longer kept.
//!
//! ```text
//! ended -> history record (immutable, numbered by the store) -> pruned: its hash remains
//! ```
//!
//! The ledger keeps of the history a rolling hash and, for each team, how much there is. Which
//! records have outlived their policy is seen by the leader, who can read them
//! ([`crate::retention`]); whether they may go is decided here: nothing goes that an image version
//! or a fleet still refers to. Records are named by the store's numbers, which are the same on every
//! member because every member appends the same records in the same order.

use serde::{Deserialize, Serialize};

use super::{Answer, Context, HistoryRecord, Ledger, Rejected};
use crate::digest::Digest;
use crate::ids::{RolloutId, RunId, Seq};
use crate::names::TeamName;

/// Kind of a finished run's record.
pub const RUN: u8 = b'r';
/// Kind of a finished rollout's record.
pub const ROLLOUT: u8 = b'o';
/// In the rolling hash: records were pruned.
const PRUNED: u8 = b'p';
/// Most records that one command prunes, so that no command is slow: each is read and written anew.
pub const PRUNE_MAX: usize = 256;

/// What the history keeps of one team.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Runs.
    #[serde(default)]
    pub runs: u64,
    /// Rollouts.
    #[serde(default)]
    pub rollouts: u64,
}

impl Finished {
    fn slot(&mut self, kind: u8) -> &mut u64 {
        if kind == RUN {
            &mut self.runs
        } else {
            &mut self.rollouts
        }
    }
}

/// A history record that is no longer kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Its number in the store.
    pub number: u64,
    /// [`RUN`] or [`ROLLOUT`].
    pub kind: u8,
    /// The sequence in its id.
    pub id: Seq,
    /// Whose it was.
    pub team: TeamName,
}

impl Ledger {
    /// Sends a record to the history.
    pub(super) fn push_history(
        &mut self,
        cx: &Context,
        kind: u8,
        id: Seq,
        team: &TeamName,
        bytes: Vec<u8>,
    ) {
        self.roll(kind, &bytes);
        self.farm_mut().history_seq = cx.seq;
        self.count_finished(team, kind, |count| count + 1);
        self.history.push(HistoryRecord {
            seq: cx.seq,
            kind,
            id,
            bytes,
        });
    }

    /// Moves the rolling hash of the history on.
    fn roll(&mut self, kind: u8, bytes: &[u8]) {
        let farm = self.farm_mut();
        let mut hasher = blake3::Hasher::new();
        if let Some(before) = farm.history {
            hasher.update(before.as_bytes());
        }
        hasher.update(&[kind]);
        hasher.update(bytes);
        farm.history = Some(Digest::from_bytes(*hasher.finalize().as_bytes()));
    }

    fn count_finished(&mut self, team: &TeamName, kind: u8, change: impl Fn(u64) -> u64) {
        let mut count = self.finished.get(team).copied().unwrap_or_default();
        let slot = count.slot(kind);
        *slot = change(*slot);
        self.finished.insert(team.clone(), count);
    }

    /// What still refers to a finished run or rollout, if anything does.
    pub fn kept_by(&self, kind: u8, id: Seq) -> Option<String> {
        if kind == RUN {
            let run = RunId(id);
            if self.runs.contains(&run) {
                return Some("it is open".into());
            }
            if self.index.published(run) {
                return Some("an image version came of it".into());
            }
            let rollout = self.rollouts.iter().find(|(_, r)| r.run == Some(run));
            if let Some((rollout, _)) = rollout {
                return Some(format!("rollout {rollout} brings its version"));
            }
            let fleet = self.fleets.iter().find(|(_, fleet)| {
                let target = fleet.target.as_ref().and_then(|target| target.run);
                let requested = fleet.requested.as_ref().and_then(|asked| asked.run);
                [target, requested].contains(&Some(run))
            });
            return fleet.map(|(name, _)| format!("fleet `{name}` shall run its version"));
        }
        let rollout = RolloutId(id);
        if self.rollouts.contains(&rollout) {
            return Some("it is open".into());
        }
        // The last rollout names the debt that may be left of it.
        let last = |last: Option<(RolloutId, _)>| last.is_some_and(|(last, _)| last == rollout);
        let mut fleets = self.fleets.iter();
        fleets
            .find(|(_, fleet)| last(fleet.last))
            .map(|(name, _)| format!("it was the last of fleet `{name}`"))
    }
}

/// Lets go of records, all of them or none.
pub(super) fn prune(ledger: &mut Ledger, records: Vec<Pruned>) -> Result<Answer, Rejected> {
    if records.len() > PRUNE_MAX {
        return Err(Rejected::Exhausted(format!(
            "one command prunes at most {PRUNE_MAX} records"
        )));
    }
    if !records.is_sorted_by(|a, b| a.number < b.number) {
        return Err(Rejected::WrongState(
            "records are pruned in the order of their numbers, each once".into(),
        ));
    }
    for record in &records {
        if ![RUN, ROLLOUT].contains(&record.kind) {
            return Err(Rejected::NotFound {
                kind: "kind of history record".into(),
                name: record.kind.to_string(),
            });
        }
        if record.id >= ledger.seq() {
            return Err(Rejected::NotFound {
                kind: "finished run or rollout".into(),
                name: record.id.to_string(),
            });
        }
        if let Some(why) = ledger.kept_by(record.kind, record.id) {
            return Err(Rejected::Forbidden(format!(
                "history record {} is kept: {why}",
                record.number
            )));
        }
    }
    if records.is_empty() {
        return Ok(Answer::Unchanged);
    }
    for record in records {
        let mut name = record.number.to_be_bytes().to_vec();
        name.push(record.kind);
        name.extend(record.id.as_u64().to_be_bytes());
        ledger.roll(PRUNED, &name);
        ledger.count_finished(&record.team, record.kind, |count| count.saturating_sub(1));
        if ledger.finished.get(&record.team) == Some(&Finished::default()) {
            ledger.finished.remove(&record.team);
        }
        ledger.pruned.push(record.number);
    }
    Ok(Answer::Done)
}
