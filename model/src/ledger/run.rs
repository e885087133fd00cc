//! Runs: from a commit to a version, and on to the fleets.
//!
//! ```text
//! Source -> Baking -> [Testing] -> Publishing -> [RollingOut] -> Succeeded
//!    any of them -> Failed | Errored | Cancelled;  Source -> Skipped
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Answer, Context, CronState, Effect, GroupKey, Ledger, RUN, Rejected, RetryRun, RolloutRequest,
    SubmitRun, image, lease, rollout,
};
use crate::bake::BakedImage;
use crate::codec;
use crate::digest::Digest;
use crate::fleet::VersionRef;
use crate::ids::{RolloutId, RunId, Seq, TaskId};
use crate::names::{RepositoryName, TeamName};
use crate::pipeline::{Pipeline, Trigger};
use crate::principal::{Principal, Verb};
use crate::priority::Priority;
use crate::task::{
    Ending, Origin, Output, SourceOutput, Step, StepPhase, Task, TaskKind, TaskOwner, TaskPhase,
};
use crate::time::Timestamp;

/// Most open runs of one team.
pub const OPEN_RUNS_MAX: usize = 10_000;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPhase {
    /// The commit is fetched and the pipeline read.
    Source,
    /// The image is made.
    Baking,
    /// The image is tried.
    Testing,
    /// The image is copied to its regions.
    Publishing,
    /// The fleets get it.
    RollingOut,
    /// Over.
    Ended(Ending),
}

/// One execution of a pipeline revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its identity.
    pub id: RunId,
    /// Whose it is.
    pub team: TeamName,
    /// The repository it came from, when the farm knows one.
    pub repository: Option<RepositoryName>,
    /// Where its files come from.
    pub origin: Origin,
    /// The pipeline file in them.
    pub path: String,
    /// Why it was started.
    pub cause: String,
    /// Who started it.
    pub started_by: String,
    /// When.
    pub started_at: Timestamp,
    /// Values for the pipeline's inputs.
    pub inputs: BTreeMap<String, String>,
    /// How urgent whoever started it said it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// The finished run that this one takes up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// Where it stands.
    pub phase: RunPhase,
    /// The source tree, once stored.
    pub tree: Option<Digest>,
    /// The pipeline revision, once read.
    pub pipeline: Option<Pipeline>,
    /// First line of the commit message.
    pub subject: Option<String>,
    /// Who wrote the commit.
    pub author: Option<String>,
    /// Its tasks, oldest first.
    pub tasks: Vec<TaskId>,
    /// The image, once baked.
    pub baked: Option<BakedImage>,
    /// The version, once published.
    pub version: Option<VersionRef>,
    /// Its rollouts.
    pub rollouts: Vec<RolloutId>,
    /// Fleets that still have to end their rollout of this version.
    pub fleets_open: u32,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it ended as it did.
    pub reason: Option<String>,
    /// One line each: diagnostics, last output lines.
    pub details: Vec<String>,
    /// Number of the last command that changed it.
    pub changed: Seq,
}

/// A run with its tasks, as history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run.
    pub run: Run,
    /// Its tasks.
    pub tasks: Vec<Task>,
}

impl Run {
    /// Whether it is over.
    pub fn ended(&self) -> bool {
        matches!(self.phase, RunPhase::Ended(_))
    }

    /// How urgent it is: as whoever started it said, else as its pipeline says once that is read.
    pub fn urgency(&self) -> Priority {
        let pipeline = self.pipeline.as_ref();
        self.priority
            .or_else(|| pipeline.and_then(|pipeline| pipeline.priority))
            .unwrap_or_default()
    }
}

/// Starts a run for somebody.
pub(super) fn submit(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    submit: SubmitRun,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Run, Some(&submit.team))?;
    check_room(ledger, &submit.team)?;
    Ok(Answer::Run(start(ledger, cx, &who.name, submit, effects)))
}

/// Whether a team may have one open run more.
pub(super) fn check_room(ledger: &Ledger, team: &TeamName) -> Result<(), Rejected> {
    if !ledger.teams.contains(team) {
        return Err(Rejected::NotFound {
            kind: "team".into(),
            name: team.to_string(),
        });
    }
    if ledger.index.runs_of(team) >= OPEN_RUNS_MAX {
        return Err(Rejected::Exhausted(format!(
            "team `{team}` has {OPEN_RUNS_MAX} open runs: wait until some have ended"
        )));
    }
    Ok(())
}

