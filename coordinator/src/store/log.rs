//! The log store: entries, hard state and the facts that must change together with them.
//!
//! One [`LogWrite`] is one atomic, ordered write. That matters more than speed: a snapshot's
//! position, the configuration, the commit index and the truncation of the log, written in two
//! steps, make a member that can never start again (the commit index would lie outside its log).
//!
//! [`engine::EngineLog`] is the real one; [`memory::MemoryLog`] is its twin for tests.

use std::collections::BTreeMap;

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};

use super::identity::Identity;
use super::members::Members;

pub mod engine;
pub mod memory;

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Raft index.
    pub index: u64,
    /// Term of the entry at `index`.
    pub term: u64,
}

/// Facts kept beside the entries and changed atomically with them.
#[derive(Clone, Debug, PartialEq)]
pub struct LogMeta {
    /// The data directory's identity, repeated here so that a directory put together from two
    /// members is noticed.
    pub identity: Identity,
    /// Creation stamps of other members as far as they are known.
    pub known_stamps: BTreeMap<u64, u64>,
    /// Configuration in force.
    pub conf_state: ConfState,
    /// Who the members of that configuration are.
    pub members: Members,
    /// Index of the entry that last changed `conf_state` or `members`; older entries of that kind
    /// are not applied again when the log is replayed.
    pub conf_index: u64,
    /// Last entry that is no longer in the log.
    pub truncated: LogPosition,
    /// Name of the current state directory.
    pub state_dir: String,
}

/// One atomic write. What is `None` or empty stays as it is.
#[derive(Clone, Debug, Default)]
pub struct LogWrite {
    /// Forget all entries first: an installed snapshot replaces the log.
    pub reset: bool,
    /// Appended; an entry at or below the last index replaces it and everything after it.
    pub entries: Vec<Entry>,
    /// Term, vote and commit.
    pub hard_state: Option<HardState>,
    /// New facts. Raising `truncated` drops entries up to and including it.
    pub meta: Option<LogMeta>,
    /// Whether the write must be on the disk when the call returns.
    pub sync: bool,
}

/// Failed to use the log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The engine does not open.
    #[error(
        "open the raft log in {place}; if the disk is full make room, if the files are damaged remove this member and add it again under a new id"
    )]
    Open {
        /// Directory.
        place: String,
        /// Cause.
        #[source]
        source: raft_engine::Error,
    },
    /// The engine refused a write.
    #[error(
        "write the raft log in {place}; nothing of it was acknowledged. Check the disk and make room, then start the member again"
    )]
    Write {
        /// Directory.
        place: String,
        /// Cause.
        #[source]
        source: raft_engine::Error,
    },
    /// Entries cannot be read back.
    #[error(
        "read entries {low}..{high} of the raft log in {place}; the record is damaged: remove this member and add it again under a new id"
    )]
    Read {
        /// Directory.
        place: String,
        /// First index asked for.
        low: u64,
        /// One past the last index asked for.
        high: u64,
        /// Cause, where the engine gave one.
        #[source]
        source: Option<raft_engine::Error>,
    },
    /// What is stored contradicts itself.
    #[error(
        "trust the raft log in {place}: {problem}; remove this member and add it again under a new id"
    )]
    Inconsistent {
        /// Directory.
        place: String,
        /// What does not fit.
        problem: String,
    },
}

/// The log of one member. Owned by one thread.
pub trait LogStore: Send + 'static {
    /// Stored facts; `None` before the first write.
    fn meta(&self) -> Option<&LogMeta>;
    /// Last written term, vote and commit.
    fn hard_state(&self) -> &HardState;
    /// First index that can be read.
    fn first_index(&self) -> u64;
    /// Last index that can be read, or the truncated position's when the log is empty.
    fn last_index(&self) -> u64;
    /// Entries in `low..high`, at least one, then as many as fit in `max_bytes`. The caller keeps
    /// the range inside the log.
    ///
    /// # Errors
    /// [`LogError::Read`] when a record is damaged.
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError>;
    /// Writes atomically.
    ///
    /// # Errors
    /// [`LogError::Write`]; the member must stop, because it no longer knows what is on its disk.
    fn write(&mut self, write: LogWrite) -> Result<(), LogError>;
    /// Gives back the space of dropped entries.
    ///
    /// # Errors
    /// [`LogError::Write`].
    fn purge(&mut self) -> Result<(), LogError>;
    /// Where it is, for messages.
    fn place(&self) -> &str;

    /// Term of the entry at `index`; `None` outside the log.
    ///
    /// # Errors
    /// [`LogError::Read`] when a record is damaged.
    fn term(&self, index: u64) -> Result<Option<u64>, LogError> {
        let truncated = self.meta().map(|meta| meta.truncated).unwrap_or_default();
        if index == truncated.index {
            return Ok(Some(truncated.term));
        }
        if index < self.first_index() || index > self.last_index() {
            return Ok(None);
        }
        let entries = self.entries(index, index + 1, u64::MAX)?;
        Ok(entries.first().map(|entry| entry.term))
    }
}

