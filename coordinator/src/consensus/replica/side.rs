//! The half of a replica that raft calls back into: machine, state store, waiting proposers.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft::ReadState;
use raft::eraftpb::{Message, MessageType, Snapshot};

use super::notes::{Digests, check_verdict};
use super::{Applied, Output, ProposeError, ReplicaError, Ticket, Waiting};
use crate::consensus::core::{Committed, Core, Host, Installed};
use crate::consensus::counters::{Counters, count};
use crate::consensus::entry;
use crate::consensus::machine::{Machine, Position, View as _};
use crate::store::log::{LogPosition, LogStore};
use crate::store::snapshot::{SnapshotFile, SnapshotOffer};
use crate::store::state::{Mark, StateRoot, StateStore};

/// A fetched snapshot, verified and loaded, that is not current yet.
pub struct Prepared<M, S> {
    pub(crate) file: SnapshotFile,
    pub(crate) state_dir: String,
    pub(crate) state: S,
    pub(crate) machine: M,
}

impl<M, S> std::fmt::Debug for Prepared<M, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

pub(super) struct Side<M: Machine, R: StateRoot> {
    pub(super) machine: M,
    pub(super) mark: Mark,
    pub(super) state: R::Store,
    root: Arc<R>,
    prepared: Option<Prepared<M, R::Store>>,
    /// Set when a snapshot became current, until the replica has seen it.
    pub(super) installed: Option<LogPosition>,
    pub(super) waiting: BTreeMap<u64, Waiting>,
    pub(super) read_states: Vec<ReadState>,
    pub(super) snapshots_sent: Vec<u64>,
    pub(super) bytes_since_snapshot: u64,
    /// Changes of the group that were applied, with what became of them.
    pub(super) settled: Vec<(LogPosition, Result<(), String>)>,
    pub(super) digests: Digests,
    /// Entries between two digests.
    digest_entries: u64,
    us: u64,
    pub(super) outputs: Vec<Output<M>>,
    counters: Arc<Counters>,
}

impl<M: Machine, R: StateRoot> Side<M, R> {
    pub(super) fn new(
        machine: M,
        root: Arc<R>,
        state: R::Store,
        (us, digest_entries): (u64, u64),
        counters: Arc<Counters>,
    ) -> Self {
        Side {
            machine,
            mark: state.mark(),
            state,
            root,
            prepared: None,
            installed: None,
            waiting: BTreeMap::new(),
            read_states: Vec::new(),
            snapshots_sent: Vec::new(),
            bytes_since_snapshot: 0,
            settled: Vec::new(),
            digests: Digests::default(),
            digest_entries,
            us,
            outputs: Vec::new(),
            counters,
        }
    }

    pub(super) fn member<L: LogStore>(&self, core: &Core<L>) -> u64 {
        core.meta().map_or(0, |meta| meta.identity.member)
    }

    pub(super) fn prepare(&mut self, prepared: Prepared<M, R::Store>) {
        self.prepared = Some(prepared);
    }

    pub(super) fn is_prepared(&self, offer: &SnapshotOffer) -> bool {
        self.prepared
            .as_ref()
            .is_some_and(|prepared| prepared.file.offer() == *offer)
    }

    pub(super) fn refuse(&mut self, ticket: Ticket, error: ProposeError) {
        self.outputs.push(Output::Answered(ticket, Err(error)));
    }

    /// Fails everybody who waits. Returns how many.
    pub(super) fn forget_waiting(&mut self) -> u64 {
        let mut lost = 0;
        for ticket in std::mem::take(&mut self.waiting)
            .into_values()
            .flat_map(|w| w.tickets)
        {
            self.refuse(ticket, ProposeError::Unknown);
            lost += 1;
        }
        lost
    }

