//! Rollouts: a fleet moves to a version batch by batch, or goes back.
//!
//! ```text
//! Planned -> Canary -> Rolling -> Succeeded
//!                \________\____-> RollingBack -> RolledBack
//!                 \________\____-> Paused (by policy; a person aborts)
//! ```
//! and `Failed` from anywhere when something is left that names its debt.
//!
//! The leader plans from what it observes; the rules that must hold whoever asks are
//! checked here: the generation, the bar, one open batch, and one budget of instances
//! out of service that rollouts and repairs share.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Answer, BeginBatch, Context, Effect, FleetRecord, Ledger, Rejected, Target, lease, run,
};
use crate::codec;
use crate::fleet::{GateOutcome, GateReading, VersionRef};
use crate::ids::{RolloutId, RunId, Seq, TaskId};
use crate::names::{FleetName, InstanceName, TeamName};
use crate::pipeline::{Gate, OnFailure, Strategy};
use crate::principal::{Principal, Verb};
use crate::rollout::instance_names;
use crate::task::{BatchAction, BatchOrder, Output, Task, TaskKind, TaskOwner, TaskPhase};
use crate::time::Timestamp;

/// Priority of a batch: before every run.
const BATCH_PRIORITY: u8 = 180;
/// Priority of a batch that goes back: before everything.
const ROLLBACK_PRIORITY: u8 = 220;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// No batch yet.
    Planned,
    /// The first batch is out or soaks.
    Canary,
    /// Batch by batch.
    Rolling,
    /// Stands still until a person decides.
    Paused,
    /// Everything replaced goes back.
    RollingBack,
    /// The whole fleet runs the version.
    Succeeded,
    /// The whole fleet runs what it ran before.
    RolledBack,
    /// Something is left, and named.
    Failed,
}

/// What somebody wants a fleet to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRequest {
    /// The run that published the version.
    pub run: Option<RunId>,
    /// To this version.
    pub version: VersionRef,
    /// How many instances at a time, and how long to wait.
    pub strategy: Strategy,
    /// What must be good after each batch.
    pub gates: Vec<Gate>,
    /// What happens when it is not.
    pub on_failure: OnFailure,
    /// Who asked.
    pub requested_by: String,
}

/// One move of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its identity.
    pub id: RolloutId,
    /// The fleet.
    pub fleet: FleetName,
    /// Whose it is.
    pub team: TeamName,
    /// The run that published the version.
    pub run: Option<RunId>,
    /// What the fleet ran before; none when it ran nothing.
    pub from: Option<VersionRef>,
    /// To this version.
    pub to: VersionRef,
    /// The fleet's generation for which batches are decided.
    pub generation: u64,
    /// How many instances at a time, and how long to wait.
    pub strategy: Strategy,
    /// What must be good after each batch.
    pub gates: Vec<Gate>,
    /// What happens when it is not.
    pub on_failure: OnFailure,
    /// Where it stands.
    pub phase: RolloutPhase,
    /// Its batches, oldest first. At most the last one is open.
    pub batches: Vec<Batch>,
    /// What each replaced instance ran before this rollout touched it.
    pub before: BTreeMap<InstanceName, Option<VersionRef>>,
    /// Who asked.
    pub requested_by: String,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it is where it is.
    pub reason: Option<String>,
    /// What could not be brought where it should be.
    pub debt: Vec<String>,
    /// Number of the last command that changed it.
    pub changed: Seq,
}

impl Rollout {
    /// The version that its batches bring now.
    pub fn wanted(&self) -> Option<&VersionRef> {
        match self.phase {
            RolloutPhase::RollingBack | RolloutPhase::RolledBack => self.from.as_ref(),
            _ => Some(&self.to),
        }
    }

    /// The batch that is out or soaks.
    pub fn open_batch(&self) -> Option<&Batch> {
        self.batches.last().filter(|batch| {
            matches!(
                batch.phase,
                BatchPhase::Running | BatchPhase::Soaking { .. }
            )
        })
    }
}

/// What a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchKind {
    /// The first.
    Canary,
    /// One of the others.
    Rolling,
    /// Back to the version before.
    Rollback,
}

