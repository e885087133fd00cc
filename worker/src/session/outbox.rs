//! Reports on their way to the log: kept and repeated until the leader has answered.
//!
//! One queue per lease. Only the head of a queue is on the wire, so a lease's reports reach the
//! ledger in order even when a leader dies between two of them. A report that is sent again may
//! be refused because its first copy was recorded; only the refusal of a first copy says that the
//! ledger does not want it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use oast_model::codec;
use oast_model::ids::Token;
use oast_model::task::Report;
use oast_proto::worker::v1 as wire;
use tokio::sync::Notify;

/// Reports of one lease that may wait; a bake's step makes two, so this is many steps.
const QUEUE_MAX: usize = 256;
/// A report without an answer is sent again after this, in case the leader dropped it.
const REPEAT_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Pending {
    body: Bytes,
    last: bool,
    /// Set when it was first sent.
    number: Option<u64>,
    /// The session and time of the newest copy.
    sent: Option<(u64, Duration)>,
    copies: u32,
}

#[derive(Debug, Default)]
struct State {
    next_number: u64,
    queues: BTreeMap<Token, VecDeque<Pending>>,
}

/// What an answer settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The lease.
    pub token: Token,
    /// The report was the lease's last.
    pub last: bool,
    /// The ledger does not want anything under this lease.
    pub unwanted: bool,
    /// When it was sent, monotonic; none when several copies were, as the answer may be to any.
    pub sent: Option<Duration>,
}

/// All reports that have no answer yet.
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
    /// Something may be sent.
    due: Notify,
    /// Something was settled.
    settled: Notify,
}

impl Outbox {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a report; waits while the lease has too many on their way.
    pub async fn push(&self, token: Token, report: &Report) {
        let body = Bytes::from(codec::encode(report));
        let last = matches!(report, Report::Finished(_));
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let mut state = self.state();
                let queue = state.queues.entry(token).or_default();
                if queue.len() < QUEUE_MAX {
                    queue.push_back(Pending {
                        body: body.clone(),
                        last,
                        number: None,
                        sent: None,
                        copies: 0,
                    });
                    break;
                }
            }
            settled.await;
        }
        self.due.notify_one();
    }

    /// Ends when something may have become due. A hint.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    /// The reports to send now in this session.
    pub fn take_due(&self, session: u64, now: Duration) -> Vec<wire::Report> {
        let mut state = self.state();
        let State {
            next_number,
            queues,
        } = &mut *state;
        let mut due = Vec::new();
        for (token, queue) in queues {
            let Some(head) = queue.front_mut() else {
                continue;
            };
            let waits = head
                .sent
                .is_some_and(|(in_session, at)| in_session == session && now < at + REPEAT_AFTER);
            if waits {
                continue;
            }
            let number = *head.number.get_or_insert_with(|| {
                *next_number += 1;
                *next_number
            });
            head.sent = Some((session, now));
            head.copies += 1;
            due.push(wire::Report {
                number,
                token: token.as_u64(),
                body: head.body.clone(),
            });
        }
        due
    }

    /// Takes the leader's answer. None when nobody waits for it any more.
    pub fn settle(&self, number: u64, refused: bool) -> Option<Settled> {
        let mut state = self.state();
        let token = state.queues.iter().find_map(|(token, queue)| {
            let head = queue.front()?;
            (head.number == Some(number)).then_some(*token)
        })?;
        let queue = state.queues.get_mut(&token)?;
        let head = queue.pop_front()?;
        let unwanted = refused && head.copies == 1;
        if queue.is_empty() || unwanted {
            state.queues.remove(&token);
        }
        drop(state);
        self.due.notify_one();
        self.settled.notify_waiters();
        Some(Settled {
            token,
            last: head.last,
            unwanted,
            sent: head.sent.filter(|_| head.copies == 1).map(|(_, at)| at),
        })
    }

    /// Forgets everything under an ended lease.
    pub fn discard(&self, token: Token) {
        self.state().queues.remove(&token);
        self.settled.notify_waiters();
    }

    /// Leases with reports on their way.
    pub fn tokens(&self) -> Vec<Token> {
        self.state().queues.keys().copied().collect()
    }

    /// Ends when nothing is on its way.
    pub async fn empty(&self) {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            if self.state().queues.is_empty() {
                return;
            }
            settled.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u16) -> Report {
        Report::StepStarted { step }
    }

    fn token(number: u64) -> Token {
        Token::from_u64(number)
    }

    #[tokio::test]
    async fn a_lease_sends_one_report_at_a_time_and_repeats_it_in_a_new_session() {
        let outbox = Outbox::default();
        outbox.push(token(5), &step(0)).await;
        outbox.push(token(5), &step(1)).await;
        outbox.push(token(6), &step(0)).await;
        let first = outbox.take_due(1, Duration::ZERO);
        assert_eq!(
            first
                .iter()
                .map(|r| (r.token, r.number))
                .collect::<Vec<_>>(),
            [(5, 1), (6, 2)]
        );
        assert!(outbox.take_due(1, Duration::ZERO).is_empty());
        let again = outbox.take_due(2, Duration::ZERO);
        assert_eq!(again, first, "the same numbers and bodies");
        assert!(outbox.settle(1, false).is_some_and(|s| !s.unwanted));
        let next = outbox.take_due(2, Duration::ZERO);
        assert_eq!((next[0].token, next[0].number), (5, 3));
    }

    #[tokio::test]
    async fn a_refused_copy_is_taken_for_recorded_but_a_refused_first_is_not() {
        let outbox = Outbox::default();
        outbox.push(token(5), &step(0)).await;
        outbox.take_due(1, Duration::ZERO);
        outbox.take_due(2, Duration::ZERO);
        assert!(outbox.settle(1, true).is_some_and(|s| !s.unwanted));
        outbox.push(token(5), &step(1)).await;
        outbox.take_due(2, Duration::ZERO);
        assert!(outbox.settle(2, true).is_some_and(|s| s.unwanted));
        assert!(outbox.tokens().is_empty());
    }

    #[tokio::test]
    async fn silence_repeats_a_report_within_a_session() {
        let outbox = Outbox::default();
        outbox.push(token(5), &step(0)).await;
        outbox.take_due(1, Duration::ZERO);
        assert!(outbox.take_due(1, REPEAT_AFTER / 2).is_empty());
        assert_eq!(outbox.take_due(1, REPEAT_AFTER).len(), 1);
    }
}
