//! Writes to a tree behind the back of whoever applies.
//!
//! ```text
//! write ──> waiting ──(a pause, or somebody asks)──> writing ──one batch──> the tree
//!              └───────────── read before the tree ─────┘
//! ```
//!
//! What several rounds of applying changed goes to the tree as one batch, and a key that changed
//! in all of them once. That is what sled wants (each batch costs it two buffers and a wake-up of
//! all its threads), and it takes the tree off the way of a command. Nothing is lost by it that was not
//! lost before: the state is never synced as it is written, and what is missing after a crash is
//! replayed from the log, from the mark of the last batch on.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::store::batch::Batch;

/// How long changes gather before they are written. Bounds how far the tree is behind, together
/// with the time that one batch takes.
const GATHER: Duration = Duration::from_millis(50);
/// Bytes after which they gather no longer.
const GATHER_BYTES: usize = 4 << 20;
/// Bytes that may wait while a batch is written; who brings more waits as well.
const BEHIND_BYTES: usize = 32 << 20;

/// A key with its new value, or its end.
pub(super) type Entry = (Vec<u8>, Option<Vec<u8>>);

type Entries = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

#[derive(Default)]
struct Queue {
    waiting: Entries,
    waiting_bytes: usize,
    /// The batch that is on its way to the tree.
    writing: Arc<Entries>,
    /// How often was written here, and how much of that has reached the tree.
    asked: u64,
    done: u64,
    /// Somebody waits for the tree to have everything up to this.
    urgent: u64,
    failed: Option<sled::Error>,
    ended: bool,
}

impl Queue {
    fn gathers(&self) -> bool {
        !self.ended && self.urgent <= self.done && self.waiting_bytes < GATHER_BYTES
    }

    fn result(&self) -> Result<(), sled::Error> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

struct Shared {
    db: sled::Db,
    queue: Mutex<Queue>,
    /// For the writer: there is something to write, or no reason to gather any longer.
    wake: Condvar,
    /// For those who wait for it.
    written: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, on: &Condvar, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        on.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let mut queue = self.lock();
            while queue.waiting.is_empty() && !queue.ended {
                queue = self.wait(&self.wake, queue);
            }
            if queue.waiting.is_empty() {
                return;
            }
            let gathered = self
                .wake
                .wait_timeout_while(queue, GATHER, |queue| queue.gathers());
            let (mut queue, _) = gathered.unwrap_or_else(PoisonError::into_inner);
            let batch = Arc::new(std::mem::take(&mut queue.waiting));
            queue.waiting_bytes = 0;
            queue.writing = Arc::clone(&batch);
            let reached = queue.asked;
            drop(queue);

            let result = self.apply(&batch);

            let mut queue = self.lock();
            match result {
                Ok(()) => {
                    queue.writing = Arc::default();
                    queue.done = reached;
                }
                // What could not be written stays readable; the member stops with its next write.
                Err(error) => queue.failed = Some(error),
            }
            let failed = queue.failed.is_some();
            drop(queue);
            self.written.notify_all();
            if failed {
                return;
            }
        }
    }

    fn apply(&self, entries: &Entries) -> Result<(), sled::Error> {
        let mut batch = Batch::default();
        for (key, value) in entries {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        batch.apply(&self.db)
    }
}

/// Says that the writer is gone, however it went.
struct Farewell(Arc<Shared>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        if std::thread::panicking() && queue.failed.is_none() {
            let message = "the thread that writes the state has panicked".to_owned();
            queue.failed = Some(sled::Error::ReportableBug(message));
        }
        drop(queue);
        self.0.written.notify_all();
    }
}

/// The way to a tree. Ends with everything written.
pub(super) struct Behind {
    reader: Reader,
    writer: Option<JoinHandle<()>>,
}

impl Behind {
    /// # Errors
    /// The system's, if it gives no thread.
    pub(super) fn new(db: sled::Db) -> std::io::Result<Behind> {
        let shared = Arc::new(Shared {
            db,
            queue: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
        });
        let farewell = Farewell(Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || farewell.0.run())?;
        Ok(Behind {
            reader: Reader(shared),
            writer: Some(writer),
        })
    }

    /// Takes what changed together: it reaches the tree in one batch, after what came before.
    ///
    /// # Errors
    /// An earlier change did not reach the tree.
    pub(super) fn write(&self, entries: Vec<Entry>) -> Result<(), sled::Error> {
        let shared = &self.reader.0;
        let mut queue = shared.lock();
        while queue.waiting_bytes > BEHIND_BYTES && queue.failed.is_none() {
            queue = shared.wait(&shared.written, queue);
        }
        queue.result()?;
        let idle = queue.waiting.is_empty();
        for (key, value) in entries {
            // A key that is overwritten counts twice: the sum only ever says when to hurry.
            queue.waiting_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            queue.waiting.insert(key, value);
        }
        queue.asked += 1;
        if idle || !queue.gathers() {
            drop(queue);
            shared.wake.notify_one();
        }
        Ok(())
    }