/// Instances that are replaced together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// What it is for.
    pub kind: BatchKind,
    /// Every instance by name.
    pub instances: Vec<InstanceName>,
    /// What they get.
    pub version: VersionRef,
    /// The leased work.
    pub task: TaskId,
    /// Where it stands.
    pub phase: BatchPhase,
    /// When it began.
    pub began_at: Timestamp,
    /// Gates as they were read last.
    pub readings: Vec<GateReading>,
}

/// Where a batch stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchPhase {
    /// A worker replaces the instances.
    Running,
    /// Its instances are in rotation and watched.
    Soaking {
        /// Since then.
        since: Timestamp,
    },
    /// Good.
    Passed,
    /// Not good.
    Failed {
        /// Why.
        reason: String,
    },
}

/// A rollout with its tasks, as history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The rollout.
    pub rollout: Rollout,
    /// The tasks of its batches.
    pub tasks: Vec<Task>,
}

/// What the leader says of a batch that soaked.
pub(super) struct Verdict {
    pub(super) open: bool,
    pub(super) reason: String,
    pub(super) readings: Vec<GateReading>,
}

/// Begins a rollout, or keeps the request until the open one has ended.
pub(super) fn request(
    ledger: &mut Ledger,
    cx: &Context,
    name: &FleetName,
    wanted: RolloutRequest,
    effects: &mut Vec<Effect>,
) -> Result<Option<RolloutId>, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "fleet".into(),
        name: name.to_string(),
    };
    let fleet = ledger.fleets.get(name).ok_or_else(not_found)?;
    if fleet.barred.contains(&wanted.version) {
        return Err(Rejected::Forbidden(format!(
            "{} was rolled back on fleet `{name}` and is barred there",
            wanted.version
        )));
    }
    let newest = fleet
        .requested
        .as_ref()
        .and_then(|requested| requested.run)
        .max(fleet.target.as_ref().and_then(|target| target.run));
    if wanted.run.is_some() && wanted.run < newest {
        return Err(Rejected::Forbidden(format!(
            "{} is superseded: fleet `{name}` has a newer request",
            wanted.version
        )));
    }
    if fleet.active.is_some() {
        let fleet = ledger.fleets.get_mut(name).expect("found above");
        let replaced = fleet.requested.replace(wanted);
        fleet.changed = cx.seq;
        if let Some(run) = replaced.as_ref().and_then(|request| request.run) {
            let reason = Err("superseded by a newer version before its rollout began".into());
            run::rollout_ended(ledger, cx, run, &reason, effects);
        }
        return Ok(None);
    }
    Ok(Some(begin(ledger, cx, name, wanted, effects)))
}

fn begin(
    ledger: &mut Ledger,
    cx: &Context,
    name: &FleetName,
    wanted: RolloutRequest,
    effects: &mut Vec<Effect>,
) -> RolloutId {
    let id = RolloutId(cx.seq);
    let fleet = ledger
        .fleets
        .get_mut(name)
        .expect("the caller found the fleet");
    fleet.generation += 1;
    fleet.target = Some(Target {
        version: wanted.version.clone(),
        run: wanted.run,
    });
    fleet.active = Some(id);
    fleet.strategy = wanted.strategy.clone();
    fleet.changed = cx.seq;
    let rollout = Rollout {
        id,
        fleet: name.clone(),
        team: fleet.spec.team.clone(),
        run: wanted.run,
        from: fleet.good.clone(),
        to: wanted.version,
        generation: fleet.generation,
        strategy: wanted.strategy,
        gates: wanted.gates,
        on_failure: wanted.on_failure,
        phase: RolloutPhase::Planned,
        batches: Vec::new(),
        before: BTreeMap::new(),
        requested_by: wanted.requested_by,
        began_at: cx.now,
        ended_at: None,
        reason: None,
        debt: Vec::new(),
        changed: cx.seq,
    };
    if let Some(run) = wanted.run.and_then(|run| ledger.runs.get_mut(&run)) {
        run.rollouts.push(id);
        run.changed = cx.seq;
        effects.push(Effect::RunChanged(run.id));
    }
    ledger.rollouts.insert(id, rollout);
    effects.push(Effect::RolloutChanged(id));
    effects.push(Effect::FleetChanged(name.clone()));
    id
}

