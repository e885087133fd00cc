//! No acknowledged submission is lost, and none makes two runs.

use std::collections::BTreeMap;

use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Applied, Command, Ledger, Request};

use super::Wrong;

/// Runs by what asked for them.
#[derive(Debug, Default)]
pub struct Submissions {
    runs: BTreeMap<String, RunId>,
    acknowledged: BTreeMap<String, RunId>,
}

impl Submissions {
    /// A command was applied.
    pub fn applied(&mut self, request: &Request, applied: &Applied) -> Wrong {
        let (Command::SubmitRun(submit), Ok(Answer::Run(run))) =
            (&request.command, &applied.result)
        else {
            return None;
        };
        let first = *self.runs.entry(submit.cause.clone()).or_insert(*run);
        (first != *run).then(|| format!("`{}` made {first} and {run}", submit.cause))
    }

    /// A client was told that its submission is this run.
    pub fn acknowledged(&mut self, label: &str, run: RunId) -> Wrong {
        self.acknowledged.insert(label.to_owned(), run);
        match self.runs.get(label) {
            Some(made) if *made == run => None,
            Some(made) => Some(format!("`{label}` is {made}, its client was told {run}")),
            None => Some(format!(
                "`{label}` was acknowledged as {run} and is not in the log"
            )),
        }
    }

    /// How many were acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.len()
    }

    /// In the end every acknowledged run has ended.
    pub fn at_the_end(&self, ledger: &Ledger) -> Wrong {
        let open = self
            .acknowledged
            .iter()
            .find(|(_, run)| ledger.runs().get(run).is_some())?;
        Some(format!("`{}` ({}) did not end", open.0, open.1))
    }
}
