//! A tar archive into a root, one entry after the other, believing none of them.
//!
//! - Paths: relative, no `..`, UTF-8, of bounded length. Parents are resolved by the kernel inside
//!   the root, so a symbolic link made by an entry before leads nowhere else, and the last part
//!   is never followed.
//! - An entry replaces what is at its path, as the archive's own tool would have it.
//! - Bytes (holes counted), entries and ids have limits: a bomb ends as an error that names the limit.
//! - Devices are refused, those under `/dev` left out: a system makes them when it starts.
//! - Times and modes of folders are set at the end, when nothing more is put into them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use tar::EntryType;
use tokio_util::sync::CancellationToken;

use crate::bake::base::tree::{Attributes, Tree, split};

/// Ids of the image are mapped to as many ids of this machine.
const IDS: u64 = 65_536;
/// The longest path.
const PATH_BYTES_MAX: usize = 4096;
/// One read from the archive.
const COPY_BYTES: usize = 128 << 10;
/// Things left out that are told one by one.
const TOLD_MAX: usize = 20;
/// A folder that hides what the layers below have in it has this entry.
const OPAQUE: &str = ".wh..wh..opq";
/// A name that is gone has this in front.
const GONE: &str = ".wh.";
const CAPABILITY: &str = "security.capability";
const CAPABILITY_RECORD: &str = "SCHILY.xattr.security.capability";

/// What an archive may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of content, unpacked.
    pub bytes: u64,
    /// Of all layers.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes: 32 << 30,
            entries: 4_000_000,
        }
    }
}

/// An archive that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// It is damaged or no archive at all.
    #[error("read the archive; is it a tar archive, plain or compressed with gzip, xz or zstd?")]
    Read(#[source] io::Error),
    /// An entry that no image can have.
    #[error("the archive's entry {path:?} {why}")]
    Entry {
        /// Its name.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Too much.
    #[error("the archive has more than {limit} {what}, which no base may have")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// This machine.
    #[error("unpack {path:?}")]
    Write {
        /// The entry.
        path: String,
        #[source]
        err: io::Error,
    },
    /// Nobody waits for it any more.
    #[error("the work was cancelled")]
    Cancelled,
}

impl UnpackError {
    /// Whether the archive is wrong, and not we.
    pub fn is_recipe(&self) -> bool {
        matches!(
            self,
            Self::Read(_) | Self::Entry { .. } | Self::Limit { .. }
        )
    }
}

/// Whether names with `.wh.` in front say what is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// They do: it is a layer.
    Signs,
    /// They are files like others.
    Files,
}