/// Makes the run and its source task.
pub(super) fn start(
    ledger: &mut Ledger,
    cx: &Context,
    started_by: &str,
    submit: SubmitRun,
    effects: &mut Vec<Effect>,
) -> RunId {
    let id = open(ledger, cx, started_by, submit);
    add_task(ledger, cx, id, 0, TaskKind::Source, Vec::new(), effects);
    id
}

/// Makes a run that goes on where a finished one is taken up.
pub(super) fn start_again(
    ledger: &mut Ledger,
    cx: &Context,
    started_by: &str,
    retry: RetryRun,
    effects: &mut Vec<Effect>,
) -> RunId {
    let id = open(ledger, cx, started_by, retry.submit);
    let run = ledger.runs.get_mut(&id).expect("just made");
    run.retry_of = Some(retry.run);
    let Some(source) = retry.source else {
        add_task(ledger, cx, id, 0, TaskKind::Source, Vec::new(), effects);
        return id;
    };
    let mut steps = bake_steps(&source.pipeline);
    run.tree = Some(source.tree);
    run.subject = source.subject;
    run.author = source.author;
    run.pipeline = Some(source.pipeline);
    run.baked = retry.baked;
    if !supersede(ledger, cx, id, effects) {
        return id;
    }
    let baked = ledger.runs.get(&id).is_some_and(|run| run.baked.is_some());
    if baked {
        after_bake(ledger, cx, id, effects);
        return id;
    }
    for (step, done) in steps.iter_mut().zip(retry.steps) {
        if let StepPhase::Done {
            token,
            layer,
            took_ms,
            ..
        } = done.phase
        {
            if !ledger.layers.contains(&layer.key) {
                ledger.layers.insert(layer.key, (*layer).clone());
            }
            step.phase = StepPhase::Done {
                token,
                layer,
                cached: true,
                took_ms,
            };
        }
    }
    run_phase(ledger, id, RunPhase::Baking);
    add_task(ledger, cx, id, 0, TaskKind::Bake, steps, effects);
    id
}

fn run_phase(ledger: &mut Ledger, id: RunId, phase: RunPhase) {
    let run = ledger.runs.get_mut(&id);
    run.expect("the caller holds an open run").phase = phase;
}

fn open(ledger: &mut Ledger, cx: &Context, started_by: &str, submit: SubmitRun) -> RunId {
    let id = RunId(cx.seq);
    let run = Run {
        id,
        team: submit.team,
        repository: submit.repository,
        origin: submit.origin,
        path: submit.path,
        cause: submit.cause,
        started_by: started_by.to_owned(),
        started_at: cx.now,
        inputs: submit.inputs,
        priority: submit.priority,
        retry_of: None,
        phase: RunPhase::Source,
        tree: None,
        pipeline: None,
        subject: None,
        author: None,
        tasks: Vec::new(),
        baked: None,
        version: None,
        rollouts: Vec::new(),
        fleets_open: 0,
        ended_at: None,
        reason: None,
        details: Vec::new(),
        changed: cx.seq,
    };
    ledger.runs.insert(id, run);
    id
}

fn add_task(
    ledger: &mut Ledger,
    cx: &Context,
    run: RunId,
    ordinal: u16,
    kind: TaskKind,
    steps: Vec<Step>,
    effects: &mut Vec<Effect>,
) {
    let id = TaskId {
        seq: cx.seq,
        ordinal,
    };
    let record = ledger
        .runs
        .get_mut(&run)
        .expect("the caller holds an open run");
    record.tasks.push(id);
    record.changed = cx.seq;
    let team = record.team.clone();
    let priority = record.urgency().number();
    let task = Task {
        id,
        owner: TaskOwner::Run(run),
        team,
        kind,
        phase: TaskPhase::Ready { not_before: cx.now },
        created_at: cx.now,
        ended_at: None,
        priority,
        attempts: Vec::new(),
        steps,
        reason: None,
    };
    lease::add_task(ledger, task, effects);
    effects.push(Effect::RunChanged(run));
}

