//! Finished runs and rollouts by id, over this member's history.
//!
//! The history is a list of records by number; people ask by id. The index here is memory, made
//! from the history and brought up to date before every look, so it can never claim less than a
//! ledger view that was taken before. While a member that installed a snapshot still lacks the
//! beginning of its history, what is missing is simply not found yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oast_model::codec::{self, DecodeError};
use oast_model::ids::{RolloutId, RunId};
use oast_model::ledger::{RolloutRecord, RunRecord};
use oast_model::names::{FleetName, TeamName};

use crate::consensus::handle::Handle;
use crate::consensus::ledger::{Archived, LedgerMachine};
use crate::store::state::{StateError, is_tombstone};

/// Bytes of history indexed in one step.
const STEP_BYTES: usize = 1 << 20;
/// Kind of a run's record.
const RUN: u8 = b'r';
/// Kind of a rollout's record.
const ROLLOUT: u8 = b'o';

/// Finished work. Clones share the index.
#[derive(Clone, Debug)]
pub struct Archive {
    handle: Handle<LedgerMachine>,
    index: Arc<Mutex<Index>>,
}

#[derive(Debug, Default)]
struct Index {
    /// Records seen so far.
    seen: u64,
    runs: BTreeMap<RunId, (u64, TeamName)>,
    rollouts: BTreeMap<RolloutId, (u64, TeamName, FleetName)>,
}

/// The history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Storage.
    #[error("read the history of finished runs")]
    State(#[source] StateError),
    /// A record of a newer binary, or a damaged one.
    #[error("read record {number} of the history")]
    Record {
        /// Which.
        number: u64,
        /// Why.
        #[source]
        err: DecodeError,
    },
}

impl Archive {
    /// An archive of this member's history. The first look reads all of it.
    pub fn new(handle: Handle<LedgerMachine>) -> Archive {
        Archive {
            handle,
            index: Arc::default(),
        }
    }

    /// Brings the index up to date. Blocks; worth calling once at the start.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn refresh(&self) -> Result<(), ArchiveError> {
        self.current().map(drop)
    }

    /// A finished run.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn run(&self, id: RunId) -> Result<Option<RunRecord>, ArchiveError> {
        let number = self.current()?.runs.get(&id).map(|(number, _)| *number);
        number.map_or(Ok(None), |number| self.record(number))
    }

    /// A finished rollout.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn rollout(&self, id: RolloutId) -> Result<Option<RolloutRecord>, ArchiveError> {
        let number = self.current()?.rollouts.get(&id).map(|entry| entry.0);
        number.map_or(Ok(None), |number| self.record(number))
    }

    /// Ids of finished runs below `before`, newest first.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn runs_before(
        &self,
        before: Option<RunId>,
        limit: usize,
        wanted: impl Fn(&TeamName) -> bool,
    ) -> Result<Vec<RunId>, ArchiveError> {
        let index = self.current()?;
        let newest_first = index.runs.iter().rev();
        Ok(newest_first
            .filter(|(id, (_, team))| before.is_none_or(|before| **id < before) && wanted(team))
            .map(|(id, _)| *id)
            .take(limit)
            .collect())
    }

    /// Ids of finished rollouts, newest first.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn rollouts(
        &self,
        limit: usize,
        wanted: impl Fn(&TeamName, &FleetName) -> bool,
    ) -> Result<Vec<RolloutId>, ArchiveError> {
        let index = self.current()?;
        let newest_first = index.rollouts.iter().rev();
        Ok(newest_first
            .filter(|(_, (_, team, fleet))| wanted(team, fleet))
            .map(|(id, _)| *id)
            .take(limit)
            .collect())
    }

    fn record<T: serde::de::DeserializeOwned>(
        &self,
        number: u64,
    ) -> Result<Option<T>, ArchiveError> {
        // One byte is exceeded by the first record, so that is all that is read.
        let records = self
            .handle
            .history()
            .read(number, 1)
            .map_err(ArchiveError::State)?;
        let bad = |err| ArchiveError::Record { number, err };
        let Some(record) = records.first().filter(|record| !is_tombstone(record)) else {
            // It was pruned since it was indexed.
            return Ok(None);
        };
        let archived: Archived = codec::decode(record).map_err(bad)?;
        codec::decode(&archived.bytes).map(Some).map_err(bad)
    }

    fn current(&self) -> Result<MutexGuard<'_, Index>, ArchiveError> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let history = self.handle.history();
        loop {
            let records = history
                .read(index.seen + 1, STEP_BYTES)
                .map_err(ArchiveError::State)?;
            if records.is_empty() {
                return Ok(index);
            }
            for record in records {
                let number = index.seen + 1;
                index
                    .add(number, &record)
                    .map_err(|err| ArchiveError::Record { number, err })?;
                index.seen = number;
            }
        }
    }
}

impl Index {
    fn add(&mut self, number: u64, record: &[u8]) -> Result<(), DecodeError> {
        if is_tombstone(record) {
            return Ok(());
        }
        let archived: Archived = codec::decode(record)?;
        match archived.kind {
            RUN => {
                let RunRecord { run, .. } = codec::decode(&archived.bytes)?;
                self.runs.insert(run.id, (number, run.team));
            }
            ROLLOUT => {
                let RolloutRecord { rollout, .. } = codec::decode(&archived.bytes)?;
                let entry = (number, rollout.team, rollout.fleet);
                self.rollouts.insert(rollout.id, entry);
            }
            // A later kind of record, which nobody asks this binary for.
            _ => {}
        }
        Ok(())
    }
}
