//! Rolling upgrades: batch by batch, each judged by the health of what it upgraded.
//!
//! ```text
//! begin -> batch (as long as reimaging takes) -> look (health has settled) -> pause -> batch ...
//!            |                                     |                          `-> Completed
//!            `-> Faulted: too many unhealthy       `-> Faulted: too many of the upgraded unhealthy
//! cancel -> Cancelled; a new model begins anew. No surge: batches are upgraded in place.
//! ```

use serde_json::{Value, json};

use super::super::{Act, Tick, Work, tick_at};
use super::{Deed, instance, members, set, set_mut};
use crate::http::Reply;
use crate::json;
use crate::operations::Verb;
use crate::problem::Problem;
use crate::time::Moment;
use crate::world::{Begin, Call, World};

/// After a batch its health is looked at when every instance must have said more than that it begins.
const SETTLE_MS: u64 = 2 * instance::INITIALIZING_MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Batch,
    Look,
    Next,
}

/// A rolling upgrade.
#[derive(Clone, Debug)]
pub struct Upgrade {
    generation: u64,
    code: &'static str,
    phase: Phase,
    began: Moment,
    acted: Moment,
    action: &'static str,
    pending: Vec<String>,
    batch: Vec<String>,
    good: Vec<String>,
    bad: Vec<String>,
    error: Option<Value>,
}

/// Begins to bring the instances of a set to its model.
pub(super) fn begin(world: &mut World, key: &str) {
    let now = world.now;
    let pending = members(world, key)
        .into_iter()
        .filter(|one| instance::is_behind(world, one))
        .collect();
    let Some(set) = set_mut(world, key) else {
        return;
    };
    let generation = set.upgrade.as_ref().map_or(1, |old| old.generation + 1);
    set.upgrade = Some(Upgrade {
        generation,
        code: "RollingForward",
        phase: Phase::Next,
        began: now,
        acted: now,
        action: "Start",
        pending,
        batch: Vec::new(),
        good: Vec::new(),
        bad: Vec::new(),
        error: None,
    });
    tick_at(world, now.after(1), key, Tick::Upgrade(generation));
}

/// The next thing that a rolling upgrade does.
pub(super) fn step(world: &mut World, key: &str, generation: u64) {
    let Some(resource) = world.store.get(key).cloned() else {
        return;
    };
    let Some(mut upgrade) = set(&resource).and_then(|set| set.upgrade.clone()) else {
        return;
    };
    if upgrade.generation != generation || upgrade.code != "RollingForward" {
        return;
    }
    let next = match upgrade.phase {
        Phase::Next => next_batch(world, key, &resource.body, &mut upgrade),
        Phase::Batch => {
            for one in &upgrade.batch {
                instance::upgrade(world, one);
                instance::provisioned(world, one, "Succeeded");
            }
            upgrade.phase = Phase::Look;
            Some(SETTLE_MS)
        }
        Phase::Look => look(world, &resource.body, &mut upgrade),
    };
    if let Some(set) = set_mut(world, key) {
        set.upgrade = Some(upgrade);
    }
    if let Some(ms) = next {
        let at = world.now.after(ms.max(1));
        tick_at(world, at, key, Tick::Upgrade(generation));
    }
}

fn percent(body: &Value, name: &str, default: u64) -> u64 {
    let path = format!("properties.upgradePolicy.rollingUpgradePolicy.{name}");
    json::number(body, &path).unwrap_or(default)
}

fn healthy(world: &World, key: &str) -> bool {
    let found = world.store.get(key);
    found.is_some_and(|found| instance::health(world, found).as_deref() == Some("healthy"))
}

fn next_batch(world: &mut World, key: &str, body: &Value, upgrade: &mut Upgrade) -> Option<u64> {
    let all = members(world, key);
    upgrade.pending.retain(|one| all.contains(one));
    if upgrade.pending.is_empty() {
        upgrade.code = "Completed";
        return None;
    }
    let unhealthy = all.iter().filter(|one| !healthy(world, one)).count() as u64;
    let total = all.len() as u64;
    if unhealthy * 100 > percent(body, "maxUnhealthyInstancePercent", 20) * total {
        upgrade.code = "Faulted";
        upgrade.error = Some(json!({
            "code": "MaxUnhealthyInstancePercentExceededBeforeRollingUpgrade",
            "message": format!("Rolling Upgrade cannot start: {unhealthy} of {total} instances are unhealthy, more than maxUnhealthyInstancePercent allows."),
        }));
        return None;
    }
    let size = (total * percent(body, "maxBatchInstancePercent", 20) / 100).max(1);
    let size = usize::try_from(size)
        .unwrap_or(usize::MAX)
        .min(upgrade.pending.len());
    upgrade.batch = upgrade.pending.drain(..size).collect();
    for one in &upgrade.batch {
        instance::provisioned(world, one, "Updating");
    }
    upgrade.phase = Phase::Batch;
    let row = "POST /virtualMachineScaleSets/{}/virtualmachines/{}/reimage";
    Some(world.durations.take(row, &mut world.dice))
}