/// Takes a task's output and goes on with what follows from it.
pub(super) fn advance(
    ledger: &mut Ledger,
    cx: &Context,
    id: RunId,
    task: TaskId,
    output: Output,
    effects: &mut Vec<Effect>,
) {
    let Some(run) = ledger.runs.get_mut(&id) else {
        return;
    };
    run.changed = cx.seq;
    effects.push(Effect::RunChanged(id));
    let kind = ledger.tasks.get(&task).map(|task| task.kind.clone());
    match (kind, output) {
        (Some(TaskKind::Source), Output::Source(source)) => {
            source_done(ledger, cx, id, *source, effects);
        }
        (Some(TaskKind::Bake), Output::Baked(image)) => {
            let run = ledger.runs.get_mut(&id).expect("found above");
            run.baked = Some(image);
            after_bake(ledger, cx, id, effects);
        }
        (Some(TaskKind::Test), Output::Tested(_)) => {
            // Testing => Publishing
            start_publishing(ledger, cx, id, effects);
        }
        (Some(TaskKind::Publish(_)), Output::Published) => {
            published(ledger, cx, id, effects);
        }
        (kind, output) => {
            let reason = format!("task {task} ({kind:?}) brought a foreign result: {output:?}");
            conclude(ledger, cx, id, Ending::Errored, reason, Vec::new(), effects);
        }
    }
}

/// Baking => Testing | Publishing
fn after_bake(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) {
    let run = ledger.runs.get_mut(&id);
    let run = run.expect("the caller holds an open run");
    if run
        .pipeline
        .as_ref()
        .is_some_and(|pipeline| !pipeline.test.is_empty())
    {
        run.phase = RunPhase::Testing;
        add_task(ledger, cx, id, 0, TaskKind::Test, Vec::new(), effects);
    } else {
        start_publishing(ledger, cx, id, effects);
    }
}

/// Why a pipeline cannot be run for a team.
pub(super) fn source_problems(
    ledger: &Ledger,
    team: &TeamName,
    pipeline: &Pipeline,
) -> Vec<String> {
    let mut problems = Vec::new();
    if pipeline.team != *team {
        problems.push(format!(
            "the pipeline names team `{}`, this run belongs to team `{team}`",
            pipeline.team
        ));
    }
    for wanted in &pipeline.rollout {
        match ledger.fleets.get(&wanted.fleet) {
            None => problems.push(format!(
                "there is no fleet `{}`: make it with `oast apply -f`, then push or run again",
                wanted.fleet
            )),
            Some(fleet) if fleet.spec.team != *team => problems.push(format!(
                "fleet `{}` belongs to team `{}`",
                wanted.fleet, fleet.spec.team
            )),
            Some(_) => {}
        }
    }
    problems
}

/// A run whose group wants only the newest ends the older ones, or itself when it came late.
/// False when it ended itself.
fn supersede(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) -> bool {
    let run = ledger.runs.get(&id).expect("the caller holds an open run");
    let concurrency = run
        .pipeline
        .as_ref()
        .and_then(|pipeline| pipeline.concurrency.clone())
        .filter(|concurrency| concurrency.cancel_in_progress);
    let Some(concurrency) = concurrency else {
        return true;
    };
    let key = GroupKey {
        team: run.team.clone(),
        group: concurrency.group,
    };
    let others = ledger.index.group(&key).map(|group| group.runs());
    let others = others.unwrap_or_default();
    let superseded = |by: RunId| {
        format!(
            "superseded by run {by} in the concurrency group `{}`",
            key.group
        )
    };
    if let Some(newer) = others.last().filter(|other| **other > id) {
        let reason = superseded(*newer);
        conclude(
            ledger,
            cx,
            id,
            Ending::Cancelled,
            reason,
            Vec::new(),
            effects,
        );
        return false;
    }
    for other in others.into_iter().filter(|other| *other < id) {
        // What is published rolls out; it ends by its rollout, and the newer one waits for it.
        let open = ledger.runs.get(&other);
        if open.is_some_and(|run| run.phase != RunPhase::RollingOut) {
            let reason = superseded(id);
            conclude(
                ledger,
                cx,
                other,
                Ending::Cancelled,
                reason,
                Vec::new(),
                effects,
            );
        }
    }
    true
}

