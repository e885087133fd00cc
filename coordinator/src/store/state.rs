//! The materialised state: the applied records, the history, and how far the log was applied.
//!
//! One [`StateStore::write`] carries the record changes *and* the applied mark, so a restart never
//! applies a command twice or skips one. It is not synced: what a crash takes away is replayed from
//! the log. [`StateStore::syncer`] makes everything durable and must have run before the log is
//! compacted, because history lives nowhere else on this member.
//!
//! *Records* are the live state; a snapshot holds all of them. *History* is append-only and
//! immutable until it is pruned to its hash, numbered from 1 and chained by a rolling hash; it is not part of snapshots, so a
//! member that installed one has a [`HistoryGap`] until a peer has filled it.

use super::disk::DiskError;
use super::log::LogPosition;

mod behind;
pub(crate) mod life;
pub mod memory;
pub mod tree;

/// A key and its value.
pub type Record = (Vec<u8>, Vec<u8>);

/// How far the log was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Last applied entry.
    pub position: LogPosition,
    /// Leader time of the last applied entry, milliseconds since the epoch.
    pub now_ms: u64,
}

/// What one round of applying changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Final value of each touched key; `None` deletes. No key twice.
    pub records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Appended to the history in this order.
    pub history: Vec<Vec<u8>>,
    /// Numbers of history records of which only the hash is kept from now on, after the appends.
    /// One that is not here is left alone: this member has a gap there, and what a peer fills it with
    /// may be pruned already.
    pub pruned: Vec<u64>,
    /// Digest of the live records with these changes, for whoever opens the state again.
    pub digest: Option<[u8; 32]>,
}

/// End of a stretch of history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryTail {
    /// Number of the last record, 0 when there is none.
    pub last: u64,
    /// Rolling hash over all records up to `last`.
    pub hash: [u8; 32],
}

/// First byte of what is left of a pruned record; no MessagePack value begins with it.
const TOMBSTONE: u8 = 0xc1;

/// What is left of a record when it is pruned: its hash, so that the chain can still be checked.
#[must_use]
pub fn tombstone(record: &[u8]) -> Vec<u8> {
    let mut left = vec![TOMBSTONE];
    left.extend_from_slice(&record_hash(record));
    left
}

/// Whether this is what is left of a pruned record.
#[must_use]
pub fn is_tombstone(record: &[u8]) -> bool {
    record.len() == 33 && record[0] == TOMBSTONE
}

fn record_hash(record: &[u8]) -> [u8; 32] {
    match record.split_first() {
        Some((&TOMBSTONE, hash)) => hash
            .try_into()
            .unwrap_or_else(|_| *blake3::hash(record).as_bytes()),
        _ => *blake3::hash(record).as_bytes(),
    }
}

impl HistoryTail {
    /// The tail after one more record, pruned or not.
    #[must_use]
    pub fn then(self, record: &[u8]) -> Self {
        let last = self.last + 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.hash);
        hasher.update(&last.to_le_bytes());
        hasher.update(&record_hash(record));
        HistoryTail {
            last,
            hash: *hasher.finalize().as_bytes(),
        }
    }
}

/// A stretch of history that this member does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryGap {
    /// Last record before the gap.
    pub after: HistoryTail,
    /// Last record of the gap.
    pub until: HistoryTail,
}

/// Failed to use the materialised state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The engine failed.
    #[error("{action} the state in {place}")]
    Engine {
        /// Verb.
        action: &'static str,
        /// Directory.
        place: String,
        /// Cause.
        #[source]
        source: sled::Error,
    },
    /// A file below it cannot be made durable or removed.
    #[error("keep the state on disk")]
    Disk(#[source] DiskError),
    /// What is stored cannot be right.
    #[error("trust the state in {place}: {problem}")]
    Damaged {
        /// Directory.
        place: String,
        /// What does not fit.
        problem: String,
    },
    /// A peer sent history that does not continue ours.
    #[error("accept history {first}..={last} from a peer: {problem}")]
    ForeignHistory {
        /// First record offered.
        first: u64,
        /// Last record offered.
        last: u64,
        /// What does not fit.
        problem: &'static str,
    },
}

/// Makes everything written so far durable; runs on any thread.
pub type Syncer = Box<dyn FnOnce() -> Result<(), StateError> + Send>;

