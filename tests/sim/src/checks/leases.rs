//! At most one live token per task, no token twice, nothing taken under a token that is over, and
//! no shared change begun by a worker whose lease was taken away for its silence.
//!
//! The rules are kept beside the ledger from commands and answers alone.

use std::collections::BTreeMap;

use oast_model::ids::{TaskId, Token};
use oast_model::ledger::{Answer, Applied, Command, Effect, Ledger, Request};
use oast_model::task::{Outcome, Report};

use super::Wrong;
use crate::queue::Micros;

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its holder was silent.
    Silence(Micros),
    /// By its own report, or because nobody wants the work any more.
    Other,
}

/// Leases as the log has them.
#[derive(Debug, Default)]
pub struct Leases {
    live: BTreeMap<Token, TaskId>,
    held: BTreeMap<TaskId, Token>,
    ended: BTreeMap<Token, End>,
    newest: Token,
}

impl Leases {
    fn end(&mut self, token: Token, how: End) {
        if let Some(task) = self.live.remove(&token) {
            self.held.remove(&task);
            self.ended.insert(token, how);
        }
    }

    /// A command was applied.
    pub fn applied(&mut self, now: Micros, request: &Request, applied: &Applied) -> Wrong {
        let mut wrong = None;
        match (&request.command, &applied.result) {
            (Command::GrantLease { task, .. }, Ok(Answer::Lease(token))) => {
                if let Some(other) = self.held.get(task) {
                    wrong = Some(format!("{task} is leased under {other} and {token}"));
                }
                if *token <= self.newest {
                    wrong = Some(format!("token {token} is not newer than {}", self.newest));
                }
                self.newest = *token;
                self.live.insert(*token, *task);
                self.held.insert(*task, *token);
            }
            (Command::ExpireLease { token, .. }, Ok(_)) => self.end(*token, End::Silence(now)),
            (Command::Report { token, report }, Ok(_)) => {
                if !self.live.contains_key(token) {
                    wrong = Some(format!("a report under {token} was taken, which is over"));
                }
                if let Report::Finished(_) = **report {
                    self.end(*token, End::Other);
                }
            }
            _ => {}
        }
        for effect in &applied.effects {
            if let Effect::LeaseEnded { token, .. } = effect {
                self.end(*token, End::Other);
            }
        }
        wrong
    }

    /// The ledger's own list must be the same.
    pub fn compare(&self, ledger: &Ledger) -> Wrong {
        let same = ledger.leases().len() == self.live.len()
            && ledger
                .leases()
                .iter()
                .all(|(token, lease)| self.live.get(token) == Some(&lease.task));
        (!same).then(|| {
            let listed: Vec<&Token> = ledger.leases().keys().collect();
            let known: Vec<&Token> = self.live.keys().collect();
            format!("the ledger lists leases {listed:?}, the log made {known:?}")
        })
    }

    /// A worker begins a change of something shared.
    pub fn issued(&self, now: Micros, token: Token, operation: &str) -> Wrong {
        match self.ended.get(&token) {
            Some(End::Silence(at)) => Some(format!(
                "{operation} was called under {token} at {now}, which was taken away for silence at {at}"
            )),
            _ => None,
        }
    }
}

/// Whether a report ends its task for good.
pub fn ends_task(report: &Report) -> bool {
    matches!(
        report,
        Report::Finished(Outcome::Succeeded(_) | Outcome::Failed { .. } | Outcome::Skipped { .. })
    )
}
