//! The materialised state on a faulty disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oast_coordinator::store::state::{
    Changes, HistoryGap, HistoryReader, HistoryTail, Mark, Record, StateError, StateRoot,
    StateStore, Syncer, check_fill, tombstone,
};

use super::Crash;
use super::log::LogDisk;
use crate::bugs::{Bug, planted};
use crate::queue::Micros;
use crate::rng::Rng;

#[derive(Clone, Debug, Default)]
struct Content {
    mark: Mark,
    tail: HistoryTail,
    gap: Option<HistoryGap>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    history: BTreeMap<u64, Arc<Vec<u8>>>,
}

/// One atomic write.
#[derive(Clone, Debug)]
enum Write {
    Apply {
        mark: Mark,
        tail: HistoryTail,
        records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        history: Vec<(u64, Arc<Vec<u8>>)>,
        pruned: Vec<u64>,
    },
    Fill {
        gap: Option<HistoryGap>,
        history: Vec<(u64, Arc<Vec<u8>>)>,
    },
}

/// Leaves of records what is left of pruned ones.
fn prune(history: &mut BTreeMap<u64, Arc<Vec<u8>>>, pruned: &[u64]) {
    for number in pruned {
        if let Some(record) = history.get_mut(number) {
            *record = Arc::new(tombstone(record));
        }
    }
}

impl Content {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Apply {
                mark,
                tail,
                records,
                history,
                pruned,
            } => {
                self.mark = mark;
                self.tail = tail;
                for (key, value) in records {
                    match value {
                        Some(value) => self.records.insert(key, value),
                        None => self.records.remove(&key),
                    };
                }
                self.history.extend(history);
                prune(&mut self.history, &pruned);
            }
            Write::Fill { gap, history } => {
                self.gap = gap;
                self.history.extend(history);
            }
        }
    }
}

/// One state directory.
#[derive(Debug, Default)]
struct Directory {
    durable: Content,
    /// Written and not synced, each with its time.
    journal: VecDeque<(Micros, Write)>,
    /// The history as the process sees it.
    history: BTreeMap<u64, Arc<Vec<u8>>>,
    damaged: bool,
}

impl Directory {
    fn flush(&mut self, count: usize) {
        for (_, write) in self.journal.drain(..count) {
            self.durable.apply(write);
        }
    }

    fn crash(&mut self, now: Micros, how: Crash, damage: bool, rng: &mut Rng) {
        // What a turn does after a sync that was not over yet was never done.
        self.journal.retain(|(at, _)| *at <= now);
        let newest = self
            .journal
            .iter()
            .rev()
            .find_map(|(_, write)| match write {
                Write::Apply { mark, .. } => Some(*mark),
                Write::Fill { .. } => None,
            });
        let survive = match how {
            Crash::Killed => self.journal.len(),
            Crash::PowerLost => rng.index(self.journal.len() + 1),
        };
        self.flush(survive);
        if planted(Bug::TornStateAccepted)
            && let Some((_, Write::Apply { records, .. })) = self.journal.front_mut()
        {
            records.truncate(records.len() / 2);
            self.flush(1);
        }
        self.journal.clear();
        if planted(Bug::ApplySkipped)
            && let Some(newest) = newest
        {
            self.durable.mark = newest;
        }
        self.history.clone_from(&self.durable.history);
        self.damaged |= damage;
    }
}

type Shared = Arc<Mutex<Directory>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Directory> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The disk that holds a member's states.
#[derive(Clone, Debug)]
pub struct SimRoot {
    directories: Arc<Mutex<BTreeMap<String, Shared>>>,
    /// Whose syncs its writes come after.
    log: LogDisk,
}

/// A state on the disk.
#[derive(Debug)]
pub struct SimState {
    directory: Shared,
    log: LogDisk,
    mark: Mark,
    tail: HistoryTail,
    gap: Option<HistoryGap>,
}

impl SimRoot {
    /// An empty disk beside that of a log.
    pub fn new(log: LogDisk) -> SimRoot {
        SimRoot {
            directories: Arc::default(),
            log,
        }
    }

    fn directories(&self) -> MutexGuard<'_, BTreeMap<String, Shared>> {
        self.directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner died at `now`; with `damage` its current state is found damaged.
    pub fn crash(&self, now: Micros, how: Crash, damage: bool, rng: &mut Rng) {
        for directory in self.directories().values() {
            lock(directory).crash(now, how, damage, rng);
        }
    }

    /// Everything is gone.
    pub fn wipe(&self) {
        self.directories().clear();
    }

    /// Whether a state lacks no history, whatever is lost that was not synced.
    pub fn is_whole(&self, name: &str) -> bool {
        let directory = self.directories().get(name).cloned();
        directory.is_some_and(|directory| lock(&directory).durable.gap.is_none())
    }
}

struct Reader(Shared);

