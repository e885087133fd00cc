//! Disks of layer chains on this worker: made once, then patched.
//!
//! ```text
//! disks/<key>-<MiB>.raw    the disk of the chain whose top layer has that key
//! disks/<key>-<MiB>.json   what is known of it: its address in the store, digest, packages
//! disks/<key>-<MiB>.tree   hashes of its chunks, so that a child's digest is quick
//! ```
//!
//! The rule that makes a re-bake quick: the disk that is made from nothing is that of the last
//! `run` step (or the base), and every `copy` step above it is a patch whose disk is kept. When a
//! site changes, the disk below its copy is here, and only the patch is done. A disk that is made
//! anew and one that is patched up have the same bytes (see [`crate::image`]).

use std::fs::{self, File};
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest, StoreError};
use oast_attest::sbom;
use oast_model::bake::Bills;
use oast_model::pipeline::Arch;
use serde::{Deserialize, Serialize};

use super::bill;
use super::cache::{CacheError, open_folder};
use super::layer::UnpackedLayer;
use super::whole::{self, Values};
use crate::image::{self, DiskError, DiskOptions, Tools};

const MIB: u64 = 1 << 20;
/// The root partition unless the base is large.
const ROOT_MIN: u64 = 2048 * MIB;
/// Disks that are kept; the oldest go first.
const KEPT: usize = 12;

/// A disk that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The image itself.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This machine.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

impl MakeError {
    /// Whether the recipe is wrong, and not we.
    pub fn is_recipe(&self) -> bool {
        matches!(
            self,
            MakeError::Disk(
                DiskError::NoKernel | DiskError::RootSize { .. } | DiskError::BootPartition { .. }
            )
        )
    }
}

/// What is known of a finished disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Address of the raw disk.
    pub disk: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// blake3 of all of it.
    pub digest: Digest,
    /// Address of the package list.
    pub packages: Digest,
    /// How many packages.
    pub package_count: u32,
    /// The bills of material.
    pub bills: Bills,
}

/// The cache of disks.
#[derive(Debug)]
pub struct Disks {
    folder: Utf8PathBuf,
    store: ArtifactStore,
}

/// What a disk is made of.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The layers, the base first.
    pub layers: Vec<UnpackedLayer>,
    /// How many of them the disk that is made from nothing has: up to the last `run`.
    pub anchor: usize,
    /// Size that the pipeline asks for.
    pub size: Option<u64>,
    /// Programs that go into the boot partition.
    pub tools: Tools,
    /// Name of an instance that is given none.
    pub hostname: String,
    /// What it was made from, such as `debian-12`.
    pub base: String,
    /// The machine it is for.
    pub arch: Arch,
    /// Places of the layers that `copy` steps made, each with the blob of its contents.
    pub copied: Vec<(usize, Digest)>,
}

impl Chain {
    fn options(&self) -> DiskOptions {
        DiskOptions {
            root_bytes: self.root_bytes(),
            hostname: self.hostname.clone(),
            ..DiskOptions::default()
        }
    }

    /// Decided by the base and the pipeline alone, so that every disk of a chain has one size.
    fn root_bytes(&self) -> u64 {
        if let Some(size) = self.size {
            // The boot partition and the tables are part of what people call the disk.
            let boot = 66 * MIB;
            return size.saturating_sub(boot) / MIB * MIB;
        }
        let base: u64 = self.layers.first().map_or(0, |layer| {
            let sizes = layer.index.entries().iter().map(|entry| match entry.node {
                super::layer::Node::File { size, .. } => size,
                _ => 0,
            });
            sizes.sum()
        });
        ROOT_MIN.max((base * 2 + 1024 * MIB).next_multiple_of(256 * MIB))
    }
}

pub(super) fn at<'a>(
    doing: &'static str,
    path: &'a Utf8Path,
) -> impl FnOnce(io::Error) -> MakeError + 'a {
    move |err| MakeError::Io {
        doing,
        path: path.to_owned(),
        err,
    }
}

impl Disks {
    /// Opens the cache in `folder`.
    ///
    /// # Errors
    /// The folder cannot be made or emptied.
    pub fn open(folder: Utf8PathBuf, store: ArtifactStore) -> Result<Disks, CacheError> {
        open_folder(&folder)?;
        Ok(Disks { folder, store })
    }

    fn path(&self, chain: &Chain, count: usize, ending: &str) -> Utf8PathBuf {
        let top = &chain.layers[count - 1];
        let mib = chain.root_bytes() / MIB;
        self.folder.join(format!("{}-{mib}.{ending}", top.key))
    }

    /// The file of the disk with that address in the store, when it is here.
    pub fn of(&self, disk: Digest) -> Option<Utf8PathBuf> {
        let entries = fs::read_dir(&self.folder).ok()?;
        entries.flatten().find_map(|entry| {
            let path = Utf8PathBuf::from_path_buf(entry.path()).ok()?;
            (path.extension() == Some("json")).then_some(())?;
            let made: Made = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            let raw = path.with_extension("raw");
            (made.disk == disk && raw.exists()).then_some(raw)
        })
    }

