//! See the parent module.

use std::num::NonZeroU32;

use crate::fleet::{
    GateOutcome, GateReading, InstanceState, InstanceView, Observation, VersionRef,
};
use crate::ids::RolloutId;
use crate::ledger::{BatchKind, BatchPhase, BeginBatch, FleetRecord, Rollout, RolloutPhase};
use crate::names::InstanceName;
use crate::pipeline::Gate;
use crate::resource::Fleet;
use crate::task::BatchAction;
use crate::time::Timestamp;

/// What the planner may look at.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The fleet.
    pub fleet: &'a FleetRecord,
    /// Its open rollout.
    pub rollout: Option<&'a Rollout>,
    /// Instances of open repairs.
    pub in_repair: &'a [InstanceName],
    /// What a provider shows. Not older than the leader's term.
    pub seen: &'a Observation,
    /// The leader's clock.
    pub now: Timestamp,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Begin this batch.
    Begin(BeginBatch),
    /// Tell the ledger how a soaking batch is judged.
    Judge {
        /// The rollout.
        rollout: RolloutId,
        /// Its batch.
        batch: u32,
        /// Whether it may go on.
        open: bool,
        /// In one sentence.
        reason: String,
        /// What was measured.
        readings: Vec<GateReading>,
    },
    /// Nothing is left to do.
    Conclude(RolloutId),
    /// Nothing now; look again at that time, or when something changes.
    Wait {
        /// Why, as users read it.
        reason: String,
        /// When time alone makes a difference.
        until: Option<Timestamp>,
    },
    /// All is as it should be.
    Rest,
}

/// The names of a complete fleet's instances, set by set.
pub fn instance_names(fleet: &Fleet) -> impl Iterator<Item = InstanceName> + '_ {
    fleet.sets.iter().flat_map(|set| {
        (0..set.count).filter_map(move |number| {
            // A set's name is short enough by validation; a longer one has no instances.
            InstanceName::new(format!("{}-{number}", set.name)).ok()
        })
    })
}

/// Instances that are missing or do not serve.
pub fn unavailable(fleet: &Fleet, seen: &Observation) -> Vec<InstanceName> {
    instance_names(fleet)
        .filter(|name| !seen.instance(name).is_some_and(InstanceView::available))
        .collect()
}

/// Says what to do next for a fleet.
pub fn plan(situation: &Situation<'_>) -> Decision {
    if let Some(error) = &situation.seen.error {
        return wait(format!("the provider does not answer: {error}"));
    }
    match situation.rollout {
        Some(rollout) => plan_rollout(situation, rollout),
        None => plan_repair(situation),
    }
}

fn wait(reason: impl Into<String>) -> Decision {
    Decision::Wait {
        reason: reason.into(),
        until: None,
    }
}

fn plan_rollout(situation: &Situation<'_>, rollout: &Rollout) -> Decision {
    if rollout.phase == RolloutPhase::Paused {
        return wait("paused: abort it, or fix and push again");
    }
    if let Some(batch) = rollout.open_batch() {
        return match batch.phase {
            BatchPhase::Soaking { since } => judge(situation, rollout, since),
            _ => wait("a batch is being replaced"),
        };
    }
    let Some(wanted) = rollout.wanted() else {
        return wait("there is no version to go back to");
    };
    let names: Vec<InstanceName> = instance_names(&situation.fleet.spec).collect();
    let mut behind: Vec<&InstanceName> = names
        .iter()
        .filter(|name| !settled(situation.seen, name, wanted))
        .collect();
    if behind.is_empty() {
        return Decision::Conclude(rollout.id);
    }
    // What does not serve is replaced first: it costs nothing.
    behind.sort_by_key(|name| {
        situation
            .seen
            .instance(name)
            .is_some_and(InstanceView::available)
    });
    let Some(total) = NonZeroU32::new(u32::try_from(names.len()).unwrap_or(u32::MAX)) else {
        return Decision::Conclude(rollout.id);
    };
    let size = match rollout.phase {
        RolloutPhase::Planned => rollout.strategy.canary.of(total).max(1),
        _ => rollout.strategy.batch.of(total).max(1),
    };
    let budget = rollout.strategy.max_unavailable.of(total).max(1);
    let instances = choose(situation, &behind, size, budget);
    if instances.is_empty() {
        return wait(format!("{budget} instances are out of service already"));
    }
    let action = BatchAction::Deploy(wanted.clone());
    Decision::Begin(BeginBatch {
        fleet: rollout.fleet.clone(),
        generation: situation.fleet.generation,
        rollout: Some(rollout.id),
        instances,
        action,
        unavailable: unavailable(&situation.fleet.spec, situation.seen),
    })
}