fn source_done(
    ledger: &mut Ledger,
    cx: &Context,
    id: RunId,
    source: SourceOutput,
    effects: &mut Vec<Effect>,
) {
    let run = ledger.runs.get(&id).expect("the caller holds an open run");
    let pipeline = source.pipeline;
    let mut problems = source_problems(ledger, &run.team, &pipeline);
    let steps = bake_steps(&pipeline);
    let run = ledger
        .runs
        .get_mut(&id)
        .expect("the caller holds an open run");
    run.tree = Some(source.tree);
    run.subject = source.subject;
    run.author = source.author;
    run.pipeline = Some(pipeline);
    if !problems.is_empty() {
        let reason = problems.remove(0);
        conclude(ledger, cx, id, Ending::Failed, reason, problems, effects);
        return;
    }
    remember_calendar(ledger, cx, id, effects);
    if !supersede(ledger, cx, id, effects) {
        return;
    }
    // Source => Baking
    run_phase(ledger, id, RunPhase::Baking);
    add_task(ledger, cx, id, 0, TaskKind::Bake, steps, effects);
}

/// The base, then one step for each of the pipeline's.
fn bake_steps(pipeline: &Pipeline) -> Vec<Step> {
    let base = Step {
        title: format!("base {}", pipeline.bake.from),
        phase: StepPhase::Pending,
    };
    let own = pipeline.bake.steps.iter().map(|step| Step {
        title: step.title(),
        phase: StepPhase::Pending,
    });
    std::iter::once(base).chain(own).collect()
}

/// A commit of a repository defines the pipeline's calendar until the next one.
fn remember_calendar(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) {
    let run = ledger.runs.get(&id).expect("the caller holds an open run");
    let (Some(pipeline), Some(_), Origin::Git { .. }) =
        (&run.pipeline, &run.repository, &run.origin)
    else {
        return;
    };
    let crons: Vec<_> = pipeline
        .triggers
        .iter()
        .filter_map(|trigger| match trigger {
            Trigger::Cron(cron) => Some((cron.cron.clone(), cron.timezone.clone())),
            Trigger::Git(_) => None,
        })
        .collect();
    let key = (run.team.clone(), pipeline.name.clone());
    if crons.is_empty() {
        if ledger.crons.contains(&key) {
            ledger.crons.remove(&key);
        }
        return;
    }
    let submit = SubmitRun {
        team: run.team.clone(),
        repository: run.repository.clone(),
        origin: run.origin.clone(),
        path: run.path.clone(),
        cause: String::new(),
        inputs: BTreeMap::new(),
        priority: None,
    };
    let fired = ledger.crons.get(&key).map_or(cx.now, |before| before.fired);
    ledger.crons.insert(
        key,
        CronState {
            crons,
            submit,
            fired,
        },
    );
    effects.push(Effect::ResourcesChanged);
}

fn start_publishing(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) {
    let run = ledger
        .runs
        .get_mut(&id)
        .expect("the caller holds an open run");
    run.phase = RunPhase::Publishing;
    let pipeline = run
        .pipeline
        .as_ref()
        .expect("a run that publishes has a pipeline");
    let mut regions: Vec<_> = pipeline.publish.regions.iter().cloned().map(Some).collect();
    if regions.is_empty() {
        regions.push(None);
    }
    for (region, ordinal) in regions.into_iter().zip(0..) {
        add_task(
            ledger,
            cx,
            id,
            ordinal,
            TaskKind::Publish(region),
            Vec::new(),
            effects,
        );
    }
}

