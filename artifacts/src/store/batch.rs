//! Many small durable writes at the price of a few: the chunks of one put.
//!
//! The order is the contract of the whole store:
//!
//! ```text
//! write temporary files (write-back is started at once) -> fdatasync each, in parallel -> rename each -> fsync their folders
//! -> only then the manifest: write, fdatasync, rename, fsync its folder
//! ```
//!
//! A crash at any point leaves temporary files and perhaps chunks that no manifest names. Two writers of one chunk rename
//! equal content over each other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use oast_model::digest::Digest;

use super::{ArtifactStore, StoreError, chunk};

/// Renames and syncs happen together for this many files, so that a very large put does not hold its whole size in
/// temporary files.
const FLUSH_FILES: usize = 1024;
/// Syncs wait for the device, not for a core: several at once share one journal commit.
const SYNC_THREADS: usize = 8;
/// A chunk file younger than this may have been renamed by another writer that has not synced the folder yet.
const SETTLED_AFTER: Duration = Duration::from_secs(600);

/// Collects new chunks. Shared by the threads of one put. Dropping it without [`Batch::finish`] removes what is unfinished.
#[derive(Debug)]
pub(crate) struct Batch<'s> {
    store: &'s ArtifactStore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<Pending>,
    /// Folders that must be synced before a manifest may name what lies in them.
    folders: BTreeSet<Utf8PathBuf>,
    new_chunks: u64,
    new_bytes: u64,
}

#[derive(Debug)]
struct Pending {
    temporary: Utf8PathBuf,
    chunk: Digest,
}

/// What a finished batch added to the store.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Added {
    pub chunks: u64,
    pub bytes: u64,
}

impl<'s> Batch<'s> {
    pub(crate) fn new(store: &'s ArtifactStore) -> Self {
        Self {
            store,
            state: Mutex::default(),
        }
    }

    /// Stores `raw` unless the store has it, and returns its digest.
    pub(crate) fn add(&self, raw: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(raw);
        let path = self.store.chunk_path(digest);
        let folder = path.parent().expect("a chunk lies in its shard").to_owned();
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.len() > 0
        {
            #[expect(
                clippy::disallowed_methods,
                reason = "compared with a time that the file system took from the same clock; Clock is above this crate"
            )]
            let settled = metadata
                .modified()
                .ok()
                .and_then(|at| SystemTime::now().duration_since(at).ok())
                .is_some_and(|age| age > SETTLED_AFTER);
            if !settled {
                self.lock().folders.insert(folder);
            }
            return Ok(digest);
        }
        let encoded = chunk::encode(raw);
        let temporary = self.store.temporary_path();
        write_temporary(&temporary, &encoded)?;
        let full = {
            let mut state = self.lock();
            state.pending.push(Pending {
                temporary,
                chunk: digest,
            });
            state.folders.insert(folder);
            state.new_chunks += 1;
            state.new_bytes += encoded.len() as u64;
            (state.pending.len() >= FLUSH_FILES).then(|| std::mem::take(&mut state.pending))
        };
        if let Some(pending) = full {
            self.publish(pending)?;
        }
        Ok(digest)
    }

    /// Makes every added chunk durable. Only after this may a manifest name them.
    pub(crate) fn finish(self) -> Result<Added, StoreError> {
        let (pending, folders, added) = {
            let mut state = self.lock();
            let added = Added {
                chunks: state.new_chunks,
                bytes: state.new_bytes,
            };
            (
                std::mem::take(&mut state.pending),
                std::mem::take(&mut state.folders),
                added,
            )
        };
        self.publish(pending)?;
        let folders: Vec<_> = folders.into_iter().collect();
        in_parallel(&folders, |folder| sync_folder(folder))?;
        Ok(added)
    }

    fn publish(&self, pending: Vec<Pending>) -> Result<(), StoreError> {
        let made = in_parallel(&pending, |file| {
            sync_file(&file.temporary)?;
            let path = self.store.chunk_path(file.chunk);
            fs::rename(&file.temporary, &path).map_err(|err| StoreError::io("rename to", path, err))
        });
        if made.is_err() {
            remove_all(&pending);
        }
        made
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code panics while it holds this lock")
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if let Ok(state) = self.state.get_mut() {
            remove_all(&state.pending);
        }
    }
}

fn remove_all(pending: &[Pending]) {
    for file in pending {
        // Already renamed, or left to the sweep: nothing more can be done about it here.
        let _ = fs::remove_file(&file.temporary);
    }
}

/// Writes one object so that it is either absent or whole, and durable when this returns.
pub(crate) fn write_durable(
    store: &ArtifactStore,
    path: &Utf8Path,
    bytes: &[u8],
) -> Result<(), StoreError> {
    let temporary = store.temporary_path();
    let made = write_temporary(&temporary, bytes)
        .and_then(|()| sync_file(&temporary))
        .and_then(|()| {
            fs::rename(&temporary, path).map_err(|err| StoreError::io("rename to", path, err))
        });
    if made.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    made?;
    sync_folder(path.parent().expect("an object lies in a folder"))
}

fn write_temporary(path: &Utf8Path, bytes: &[u8]) -> Result<(), StoreError> {
    let made = (|| {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        start_writeback(&file);
        Ok(())
    })();
    made.map_err(|err| {
        let _ = fs::remove_file(path);
        StoreError::io("write", path, err)
    })
}

/// Lets the device begin while the next chunk is hashed. A hint: the sync later is what counts.
fn start_writeback(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the length of the call and no memory is passed.
    unsafe {
        libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

fn sync_file(path: &Utf8Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_data())
        .map_err(|err| StoreError::io("sync", path, err))
}

pub(crate) fn sync_folder(path: &Utf8Path) -> Result<(), StoreError> {
    match File::open(path).and_then(|folder| folder.sync_all()) {
        // Some network and overlay file systems refuse to sync a folder; there is nothing stronger to ask for.
        Err(err) if err.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(|err| StoreError::io("sync", path, err)),
    }
}

/// Runs `work` for every item on a few threads; the first error wins and stops the rest.
pub(crate) fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), StoreError> + Sync,
) -> Result<(), StoreError> {
    if items.len() <= 1 {
        return items.iter().try_for_each(work);
    }
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..SYNC_THREADS.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(err) = work(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        failed
                            .lock()
                            .expect("no code panics with it")
                            .get_or_insert(err);
                    }
                }
            });
        }
    });
    failed
        .into_inner()
        .expect("no code panics with it")
        .map_or(Ok(()), Err)
}
