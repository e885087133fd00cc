//! The materialised state in sled.
//!
//! Everything is in one tree, because only then is a batch atomic. sled's `flush` does not survive
//! power loss (it asks for `sync_file_range`), and large values sit in blob files that it never
//! syncs; so [`StateStore::syncer`] flushes and then syncs every file of the directory itself.
//! Writes of the owner reach sled a little later, see [`super::behind`]; whether what is found may be
//! believed, see [`super::life`].
//!
//! ```text
//! g             gap of the history, if any
//! h<number>     history
//! m             mark and history tail; its presence says that the store is complete
//! r<key>        record
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;

use super::super::batch::Batch;
use super::super::disk;
use super::super::fault::point;
use super::super::log::LogPosition;
use super::behind::{self, Behind};
use super::life::{Life, Trust};
use super::{
    Changes, HistoryGap, HistoryReader, HistoryTail, Mark, Record, StateError, StateRoot,
    StateStore, Syncer, check_fill, tombstone,
};

const KEY_GAP: &[u8] = b"g";
const KEY_MARK: &[u8] = b"m";
const PREFIX_HISTORY: u8 = b'h';
const PREFIX_RECORD: u8 = b'r';
/// Records written per batch while a store is made from a snapshot.
const CREATE_BATCH: usize = 1024;
/// History copied at a time, in bytes.
const ADOPT_BYTES: usize = 4 << 20;
/// sled keeps a page in a file of its own when it is larger than a quarter of a segment, and removes
/// such files whatever of its log is synced: after a power loss an old page may come back under a
/// newer mark. With the largest segments that it takes, no page of ours is that large.
const SEGMENT_BYTES: usize = 16 << 20;
/// Prefix of the directories that belong to us.
const NAME_PREFIX: &str = "state-";

/// How sled may use memory and the disk.
#[derive(Clone, Copy, Debug)]
pub struct TreeOptions {
    /// Page cache in bytes.
    pub cache_bytes: u64,
    /// Unsynced changes are handed to the kernel this often, in milliseconds. A crash loses them
    /// and replays the log instead.
    pub flush_ms: u64,
}

impl Default for TreeOptions {
    fn default() -> Self {
        TreeOptions {
            cache_bytes: 64 << 20,
            flush_ms: 500,
        }
    }
}

/// The directory that holds `state-<seq>/`.
#[derive(Clone, Debug)]
pub struct TreeRoot {
    directory: PathBuf,
    options: TreeOptions,
}

impl TreeRoot {
    /// State directories are made in `directory`, which must exist.
    #[must_use]
    pub fn new(directory: PathBuf, options: TreeOptions) -> Self {
        TreeRoot { directory, options }
    }

    /// Opens it as far as [`Life::opening`]: whoever goes on with it says when it is open.
    fn open_db(&self, name: &str) -> Result<Place, StateError> {
        let path = self.directory.join(name);
        disk::make_dir(&path).map_err(StateError::Disk)?;
        let life = Life::of(&path);
        life.opening().map_err(StateError::Disk)?;
        let db = sled::Config::new()
            .path(&path)
            .segment_size(segment_bytes(&path))
            .cache_capacity(self.options.cache_bytes)
            .flush_every_ms(Some(self.options.flush_ms))
            .open()
            .map_err(|source| StateError::Engine {
                action: "open",
                place: path.display().to_string(),
                source,
            })?;
        Ok(Place { db, path })
    }
}

/// The segment size for a directory: what it was made with, else [`SEGMENT_BYTES`]. sled does not
/// open a directory with another one. Its own file about that ends with a binary checksum.
fn segment_bytes(path: &Path) -> usize {
    let made = std::fs::read(path.join("conf")).unwrap_or_default();
    let made = String::from_utf8_lossy(&made);
    let mut lines = made.lines();
    lines
        .find_map(|line| line.strip_prefix("segment_size: ")?.trim().parse().ok())
        .unwrap_or(SEGMENT_BYTES)
}

#[derive(Clone)]
struct Place {
    db: sled::Db,
    path: PathBuf,
}

impl Place {
    fn engine(&self, action: &'static str) -> impl Fn(sled::Error) -> StateError + use<> {
        let place = self.path.display().to_string();
        move |source| StateError::Engine {
            action,
            place: place.clone(),
            source,
        }
    }

    fn damaged(&self, problem: impl Into<String>) -> StateError {
        StateError::Damaged {
            place: self.path.display().to_string(),
            problem: problem.into(),
        }
    }

