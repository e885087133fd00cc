//! Leases: a worker's right to one attempt, granted and ended by commands only.
//!
//! The token is the sequence of the grant. Every report carries it; a report under a
//! lease that is over changes nothing.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Effect, Ledger, Rejected, batch, run};
use crate::ids::{RunId, TaskId, Token};
use crate::names::{TeamName, WorkerName};
use crate::principal::Principal;
use crate::priority::Band;
use crate::task::{
    ATTEMPTS_MAX, Attempt, ERRORED_ATTEMPTS_MAX, Ending, LeaseClass, Outcome, Report, StepPhase,
    Task, TaskOwner, TaskPhase,
};

/// Wait before the second attempt after an error; doubles with each further error.
const ERROR_BACKOFF: Duration = Duration::from_millis(500);

/// A live lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The task.
    pub task: TaskId,
    /// Who holds it.
    pub worker: WorkerName,
    /// Which start of that worker.
    pub incarnation: u64,
    /// Whose class decides what the holder may do without a quorum.
    pub class: LeaseClass,
}

/// Leases a ready task.
pub(super) fn grant(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    worker: WorkerName,
    incarnation: u64,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    if ledger
        .workers
        .get(&worker)
        .is_none_or(|newest| *newest != incarnation)
    {
        return Err(Rejected::WrongState(format!(
            "incarnation {incarnation} of worker `{worker}` is not its newest"
        )));
    }
    let task = ledger.tasks.get(&id).ok_or_else(|| Rejected::NotFound {
        kind: "task".into(),
        name: id.to_string(),
    })?;
    match task.phase {
        TaskPhase::Ready { not_before } if not_before <= cx.now => {}
        TaskPhase::Ready { .. } => {
            return Err(Rejected::WrongState(format!(
                "task {id} waits after an error"
            )));
        }
        TaskPhase::Leased { token } => {
            return Err(Rejected::WrongState(format!(
                "task {id} is leased under {token}"
            )));
        }
        TaskPhase::Ended { .. } => {
            return Err(Rejected::WrongState(format!("task {id} is over")));
        }
    }
    check_quota(ledger, task)?;
    check_group(ledger, task)?;
    let class = task.kind.class();
    let task = ledger.tasks.get_mut(&id).expect("found above");
    // Ready => Leased
    task.phase = TaskPhase::Leased { token: cx.seq };
    task.attempts.push(Attempt {
        token: cx.seq,
        worker: worker.clone(),
        incarnation,
        granted_at: cx.now,
        ended: None,
        errored: false,
    });
    let owner = task.owner.clone();
    ledger.leases.insert(
        cx.seq,
        Lease {
            task: id,
            worker,
            incarnation,
            class,
        },
    );
    touch(ledger, cx, &owner, effects);
    effects.push(Effect::LeaseGranted { token: cx.seq });
    Ok(Answer::Lease(cx.seq))
}

/// Whether the task's team may hold one lease more.
fn check_quota(ledger: &Ledger, task: &Task) -> Result<(), Rejected> {
    let quota = ledger
        .teams
        .get(&task.team)
        .and_then(|team| team.spec.quota);
    let Some(quota) = quota.filter(|_| Band::of(task).counts()) else {
        return Ok(());
    };
    let held = ledger.index.usage(&task.team).counted();
    if held >= quota.limit() {
        return Err(Rejected::Exhausted(format!(
            "team `{}` holds {held} slots; its quota is {} and {} borrowed",
            task.team, quota.slots, quota.borrow
        )));
    }
    Ok(())
}

/// Whether there is room in the concurrency group of the task's run.
fn check_group(ledger: &Ledger, task: &Task) -> Result<(), Rejected> {
    let TaskOwner::Run(run) = task.owner else {
        return Ok(());
    };
    if ledger.index.admitted(run) {
        return Ok(());
    }
    let group = ledger.index.group_of(run).map(|key| key.group.as_str());
    Err(Rejected::WrongState(format!(
        "run {run} waits for the concurrency group `{}`",
        group.unwrap_or_default()
    )))
}

