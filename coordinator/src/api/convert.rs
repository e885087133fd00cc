//! From the ledger's records to the API's messages. Words of phases are the API's own: a rename
//! in the model must not change what scripts compare.

use oast_model::fleet::{GateOutcome, InstanceState, Observation};
use oast_model::ledger::{
    BatchKind, BatchPhase, FleetRecord, ImageRecord, ImageVersion, Ledger, RolloutPhase,
    RolloutRecord, RunPhase, RunRecord,
};
use oast_model::rollout::instance_names;
use oast_model::schedule::{self, Rules, Session};
use oast_model::task::{
    Attempt, BatchAction, Ending, Origin, Step, StepPhase, Task, TaskKind, TaskPhase,
};
use oast_model::time::Timestamp;
use oast_proto::v1;

/// With what the scheduler knows, for `waiting`.
pub(super) struct Scheduler<'a> {
    pub(super) ledger: &'a Ledger,
    pub(super) sessions: &'a [Session],
    pub(super) rules: Rules,
    pub(super) now: Timestamp,
}

pub(super) fn run(record: &RunRecord, scheduler: Option<&Scheduler<'_>>) -> v1::Run {
    let run = &record.run;
    let (branch, dirty) = match &run.origin {
        Origin::Git { branch, .. } => (branch.clone(), false),
        Origin::Upload { dirty, .. } => (String::new(), *dirty),
    };
    v1::Run {
        id: run.id.to_string(),
        seq: run.changed.as_u64(),
        team: run.team.to_string(),
        pipeline: run
            .pipeline
            .as_ref()
            .map(|pipeline| pipeline.name.to_string())
            .unwrap_or_default(),
        repository: optional(run.repository.as_ref()),
        branch,
        commit: run.origin.commit().unwrap_or_default().to_owned(),
        subject: run.subject.clone().unwrap_or_default(),
        author: run.author.clone().unwrap_or_default(),
        dirty,
        cause: run.cause.clone(),
        started_by: run.started_by.clone(),
        started_at_ms: run.started_at.as_millis(),
        ended_at_ms: run.ended_at.map_or(0, Timestamp::as_millis),
        phase: run_phase(run.phase).to_owned(),
        ended: run.ended(),
        reason: run.reason.clone().unwrap_or_default(),
        details: run.details.clone(),
        tasks: record
            .tasks
            .iter()
            .map(|record| task(record, scheduler))
            .collect(),
        version: optional(run.version.as_ref()),
        rollouts: run.rollouts.iter().map(ToString::to_string).collect(),
        priority: run.urgency().to_string(),
        retry_of: optional(run.retry_of.as_ref()),
    }
}

pub(super) fn run_phase(phase: RunPhase) -> &'static str {
    match phase {
        RunPhase::Source => "source",
        RunPhase::Baking => "baking",
        RunPhase::Testing => "testing",
        RunPhase::Publishing => "publishing",
        RunPhase::RollingOut => "rolling_out",
        RunPhase::Ended(ending) => self::ending(ending),
    }
}

fn ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Succeeded => "succeeded",
        Ending::Failed => "failed",
        Ending::Errored => "errored",
        Ending::Cancelled => "cancelled",
        Ending::Skipped => "skipped",
    }
}

fn task(task: &Task, scheduler: Option<&Scheduler<'_>>) -> v1::Task {
    let phase = match &task.phase {
        TaskPhase::Ready { .. } => "waiting",
        TaskPhase::Leased { .. } => "running",
        TaskPhase::Ended { ending } => self::ending(*ending),
    };
    let waiting = match (&task.phase, scheduler) {
        (TaskPhase::Ready { .. }, Some(with)) => {
            schedule::waiting(with.ledger, task, with.sessions, &with.rules, with.now).to_string()
        }
        _ => String::new(),
    };
    let name = match &task.kind {
        TaskKind::Publish(region) => optional(region.as_ref()),
        TaskKind::Batch(order) => {
            let what = match &order.action {
                BatchAction::Deploy(version) => version.to_string(),
                BatchAction::Restart => "restart".to_owned(),
            };
            format!("{what} on {} of {}", order.instances.len(), order.fleet)
        }
        TaskKind::Source | TaskKind::Bake | TaskKind::Test => String::new(),
    };
    v1::Task {
        id: task.id.to_string(),
        kind: task.kind.as_str().to_owned(),
        name,
        phase: phase.to_owned(),
        waiting,
        reason: task.reason.clone().unwrap_or_default(),
        created_at_ms: task.created_at.as_millis(),
        ended_at_ms: task.ended_at.map_or(0, Timestamp::as_millis),
        attempts: task.attempts.iter().map(attempt).collect(),
        steps: task.steps.iter().map(step).collect(),
    }
}

