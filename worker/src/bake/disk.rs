//! Disks of layer chains on this worker: made once, then patched.
//!
//! ```text
//! disks/<key>.raw    the disk of a chain: the key is the hash of everything its bytes depend on
//! disks/<key>.json   what is known of it: its address in the store, digest, packages
//! disks/<key>.tree   hashes of its chunks, so that a child's digest is quick
//! ```
//!
//! The rule that makes a re-bake quick: the disk that is made from nothing is that of the last
//! `run` step (or the base), and every `copy` step above it is a patch whose disk is kept. When a
//! site changes, the disk below its copy is here, and only the patch is done. A disk that is made
//! anew and one that is patched up have the same bytes (see [`crate::image`]).
//!
//! The drawback: the image's name is its default hostname, so two images that share layers share no disk.
//! What all of them may take together is the [`Shelf`]'s bound.

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest, StoreError};
use oast_attest::sbom;
use oast_model::bake::{Bills, ENGINE_VERSION};
use oast_model::pipeline::Arch;
use serde::{Deserialize, Serialize};

use super::bill;
use super::cache::{CacheError, open_folder};
use super::layer::UnpackedLayer;
use super::shelf::{Kind, Pin, Shelf};
use super::whole::{self, Values};
use crate::image::{self, DiskError, DiskOptions, ToolError, Tools};

const MIB: u64 = 1 << 20;
/// The root partition unless the base is large.
const ROOT_MIN: u64 = 2048 * MIB;

