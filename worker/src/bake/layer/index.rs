//! The index of a layer: every path with its metadata.

use oast_artifacts::{ArtifactStore, Digest, InvalidPath, StoreError, normal_path};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
/// An index larger than this is not one of ours: it would be of some two million paths.
const MAX_INDEX_BYTES: u64 = 512 << 20;

/// All paths of a layer, sorted by bytes, so a folder comes before what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIndex {
    version: u32,
    entries: Vec<LayerEntry>,
}

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// Relative and normal; empty for the root folder itself.
    pub path: String,
    pub node: Node,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner inside the image.
    pub uid: u32,
    /// Group inside the image.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    pub mtime_nanos: u32,
    /// Sorted by name. `security.capability` is in its version 2 form (no user namespace).
    pub xattrs: Vec<Xattr>,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xattr {
    pub name: String,
    pub value: Vec<u8>,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// `opaque`: nothing of the layers below shows through.
    Folder {
        opaque: bool,
    },
    /// Its content is `data[offset..offset + size]`.
    File {
        offset: u64,
        size: u64,
    },
    /// Another name of the file at `target`, which has an entry of its own earlier in the index.
    HardLink {
        target: String,
    },
    Symlink {
        target: String,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// The path of the layers below is gone.
    Whiteout,
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("layer index {blob} cannot be read by this version: {reason}; bake the step again")]
    Record { blob: Digest, reason: String },
    #[error(transparent)]
    Path(#[from] InvalidPath),
}

impl LayerIndex {
    /// Makes an index of entries in any order.
    pub fn new(mut entries: Vec<LayerEntry>) -> Self {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Self {
            version: VERSION,
            entries,
        }
    }

    /// The entries, sorted by path.
    pub fn entries(&self) -> &[LayerEntry] {
        &self.entries
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Option<&LayerEntry> {
        let at = self
            .entries
            .binary_search_by(|entry| entry.path.as_str().cmp(path))
            .ok()?;
        Some(&self.entries[at])
    }

    /// The record as it is stored.
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("an index has only texts, numbers and lists")
    }
}

/// Reads and checks an index: what comes from a shared folder must not make an unpack write outside its target.
pub fn read_index(store: &ArtifactStore, blob: Digest) -> Result<LayerIndex, IndexError> {
    let record = store.read_blob(blob, MAX_INDEX_BYTES)?;
    let broken = |reason: String| IndexError::Record { blob, reason };
    let index: LayerIndex =
        rmp_serde::from_slice(&record).map_err(|err| broken(err.to_string()))?;
    if index.version != VERSION {
        return Err(broken(format!("it has version {}", index.version)));
    }
    let mut below_leaf: Option<&str> = None;
    for (at, entry) in index.entries.iter().enumerate() {
        if at > 0 && index.entries[at - 1].path >= entry.path {
            return Err(broken(format!("{} is out of order", entry.path)));
        }
        if entry.path.is_empty() {
            continue;
        }
        normal_path(&entry.path)?;
        if let Some((parent, _)) = entry.path.rsplit_once('/') {
            let folder = |entry: &LayerEntry| matches!(entry.node, Node::Folder { .. });
            if !index.get(parent).is_some_and(folder) {
                below_leaf = Some(&entry.path);
            }
        }
        if let Node::HardLink { target } = &entry.node {
            let file = |entry: &LayerEntry| {
                !matches!(
                    entry.node,
                    Node::Folder { .. } | Node::HardLink { .. } | Node::Whiteout
                )
            };
            if !index.get(target).is_some_and(file) {
                return Err(broken(format!(
                    "{} links to {target}, which is no file of it",
                    entry.path
                )));
            }
        }
    }
    match below_leaf {
        Some(path) => Err(broken(format!("{path} has no folder"))),
        None => Ok(index),
    }
}
