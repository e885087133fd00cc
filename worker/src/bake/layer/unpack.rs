//! From a layer in the store to a folder that serves as an overlay's lower.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::sync::Mutex;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, StoreError};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lsetxattr,
    makedev, mknodat, utimensat,
};
use rustix::io::Errno;

use super::index::{IndexError, LayerEntry, Node, read_index};
use super::{LayerRecord, UnpackedLayer};

const CAPABILITY: &str = "security.capability";
/// More threads than this wait for the disk only.
const MAX_THREADS: usize = 4;

/// Something of a layer that this host did not let us make. The layer's index still has it, so an image is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub path: String,
    pub what: &'static str,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

/// Unpacks a layer to `target`, which must not exist and appears only when it is whole. Owners become `host_base` + id.
///
/// The result is a cache: nothing is synced.
pub fn unpack(
    store: &ArtifactStore,
    record: &LayerRecord,
    target: &Utf8Path,
    host_base: u32,
) -> Result<(UnpackedLayer, Vec<Skipped>), UnpackError> {
    let index = read_index(store, record.index)?;
    let name = target.file_name().unwrap_or("layer");
    let partial = target.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    // Left by an earlier process that had this id and died.
    remove(&partial);
    let job = Job {
        store,
        record,
        root: &partial,
        host_base,
        skipped: Mutex::default(),
    };
    let made = job.run(index.entries()).and_then(|()| {
        fs::rename(&partial, target).map_err(|err| io_error("rename to", target, err))
    });
    if let Err(err) = made {
        remove(&partial);
        return Err(err);
    }
    let mut skipped = job.skipped.into_inner().expect("no code panics with it");
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((
        UnpackedLayer {
            key: record.key,
            content: record.content(),
            index,
            root: target.to_owned(),
            held: None,
        },
        skipped,
    ))
}

fn remove(partial: &Utf8Path) {
    let _ = fs::remove_dir_all(partial);
}

fn io_error(action: &'static str, path: &Utf8Path, err: impl Into<io::Error>) -> UnpackError {
    UnpackError::Io {
        action,
        path: path.to_owned(),
        err: err.into(),
    }
}

struct Job<'a> {
    store: &'a ArtifactStore,
    record: &'a LayerRecord,
    root: &'a Utf8Path,
    host_base: u32,
    skipped: Mutex<Vec<Skipped>>,
}