fn attempt(attempt: &Attempt) -> v1::Attempt {
    let ended = attempt.ended.as_ref();
    v1::Attempt {
        token: attempt.token.as_u64(),
        worker: attempt.worker.to_string(),
        granted_at_ms: attempt.granted_at.as_millis(),
        ended_at_ms: ended.map_or(0, |(at, _)| at.as_millis()),
        ended: ended.map(|(_, how)| how.clone()).unwrap_or_default(),
    }
}

fn step(step: &Step) -> v1::Step {
    let title = step.title.clone();
    match &step.phase {
        StepPhase::Pending => v1::Step {
            title,
            phase: "pending".to_owned(),
            ..v1::Step::default()
        },
        StepPhase::Running { token, since } => v1::Step {
            title,
            phase: "running".to_owned(),
            since_ms: since.as_millis(),
            token: token.as_u64(),
            ..v1::Step::default()
        },
        StepPhase::Done {
            token,
            layer,
            cached,
            took_ms,
        } => v1::Step {
            title,
            phase: "done".to_owned(),
            cached: *cached,
            took_ms: *took_ms,
            token: token.as_u64(),
            layer: layer.key.to_string(),
            ..v1::Step::default()
        },
    }
}

pub(super) fn image(
    record: &ImageRecord,
    versions: impl Iterator<Item = v1::ImageVersion>,
) -> v1::Image {
    v1::Image {
        name: record.name.to_string(),
        team: record.team.to_string(),
        channels: record
            .channels
            .iter()
            .map(|(channel, number)| (channel.to_string(), *number))
            .collect(),
        versions: versions.collect(),
        version_count: record.newest,
    }
}

/// Without packages.
pub(super) fn version(version: &ImageVersion, image: Option<&ImageRecord>) -> v1::ImageVersion {
    let channels = image.into_iter().flat_map(|image| &image.channels);
    v1::ImageVersion {
        version: version.version.to_string(),
        team: version.team.to_string(),
        base: version.image.base.clone(),
        arch: version.image.arch.as_str().to_owned(),
        digest: version.image.disk_digest.to_string(),
        disk_size: version.image.disk_size,
        layers: version
            .image
            .layers
            .iter()
            .map(ToString::to_string)
            .collect(),
        package_count: version.image.package_count,
        run: version.run.to_string(),
        commit: version.commit.clone().unwrap_or_default(),
        published_at_ms: version.published_at.as_millis(),
        regions: version.regions.iter().map(ToString::to_string).collect(),
        channels: channels
            .filter(|(_, number)| **number == version.version.number)
            .map(|(channel, _)| channel.to_string())
            .collect(),
        packages: Vec::new(),
        bills: version.image.bills.is_some(),
        provenance: version.image.provenance.is_some(),
    }
}

pub(super) fn fleet(
    fleet: &FleetRecord,
    seen: Option<&Observation>,
    note: Option<String>,
) -> v1::Fleet {
    let seen = seen.filter(|seen| seen.error.is_none());
    let failed = fleet.last.as_ref();
    v1::Fleet {
        name: fleet.spec.name.to_string(),
        team: fleet.spec.team.to_string(),
        provider: fleet.spec.provider.as_str().to_owned(),
        listen: fleet.spec.listen.to_string(),
        seq: fleet.changed.as_u64(),
        generation: fleet.generation,
        total: fleet.total(),
        target: optional(fleet.target.as_ref().map(|target| &target.version)),
        good: optional(fleet.good.as_ref()),
        previous_good: optional(fleet.previous_good.as_ref()),
        barred: fleet.barred.iter().map(ToString::to_string).collect(),
        active_rollout: optional(fleet.active.as_ref()),
        last_rollout: optional(failed.map(|(id, _)| id)),
        last_phase: failed
            .map(|(_, phase)| rollout_phase(*phase).to_owned())
            .unwrap_or_default(),
        observed: seen.is_some(),
        instances: seen.map(|seen| instances(fleet, seen)).unwrap_or_default(),
        note: note.unwrap_or_default(),
    }
}

