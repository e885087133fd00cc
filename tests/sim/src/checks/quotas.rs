//! No team holds more than its quota and what it may borrow.
//!
//! Counted from the leases themselves, apart from the ledger's own indices. A quota that is lowered
//! takes nothing away, so only a team that holds more than before is held to it.

use std::collections::BTreeMap;

use oast_model::ledger::Ledger;
use oast_model::names::TeamName;
use oast_model::priority::Band;

use super::Wrong;

/// What every team that has a quota held last, and might hold.
#[derive(Debug, Default)]
pub struct Quotas(BTreeMap<TeamName, (u32, u32)>);

impl Quotas {
    /// Compares what every team holds with its quota.
    pub fn compare(&mut self, ledger: &Ledger) -> Wrong {
        let held = match held(ledger) {
            Ok(held) => held,
            Err(wrong) => return Some(wrong),
        };
        let mut wrong = None;
        for (name, team) in ledger.teams().iter() {
            let Some(quota) = team.spec.quota else {
                continue;
            };
            let held = held.get(name).copied().unwrap_or(0);
            let before = self.0.insert(name.clone(), (held, quota.limit()));
            // One entry may both grant a lease and lower the quota.
            let (before, limit) = before.unwrap_or((0, 0));
            let limit = limit.max(quota.limit());
            if held > limit && held > before {
                wrong = Some(format!(
                    "team `{name}` holds {held} slots, its limit is {limit}"
                ));
            }
        }
        wrong
    }
}

fn held(ledger: &Ledger) -> Result<BTreeMap<&TeamName, u32>, String> {
    let mut held: BTreeMap<&TeamName, u32> = BTreeMap::new();
    for (_, lease) in ledger.leases().iter() {
        let Some(task) = ledger.tasks().get(&lease.task) else {
            return Err(format!("a lease of {}, which is no task", lease.task));
        };
        if Band::of(task).counts() {
            *held.entry(&task.team).or_default() += 1;
        }
    }
    Ok(held)
}
