//! Source trees: the files of one commit (or of one upload), content-addressed.
//!
//! A tree is a sorted list of entries; its name is the digest of the blob that holds the list. Modes are reduced to what Git
//! keeps (executable or not), so that a tree means the same on every machine. Small files share pack chunks; where one pack
//! ends is decided by the files' own digests, so that an edit changes the packs around it and no others.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use oast_model::digest::Digest;
use serde::{Deserialize, Serialize};

use crate::blob::Stored;
use crate::manifest::CHUNK_BYTES;
use crate::store::{ArtifactStore, Batch, StoreError};

/// A file of at least this size has chunks of its own.
const PACKED_BELOW: usize = 256 << 10;
/// One in so many small files ends a pack.
const PACK_END_ONE_IN: u8 = 32;
/// The list of a tree may not be larger: some 500,000 files.
const MAX_LIST_BYTES: u64 = 128 << 20;
const VERSION: u32 = 1;

/// A source tree: entries sorted by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    version: u32,
    entries: Vec<TreeEntry>,
}

/// One path of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeEntry {
    /// Relative, `/`-separated, without `.` and `..` (see [`normal_path`]).
    pub path: String,
    pub kind: EntryKind,
}

/// What is at a path. Folders exist by having something in them; only empty ones are listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    File {
        executable: bool,
        size: u64,
        digest: Digest,
        place: Place,
    },
    Symlink {
        target: String,
    },
    EmptyFolder,
}

/// Where a file's bytes are. Not part of a file's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A run of bytes in a chunk that small files share.
    Packed { chunk: Digest, offset: u32 },
    /// Chunks of its own, in order.
    Chunks(Vec<Digest>),
}

/// A path that cannot be in a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a relative path inside the tree: {reason}")]
pub struct InvalidPath {
    pub path: String,
    pub reason: &'static str,
}

/// What went wrong with a tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Path(#[from] InvalidPath),
    #[error("{path} is in the tree twice")]
    Twice { path: String },
    #[error("{inner} lies under {outer}, which is not a folder")]
    UnderFile { outer: String, inner: String },
    #[error("{path:?} is not valid UTF-8; rename it, file names in a source tree are text")]
    NotText { path: std::path::PathBuf },
    #[error(
        "{path} is neither a file nor a folder nor a symbolic link; leave it out of the source tree"
    )]
    Special { path: Utf8PathBuf },
    #[error("tree {tree} cannot be read by this version: {reason}")]
    Record { tree: Digest, reason: String },
    #[error("tree {tree} has no file {path}")]
    NoFile { tree: String, path: String },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

/// One file to store.
#[derive(Debug, Clone)]
pub struct SourceFile {
    pub path: String,
    pub source: FileSource,
}

/// Where the content of a [`SourceFile`] comes from.
#[derive(Debug, Clone)]
pub enum FileSource {
    Bytes { bytes: Vec<u8>, executable: bool },
    OnDisk { path: Utf8PathBuf, executable: bool },
    Symlink { target: String },
    EmptyFolder,
}