/// What there should be, whether it exists or not, then what is there beyond it.
fn instances(fleet: &FleetRecord, seen: &Observation) -> Vec<v1::Instance> {
    let wanted: Vec<_> = instance_names(&fleet.spec).collect();
    let missing = |name: &oast_model::names::InstanceName| v1::Instance {
        name: name.to_string(),
        state: "missing".to_owned(),
        ..v1::Instance::default()
    };
    let due = wanted.iter().map(|name| match seen.instance(name) {
        Some(view) => instance(view),
        None => missing(name),
    });
    let extra = seen
        .instances
        .iter()
        .filter(|view| !wanted.contains(&view.name))
        .map(instance);
    due.chain(extra).collect()
}

fn instance(view: &oast_model::fleet::InstanceView) -> v1::Instance {
    let state = match view.state {
        InstanceState::Creating => "creating",
        InstanceState::Running => "running",
        InstanceState::Stopped => "stopped",
        InstanceState::Failed => "failed",
    };
    v1::Instance {
        name: view.name.to_string(),
        version: optional(view.version.as_ref()),
        state: state.to_owned(),
        healthy: view.healthy,
        in_rotation: view.in_rotation,
        direct: optional(view.direct.as_ref()),
        replaced: view.replaced,
        note: view.note.clone(),
    }
}

pub(super) fn rollout_phase(phase: RolloutPhase) -> &'static str {
    match phase {
        RolloutPhase::Planned => "planned",
        RolloutPhase::Canary => "canary",
        RolloutPhase::Rolling => "rolling",
        RolloutPhase::Paused => "paused",
        RolloutPhase::RollingBack => "rolling_back",
        RolloutPhase::Succeeded => "succeeded",
        RolloutPhase::RolledBack => "rolled_back",
        RolloutPhase::Failed => "failed",
    }
}

pub(super) fn rollout(record: &RolloutRecord) -> v1::Rollout {
    let rollout = &record.rollout;
    v1::Rollout {
        id: rollout.id.to_string(),
        fleet: rollout.fleet.to_string(),
        team: rollout.team.to_string(),
        run: optional(rollout.run.as_ref()),
        from: optional(rollout.from.as_ref()),
        to: rollout.to.to_string(),
        phase: rollout_phase(rollout.phase).to_owned(),
        ended: rollout.ended_at.is_some(),
        reason: rollout.reason.clone().unwrap_or_default(),
        debt: rollout.debt.clone(),
        batches: rollout
            .batches
            .iter()
            .map(|batch| self::batch(batch, record))
            .collect(),
        requested_by: rollout.requested_by.clone(),
        began_at_ms: rollout.began_at.as_millis(),
        ended_at_ms: rollout.ended_at.map_or(0, Timestamp::as_millis),
        seq: rollout.changed.as_u64(),
        generation: rollout.generation,
    }
}

fn batch(batch: &oast_model::ledger::Batch, record: &RolloutRecord) -> v1::Batch {
    let kind = match batch.kind {
        BatchKind::Canary => "canary",
        BatchKind::Rolling => "rolling",
        BatchKind::Rollback => "rollback",
    };
    let (phase, reason) = match &batch.phase {
        BatchPhase::Running => ("running", String::new()),
        BatchPhase::Soaking { .. } => ("soaking", String::new()),
        BatchPhase::Passed => ("passed", String::new()),
        BatchPhase::Failed { reason } => ("failed", reason.clone()),
    };
    let readings = batch.readings.iter().map(|reading| {
        let outcome = match reading.outcome {
            GateOutcome::Open => "open",
            GateOutcome::Unknown => "unknown",
            GateOutcome::Shut => "shut",
        };
        v1::GateReading {
            gate: u32::from(reading.gate),
            instance: optional(reading.instance.as_ref()),
            outcome: outcome.to_owned(),
            measured: reading.measured.clone(),
        }
    });
    let task = record.tasks.iter().find(|task| task.id == batch.task);
    v1::Batch {
        kind: kind.to_owned(),
        instances: batch.instances.iter().map(ToString::to_string).collect(),
        version: batch.version.to_string(),
        phase: phase.to_owned(),
        reason,
        began_at_ms: batch.began_at.as_millis(),
        readings: readings.collect(),
        attempts: task
            .map(|task| task.attempts.iter().map(attempt).collect())
            .unwrap_or_default(),
    }
}

fn optional(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}
