//! One address for a whole layer: the layer's record as a blob of its own.
//!
//! The ledger, image versions and the local cloud name a layer by one digest, its *manifest*.
//! Under it lies the [`LayerRecord`] as JSON, which names the layer's index and contents. The record is
//! stored last, so a manifest that can be read belongs to a layer that is durable.

use oast_artifacts::{ArtifactStore, Digest, StoreError};

use super::layer::LayerRecord;

/// A record is six short fields.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// Why a layer's record cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob is something else.
    #[error("{manifest} is no layer manifest: {reason}; bake the image again")]
    Foreign {
        /// The blob.
        manifest: Digest,
        /// What the decoder said.
        reason: String,
    },
}

/// Stores the record durably and returns the layer's address.
pub fn put(store: &ArtifactStore, record: &LayerRecord) -> Result<Digest, ManifestError> {
    let bytes = serde_json::to_vec(record).expect("a record has text keys only");
    Ok(store.put_bytes(&bytes)?.blob)
}

/// Reads the record at a layer's address.
pub fn get(store: &ArtifactStore, manifest: Digest) -> Result<LayerRecord, ManifestError> {
    let bytes = store.read_blob(manifest, RECORD_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|err| ManifestError::Foreign {
        manifest,
        reason: err.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_found_by_one_address_and_other_blobs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = camino::Utf8Path::from_path(folder.path()).unwrap();
        let store = ArtifactStore::open(root).unwrap();
        let record = LayerRecord {
            key: Digest::of(b"key"),
            parent: None,
            index: Digest::of(b"index"),
            data: Digest::of(b"data"),
            size: 7,
            entries: 2,
            inputs: std::collections::BTreeMap::new(),
        };
        let address = put(&store, &record).unwrap();
        assert_eq!(get(&store, address).unwrap(), record);
        let other = store.put_bytes(b"something else").unwrap().blob;
        assert!(matches!(
            get(&store, other),
            Err(ManifestError::Foreign { .. })
        ));
    }
}