    fn behind(&self) -> Result<Behind, StateError> {
        Behind::new(self.db.clone()).map_err(|error| self.engine("write")(error.into()))
    }

    fn opened(&self) -> Result<(), StateError> {
        Life::of(&self.path).opened().map_err(StateError::Disk)
    }

    fn sync(&self) -> Result<(), StateError> {
        point("a state is to be synced");
        self.db.flush().map_err(self.engine("flush"))?;
        point("a state was flushed");
        disk::sync_tree(&self.path).map_err(StateError::Disk)
    }
}

/// A state in sled.
pub struct TreeState {
    /// For what is not on the way of a command. Never the same keys as `behind` has.
    place: Place,
    behind: Behind,
    mark: Mark,
    digest: Option<[u8; 32]>,
    tail: HistoryTail,
    gap: Option<HistoryGap>,
    retired: bool,
}

impl Drop for TreeState {
    /// Closes it in peace, if that is possible.
    fn drop(&mut self) {
        // Syncing takes a while, and who replaces a state is in the middle of something.
        if self.retired {
            return;
        }
        let closed = self.behind.flush().map_err(self.place.engine("write"));
        let closed = closed.and_then(|()| self.place.sync()).and_then(|()| {
            let life = Life::of(&self.place.path);
            life.closed().map_err(StateError::Disk)
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "The state could not be closed; the next start looks after it.");
        }
    }
}

impl std::fmt::Debug for TreeState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeState")
            .field("path", &self.place.path)
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct MarkRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    now_ms: u64,
    #[prost(uint64, tag = "4")]
    history_last: u64,
    #[prost(bytes = "vec", tag = "5")]
    history_hash: Vec<u8>,
    /// Of the live records; empty when it was not known.
    #[prost(bytes = "vec", tag = "6")]
    digest: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GapRecord {
    #[prost(uint64, tag = "1")]
    after_last: u64,
    #[prost(bytes = "vec", tag = "2")]
    after_hash: Vec<u8>,
    #[prost(uint64, tag = "3")]
    until_last: u64,
    #[prost(bytes = "vec", tag = "4")]
    until_hash: Vec<u8>,
}

fn mark_bytes(mark: Mark, tail: HistoryTail, digest: Option<[u8; 32]>) -> Vec<u8> {
    MarkRecord {
        index: mark.position.index,
        term: mark.position.term,
        now_ms: mark.now_ms,
        history_last: tail.last,
        history_hash: tail.hash.to_vec(),
        digest: digest.map(Vec::from).unwrap_or_default(),
    }
    .encode_to_vec()
}

fn gap_bytes(gap: HistoryGap) -> Vec<u8> {
    GapRecord {
        after_last: gap.after.last,
        after_hash: gap.after.hash.to_vec(),
        until_last: gap.until.last,
        until_hash: gap.until.hash.to_vec(),
    }
    .encode_to_vec()
}

fn tail(place: &Place, last: u64, hash: &[u8]) -> Result<HistoryTail, StateError> {
    let hash = hash
        .try_into()
        .map_err(|_| place.damaged("a hash has the wrong length"))?;
    Ok(HistoryTail { last, hash })
}

fn record_key(key: &[u8]) -> Vec<u8> {
    [&[PREFIX_RECORD], key].concat()
}

