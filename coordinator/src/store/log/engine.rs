//! The log on raft-engine.
//!
//! raft-engine appends every write as one checksummed batch to its current segment and calls
//! fdatasync; it panics when fdatasync fails, which is what we want (the driver turns any panic of
//! its thread into the end of the process). A torn last batch is dropped at open, and with it
//! only what was never acknowledged.
//!
//! A bounded tail of the log stays in memory, because raft-rs reads every entry again when it
//! commits and the leader reads it once more for each follower.

use std::collections::VecDeque;
use std::path::Path;

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::super::fault::point;
use super::{LogError, LogMeta, LogStore, LogWrite};
use crate::store::disk;

/// There is one raft group per member.
const GROUP: u64 = 1;
const KEY_HARD_STATE: &[u8] = b"hard_state";
const KEY_META: &[u8] = b"meta";

/// How the log may use disk and memory.
#[derive(Clone, Copy, Debug)]
pub struct EngineLogOptions {
    /// Size of one segment file in bytes.
    pub segment_bytes: u64,
    /// Dropped entries are reclaimed once the log is larger than this many bytes. At least
    /// `segment_bytes`; the engine's own default is 10 GB.
    pub purge_threshold_bytes: u64,
    /// Newest entries kept in memory, in bytes.
    pub tail_bytes: usize,
}

impl Default for EngineLogOptions {
    fn default() -> Self {
        EngineLogOptions {
            segment_bytes: 32 << 20,
            purge_threshold_bytes: 256 << 20,
            tail_bytes: 16 << 20,
        }
    }
}

/// Tells raft-engine where an entry's index is.
struct EntryIndex;

impl MessageExt for EntryIndex {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// [`LogStore`] on raft-engine.
pub struct EngineLog {
    engine: Engine,
    place: String,
    meta: Option<LogMeta>,
    hard_state: HardState,
    last_index: u64,
    tail: VecDeque<Entry>,
    tail_size: usize,
    tail_limit: usize,
}

impl std::fmt::Debug for EngineLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineLog")
            .field("place", &self.place)
            .field("first_index", &self.first_index())
            .field("last_index", &self.last_index)
            .finish_non_exhaustive()
    }
}

impl EngineLog {
    /// Opens or makes the log in `directory`.
    ///
    /// # Errors
    /// [`LogError::Open`] or [`LogError::Inconsistent`].
    pub fn open(directory: &Path, options: &EngineLogOptions) -> Result<Self, LogError> {
        let place = directory.display().to_string();
        let config = Config {
            dir: place.clone(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            target_file_size: ReadableSize(options.segment_bytes),
            purge_threshold: ReadableSize(options.purge_threshold_bytes.max(options.segment_bytes)),
            // Recovery reads a log of at most a few hundred megabytes.
            recovery_threads: 1,
            // LZ4 costs more time than the bytes that it saves.
            batch_compression_threshold: ReadableSize(0),
            ..Config::default()
        };
        let engine = Engine::open(config).map_err(|source| LogError::Open {
            place: place.clone(),
            source,
        })?;
        // The engine syncs the directory when it begins a further segment, not for the first ones
        // that it makes at open. Without their names everything in them is lost with the power.
        let parent = directory.parent().unwrap_or(directory);
        for directory in [directory, parent] {
            disk::sync_dir(directory).map_err(|error| LogError::Open {
                place: place.clone(),
                source: raft_engine::Error::Io(error.source),
            })?;
        }
        let hard_state = engine
            .get_message::<HardState>(GROUP, KEY_HARD_STATE)
            .map_err(|source| LogError::Open {
                place: place.clone(),
                source,
            })?
            .unwrap_or_default();
        let meta = engine
            .get(GROUP, KEY_META)
            .map(|bytes| LogMeta::decode(&bytes))
            .transpose()
            .map_err(|problem| LogError::Inconsistent {
                place: place.clone(),
                problem,
            })?;
        let truncated = meta.as_ref().map_or(0, |meta| meta.truncated.index);
        let last_index = engine.last_index(GROUP).unwrap_or(truncated).max(truncated);
        if let Some(first) = engine.first_index(GROUP)
            && last_index > truncated
            && first > truncated + 1
        {
            return Err(LogError::Inconsistent {
                place,
                problem: format!("entries {}..{first} are missing", truncated + 1),
            });
        }
        Ok(EngineLog {
            engine,
            place,
            meta,
            hard_state,
            last_index,
            tail: VecDeque::new(),
            tail_size: 0,
            tail_limit: options.tail_bytes,
        })
    }

    fn remember(&mut self, entries: Vec<Entry>) {
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return;
        };
        while self.tail.back().is_some_and(|entry| entry.index >= first) {
            self.forget_back();
        }
        for entry in entries {
            self.tail_size += entry.compute_size() as usize;
            self.last_index = entry.index;
            self.tail.push_back(entry);
        }
        while self.tail_size > self.tail_limit && self.tail.len() > 1 {
            self.forget_front();
        }
    }

