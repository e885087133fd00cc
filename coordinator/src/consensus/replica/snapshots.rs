//! Snapshots and history: making them, offering them, and taking those of others.
//!
//! ```text
//! leader:    wanted -> made -> offered -> (retry_ticks without an answer) -> offered again
//! follower:  offer -> fetched, verified, loaded -> shown to raft -> installed in the next round
//! ```

use std::collections::BTreeMap;

use raft::eraftpb::Message;

use super::{Output, Prepared, Replica, ReplicaError, SnapshotJob};
use crate::consensus::chain;
use crate::consensus::counters::{count, set};
use crate::consensus::machine::Machine;
use crate::store::log::{LogPosition, LogStore};
use crate::store::snapshot::{SnapshotFile, SnapshotHeader, SnapshotOffer};
use crate::store::state::{StateRoot, StateStore};

/// Making and passing on snapshots.
#[derive(Default)]
pub(super) struct Snapshots {
    pub(super) newest: Option<LogPosition>,
    /// Position and bytes applied when the last one was begun.
    pub(super) begun_at: u64,
    pub(super) making: bool,
    /// Peers that were offered one, and the tick at which the offer is repeated.
    pub(super) offered: BTreeMap<u64, u64>,
    /// An offer that we fetch, and the message that carried it.
    pub(super) fetching: Option<(SnapshotOffer, Message)>,
    /// Another offer that came meanwhile.
    pub(super) later: Option<Message>,
    /// A fetch of history is under way.
    pub(super) filling: bool,
    /// Tick before which no history is asked for.
    pub(super) fill_after: u64,
    /// All of the history is known to be on our disk, also if power is lost. What comes anew is in the log
    /// until then.
    pub(super) kept: bool,
}

/// Ticks between attempts to fill a gap in the history.
const FILL_RETRY_TICKS: u64 = 20;

impl<M: Machine, L: LogStore, R: StateRoot> Replica<M, L, R> {
    pub(super) fn offered(&mut self, message: Message) -> Result<(), ReplicaError> {
        let Some(offer) = SnapshotOffer::decode(message.get_snapshot().get_data()) else {
            tracing::warn!(
                from = message.from,
                "A snapshot offer cannot be read and is ignored."
            );
            return Ok(());
        };
        // Raft refuses or fast-forwards these without needing the content.
        let useless = message.term < self.core.term()
            || offer.position.index <= self.core.commit()
            || self.core.has(offer.position);
        if useless || self.side.is_prepared(&offer) {
            return Ok(self.core.receive(message)?);
        }
        match &mut self.snapshot.fetching {
            Some((current, kept)) if *current == offer => *kept = message,
            Some(_) => self.snapshot.later = Some(message),
            None => {
                self.side.outputs.push(Output::Fetch {
                    from: message.from,
                    offer: offer.clone(),
                    state_dir: self.next_state_dir(),
                });
                self.snapshot.fetching = Some((offer, message));
            }
        }
        Ok(())
    }

    fn next_state_dir(&self) -> String {
        crate::store::state::next_name(self.core.meta().map_or("", |meta| &meta.state_dir))
    }

    /// A fetch ended; `None` says that it failed and the offer may come again.
    ///
    /// # Errors
    /// See [`Replica::receive`].
    pub fn fetched(&mut self, prepared: Option<Prepared<M, R::Store>>) -> Result<(), ReplicaError> {
        let fetching = self.snapshot.fetching.take();
        let taken = prepared.is_some();
        if let Some(prepared) = prepared {
            self.side.prepare(prepared);
        }
        if let Some((offer, message)) = fetching
            && self.side.is_prepared(&offer)
        {
            self.offered(message)?;
        }
        match self.snapshot.later.take() {
            // After a snapshot that came the log may be enough; else the leader offers again.
            Some(later) if !taken => self.offered(later),
            _ => Ok(()),
        }
    }

    /// A snapshot job ended; `None` says that it failed, and it is tried again later.
    ///
    /// # Errors
    /// [`ReplicaError::Core`] if the log cannot be compacted.
    pub fn snapshot_made(&mut self, file: Option<&SnapshotFile>) -> Result<(), ReplicaError> {
        self.snapshot.making = false;
        let Some(file) = file else {
            count(&self.counters.snapshots_failed, 1);
            return Ok(());
        };
        count(&self.counters.snapshots_made, 1);
        set(&self.counters.snapshot_bytes, file.length);
        let position = file.header.mark.position;
        // One from a peer may have become current meanwhile.
        if self
            .snapshot
            .newest
            .is_none_or(|newest| newest.index < position.index)
        {
            self.snapshot.newest = Some(position);
            self.core
                .set_offer(file.offer(), file.header.conf_state.clone());
        }
        Ok(self
            .core
            .compact(position.index.saturating_sub(self.options.trailing_entries))?)
    }