/// Starts a rollout at somebody's wish.
pub(super) fn begin_by_hand(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    name: &FleetName,
    version: Option<VersionRef>,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "fleet".into(),
        name: name.to_string(),
    };
    let fleet = ledger.fleets.get(name).ok_or_else(not_found)?;
    ledger.allow(who, Verb::Rollout, Some(&fleet.spec.team))?;
    let version = version
        .or_else(|| fleet.previous_good.clone())
        .ok_or_else(|| {
            Rejected::WrongState(format!(
                "fleet `{name}` has no earlier good version to go back to"
            ))
        })?;
    let known = ledger
        .versions
        .get(&version)
        .ok_or_else(|| Rejected::NotFound {
            kind: "image version".into(),
            name: version.to_string(),
        })?;
    if known.team != fleet.spec.team {
        return Err(Rejected::Forbidden(format!(
            "{version} belongs to team `{}`",
            known.team
        )));
    }
    if fleet.active.is_some() {
        return Err(Rejected::WrongState(format!(
            "fleet `{name}` has an open rollout: abort it first"
        )));
    }
    let wanted = RolloutRequest {
        run: None,
        version,
        strategy: fleet.strategy.clone(),
        gates: Vec::new(),
        on_failure: OnFailure::Rollback,
        requested_by: who.name.clone(),
    };
    Ok(Answer::Rollout(request(ledger, cx, name, wanted, effects)?))
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

/// Acts as the policy says when a rollout is not good.
fn fail(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    reason: String,
    effects: &mut Vec<Effect>,
) {
    let rollout = ledger
        .rollouts
        .get_mut(&id)
        .expect("the caller holds an open rollout");
    if rollout.on_failure == OnFailure::Pause {
        // Canary | Rolling => Paused
        rollout.phase = RolloutPhase::Paused;
        rollout.reason = Some(reason);
        changed(ledger, id, effects);
        return;
    }
    roll_back(ledger, cx, id, reason, effects);
}

/// Canary | Rolling | Paused => RollingBack, or Failed where nothing is to go back to.
fn roll_back(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    reason: String,
    effects: &mut Vec<Effect>,
) {
    let rollout = ledger
        .rollouts
        .get_mut(&id)
        .expect("the caller holds an open rollout");
    rollout.reason = Some(reason.clone());
    rollout.changed = cx.seq;
    let open = rollout.open_batch().map(|batch| batch.task);
    if open.is_some()
        && let Some(batch) = rollout.batches.last_mut()
    {
        batch.phase = BatchPhase::Failed { reason };
    }
    let (to, from, name) = (
        rollout.to.clone(),
        rollout.from.clone(),
        rollout.fleet.clone(),
    );
    let touched: Vec<InstanceName> = rollout
        .batches
        .iter()
        .flat_map(|batch| batch.instances.clone())
        .collect();
    let fleet = ledger
        .fleets
        .get_mut(&name)
        .expect("a rollout's fleet is not removed");
    fleet.barred.insert(to.clone());
    // The worker that still carries out the batch works for an old generation now.
    fleet.generation += 1;
    fleet.changed = cx.seq;
    let generation = fleet.generation;
    let run = fleet.target.as_ref().and_then(|target| target.run);
    fleet.target = from.clone().map(|version| Target { version, run });
    if let Some(task) = open {
        lease::abandon(ledger, cx, task, "the rollout goes back", effects);
    }
    if from.is_none() {
        let debt = touched
            .iter()
            .map(|name| format!("{name} was given {to}"))
            .collect();
        finish(ledger, cx, id, RolloutPhase::Failed, debt, effects);
        return;
    }
    let rollout = ledger
        .rollouts
        .get_mut(&id)
        .expect("the caller holds an open rollout");
    rollout.phase = RolloutPhase::RollingBack;
    rollout.generation = generation;
    changed(ledger, id, effects);
    effects.push(Effect::FleetChanged(name));
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

/// The leader saw that nothing is left to do.
pub(super) fn conclude(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    debt: Vec<String>,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "open rollout".into(),
        name: id.to_string(),
    };
    let rollout = ledger.rollouts.get(&id).ok_or_else(not_found)?;
    if rollout.open_batch().is_some() {
        return Err(Rejected::WrongState(format!(
            "rollout {id} has an open batch"
        )));
    }
    let phase = match rollout.phase {
        _ if !debt.is_empty() => RolloutPhase::Failed,
        // Every instance runs the version already when there was nothing to do.
        RolloutPhase::Planned | RolloutPhase::Rolling => RolloutPhase::Succeeded,
        RolloutPhase::RollingBack => RolloutPhase::RolledBack,
        phase => {
            return Err(Rejected::WrongState(
                format!("rollout {id} is {phase:?}").to_lowercase(),
            ));
        }
    };
    finish(ledger, cx, id, phase, debt, effects);
    Ok(Answer::Done)
}