impl HistoryReader for Reader {
    fn read(&self, first: u64, max_bytes: usize) -> Result<Vec<Vec<u8>>, StateError> {
        let directory = lock(&self.0);
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        for (expected, (number, record)) in (first..).zip(directory.history.range(first..)) {
            bytes += record.len();
            if *number != expected || (!found.is_empty() && bytes > max_bytes) {
                break;
            }
            found.push(record.to_vec());
        }
        Ok(found)
    }
}

impl StateStore for SimState {
    fn mark(&self) -> Mark {
        self.mark
    }

    fn history(&self) -> HistoryTail {
        self.tail
    }

    fn gap(&self) -> Option<HistoryGap> {
        self.gap
    }

    fn write(&mut self, mark: Mark, changes: Changes) -> Result<(), StateError> {
        let mut history = Vec::new();
        for record in changes.history {
            self.tail = self.tail.then(&record);
            history.push((self.tail.last, Arc::new(record)));
        }
        self.mark = mark;
        let mut directory = lock(&self.directory);
        directory.history.extend(history.iter().cloned());
        prune(&mut directory.history, &changes.pruned);
        let write = Write::Apply {
            mark,
            tail: self.tail,
            records: changes.records,
            history,
            pruned: changes.pruned,
        };
        directory.journal.push_back((self.log.time(), write));
        Ok(())
    }

    fn records(&self) -> Box<dyn Iterator<Item = Result<Record, StateError>> + '_> {
        let directory = lock(&self.directory);
        let mut content = Content {
            records: directory.durable.records.clone(),
            ..Content::default()
        };
        for (_, write) in directory.journal.iter().cloned() {
            content.apply(write);
        }
        Box::new(content.records.into_iter().map(Ok))
    }

    fn history_reader(&self) -> Arc<dyn HistoryReader> {
        Arc::new(Reader(self.directory.clone()))
    }

    fn fill(&mut self, first: u64, records: Vec<Vec<u8>>) -> Result<(), StateError> {
        let (gap, reached) = check_fill(self.gap, first, &records)?;
        self.gap = (reached != gap.until).then_some(HistoryGap {
            after: reached,
            until: gap.until,
        });
        let history: Vec<_> = (first..).zip(records.into_iter().map(Arc::new)).collect();
        let mut directory = lock(&self.directory);
        directory.history.extend(history.iter().cloned());
        let write = Write::Fill {
            gap: self.gap,
            history,
        };
        directory.journal.push_back((self.log.time(), write));
        Ok(())
    }

    fn syncer(&self) -> Syncer {
        let directory = self.directory.clone();
        Box::new(move || {
            let mut directory = lock(&directory);
            let all = directory.journal.len();
            directory.flush(all);
            Ok(())
        })
    }
}

impl StateRoot for SimRoot {
    type Store = SimState;

    fn open(&self, name: &str) -> Result<SimState, StateError> {
        let damaged = |problem: &str| StateError::Damaged {
            place: name.to_owned(),
            problem: problem.to_owned(),
        };
        let directory = self.directories().get(name).cloned();
        let directory = directory.ok_or_else(|| damaged("it does not exist"))?;
        let (mark, tail, gap) = {
            let mut open = lock(&directory);
            let all = open.journal.len();
            open.flush(all);
            if open.damaged {
                return Err(damaged("its checksum does not match"));
            }
            (open.durable.mark, open.durable.tail, open.durable.gap)
        };
        Ok(SimState {
            directory,
            log: self.log.clone(),
            mark,
            tail,
            gap,
        })
    }

    fn create(
        &self,
        name: &str,
        mark: Mark,
        history: HistoryTail,
        records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<SimState, StateError> {
        let records = records
            .collect::<Result<_, _>>()
            .map_err(|problem| StateError::Damaged {
                place: name.to_owned(),
                problem,
            })?;
        let gap = (history.last > 0).then_some(HistoryGap {
            after: HistoryTail::default(),
            until: history,
        });
        let directory = Arc::new(Mutex::new(Directory {
            durable: Content {
                mark,
                tail: history,
                gap,
                records,
                history: BTreeMap::new(),
            },
            ..Directory::default()
        }));
        self.directories()
            .insert(name.to_owned(), directory.clone());
        Ok(SimState {
            directory,
            log: self.log.clone(),
            mark,
            tail: history,
            gap,
        })
    }

    fn adopt_history(&self, to: &mut SimState, from: &SimState) -> Result<(), StateError> {
        while let Some(gap) = to.gap() {
            let first = gap.after.last + 1;
            let mut records = Reader(from.directory.clone()).read(first, usize::MAX)?;
            let missing = gap.until.last - gap.after.last;
            records.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
            if records.is_empty() {
                break;
            }
            to.fill(first, records)?;
        }
        to.syncer()()
    }

    fn sweep(&self, current: &str) -> Result<(), StateError> {
        self.directories().retain(|name, _| name == current);
        Ok(())
    }
}