impl Tree {
    /// The entries, sorted by path.
    pub fn entries(&self) -> &[TreeEntry] {
        &self.entries
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Option<&TreeEntry> {
        self.entries
            .binary_search_by(|entry| entry.path.as_str().cmp(path))
            .ok()
            .map(|at| &self.entries[at])
    }

    /// The entry at `prefix` and everything below it. An empty prefix (or `.`) is the whole tree.
    pub fn under(&self, prefix: &str) -> impl Iterator<Item = &TreeEntry> {
        let prefix = prefix.trim_matches('/').to_owned();
        let whole = prefix.is_empty() || prefix == ".";
        self.entries
            .iter()
            .filter(move |entry| whole || relative(&prefix, &entry.path).is_some())
    }

    /// The sum of all file sizes.
    pub fn total_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| match &entry.kind {
                EntryKind::File { size, .. } => *size,
                EntryKind::Symlink { .. } | EntryKind::EmptyFolder => 0,
            })
            .sum()
    }

    /// The digest of what lies at and below `prefix`: relative paths, contents, modes and link targets, nothing else. It is
    /// what a copy step's key contains. `None` when nothing is there.
    pub fn digest_under(&self, prefix: &str) -> Option<Digest> {
        let base = prefix.trim_matches('/');
        let base = if base == "." { "" } else { base };
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"oast tree subset 1\0");
        let mut count = 0_u64;
        for entry in self.under(base) {
            count += 1;
            let path = if base.is_empty() {
                Some(entry.path.as_str())
            } else {
                relative(base, &entry.path)
            };
            field(&mut hasher, path.unwrap_or_default().as_bytes());
            match &entry.kind {
                EntryKind::File {
                    executable,
                    size: _,
                    digest,
                    place: _,
                } => {
                    field(&mut hasher, if *executable { b"x" } else { b"f" });
                    field(&mut hasher, digest.as_bytes());
                }
                EntryKind::Symlink { target } => {
                    field(&mut hasher, b"l");
                    field(&mut hasher, target.as_bytes());
                }
                EntryKind::EmptyFolder => field(&mut hasher, b"d"),
            }
        }
        (count > 0).then(|| Digest::from_bytes(*hasher.finalize().as_bytes()))
    }
}

/// `path` relative to `base`: `""` for `base` itself, `None` outside.
fn relative<'p>(base: &str, path: &'p str) -> Option<&'p str> {
    let rest = path.strip_prefix(base)?;
    if rest.is_empty() {
        Some(rest)
    } else {
        rest.strip_prefix('/')
    }
}