/// Sends a rollout back at somebody's wish.
pub(super) fn abort(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    id: RolloutId,
    reason: String,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "open rollout".into(),
        name: id.to_string(),
    };
    let rollout = ledger.rollouts.get(&id).ok_or_else(not_found)?;
    ledger.allow(who, Verb::Rollout, Some(&rollout.team))?;
    if rollout.phase == RolloutPhase::RollingBack {
        return Ok(Answer::Unchanged);
    }
    roll_back(
        ledger,
        cx,
        id,
        format!("aborted by {}: {reason}", who.name),
        effects,
    );
    Ok(Answer::Done)
}

/// Ends the rollout, tells its run, and begins what was requested meanwhile.
fn finish(
    ledger: &mut Ledger,
    cx: &Context,
    id: RolloutId,
    phase: RolloutPhase,
    debt: Vec<String>,
    effects: &mut Vec<Effect>,
) {
    let rollout = ledger
        .rollouts
        .get_mut(&id)
        .expect("the caller holds an open rollout");
    rollout.phase = phase;
    rollout.ended_at = Some(cx.now);
    rollout.debt = debt;
    rollout.changed = cx.seq;
    let fleet = ledger
        .fleets
        .get_mut(&rollout.fleet)
        .expect("a rollout's fleet is not removed");
    fleet.active = None;
    fleet.last = Some((id, phase));
    fleet.changed = cx.seq;
    let why = rollout.reason.clone().unwrap_or_default();
    let result = match phase {
        RolloutPhase::Succeeded => {
            if fleet.good.as_ref() != Some(&rollout.to) {
                fleet.previous_good = fleet.good.take();
                fleet.good = Some(rollout.to.clone());
            }
            Ok(())
        }
        RolloutPhase::RolledBack => {
            let back = rollout
                .from
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            Err(format!(
                "fleet `{}` went back to {back}: {why}",
                rollout.fleet
            ))
        }
        _ => Err(format!(
            "rollout of {} on fleet `{}` failed: {why}; left: {}",
            rollout.to,
            rollout.fleet,
            if rollout.debt.is_empty() {
                "nothing".into()
            } else {
                rollout.debt.join(", ")
            }
        )),
    };
    let (run, name) = (rollout.run, rollout.fleet.clone());
    let next = fleet.requested.take();
    let record = ledger.rollout_record(id).expect("found above");
    ledger.rollouts.remove(&id);
    for task in &record.tasks {
        ledger.tasks.remove(&task.id);
    }
    ledger.push_history(cx, b'o', id.0, codec::encode(&record));
    effects.push(Effect::RolloutChanged(id));
    effects.push(Effect::FleetChanged(name.clone()));
    if let Some(run) = run {
        run::rollout_ended(ledger, cx, run, &result, effects);
    }
    if let Some(next) = next {
        begin(ledger, cx, &name, next, effects);
    }
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

fn changed(ledger: &Ledger, id: RolloutId, effects: &mut Vec<Effect>) {
    effects.push(Effect::RolloutChanged(id));
    if let Some(run) = ledger.rollouts.get(&id).and_then(|rollout| rollout.run) {
        effects.push(Effect::RunChanged(run));
    }
}
