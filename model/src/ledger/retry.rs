//! A run again, from where it failed or from a step that somebody names.
//!
//! Finished runs are history, which `apply` does not read. So the member that is asked takes the
//! record from its history and the command carries what is reused; a run that was pruned
//! cannot be named. Layers are named by digests, and a worker that does not find one makes it again.

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Effect, Ledger, Rejected, RunPhase, RunRecord, SubmitRun, run};
use crate::bake::BakedImage;
use crate::digest::Digest;
use crate::ids::RunId;
use crate::pipeline::Pipeline;
use crate::principal::{Principal, Verb};
use crate::task::{Ending, Step, StepPhase, TaskKind};

/// A new run with what an old one had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryRun {
    /// The old one.
    pub run: RunId,
    /// What it was started with; the cause says that this is a retry.
    pub submit: SubmitRun,
    /// Its source, when that was read.
    #[serde(default)]
    pub source: Option<RetrySource>,
    /// Its finished steps that are not done again, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Its image, when only what came after is done again.
    #[serde(default)]
    pub baked: Option<BakedImage>,
}

/// A source that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrySource {
    /// The tree.
    pub tree: Digest,
    /// The pipeline revision, inputs filled in.
    pub pipeline: Pipeline,
    /// First line of the commit message.
    #[serde(default)]
    pub subject: Option<String>,
    /// Who wrote the commit.
    #[serde(default)]
    pub author: Option<String>,
}

/// Why a run cannot be done again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetryProblem {
    /// It has not ended.
    #[error("run {run} has not ended: cancel it first")]
    Open {
        /// The run.
        run: RunId,
    },
    /// What failed is not part of the run.
    #[error(
        "run {run} has published its image: begin a rollout instead, or name the step to begin with"
    )]
    Published {
        /// The run.
        run: RunId,
    },
    /// It never came to its steps.
    #[error("run {run} ended before its pipeline was read: it has no steps to begin with")]
    NoSteps {
        /// The run.
        run: RunId,
    },
    /// It has no such step.
    #[error("run {run} has no step `{step}`: its steps are 1 to {last}, or named by their titles")]
    NoSuchStep {
        /// The run.
        run: RunId,
        /// As it was asked for.
        step: String,
        /// Place of the last one.
        last: usize,
    },
}

impl RetryRun {
    /// What a retry of a finished run asks for. `from`: the title of a step or its place, counted from 1 without the
    /// base; none for whatever failed.
    ///
    /// # Errors
    /// [`RetryProblem`], for whoever asked.
    pub fn of(record: &RunRecord, from: Option<&str>) -> Result<RetryRun, RetryProblem> {
        let old = &record.run;
        let run = old.id;
        let RunPhase::Ended(ending) = old.phase else {
            return Err(RetryProblem::Open { run });
        };
        let bake = record.tasks.iter().find(|task| task.kind == TaskKind::Bake);
        let mut steps = bake.map(|task| task.steps.clone()).unwrap_or_default();
        let mut baked = None;
        match from {
            Some(step) => {
                let first = place(run, &steps, step)?;
                steps.truncate(first);
            }
            None if old.version.is_some() => return Err(RetryProblem::Published { run }),
            None if ending != Ending::Succeeded => baked = old.baked.clone(),
            None => {}
        }
        let done = steps
            .iter()
            .take_while(|step| matches!(step.phase, StepPhase::Done { .. }))
            .count();
        steps.truncate(done);
        let source = old.tree.zip(old.pipeline.clone());
        let source = source.map(|(tree, pipeline)| RetrySource {
            tree,
            pipeline,
            subject: old.subject.clone(),
            author: old.author.clone(),
        });
        Ok(RetryRun {
            run,
            submit: SubmitRun {
                team: old.team.clone(),
                repository: old.repository.clone(),
                origin: old.origin.clone(),
                path: old.path.clone(),
                cause: match from {
                    Some(step) => format!("retry of {run} from step {step}"),
                    None => format!("retry of {run}"),
                },
                inputs: old.inputs.clone(),
                priority: old.priority,
            },
            source,
            steps,
            baked,
        })
    }
}

/// Which of the recorded steps is meant. The base stands first and has place 0.
fn place(run: RunId, steps: &[Step], wanted: &str) -> Result<usize, RetryProblem> {
    if steps.is_empty() {
        return Err(RetryProblem::NoSteps { run });
    }
    let by_place = wanted.parse::<usize>().ok();
    let by_place = by_place.filter(|place| *place >= 1 && *place < steps.len());
    by_place
        .or_else(|| steps.iter().position(|step| step.title == wanted))
        .ok_or_else(|| RetryProblem::NoSuchStep {
            run,
            step: wanted.to_owned(),
            last: steps.len() - 1,
        })
}

/// Starts the new run where the old one is taken up.
pub(super) fn retry(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    retry: RetryRun,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Run, Some(&retry.submit.team))?;
    run::check_room(ledger, &retry.submit.team)?;
    if ledger.runs.contains(&retry.run) {
        return Err(Rejected::WrongState(format!(
            "run {} has not ended: cancel it first",
            retry.run
        )));
    }
    if retry.run.0 >= cx.seq {
        return Err(Rejected::NotFound {
            kind: "run".into(),
            name: retry.run.to_string(),
        });
    }
    if let Some(source) = &retry.source {
        let mut problems = run::source_problems(ledger, &retry.submit.team, &source.pipeline);
        if !problems.is_empty() {
            return Err(Rejected::WrongState(problems.remove(0)));
        }
    }
    Ok(Answer::Run(run::start_again(
        ledger, cx, &who.name, retry, effects,
    )))
}