impl Job<'_> {
    /// Folders, then files on several threads, then links, and the folders' own metadata last: writing into a folder would
    /// change its time, and its final mode may forbid writing.
    fn run(&self, entries: &[LayerEntry]) -> Result<(), UnpackError> {
        fs::create_dir_all(self.root).map_err(|err| io_error("make the folder", self.root, err))?;
        for entry in entries {
            if matches!(entry.node, Node::Folder { .. }) && !entry.path.is_empty() {
                let path = self.root.join(&entry.path);
                fs::create_dir(&path).map_err(|err| io_error("make the folder", &path, err))?;
            }
        }
        self.files(entries)?;
        for entry in entries {
            let path = self.root.join(&entry.path);
            match &entry.node {
                Node::Folder { .. } | Node::File { .. } => continue,
                Node::HardLink { target } => {
                    let target = self.root.join(target);
                    // Its target may be a device that was skipped.
                    if target.symlink_metadata().is_ok() {
                        fs::hard_link(&target, &path)
                            .map_err(|err| io_error("link", &path, err))?;
                    } else {
                        self.skip(entry, "hard link to a skipped device");
                    }
                    continue;
                }
                Node::Symlink { target } => {
                    symlink(target, &path).map_err(|err| io_error("make the link", &path, err))?;
                }
                Node::CharDevice { major, minor } => {
                    if !self.special(
                        entry,
                        &path,
                        FileType::CharacterDevice,
                        makedev(*major, *minor),
                    )? {
                        continue;
                    }
                }
                Node::BlockDevice { major, minor } => {
                    if !self.special(
                        entry,
                        &path,
                        FileType::BlockDevice,
                        makedev(*major, *minor),
                    )? {
                        continue;
                    }
                }
                Node::Fifo => {
                    if !self.special(entry, &path, FileType::Fifo, 0)? {
                        continue;
                    }
                }
                Node::Whiteout => {
                    mknodat(
                        CWD,
                        path.as_std_path(),
                        FileType::CharacterDevice,
                        Mode::empty(),
                        0,
                    )
                    .map_err(|err| io_error("make the whiteout", &path, err))?;
                    continue;
                }
            }
            self.metadata(entry, &path)?;
        }
        for entry in entries.iter().rev() {
            if let Node::Folder { opaque } = entry.node {
                let path = if entry.path.is_empty() {
                    self.root.to_owned()
                } else {
                    self.root.join(&entry.path)
                };
                if opaque {
                    lsetxattr(
                        path.as_std_path(),
                        "user.overlay.opaque",
                        b"y",
                        XattrFlags::empty(),
                    )
                    .map_err(|err| io_error("mark as opaque", &path, err))?;
                }
                self.metadata(entry, &path)?;
            }
        }
        Ok(())
    }

    fn files(&self, entries: &[LayerEntry]) -> Result<(), UnpackError> {
        let files: Vec<(&LayerEntry, u64, u64)> = entries
            .iter()
            .filter_map(|entry| match entry.node {
                Node::File { offset, size } => Some((entry, offset, size)),
                _ => None,
            })
            .collect();
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_THREADS);
        // Halves of the data, not of the list: contiguous runs keep each thread inside its own chunks.
        let total = self.record.size.max(1);
        let share = |offset: u64| {
            usize::try_from(offset.min(total - 1) * threads as u64 / total).unwrap_or(0)
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = files
                .chunk_by(|(_, a, _), (_, b, _)| share(*a) == share(*b))
                .map(|part| scope.spawn(move || self.some_files(part)))
                .collect();
            running
                .into_iter()
                .try_for_each(|thread| thread.join().expect("unpacking does not panic"))
        })
    }

    fn some_files(&self, files: &[(&LayerEntry, u64, u64)]) -> Result<(), UnpackError> {
        let mut data = self.store.open_blob(self.record.data)?;
        let mut buffer = vec![0; 1 << 20];
        for (entry, offset, size) in files {
            let path = self.root.join(&entry.path);
            let write = |err| io_error("write", &path, err);
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(write)?;
            data.seek(SeekFrom::Start(*offset)).map_err(write)?;
            let mut left = usize::try_from(*size).expect("64-bit host");
            while left > 0 {
                let part = &mut buffer[..left.min(1 << 20)];
                data.read_exact(part).map_err(write)?;
                io::Write::write_all(&mut file, part).map_err(write)?;
                left -= part.len();
            }
            drop(file);
            self.metadata(entry, &path)?;
        }
        Ok(())
    }

    /// Makes a device or fifo; `false` when this host does not allow it.
    fn special(
        &self,
        entry: &LayerEntry,
        path: &Utf8Path,
        kind: FileType,
        device: u64,
    ) -> Result<bool, UnpackError> {
        match mknodat(
            CWD,
            path.as_std_path(),
            kind,
            Mode::from_raw_mode(0o600),
            device,
        ) {
            Ok(()) => Ok(true),
            // Inside a user namespace devices cannot be made.
            Err(Errno::PERM | Errno::ACCESS) => {
                self.skip(entry, "device");
                Ok(false)
            }
            Err(err) => Err(io_error("make the device", path, err)),
        }
    }

    /// Owner first: changing it clears setuid bits and capabilities.
    fn metadata(&self, entry: &LayerEntry, path: &Utf8Path) -> Result<(), UnpackError> {
        let id = |id: u32| id.checked_add(self.host_base).unwrap_or(u32::MAX - 1);
        chownat(
            CWD,
            path.as_std_path(),
            Some(Uid::from_raw(id(entry.uid))),
            Some(Gid::from_raw(id(entry.gid))),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|err| io_error("change the owner of", path, err))?;
        if !matches!(entry.node, Node::Symlink { .. }) {
            fs::set_permissions(
                path,
                std::os::unix::fs::PermissionsExt::from_mode(entry.mode),
            )
            .map_err(|err| io_error("change the mode of", path, err))?;
            for xattr in &entry.xattrs {
                let value = if xattr.name == CAPABILITY {
                    self.capability(&xattr.value)
                } else {
                    xattr.value.clone()
                };
                match lsetxattr(
                    path.as_std_path(),
                    xattr.name.as_str(),
                    &value,
                    XattrFlags::empty(),
                ) {
                    Ok(()) => {}
                    Err(Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {
                        self.skip(entry, "extended attribute")
                    }
                    Err(err) => return Err(io_error("set an attribute of", path, err)),
                }
            }
        }
        let time = Timespec {
            tv_sec: entry.mtime,
            tv_nsec: i64::from(entry.mtime_nanos),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, path.as_std_path(), &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|err| io_error("set the time of", path, err))
    }

    /// The capability as the image's own user namespace will see it: bound to the id that is its root.
    fn capability(&self, value: &[u8]) -> Vec<u8> {
        let mut value = value.to_vec();
        if self.host_base != 0 && value.len() == 20 {
            value[3] = 3;
            value.extend_from_slice(&self.host_base.to_le_bytes());
        }
        value
    }

    fn skip(&self, entry: &LayerEntry, what: &'static str) {
        self.skipped
            .lock()
            .expect("no code panics with it")
            .push(Skipped {
                path: entry.path.clone(),
                what,
            });
    }
}
