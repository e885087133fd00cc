//! Layers of images as folders: unpacked from the farm's artifact store once, shared by all
//! instances as overlay lowers.
//!
//! The folders are a cache: they are not synced, so a boot of the machine empties it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};

use oast_artifacts::{ArtifactStore, Digest};

use super::runtime::LayerSource;
use crate::bake::layer::{self, UnpackError};
use crate::bake::manifest::{self, ManifestError};

/// Names the boot of the machine in which the cache was filled.
const BOOT_FILE: &str = "boot";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Why a layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The reference is no digest.
    #[error("{0:?} is no digest of a layer manifest")]
    Digest(String),
    /// The manifest cannot be read.
    #[error("read layer manifest {digest}")]
    Manifest {
        /// The manifest.
        digest: String,
        /// Why not.
        #[source]
        err: Box<ManifestError>,
    },
    /// The contents could not be unpacked.
    #[error("unpack layer {digest}")]
    Unpack {
        /// The manifest.
        digest: String,
        /// Why not.
        #[source]
        err: Box<UnpackError>,
    },
}

/// Unpacked layers of an artifact store.
#[derive(Debug)]
pub struct StoreLayers {
    store: ArtifactStore,
    folder: Utf8PathBuf,
    host_base: u32,
    /// One lock per layer, so that two instances do not unpack the same one.
    busy: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl StoreLayers {
    /// Opens the cache in `folder`. Owners of unpacked files are `host_base` + id.
    ///
    /// # Errors
    /// The folder cannot be made, or an outdated cache cannot be removed.
    pub fn open(
        store: ArtifactStore,
        folder: &Utf8Path,
        host_base: u32,
    ) -> io::Result<StoreLayers> {
        let stamp = format!("{} {host_base}\n", fs::read_to_string(BOOT_ID)?.trim());
        if fs::read_to_string(folder.join(BOOT_FILE)).ok().as_ref() != Some(&stamp) {
            match fs::remove_dir_all(folder) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            fs::create_dir_all(folder)?;
            fs::write(folder.join(BOOT_FILE), stamp)?;
        }
        Ok(StoreLayers {
            store,
            folder: folder.to_owned(),
            host_base,
            busy: Mutex::default(),
        })
    }

    fn root(&self, digest: &str) -> Result<Utf8PathBuf, LayerError> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(busy.entry(digest.to_owned()).or_default())
        };
        let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Before it is used as a name: a digest is hexadecimal.
        let address: Digest = digest
            .parse()
            .map_err(|_| LayerError::Digest(digest.to_owned()))?;
        let root = self.folder.join(digest);
        if root.exists() {
            return Ok(root);
        }
        let record = manifest::get(&self.store, address).map_err(|err| LayerError::Manifest {
            digest: digest.to_owned(),
            err: Box::new(err),
        })?;
        let (_, skipped) =
            layer::unpack(&self.store, &record, &root, self.host_base).map_err(|err| {
                LayerError::Unpack {
                    digest: digest.to_owned(),
                    err: Box::new(err),
                }
            })?;
        for what in skipped {
            tracing::debug!(digest, path = %what.path, what = what.what, "Part of a layer was left out.");
        }
        Ok(root)
    }
}

impl LayerSource for StoreLayers {
    fn roots(&self, layers: &[String]) -> Result<Vec<Utf8PathBuf>, String> {
        let root = |digest: &String| self.root(digest);
        let roots: Result<Vec<_>, LayerError> = layers.iter().map(root).collect();
        roots.map_err(|err| oast_daemon::telemetry::chain(&err).to_string())
    }
}

/// Folders that hold the trees already: `layers` are names below `folder`. For images that were
/// not baked by the farm, and for tests.
#[derive(Debug)]
pub struct PlainFolders(pub Utf8PathBuf);

impl LayerSource for PlainFolders {
    fn roots(&self, layers: &[String]) -> Result<Vec<Utf8PathBuf>, String> {
        let find = |name: &String| {
            let root = self.0.join(name);
            if root.is_dir() {
                Ok(root)
            } else {
                Err(format!("{root} is no folder"))
            }
        };
        layers.iter().map(find).collect()
    }
}