/// Checks what raft-rs would otherwise panic about.
///
/// # Errors
/// [`LogError::Inconsistent`] naming what does not fit.
pub fn validate(log: &impl LogStore) -> Result<(), LogError> {
    let inconsistent = |problem: String| LogError::Inconsistent {
        place: log.place().to_owned(),
        problem,
    };
    let Some(meta) = log.meta() else {
        return if log.last_index() == 0 && *log.hard_state() == HardState::default() {
            Ok(())
        } else {
            Err(inconsistent(
                "it has entries or a vote but no description".to_owned(),
            ))
        };
    };
    let (commit, last) = (log.hard_state().commit, log.last_index());
    if commit < meta.truncated.index || commit > last {
        return Err(inconsistent(format!(
            "commit index {commit} lies outside {}..={last}",
            meta.truncated.index
        )));
    }
    if log.first_index() != meta.truncated.index + 1 {
        return Err(inconsistent(format!(
            "the log begins at {} but was truncated at {}",
            log.first_index(),
            meta.truncated.index
        )));
    }
    if last >= log.first_index() {
        let term = log.term(last)?.unwrap_or_default();
        if term > log.hard_state().term {
            return Err(inconsistent(format!(
                "the last entry has term {term}, the vote record only {}",
                log.hard_state().term
            )));
        }
    }
    Ok(())
}

/// Version of [`MetaRecord`]; a higher one was written by a newer binary.
const META_VERSION: u32 = 1;

/// [`LogMeta`] as stored.
#[derive(Clone, PartialEq, prost::Message)]
struct MetaRecord {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    member: u64,
    #[prost(uint64, tag = "4")]
    stamp: u64,
    #[prost(btree_map = "uint64, uint64", tag = "5")]
    known_stamps: BTreeMap<u64, u64>,
    #[prost(bytes = "vec", tag = "6")]
    conf_state: Vec<u8>,
    #[prost(uint64, tag = "7")]
    conf_index: u64,
    #[prost(uint64, tag = "8")]
    truncated_index: u64,
    #[prost(uint64, tag = "9")]
    truncated_term: u64,
    #[prost(string, tag = "10")]
    state_dir: String,
    #[prost(bytes = "vec", tag = "11")]
    members: Vec<u8>,
}

impl LogMeta {
    /// Bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        MetaRecord {
            version: META_VERSION,
            cluster: self.identity.cluster.clone(),
            member: self.identity.member,
            stamp: self.identity.stamp,
            known_stamps: self.known_stamps.clone(),
            conf_state: self
                .conf_state
                .write_to_bytes()
                .expect("a configuration has no required fields that could be missing"),
            conf_index: self.conf_index,
            truncated_index: self.truncated.index,
            truncated_term: self.truncated.term,
            state_dir: self.state_dir.clone(),
            members: self.members.encode(),
        }
        .encode_to_vec()
    }

    /// Reads what [`LogMeta::encode`] wrote; the error says what is wrong with it.
    ///
    /// # Errors
    /// A phrase for [`LogError::Inconsistent`].
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = MetaRecord::decode(bytes)
            .map_err(|error| format!("its description cannot be read ({error})"))?;
        if record.version != META_VERSION {
            return Err(format!(
                "its description has version {}, this binary reads {META_VERSION}",
                record.version
            ));
        }
        let mut conf_state = ConfState::default();
        conf_state
            .merge_from_bytes(&record.conf_state)
            .map_err(|error| format!("its configuration cannot be read ({error})"))?;
        Ok(LogMeta {
            identity: Identity {
                cluster: record.cluster,
                member: record.member,
                stamp: record.stamp,
            },
            known_stamps: record.known_stamps,
            conf_state,
            members: Members::decode(&record.members)?,
            conf_index: record.conf_index,
            truncated: LogPosition {
                index: record.truncated_index,
                term: record.truncated_term,
            },
            state_dir: record.state_dir,
        })
    }
}
