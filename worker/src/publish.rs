//! Makes an image usable in a region.
//!
//! In this first form every region reads the one artifact store, so publishing proves that the
//! store holds the whole image: each layer's manifest, index and contents, the disk, the
//! package list, the bills of material and the provenance, down to the last chunk.

use oast_artifacts::{ArtifactStore, Digest, StoreError};
use oast_model::bake::BakedImage;

use crate::bake::manifest::{self, ManifestError};

/// Something of the image is missing or damaged.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A layer cannot be read.
    #[error("publish: layer {place} of the image")]
    Layer {
        /// Counts from 1, the base first.
        place: usize,
        #[source]
        err: Box<ManifestError>,
    },
    /// A blob is incomplete.
    #[error("publish: the {what} of the image")]
    Blob {
        /// Which.
        what: String,
        #[source]
        err: Box<StoreError>,
    },
}

/// Checks that everything of the image is in the store. Blocks.
///
/// Presence is checked, not content: chunks are verified whenever they are read.
pub fn check(store: &ArtifactStore, image: &BakedImage) -> Result<(), PublishError> {
    for (manifest, place) in image.layers.iter().zip(1..) {
        let record = manifest::get(store, *manifest).map_err(|err| PublishError::Layer {
            place,
            err: Box::new(err),
        })?;
        present(store, record.index, || format!("index of layer {place}"))?;
        present(store, record.data, || format!("content of layer {place}"))?;
    }
    present(store, image.disk, || "disk".to_owned())?;
    present(store, image.packages, || "package list".to_owned())?;
    let bills = image.bills.iter();
    let bills = bills.flat_map(|bills| [bills.cyclonedx, bills.spdx]);
    for (blob, what) in bills
        .map(|blob| (blob, "bill of material"))
        .chain(image.provenance.map(|blob| (blob, "provenance")))
    {
        present(store, blob, || what.to_owned())?;
    }
    Ok(())
}

fn present(
    store: &ArtifactStore,
    blob: Digest,
    what: impl Fn() -> String,
) -> Result<(), PublishError> {
    let error = |err| PublishError::Blob {
        what: what(),
        err: Box::new(err),
    };
    let manifest = store.manifest(blob).map_err(error)?;
    for chunk in manifest.chunks().iter().flatten() {
        if !store.has_chunk(*chunk) {
            // Reading it gives the error that names the file and the way out.
            store.chunk(*chunk).map_err(error)?;
        }
    }
    Ok(())
}
