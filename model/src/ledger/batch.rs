//! Batches of a rollout, and repairs: begun by the leader, carried out under a lease, judged.
//!
//! ```text
//! Running -> Soaking -> Passed
//!      \_______\______-> Failed
//! ```
//!
//! The rules that must hold whoever asks stand here: the generation, one open batch, and one
//! budget of instances out of service that rollouts and repairs share.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use super::rollout::{changed, fail, finish};
use super::{
    Answer, Batch, BatchKind, BatchPhase, BeginBatch, Context, Effect, FleetRecord, Ledger,
    Rejected, Rollout, RolloutPhase, lease,
};
use crate::fleet::{GateOutcome, GateReading};
use crate::ids::{RolloutId, TaskId};
use crate::names::{FleetName, InstanceName};
use crate::priority::{BATCH_PRIORITY, ROLLBACK_PRIORITY};
use crate::rollout::instance_names;
use crate::task::{BatchAction, BatchOrder, Output, Task, TaskKind, TaskOwner, TaskPhase};

/// What the leader says of a batch that soaked.
pub(super) struct Verdict {
    pub(super) open: bool,
    pub(super) reason: String,
    pub(super) readings: Vec<GateReading>,
}

/// Begins a batch that the planner wants, if the rules allow it now.
pub(super) fn begin_batch(
    ledger: &mut Ledger,
    cx: &Context,
    begin: BeginBatch,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let name = begin.fleet.clone();
    let not_found = || Rejected::NotFound {
        kind: "fleet".into(),
        name: name.to_string(),
    };
    let fleet = ledger.fleets.get(&name).ok_or_else(not_found)?;
    if fleet.generation != begin.generation {
        return Err(Rejected::WrongState(format!(
            "fleet `{name}` is at generation {}, the batch was decided for {}",
            fleet.generation, begin.generation
        )));
    }
    check_instances(ledger, fleet, &begin)?;
    check_budget(ledger, fleet, &begin)?;
    let team = fleet.spec.team.clone();
    let task = TaskId {
        seq: cx.seq,
        ordinal: 0,
    };
    let (owner, batch, priority) = match begin.rollout {
        Some(id) => {
            let place = open_batch(ledger, cx, id, &begin, task)?;
            let rolling_back = ledger
                .rollouts
                .get(&id)
                .is_some_and(|rollout| rollout.phase == RolloutPhase::RollingBack);
            effects.push(Effect::RolloutChanged(id));
            let priority = if rolling_back {
                ROLLBACK_PRIORITY
            } else {
                BATCH_PRIORITY
            };
            (TaskOwner::Rollout(id), Some(place), priority)
        }
        None => {
            check_repair(fleet, &begin)?;
            let fleet = ledger.fleets.get_mut(&name).expect("found above");
            fleet.repairs.push(task);
            fleet.changed = cx.seq;
            effects.push(Effect::FleetChanged(name.clone()));
            (TaskOwner::Fleet(name.clone()), None, BATCH_PRIORITY)
        }
    };
    let order = BatchOrder {
        fleet: name,
        generation: begin.generation,
        instances: begin.instances,
        action: begin.action,
        batch,
    };
    let record = Task {
        id: task,
        owner,
        team,
        kind: TaskKind::Batch(order),
        phase: TaskPhase::Ready { not_before: cx.now },
        created_at: cx.now,
        ended_at: None,
        priority,
        attempts: Vec::new(),
        steps: Vec::new(),
        reason: None,
    };
    lease::add_task(ledger, record, effects);
    Ok(Answer::Task(task))
}

fn check_instances(
    ledger: &Ledger,
    fleet: &FleetRecord,
    begin: &BeginBatch,
) -> Result<(), Rejected> {
    let known: BTreeSet<InstanceName> = instance_names(&fleet.spec).collect();
    if begin.instances.is_empty() {
        return Err(Rejected::WrongState("a batch needs an instance".into()));
    }
    let busy = in_flight(ledger, fleet);
    for instance in &begin.instances {
        if !known.contains(instance) {
            return Err(Rejected::NotFound {
                kind: "instance".into(),
                name: instance.to_string(),
            });
        }
        if busy.contains(instance) {
            return Err(Rejected::WrongState(format!(
                "instance `{instance}` is in a batch already"
            )));
        }
    }
    Ok(())
}

