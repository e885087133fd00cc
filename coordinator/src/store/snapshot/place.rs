//! Where snapshot files are: a directory, or memory, for groups whose disks are simulated.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Cursor, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::disk::{self, DiskError};
use crate::store::framing::BUFFER;

/// Written bytes after which a file is synced. Else the disk would write a whole snapshot at once, and
/// the log's next sync would wait for it.
const SYNC_BYTES: usize = 1 << 20;

/// Files by path.
type Files = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Synced files.
    Directory(PathBuf),
    /// What is written is there, and nothing else is promised.
    Memory(Arc<Mutex<Files>>),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Place::Directory(ours), Place::Directory(theirs)) => ours == theirs,
            (Place::Memory(ours), Place::Memory(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => false,
        }
    }
}

/// A file that is written and synced piece by piece.
struct Steady {
    file: File,
    unsynced: usize,
}

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.unsynced += written;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file that is read.
#[derive(Debug)]
pub(super) enum Source {
    File(BufReader<File>),
    Memory(Cursor<Shared>),
}

/// Bytes of a file in memory.
#[derive(Debug)]
pub(super) struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Read for Source {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::File(file) => file.read(bytes),
            Source::Memory(file) => file.read(bytes),
        }
    }
}

impl Source {
    /// Goes on from there.
    pub(super) fn seek(&mut self, offset: u64) -> io::Result<()> {
        match self {
            Source::File(file) => file.seek(SeekFrom::Start(offset)).map(drop),
            Source::Memory(file) => file.seek(SeekFrom::Start(offset)).map(drop),
        }
    }
}

fn lock(files: &Mutex<Files>) -> MutexGuard<'_, Files> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Place {
    /// The path of a file of that name.
    pub(super) fn path(&self, name: String) -> PathBuf {
        match self {
            Place::Directory(directory) => directory.join(name),
            Place::Memory(_) => PathBuf::from(name),
        }
    }

    /// Writes a file and syncs it.
    pub(super) fn write(
        &self,
        path: &Path,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Place::Directory(_) => {
                let file = Steady {
                    file: File::create(path)?,
                    unsynced: 0,
                };
                let mut file = BufWriter::with_capacity(BUFFER, file);
                content(&mut file)?;
                let steady = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                steady.file.sync_all()
            }
            Place::Memory(files) => {
                let mut bytes = Vec::new();
                content(&mut bytes)?;
                lock(files).insert(path.to_owned(), Arc::new(bytes));
                Ok(())
            }
        }
    }

    /// A file from its beginning, and its length.
    pub(super) fn open(&self, path: &Path) -> io::Result<(Source, u64)> {
        match self {
            Place::Directory(_) => {
                let file = File::open(path)?;
                let length = file.metadata()?.len();
                let reader = BufReader::with_capacity(BUFFER, file);
                Ok((Source::File(reader), length))
            }
            Place::Memory(files) => {
                let bytes = lock(files).get(path).cloned();
                let bytes = bytes.ok_or(io::ErrorKind::NotFound)?;
                let length = bytes.len() as u64;
                Ok((Source::Memory(Cursor::new(Shared(bytes))), length))
            }
        }
    }

    /// Gives a file its final name.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        match self {
            Place::Directory(directory) => fs::rename(from, to)
                .map_err(disk::at("rename into place", to))
                .and_then(|()| disk::sync_dir(directory)),
            Place::Memory(files) => {
                let mut files = lock(files);
                let found = files.remove(from).ok_or(io::ErrorKind::NotFound);
                let bytes = found.map_err(|kind| disk::at("rename into place", to)(kind.into()))?;
                files.insert(to.to_owned(), bytes);
                Ok(())
            }
        }
    }

    /// Removes a file.
    pub(super) fn remove(&self, path: &Path) -> Result<(), DiskError> {
        match self {
            Place::Directory(_) => disk::remove(path),
            Place::Memory(files) => {
                lock(files).remove(path);
                Ok(())
            }
        }
    }

    /// Every file.
    pub(super) fn list(&self) -> Result<Vec<PathBuf>, DiskError> {
        match self {
            Place::Directory(directory) => {
                let listing = fs::read_dir(directory).map_err(disk::at("list", directory))?;
                Ok(listing.flatten().map(|entry| entry.path()).collect())
            }
            Place::Memory(files) => Ok(lock(files).keys().cloned().collect()),
        }
    }
}