/// Takes at most `size` instances, those in service only within `budget`.
fn choose(
    situation: &Situation<'_>,
    behind: &[&InstanceName],
    size: u32,
    budget: u32,
) -> Vec<InstanceName> {
    let out = unavailable(&situation.fleet.spec, situation.seen);
    // Whatever is in a repair counts for the ledger as if it did not serve.
    let repaired = situation.in_repair.iter();
    let taken = out.len() + repaired.filter(|name| !out.contains(name)).count();
    let mut free = usize::try_from(budget)
        .unwrap_or(usize::MAX)
        .saturating_sub(taken);
    let mut chosen = Vec::new();
    for name in behind {
        if chosen.len() >= usize::try_from(size).unwrap_or(usize::MAX) {
            break;
        }
        if situation.in_repair.contains(name) {
            continue;
        }
        if out.contains(name) {
            chosen.push((*name).clone());
        } else if free > 0 {
            free -= 1;
            chosen.push((*name).clone());
        }
    }
    chosen
}

/// The instance is well and runs what it should, and gets no connections.
fn kept_out(seen: &InstanceView, good: &VersionRef) -> bool {
    let well = seen.state == InstanceState::Running && seen.healthy;
    well && !seen.in_rotation && seen.version.as_ref() == Some(good)
}

/// The instance runs the version and serves.
fn settled(seen: &Observation, name: &InstanceName, wanted: &VersionRef) -> bool {
    seen.instance(name)
        .is_some_and(|instance| instance.version.as_ref() == Some(wanted) && instance.available())
}

fn judge(situation: &Situation<'_>, rollout: &Rollout, since: Timestamp) -> Decision {
    let place = u32::try_from(rollout.batches.len() - 1).unwrap_or(u32::MAX);
    let batch = rollout
        .batches
        .last()
        .expect("an open batch is the last one");
    // Only what was looked at for this batch after it ended counts: an older look may show
    // an instance in the middle of its replacement.
    if situation.seen.probed != Some((rollout.id, place)) {
        return wait("the batch's instances are not observed yet");
    }
    let readings = situation.seen.readings.clone();
    let verdict = |open: bool, reason: String| Decision::Judge {
        rollout: rollout.id,
        batch: place,
        open,
        reason,
        readings: readings.clone(),
    };
    if let Some(shut) = readings
        .iter()
        .find(|reading| reading.outcome == GateOutcome::Shut)
    {
        return verdict(false, format!("gate shut: {}", shut.measured));
    }
    for name in &batch.instances {
        match situation.seen.instance(name) {
            None => return verdict(false, format!("instance {name} is gone")),
            Some(seen) if seen.version.as_ref() != Some(&batch.version) => {
                return verdict(
                    false,
                    format!("instance {name} no longer runs {}", batch.version),
                );
            }
            Some(seen) if matches!(seen.state, InstanceState::Stopped | InstanceState::Failed) => {
                return verdict(false, format!("instance {name} stopped: {}", seen.note));
            }
            Some(seen) if !seen.healthy => {
                return verdict(false, format!("instance {name} became unhealthy"));
            }
            Some(_) => {}
        }
    }
    if batch.kind == BatchKind::Rollback {
        // The version before was good: it needs neither soak nor gates.
        return verdict(true, "back and healthy".into());
    }
    let end = since + rollout.strategy.soak.duration();
    if situation.now < end {
        return Decision::Wait {
            reason: format!("soaks until {end}"),
            until: Some(end),
        };
    }
    match unread(rollout, batch.instances.len(), &readings) {
        Some(reason) => wait(reason),
        None => verdict(true, "healthy through the soak, every gate open".into()),
    }
}

