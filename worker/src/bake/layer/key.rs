//! The key of a layer: everything that may change what a step makes, and nothing else.

use std::collections::BTreeMap;

use oast_artifacts::Digest;

/// The inputs of a step's key. Two steps with equal inputs may share one layer, whichever team or worker made it.
#[derive(Debug, Clone)]
pub struct LayerKey<'a> {
    /// The key of the layer below; none for a base.
    pub parent: Option<Digest>,
    /// Version of the engine's behaviour. Raised when the same step would make something else.
    pub engine: u32,
    /// Target architecture, for instance `amd64`.
    pub arch: &'a str,
    /// Canonical form of the step as the pipeline file states it.
    pub step: &'a [u8],
    /// Environment of the step.
    pub env: &'a BTreeMap<String, String>,
    /// Build arguments.
    pub args: &'a BTreeMap<String, String>,
    /// Contents the step reads, by the name under which it reads them (digests cover contents and modes).
    pub inputs: &'a [(String, Digest)],
    /// Digest of the package index, or the freshness epoch under which the step may be taken from the cache.
    pub packages: &'a str,
    /// Whose bakes may share this layer. A fork's bake never feeds a protected branch.
    pub trust_scope: &'a str,
}

impl LayerKey<'_> {
    /// The key. Every field is length-prefixed, so no two inputs run into each other.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(b"oast layer key 1");
        field(self.parent.as_ref().map_or(&[], |parent| parent.as_bytes()));
        field(&self.engine.to_le_bytes());
        field(self.arch.as_bytes());
        field(self.step);
        for map in [self.env, self.args] {
            field(&(map.len() as u64).to_le_bytes());
            for (name, value) in map {
                field(name.as_bytes());
                field(value.as_bytes());
            }
        }
        field(&(self.inputs.len() as u64).to_le_bytes());
        for (name, digest) in self.inputs {
            field(name.as_bytes());
            field(digest.as_bytes());
        }
        field(self.packages.as_bytes());
        field(self.trust_scope.as_bytes());
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}
