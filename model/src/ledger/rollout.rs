//! Rollouts: a fleet moves to a version batch by batch, or goes back.
//!
//! ```text
//! Planned -> Canary -> Rolling -> Succeeded
//!                \________\____-> RollingBack -> RolledBack
//!                 \________\____-> Paused (by policy; a person aborts)
//! ```
//! and `Failed` from anywhere when something is left that names its debt.
//!
//! The leader plans from what it observes. What a rollout is and how it begins and ends
//! stands here; its batches, and the rules that bound them, in [`super::batch`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Effect, Ledger, ROLLOUT, Rejected, Target, lease, run};
use crate::codec;
use crate::fleet::{GateReading, VersionRef};
use crate::ids::{RolloutId, RunId, Seq, TaskId};
use crate::names::{FleetName, InstanceName, TeamName};
use crate::pipeline::{Gate, OnFailure, Strategy};
use crate::principal::{Principal, Verb};
use crate::task::Task;
use crate::time::Timestamp;

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

/// Acts as the policy says when a rollout is not good.
pub(super) fn fail(
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
pub(super) fn finish(
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
    let team = record.rollout.team.clone();
    ledger.push_history(cx, ROLLOUT, id.0, &team, codec::encode(&record));
    effects.push(Effect::RolloutChanged(id));
    effects.push(Effect::FleetChanged(name.clone()));
    if let Some(run) = run {
        run::rollout_ended(ledger, cx, run, &result, effects);
    }
    if let Some(next) = next {
        begin(ledger, cx, &name, next, effects);
    }
}

pub(super) fn changed(ledger: &Ledger, id: RolloutId, effects: &mut Vec<Effect>) {
    effects.push(Effect::RolloutChanged(id));
    if let Some(run) = ledger.rollouts.get(&id).and_then(|rollout| rollout.run) {
        effects.push(Effect::RunChanged(run));
    }
}