    /// A fetch of history ended.
    pub fn history_fetched(&mut self, first: u64, records: Vec<Vec<u8>>) {
        self.snapshot.filling = false;
        if records.is_empty() {
            self.snapshot.fill_after = self.ticks + FILL_RETRY_TICKS;
            return;
        }
        self.snapshot.kept = false;
        if let Err(error) = self.side.state.fill(first, records) {
            let error = chain(&error);
            tracing::warn!(
                error,
                "A peer's history was not accepted; another one is asked."
            );
            self.snapshot.fill_after = self.ticks + FILL_RETRY_TICKS;
        }
        self.fill_history();
    }

    /// Finds out whether we have all of the history, and makes sure that it stays. Waits for the disk, so
    /// it is for what people ask for.
    pub(super) fn keep_history(&mut self) {
        if self.snapshot.kept || self.side.state.gap().is_some() {
            return;
        }
        match self.side.state.syncer()() {
            Ok(()) => self.snapshot.kept = true,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "The history could not be made durable.");
            }
        }
    }

    pub(super) fn fill_history(&mut self) {
        let Some(gap) = self.side.state.gap() else {
            return;
        };
        if self.snapshot.filling || self.ticks < self.snapshot.fill_after {
            return;
        }
        // The leader first, then whoever: anybody may have lost the same stretch.
        let us = self.side.member(&self.core);
        let mut peers: Vec<u64> = self
            .core
            .meta()
            .map(|meta| {
                // A voter that became a learner may be the only one that has it.
                let conf = &meta.conf_state;
                [conf.voters.as_slice(), conf.learners.as_slice()].concat()
            })
            .unwrap_or_default();
        peers.retain(|peer| *peer != us);
        let turn = usize::try_from(self.ticks / FILL_RETRY_TICKS).unwrap_or(0);
        let chosen = match self.core.leader() {
            Some(leader) if leader != us && turn.is_multiple_of(2) => Some(leader),
            _ => peers.get(turn % peers.len().max(1)).copied(),
        };
        if let Some(from) = chosen {
            self.snapshot.filling = true;
            self.side.outputs.push(Output::FetchHistory { from, gap });
        }
    }

    pub(super) fn consider_snapshot(&mut self) {
        let applied = self.side.mark.position;
        let due = applied.index.saturating_sub(self.snapshot.begun_at)
            >= self.options.snapshot_entries
            || self.side.bytes_since_snapshot >= self.options.snapshot_bytes;
        // A follower is waiting for one that we do not have.
        let wanted = self.core.take_snapshot_wanted();
        let newer = self
            .snapshot
            .newest
            .is_none_or(|newest| newest.index < applied.index);
        if self.snapshot.making || !newer || !(due || wanted) {
            return;
        }
        let Some(meta) = self.core.meta() else { return };
        if meta.conf_index > applied.index {
            // Just restarted: the configuration is newer than the state, and a file must not mix
            // them.
            return;
        }
        let view = self.side.machine.view();
        let header = SnapshotHeader {
            cluster: meta.identity.cluster.clone(),
            mark: self.side.mark,
            conf_state: meta.conf_state.clone(),
            members: meta.members.clone(),
            // Filled in by whoever writes the file: hashing everything takes time.
            digest: [0; 32],
            history: self.side.state.history(),
        };
        self.snapshot.making = true;
        self.snapshot.begun_at = applied.index;
        self.side.bytes_since_snapshot = 0;
        let sync = self.side.state.syncer();
        let job = Box::new(SnapshotJob { header, view, sync });
        self.side.outputs.push(Output::TakeSnapshot(job));
    }

    /// The newest snapshot file that our log follows.
    pub fn newest_snapshot(&self) -> Option<LogPosition> {
        self.snapshot.newest
    }

    /// Whether a snapshot file is being made of the current state store.
    pub fn makes_snapshot(&self) -> bool {
        self.snapshot.making
    }

    /// Name of the current state directory.
    pub fn state_dir(&self) -> &str {
        self.core.meta().map_or("", |meta| &meta.state_dir)
    }
}