    fn forget_back(&mut self) {
        if let Some(entry) = self.tail.pop_back() {
            self.tail_size -= entry.compute_size() as usize;
        }
    }

    fn forget_front(&mut self) {
        if let Some(entry) = self.tail.pop_front() {
            self.tail_size -= entry.compute_size() as usize;
        }
    }
}

impl LogStore for EngineLog {
    fn meta(&self) -> Option<&LogMeta> {
        self.meta.as_ref()
    }

    fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    fn first_index(&self) -> u64 {
        self.meta.as_ref().map_or(0, |meta| meta.truncated.index) + 1
    }

    fn last_index(&self) -> u64 {
        self.last_index
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        if let Some(front) = self.tail.front()
            && front.index <= low
        {
            let skip = usize::try_from(low - front.index).unwrap_or(usize::MAX);
            let mut bytes = 0;
            let mut found = Vec::new();
            for entry in self
                .tail
                .iter()
                .skip(skip)
                .take_while(|entry| entry.index < high)
            {
                bytes += u64::from(entry.compute_size());
                if !found.is_empty() && bytes > max_bytes {
                    break;
                }
                found.push(entry.clone());
            }
            return Ok(found);
        }
        let mut found = Vec::new();
        self.engine
            .fetch_entries_to::<EntryIndex>(
                GROUP,
                low,
                high,
                Some(usize::try_from(max_bytes).unwrap_or(usize::MAX)),
                &mut found,
            )
            .map_err(|source| LogError::Read {
                place: self.place.clone(),
                low,
                high,
                source: Some(source),
            })?;
        if found.first().is_none_or(|entry| entry.index != low) {
            return Err(LogError::Read {
                place: self.place.clone(),
                low,
                high,
                source: None,
            });
        }
        Ok(found)
    }

    fn write(&mut self, write: LogWrite) -> Result<(), LogError> {
        let failed = |source| LogError::Write {
            place: self.place.clone(),
            source,
        };
        let mut batch = LogBatch::default();
        if write.reset {
            // Clean drops the keys too, so all of them follow in the same batch.
            batch.add_command(GROUP, Command::Clean);
        }
        let hard_state = write
            .hard_state
            .or_else(|| write.reset.then(|| self.hard_state.clone()));
        let meta = write
            .meta
            .or_else(|| write.reset.then(|| self.meta.clone()).flatten());
        if let Some(hard_state) = &hard_state {
            batch
                .put_message(GROUP, KEY_HARD_STATE.to_vec(), hard_state)
                .map_err(failed)?;
        }
        if let Some(meta) = &meta {
            batch
                .put(GROUP, KEY_META.to_vec(), meta.encode())
                .map_err(failed)?;
        }
        batch
            .add_entries::<EntryIndex>(GROUP, &write.entries)
            .map_err(failed)?;
        let truncate = meta
            .as_ref()
            .map(|meta| meta.truncated.index)
            .filter(|index| {
                !write.reset
                    && self
                        .meta
                        .as_ref()
                        .is_none_or(|old| old.truncated.index < *index)
            });
        if let Some(index) = truncate {
            batch.add_command(GROUP, Command::Compact { index: index + 1 });
        }
        point("the log is to be written");
        self.engine.write(&mut batch, write.sync).map_err(failed)?;
        point("the log was written");

        if write.reset {
            self.tail.clear();
            self.tail_size = 0;
        }
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = meta {
            if write.reset {
                self.last_index = meta.truncated.index;
            }
            self.last_index = self.last_index.max(meta.truncated.index);
            while self
                .tail
                .front()
                .is_some_and(|entry| entry.index <= meta.truncated.index)
            {
                self.forget_front();
            }
            self.meta = Some(meta);
        }
        self.remember(write.entries);
        Ok(())
    }

    fn purge(&mut self) -> Result<(), LogError> {
        // With one group that is compacted regularly nothing ever has to be forced.
        self.engine
            .purge_expired_files()
            .map(|_groups| ())
            .map_err(|source| LogError::Write {
                place: self.place.clone(),
                source,
            })
    }

    fn place(&self) -> &str {
        &self.place
    }
}
