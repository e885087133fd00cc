//! What must hold, each rule in a file of its own and apart from what makes the work.
//!
//! A checker takes over what happened and says what is wrong, if anything.

pub mod digests;
pub mod effects;
pub mod ending;
pub mod leaders;
pub mod leases;
pub mod quotas;
pub mod registers;
pub mod steps;
pub mod submissions;
pub mod votes;

use oast_model::ledger::{Answer, Applied, Command, Request};
use oast_model::task::Report;

/// What is wrong, in one sentence.
pub type Wrong = Option<String>;

/// All of them.
#[derive(Debug, Default)]
pub struct Checks {
    /// One leader per term.
    pub leaders: leaders::Leaders,
    /// One vote per member and term.
    pub votes: votes::Votes,
    /// Equal states at equal positions.
    pub digests: digests::Digests,
    /// At most one live token per task.
    pub leases: leases::Leases,
    /// Nothing finished is done again.
    pub steps: steps::Steps,
    /// No team has more than its share.
    pub quotas: quotas::Quotas,
    /// What changed in the cloud.
    pub effects: effects::Effects,
    /// Acknowledged runs exist, once.
    pub submissions: submissions::Submissions,
    /// Registers behave as one copy would.
    pub registers: registers::Registers,
}

/// More about a command, for the trace.
pub fn detail(request: &Request, applied: &Applied) -> String {
    let what = match &request.command {
        Command::GrantLease { task, worker, .. } => format!("{task} to {worker}"),
        Command::ExpireLease { token, .. } => format!("{token}"),
        Command::BeginIncarnation {
            worker,
            incarnation,
        } => format!("{worker} {incarnation}"),
        Command::Report { token, report } => match &**report {
            Report::StepStarted { step } => format!("{token} begins step {step}"),
            Report::StepFinished { step, .. } => format!("{token} has done step {step}"),
            Report::Finished(outcome) => {
                let text = format!("{outcome:?}");
                let word = text.split(['(', ' ']).next().unwrap_or_default();
                format!("{token} {word}")
            }
        },
        Command::BeginBatch(begin) => format!(
            "{} generation {} {:?} {:?}",
            begin.fleet, begin.generation, begin.instances, begin.action
        ),
        Command::JudgeBatch {
            rollout,
            batch,
            open,
            reason,
            ..
        } => format!("{rollout} batch {batch} open {open}: {reason}"),
        Command::ConcludeRollout { rollout, .. } | Command::AbortRollout { rollout, .. } => {
            rollout.to_string()
        }
        Command::SubmitRun(submit) => submit.cause.clone(),
        Command::CancelRun { run, .. } => run.to_string(),
        _ => String::new(),
    };
    let answer = match &applied.result {
        Ok(Answer::Run(run)) => format!(" = {run}"),
        Ok(Answer::Lease(token)) => format!(" = {token}"),
        Ok(Answer::Task(task)) => format!(" = {task}"),
        Ok(_) => String::new(),
        Err(rejected) => format!(": {rejected}"),
    };
    format!(" {what}{answer}")
}
