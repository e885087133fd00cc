//! Commands on their way into the log, and the leader's time on them.

use std::time::Duration;

use super::{ProposeError, Reading, Replica, Ticket};
use crate::consensus::core::Refused;
use crate::consensus::counters::count;
use crate::consensus::entry;
use crate::consensus::machine::{EncodedCommand, Machine};
use crate::store::log::LogStore;
use crate::store::state::StateRoot;

/// Who waits for an entry.
pub(super) struct Waiting {
    pub(super) term: u64,
    pub(super) tickets: Vec<Ticket>,
}

/// Monotone leader time: calendar at election, own monotonic clock from then on, so that a
/// calendar that is set back or forward during a term moves no deadline.
pub(super) struct LeaderClock {
    term: u64,
    base_ms: u64,
    started: Duration,
}

impl<M: Machine, L: LogStore, R: StateRoot> Replica<M, L, R> {
    /// Proposes commands, many per log entry. Each ticket gets exactly one answer. Once one is
    /// refused because of the log, so is everything behind it: who proposes several in order never
    /// has a later one applied without the earlier ones.
    pub fn propose(&mut self, commands: Vec<(Ticket, EncodedCommand)>, time: Reading) {
        let mut refused = None;
        let mut tickets = Vec::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (ticket, command) in commands {
            let size = command.body.len();
            if size > self.options.max_command_bytes {
                let limit = self.options.max_command_bytes;
                self.side
                    .refuse(ticket, ProposeError::TooLarge { bytes: size, limit });
                continue;
            }
            let full = batch.len() >= self.options.max_entry_commands
                || bytes + size > self.options.max_entry_bytes;
            if full && !batch.is_empty() {
                let entry = (std::mem::take(&mut tickets), std::mem::take(&mut batch));
                self.propose_entry(entry, time, &mut refused);
                bytes = 0;
            }
            bytes += size;
            tickets.push(ticket);
            batch.push(command);
        }
        if !batch.is_empty() {
            self.propose_entry((tickets, batch), time, &mut refused);
        }
    }

    fn propose_entry(
        &mut self,
        (tickets, batch): (Vec<Ticket>, Vec<EncodedCommand>),
        time: Reading,
        before: &mut Option<Refused>,
    ) {
        let proposed = match *before {
            Some(refused) => Err(refused),
            None => {
                let now_ms = self.now_ms(time);
                self.core.propose(entry::encode(now_ms, batch))
            }
        };
        *before = proposed.err();
        match proposed {
            Ok(position) => {
                count(&self.counters.proposals_accepted, tickets.len() as u64);
                count(&self.counters.entries_proposed, 1);
                let waiting = Waiting {
                    term: position.term,
                    tickets,
                };
                self.side.waiting.insert(position.index, waiting);
            }
            Err(refused) => {
                let (error, counter) = match refused {
                    Refused::NotLeader { leader } => (
                        ProposeError::NotLeader { leader },
                        &self.counters.proposals_refused,
                    ),
                    // No command asks for a change of the members.
                    Refused::Overloaded | Refused::ChangePending => (
                        ProposeError::Overloaded,
                        &self.counters.proposals_overloaded,
                    ),
                };
                count(counter, tickets.len() as u64);
                for ticket in tickets {
                    self.side.refuse(ticket, error);
                }
            }
        }
    }

    /// Leader time for an entry proposed now.
    pub(super) fn now_ms(&mut self, time: Reading) -> u64 {
        let term = self.core.term();
        let applied_ms = self.side.mark.now_ms;
        let clock = match self.clock.take() {
            Some(clock) if clock.term == term => clock,
            _ => LeaderClock {
                term,
                base_ms: time.wall_ms.max(applied_ms),
                started: time.monotonic,
            },
        };
        let passed = time.monotonic.saturating_sub(clock.started).as_millis();
        let now_ms = clock
            .base_ms
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        self.clock = Some(clock);
        now_ms.max(applied_ms)
    }
}