fn field(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Checks that `path` is a canonical relative path.
pub fn normal_path(path: &str) -> Result<(), InvalidPath> {
    let bad = |reason| {
        Err(InvalidPath {
            path: path.to_owned(),
            reason,
        })
    };
    if path.is_empty() {
        return bad("it is empty");
    }
    if path.starts_with('/') {
        return bad("it is absolute");
    }
    if path.contains('\0') {
        return bad("it has a zero byte");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("it has an empty part, '.' or '..'");
    }
    Ok(())
}

/// Sorted, unique, and nothing under what is not a folder: so a checkout can never write through a link of the tree.
fn check(entries: &[TreeEntry]) -> Result<(), TreeError> {
    let mut leaves = std::collections::HashSet::new();
    for (at, entry) in entries.iter().enumerate() {
        normal_path(&entry.path)?;
        if at > 0 && entries[at - 1].path >= entry.path {
            return Err(TreeError::Twice {
                path: entry.path.clone(),
            });
        }
        leaves.insert(entry.path.as_str());
    }
    for entry in entries {
        for (at, _) in entry.path.match_indices('/') {
            if leaves.contains(&entry.path[..at]) {
                return Err(TreeError::UnderFile {
                    outer: entry.path[..at].to_owned(),
                    inner: entry.path.clone(),
                });
            }
        }
    }
    Ok(())
}

impl ArtifactStore {
    /// Stores a set of files as a tree, durably. The blob of the answer is the tree's name.
    pub fn put_files(&self, files: Vec<SourceFile>) -> Result<Stored, TreeError> {
        let mut sorted = BTreeMap::new();
        for file in files {
            normal_path(&file.path)?;
            if sorted.contains_key(&file.path) {
                return Err(TreeError::Twice { path: file.path });
            }
            sorted.insert(file.path, file.source);
        }
        let batch = Batch::new(self);
        let mut packer = Packer {
            batch: &batch,
            pack: Vec::new(),
            waiting: Vec::new(),
            entries: Vec::new(),
        };
        for (path, source) in sorted {
            match source {
                FileSource::Bytes { bytes, executable } => {
                    packer.file(
                        path,
                        executable,
                        bytes.len() as u64,
                        &mut bytes.as_slice(),
                        Utf8Path::new("memory"),
                    )?;
                }
                FileSource::OnDisk {
                    path: from,
                    executable,
                } => {
                    let mut file = File::open(&from).map_err(|err| TreeError::Io {
                        action: "open",
                        path: from.clone(),
                        err,
                    })?;
                    let len = file.metadata().map_or(0, |metadata| metadata.len());
                    packer.file(path, executable, len, &mut file, &from)?;
                }
                FileSource::Symlink { target } => packer.entries.push(TreeEntry {
                    path,
                    kind: EntryKind::Symlink { target },
                }),
                FileSource::EmptyFolder => packer.entries.push(TreeEntry {
                    path,
                    kind: EntryKind::EmptyFolder,
                }),
            }
        }
        packer.end_pack()?;
        let mut entries = packer.entries;
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        check(&entries)?;
        let content = batch.finish()?;
        let record = rmp_serde::to_vec(&Tree {
            version: VERSION,
            entries,
        })
        .expect("a tree has only texts, numbers and lists");
        let list = self.put_bytes(&record)?;
        Ok(Stored {
            new_chunks: list.new_chunks + content.chunks,
            new_bytes: list.new_bytes + content.bytes,
            ..list
        })
    }

    /// Stores a folder as a tree, durably, leaving out what `skip` says (called with paths relative to `folder`).
    pub fn put_folder(
        &self,
        folder: &Utf8Path,
        skip: &dyn Fn(&str) -> bool,
    ) -> Result<Stored, TreeError> {
        let mut files = Vec::new();
        walk(folder, "", skip, &mut files)?;
        self.put_files(files)
    }

    /// Reads a tree.
    pub fn tree(&self, tree: Digest) -> Result<Tree, TreeError> {
        let record = self.read_blob(tree, MAX_LIST_BYTES)?;
        let broken = |reason| TreeError::Record { tree, reason };
        let list: Tree = rmp_serde::from_slice(&record).map_err(|err| broken(err.to_string()))?;
        if list.version != VERSION {
            return Err(broken(format!(
                "it has version {}, this one reads {VERSION}",
                list.version
            )));
        }
        check(&list.entries)?;
        Ok(list)
    }

    /// Reads one file of a tree, of at most `limit` bytes.
    pub fn read_file(&self, tree: &Tree, path: &str, limit: u64) -> Result<Vec<u8>, TreeError> {
        match tree.get(path).map(|entry| &entry.kind) {
            Some(EntryKind::File {
                size,
                digest,
                place,
                ..
            }) => {
                if *size > limit {
                    return Err(StoreError::TooLarge {
                        digest: *digest,
                        len: *size,
                        limit,
                    }
                    .into());
                }
                let mut bytes = Vec::with_capacity(usize::try_from(*size).unwrap_or(0));
                self.copy_file(
                    *size,
                    place,
                    &mut PackCache::default(),
                    &mut bytes,
                    Utf8Path::new(path),
                )?;
                Ok(bytes)
            }
            _ => Err(TreeError::NoFile {
                tree: "given".to_owned(),
                path: path.to_owned(),
            }),
        }
    }

    /// Writes what lies under `prefix` to `target`, which must not exist and appears only when it is whole.
    ///
    /// When `prefix` is a file, `target` becomes that file.
    pub fn checkout(&self, tree: &Tree, prefix: &str, target: &Utf8Path) -> Result<(), TreeError> {
        let unique = self.temporary_path();
        let name = format!(
            ".{}.{}",
            target.file_name().unwrap_or("tree"),
            unique.file_name().unwrap_or("partial")
        );
        let partial = target.with_file_name(name);
        let made = self.write_out(tree, prefix, &partial).and_then(|()| {
            // A rename would silently replace an empty folder or a file.
            if target.symlink_metadata().is_ok() {
                let err = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(TreeError::Io {
                    action: "check out to",
                    path: target.to_owned(),
                    err,
                });
            }
            fs::rename(&partial, target).map_err(|err| TreeError::Io {
                action: "rename to",
                path: target.to_owned(),
                err,
            })
        });
        if made.is_err() {
            let _ = fs::remove_dir_all(&partial);
            let _ = fs::remove_file(&partial);
        }
        made
    }

    fn write_out(&self, tree: &Tree, prefix: &str, target: &Utf8Path) -> Result<(), TreeError> {
        let base = prefix.trim_matches('/');
        let base = if base == "." { "" } else { base };
        if base.is_empty() || tree.get(base).is_none() {
            make_folder(target)?;
        }
        let mut cache = PackCache::default();
        let mut found = base.is_empty();
        for entry in tree.under(base) {
            found = true;
            let inner = if base.is_empty() {
                entry.path.as_str()
            } else {
                relative(base, &entry.path).unwrap_or_default()
            };
            let path = if inner.is_empty() {
                target.to_owned()
            } else {
                target.join(inner)
            };
            if let Some(parent) = path.parent() {
                make_folder(parent)?;
            }
            let io = |action| {
                let path = path.clone();
                move |err| TreeError::Io { action, path, err }
            };
            match &entry.kind {
                EntryKind::File {
                    executable,
                    size,
                    place,
                    ..
                } => {
                    let mut file = File::create_new(&path).map_err(io("write"))?;
                    self.copy_file(*size, place, &mut cache, &mut file, &path)?;
                    let mode = if *executable { 0o755 } else { 0o644 };
                    file.set_permissions(fs::Permissions::from_mode(mode))
                        .map_err(io("set the mode of"))?;
                }
                EntryKind::Symlink { target } => {
                    symlink(target, &path).map_err(io("make the link"))?
                }
                EntryKind::EmptyFolder => make_folder(&path)?,
            }
        }
        if found {
            Ok(())
        } else {
            Err(TreeError::NoFile {
                tree: "given".to_owned(),
                path: base.to_owned(),
            })
        }
    }

    fn copy_file(
        &self,
        size: u64,
        place: &Place,
        cache: &mut PackCache,
        out: &mut dyn Write,
        path: &Utf8Path,
    ) -> Result<(), TreeError> {
        let write = |err| TreeError::Io {
            action: "write",
            path: path.to_owned(),
            err,
        };
        match place {
            Place::Packed { chunk, offset } => {
                let pack = cache.get(self, *chunk)?;
                let start = *offset as usize;
                let part = usize::try_from(size)
                    .ok()
                    .and_then(|size| pack.get(start..start.checked_add(size)?))
                    .ok_or_else(|| TreeError::Record {
                        tree: *chunk,
                        reason: format!("{path} lies outside its pack"),
                    })?;
                out.write_all(part).map_err(write)
            }
            Place::Chunks(chunks) => {
                for chunk in chunks {
                    out.write_all(&self.chunk(*chunk)?).map_err(write)?;
                }
                Ok(())
            }
        }
    }
}

fn make_folder(path: &Utf8Path) -> Result<(), TreeError> {
    fs::create_dir_all(path).map_err(|err| TreeError::Io {
        action: "make the folder",
        path: path.to_owned(),
        err,
    })
}

/// The pack that was read last: neighbours in a tree are neighbours in a pack.
#[derive(Debug, Default)]
struct PackCache(Option<(Digest, Vec<u8>)>);

impl PackCache {
    fn get(&mut self, store: &ArtifactStore, chunk: Digest) -> Result<&[u8], StoreError> {
        if self.0.as_ref().is_none_or(|(kept, _)| *kept != chunk) {
            self.0 = Some((chunk, store.chunk(chunk)?));
        }
        Ok(self.0.as_ref().map_or(&[], |(_, bytes)| bytes))
    }
}

struct Packer<'b, 's> {
    batch: &'b Batch<'s>,
    pack: Vec<u8>,
    /// Files of the open pack; their place is known when the pack ends.
    waiting: Vec<(String, bool, u32, u64, Digest)>,
    entries: Vec<TreeEntry>,
}

impl Packer<'_, '_> {
    fn file(
        &mut self,
        path: String,
        executable: bool,
        len: u64,
        reader: &mut dyn Read,
        from: &Utf8Path,
    ) -> Result<(), TreeError> {
        let read = |err| TreeError::Io {
            action: "read",
            path: from.to_owned(),
            err,
        };
        if len < PACKED_BELOW as u64 {
            let mut bytes = Vec::new();
            // A file that grew since its length was asked is cut where a pack could not hold it.
            reader
                .take(PACKED_BELOW as u64)
                .read_to_end(&mut bytes)
                .map_err(read)?;
            if self.pack.len() + bytes.len() > CHUNK_BYTES {
                self.end_pack()?;
            }
            let digest = Digest::of(&bytes);
            let offset = u32::try_from(self.pack.len()).expect("a pack has at most 1 MiB");
            self.waiting
                .push((path, executable, offset, bytes.len() as u64, digest));
            self.pack.extend_from_slice(&bytes);
            if digest.as_bytes()[0].is_multiple_of(PACK_END_ONE_IN) {
                self.end_pack()?;
            }
            return Ok(());
        }
        let mut hasher = blake3::Hasher::new();
        let mut chunks = Vec::new();
        let mut size = 0;
        let mut buffer = Vec::with_capacity(CHUNK_BYTES);
        loop {
            buffer.clear();
            (&mut *reader)
                .take(CHUNK_BYTES as u64)
                .read_to_end(&mut buffer)
                .map_err(read)?;
            if buffer.is_empty() {
                break;
            }
            size += buffer.len() as u64;
            hasher.update(&buffer);
            chunks.push(self.batch.add(&buffer)?);
        }
        let kind = EntryKind::File {
            executable,
            size,
            digest: Digest::from_bytes(*hasher.finalize().as_bytes()),
            place: Place::Chunks(chunks),
        };
        self.entries.push(TreeEntry { path, kind });
        Ok(())
    }

    fn end_pack(&mut self) -> Result<(), TreeError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let chunk = self.batch.add(&self.pack)?;
        self.pack.clear();
        for (path, executable, offset, size, digest) in self.waiting.drain(..) {
            let place = Place::Packed { chunk, offset };
            self.entries.push(TreeEntry {
                path,
                kind: EntryKind::File {
                    executable,
                    size,
                    digest,
                    place,
                },
            });
        }
        Ok(())
    }
}

