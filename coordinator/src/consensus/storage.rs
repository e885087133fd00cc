//! raft-rs's view of the log store.

use std::cell::Cell;

use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::store::log::{LogError, LogStore};
use crate::store::snapshot::SnapshotOffer;

/// [`Storage`] over a [`LogStore`] and the newest snapshot file.
pub(crate) struct RaftStorage<L> {
    pub(crate) log: L,
    /// What a follower that is too far behind is offered.
    pub(crate) offer: Option<(SnapshotOffer, ConfState)>,
    /// raft-rs asked for a snapshot and there was none.
    wanted: Cell<bool>,
}

impl<L> RaftStorage<L> {
    pub(crate) fn new(log: L, offer: Option<(SnapshotOffer, ConfState)>) -> Self {
        RaftStorage {
            log,
            offer,
            wanted: Cell::new(false),
        }
    }

    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.take()
    }
}

fn is_member(conf: &ConfState, member: u64) -> bool {
    [&conf.voters, &conf.learners, &conf.voters_outgoing]
        .iter()
        .any(|part| part.contains(&member))
}

fn other(error: LogError) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(error)))
}

impl<L: LogStore> Storage for RaftStorage<L> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = self
            .log
            .meta()
            .map(|meta| meta.conf_state.clone())
            .unwrap_or_default();
        Ok(RaftState::new(self.log.hard_state().clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.log.first_index() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.log.last_index() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if low >= high {
            return Ok(Vec::new());
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        self.log.entries(low, high, max_size).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.log.term(index).map_err(other)? {
            Some(term) => Ok(term),
            None if index < self.log.first_index() => {
                Err(raft::Error::Store(StorageError::Compacted))
            }
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.log.first_index())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.log.last_index())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // The log must continue right after the snapshot.
        let lowest = request_index.max(self.log.first_index() - 1);
        match &self.offer {
            // raft-rs throws a snapshot away that was taken before its receiver was added.
            Some((offer, conf_state))
                if offer.position.index >= lowest && is_member(conf_state, to) =>
            {
                let mut snapshot = Snapshot::default();
                snapshot.set_data(offer.encode().into());
                let metadata = snapshot.mut_metadata();
                metadata.index = offer.position.index;
                metadata.term = offer.position.term;
                metadata.set_conf_state(conf_state.clone());
                Ok(snapshot)
            }
            _ => {
                self.wanted.set(true);
                Err(raft::Error::Store(
                    StorageError::SnapshotTemporarilyUnavailable,
                ))
            }
        }
    }
}