/// Instances in open batches and repairs of the fleet. A soaking batch is not in flight:
/// its instances serve.
fn in_flight(ledger: &Ledger, fleet: &FleetRecord) -> BTreeSet<InstanceName> {
    let batch = fleet
        .active
        .and_then(|id| ledger.rollouts.get(&id))
        .and_then(Rollout::open_batch)
        .filter(|batch| batch.phase == BatchPhase::Running)
        .map(|batch| batch.instances.clone())
        .unwrap_or_default();
    let repairs = fleet
        .repairs
        .iter()
        .filter_map(|task| match &ledger.tasks.get(task)?.kind {
            TaskKind::Batch(order) => Some(order.instances.clone()),
            _ => None,
        });
    batch.into_iter().chain(repairs.flatten()).collect()
}

/// One budget for all who take instances out of service.
fn check_budget(ledger: &Ledger, fleet: &FleetRecord, begin: &BeginBatch) -> Result<(), Rejected> {
    let Some(total) = NonZeroU32::new(fleet.total()) else {
        return Err(Rejected::WrongState(format!(
            "fleet `{}` has no instances",
            begin.fleet
        )));
    };
    let limit = fleet.strategy.max_unavailable.of(total);
    let mut out: BTreeSet<InstanceName> = begin.unavailable.iter().cloned().collect();
    // What is out of service already costs nothing; it is replaced first.
    let taken = begin
        .instances
        .iter()
        .filter(|instance| !out.contains(*instance))
        .count();
    out.extend(in_flight(ledger, fleet));
    out.extend(begin.instances.iter().cloned());
    let count = u32::try_from(out.len()).unwrap_or(u32::MAX);
    if taken > 0 && count > limit {
        return Err(Rejected::Forbidden(format!(
            "{count} instances of fleet `{}` would be out of service, at most {limit} may be",
            begin.fleet
        )));
    }
    Ok(())
}

fn check_repair(fleet: &FleetRecord, begin: &BeginBatch) -> Result<(), Rejected> {
    match &begin.action {
        BatchAction::Restart => Ok(()),
        BatchAction::Deploy(version) if fleet.active.is_none() => {
            if fleet.good.as_ref() == Some(version) {
                Ok(())
            } else {
                Err(Rejected::Forbidden(format!(
                    "a repair brings the good version of fleet `{}`, not {version}",
                    begin.fleet
                )))
            }
        }
        BatchAction::Deploy(_) => Err(Rejected::WrongState(format!(
            "fleet `{}` has an open rollout, which repairs it",
            begin.fleet
        ))),
    }
}

/// Notes the batch on its rollout. Planned => Canary for the first.
fn open_batch(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    begin: &BeginBatch,
    task: TaskId,
) -> Result<u32, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "open rollout".into(),
        name: id.to_string(),
    };
    let rollout = ledger.rollouts.get_mut(&id).ok_or_else(not_found)?;
    if rollout.open_batch().is_some() {
        return Err(Rejected::WrongState(format!(
            "rollout {id} has an open batch"
        )));
    }
    let BatchAction::Deploy(version) = &begin.action else {
        return Err(Rejected::WrongState(
            "a rollout's batch brings a version".into(),
        ));
    };
    if rollout.wanted() != Some(version) {
        return Err(Rejected::Forbidden(format!(
            "rollout {id} does not bring {version} now"
        )));
    }
    let kind = match rollout.phase {
        RolloutPhase::Planned => {
            rollout.phase = RolloutPhase::Canary;
            BatchKind::Canary
        }
        RolloutPhase::Rolling => BatchKind::Rolling,
        RolloutPhase::RollingBack => BatchKind::Rollback,
        phase => {
            return Err(Rejected::WrongState(
                format!("rollout {id} is {phase:?}").to_lowercase(),
            ));
        }
    };
    rollout.batches.push(Batch {
        kind,
        instances: begin.instances.clone(),
        version: version.clone(),
        task,
        phase: BatchPhase::Running,
        began_at: cx.now,
        readings: Vec::new(),
    });
    rollout.changed = cx.seq;
    Ok(u32::try_from(rollout.batches.len() - 1).unwrap_or(u32::MAX))
}