fn look(world: &World, body: &Value, upgrade: &mut Upgrade) -> Option<u64> {
    for one in std::mem::take(&mut upgrade.batch) {
        match healthy(world, &one) {
            true => upgrade.good.push(one),
            false => upgrade.bad.push(one),
        }
    }
    let (bad, done) = (upgrade.bad.len(), upgrade.bad.len() + upgrade.good.len());
    let allowed = percent(body, "maxUnhealthyUpgradedInstancePercent", 20);
    if bad as u64 * 100 > allowed * done as u64 {
        upgrade.code = "Faulted";
        upgrade.error = Some(json!({
            "code": "MaxUnhealthyUpgradedInstancePercentExceededInRollingUpgrade",
            "message": format!("Rolling Upgrade failed after exceeding the MaxUnhealthyUpgradedInstancePercent value defined in the RollingUpgradePolicy. {bad} of {done} upgraded instances are unhealthy."),
        }));
        return None;
    }
    upgrade.phase = Phase::Next;
    let path = "properties.upgradePolicy.rollingUpgradePolicy.pauseTimeBetweenBatches";
    Some(pause_ms(json::text(body, path).unwrap_or("PT0S")))
}

/// `PT1M30S` in milliseconds.
fn pause_ms(text: &str) -> u64 {
    let mut ms = 0;
    let mut digits = String::new();
    for letter in text.trim_start_matches("PT").chars() {
        if letter.is_ascii_digit() {
            digits.push(letter);
            continue;
        }
        let unit = match letter {
            'H' => 3_600_000,
            'M' => 60_000,
            'S' => 1000,
            _ => 0,
        };
        ms += digits.parse::<u64>().unwrap_or(0) * unit;
        digits.clear();
    }
    ms
}

/// `GET …/rollingUpgrades/latest`.
pub(super) fn latest(world: &World, call: &Call<'_>) -> Result<Reply, Problem> {
    let resource = world.store.get(&call.key).ok_or_else(Problem::no_entity)?;
    let upgrade = set(resource).and_then(|set| set.upgrade.as_ref());
    let upgrade = upgrade.ok_or_else(Problem::no_entity)?;
    let rules = &resource.body;
    let pause = "properties.upgradePolicy.rollingUpgradePolicy.pauseTimeBetweenBatches";
    let mut properties = json!({
        "policy": {
            "maxBatchInstancePercent": percent(rules, "maxBatchInstancePercent", 20),
            "maxUnhealthyInstancePercent": percent(rules, "maxUnhealthyInstancePercent", 20),
            "maxUnhealthyUpgradedInstancePercent": percent(rules, "maxUnhealthyUpgradedInstancePercent", 20),
            "pauseTimeBetweenBatches": json::text(rules, pause).unwrap_or("PT0S"),
        },
        "runningStatus": {
            "code": upgrade.code,
            "startTime": upgrade.began.rfc3339(),
            "lastAction": upgrade.action,
            "lastActionTime": upgrade.acted.rfc3339(),
        },
        "progress": {
            "successfulInstanceCount": upgrade.good.len(),
            "failedInstanceCount": upgrade.bad.len(),
            "inProgressInstanceCount": upgrade.batch.len(),
            "pendingInstanceCount": upgrade.pending.len(),
        },
    });
    if let Some(error) = &upgrade.error {
        properties["error"] = error.clone();
    }
    Ok(Reply::json(
        200,
        json!({
            "id": format!("{}/rollingUpgrades/latest", resource.id),
            "name": "latest",
            "type": "Microsoft.Compute/virtualMachineScaleSets/rollingUpgrades",
            "location": resource.location,
            "properties": properties,
        }),
    ))
}

/// `POST …/rollingUpgrades/cancel`.
pub(super) fn cancel(world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
    let now = world.now;
    let running = set_mut(world, &call.key)
        .and_then(|set| set.upgrade.as_mut())
        .filter(|upgrade| upgrade.code == "RollingForward");
    let Some(upgrade) = running else {
        return Err(Problem::not_allowed(
            "There is no ongoing Rolling Upgrade to cancel.",
        ));
    };
    upgrade.code = "Cancelled";
    upgrade.action = "Cancel";
    upgrade.acted = now;
    let stopped = std::mem::take(&mut upgrade.batch);
    upgrade.pending.extend(stopped.iter().cloned());
    for one in &stopped {
        instance::provisioned(world, one, "Succeeded");
    }
    let row = "POST /virtualMachineScaleSets/{}/rollingUpgrades/cancel";
    let ms = world.durations.take(row, &mut world.dice);
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Act,
        work: Work::Act(Act::Instances {
            keys: Vec::new(),
            deed: Deed::Restart,
        }),
        ms,
        shared: true,
    };
    let id = world.begin(call, begin)?;
    Ok(world.following(call, &id, Reply::empty(202)))
}
