//! Unpacked layers on this worker's disk: lower folders of overlays, and what disks are made of.
//!
//! ```text
//! layers/<manifest>/        the layer's files, owners shifted; appears only when it is whole
//! ```
//!
//! A cache: nothing in it is synced. After a boot of the machine its content may be torn, so it
//! is emptied then; after the death of the worker alone the page cache is still right. What it may
//! take of the disk is the [`Shelf`]'s, which it shares with the disks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest};
use oast_daemon::task::Tasks;

use super::layer::{
    IndexError, LayerIndex, LayerRecord, UnpackError, UnpackedLayer, read_index, unpack,
};
use super::manifest::{self, ManifestError};
use super::shelf::{Kind, Shelf};

/// Changes with each boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Holds the boot in which the cache was filled.
const BOOT_FILE: &str = "boot";

/// Why a layer is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A folder or file of the cache.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    /// The layer's record.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The layer's index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The layer's content.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// A bug.
    #[error(transparent)]
    Lost(#[from] oast_daemon::task::Lost),
}

/// The cache.
#[derive(Debug)]
pub struct Layers {
    folder: Utf8PathBuf,
    store: ArtifactStore,
    tasks: Tasks,
    host_base: u32,
    shelf: Arc<Shelf>,
    /// Without pins: whether one is still there, the shelf knows.
    known: Mutex<BTreeMap<Digest, UnpackedLayer>>,
    /// One lock per layer that is being unpacked.
    busy: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

fn at<'a>(doing: &'static str, path: &'a Utf8Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |err| CacheError::Io {
        doing,
        path: path.to_owned(),
        err,
    }
}

/// Makes a cache folder that is empty after each boot of the machine and has nothing half-made.
pub(super) fn open_folder(folder: &Utf8Path) -> Result<(), CacheError> {
    use std::os::unix::fs::PermissionsExt;
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let mark = folder.join(BOOT_FILE);
    if fs::read_to_string(&mark).ok().as_deref() != Some(boot.as_str()) {
        match fs::remove_dir_all(folder) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                return Err(at("empty the cache", folder)(err));
            }
            _ => {}
        }
    }
    fs::create_dir_all(folder).map_err(at("make", folder))?;
    // The mapped root of a sandbox passes through it to its lower folders.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o711))
        .map_err(at("open up", folder))?;
    fs::write(&mark, boot).map_err(at("write", &mark))?;
    for entry in fs::read_dir(folder).map_err(at("list", folder))? {
        let entry = entry.map_err(at("list", folder))?;
        // `.name.partial-123` or `.name.gone-7-123` of a worker that died.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            let path = entry.path();
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
        }
    }
    Ok(())
}

impl Layers {
    /// Opens the cache in `folder`.
    ///
    /// # Errors
    /// The folder cannot be made or emptied.
    pub fn open(
        folder: Utf8PathBuf,
        store: ArtifactStore,
        tasks: Tasks,
        host_base: u32,
        shelf: Arc<Shelf>,
    ) -> Result<Layers, CacheError> {
        open_folder(&folder)?;
        shelf
            .restore(Kind::Layer, &folder)
            .map_err(at("list", &folder))?;
        Ok(Layers {
            folder,
            store,
            tasks,
            host_base,
            shelf,
            known: Mutex::default(),
            busy: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<Digest, UnpackedLayer>> {
        // Nothing under this lock panics.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys of the layers at hand, for the leader's choice of a worker.
    pub fn keys(&self) -> Vec<Digest> {
        let known = self.known();
        let here = known.values().filter(|layer| self.shelf.has(&layer.root));
        here.map(|layer| layer.key).collect()
    }

    fn root(&self, manifest: Digest) -> Utf8PathBuf {
        self.folder.join(manifest.to_string())
    }

    fn at_hand(&self, manifest: Digest) -> Option<UnpackedLayer> {
        let held = self.shelf.pin(&self.root(manifest))?;
        let layer = self.known().get(&manifest)?.clone();
        Some(UnpackedLayer {
            held: Some(held),
            ..layer
        })
    }

    fn remember(&self, manifest: Digest, layer: &UnpackedLayer) {
        let mut known = self.known();
        known.retain(|_, layer| self.shelf.has(&layer.root));
        let layer = UnpackedLayer {
            held: None,
            ..layer.clone()
        };
        known.insert(manifest, layer);
    }

    /// The layer, unpacked when it is not at hand, and kept as long as the result lives. Tasks that
    /// want the same one wait for one.
    pub async fn get(self: &Arc<Self>, manifest: Digest) -> Result<UnpackedLayer, CacheError> {
        if let Some(layer) = self.at_hand(manifest) {
            return Ok(layer);
        }
        let turn = self
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(manifest)
            .or_default()
            .clone();
        let _turn = turn.lock().await;
        if let Some(layer) = self.at_hand(manifest) {
            return Ok(layer);
        }
        let cache = self.clone();
        let work = move || cache.load(manifest);
        let layer = self.tasks.blocking("unpack-layer", work).await??;
        self.remember(manifest, &layer);
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&manifest);
        Ok(layer)
    }

    fn load(&self, manifest: Digest) -> Result<UnpackedLayer, CacheError> {
        let record = manifest::get(&self.store, manifest)?;
        let root = self.root(manifest);
        // Left by an earlier process of this worker.
        if let Some(held) = self.shelf.pin(&root) {
            return Ok(UnpackedLayer {
                key: record.key,
                content: record.content(),
                index: read_index(&self.store, record.index)?,
                root,
                held: Some(held),
            });
        }
        let (mut layer, skipped) = unpack(&self.store, &record, &root, self.host_base)?;
        for entry in skipped {
            tracing::debug!(path = entry.path, what = entry.what, "Not unpacked here.");
        }
        layer.held = Some(self.shelf.put(Kind::Layer, &layer.root));
        Ok(layer)
    }

    /// Takes over the folder that a step has just made and that was packed as `record`. Blocks.
    pub fn adopt(
        &self,
        manifest: Digest,
        record: &LayerRecord,
        index: LayerIndex,
        folder: &Utf8Path,
    ) -> Result<UnpackedLayer, CacheError> {
        let root = self.root(manifest);
        match fs::rename(folder, &root) {
            Ok(()) => {}
            // The same layer was made or unpacked before; its content is the same.
            Err(_) if root.is_dir() => {}
            Err(err) => return Err(at("move a layer to", &root)(err)),
        }
        let layer = UnpackedLayer {
            key: record.key,
            content: record.content(),
            index,
            held: Some(self.shelf.put(Kind::Layer, &root)),
            root,
        };
        self.remember(manifest, &layer);
        Ok(layer)
    }
}
