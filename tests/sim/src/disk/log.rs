//! The log on a faulty disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oast_coordinator::store::log::{LogError, LogMeta, LogStore, LogWrite};
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use super::Crash;
use crate::bugs::{Bug, planted};
use crate::queue::Micros;
use crate::rng::Rng;

#[derive(Clone, Debug, Default)]
struct Content {
    meta: Option<LogMeta>,
    hard_state: HardState,
    entries: VecDeque<Entry>,
}

impl Content {
    fn apply(&mut self, write: LogWrite) {
        if write.reset {
            self.entries.clear();
        }
        if let Some(first) = write.entries.first().map(|entry| entry.index) {
            while self.entries.back().is_some_and(|last| last.index >= first) {
                self.entries.pop_back();
            }
        }
        self.entries.extend(write.entries);
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(meta) = write.meta {
            let truncated = meta.truncated.index;
            while self
                .entries
                .front()
                .is_some_and(|first| first.index <= truncated)
            {
                self.entries.pop_front();
            }
            self.meta = Some(meta);
        }
    }
}

/// How long a sync takes.
#[derive(Clone, Copy, Debug)]
pub struct SyncTime {
    /// Shortest.
    pub low: Micros,
    /// Longest; rare.
    pub high: Micros,
}

/// A write that is not durable yet.
#[derive(Clone)]
struct Pending {
    write: LogWrite,
    /// When it was begun.
    at: Micros,
    /// When it will be durable, if it was synced.
    durable: Option<Micros>,
}

struct Inner {
    durable: Content,
    /// Written and not yet durable.
    pending: VecDeque<Pending>,
    now: Micros,
    /// Time spent syncing since `now`.
    elapsed: Micros,
    sync: SyncTime,
    fail: bool,
    rng: Rng,
}

impl Inner {
    /// Takes over what became durable by `now`.
    fn settle(&mut self, now: Micros) {
        let durable = |first: &Pending| first.durable.is_some_and(|at| at <= now);
        while self.pending.front().is_some_and(durable) {
            if let Some(first) = self.pending.pop_front() {
                self.store(first.write);
            }
        }
    }

    fn store(&mut self, mut write: LogWrite) {
        if planted(Bug::LostVote)
            && let Some(hard_state) = &mut write.hard_state
        {
            hard_state.vote = 0;
        }
        self.durable.apply(write);
    }
}

/// The disk under a [`SimLog`]; outlives it.
#[derive(Clone)]
pub struct LogDisk(Arc<Mutex<Inner>>);

impl std::fmt::Debug for LogDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogDisk")
    }
}

