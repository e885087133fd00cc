//! The folder itself: where things lie, how one object is read and verified, and what is swept.

mod batch;
mod chunk;

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use oast_model::digest::Digest;

pub(crate) use batch::{Batch, sync_folder, write_durable};

use crate::manifest::{Manifest, ManifestError};

pub(crate) const CHUNKS: &str = "chunks";
const MANIFESTS: &str = "manifests";
pub(crate) const LOGS: &str = "logs";
const TEMPORARY: &str = "tmp";
const CORRUPT: &str = "corrupt";

/// One hex digit of fan-out. A put syncs every folder it renamed into, so few folders make cheap puts; sixteen of 60,000
/// entries each are a terabyte of chunks.
const SHARDS: &[u8; 16] = b"0123456789abcdef";

/// Reads more of one object than this and it is not ours: the largest manifest we accept is of a 4 TiB disk.
const MAX_OBJECT_BYTES: u64 = 160 << 20;

/// What went wrong in the store. Every variant names the path; the text says the way out.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no space left for {path}; free some on that file system or move the artifact store")]
    NoSpace { path: Utf8PathBuf },
    #[error(
        "{path} cannot be written; give this user write access to the artifact store or mount it writable"
    )]
    NotWritable {
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    #[error(
        "{what} {digest} is not in the artifact store ({path}); it was removed or another store was meant, make it again or point to the right store"
    )]
    Missing {
        what: &'static str,
        digest: Digest,
        path: Utf8PathBuf,
    },
    #[error("{what} {digest} is damaged: {reason} ({path}); {remedy}")]
    Corrupt {
        what: &'static str,
        digest: Digest,
        path: Utf8PathBuf,
        reason: String,
        remedy: &'static str,
    },
    #[error("{digest} has {len} bytes, more than the {limit} that may be read at once")]
    TooLarge {
        digest: Digest,
        len: u64,
        limit: u64,
    },
}

impl StoreError {
    /// Sorts an I/O error by what a person can do about it.
    pub fn io(action: &'static str, path: impl Into<Utf8PathBuf>, err: io::Error) -> Self {
        let path = path.into();
        match err.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if action != "read" && action != "open" =>
            {
                Self::NotWritable { path, err }
            }
            _ => Self::Io { action, path, err },
        }
    }
}

/// A handle to the artifact folder. Cheap to clone; any number of handles and processes may use one folder.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: Utf8PathBuf,
    /// Distinguishes the temporary files of this handle: process ids repeat between PID namespaces.
    nonce: u64,
    writable: bool,
    counter: std::sync::atomic::AtomicU64,
}

/// What [`ArtifactStore::sweep`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub files: u64,
    pub bytes: u64,
}

impl ArtifactStore {
    /// Opens the store for reading and writing and makes its folders when they are missing.
    pub fn open(root: &Utf8Path) -> Result<Self, StoreError> {
        let store = Self::handle(root, true)?;
        for folder in [MANIFESTS, LOGS, TEMPORARY, CORRUPT] {
            make_folder(&root.join(folder))?;
        }
        for shard in SHARDS {
            make_folder(&root.join(CHUNKS).join(char::from(*shard).to_string()))?;
        }
        Ok(store)
    }

    /// Opens an existing store for reading only, as members do.
    pub fn open_read_only(root: &Utf8Path) -> Result<Self, StoreError> {
        let chunks = root.join(CHUNKS);
        fs::metadata(&chunks).map_err(|err| StoreError::io("open", &chunks, err))?;
        Self::handle(root, false)
    }