/// A gate without an Open reading for each instance keeps the batch waiting.
fn unread(rollout: &Rollout, instances: usize, readings: &[GateReading]) -> Option<String> {
    for (gate, place) in rollout.gates.iter().zip(0_u16..) {
        let open = readings
            .iter()
            .filter(|reading| reading.gate == place && reading.outcome == GateOutcome::Open);
        let needed = match gate {
            Gate::Http(_) => instances,
            Gate::Prometheus(_) => 1,
        };
        if open.count() < needed {
            return Some(format!("gate {place} is unknown"));
        }
    }
    None
}

/// Without a rollout: what is missing, stopped or kept out of service is brought back as it was, and then
/// what runs something else is brought to the good version.
fn plan_repair(situation: &Situation<'_>) -> Decision {
    let fleet = situation.fleet;
    let Some(good) = &fleet.good else {
        return Decision::Rest;
    };
    let lost = |name: &InstanceName| match situation.seen.instance(name) {
        None => Some(BatchAction::Deploy(good.clone())),
        Some(seen) if matches!(seen.state, InstanceState::Stopped | InstanceState::Failed) => {
            match seen.version.as_ref() {
                Some(version) if version == good => Some(BatchAction::Restart),
                _ => Some(BatchAction::Deploy(good.clone())),
            }
        }
        // A batch that was called off had drained it, or its call arrived after its end. Nobody else
        // would ever put it back.
        Some(seen) if kept_out(seen, good) => Some(BatchAction::Deploy(good.clone())),
        Some(_) => None,
    };
    let broken: Vec<(InstanceName, BatchAction)> = instance_names(&fleet.spec)
        .filter(|name| !situation.in_repair.contains(name))
        .filter_map(|name| lost(&name).map(|action| (name, action)))
        .collect();
    let Some((_, action)) = broken.first().cloned() else {
        return plan_return(situation, good);
    };
    let instances = broken
        .into_iter()
        .filter(|(_, other)| *other == action)
        .map(|(name, _)| name)
        .collect();
    repair(situation, instances, action)
}

/// Instances that run another version, within the budget, for they may serve: one whose set was smaller
/// while the others were rolled out, one that a failed rollout could not bring back, one that somebody
/// changed past the farm.
fn plan_return(situation: &Situation<'_>, good: &VersionRef) -> Decision {
    let fleet = situation.fleet;
    let names: Vec<InstanceName> = instance_names(&fleet.spec).collect();
    let foreign = |name: &&InstanceName| {
        let seen = situation.seen.instance(name);
        let other = |seen: &InstanceView| {
            let runs = seen.state == InstanceState::Running;
            runs && seen.version.as_ref().is_some_and(|runs| runs != good)
        };
        seen.is_some_and(other) && !situation.in_repair.contains(name)
    };
    let foreign: Vec<&InstanceName> = names.iter().filter(foreign).collect();
    let total = u32::try_from(names.len()).ok().and_then(NonZeroU32::new);
    let (Some(total), false) = (total, foreign.is_empty()) else {
        return Decision::Rest;
    };
    let size = fleet.strategy.batch.of(total).max(1);
    let budget = fleet.strategy.max_unavailable.of(total);
    let instances = choose(situation, &foreign, size, budget);
    if instances.is_empty() {
        return wait(format!("{budget} instances may be out of service"));
    }
    repair(situation, instances, BatchAction::Deploy(good.clone()))
}

fn repair(
    situation: &Situation<'_>,
    instances: Vec<InstanceName>,
    action: BatchAction,
) -> Decision {
    let fleet = situation.fleet;
    Decision::Begin(BeginBatch {
        fleet: fleet.spec.name.clone(),
        generation: fleet.generation,
        rollout: None,
        instances,
        action,
        unavailable: unavailable(&fleet.spec, situation.seen),
    })
}