/// A disk that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The image itself.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The programs that make file systems.
    #[error(transparent)]
    Tool(#[from] ToolError),
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
    shelf: Arc<Shelf>,
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
    pub fn open(
        folder: Utf8PathBuf,
        store: ArtifactStore,
        shelf: Arc<Shelf>,
    ) -> Result<Disks, CacheError> {
        open_folder(&folder)?;
        let restored = shelf.restore(Kind::Disk, &folder);
        restored.map_err(|err| CacheError::Io {
            doing: "list",
            path: folder.clone(),
            err,
        })?;
        Ok(Disks {
            folder,
            store,
            shelf,
        })
    }

    /// The files of the disks of the chain's lowest layer, its two lowest, and so on to all.
    fn paths(&self, chain: &Chain) -> Result<Vec<Utf8PathBuf>, MakeError> {
        let all = chain.layers.len();
        let maker = Maker::of(&chain.tools)?;
        let path = |count| {
            self.folder
                .join(format!("{}.raw", key(chain, count, &maker)))
        };
        Ok((1..=all).map(path).collect())
    }

    /// The file of the disk with that address in the store, when it is here, and what keeps it.
    pub fn of(&self, disk: Digest) -> Option<(Utf8PathBuf, Pin)> {
        let entries = fs::read_dir(&self.folder).ok()?;
        entries.flatten().find_map(|entry| {
            let path = Utf8PathBuf::from_path_buf(entry.path()).ok()?;
            (path.extension() == Some("json")).then_some(())?;
            let raw = path.with_extension("raw");
            let made = read_made(&raw)?;
            if made.disk != disk {
                return None;
            }
            let pin = self.shelf.pin(&raw)?;
            Some((raw, pin))
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
        let paths = self.paths(chain)?;
        let path = |count: usize| &paths[count - 1];
        let _kept = self.shelf.pin(path(all));
        if let Some(made) = self.known(path(all)) {
            say("the disk of these layers is known".to_owned());
            return Ok(made);
        }
        let options = chain.options();
        let have = (1..=all)
            .rev()
            .find_map(|count| self.shelf.pin(path(count)).map(|pin| (count, pin)));
        let mut info = None;
        let (mut count, mut below) = match have {
            Some(have) => have,
            None => {
                let count = chain.anchor.clamp(1, all);
                say(format!("make a disk of {count} of {all} layers"));
                let layers = &chain.layers[..count];
                info = Some(image::build(layers, &chain.tools, &options, path(count))?);
                (count, self.shelf.put(Kind::Disk, path(count)))
            }
        };
        while count < all {
            let parent = path(count);
            count += 1;
            say(format!("patch the disk by layer {count} of {all}"));
            let layers = &chain.layers[..count];
            let patched = image::patch(parent, layers, &chain.tools, &options, path(count))?;
            info = Some(patched);
            // The parent's pin ends when its child is there.
            below = self.shelf.put(Kind::Disk, path(count));
        }
        let packages = match info {
            Some(info) => info.packages,
            None => packages(chain)?,
        };
        let made = self.store_disk(chain, &paths, &packages)?;
        // It has grown by what is known of it.
        let _grown = self.shelf.put(Kind::Disk, path(all));
        drop(below);
        Ok(made)
    }

    fn known(&self, raw: &Utf8Path) -> Option<Made> {
        let made = read_made(raw)?;
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
        paths: &[Utf8PathBuf],
        packages: &[image::Package],
    ) -> Result<Made, MakeError> {
        let (path, below) = paths.split_last().ok_or(DiskError::NoLayers)?;
        let stored = self.store.put_sparse_file(path)?;
        let manifest = self.store.manifest(stored.blob)?;
        let before = below
            .iter()
            .rev()
            .find_map(|path| read_values(&path.with_extension("tree")));
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
        // Both only save time later; a torn one is noticed when it is read.
        let tree = path.with_extension("tree");
        fs::write(&tree, values.encode()).map_err(at("write", &tree))?;
        let json = path.with_extension("json");
        let text = serde_json::to_vec(&made).expect("a record has text keys only");
        fs::write(&json, text).map_err(at("write", &json))?;
        Ok(made)
    }
}

/// What makes disks here: other programs make other bytes of the same layers.
struct Maker {
    stub: blake3::Hash,
    busybox: blake3::Hash,
    file_system: String,
}

impl Maker {
    fn of(tools: &Tools) -> Result<Maker, MakeError> {
        let hash = |path: &Utf8Path| {
            let bytes = fs::read(path).map_err(at("read", path))?;
            Ok::<_, MakeError>(blake3::hash(&bytes))
        };
        Ok(Maker {
            stub: hash(&tools.stub)?,
            busybox: hash(&tools.busybox)?,
            file_system: image::file_system_maker()?,
        })
    }
}

/// The hash of everything that decides the bytes of the disk of the chain's `count` lowest layers, and what is said of it.
fn key(chain: &Chain, count: usize, maker: &Maker) -> Digest {
    // Taken apart, so that what is added to them is not forgotten here.
    let Chain {
        layers,
        anchor: _, // Where one begins changes nothing of what comes out.
        size: _,   // In the options.
        tools: Tools {
            stub: _,
            busybox: _,
        },
        hostname: _, // In the options.
        base,
        arch,
        copied,
    } = chain;
    let DiskOptions {
        root_bytes,
        hostname,
        kernel_args,
    } = chain.options();
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(b"oast disk key 2");
    field(&ENGINE_VERSION.to_le_bytes());
    field(env!("CARGO_PKG_VERSION").as_bytes());
    field(maker.stub.as_bytes());
    field(maker.busybox.as_bytes());
    field(maker.file_system.as_bytes());
    field(&root_bytes.to_le_bytes());
    field(hostname.as_bytes());
    field(kernel_args.as_bytes());
    field(base.as_bytes());
    field(arch.as_str().as_bytes());
    for (place, layer) in layers[..count].iter().enumerate() {
        // The first one's key is in every identifier of the disk.
        field(layer.key.as_bytes());
        field(layer.content.as_bytes());
        field(&[u8::from(copied.iter().any(|(copy, _)| *copy == place))]);
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

fn read_made(raw: &Utf8Path) -> Option<Made> {
    serde_json::from_slice(&fs::read(raw.with_extension("json")).ok()?).ok()
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

#[cfg(test)]
mod tests;