    fn apply_one(&mut self, committed: Committed) -> Result<(), ReplicaError> {
        let LogPosition { index, term } = committed.position;
        self.mark.position = committed.position;
        self.bytes_since_snapshot += committed.data.len() as u64;
        let waiting = self.waiting.remove(&index);
        let mut tickets = Vec::new();
        match waiting {
            Some(waiting) if waiting.term == term => tickets = waiting.tickets,
            Some(waiting) => {
                // Another leader's entry was committed here, so ours never can be.
                for ticket in waiting.tickets {
                    self.refuse(ticket, ProposeError::NotLeader { leader: None });
                }
            }
            None => {}
        }
        if committed.data.is_empty() {
            return Ok(());
        }
        let entry = entry::decode(index, committed.data).map_err(ReplicaError::Envelope)?;
        self.mark.now_ms = self.mark.now_ms.max(entry.now_ms);
        count(&self.counters.entries_applied, 1);
        count(&self.counters.commands_applied, entry.commands.len() as u64);
        let mut tickets = tickets.into_iter();
        for (ordinal, logged) in (0..).zip(entry.commands) {
            let command = M::decode(logged.kind, &logged.body)
                .map_err(|source| ReplicaError::Command { index, source })?;
            let at = Position {
                index,
                term,
                ordinal,
                now_ms: self.mark.now_ms,
            };
            let answer = self.machine.apply(at, command);
            if let Some(ticket) = tickets.next() {
                count(&self.counters.proposals_committed, 1);
                let position = LogPosition { index, term };
                let applied = Applied {
                    position,
                    ordinal,
                    answer,
                };
                self.outputs.push(Output::Answered(ticket, Ok(applied)));
            }
        }
        Ok(())
    }
}

/// [`Side`] with the way out for messages.
pub(super) struct Round<'a, M: Machine, R: StateRoot> {
    pub(super) side: &'a mut Side<M, R>,
    pub(super) send: &'a mut dyn FnMut(Vec<Message>),
}

impl<M: Machine, R: StateRoot> Host for Round<'_, M, R> {
    type Error = ReplicaError;

    fn send(&mut self, messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        count(&self.side.counters.messages_sent, messages.len() as u64);
        let offers = messages
            .iter()
            .filter(|m| m.get_msg_type() == MessageType::MsgSnapshot);
        self.side
            .snapshots_sent
            .extend(offers.map(|message| message.to));
        (self.send)(messages);
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<Installed, ReplicaError> {
        self.side.install(snapshot)
    }

    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), ReplicaError> {
        self.side.apply(entries)
    }

    fn reads(&mut self, states: Vec<ReadState>) {
        self.side.read_states.extend(states);
    }

    fn settled(&mut self, position: LogPosition, outcome: Result<(), String>) {
        self.side.settled.push((position, outcome));
    }
}

impl<M: Machine, R: StateRoot> Side<M, R> {
    fn install(&mut self, snapshot: &Snapshot) -> Result<Installed, ReplicaError> {
        let index = snapshot.get_metadata().index;
        let wanted = SnapshotOffer::decode(snapshot.get_data());
        let prepared = self
            .prepared
            .take()
            .filter(|prepared| wanted.as_ref() == Some(&prepared.file.offer()))
            .ok_or(ReplicaError::NotPrepared { index })?;
        let Prepared {
            file,
            state_dir,
            mut state,
            machine,
        } = prepared;
        self.root
            .adopt_history(&mut state, &self.state)
            .map_err(ReplicaError::State)?;
        self.machine = machine;
        self.mark = state.mark();
        std::mem::replace(&mut self.state, state).retire();
        self.bytes_since_snapshot = 0;
        self.digests.clear();
        self.installed = Some(file.header.mark.position);
        // Nothing that waits here can be answered any more: its entries were skipped.
        self.forget_waiting();
        tracing::info!(log_index = index, %state_dir, "A snapshot from a peer becomes current.");
        Ok(Installed {
            state_dir,
            offer: file.offer(),
            members: file.header.members,
        })
    }

    /// One atomic batch: what changed, and how far we are.
    fn write(&mut self) -> Result<(), ReplicaError> {
        let changes = self.machine.take_changes();
        self.state
            .write(self.mark, changes)
            .map_err(ReplicaError::State)
    }

    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), ReplicaError> {
        for committed in entries {
            let index = committed.position.index;
            let verdict = committed.verdict.clone();
            self.apply_one(committed)?;
            if let Some(verdict) = verdict {
                check_verdict(&mut self.digests, &self.counters, self.us, &verdict)?;
            }
            if index.is_multiple_of(self.digest_entries) {
                // The digest covers what was taken: rounds end elsewhere on every member.
                self.write()?;
                self.digests.take(index, self.machine.view().digest());
            }
        }
        self.write()
    }
}
