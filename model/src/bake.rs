//! What a bake leaves behind: layers by key, and the image that they make.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::names::WorkerName;
use crate::pipeline::Arch;
use crate::time::Timestamp;

/// Part of every layer key. Raised when the engine makes other bytes of the same step.
pub const ENGINE_VERSION: u32 = 1;

/// Whose work a layer may feed. Two scopes never share a layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Commits of watched branches.
    Protected,
    /// A tree that somebody uploaded, for that team alone.
    Upload(String),
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trust::Protected => f.write_str("protected"),
            Trust::Upload(team) => write!(f, "upload:{team}"),
        }
    }
}

/// A finished step's result. Immutable; found by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Hash of everything that determined the content.
    pub key: Digest,
    /// Key of the layer below; none for a base.
    pub parent: Option<Digest>,
    /// Address of the layer's manifest in the artifact store.
    pub manifest: Digest,
    /// Bytes of content that the layer adds.
    pub size: u64,
    /// What people see.
    pub title: String,
    /// Who made it.
    pub worker: WorkerName,
    /// When it became durable, by that worker's clock.
    pub made_at: Timestamp,
}

/// The result of a bake, before it has a version number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BakedImage {
    /// What it was made from, such as `debian-12`.
    pub base: String,
    /// The machine it is for.
    pub arch: Arch,
    /// Layer manifests, the base first.
    pub layers: Vec<Digest>,
    /// Address of the raw disk's chunk manifest.
    pub disk: Digest,
    /// Length of the raw disk in bytes.
    pub disk_size: u64,
    /// blake3 of the whole raw disk, as a reader of the exported file computes it.
    pub disk_digest: Digest,
    /// Address of the package list (JSON) in the store.
    pub packages: Digest,
    /// How many packages are installed.
    pub package_count: u32,
    /// Its bills of material. None of an image that was baked before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bills: Option<Bills>,
    /// Address of the signed statement of where it came from. The leader signs, so what a worker
    /// puts here never counts. None of an image that was baked before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Digest>,
}

/// Addresses of an image's bills of material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bills {
    /// CycloneDX 1.6, JSON.
    pub cyclonedx: Digest,
    /// SPDX 2.3, JSON.
    pub spdx: Digest,
}
