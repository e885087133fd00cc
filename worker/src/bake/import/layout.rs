//! An OCI image in one file: an image layout as a tar archive, or what `docker save` writes.
//!
//! The parts are taken out of the file first, because their order in it is any. Each part that is
//! used is what its digest says: index, manifest and configuration by the digest that names them,
//! layers by that of their content, which the configuration lists.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::unpack::{Unpacker, Whiteouts};
use super::{Import, ImportError, plain};
use crate::bake::base::fetch::hex;

/// The largest index, manifest or configuration.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// Indices in indices.
const DEPTH_MAX: u32 = 4;
/// Layers of one image; the usual tools stop at 127.
const LAYERS_MAX: usize = 512;
/// The longest name of a part.
const NAME_BYTES_MAX: usize = 256;

/// An image that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It is damaged or no archive at all.
    #[error("read the image; is it a tar archive of an OCI layout, or of `docker save`?")]
    Read(#[source] io::Error),
    /// A part is not there.
    #[error("the image has no {name}")]
    Missing {
        /// Which.
        name: String,
    },
    /// A part is not what it should be.
    #[error("the image's {name} {why}")]
    Part {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// It is for other machines.
    #[error("the image is for {found}, and not for linux/{wanted}")]
    Platform {
        /// What it is for.
        found: String,
        /// What is wanted.
        wanted: String,
    },
    /// Too much.
    #[error("the image has more than {limit} bytes, which no base may have")]
    TooLarge {
        /// How many there may be.
        limit: u64,
    },
    /// This machine.
    #[error("store a part of the image at {path}")]
    Store {
        /// Where.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

impl LayoutError {
    /// Whether the image is wrong, and not we.
    pub fn is_recipe(&self) -> bool {
        !matches!(self, Self::Store { .. })
    }
}

/// One layer, as a file.
#[derive(Debug)]
pub(super) struct Layer {
    file: Utf8PathBuf,
    /// SHA-256 of its content, uncompressed.
    content: String,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    #[serde(default)]
    os: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Saved {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    architecture: String,
    #[serde(default)]
    os: String,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The parts of an image in a folder, by the names that they have in the file.
struct Parts {
    files: BTreeMap<String, Utf8PathBuf>,
}

/// Finds the layers of the image for the wanted machine, the lowest first.
pub(super) fn layers(import: &Import<'_>) -> Result<Vec<Layer>, ImportError> {
    let parts = Parts::take(import)?;
    let architecture = import.architecture;
    let found = if parts.files.contains_key("index.json") {
        let index: Index = parts.json("index.json")?;
        parts.of_index(index, architecture, 0)
    } else if parts.files.contains_key("manifest.json") {
        parts.of_saved(architecture)
    } else {
        Err(LayoutError::Missing {
            name: "index.json or manifest.json".to_owned(),
        })
    };
    Ok(found?)
}

/// Unpacks a layer over what is there, and believes it only if its content is what it should be.
pub(super) fn unpack(layer: &Layer, unpacker: &mut Unpacker<'_>) -> Result<(), ImportError> {
    let store = |err| LayoutError::Store {
        path: layer.file.clone(),
        err,
    };
    let file = File::open(&layer.file).map_err(store)?;
    let stream = plain(file).map_err(LayoutError::Read)?;
    let mut hashed = Hashed {
        stream,
        hasher: Sha256::new(),
    };
    unpacker.layer(&mut hashed, Whiteouts::Signs)?;
    // What stands behind the archive's end is part of the content, too.
    io::copy(&mut hashed, &mut io::sink()).map_err(LayoutError::Read)?;
    let found = hex(&hashed.hasher.finalize());
    if found != layer.content {
        let why = format!("has the content sha256:{found}");
        let name = format!("layer sha256:{}", layer.content);
        return Err(LayoutError::Part { name, why }.into());
    }
    Ok(())
}

struct Hashed<R> {
    stream: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl Parts {
    /// Takes the parts out of the file. Their names become no paths: each gets a number.
    fn take(import: &Import<'_>) -> Result<Parts, LayoutError> {
        let store = |path: &Utf8Path| {
            let path = path.to_owned();
            move |err| LayoutError::Store { path, err }
        };
        fs::create_dir_all(import.scratch).map_err(store(import.scratch))?;
        let file = File::open(import.file).map_err(store(import.file))?;
        let stream = plain(file).map_err(LayoutError::Read)?;
        let mut archive = tar::Archive::new(stream);
        let mut files = BTreeMap::new();
        let mut links = BTreeMap::new();
        let limit = import.limits.bytes;
        let mut left = limit;
        for (number, entry) in archive.entries().map_err(LayoutError::Read)?.enumerate() {
            let mut entry = entry.map_err(LayoutError::Read)?;
            if number as u64 >= import.limits.entries || import.cancel.is_cancelled() {
                return Err(LayoutError::TooLarge { limit });
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
            if name.len() > NAME_BYTES_MAX {
                continue;
            }
            let kind = entry.header().entry_type();
            if kind.is_symlink() || kind.is_hard_link() {
                // `docker save` names a layer that two images share by a link.
                let target = entry.link_name_bytes().unwrap_or_default();
                links.insert(name, String::from_utf8_lossy(&target).into_owned());
                continue;
            }
            if !kind.is_file() {
                continue;
            }
            if entry.size() > left {
                return Err(LayoutError::TooLarge { limit });
            }
            let path = import.scratch.join(number.to_string());
            let mut part = File::create_new(&path).map_err(store(&path))?;
            let copied = io::copy(&mut entry, &mut part).map_err(LayoutError::Read)?;
            left = left.saturating_sub(copied);
            files.insert(name, path);
        }
        for (name, target) in links {
            let target = target.trim_start_matches("../");
            if let Some(path) = files.get(target).cloned() {
                files.entry(name).or_insert(path);
            }
        }
        Ok(Parts { files })
    }

    fn part(&self, name: &str) -> Result<&Utf8Path, LayoutError> {
        let path = self.files.get(name).map(|path| path.as_path());
        path.ok_or_else(|| LayoutError::Missing {
            name: name.to_owned(),
        })
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let path = self.part(name)?;
        let mut bytes = Vec::new();
        let read = File::open(path)
            .and_then(|file| file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes));
        read.map_err(|err| LayoutError::Store {
            path: path.to_owned(),
            err,
        })?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            let why = format!("is longer than {DOCUMENT_BYTES_MAX} bytes");
            return Err(wrong(name, why));
        }
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, LayoutError> {
        let read = serde_json::from_slice(&self.bytes(name)?);
        read.map_err(|err| wrong(name, format!("cannot be read: {err}")))
    }

    /// A document that is named by its digest.
    fn named<T: DeserializeOwned>(&self, digest: &str) -> Result<T, LayoutError> {
        let name = blob(digest)?;
        let bytes = self.bytes(&name)?;
        let found = hex(&Sha256::digest(&bytes));
        if !digest.ends_with(&found) {
            return Err(wrong(&name, format!("has the content sha256:{found}")));
        }
        let read = serde_json::from_slice(&bytes);
        read.map_err(|err| wrong(&name, format!("cannot be read: {err}")))
    }

    fn of_index(
        &self,
        index: Index,
        architecture: &str,
        depth: u32,
    ) -> Result<Vec<Layer>, LayoutError> {
        if let Some(config) = &index.config {
            let config: Config = self.named(&config.digest)?;
            let files = index.layers.iter().map(|layer| blob(&layer.digest));
            return self.of_image(config, files, architecture);
        }
        if depth >= DEPTH_MAX {
            return Err(wrong("index.json", "has indices in indices".to_owned()));
        }
        // One without a platform says in its configuration what it is for.
        let fits = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_none_or(|platform| {
                platform.architecture == architecture && platform.os == "linux"
            })
        };
        let Some(chosen) = index.manifests.iter().find(fits) else {
            let platforms = index.manifests.iter().filter_map(|d| d.platform.as_ref());
            let found: Vec<String> = platforms
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            return Err(LayoutError::Platform {
                found: found.join(", "),
                wanted: architecture.to_owned(),
            });
        };
        let inner: Index = self.named(&chosen.digest)?;
        self.of_index(inner, architecture, depth + 1)
    }

    fn of_saved(&self, architecture: &str) -> Result<Vec<Layer>, LayoutError> {
        let saved: Vec<Saved> = self.json("manifest.json")?;
        let [image] = saved.as_slice() else {
            let why = format!("has {} images; save one alone", saved.len());
            return Err(wrong("manifest.json", why));
        };
        let config: Config = self.json(&image.config)?;
        let files = image.layers.iter().map(|name| Ok(name.clone()));
        self.of_image(config, files, architecture)
    }

    fn of_image(
        &self,
        config: Config,
        files: impl ExactSizeIterator<Item = Result<String, LayoutError>>,
        architecture: &str,
    ) -> Result<Vec<Layer>, LayoutError> {
        if config.architecture != architecture || config.os != "linux" {
            return Err(LayoutError::Platform {
                found: format!("{}/{}", config.os, config.architecture),
                wanted: architecture.to_owned(),
            });
        }
        let contents = &config.rootfs.diff_ids;
        if contents.len() != files.len() || files.len() > LAYERS_MAX || contents.is_empty() {
            let why = format!(
                "lists {} contents for {} layers; there are 1 to {LAYERS_MAX}, one each",
                contents.len(),
                files.len()
            );
            return Err(wrong("configuration", why));
        }
        let layer = |(name, content): (Result<String, LayoutError>, &String)| {
            Ok(Layer {
                file: self.part(&name?)?.to_owned(),
                content: digits(content)?.to_owned(),
            })
        };
        files.zip(contents).map(layer).collect()
    }
}

fn wrong(name: &str, why: String) -> LayoutError {
    LayoutError::Part {
        name: name.to_owned(),
        why,
    }
}

/// The digits of `sha256:...`.
fn digits(digest: &str) -> Result<&str, LayoutError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    digits.ok_or_else(|| wrong("manifest", format!("names {digest:?}, which is no SHA-256")))
}

fn blob(digest: &str) -> Result<String, LayoutError> {
    Ok(format!("blobs/sha256/{}", digits(digest)?))
}
