//! How long finished work is kept, and what has outlived that. Pure; the leader reads the
//! history, asks here, and proposes [`crate::ledger::Command::PruneHistory`].
//!
//! A run or rollout goes when it is older than the policy's days, or when its team has more than
//! the policy's number and it is among the oldest. What an image version or a fleet still refers to
//! stays whatever its age ([`Ledger::kept_by`]).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::Seq;
use crate::ledger::{Ledger, PRUNE_MAX, Pruned, RUN};
use crate::names::TeamName;
use crate::resource::Retention;
use crate::time::Timestamp;

/// Finished runs of a team that are kept unless somebody says otherwise.
pub const RUNS_KEPT: u32 = 10_000;
/// Days for which they are kept unless somebody says otherwise.
pub const DAYS_KEPT: u32 = 90;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            runs: RUNS_KEPT,
            days: DAYS_KEPT,
        }
    }
}

/// A history record as the leader found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number in the store.
    pub number: u64,
    /// [`RUN`] or [`crate::ledger::ROLLOUT`].
    pub kind: u8,
    /// The sequence in its id.
    pub id: Seq,
    /// Whose it is.
    pub team: TeamName,
    /// When it ended.
    pub at: Timestamp,
}

/// One way through the history, from the oldest record on.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// How many of the next records of a team and kind are not among its newest: by how many it
    /// exceeded its number when the sweep began, less the records seen since. Those that are kept because
    /// something refers to them count as well, or newer ones would go in their place. What ends meanwhile
    /// is for the next sweep.
    excess: BTreeMap<(TeamName, u8), u64>,
}

impl Sweep {
    /// Begins at the oldest record.
    pub fn begin(ledger: &Ledger, farm: &Retention) -> Sweep {
        let mut excess = BTreeMap::new();
        for (team, finished) in ledger.finished().iter() {
            let most = u64::from(policy(ledger, team, farm).runs);
            let counts = [
                (RUN, finished.runs),
                (crate::ledger::ROLLOUT, finished.rollouts),
            ];
            for (kind, count) in counts {
                if count > most {
                    excess.insert((team.clone(), kind), count - most);
                }
            }
        }
        Sweep { excess }
    }

    /// What goes of the next records, at most one command's worth. Says how many were looked at.
    pub fn judge(
        &mut self,
        ledger: &Ledger,
        farm: &Retention,
        records: &[Ended],
        now: Timestamp,
    ) -> (Vec<Pruned>, usize) {
        let mut pruned = Vec::new();
        for (looked, record) in records.iter().enumerate() {
            if pruned.len() == PRUNE_MAX {
                return (pruned, looked);
            }
            let key = (record.team.clone(), record.kind);
            let excess = self.excess.get_mut(&key).filter(|excess| **excess > 0);
            let surplus = excess.map(|excess| *excess -= 1).is_some();
            let days = policy(ledger, &record.team, farm).days;
            let old = now.since(record.at) > DAY * days;
            if !(surplus || old) || ledger.kept_by(record.kind, record.id).is_some() {
                continue;
            }
            pruned.push(Pruned {
                number: record.number,
                kind: record.kind,
                id: record.id,
                team: record.team.clone(),
            });
        }
        (pruned, records.len())
    }
}

/// The team's own policy, else the farm's.
fn policy(ledger: &Ledger, team: &TeamName, farm: &Retention) -> Retention {
    let own = ledger
        .teams()
        .get(team)
        .and_then(|team| team.spec.retention);
    own.unwrap_or(*farm)
}
