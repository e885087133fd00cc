//! Linearizable reads through raft's read index.
//!
//! Reads that arrive together share one question to the leader. Questions and answers may get lost
//! (there is no leader, it has not committed in its term, a message was dropped), so a question
//! without an answer is asked again under a new context until its readers' time is up. The first
//! question is not forgotten by that: where the way there and back takes longer than the pause, its
//! answer is the first to come, and it is as good as that of any later question.

use std::collections::BTreeMap;

use raft::ReadState;

use super::{Output, ReadError, Ticket};
use crate::consensus::core::Core;
use crate::consensus::machine::Machine;
use crate::consensus::options::Options;
use crate::store::log::LogStore;

/// Readers that may wait at once.
const MAX_READERS: usize = 65_536;

/// Later than any question.
const NOT_ASKED: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Reader {
    ticket: Ticket,
    /// The first question that was asked for it: an answer to this one or to a later one will do.
    since: u64,
    /// Tick after which it gives up.
    until: u64,
}

struct Question {
    readers: Vec<Reader>,
    asked: u64,
}

pub(super) struct Reads {
    incarnation: u64,
    next: u64,
    retry_ticks: u64,
    timeout_ticks: u64,
    count: usize,
    new: Vec<Reader>,
    /// Tick before which `new` is not asked, because there is nobody to ask.
    hold_until: u64,
    asked: BTreeMap<u64, Question>,
    /// Answered, by the index that must be applied first.
    ready: BTreeMap<u64, Vec<Reader>>,
}

impl Reads {
    pub(super) fn new(incarnation: u64, options: &Options) -> Self {
        Reads {
            incarnation,
            next: 0,
            retry_ticks: options.read_retry_ticks,
            timeout_ticks: options.read_timeout_ticks,
            count: 0,
            new: Vec::new(),
            hold_until: 0,
            asked: BTreeMap::new(),
            ready: BTreeMap::new(),
        }
    }

    pub(super) fn ask<M: Machine>(
        &mut self,
        ticket: Ticket,
        now: u64,
        outputs: &mut Vec<Output<M>>,
    ) {
        if self.count >= MAX_READERS {
            outputs.push(Output::ReadReady(ticket, Err(ReadError::Overloaded)));
            return;
        }
        self.count += 1;
        self.new.push(Reader {
            ticket,
            since: NOT_ASKED,
            until: now + self.timeout_ticks,
        });
    }

    pub(super) fn tick<M: Machine>(&mut self, now: u64, outputs: &mut Vec<Output<M>>) {
        let overdue: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, question)| question.asked + self.retry_ticks <= now)
            .map(|(context, _)| *context)
            .collect();
        for context in overdue {
            if let Some(question) = self.asked.remove(&context) {
                self.new.extend(question.readers);
            }
        }
        let mut expired = Vec::new();
        let mut keep = |readers: &mut Vec<Reader>| {
            readers.retain(|reader| {
                let waits = reader.until > now;
                if !waits {
                    expired.push(reader.ticket);
                }
                waits
            });
            !readers.is_empty()
        };
        keep(&mut self.new);
        self.ready.retain(|_, readers| keep(readers));
        self.count -= expired.len();
        for ticket in expired {
            outputs.push(Output::ReadReady(ticket, Err(ReadError::Unavailable)));
        }
    }

    /// Asks for everybody who came since the last call.
    pub(super) fn flush<L: LogStore>(&mut self, core: &mut Core<L>, now: u64) {
        if self.new.is_empty() || now < self.hold_until {
            return;
        }
        self.next += 1;
        let context = [self.incarnation.to_be_bytes(), self.next.to_be_bytes()].concat();
        if core.read(context) {
            let mut readers = std::mem::take(&mut self.new);
            for reader in &mut readers {
                reader.since = reader.since.min(self.next);
            }
            self.asked.insert(
                self.next,
                Question {
                    readers,
                    asked: now,
                },
            );
        } else {
            self.hold_until = now + 1;
        }
    }

    /// Takes answers and serves everybody whose index is applied. Returns how many were.
    pub(super) fn serve<M: Machine>(
        &mut self,
        states: Vec<ReadState>,
        applied: u64,
        outputs: &mut Vec<Output<M>>,
    ) -> u64 {
        for state in states {
            let (incarnation, number) = state.request_ctx.split_at_checked(8).unwrap_or_default();
            if incarnation != self.incarnation.to_be_bytes() {
                continue;
            }
            let number = number
                .try_into()
                .map(u64::from_be_bytes)
                .unwrap_or_default();
            let answered = self.answered(number);
            if !answered.is_empty() {
                self.ready.entry(state.index).or_default().extend(answered);
            }
        }
        let mut served = 0;
        while let Some(first) = self.ready.first_entry()
            && *first.key() <= applied
        {
            for reader in first.remove() {
                outputs.push(Output::ReadReady(reader.ticket, Ok(applied)));
                served += 1;
                self.count -= 1;
            }
        }
        served
    }

    /// Takes out everybody for whom that question or an earlier one was asked.
    fn answered(&mut self, number: u64) -> Vec<Reader> {
        let mut answered = Vec::new();
        let mut take = |readers: &mut Vec<Reader>| {
            answered.extend(readers.extract_if(.., |reader| reader.since <= number));
            !readers.is_empty()
        };
        take(&mut self.new);
        self.asked.retain(|_, question| take(&mut question.readers));
        answered
    }
}
