//! A log in memory that loses what was not synced when it is told to crash.

use std::sync::{Arc, Mutex, PoisonError};

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::{LogError, LogMeta, LogStore, LogWrite};

#[derive(Clone, Debug, Default)]
struct Content {
    meta: Option<LogMeta>,
    hard_state: HardState,
    entries: Vec<Entry>,
}

/// The "disk" under a [`MemoryLog`]; survives the log itself.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    synced: Arc<Mutex<Content>>,
}

/// In-memory twin of [`super::engine::EngineLog`].
#[derive(Debug)]
pub struct MemoryLog {
    disk: MemoryDisk,
    live: Content,
}

impl MemoryLog {
    /// Opens what was last synced to `disk`.
    #[must_use]
    pub fn open(disk: &MemoryDisk) -> Self {
        let live = disk
            .synced
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        MemoryLog {
            disk: disk.clone(),
            live,
        }
    }
}

impl LogStore for MemoryLog {
    fn meta(&self) -> Option<&LogMeta> {
        self.live.meta.as_ref()
    }

    fn hard_state(&self) -> &HardState {
        &self.live.hard_state
    }

    fn first_index(&self) -> u64 {
        self.live
            .meta
            .as_ref()
            .map_or(0, |meta| meta.truncated.index)
            + 1
    }

    fn last_index(&self) -> u64 {
        self.live
            .entries
            .last()
            .map_or_else(|| self.first_index() - 1, |entry| entry.index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in &self.live.entries {
            if entry.index < low || entry.index >= high {
                continue;
            }
            bytes += u64::from(entry.compute_size());
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn write(&mut self, write: LogWrite) -> Result<(), LogError> {
        if write.reset {
            self.live.entries.clear();
        }
        if let Some(first) = write.entries.first().map(|entry| entry.index) {
            self.live.entries.retain(|entry| entry.index < first);
        }
        self.live.entries.extend(write.entries);
        if let Some(hard_state) = write.hard_state {
            self.live.hard_state = hard_state;
        }
        if let Some(meta) = write.meta {
            self.live
                .entries
                .retain(|entry| entry.index > meta.truncated.index);
            self.live.meta = Some(meta);
        }
        if write.sync {
            *self
                .disk
                .synced
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = self.live.clone();
        }
        Ok(())
    }

    fn purge(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn place(&self) -> &str {
        "memory"
    }
}
