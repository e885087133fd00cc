//! Answers by request id, so that a retry after a lost answer does nothing twice.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Ledger, Rejected, Request};
use crate::time::Timestamp;

/// How long an answer is remembered.
pub const REQUEST_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many answers are remembered for one principal.
pub const REQUESTS_MAX: usize = 100_000;
/// Most answers forgotten on one command, so that no command is slow.
const FORGET_MAX: usize = 32;

/// Whose request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestKey {
    /// Name of the principal.
    pub principal: String,
    /// The id that it chose.
    pub id: String,
}

impl RequestKey {
    pub(super) fn of(request: &Request) -> Option<RequestKey> {
        let id = request.request_id.clone()?;
        Some(RequestKey {
            principal: request.principal.name.clone(),
            id,
        })
    }
}

/// A request's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// When it was applied.
    pub at: Timestamp,
    /// The kind of command: the same id for another kind is a mistake.
    pub kind: u32,
    /// What was answered.
    pub result: Result<Answer, Rejected>,
}

impl Ledger {
    /// The answer that this request had before.
    pub(super) fn remembered(&self, request: &Request) -> Option<Result<Answer, Rejected>> {
        let key = RequestKey::of(request)?;
        let Some(before) = self.requests.get(&key) else {
            let own = self
                .requests
                .iter()
                .filter(|(k, _)| k.principal == key.principal);
            // Counting is cheap while few requests are remembered, which is the normal case.
            if self.requests.len() >= REQUESTS_MAX && own.count() >= REQUESTS_MAX {
                return Some(Err(Rejected::Exhausted(format!(
                    "{REQUESTS_MAX} requests of `{}` are remembered: wait, or send no request id",
                    key.principal
                ))));
            }
            return None;
        };
        if before.kind != request.command.kind() {
            return Some(Err(Rejected::WrongState(format!(
                "request id `{}` was used for another kind of request",
                key.id
            ))));
        }
        Some(before.result.clone())
    }

    /// Refusals that a later retry may overcome are not remembered.
    pub(super) fn remember(
        &mut self,
        cx: &Context,
        key: RequestKey,
        kind: u32,
        result: &Result<Answer, Rejected>,
    ) {
        if result.is_err() {
            return;
        }
        self.request_ages.insert((cx.now, key.clone()), ());
        self.requests.insert(
            key,
            Remembered {
                at: cx.now,
                kind,
                result: result.clone(),
            },
        );
    }

    pub(super) fn forget_old_requests(&mut self, now: Timestamp) {
        for _ in 0..FORGET_MAX {
            let Some(((at, key), ())) = self.request_ages.get_min().cloned() else {
                return;
            };
            if now.since(at) < REQUEST_MEMORY {
                return;
            }
            self.requests.remove(&key);
            self.request_ages.remove(&(at, key));
        }
    }

    /// Rebuilds what is derived, after the last [`Ledger::load`].
    pub fn finish_loading(&mut self) {
        self.request_ages = self
            .requests
            .iter()
            .map(|(key, kept)| ((kept.at, key.clone()), ()))
            .collect();
    }
}