impl LogDisk {
    /// An empty disk.
    pub fn new(rng: Rng, sync: SyncTime) -> LogDisk {
        LogDisk(Arc::new(Mutex::new(Inner {
            durable: Content::default(),
            pending: VecDeque::new(),
            now: 0,
            elapsed: 0,
            sync,
            fail: false,
            rng,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn of the owner begins.
    pub fn begin(&self, now: Micros) {
        let mut inner = self.inner();
        inner.now = now;
        inner.elapsed = 0;
        inner.settle(now);
    }

    /// Time that the owner has spent waiting for syncs since [`LogDisk::begin`].
    pub fn elapsed(&self) -> Micros {
        self.inner().elapsed
    }

    /// The time at which whatever the owner does now happens: after its syncs.
    pub fn time(&self) -> Micros {
        let inner = self.inner();
        inner.now + inner.elapsed
    }

    /// From now on syncs take this long.
    pub fn set_sync(&self, sync: SyncTime) {
        self.inner().sync = sync;
    }

    /// The next write fails.
    pub fn fail_next(&self) {
        self.inner().fail = true;
    }

    /// The owner died at `now`. Returns how many writes were lost.
    pub fn crash(&self, now: Micros, how: Crash) -> usize {
        let mut inner = self.inner();
        inner.fail = false;
        if !(planted(Bug::SyncLies) && how == Crash::PowerLost) {
            inner.settle(now);
        }
        // What a turn does after a sync that was not over yet was never done.
        inner.pending.retain(|pending| pending.at <= now);
        let waiting = inner.pending.len();
        let survive = match how {
            Crash::Killed => waiting,
            Crash::PowerLost => inner.rng.index(waiting + 1),
        };
        for pending in inner.pending.drain(..).take(survive).collect::<Vec<_>>() {
            inner.store(pending.write);
        }
        inner.pending.clear();
        waiting - survive
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        let mut inner = self.inner();
        inner.durable = Content::default();
        inner.pending.clear();
    }
}

/// A log on a [`LogDisk`].
pub struct SimLog {
    live: Content,
    disk: LogDisk,
}

impl std::fmt::Debug for SimLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimLog")
    }
}

impl SimLog {
    /// Opens what the disk holds.
    pub fn open(disk: &LogDisk) -> SimLog {
        let live = disk.inner().durable.clone();
        SimLog {
            live,
            disk: disk.clone(),
        }
    }
}

impl LogStore for SimLog {
    fn meta(&self) -> Option<&LogMeta> {
        self.live.meta.as_ref()
    }

    fn hard_state(&self) -> &HardState {
        &self.live.hard_state
    }

    fn first_index(&self) -> u64 {
        let meta = self.live.meta.as_ref();
        meta.map_or(0, |meta| meta.truncated.index) + 1
    }

    fn last_index(&self) -> u64 {
        self.live
            .entries
            .back()
            .map_or_else(|| self.first_index() - 1, |entry| entry.index)
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        let Some(first) = self.live.entries.front().map(|entry| entry.index) else {
            return Ok(Vec::new());
        };
        let skip = usize::try_from(low.saturating_sub(first)).unwrap_or(usize::MAX);
        let mut found = Vec::new();
        let mut bytes = 0;
        for entry in self.live.entries.iter().skip(skip) {
            if entry.index >= high {
                break;
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
        let mut guard = self.disk.inner();
        let inner = &mut *guard;
        if std::mem::take(&mut inner.fail) {
            return Err(LogError::Inconsistent {
                place: "the simulated disk".to_owned(),
                problem: "the write failed, as it was told to".to_owned(),
            });
        }
        let sync = write.sync;
        let at = inner.now + inner.elapsed;
        inner.pending.push_back(Pending {
            write: write.clone(),
            at,
            durable: None,
        });
        if sync {
            inner.elapsed += inner.rng.skewed(inner.sync.low, inner.sync.high);
            let durable = inner.now + inner.elapsed;
            for pending in &mut inner.pending {
                let before = pending.durable.unwrap_or(durable);
                pending.durable = Some(before.min(durable));
            }
        }
        drop(guard);
        self.live.apply(write);
        Ok(())
    }

    fn purge(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    fn place(&self) -> &str {
        "the simulated disk"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> LogDisk {
        LogDisk::new(
            Rng::new(3),
            SyncTime {
                low: 100,
                high: 100,
            },
        )
    }

    fn entry(index: u64, sync: bool) -> LogWrite {
        LogWrite {
            entries: vec![Entry {
                index,
                term: 1,
                ..Entry::default()
            }],
            sync,
            ..LogWrite::default()
        }
    }

    #[test]
    fn a_write_is_durable_only_when_its_sync_is_over() {
        for (dies_at, survives) in [(199, false), (200, true)] {
            let disk = disk();
            let mut log = SimLog::open(&disk);
            disk.begin(100);
            log.write(entry(1, true)).unwrap();
            assert_eq!(disk.elapsed(), 100);
            // Whether an unsynced write survives is left to chance: a few crashes show both.
            let pending = disk.inner().pending.clone();
            let lost = (0..20).any(|seed| {
                let copy = LogDisk::new(Rng::new(seed), SyncTime { low: 0, high: 0 });
                copy.inner().pending = pending.clone();
                copy.crash(dies_at, Crash::PowerLost);
                SimLog::open(&copy).last_index() == 0
            });
            assert_eq!(lost, !survives, "died at {dies_at}");
        }
    }

    #[test]
    fn a_killed_process_loses_nothing_that_it_wrote() {
        let disk = disk();
        let mut log = SimLog::open(&disk);
        disk.begin(0);
        for index in 1..=5 {
            log.write(entry(index, false)).unwrap();
        }
        assert_eq!(disk.crash(0, Crash::Killed), 0);
        let log = SimLog::open(&disk);
        assert_eq!(log.last_index(), 5);
        assert_eq!(log.entries(2, 4, u64::MAX).unwrap().len(), 2);
    }
}
