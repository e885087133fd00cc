//! Blobs: any run of bytes, stored as chunks and named by its manifest.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8Path;
use oast_model::digest::Digest;

use crate::manifest::{CHUNK_BYTES, Manifest};
use crate::sparse::{Extent, data_extents};
use crate::store::{ArtifactStore, Batch, StoreError, write_durable};

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// More threads than this do not hash faster than the page cache delivers.
const MAX_THREADS: usize = 8;

/// Fills a buffer with the bytes at an offset; called in any order and from several threads.
pub type Fill<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), StoreError> + Sync + 'a;

/// What a put stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// The digest of the manifest: the blob's name.
    pub blob: Digest,
    /// Length of the blob.
    pub len: u64,
    /// Chunks of the blob that are not holes.
    pub chunks: u64,
    /// Chunks that the store did not have before.
    pub new_chunks: u64,
    /// Bytes that the store grew by, as stored (after compression).
    pub new_bytes: u64,
}

impl ArtifactStore {
    /// Stores `bytes` durably.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        let batch = Batch::new(self);
        let chunks = bytes
            .chunks(CHUNK_BYTES)
            .map(|raw| add(&batch, raw))
            .collect::<Result<_, _>>()?;
        self.publish(batch, bytes.len() as u64, chunks)
    }

    /// Stores what `reader` yields, durably. `name` stands in errors of the reader.
    pub fn put_reader(&self, name: &Utf8Path, reader: &mut dyn Read) -> Result<Stored, StoreError> {
        let batch = Batch::new(self);
        let mut chunks = Vec::new();
        let mut len = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let filled =
                fill(reader, &mut buffer).map_err(|err| StoreError::io("read", name, err))?;
            if filled == 0 {
                break;
            }
            len += filled as u64;
            chunks.push(add(&batch, &buffer[..filled])?);
            if filled < CHUNK_BYTES {
                break;
            }
        }
        self.publish(batch, len, chunks)
    }

    /// Stores a (sparse) file durably, hashing on several cores. Holes are never read and known chunks never written.
    ///
    /// The file must not change meanwhile: what is stored is then some mixture, under its own right digest.
    pub fn put_sparse_file(&self, path: &Utf8Path) -> Result<Stored, StoreError> {
        let file = File::open(path).map_err(|err| StoreError::io("open", path, err))?;
        let read = |err| StoreError::io("read", path, err);
        let len = file.metadata().map_err(read)?.len();
        let count = usize::try_from(len.div_ceil(CHUNK_BYTES as u64)).expect("64-bit host");
        let wanted = chunks_with_data(&data_extents(&file).map_err(read)?, count);

        self.put_chunks(len, &wanted, &|start, buffer| {
            file.read_exact_at(buffer, start).map_err(read)
        })
    }

    /// Stores `len` bytes that `fill(offset, buffer)` yields in any order and from several threads, durably.
    pub fn put_filled(&self, len: u64, fill: &Fill<'_>) -> Result<Stored, StoreError> {
        let count = usize::try_from(len.div_ceil(CHUNK_BYTES as u64)).expect("64-bit host");
        self.put_chunks(len, &(0..count).collect::<Vec<_>>(), fill)
    }

    fn put_chunks(
        &self,
        len: u64,
        wanted: &[usize],
        fill: &Fill<'_>,
    ) -> Result<Stored, StoreError> {
        let count = usize::try_from(len.div_ceil(CHUNK_BYTES as u64)).expect("64-bit host");
        let batch = Batch::new(self);
        let chunks = Mutex::new(vec![None; count]);
        for_each_chunk(wanted, |index, buffer| {
            let start = index as u64 * CHUNK_BYTES as u64;
            let size =
                usize::try_from((len - start).min(CHUNK_BYTES as u64)).expect("at most 1 MiB");
            fill(start, &mut buffer[..size])?;
            if let Some(digest) = add(&batch, &buffer[..size])? {
                chunks.lock().expect("no code panics with it")[index] = Some(digest);
            }
            Ok(())
        })?;
        self.publish(
            batch,
            len,
            chunks.into_inner().expect("no code panics with it"),
        )
    }

    /// Opens a blob for reading at any offset.
    pub fn open_blob(&self, blob: Digest) -> Result<BlobReader, StoreError> {
        Ok(BlobReader {
            manifest: self.manifest(blob)?,
            store: self.clone(),
            at: 0,
            loaded: None,
        })
    }

    /// Reads a whole blob of at most `limit` bytes.
    pub fn read_blob(&self, blob: Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let manifest = self.manifest(blob)?;
        if manifest.len() > limit {
            return Err(StoreError::TooLarge {
                digest: blob,
                len: manifest.len(),
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(manifest.len()).expect("64-bit host"));
        for (index, chunk) in manifest.chunks().iter().enumerate() {
            match chunk {
                Some(digest) => bytes.extend_from_slice(&self.chunk(*digest)?),
                None => bytes.extend_from_slice(&ZEROS[..manifest.chunk_len(index)]),
            }
        }
        Ok(bytes)
    }

    /// Writes a blob as a sparse file. The file appears under `path` only when it is whole and verified.
    ///
    /// It is a cache: nothing is synced, because the store can write it again.
    pub fn materialize(&self, blob: Digest, path: &Utf8Path) -> Result<Manifest, StoreError> {
        let manifest = self.manifest(blob)?;
        let partial = partial_path(path, self);
        let made = self.fill_file(&manifest, &partial).and_then(|()| {
            fs::rename(&partial, path).map_err(|err| StoreError::io("rename to", path, err))
        });
        if made.is_err() {
            let _ = fs::remove_file(&partial);
        }
        made.map(|()| manifest)
    }

    fn fill_file(&self, manifest: &Manifest, path: &Utf8Path) -> Result<(), StoreError> {
        let write = |err| StoreError::io("write", path, err);
        let file = File::create_new(path).map_err(write)?;
        file.set_len(manifest.len()).map_err(write)?;
        let wanted: Vec<usize> = (0..manifest.chunks().len())
            .filter(|index| manifest.chunks()[*index].is_some())
            .collect();
        for_each_chunk(&wanted, |index, _| {
            let Some(digest) = manifest.chunks()[index] else {
                return Ok(());
            };
            let raw = self.chunk(digest)?;
            if raw.len() != manifest.chunk_len(index) {
                return Err(StoreError::Corrupt {
                    what: "manifest",
                    digest: manifest.digest(),
                    path: self.manifest_path(manifest.digest()),
                    reason: format!("chunk {index} has {} bytes", raw.len()),
                    remedy: "the writer of this blob was faulty, make the blob again",
                });
            }
            file.write_all_at(&raw, index as u64 * CHUNK_BYTES as u64)
                .map_err(write)
        })
    }

    /// Reads and verifies every chunk of a blob.
    pub fn verify(&self, blob: Digest) -> Result<(), StoreError> {
        let manifest = self.manifest(blob)?;
        manifest
            .chunks()
            .iter()
            .flatten()
            .try_for_each(|chunk| self.chunk(*chunk).map(|_| ()))
    }

    /// The last step of every put: chunks durable, then the manifest.
    pub(crate) fn publish(
        &self,
        batch: Batch<'_>,
        len: u64,
        chunks: Vec<Option<Digest>>,
    ) -> Result<Stored, StoreError> {
        let added = batch.finish()?;
        let manifest = Manifest::new(len, chunks).expect("one entry per chunk was collected");
        let blob = manifest.digest();
        write_durable(self, &self.manifest_path(blob), &manifest.encode())?;
        Ok(Stored {
            blob,
            len,
            chunks: manifest.chunks().iter().flatten().count() as u64,
            new_chunks: added.chunks,
            new_bytes: added.bytes,
        })
    }
}

/// Adds one chunk, `None` when it is a hole.
fn add(batch: &Batch<'_>, raw: &[u8]) -> Result<Option<Digest>, StoreError> {
    if raw == &ZEROS[..raw.len()] {
        return Ok(None);
    }
    batch.add(raw).map(Some)
}

/// Indices of the chunks that any extent touches, ascending and unique.
fn chunks_with_data(extents: &[Extent], count: usize) -> Vec<usize> {
    let mut wanted: Vec<usize> = Vec::new();
    for extent in extents {
        let first = (extent.start / CHUNK_BYTES as u64) as usize;
        let end = (extent.end.div_ceil(CHUNK_BYTES as u64) as usize).min(count);
        let first = wanted.last().map_or(first, |last| first.max(last + 1));
        wanted.extend(first..end);
    }
    wanted
}

/// Runs `work` for each index on the cores, each thread with a buffer of one chunk; the first error stops all.
fn for_each_chunk(
    indices: &[usize],
    work: impl Fn(usize, &mut [u8]) -> Result<(), StoreError> + Sync,
) -> Result<(), StoreError> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(MAX_THREADS);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let run = || {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Some(index) = indices.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(err) = work(*index, &mut buffer) {
                next.store(indices.len(), Ordering::Relaxed);
                failed
                    .lock()
                    .expect("no code panics with it")
                    .get_or_insert(err);
            }
        }
    };
    if threads == 1 || indices.len() < 2 {
        run();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads.min(indices.len()) {
                scope.spawn(run);
            }
        });
    }
    failed
        .into_inner()
        .expect("no code panics with it")
        .map_or(Ok(()), Err)
}

fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

/// Beside the target, so that the rename stays on one file system.
fn partial_path(path: &Utf8Path, store: &ArtifactStore) -> camino::Utf8PathBuf {
    let unique = store.temporary_path();
    let unique = unique.file_name().expect("a temporary path has a name");
    path.with_file_name(format!(".{}.{unique}", path.file_name().unwrap_or("blob")))
}

/// Reads a blob; each chunk is verified when it is first touched. One chunk is kept.
#[derive(Debug)]
pub struct BlobReader {
    store: ArtifactStore,
    manifest: Manifest,
    at: u64,
    loaded: Option<(usize, Vec<u8>)>,
}

impl BlobReader {
    /// The blob's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.manifest.len() || out.is_empty() {
            return Ok(0);
        }
        let index = (self.at / CHUNK_BYTES as u64) as usize;
        let within = (self.at % CHUNK_BYTES as u64) as usize;
        let size = out.len().min(self.manifest.chunk_len(index) - within);
        match self.manifest.chunks()[index] {
            None => out[..size].fill(0),
            Some(digest) => {
                if self
                    .loaded
                    .as_ref()
                    .is_none_or(|(loaded, _)| *loaded != index)
                {
                    let raw = self.store.chunk(digest).map_err(io::Error::other)?;
                    self.loaded = Some((index, raw));
                }
                let raw = self.loaded.as_ref().map_or(&[][..], |(_, raw)| raw);
                let part = raw.get(within..within + size).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("chunk {digest} is too short"),
                    )
                })?;
                out[..size].copy_from_slice(part);
            }
        }
        self.at += size as u64;
        Ok(size)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.manifest.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek before the start of the blob",
            )
        })?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