fn walk(
    folder: &Utf8Path,
    inner: &str,
    skip: &dyn Fn(&str) -> bool,
    files: &mut Vec<SourceFile>,
) -> Result<(), TreeError> {
    let at = if inner.is_empty() {
        folder.to_owned()
    } else {
        folder.join(inner)
    };
    let io = |action| {
        let path = at.clone();
        move |err| TreeError::Io { action, path, err }
    };
    let mut empty = true;
    for entry in fs::read_dir(&at).map_err(io("list"))? {
        let entry = entry.map_err(io("list"))?;
        empty = false;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| TreeError::NotText { path: entry.path() })?;
        let path = if inner.is_empty() {
            name
        } else {
            format!("{inner}/{name}")
        };
        if skip(&path) {
            continue;
        }
        let on_disk = folder.join(&path);
        let kind = entry.file_type().map_err(io("list"))?;
        if kind.is_dir() {
            walk(folder, &path, skip, files)?;
            continue;
        }
        let source = if kind.is_symlink() {
            let target = fs::read_link(&on_disk).map_err(io("read a link in"))?;
            let target =
                target
                    .into_os_string()
                    .into_string()
                    .map_err(|target| TreeError::NotText {
                        path: target.into(),
                    })?;
            FileSource::Symlink { target }
        } else if kind.is_file() {
            let mode = entry.metadata().map_err(io("list"))?.permissions().mode();
            FileSource::OnDisk {
                path: on_disk,
                executable: mode & 0o100 != 0,
            }
        } else {
            return Err(TreeError::Special { path: on_disk });
        };
        files.push(SourceFile { path, source });
    }
    if empty && !inner.is_empty() {
        files.push(SourceFile {
            path: inner.to_owned(),
            source: FileSource::EmptyFolder,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