/// A worker finished a batch: its instances serve, or some do not.
pub(super) fn batch_done(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    task: TaskId,
    output: Output,
    effects: &mut Vec<Effect>,
) {
    let Output::Batch(output) = output else {
        batch_failed(
            ledger,
            cx,
            id,
            task,
            "the batch brought a foreign result".into(),
            effects,
        );
        return;
    };
    let Some(rollout) = ledger.rollouts.get_mut(&id) else {
        return;
    };
    for instance in &output.instances {
        // The first batch that touched it knows what it ran before.
        rollout
            .before
            .entry(instance.name.clone())
            .or_insert_with(|| instance.before.clone());
    }
    let shut = output
        .readings
        .iter()
        .find(|reading| reading.outcome == GateOutcome::Shut);
    let bad = output.instances.iter().find(|instance| !instance.good);
    let failure = match (shut, bad) {
        (Some(shut), _) => Some(format!("gate shut: {}", shut.measured)),
        (None, Some(bad)) => Some(format!("instance {}: {}", bad.name, bad.note)),
        (None, None) => None,
    };
    let Some(batch) = rollout.batches.iter_mut().find(|batch| batch.task == task) else {
        return;
    };
    batch.readings = output.readings;
    if let Some(reason) = failure {
        batch_failed(ledger, cx, id, task, reason, effects);
        return;
    }
    // Running => Soaking. Going back does not soak, but it too is over only when it was seen.
    batch.phase = BatchPhase::Soaking { since: cx.now };
    rollout.changed = cx.seq;
    changed(ledger, id, effects);
}

/// A batch did not end well: back, or stand still.
pub(super) fn batch_failed(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    task: TaskId,
    reason: String,
    effects: &mut Vec<Effect>,
) {
    let Some(rollout) = ledger.rollouts.get_mut(&id) else {
        return;
    };
    let Some(batch) = rollout.batches.iter_mut().find(|batch| batch.task == task) else {
        return;
    };
    batch.phase = BatchPhase::Failed {
        reason: reason.clone(),
    };
    rollout.changed = cx.seq;
    match rollout.phase {
        // Going back failed too: what is left is named.
        RolloutPhase::RollingBack => {
            let debt = batch
                .instances
                .iter()
                .map(|name| format!("{name}: {reason}"))
                .collect();
            finish(ledger, cx, id, RolloutPhase::Failed, debt, effects);
        }
        _ => fail(ledger, cx, id, reason, effects),
    }
}

/// The leader's verdict on a batch that soaked.
pub(super) fn judge(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    place: u32,
    verdict: Verdict,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "open rollout".into(),
        name: id.to_string(),
    };
    let rollout = ledger.rollouts.get_mut(&id).ok_or_else(not_found)?;
    let soak = rollout.strategy.soak.duration();
    let Some(batch) = rollout
        .batches
        .get_mut(usize::try_from(place).unwrap_or(usize::MAX))
    else {
        return Err(Rejected::NotFound {
            kind: "batch".into(),
            name: place.to_string(),
        });
    };
    let BatchPhase::Soaking { since } = batch.phase else {
        return Err(Rejected::WrongState(format!(
            "batch {place} of rollout {id} does not soak"
        )));
    };
    let soak = match batch.kind {
        BatchKind::Rollback => Duration::ZERO,
        BatchKind::Canary | BatchKind::Rolling => soak,
    };
    if verdict.open && cx.now.since(since) < soak {
        return Err(Rejected::WrongState(format!(
            "batch {place} of rollout {id} still soaks"
        )));
    }
    if verdict.open
        && verdict
            .readings
            .iter()
            .any(|r| r.outcome != GateOutcome::Open)
    {
        return Err(Rejected::Forbidden(format!(
            "a gate of rollout {id} is not open"
        )));
    }
    batch.readings = verdict.readings;
    rollout.changed = cx.seq;
    if verdict.open {
        // Soaking => Passed; Canary => Rolling
        batch.phase = BatchPhase::Passed;
        if rollout.phase == RolloutPhase::Canary {
            rollout.phase = RolloutPhase::Rolling;
        }
        changed(ledger, id, effects);
    } else {
        let task = batch.task;
        batch_failed(ledger, cx, id, task, verdict.reason, effects);
    }
    Ok(Answer::Done)
}

/// A repair is over, well or not; the next look decides what follows.
pub(super) fn repair_done(
    ledger: &mut Ledger,
    name: &FleetName,
    task: TaskId,
    effects: &mut Vec<Effect>,
) {
    if let Some(fleet) = ledger.fleets.get_mut(name) {
        fleet.repairs.retain(|repair| *repair != task);
    }
    ledger.tasks.remove(&task);
    effects.push(Effect::FleetChanged(name.clone()));
}