    fn handle(root: &Utf8Path, writable: bool) -> Result<Self, StoreError> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce)
            .map_err(|err| StoreError::io("get random bytes for", root, io::Error::other(err)))?;
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                nonce: u64::from_le_bytes(nonce),
                writable,
                counter: 0.into(),
            }),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Utf8Path {
        &self.inner.root
    }

    /// Whether the store has the manifest of this blob. A blob with a manifest has all its chunks.
    pub fn has(&self, blob: Digest) -> bool {
        self.manifest_path(blob).exists()
    }

    /// Whether the store has this chunk.
    pub fn has_chunk(&self, chunk: Digest) -> bool {
        self.chunk_path(chunk).exists()
    }

    /// Reads and verifies a manifest.
    pub fn manifest(&self, blob: Digest) -> Result<Manifest, StoreError> {
        let path = self.manifest_path(blob);
        let record = self.read_object("manifest", blob, &path)?;
        let actual = Digest::of(&record);
        if actual != blob {
            return Err(self.corrupt("manifest", blob, path, format!("its digest is {actual}")));
        }
        Manifest::decode(&record)
            .map_err(|err: ManifestError| self.corrupt("manifest", blob, path, err.to_string()))
    }

    /// Reads and verifies one chunk.
    pub fn chunk(&self, digest: Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.chunk_path(digest);
        let file = self.read_object("chunk", digest, &path)?;
        chunk::decode(digest, &file)
            .map_err(|err| self.corrupt("chunk", digest, path, err.to_string()))
    }

    /// Removes temporary files and set-aside damaged chunks that nobody has touched for `older_than`.
    ///
    /// `now` comes from the caller's clock. `older_than` must be longer than any put takes.
    pub fn sweep(&self, now: SystemTime, older_than: Duration) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for folder in [TEMPORARY, CORRUPT] {
            let folder = self.inner.root.join(folder);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                Err(err) => return Err(StoreError::io("list", folder, err)),
            };
            for entry in entries {
                let entry = entry.map_err(|err| StoreError::io("list", &folder, err))?;
                // A file that vanishes meanwhile was renamed by its writer or swept by another process.
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let age = metadata
                    .modified()
                    .ok()
                    .and_then(|at| now.duration_since(at).ok());
                if age.is_some_and(|age| age >= older_than) && fs::remove_file(entry.path()).is_ok()
                {
                    swept.files += 1;
                    swept.bytes += metadata.len();
                }
            }
        }
        Ok(swept)
    }

    pub(crate) fn manifest_path(&self, blob: Digest) -> Utf8PathBuf {
        self.inner.root.join(MANIFESTS).join(blob.to_string())
    }

    pub(crate) fn chunk_path(&self, digest: Digest) -> Utf8PathBuf {
        let name = digest.to_string();
        self.inner.root.join(CHUNKS).join(&name[..1]).join(name)
    }

    pub(crate) fn temporary_path(&self) -> Utf8PathBuf {
        let count = self
            .inner
            .counter
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.inner
            .root
            .join(TEMPORARY)
            .join(format!("{:016x}-{count}", self.inner.nonce))
    }

    fn read_object(
        &self,
        what: &'static str,
        digest: Digest,
        path: &Utf8Path,
    ) -> Result<Vec<u8>, StoreError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing {
                    what,
                    digest,
                    path: path.to_owned(),
                });
            }
            Err(err) => return Err(StoreError::io("open", path, err)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_OBJECT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|err| StoreError::io("read", path, err))?;
        Ok(bytes)
    }

    /// Sets a damaged object aside, so that the next put of the same content stores it again instead of trusting its name.
    fn corrupt(
        &self,
        what: &'static str,
        digest: Digest,
        path: Utf8PathBuf,
        reason: String,
    ) -> StoreError {
        let aside = self
            .inner
            .root
            .join(CORRUPT)
            .join(format!("{what}-{digest}"));
        let remedy = if self.inner.writable && fs::rename(&path, &aside).is_ok() {
            "it was moved to the folder 'corrupt' of the store; run the bake again and it is stored afresh"
        } else {
            "remove that file and run the bake again, then it is stored afresh"
        };
        tracing::error!(%digest, %path, reason, "Damaged object in the artifact store.");
        StoreError::Corrupt {
            what,
            digest,
            path,
            reason,
            remedy,
        }
    }
}

fn make_folder(path: &Utf8Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|err| StoreError::io("make the folder", path, err))
}

#[cfg(test)]
mod tests;