/// When the last region has it: gives the version its number and asks for the rollouts.
fn published(ledger: &mut Ledger, cx: &Context, id: RunId, effects: &mut Vec<Effect>) {
    let run = ledger.runs.get(&id).expect("the caller holds an open run");
    let waiting = run.tasks.iter().any(|task| {
        ledger
            .tasks
            .get(task)
            .is_some_and(|task| matches!(task.kind, TaskKind::Publish(_)) && !task.ended())
    });
    if waiting {
        return;
    }
    let run = run.clone();
    let image = run
        .baked
        .clone()
        .expect("a run that publishes has an image");
    let version = match image::publish(ledger, cx, &run, image) {
        Ok(version) => version,
        Err(rejected) => {
            let reason = rejected.to_string();
            conclude(ledger, cx, id, Ending::Failed, reason, Vec::new(), effects);
            return;
        }
    };
    let rollouts = run
        .pipeline
        .map(|pipeline| pipeline.rollout)
        .unwrap_or_default();
    let record = ledger
        .runs
        .get_mut(&id)
        .expect("the caller holds an open run");
    record.version = Some(version.clone());
    if rollouts.is_empty() {
        let reason = format!("published {version}");
        conclude(
            ledger,
            cx,
            id,
            Ending::Succeeded,
            reason,
            Vec::new(),
            effects,
        );
        return;
    }
    // Publishing => RollingOut
    record.phase = RunPhase::RollingOut;
    record.fleets_open = u32::try_from(rollouts.len()).unwrap_or(u32::MAX);
    for wanted in rollouts {
        let request = RolloutRequest {
            run: Some(id),
            version: version.clone(),
            strategy: wanted.strategy,
            gates: wanted.gates,
            on_failure: wanted.on_failure,
            requested_by: "farm".into(),
        };
        if let Err(rejected) = rollout::request(ledger, cx, &wanted.fleet, request, effects) {
            rollout_ended(ledger, cx, id, &Err(rejected.to_string()), effects);
        }
    }
}

/// One of the run's fleets is done with its version: `Ok` well, else why not.
pub(super) fn rollout_ended(
    ledger: &mut Ledger,
    cx: &Context,
    id: RunId,
    result: &Result<(), String>,
    effects: &mut Vec<Effect>,
) {
    let Some(run) = ledger.runs.get_mut(&id) else {
        return;
    };
    run.fleets_open = run.fleets_open.saturating_sub(1);
    run.changed = cx.seq;
    if let Err(reason) = result {
        run.details.push(reason.clone());
    }
    effects.push(Effect::RunChanged(id));
    if run.fleets_open > 0 {
        return;
    }
    let mut failures = std::mem::take(&mut run.details).into_iter();
    let (ending, reason) = match failures.next() {
        Some(first) => (Ending::Failed, first),
        None => {
            let version = run
                .version
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            (
                Ending::Succeeded,
                format!("{version} runs everywhere it should"),
            )
        }
    };
    conclude(ledger, cx, id, ending, reason, failures.collect(), effects);
}

/// Ends the run, abandons what is still open and sends it to history.
pub(super) fn conclude(
    ledger: &mut Ledger,
    cx: &Context,
    id: RunId,
    ending: Ending,
    reason: String,
    details: Vec<String>,
    effects: &mut Vec<Effect>,
) {
    let Some(run) = ledger.runs.get(&id) else {
        return;
    };
    for task in run.tasks.clone() {
        lease::abandon(ledger, cx, task, "the run ended", effects);
    }
    let run = ledger.runs.get_mut(&id).expect("found above");
    // any => Ended
    run.phase = RunPhase::Ended(ending);
    run.ended_at = Some(cx.now);
    run.reason = Some(reason);
    run.details.extend(details);
    run.changed = cx.seq;
    let record = ledger.run_record(id).expect("found above");
    ledger.runs.remove(&id);
    for task in &record.run.tasks {
        ledger.tasks.remove(task);
    }
    let team = record.run.team.clone();
    ledger.push_history(cx, RUN, id.0, &team, codec::encode(&record));
    effects.push(Effect::RunChanged(id));
}

/// Ends a run at somebody's wish.
pub(super) fn cancel(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    id: RunId,
    reason: String,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "open run".into(),
        name: id.to_string(),
    };
    let run = ledger.runs.get(&id).ok_or_else(not_found)?;
    ledger.allow(who, Verb::Run, Some(&run.team))?;
    if run.phase == RunPhase::RollingOut {
        return Err(Rejected::WrongState(format!(
            "run {id} is published and rolls out: abort its rollout instead"
        )));
    }
    let reason = format!("cancelled by {}: {reason}", who.name);
    conclude(
        ledger,
        cx,
        id,
        Ending::Cancelled,
        reason,
        Vec::new(),
        effects,
    );
    Ok(Answer::Done)
}
