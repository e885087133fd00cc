//! From a folder (an overlay's upper, or a whole root) to a layer in the store.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest, StoreError};
use rustix::fs::{lgetxattr, llistxattr, major, minor};

use super::LayerRecord;
use super::index::{LayerEntry, LayerIndex, Node, Xattr};

/// The kernel's own limit for one attribute and for the list of names.
const MAX_XATTR_BYTES: usize = 64 << 10;
const CAPABILITY: &str = "security.capability";
const OVERLAY_OPAQUE: &str = "user.overlay.opaque";
/// What overlayfs writes for itself, in both of its forms.
const OVERLAY_PREFIXES: [&str; 2] = ["user.overlay.", "trusted.overlay."];

/// How a folder becomes a layer.
#[derive(Debug, Clone)]
pub struct PackOptions {
    pub key: Digest,
    pub parent: Option<Digest>,
    /// Id 0 of the image is this id as this process sees it.
    pub host_base: u32,
    /// No time in the layer is later than this (seconds since the epoch), so that a step which merely wrote files makes the
    /// same layer tomorrow. `None` keeps every time.
    pub clamp_mtime: Option<i64>,
}

/// Why a folder did not become a layer.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    #[error("{path:?} is not valid UTF-8; the step must give its files names that are text")]
    NotText { path: std::path::PathBuf },
    #[error(
        "{path:?} has a line break in its name; the step must rename or remove it, a disk cannot be patched with such names"
    )]
    LineBreak { path: String },
    #[error(
        "{path} belongs to {id}, outside the ids of the image ({base} and above); files were put there by something other than the step"
    )]
    ForeignOwner {
        path: Utf8PathBuf,
        id: u32,
        base: u32,
    },
    #[error("{path} changed while it was stored; something of the step still runs")]
    Changed { path: Utf8PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Stores `folder` as a layer, durably. Sockets are left out: they mean nothing without their process.
pub fn pack(
    store: &ArtifactStore,
    folder: &Utf8Path,
    options: &PackOptions,
) -> Result<(LayerRecord, LayerIndex), PackError> {
    let mut walk = Walk {
        folder,
        options,
        entries: Vec::new(),
        links: HashMap::new(),
        buffer: vec![0; MAX_XATTR_BYTES],
    };
    walk.entry(String::new())?;
    let mut index = LayerIndex::new(walk.entries);

    // Offsets follow the order of paths: neighbours on disk are neighbours in the data.
    let mut files = Vec::new();
    let mut size = 0;
    let mut entries = index.entries().to_vec();
    for entry in &mut entries {
        if let Node::File { offset, size: len } = &mut entry.node {
            *offset = size;
            if *len > 0 {
                files.push((size, *len, entry.path.clone()));
            }
            size += *len;
        }
    }
    index = LayerIndex::new(entries);

    let data = store.put_filled(size, &|start, buffer| fill(folder, &files, start, buffer))?;
    let list = store.put_bytes(&index.encode())?;
    let record = LayerRecord {
        key: options.key,
        parent: options.parent,
        index: list.blob,
        data: data.blob,
        size,
        entries: index.entries().len() as u64,
        inputs: BTreeMap::new(),
    };
    Ok((record, index))
}

/// Fills `buffer` with the data of the layer from `start`.
fn fill(
    folder: &Utf8Path,
    files: &[(u64, u64, String)],
    start: u64,
    buffer: &mut [u8],
) -> Result<(), StoreError> {
    let mut at = files.partition_point(|(offset, len, _)| offset + len <= start);
    let mut done = 0;
    while done < buffer.len() {
        let (offset, len, path) = &files[at];
        let within = start + done as u64 - offset;
        let part =
            usize::try_from((len - within).min((buffer.len() - done) as u64)).expect("64-bit host");
        let path = folder.join(path);
        File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .and_then(|file| file.read_exact_at(&mut buffer[done..done + part], within))
            .map_err(|err| StoreError::io("read", path, err))?;
        done += part;
        at += 1;
    }
    Ok(())
}

struct Walk<'a> {
    folder: &'a Utf8Path,
    options: &'a PackOptions,
    entries: Vec<LayerEntry>,
    /// First path seen of each inode that has several names.
    links: HashMap<(u64, u64), String>,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    fn entry(&mut self, path: String) -> Result<(), PackError> {
        if path.contains(['\n', '\r']) {
            return Err(PackError::LineBreak { path });
        }
        let on_disk = if path.is_empty() {
            self.folder.to_owned()
        } else {
            self.folder.join(&path)
        };
        let metadata = fs::symlink_metadata(&on_disk).map_err(|err| PackError::Io {
            action: "look at",
            path: on_disk.clone(),
            err,
        })?;
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let (mut xattrs, opaque) = if kind.is_symlink() {
            (Vec::new(), false)
        } else {
            self.xattrs(&on_disk)?
        };
        let node = self.node(&path, &on_disk, &metadata, opaque)?;
        if matches!(node, Node::Whiteout | Node::HardLink { .. }) {
            xattrs.clear();
        }
        let folder = kind.is_dir();
        let whiteout = node == Node::Whiteout;
        let clamp = self.options.clamp_mtime;
        let late = clamp.is_some_and(|latest| metadata.mtime() >= latest);
        let id = |id: u32| {
            id.checked_sub(self.options.host_base)
                .ok_or_else(|| PackError::ForeignOwner {
                    path: on_disk.clone(),
                    id,
                    base: self.options.host_base,
                })
        };
        self.entries.push(LayerEntry {
            node,
            mode: if whiteout {
                0
            } else {
                metadata.mode() & 0o7777
            },
            // A whiteout belongs to whoever mounted the overlay.
            uid: if whiteout { 0 } else { id(metadata.uid())? },
            gid: if whiteout { 0 } else { id(metadata.gid())? },
            mtime: if whiteout {
                0
            } else if late {
                clamp.unwrap_or(0)
            } else {
                metadata.mtime()
            },
            mtime_nanos: if whiteout || late {
                0
            } else {
                metadata.mtime_nsec() as u32
            },
            xattrs,
            path: path.clone(),
        });
        if folder {
            self.children(&path, &on_disk)?;
        }
        Ok(())
    }

    fn children(&mut self, path: &str, on_disk: &Utf8Path) -> Result<(), PackError> {
        let io = |err| PackError::Io {
            action: "list",
            path: on_disk.to_owned(),
            err,
        };
        let mut names = Vec::new();
        for child in fs::read_dir(on_disk).map_err(io)? {
            let child = child.map_err(io)?;
            let name = child
                .file_name()
                .into_string()
                .map_err(|_| PackError::NotText { path: child.path() })?;
            names.push(name);
        }
        // Sorted, so that the first name of a hard-linked file does not depend on the folder's order.
        names.sort_unstable();
        for name in names {
            self.entry(if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            })?;
        }
        Ok(())
    }

    fn node(
        &mut self,
        path: &str,
        on_disk: &Utf8Path,
        metadata: &Metadata,
        opaque: bool,
    ) -> Result<Node, PackError> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Ok(Node::Folder { opaque });
        }
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        if kind.is_char_device() && (major, minor) == (0, 0) {
            return Ok(Node::Whiteout);
        }
        if metadata.nlink() > 1 {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(target) = self.links.get(&inode) {
                return Ok(Node::HardLink {
                    target: target.clone(),
                });
            }
            self.links.insert(inode, path.to_owned());
        }
        Ok(if kind.is_symlink() {
            let target = fs::read_link(on_disk).map_err(|err| PackError::Io {
                action: "read the link",
                path: on_disk.to_owned(),
                err,
            })?;
            let target = target
                .into_os_string()
                .into_string()
                .map_err(|_| PackError::NotText {
                    path: on_disk.as_std_path().to_owned(),
                })?;
            if target.contains(['\n', '\r']) {
                return Err(PackError::LineBreak {
                    path: format!("{path} -> {target}"),
                });
            }
            Node::Symlink { target }
        } else if kind.is_char_device() {
            Node::CharDevice { major, minor }
        } else if kind.is_block_device() {
            Node::BlockDevice { major, minor }
        } else if kind.is_fifo() {
            Node::Fifo
        } else {
            Node::File {
                offset: 0,
                size: metadata.len(),
            }
        })
    }

    /// The attributes that belong to the image, and whether the folder is opaque.
    fn xattrs(&mut self, path: &Utf8Path) -> Result<(Vec<Xattr>, bool), PackError> {
        let io = |err: rustix::io::Errno| PackError::Io {
            action: "read the attributes of",
            path: path.to_owned(),
            err: err.into(),
        };
        let len = match llistxattr(path.as_std_path(), &mut self.buffer[..]) {
            // Most files have none.
            Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok((Vec::new(), false)),
            Ok(len) => len,
            Err(errno) => return Err(io(errno)),
        };
        let list = self.buffer[..len].to_vec();
        let mut xattrs = Vec::new();
        let mut opaque = false;
        for name in list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let Ok(name) = std::str::from_utf8(name) else {
                continue;
            };
            if name == OVERLAY_OPAQUE {
                let len = lgetxattr(path.as_std_path(), name, &mut self.buffer[..]).map_err(io)?;
                opaque = self.buffer[..len] == *b"y";
            }
            if !belongs_to_image(name) {
                continue;
            }
            let len = lgetxattr(path.as_std_path(), name, &mut self.buffer[..]).map_err(io)?;
            let mut value = self.buffer[..len].to_vec();
            if name == CAPABILITY {
                value = capability_v2(&value, self.options.host_base).unwrap_or(value);
            }
            xattrs.push(Xattr {
                name: name.to_owned(),
                value,
            });
        }
        xattrs.sort();
        Ok((xattrs, opaque))
    }
}

/// POSIX ACLs carry host ids and SELinux labels the host's policy; neither is the image's.
fn belongs_to_image(name: &str) -> bool {
    if OVERLAY_PREFIXES
        .iter()
        .any(|prefix| name.starts_with(prefix))
    {
        return false;
    }
    name == CAPABILITY || name.starts_with("user.")
}

/// Takes the user namespace out of a file capability (version 3 of the kernel's `vfs_cap_data`), when it is the image's own.
fn capability_v2(value: &[u8], host_base: u32) -> Option<Vec<u8>> {
    const VERSION_MASK: u32 = 0xff00_0000;
    const VERSION_2: u32 = 0x0200_0000;
    const VERSION_3: u32 = 0x0300_0000;
    let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let magic = word(0)?;
    if value.len() != 24 || magic & VERSION_MASK != VERSION_3 || word(20)? != host_base {
        return None;
    }
    let mut plain = value[..20].to_vec();
    plain[..4].copy_from_slice(&(magic & !VERSION_MASK | VERSION_2).to_le_bytes());
    Some(plain)
}