/// Reads history from any thread, for peers that lack some and for lists of finished work.
pub trait HistoryReader: Send + Sync {
    /// Records from `first` on, in order, until `max_bytes` is exceeded or the history ends or a
    /// gap begins. Empty if `first` is not here.
    ///
    /// # Errors
    /// [`StateError::Engine`].
    fn read(&self, first: u64, max_bytes: usize) -> Result<Vec<Vec<u8>>, StateError>;
}

/// The materialised state of one member. Owned by one thread.
pub trait StateStore: Send + 'static {
    /// How far the log was applied.
    fn mark(&self) -> Mark;
    /// Digest of the records as of the last write, if it is known.
    fn digest(&self) -> Option<[u8; 32]> {
        None
    }
    /// End of the history, gap or not.
    fn history(&self) -> HistoryTail;
    /// What is missing before the end.
    fn gap(&self) -> Option<HistoryGap>;
    /// Writes changes and mark atomically.
    ///
    /// # Errors
    /// [`StateError::Engine`]; the member must stop.
    fn write(&mut self, mark: Mark, changes: Changes) -> Result<(), StateError>;
    /// All records in key order.
    fn records(&self) -> Box<dyn Iterator<Item = Result<Record, StateError>> + '_>;
    /// A reader that stays valid until the store is replaced.
    fn history_reader(&self) -> std::sync::Arc<dyn HistoryReader>;
    /// Fills the beginning of the gap.
    ///
    /// # Errors
    /// [`StateError::ForeignHistory`] if the records do not lead to the known hash.
    fn fill(&mut self, first: u64, records: Vec<Vec<u8>>) -> Result<(), StateError>;
    /// See [`Syncer`].
    fn syncer(&self) -> Syncer;
    /// Says that it will never be opened again: it may end without care for what is in it.
    fn retire(&mut self) {}
}

/// Where state stores live: one directory each, only one of them current.
pub trait StateRoot: Send + Sync + 'static {
    /// What it opens.
    type Store: StateStore;

    /// Opens an existing, complete store.
    ///
    /// # Errors
    /// Any; the caller rebuilds from a snapshot file and the log.
    fn open(&self, name: &str) -> Result<Self::Store, StateError>;
    /// Makes a store from a snapshot, durably. Its whole history is a gap.
    ///
    /// # Errors
    /// Any; the half-made directory is of no consequence, because it is not current.
    fn create(
        &self,
        name: &str,
        mark: Mark,
        history: HistoryTail,
        records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<Self::Store, StateError>;
    /// Copies what `from` has of the history into `to`, durably.
    ///
    /// # Errors
    /// [`StateError::Engine`].
    fn adopt_history(&self, to: &mut Self::Store, from: &Self::Store) -> Result<(), StateError>;
    /// Copies what can be had of the history of a store that is not believed. The history is chained,
    /// so what does not belong there is noticed.
    ///
    /// # Errors
    /// Any; what is missing then is had from the other members.
    fn salvage(&self, _to: &mut Self::Store, _name: &str) -> Result<(), StateError> {
        Ok(())
    }
    /// Removes every store but `current`.
    ///
    /// # Errors
    /// [`StateError::Disk`].
    fn sweep(&self, current: &str) -> Result<(), StateError>;
}

/// Name of the state directory after `name`.
#[must_use]
pub fn next_name(name: &str) -> String {
    let number = name
        .rsplit('-')
        .next()
        .and_then(|n| n.parse::<u64>().ok())
        .unwrap_or(0);
    format!("state-{:06}", number + 1)
}

/// Checks records offered for a gap and returns the tail that they lead to.
///
/// # Errors
/// [`StateError::ForeignHistory`].
pub fn check_fill(
    gap: Option<HistoryGap>,
    first: u64,
    records: &[Vec<u8>],
) -> Result<(HistoryGap, HistoryTail), StateError> {
    let last = first + records.len() as u64 - u64::from(!records.is_empty());
    let foreign = |problem| StateError::ForeignHistory {
        first,
        last,
        problem,
    };
    let gap = gap.ok_or_else(|| foreign("nothing is missing here"))?;
    if first != gap.after.last + 1 || records.is_empty() || last > gap.until.last {
        return Err(foreign("they are not what was asked for"));
    }
    let reached = records
        .iter()
        .fold(gap.after, |tail, record| tail.then(record));
    if reached.last == gap.until.last && reached.hash != gap.until.hash {
        return Err(foreign("their hash is not the one the snapshot announced"));
    }
    Ok((gap, reached))
}