impl Ledger {
    /// Teams that hold more than their quota allowed when their newest lease was granted. Always
    /// empty: an invariant for tests and simulations.
    pub fn quota_violations(&self) -> Vec<TeamName> {
        let teams = self.teams.iter();
        teams
            .filter(|(name, team)| {
                let Some(quota) = team.spec.quota else {
                    return false;
                };
                // A quota that was lowered takes nothing away; it only binds what comes after.
                let bound = self
                    .index
                    .newest_counted(name)
                    .is_some_and(|newest| Some(newest) > team.quota_since);
                bound && self.index.usage(name).counted() > quota.limit()
            })
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// Ends a lease because its holder was silent.
pub(super) fn expire(
    ledger: &mut Ledger,
    cx: &Context,
    token: Token,
    reason: &str,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let lease = ledger
        .leases
        .get(&token)
        .cloned()
        .ok_or(Rejected::StaleToken { token })?;
    end(ledger, cx, token, reason);
    effects.push(Effect::LeaseEnded {
        token,
        worker: lease.worker,
        incarnation: lease.incarnation,
    });
    requeue_or_give_up(ledger, cx, lease.task, reason, effects);
    Ok(Answer::Done)
}

/// A worker started anew: what its earlier starts held is free again.
pub(super) fn begin_incarnation(
    ledger: &mut Ledger,
    cx: &Context,
    worker: WorkerName,
    incarnation: u64,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    if ledger.workers.get(&worker) == Some(&incarnation) {
        return Ok(Answer::Unchanged);
    }
    let old = ledger.index.leases_of_all(&worker);
    ledger.workers.insert(worker, incarnation);
    for token in old {
        expire(ledger, cx, token, "the worker started anew", effects)?;
    }
    Ok(Answer::Done)
}

/// Takes a worker's report, if its lease still lives.
pub(super) fn report(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    token: Token,
    report: Report,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let lease = ledger
        .leases
        .get(&token)
        .cloned()
        .ok_or(Rejected::StaleToken { token })?;
    if who.name != lease.worker.as_str() {
        return Err(Rejected::StaleToken { token });
    }
    match report {
        Report::StepStarted { step } => step_started(ledger, cx, token, lease.task, step, effects),
        Report::StepFinished {
            step,
            layer,
            cached,
            took_ms,
        } => {
            let phase = StepPhase::Done {
                token,
                layer: Box::new(layer),
                cached,
                took_ms,
            };
            step_finished(ledger, cx, lease.task, step, phase, effects)
        }
        Report::Finished(outcome) => {
            finished(ledger, cx, token, lease.task, outcome, effects);
            Ok(Answer::Done)
        }
    }
}

fn step_started(
    ledger: &mut Ledger,
    cx: &Context,
    token: Token,
    id: TaskId,
    step: u16,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let task = ledger.tasks.get_mut(&id).expect("a live lease has a task");
    let Some(record) = task.steps.get_mut(usize::from(step)) else {
        return Err(Rejected::NotFound {
            kind: "step".into(),
            name: step.to_string(),
        });
    };
    match record.phase {
        // Pending => Running. A finished step is never begun again.
        StepPhase::Pending | StepPhase::Running { .. } => {
            record.phase = StepPhase::Running {
                token,
                since: cx.now,
            };
        }
        StepPhase::Done { .. } => {
            return Err(Rejected::WrongState(format!(
                "step {step} of task {id} is finished"
            )));
        }
    }
    let owner = task.owner.clone();
    touch(ledger, cx, &owner, effects);
    Ok(Answer::Done)
}

fn step_finished(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    step: u16,
    phase: StepPhase,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let task = ledger.tasks.get_mut(&id).expect("a live lease has a task");
    let next = task.finished_layers().count();
    if usize::from(step) != next || next >= task.steps.len() {
        return Err(Rejected::WrongState(format!(
            "step {step} of task {id} cannot finish now, step {next} is next"
        )));
    }
    if let StepPhase::Done { layer, .. } = &phase
        && !ledger.layers.contains(&layer.key)
    {
        ledger.layers.insert(layer.key, (**layer).clone());
    }
    // Running => Done
    task.steps[usize::from(step)].phase = phase;
    let owner = task.owner.clone();
    touch(ledger, cx, &owner, effects);
    Ok(Answer::Done)
}

fn finished(
    ledger: &mut Ledger,
    cx: &Context,
    token: Token,
    id: TaskId,
    outcome: Outcome,
    effects: &mut Vec<Effect>,
) {
    match outcome {
        Outcome::Released => {
            end(ledger, cx, token, "given back by the worker");
            requeue_or_give_up(ledger, cx, id, "the worker gave it back", effects);
        }
        Outcome::Errored { reason } => {
            end(ledger, cx, token, &reason);
            let task = ledger.tasks.get_mut(&id).expect("a live lease has a task");
            if let Some(attempt) = task.attempts.last_mut() {
                attempt.errored = true;
            }
            requeue_or_give_up(ledger, cx, id, &reason, effects);
        }
        Outcome::Succeeded(output) => {
            end(ledger, cx, token, "succeeded");
            let owner = close(ledger, cx, id, Ending::Succeeded, None);
            match owner {
                TaskOwner::Run(run) => run::advance(ledger, cx, run, id, *output, effects),
                TaskOwner::Rollout(rollout) => {
                    batch::batch_done(ledger, cx, rollout, id, *output, effects);
                }
                TaskOwner::Fleet(fleet) => batch::repair_done(ledger, &fleet, id, effects),
            }
        }
        Outcome::Failed { reason, details } => {
            end(ledger, cx, token, &reason);
            give_up(ledger, cx, id, Ending::Failed, reason, details, effects);
        }
        Outcome::Skipped { reason } => {
            end(ledger, cx, token, &reason);
            give_up(ledger, cx, id, Ending::Skipped, reason, Vec::new(), effects);
        }
    }
    effects.push(Effect::TasksChanged);
}

/// Takes the lease away and notes on the attempt how it ended.
fn end(ledger: &mut Ledger, cx: &Context, token: Token, how: &str) {
    let Some(lease) = ledger.leases.remove(&token) else {
        return;
    };
    let Some(task) = ledger.tasks.get_mut(&lease.task) else {
        return;
    };
    if let Some(attempt) = task
        .attempts
        .iter_mut()
        .find(|attempt| attempt.token == token)
    {
        attempt.ended = Some((cx.now, how.to_owned()));
    }
    for step in &mut task.steps {
        if matches!(step.phase, StepPhase::Running { token: running, .. } if running == token) {
            // Running => Pending: restarts from its parent layer under a higher token.
            step.phase = StepPhase::Pending;
        }
    }
}

/// Leased => Ready, or Ended after too many attempts.
fn requeue_or_give_up(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    reason: &str,
    effects: &mut Vec<Effect>,
) {
    let task = ledger.tasks.get_mut(&id).expect("a live lease has a task");
    let errored = task
        .attempts
        .iter()
        .filter(|attempt| attempt.errored)
        .count();
    if errored >= ERRORED_ATTEMPTS_MAX || task.attempts.len() >= ATTEMPTS_MAX {
        let reason = format!("gave up after {} attempts: {reason}", task.attempts.len());
        give_up(ledger, cx, id, Ending::Errored, reason, Vec::new(), effects);
        return;
    }
    let last_errored = task.attempts.last().is_some_and(|attempt| attempt.errored);
    let wait = if last_errored {
        ERROR_BACKOFF * 2_u32.pow(u32::try_from(errored - 1).unwrap_or(0))
    } else {
        Duration::ZERO
    };
    task.phase = TaskPhase::Ready {
        not_before: cx.now + wait,
    };
    let owner = task.owner.clone();
    touch(ledger, cx, &owner, effects);
    effects.push(Effect::TasksChanged);
}

fn give_up(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    ending: Ending,
    reason: String,
    details: Vec<String>,
    effects: &mut Vec<Effect>,
) {
    match close(ledger, cx, id, ending, Some(reason.clone())) {
        TaskOwner::Run(run) => run::conclude(ledger, cx, run, ending, reason, details, effects),
        TaskOwner::Rollout(rollout) => {
            batch::batch_failed(ledger, cx, rollout, id, reason, effects);
        }
        TaskOwner::Fleet(fleet) => batch::repair_done(ledger, &fleet, id, effects),
    }
}

fn close(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    ending: Ending,
    reason: Option<String>,
) -> TaskOwner {
    let task = ledger.tasks.get_mut(&id).expect("a live lease has a task");
    // Leased | Ready => Ended
    task.phase = TaskPhase::Ended { ending };
    task.ended_at = Some(cx.now);
    task.reason = reason;
    task.owner.clone()
}

/// Ends a task that its owner no longer wants, and the lease with it.
pub(super) fn abandon(
    ledger: &mut Ledger,
    cx: &Context,
    id: TaskId,
    reason: &str,
    effects: &mut Vec<Effect>,
) {
    let Some(task) = ledger.tasks.get(&id) else {
        return;
    };
    if task.ended() {
        return;
    }
    if let Some(token) = task.token()
        && let Some(lease) = ledger.leases.get(&token).cloned()
    {
        end(ledger, cx, token, reason);
        effects.push(Effect::LeaseEnded {
            token,
            worker: lease.worker,
            incarnation: lease.incarnation,
        });
    }
    close(ledger, cx, id, Ending::Cancelled, Some(reason.to_owned()));
    effects.push(Effect::TasksChanged);
}

/// The owner changed with its task: watchers compare the number.
fn touch(ledger: &mut Ledger, cx: &Context, owner: &TaskOwner, effects: &mut Vec<Effect>) {
    match owner {
        TaskOwner::Run(run) => touch_run(ledger, cx, *run, effects),
        TaskOwner::Rollout(id) => {
            let mut run = None;
            if let Some(rollout) = ledger.rollouts.get_mut(id) {
                rollout.changed = cx.seq;
                run = rollout.run;
            }
            if let Some(run) = run {
                touch_run(ledger, cx, run, effects);
            }
            effects.push(Effect::RolloutChanged(*id));
        }
        TaskOwner::Fleet(name) => {
            if let Some(fleet) = ledger.fleets.get_mut(name) {
                fleet.changed = cx.seq;
            }
            effects.push(Effect::FleetChanged(name.clone()));
        }
    }
}

fn touch_run(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) {
    if let Some(run) = ledger.runs.get_mut(&id) {
        run.changed = cx.seq;
    }
    effects.push(Effect::RunChanged(id));
}

/// Adds a task that is ready at once.
pub(super) fn add_task(ledger: &mut Ledger, task: Task, effects: &mut Vec<Effect>) {
    ledger.tasks.insert(task.id, task);
    effects.push(Effect::TasksChanged);
}
