//! Finished runs and rollouts, by id and in lists, over this member's history.
//!
//! The history is a list of records by number; people ask by id, by team, by commit. The way from
//! there to a number is an index in a sled of its own, [`index`], on this member's disk and bounded
//! in memory: it does not grow with the number of finished runs. It is made from the history,
//! brought up to date before every look, so it can never claim less than a ledger view that was
//! taken before, and made anew when it does not fit the history. While a member that installed a
//! snapshot still lacks the beginning of its history, what is missing is simply not found yet.

mod index;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use oast_model::codec::{self, DecodeError};
use oast_model::ids::{RolloutId, RunId, Seq};
use oast_model::ledger::{RolloutRecord, RunRecord};
use oast_model::time::Timestamp;
use serde::de::DeserializeOwned;

use crate::consensus::chain;
use crate::consensus::handle::Handle;
use crate::consensus::ledger::{Archived, LedgerMachine};
use crate::store::disk::DiskError;
use crate::store::state::{StateError, is_tombstone};
use index::Index;
pub use index::{By, RolloutSummary, RunSummary, Summary};

/// Bytes of history indexed in one step.
const STEP_BYTES: usize = 1 << 20;
/// Entries of the index that one list looks at.
pub const SCAN_MAX: usize = 20_000;
/// Kind of a run's record.
const RUN: u8 = b'r';
/// Kind of a rollout's record.
const ROLLOUT: u8 = b'o';

/// Finished work. Clones share the index.
#[derive(Clone, Debug)]
pub struct Archive {
    handle: Handle<LedgerMachine>,
    index: Arc<Index>,
    /// How far the index has come; held while more is added.
    seen: Arc<Mutex<Seen>>,
}

/// What the index was made from.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Records so far.
    number: u64,
    /// A restored farm has another, and another history from some record on.
    epoch: u64,
}