    /// Makes the chain's disk, durable in the store. `say` hears what is done. Blocks.
    ///
    /// # Errors
    /// See [`MakeError`].
    pub fn make(&self, chain: &Chain, say: &dyn Fn(String)) -> Result<Made, MakeError> {
        let all = chain.layers.len();
        if all == 0 {
            return Err(DiskError::NoLayers.into());
        }
        if let Some(made) = self.known(chain, all) {
            say("the disk of these layers is known".to_owned());
            return Ok(made);
        }
        let options = chain.options();
        let have = (1..=all)
            .rev()
            .find(|count| self.path(chain, *count, "raw").exists());
        let mut info = None;
        let mut count = match have {
            Some(count) => count,
            None => {
                let count = chain.anchor.clamp(1, all);
                say(format!("make a disk of {count} of {all} layers"));
                let out = self.path(chain, count, "raw");
                let layers = &chain.layers[..count];
                info = Some(image::build(layers, &chain.tools, &options, &out)?);
                count
            }
        };
        while count < all {
            let below = self.path(chain, count, "raw");
            count += 1;
            say(format!("patch the disk by layer {count} of {all}"));
            let out = self.path(chain, count, "raw");
            let layers = &chain.layers[..count];
            info = Some(image::patch(&below, layers, &chain.tools, &options, &out)?);
        }
        let path = self.path(chain, all, "raw");
        let packages = match info {
            Some(info) => info.packages,
            None => packages(chain)?,
        };
        let made = self.store_disk(chain, &path, &packages)?;
        self.trim(chain);
        Ok(made)
    }

    fn known(&self, chain: &Chain, count: usize) -> Option<Made> {
        let bytes = fs::read(self.path(chain, count, "json")).ok()?;
        let made: Made = serde_json::from_slice(&bytes).ok()?;
        let Made {
            disk,
            packages,
            bills: Bills { cyclonedx, spdx },
            ..
        } = made;
        let all = [disk, packages, cyclonedx, spdx];
        all.iter().all(|blob| self.store.has(*blob)).then_some(made)
    }

    fn store_disk(
        &self,
        chain: &Chain,
        path: &Utf8Path,
        packages: &[image::Package],
    ) -> Result<Made, MakeError> {
        let stored = self.store.put_sparse_file(path)?;
        let manifest = self.store.manifest(stored.blob)?;
        let before = (1..chain.layers.len())
            .rev()
            .find_map(|count| read_values(&self.path(chain, count, "tree")));
        let file = File::open(path).map_err(at("open", path))?;
        let (digest, values) =
            whole::hash(&file, &manifest, before.as_ref()).map_err(at("read", path))?;
        let list = serde_json::to_vec(packages).expect("packages are texts");
        let bom = bill::collect(&self.store, chain, digest)?;
        let bills = Bills {
            cyclonedx: self.store.put_bytes(&sbom::cyclonedx(&bom))?.blob,
            spdx: self.store.put_bytes(&sbom::spdx(&bom))?.blob,
        };
        let made = Made {
            disk: stored.blob,
            size: manifest.len(),
            digest,
            packages: self.store.put_bytes(&list)?.blob,
            package_count: u32::try_from(packages.len()).unwrap_or(u32::MAX),
            bills,
        };
        let count = chain.layers.len();
        // Both only save time later; a torn one is noticed when it is read.
        let tree = self.path(chain, count, "tree");
        fs::write(&tree, values.encode()).map_err(at("write", &tree))?;
        let json = self.path(chain, count, "json");
        let text = serde_json::to_vec(&made).expect("a record has text keys only");
        fs::write(&json, text).map_err(at("write", &json))?;
        Ok(made)
    }

    /// Removes the oldest disks beyond [`KEPT`], never one of this chain.
    fn trim(&self, chain: &Chain) {
        let ours: Vec<String> = chain.layers.iter().map(|l| l.key.to_string()).collect();
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        let mut disks: Vec<(std::time::SystemTime, Utf8PathBuf)> = entries
            .flatten()
            .filter_map(|entry| {
                let path = Utf8PathBuf::from_path_buf(entry.path()).ok()?;
                let name = path.file_name()?;
                let ours = ours.iter().any(|key| name.starts_with(key.as_str()));
                let raw = path.extension() == Some("raw");
                (raw && !ours).then_some(())?;
                Some((entry.metadata().ok()?.modified().ok()?, path))
            })
            .collect();
        disks.sort();
        let surplus = (disks.len() + ours.len()).saturating_sub(KEPT);
        for (_, path) in disks.into_iter().take(surplus) {
            for ending in ["raw", "json", "tree"] {
                // One that vanished was removed by somebody who cleans up.
                let _ = fs::remove_file(path.with_extension(ending));
            }
        }
    }
}

fn read_values(path: &Utf8Path) -> Option<Values> {
    Values::decode(&fs::read(path).ok()?)
}

/// The packages that the topmost package database lists.
fn packages(chain: &Chain) -> Result<Vec<image::Package>, MakeError> {
    const STATUS: &str = "var/lib/dpkg/status";
    let top = chain
        .layers
        .iter()
        .rev()
        .find(|layer| layer.index.get(STATUS).is_some());
    let Some(layer) = top else {
        return Ok(Vec::new());
    };
    let path = layer.root.join(STATUS);
    match fs::read(&path) {
        Ok(status) => Ok(image::installed_packages(&String::from_utf8_lossy(&status))),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(err) => Err(at("read", &path)(err)),
    }
}