    /// Waits until the tree has everything.
    ///
    /// # Errors
    /// It did not get it.
    pub(super) fn flush(&self) -> Result<(), sled::Error> {
        self.reader.flush()
    }

    /// To look at it from any thread.
    pub(super) fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.reader.0.lock().ended = true;
        self.reader.0.wake.notify_one();
        if let Some(writer) = self.writer.take() {
            // What it ended with stands in the queue.
            let _ = writer.join();
        }
    }
}

/// A tree with what is on its way to it.
#[derive(Clone)]
pub(super) struct Reader(Arc<Shared>);

impl Reader {
    /// Waits until the tree has everything that was written before the call.
    pub(super) fn flush(&self) -> Result<(), sled::Error> {
        let mut queue = self.0.lock();
        let wanted = queue.asked;
        queue.urgent = queue.urgent.max(wanted);
        self.0.wake.notify_one();
        while queue.done < wanted && queue.failed.is_none() {
            queue = self.0.wait(&self.0.written, queue);
        }
        queue.result()
    }

    /// The value under a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, sled::Error> {
        {
            let queue = self.0.lock();
            let coming = queue.waiting.get(key).or_else(|| queue.writing.get(key));
            if let Some(value) = coming {
                return Ok(value.clone());
            }
        }
        Ok(self.0.db.get(key)?.map(|value| value.to_vec()))
    }

    /// Values in the order of their keys, with keys, until `take` has enough.
    pub(super) fn range(
        &self,
        keys: RangeInclusive<[u8; 9]>,
        mut take: impl FnMut(&[u8], Vec<u8>) -> bool,
    ) -> Result<(), sled::Error> {
        // First what is on its way: the tree may get it meanwhile, which changes nothing.
        let mut coming = Entries::new();
        {
            let queue = self.0.lock();
            let bounds = || keys.start().to_vec()..=keys.end().to_vec();
            for from in [&*queue.writing, &queue.waiting] {
                let found = from.range(bounds()).map(|(k, v)| (k.clone(), v.clone()));
                coming.extend(found);
            }
        }
        let mut coming = coming.into_iter().peekable();
        for item in self.0.db.range(keys) {
            let (key, stored) = item?;
            while let Some((key, value)) = coming.next_if(|(next, _)| next[..] < key[..]) {
                if value.is_some_and(|value| !take(&key, value)) {
                    return Ok(());
                }
            }
            let value = match coming.next_if(|(next, _)| next[..] == key[..]) {
                Some((_, value)) => value,
                None => Some(stored.to_vec()),
            };
            if value.is_some_and(|value| !take(&key, value)) {
                return Ok(());
            }
        }
        for (key, value) in coming {
            if value.is_some_and(|value| !take(&key, value)) {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> [u8; 9] {
        let mut key = [b'h'; 9];
        key[1..].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn entry(number: u64, value: &str) -> Entry {
        (key(number).to_vec(), Some(value.as_bytes().to_vec()))
    }

    fn all(reader: &Reader) -> Vec<String> {
        let mut found = Vec::new();
        let keys = key(0)..=key(u64::MAX);
        let take = |_: &[u8], value| {
            found.push(String::from_utf8(value).unwrap());
            true
        };
        reader.range(keys, take).unwrap();
        found
    }

    #[test]
    fn readers_see_what_was_written_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        let behind = Behind::new(db.clone()).unwrap();
        let reader = behind.reader();
        behind
            .write(vec![entry(1, "one"), entry(2, "two"), entry(4, "four")])
            .unwrap();
        assert_eq!(all(&reader), ["one", "two", "four"]);
        behind.flush().unwrap();
        assert_eq!(db.len(), 3);
        behind
            .write(vec![
                entry(2, "deux"),
                (key(4).to_vec(), None),
                entry(3, "trois"),
            ])
            .unwrap();
        assert_eq!(all(&reader), ["one", "deux", "trois"]);
        assert_eq!(reader.get(&key(4)).unwrap(), None);
        assert_eq!(reader.get(&key(2)).unwrap(), Some(b"deux".to_vec()));
        drop(behind);
        assert_eq!(all(&reader), ["one", "deux", "trois"]);
        assert_eq!(db.len(), 3);
    }

    #[test]
    fn rounds_of_writes_reach_the_tree_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        let behind = Behind::new(db.clone()).unwrap();
        let mut seen = 0;
        for round in 0..2000_u64 {
            let value = round.to_string();
            let round = (0..5).map(|place| entry(place, &value)).collect();
            behind.write(round).unwrap();
            // A batch takes a whole number of rounds: the first key is never newer than the last.
            let number = |place| -> Option<u64> {
                let value = db.get(key(place)).unwrap()?;
                Some(std::str::from_utf8(&value).unwrap().parse().unwrap())
            };
            if let (Some(first), Some(last)) = (number(0), number(4)) {
                assert!(seen <= first && first <= last, "{first} {last}");
                seen = first;
            }
        }
        behind.flush().unwrap();
        assert_eq!(db.get(key(4)).unwrap().unwrap(), b"1999");
    }
}