/// The history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Storage.
    #[error("read the history of finished runs")]
    State(#[source] StateError),
    /// The index's storage.
    #[error("use the index of finished runs")]
    Index(#[source] sled::Error),
    /// The index's folder.
    #[error("make the index of finished runs")]
    Folder(#[source] DiskError),
    /// A record of a newer binary, or a damaged one.
    #[error("read record {number} of the history")]
    Record {
        /// Which.
        number: u64,
        /// Why.
        #[source]
        err: DecodeError,
    },
    /// An entry of the index that cannot be read.
    #[error("read the index of finished runs: remove its folder, it is made anew")]
    Entry(#[source] DecodeError),
}

/// Which finished things are wanted, newest first.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the index looks under; everything found is still asked about.
    pub by: By,
    /// Only older ones than this.
    pub before: Option<Seq>,
    /// Only begun at this time or later.
    pub since: Option<Timestamp>,
    /// Only begun before this time.
    pub until: Option<Timestamp>,
    /// At most so many.
    pub limit: usize,
}

/// What a list found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Ids, newest first.
    pub ids: Vec<Seq>,
    /// The last entry that was looked at, when the look ended before its end.
    pub stopped: Option<Seq>,
}

impl Archive {
    /// An archive of this member's history with its index in `folder`. The first look reads what
    /// was not indexed before.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(handle: Handle<LedgerMachine>, folder: &Path) -> Result<Archive, ArchiveError> {
        let index = Index::open(folder)?;
        let archive = Archive {
            handle,
            index: Arc::new(index),
            seen: Arc::default(),
        };
        archive.agree()?;
        Ok(archive)
    }

    /// Forgets an index that was made from another history.
    fn agree(&self) -> Result<(), ArchiveError> {
        let Some((seen, hash)) = self.index.seen().map_err(ArchiveError::Index)? else {
            return self.index.clear().map_err(ArchiveError::Index);
        };
        let records = self.handle.history().read(seen.number, 1);
        let records = records.map_err(ArchiveError::State)?;
        // A record that is not here yet is still the same one: the history is replicated.
        match records.first() {
            Some(record) if index::hash(record) != hash => self.anew(),
            _ => {
                *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
                Ok(())
            }
        }
    }

    fn anew(&self) -> Result<(), ArchiveError> {
        tracing::warn!("The index of finished runs is of another history; it is made anew.");
        self.index.clear().map_err(ArchiveError::Index)
    }

    /// Brings the index up to date. Blocks; worth calling once at the start.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn refresh(&self) -> Result<(), ArchiveError> {
        self.kept(self.catch_up())
    }

    /// After a failed write sled takes and gives nothing more, in this life of the process. The member
    /// stops, as after every failed write; the next start finds an index that it can use, or makes one.
    fn kept<T>(&self, result: Result<T, ArchiveError>) -> Result<T, ArchiveError> {
        if let Err(error @ ArchiveError::Index(_)) = &result {
            self.handle.halt(format!(
                "{}. Check the disk and make room, then start the member again",
                chain(error)
            ));
        }
        result
    }

    fn catch_up(&self) -> Result<(), ArchiveError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = self.handle.view().view.seq().epoch();
        if epoch > seen.epoch {
            if seen.number > 0 {
                self.anew()?;
            }
            *seen = Seen { number: 0, epoch };
        }
        let history = self.handle.history();
        loop {
            let records = history.read(seen.number + 1, STEP_BYTES);
            let records = records.map_err(ArchiveError::State)?;
            let Some(last) = records.last() else {
                return Ok(());
            };
            let mut step = self.index.step();
            for (number, record) in (seen.number + 1..).zip(&records) {
                add(&mut step, number, record)
                    .map_err(|err| ArchiveError::Record { number, err })?;
            }
            let next = Seen {
                number: seen.number + records.len() as u64,
                ..*seen
            };
            step.finish(next, last).map_err(ArchiveError::Index)?;
            *seen = next;
        }
    }

    /// A finished run.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn run(&self, id: RunId) -> Result<Option<RunRecord>, ArchiveError> {
        self.record::<RunSummary, _>(id.0)
    }

    /// A finished rollout.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn rollout(&self, id: RolloutId) -> Result<Option<RolloutRecord>, ArchiveError> {
        self.record::<RolloutSummary, _>(id.0)
    }

    /// What lists know of a finished thing.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn summary<S: Summary>(&self, id: Seq) -> Result<Option<S>, ArchiveError> {
        self.refresh()?;
        self.kept(self.index.summary(id))
    }

    /// Finished things that are wanted and of which `keep` says yes. Looks at [`SCAN_MAX`]
    /// entries at most.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn list<S: Summary>(
        &self,
        wanted: &Wanted,
        keep: impl Fn(&S) -> bool,
    ) -> Result<Found, ArchiveError> {
        self.refresh()?;
        self.kept(self.look(wanted, keep))
    }

    fn look<S: Summary>(
        &self,
        wanted: &Wanted,
        keep: impl Fn(&S) -> bool,
    ) -> Result<Found, ArchiveError> {
        let mut found = Found::default();
        let before = match (wanted.before, wanted.until) {
            (before, None) => before,
            (before, Some(until)) => {
                let begun = self.index.begun_before::<S>(until, before)?;
                match begun {
                    // Nothing began before that time.
                    None => return Ok(found),
                    Some(newest) => {
                        Some(before.unwrap_or(Seq::from_u64(u64::MAX)).min(after(newest)))
                    }
                }
            }
        };
        for (looked, id) in self.index.newest_first::<S>(&wanted.by, before).enumerate() {
            let id = id.map_err(ArchiveError::Index)?;
            if let Some(summary) = self.index.summary::<S>(id)? {
                if wanted.since.is_some_and(|since| summary.began() < since) {
                    return Ok(found);
                }
                if keep(&summary) {
                    found.ids.push(id);
                    if found.ids.len() >= wanted.limit {
                        return Ok(found);
                    }
                }
            }
            if looked + 1 >= SCAN_MAX {
                found.stopped = Some(id);
                return Ok(found);
            }
        }
        Ok(found)
    }

    fn record<S: Summary, T: DeserializeOwned>(&self, id: Seq) -> Result<Option<T>, ArchiveError> {
        let Some(summary) = self.summary::<S>(id)? else {
            return Ok(None);
        };
        let number = summary.number();
        // One byte is exceeded by the first record, so that is all that is read.
        let records = self
            .handle
            .history()
            .read(number, 1)
            .map_err(ArchiveError::State)?;
        let bad = |err| ArchiveError::Record { number, err };
        let Some(record) = records.first() else {
            return Ok(None);
        };
        if is_tombstone(record) {
            // It was pruned since it was indexed.
            let forgotten = self.index.forget(id, &summary);
            self.kept(forgotten.map_err(ArchiveError::Index))?;
            return Ok(None);
        }
        let archived: Archived = codec::decode(record).map_err(bad)?;
        codec::decode(&archived.bytes).map(Some).map_err(bad)
    }
}

fn after(id: Seq) -> Seq {
    Seq::from_u64(id.as_u64().saturating_add(1))
}

fn add(step: &mut index::Step<'_>, number: u64, record: &[u8]) -> Result<(), DecodeError> {
    if is_tombstone(record) {
        return Ok(());
    }
    let archived: Archived = codec::decode(record)?;
    match archived.kind {
        RUN => {
            let RunRecord { run, .. } = codec::decode(&archived.bytes)?;
            step.add(run.id.0, &RunSummary::of(number, &run));
        }
        ROLLOUT => {
            let RolloutRecord { rollout, .. } = codec::decode(&archived.bytes)?;
            step.add(rollout.id.0, &RolloutSummary::of(number, &rollout));
        }
        // A later kind of record, which nobody asks this binary for.
        _ => {}
    }
    Ok(())
}