fn history_key(number: u64) -> [u8; 9] {
    let mut key = [PREFIX_HISTORY; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

struct Reader {
    place: Place,
    entries: behind::Reader,
}

impl HistoryReader for Reader {
    fn read(&self, first: u64, max_bytes: usize) -> Result<Vec<Vec<u8>>, StateError> {
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        let keys = history_key(first)..=history_key(u64::MAX);
        let take = |key: &[u8], record: Vec<u8>| {
            let expected = history_key(first + found.len() as u64);
            bytes += record.len();
            if key != expected || (!found.is_empty() && bytes > max_bytes) {
                return false;
            }
            found.push(record);
            true
        };
        self.entries
            .range(keys, take)
            .map_err(self.place.engine("read"))?;
        Ok(found)
    }
}

impl TreeState {
    fn reader(&self) -> Reader {
        Reader {
            place: self.place.clone(),
            entries: self.behind.reader(),
        }
    }
}

impl StateStore for TreeState {
    fn mark(&self) -> Mark {
        self.mark
    }

    fn digest(&self) -> Option<[u8; 32]> {
        self.digest
    }

    fn history(&self) -> HistoryTail {
        self.tail
    }

    fn gap(&self) -> Option<HistoryGap> {
        self.gap
    }

    fn write(&mut self, mark: Mark, changes: Changes) -> Result<(), StateError> {
        let mut entries: Vec<behind::Entry> = changes
            .records
            .into_iter()
            .map(|(key, value)| (record_key(&key), value))
            .collect();
        let mut tail = self.tail;
        let first = tail.last + 1;
        let mut appended = Vec::new();
        for record in changes.history {
            tail = tail.then(&record);
            appended.push(record);
        }
        for number in changes.pruned {
            let new = number
                .checked_sub(first)
                .and_then(|place| appended.get_mut(usize::try_from(place).ok()?));
            if let Some(record) = new {
                *record = tombstone(record);
                continue;
            }
            let key = history_key(number);
            let stored = self.behind.reader().get(&key);
            if let Some(record) = stored.map_err(self.place.engine("read"))? {
                entries.push((key.to_vec(), Some(tombstone(&record))));
            }
        }
        for (number, record) in (first..).zip(appended) {
            entries.push((history_key(number).to_vec(), Some(record)));
        }
        entries.push((
            KEY_MARK.to_vec(),
            Some(mark_bytes(mark, tail, changes.digest)),
        ));
        self.behind
            .write(entries)
            .map_err(self.place.engine("write"))?;
        point("changes were written");
        self.mark = mark;
        self.digest = changes.digest;
        self.tail = tail;
        Ok(())
    }

    fn records(&self) -> Box<dyn Iterator<Item = Result<Record, StateError>> + '_> {
        if let Err(error) = self.behind.flush() {
            return Box::new(std::iter::once(Err(self.place.engine("write")(error))));
        }
        Box::new(self.place.db.scan_prefix([PREFIX_RECORD]).map(|item| {
            let (key, value) = item.map_err(self.place.engine("read"))?;
            Ok((key[1..].to_vec(), value.to_vec()))
        }))
    }

    fn history_reader(&self) -> Arc<dyn HistoryReader> {
        Arc::new(self.reader())
    }

    fn fill(&mut self, first: u64, records: Vec<Vec<u8>>) -> Result<(), StateError> {
        let (gap, reached) = check_fill(self.gap, first, &records)?;
        let mut batch = Batch::default();
        for (number, record) in (first..).zip(records) {
            batch.insert(history_key(number).as_slice(), record);
        }
        let left = (reached != gap.until).then_some(HistoryGap {
            after: reached,
            until: gap.until,
        });
        match left {
            Some(gap) => batch.insert(KEY_GAP, gap_bytes(gap)),
            None => batch.remove(KEY_GAP),
        }
        batch
            .apply(&self.place.db)
            .map_err(self.place.engine("write"))?;
        point("history was filled");
        self.gap = left;
        Ok(())
    }

    fn syncer(&self) -> Syncer {
        let (place, entries) = (self.place.clone(), self.behind.reader());
        Box::new(move || {
            entries.flush().map_err(place.engine("write"))?;
            place.sync()
        })
    }

    fn retire(&mut self) {
        self.retired = true;
    }
}

/// Fills the gap with what there is.
fn adopt(to: &mut TreeState, from: &Reader) -> Result<(), StateError> {
    while let Some(gap) = to.gap {
        let first = gap.after.last + 1;
        let mut records = from.read(first, ADOPT_BYTES)?;
        let wanted = gap.until.last - gap.after.last;
        records.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        if records.is_empty() {
            break;
        }
        to.fill(first, records)?;
    }
    to.place.sync()
}

impl StateRoot for TreeRoot {
    type Store = TreeState;

    fn open(&self, name: &str) -> Result<TreeState, StateError> {
        let path = self.directory.join(name);
        if !path.is_dir() {
            return Err(StateError::Damaged {
                place: path.display().to_string(),
                problem: "it does not exist".to_owned(),
            });
        }
        let untrusted = |problem: &str| StateError::Damaged {
            place: path.display().to_string(),
            problem: problem.to_owned(),
        };
        match Life::of(&path).trust().map_err(StateError::Disk)? {
            Trust::Whole => {}
            Trust::Torn => return Err(untrusted("the machine went down while it was open")),
            Trust::Deadly => return Err(untrusted("the last start died while it opened it")),
        }
        let place = self.open_db(name)?;
        place.opened()?;
        let mark = place
            .db
            .get(KEY_MARK)
            .map_err(place.engine("read"))?
            .ok_or_else(|| place.damaged("it was never completed"))?;
        let record = MarkRecord::decode(mark.as_ref())
            .map_err(|error| place.damaged(format!("its mark cannot be read ({error})")))?;
        let gap = place
            .db
            .get(KEY_GAP)
            .map_err(place.engine("read"))?
            .map(|bytes| {
                let record = GapRecord::decode(bytes.as_ref())
                    .map_err(|error| place.damaged(format!("its gap cannot be read ({error})")))?;
                Ok(HistoryGap {
                    after: tail(&place, record.after_last, &record.after_hash)?,
                    until: tail(&place, record.until_last, &record.until_hash)?,
                })
            })
            .transpose()?;
        Ok(TreeState {
            mark: Mark {
                position: LogPosition {
                    index: record.index,
                    term: record.term,
                },
                now_ms: record.now_ms,
            },
            digest: record.digest.try_into().ok(),
            tail: tail(&place, record.history_last, &record.history_hash)?,
            gap,
            behind: place.behind()?,
            place,
            retired: false,
        })
    }

    fn create(
        &self,
        name: &str,
        mark: Mark,
        history: HistoryTail,
        mut records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<TreeState, StateError> {
        disk::remove(&self.directory.join(name)).map_err(StateError::Disk)?;
        let place = self.open_db(name)?;
        loop {
            let mut batch = Batch::default();
            let mut count = 0;
            for record in (&mut records).take(CREATE_BATCH) {
                let (key, value) = record.map_err(|problem| place.damaged(problem))?;
                batch.insert(record_key(&key), value);
                count += 1;
            }
            if count == 0 {
                break;
            }
            batch.apply(&place.db).map_err(place.engine("write"))?;
            point("records were written");
        }
        // The mark goes last: without it the store does not open.
        let gap = (history.last > 0).then_some(HistoryGap {
            after: HistoryTail::default(),
            until: history,
        });
        let mut batch = Batch::default();
        if let Some(gap) = gap {
            batch.insert(KEY_GAP, gap_bytes(gap));
        }
        batch.insert(KEY_MARK, mark_bytes(mark, history, None));
        point("the mark is missing");
        batch.apply(&place.db).map_err(place.engine("write"))?;
        point("a state is not synced");
        place.sync()?;
        place.opened()?;
        disk::sync_dir(&self.directory).map_err(StateError::Disk)?;
        point("a state is made");
        Ok(TreeState {
            behind: place.behind()?,
            place,
            mark,
            digest: None,
            tail: history,
            gap,
            retired: false,
        })
    }

    fn adopt_history(&self, to: &mut TreeState, from: &TreeState) -> Result<(), StateError> {
        adopt(to, &from.reader())
    }

    fn salvage(&self, to: &mut TreeState, name: &str) -> Result<(), StateError> {
        let path = self.directory.join(name);
        if !path.is_dir() || Life::of(&path).trust().map_err(StateError::Disk)? == Trust::Deadly {
            return Ok(());
        }
        // It stays as it is being opened: nobody believes it again, also if this kills us.
        let place = self.open_db(name)?;
        let behind = place.behind()?;
        let reader = Reader {
            entries: behind.reader(),
            place,
        };
        // All of it or nothing: a beginning cannot be told from a wrong one.
        let until = to.gap.map(|gap| gap.until).unwrap_or_default();
        let mut reached = HistoryTail::default();
        while reached.last < until.last {
            let records = reader.read(reached.last + 1, ADOPT_BYTES)?;
            if records.is_empty() {
                break;
            }
            let wanted = usize::try_from(until.last - reached.last).unwrap_or(usize::MAX);
            let records = records.iter().take(wanted);
            reached = records.fold(reached, |tail, record| tail.then(record));
        }
        if reached != until {
            return Err(reader.place.damaged("its history is not the farm's"));
        }
        adopt(to, &reader)
    }

    fn sweep(&self, current: &str) -> Result<(), StateError> {
        let listing = std::fs::read_dir(&self.directory).map_err(disk::at("list", &self.directory));
        for entry in listing.map_err(StateError::Disk)?.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(NAME_PREFIX) && name != current {
                disk::remove(&entry.path()).map_err(StateError::Disk)?;
            }
        }
        Ok(())
    }
}
