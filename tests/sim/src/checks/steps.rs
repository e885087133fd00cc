//! No task is finished twice, no finished task is leased, no finished step is done again by an
//! attempt that was told of it.

use std::collections::{BTreeMap, BTreeSet};

use oast_model::ids::{Seq, TaskId, Token};
use oast_model::ledger::{Answer, Applied, Command, Request};
use oast_model::task::Report;

use super::Wrong;
use super::leases::ends_task;

/// What is finished.
#[derive(Debug, Default)]
pub struct Steps {
    tasks: BTreeMap<Token, TaskId>,
    finished: BTreeSet<TaskId>,
    /// When each step was recorded as done.
    done: BTreeMap<(TaskId, u16), Seq>,
}

impl Steps {
    /// A command was applied.
    pub fn applied(&mut self, request: &Request, applied: &Applied) -> Wrong {
        match (&request.command, &applied.result) {
            (Command::GrantLease { task, .. }, Ok(Answer::Lease(token))) => {
                self.tasks.insert(*token, *task);
                self.finished
                    .contains(task)
                    .then(|| format!("{task} is finished and was leased under {token}"))
            }
            (Command::Report { token, report }, Ok(_)) => {
                let task = *self.tasks.get(token)?;
                match &**report {
                    Report::StepFinished { step, .. } => {
                        let again = self.done.insert((task, *step), applied.seq);
                        again.map(|at| format!("step {step} of {task} was done at {at} already"))
                    }
                    report if ends_task(report) => {
                        let new = self.finished.insert(task);
                        (!new).then(|| format!("{task} was finished twice"))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// A worker has carried out a step under a token.
    pub fn ran(&self, task: TaskId, step: u16, token: Token) -> Wrong {
        let done = *self.done.get(&(task, step))?;
        (done < token)
            .then(|| format!("step {step} of {task} was done at {done} and again under {token}"))
    }
}
