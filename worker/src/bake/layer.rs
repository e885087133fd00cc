//! Layers: what one bake step changed, as an immutable pair of blobs in the artifact store.
//!
//! A layer is an **index** (every path with its full metadata, sorted) and **data** (the contents of its files, one after the
//! other). It is not a tar archive on purpose: the index alone answers what a layer touches (that is all a disk patch needs
//! to be planned), contents are packed and unpacked by several threads because every offset is known beforehand, and there is
//! exactly one form of everything, so equal changes give equal digests. Whiteouts and opaque folders are entries of their
//! own kind, not names with prefixes.
//!
//! ```text
//! step's upper folder --pack--> index + data in the store --unpack--> a folder that is an overlay's lower
//!                                            \--> image/: entries on a disk
//! ```
//!
//! What this does not do: it runs no step and mounts nothing; which layer is current for a key is the ledger's business.

pub mod index;
mod key;
mod pack;
mod unpack;

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use oast_artifacts::Digest;
use serde::{Deserialize, Serialize};

pub use index::{IndexError, LayerEntry, LayerIndex, Node, Xattr, read_index};
pub use key::LayerKey;
pub use pack::{PackError, PackOptions, pack};
pub use unpack::{Skipped, UnpackError, unpack};

use super::shelf::Pin;

/// A finished layer, as the ledger keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The key of the step that made it.
    pub key: Digest,
    /// The key of the layer below, none for a base.
    pub parent: Option<Digest>,
    /// Blob of the index.
    pub index: Digest,
    /// Blob of the contents.
    pub data: Digest,
    /// Bytes of content.
    pub size: u64,
    /// Number of paths.
    pub entries: u64,
    /// What entered the key beside the step itself, by name: digests as text. Whoever signs where an image came from names them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
}

impl LayerRecord {
    /// Hash of everything in the layer. The key says how it was made; made twice, a step need not have the same content.
    pub fn content(&self) -> Digest {
        let both = [self.index.as_bytes().as_slice(), self.data.as_bytes()];
        Digest::of(&both.concat())
    }
}

/// A layer on this worker's disk.
#[derive(Debug, Clone)]
pub struct UnpackedLayer {
    pub key: Digest,
    /// [`LayerRecord::content`].
    pub content: Digest,
    pub index: LayerIndex,
    /// The folder with its files; owners are host ids there.
    pub root: Utf8PathBuf,
    /// Keeps the folder while this value lives; none where nobody else would remove it.
    pub held: Option<Pin>,
}

#[cfg(test)]
mod tests;