/// Unpacks layers into one root, the lowest first.
pub struct Unpacker<'a> {
    tree: &'a Tree,
    limits: Limits,
    cancel: &'a CancellationToken,
    bytes: u64,
    entries: u64,
    /// Set at the end.
    folders: BTreeMap<Vec<u8>, Attributes>,
    left_out: Vec<String>,
    buffer: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    pub fn new(tree: &'a Tree, limits: Limits, cancel: &'a CancellationToken) -> Self {
        Unpacker {
            tree,
            limits,
            cancel,
            bytes: 0,
            entries: 0,
            folders: BTreeMap::from([(Vec::new(), Attributes::root(0o755, 0))]),
            left_out: Vec::new(),
            buffer: vec![0; COPY_BYTES],
        }
    }

    /// Unpacks one archive over what is there.
    pub fn layer(&mut self, stream: impl Read, whiteouts: Whiteouts) -> Result<(), UnpackError> {
        let mut archive = tar::Archive::new(stream);
        // What this layer itself has put there is not hidden by its own signs.
        let mut mine = BTreeSet::new();
        for entry in archive.entries().map_err(UnpackError::Read)? {
            if self.cancel.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(UnpackError::Limit {
                    what: "entries",
                    limit: self.limits.entries,
                });
            }
            let mut entry = entry.map_err(UnpackError::Read)?;
            let path = clean(&entry.path_bytes())?;
            if whiteouts == Whiteouts::Signs && self.sign(&path, &mine)? {
                continue;
            }
            self.entry(&mut entry, &path)?;
            mine.insert(path.into_bytes());
        }
        Ok(())
    }

    /// Sets what folders shall be, the deepest first. The answer is what was left out.
    pub fn finish(self) -> Result<Vec<String>, UnpackError> {
        for (path, attributes) in self.folders.iter().rev() {
            // One that a later layer replaced is none any more.
            match self.tree.dress_folder(path, *attributes) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                dressed => dressed.map_err(|err| write(path, err))?,
            }
        }
        Ok(self.left_out)
    }

    /// Does what a whiteout says; false when the entry is none.
    fn sign(&mut self, path: &str, mine: &BTreeSet<Vec<u8>>) -> Result<bool, UnpackError> {
        let (folder, name) = split(path.as_bytes());
        let name = std::str::from_utf8(name).unwrap_or_default();
        if name == OPAQUE {
            self.empty(folder, mine)?;
            return Ok(true);
        }
        let Some(gone) = name.strip_prefix(GONE) else {
            return Ok(false);
        };
        if gone.is_empty() || gone == "." || gone == ".." {
            let why = "is a whiteout of nothing".to_owned();
            return Err(refused(path, why));
        }
        if let Ok(parent) = self.tree.folder(folder) {
            remove(parent.as_fd(), gone.as_bytes()).map_err(|err| write(path.as_bytes(), err))?;
        }
        Ok(true)
    }

    /// Takes away what the layers below have in a folder.
    fn empty(&mut self, folder: &[u8], mine: &BTreeSet<Vec<u8>>) -> Result<(), UnpackError> {
        let text = String::from_utf8_lossy(folder).into_owned();
        let failed = |err| write(folder, err);
        let at = if text.is_empty() { "." } else { &text };
        for (name, kind) in self.tree.list(at).map_err(failed)? {
            let inner = match folder {
                [] => name.clone().into_bytes(),
                folder => [folder, b"/", name.as_bytes()].concat(),
            };
            let below = [inner.as_slice(), b"/"].concat();
            let first = mine.range(inner.clone()..).next();
            let ours = first.is_some_and(|path| *path == inner || path.starts_with(&below));
            if ours && kind == FileType::Directory {
                self.empty(&inner, mine)?;
            } else if !ours {
                let parent = self.tree.folder(folder).map_err(failed)?;
                remove(parent.as_fd(), name.as_bytes()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        path: &str,
    ) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        let at = path.as_bytes();
        let failed = |err| write(at, err);
        if path.is_empty() {
            if kind.is_dir() {
                let pax = Pax::of(entry)?;
                let attributes = attributes(entry, &pax, path)?;
                self.folders.insert(Vec::new(), attributes);
                return Ok(());
            }
            return Err(refused(path, "has no name".to_owned()));
        }
        if matches!(kind, EntryType::Char | EntryType::Block) {
            return self.device(path);
        }
        let pax = Pax::of(entry)?;
        let attributes = attributes(entry, &pax, path)?;
        let (folder, name) = split(at);
        let parent = self.tree.make_folders(folder).map_err(|err| {
            // A file where a folder should be, or links in a circle.
            refused(path, format!("cannot have its folder: {err}"))
        })?;
        let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW);
        let is_folder =
            there.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if kind.is_dir() {
            if !is_folder {
                remove(parent.as_fd(), name).map_err(failed)?;
                self.tree
                    .make_folder_at(parent.as_fd(), name)
                    .map_err(failed)?;
            }
            self.folders.insert(at.to_vec(), attributes);
            return Ok(());
        }
        if there.is_ok() {
            remove(parent.as_fd(), name).map_err(failed)?;
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = self.tree.create_at(parent.as_fd(), name).map_err(failed)?;
                self.content(entry, &mut file, path)?;
                self.tree.dress(&file, attributes).map_err(failed)?;
                self.capability(&pax, &file, path)
            }
            EntryType::Symlink => {
                let target = link_target(entry, path)?;
                self.tree
                    .symlink_at(parent.as_fd(), name, target.as_bytes(), attributes)
                    .map_err(failed)
            }
            EntryType::Link => {
                let target = clean(link_target(entry, path)?.as_bytes())?;
                self.hard_link(parent.as_fd(), name, &target, path)
            }
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
                rustix::fs::mknodat(&parent, name, FileType::Fifo, mode, 0)
                    .map_err(|err| failed(err.into()))?;
                self.tree.dress_folder(at, attributes).map_err(failed)
            }
            other => Err(refused(
                path,
                format!("is of the kind {other:?}, which no file system has"),
            )),
        }
    }

    fn device(&mut self, path: &str) -> Result<(), UnpackError> {
        if !path.starts_with("dev/") {
            let why = "is a device outside of /dev, which an image cannot bring along";
            return Err(refused(path, why.to_owned()));
        }
        match self.left_out.len() {
            ..TOLD_MAX => self.left_out.push(format!("left out the device /{path}")),
            TOLD_MAX => self.left_out.push("left out more devices".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn content<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        file: &mut std::fs::File,
        path: &str,
    ) -> Result<(), UnpackError> {
        // The header's word is checked before a byte is written: a hole costs an archive nothing.
        if self.bytes.saturating_add(entry.size()) > self.limits.bytes {
            return Err(self.too_large());
        }
        loop {
            if self.cancel.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
            let read = entry.read(&mut self.buffer).map_err(UnpackError::Read)?;
            if read == 0 {
                return Ok(());
            }
            self.bytes += read as u64;
            if self.bytes > self.limits.bytes {
                return Err(self.too_large());
            }
            file.write_all(&self.buffer[..read])
                .map_err(|err| write(path.as_bytes(), err))?;
        }
    }

    fn too_large(&self) -> UnpackError {
        UnpackError::Limit {
            what: "bytes",
            limit: self.limits.bytes,
        }
    }

    /// The target is another name of the root, found without following its last part.
    fn hard_link(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        target: &str,
        path: &str,
    ) -> Result<(), UnpackError> {
        let (folder, last) = split(target.as_bytes());
        let linked = self.tree.folder(folder).and_then(|folder| {
            rustix::fs::linkat(&folder, last, parent, name, AtFlags::empty())?;
            Ok(())
        });
        linked.map_err(|err| refused(path, format!("is a hard link to {target:?}: {err}")))
    }

    fn capability(&self, pax: &Pax, file: &std::fs::File, path: &str) -> Result<(), UnpackError> {
        let Some(value) = &pax.capability else {
            return Ok(());
        };
        let bound = self.tree.capability(value);
        rustix::fs::fsetxattr(file, CAPABILITY, &bound, XattrFlags::empty())
            .map_err(|err| write(path.as_bytes(), err.into()))
    }
}

/// What the extended records of an entry say beside its header. Of attributes only file
/// capabilities are taken; others are of the system that the archive was made on.
#[derive(Debug, Default)]
struct Pax {
    uid: Option<u64>,
    gid: Option<u64>,
    capability: Option<Vec<u8>>,
}

impl Pax {
    fn of<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Pax, UnpackError> {
        let mut pax = Pax::default();
        let records = entry.pax_extensions().map_err(UnpackError::Read)?;
        for record in records.into_iter().flatten() {
            let record = record.map_err(UnpackError::Read)?;
            let number = || {
                let text = std::str::from_utf8(record.value_bytes()).unwrap_or_default();
                // What is no number is no id that an image can have.
                text.parse().unwrap_or(u64::MAX)
            };
            match record.key_bytes() {
                b"uid" => pax.uid = Some(number()),
                b"gid" => pax.gid = Some(number()),
                key if key == CAPABILITY_RECORD.as_bytes() => {
                    pax.capability = Some(record.value_bytes().to_vec());
                }
                _ => {}
            }
        }
        Ok(pax)
    }
}

/// A relative path with nothing in it that leads anywhere else.
fn clean(raw: &[u8]) -> Result<String, UnpackError> {
    let shown = String::from_utf8_lossy(raw).into_owned();
    let Ok(text) = std::str::from_utf8(raw) else {
        return Err(refused(&shown, "has a name that is not UTF-8".to_owned()));
    };
    if text.len() > PATH_BYTES_MAX {
        let why = format!("has a path of more than {PATH_BYTES_MAX} bytes");
        return Err(refused(&shown[..shown.floor_char_boundary(200)], why));
    }
    if text.starts_with('/') {
        return Err(refused(text, "has an absolute path".to_owned()));
    }
    let mut parts = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refused(text, "leads out of the archive by `..`".to_owned())),
            part if part.contains(['\0', '\n']) => {
                let why = "has a control character in its name";
                return Err(refused(text, why.to_owned()));
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>, path: &str) -> Result<String, UnpackError> {
    let target = entry.link_name_bytes();
    let target = target.ok_or_else(|| refused(path, "is a link to nothing".to_owned()))?;
    let text = String::from_utf8(target.into_owned());
    let text = text.map_err(|_| refused(path, "links to what is not UTF-8".to_owned()))?;
    if text.is_empty() || text.len() > PATH_BYTES_MAX || text.contains('\0') {
        let why = "links to nothing, or to a path that is too long";
        return Err(refused(path, why.to_owned()));
    }
    Ok(text)
}

fn attributes<R: Read>(
    entry: &tar::Entry<'_, R>,
    pax: &Pax,
    path: &str,
) -> Result<Attributes, UnpackError> {
    let header = entry.header();
    let id = |said: Option<u64>, id: io::Result<u64>, what: &str| {
        let id = match said {
            Some(id) => id,
            None => id.map_err(UnpackError::Read)?,
        };
        if id >= IDS {
            let why = format!("belongs to {what} {id}; an image has ids below {IDS}");
            return Err(refused(path, why));
        }
        // Below 65,536, as was just checked.
        Ok(u32::try_from(id).unwrap_or_default())
    };
    Ok(Attributes {
        uid: id(pax.uid, header.uid(), "user")?,
        gid: id(pax.gid, header.gid(), "group")?,
        mode: header.mode().map_err(UnpackError::Read)? & 0o7777,
        modified: i64::try_from(header.mtime().map_err(UnpackError::Read)?).unwrap_or(0),
    })
}

/// Removes whatever is at a name, folders with all that is in them. Links are not followed.
fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
        Err(err) => return Err(err.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let inner = entry.file_name().to_bytes();
        if inner != b"." && inner != b".." {
            remove(folder.as_fd(), inner)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn refused(path: &str, why: String) -> UnpackError {
    UnpackError::Entry {
        path: path.to_owned(),
        why,
    }
}

fn write(path: &[u8], err: io::Error) -> UnpackError {
    UnpackError::Write {
        path: String::from_utf8_lossy(path).into_owned(),
        err,
    }
}
