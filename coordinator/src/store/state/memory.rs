//! In-memory twin of the sled state: the reference that the conformance suite compares with.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Changes, HistoryGap, HistoryReader, HistoryTail, Mark, Record, StateError, StateRoot,
    StateStore, Syncer, check_fill, tombstone,
};

#[derive(Clone, Debug, Default)]
struct Content {
    mark: Mark,
    tail: HistoryTail,
    gap: Option<HistoryGap>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    history: BTreeMap<u64, Vec<u8>>,
}

type Shared<T> = Arc<Mutex<T>>;

fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A state in memory. A crash takes back what was not synced.
#[derive(Debug)]
pub struct MemoryState {
    live: Shared<Content>,
    synced: Shared<Content>,
}

/// The "disk" that holds [`MemoryState`]s.
#[derive(Clone, Debug, Default)]
pub struct MemoryRoot {
    stores: Shared<BTreeMap<String, Shared<Content>>>,
}

struct Reader(Shared<Content>);

impl HistoryReader for Reader {
    fn read(&self, first: u64, max_bytes: usize) -> Result<Vec<Vec<u8>>, StateError> {
        let content = lock(&self.0);
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        for (expected, (number, record)) in (first..).zip(content.history.range(first..)) {
            bytes += record.len();
            if *number != expected || (!found.is_empty() && bytes > max_bytes) {
                break;
            }
            found.push(record.clone());
        }
        Ok(found)
    }
}

impl StateStore for MemoryState {
    fn mark(&self) -> Mark {
        lock(&self.live).mark
    }

    fn history(&self) -> HistoryTail {
        lock(&self.live).tail
    }

    fn gap(&self) -> Option<HistoryGap> {
        lock(&self.live).gap
    }

    fn write(&mut self, mark: Mark, changes: Changes) -> Result<(), StateError> {
        let mut content = lock(&self.live);
        for (key, value) in changes.records {
            match value {
                Some(value) => content.records.insert(key, value),
                None => content.records.remove(&key),
            };
        }
        for record in changes.history {
            content.tail = content.tail.then(&record);
            let number = content.tail.last;
            content.history.insert(number, record);
        }
        for number in changes.pruned {
            if let Some(record) = content.history.get_mut(&number) {
                *record = tombstone(record);
            }
        }
        content.mark = mark;
        Ok(())
    }

    fn records(&self) -> Box<dyn Iterator<Item = Result<Record, StateError>> + '_> {
        Box::new(lock(&self.live).records.clone().into_iter().map(Ok))
    }

    fn history_reader(&self) -> Arc<dyn HistoryReader> {
        Arc::new(Reader(self.live.clone()))
    }

    fn fill(&mut self, first: u64, records: Vec<Vec<u8>>) -> Result<(), StateError> {
        let mut content = lock(&self.live);
        let (gap, reached) = check_fill(content.gap, first, &records)?;
        content.history.extend((first..).zip(records));
        content.gap = (reached != gap.until).then_some(HistoryGap {
            after: reached,
            until: gap.until,
        });
        Ok(())
    }

    fn syncer(&self) -> Syncer {
        let (live, synced) = (self.live.clone(), self.synced.clone());
        Box::new(move || {
            let content = lock(&live).clone();
            *lock(&synced) = content;
            Ok(())
        })
    }
}

impl StateRoot for MemoryRoot {
    type Store = MemoryState;

    fn open(&self, name: &str) -> Result<MemoryState, StateError> {
        let synced = lock(&self.stores)
            .get(name)
            .cloned()
            .ok_or_else(|| StateError::Damaged {
                place: name.to_owned(),
                problem: "it does not exist".to_owned(),
            })?;
        let content = lock(&synced).clone();
        Ok(MemoryState {
            live: Arc::new(Mutex::new(content)),
            synced,
        })
    }

    fn create(
        &self,
        name: &str,
        mark: Mark,
        history: HistoryTail,
        records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<MemoryState, StateError> {
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
        let content = Content {
            mark,
            tail: history,
            gap,
            records,
            history: BTreeMap::new(),
        };
        let synced = Arc::new(Mutex::new(content.clone()));
        lock(&self.stores).insert(name.to_owned(), synced.clone());
        Ok(MemoryState {
            live: Arc::new(Mutex::new(content)),
            synced,
        })
    }

    fn adopt_history(&self, to: &mut MemoryState, from: &MemoryState) -> Result<(), StateError> {
        while let Some(gap) = to.gap() {
            let first = gap.after.last + 1;
            let mut records = Reader(from.live.clone()).read(first, usize::MAX)?;
            records
                .truncate(usize::try_from(gap.until.last - gap.after.last).unwrap_or(usize::MAX));
            if records.is_empty() {
                break;
            }
            to.fill(first, records)?;
        }
        to.syncer()()
    }

    fn sweep(&self, current: &str) -> Result<(), StateError> {
        lock(&self.stores).retain(|name, _| name == current);
        Ok(())
    }
}
