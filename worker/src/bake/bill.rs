//! What an image is made of, read from its layers: the packages with their licences, and the files that steps copied.
//!
//! Files are read from the layers on this worker, contents of copied ones from the store: an unpacked layer's files
//! belong to mapped users, and not all of them can be read by this process.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};

use camino::Utf8Path;
use oast_artifacts::{ArtifactStore, Digest};
use oast_attest::dpkg;
use oast_attest::hash::{Hasher, Hashes};
use oast_attest::licence;
use oast_attest::sbom::{Bom, CopiedFile, Os};

use super::disk::{Chain, MakeError, at};
use super::layer::Node;
use crate::image::Merged;

/// The largest text that is read: Debian's longest copyright file is of 2 MB, its largest package list of 4 MB.
const TEXT_MAX: u64 = 32 << 20;
/// Links that are followed to a file, as some packages' documents lie in another one's folder.
const LINKS_MAX: usize = 4;
const OS_RELEASE: [&str; 2] = ["usr/lib/os-release", "etc/os-release"];

/// Reads what the chain's image has in it. `disk` is the hash of the raw disk.
///
/// # Errors
/// A file cannot be read. One that is not there says nothing and is no error.
pub fn collect(store: &ArtifactStore, chain: &Chain, disk: Digest) -> Result<Bom, MakeError> {
    let mut merged = Merged::default();
    for (place, layer) in chain.layers.iter().enumerate() {
        merged.apply(place, &layer.index);
    }
    let root = Root { chain, merged };
    let status = root.text(dpkg::STATUS)?.unwrap_or_default();
    let mut packages = dpkg::installed(&status);
    for package in &mut packages {
        let copyright = root.text(&package.copyright_path())?;
        package.licence = copyright.and_then(|text| licence::declared(&package.name, &text));
    }
    let mut release = String::new();
    for path in OS_RELEASE {
        if release.is_empty() {
            release = root.text(path)?.unwrap_or_default();
        }
    }
    Ok(Bom {
        image: chain.hostname.clone(),
        disk: disk.to_string(),
        base: chain.base.clone(),
        arch: chain.arch.as_str().to_owned(),
        os: Os::read(&release),
        packages,
        files: root.copied(store)?,
    })
}

struct Root<'c> {
    chain: &'c Chain,
    merged: Merged<'c>,
}

impl Root<'_> {
    /// A text file; none when there is nothing at the path, or nothing to read.
    fn text(&self, path: &str) -> Result<Option<String>, MakeError> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let Some((layer, entry)) = self.merged.get(&path) else {
                // The folder may be the link.
                let Some((folder, name)) = path.rsplit_once('/') else {
                    return Ok(None);
                };
                match self.merged.get(folder).map(|(_, entry)| &entry.node) {
                    Some(Node::Symlink { target }) => {
                        path = format!("{}/{name}", beside(folder, target));
                        continue;
                    }
                    _ => return Ok(None),
                }
            };
            match &entry.node {
                Node::Symlink { target } => path = beside(&path, target),
                Node::HardLink { target } => path.clone_from(target),
                Node::File { size, .. } if *size <= TEXT_MAX => {
                    let file = self.chain.layers[layer].root.join(&path);
                    return match fs::read(&file) {
                        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
                        Err(err) => Err(at("read", &file)(err)),
                    };
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The files of the `copy` steps that no later step has replaced, sorted by path.
    fn copied(&self, store: &ArtifactStore) -> Result<Vec<CopiedFile>, MakeError> {
        let mut files = Vec::new();
        for (place, data) in &self.chain.copied {
            let mut blob = store.open_blob(*data)?;
            for entry in self.chain.layers[*place].index.entries() {
                let Node::File { offset, size } = entry.node else {
                    continue;
                };
                if self
                    .merged
                    .get(&entry.path)
                    .is_none_or(|(layer, _)| layer != *place)
                {
                    continue;
                }
                let hashed = hash(&mut blob, offset, size);
                let hashes = hashed.map_err(at("read", Utf8Path::new(&entry.path)))?;
                files.push(CopiedFile {
                    path: entry.path.clone(),
                    size,
                    hashes,
                });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }
}

fn hash(blob: &mut (impl Read + Seek), offset: u64, size: u64) -> io::Result<Hashes> {
    blob.seek(SeekFrom::Start(offset))?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 << 10];
    let mut left = size;
    while left > 0 {
        let part = usize::try_from(left.min(buffer.len() as u64)).expect("at most 64 KiB");
        blob.read_exact(&mut buffer[..part])?;
        hasher.update(&buffer[..part]);
        left -= part as u64;
    }
    Ok(hasher.finish())
}

/// Where a link at `path` points to, below the root.
fn beside(path: &str, target: &str) -> String {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let start = if target.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            // Nothing is above the root.
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bake::layer::{PackOptions, UnpackedLayer, pack};
    use crate::image::Tools;
    use oast_model::pipeline::Arch;

    #[test]
    fn links_stay_inside_the_root() {
        for (path, target, found) in [
            ("usr/share/doc/a", "b", "usr/share/doc/b"),
            (
                "usr/share/doc/a/copyright",
                "../b/copyright",
                "usr/share/doc/b/copyright",
            ),
            ("a", "../../../etc/shadow", "etc/shadow"),
            ("usr/x", "/etc/y", "etc/y"),
        ] {
            assert_eq!(beside(path, target), found, "{path} -> {target}");
        }
    }

    fn layer(
        folder: &Utf8Path,
        name: &str,
        files: &[(&str, &str)],
        store: &ArtifactStore,
    ) -> (UnpackedLayer, Digest) {
        let root = folder.join(name);
        for (path, text) in files {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, file).unwrap(),
                None => fs::write(file, text).unwrap(),
            }
        }
        let options = PackOptions {
            key: Digest::of(name.as_bytes()),
            parent: None,
            host_base: 0,
            clamp_mtime: None,
        };
        let (record, index) = pack(store, &root, &options).unwrap();
        let layer = UnpackedLayer {
            key: record.key,
            content: record.content(),
            index,
            root,
            held: None,
        };
        (layer, record.data)
    }

    /// The files of the packages are found through links, and of the copied files those that are still there.
    #[test]
    fn a_bill_says_what_the_topmost_layers_show() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let store = ArtifactStore::open(&folder.join("store")).unwrap();
        let stanza = |name: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n"
            )
        };
        let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: Expat\n";
        let (base, _) = layer(
            folder,
            "base",
            &[
                ("etc/os-release", "-> ../usr/lib/os-release"),
                ("usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n"),
                ("usr/share/doc/a/copyright", copyright),
                ("usr/share/doc/b", "-> a"),
                ("var/lib/dpkg/status", &stanza("a")),
            ],
            &store,
        );
        let (below, data) = layer(
            folder,
            "copy",
            &[("srv/kept", "abc"), ("srv/replaced", "x")],
            &store,
        );
        let (run, _) = layer(
            folder,
            "run",
            &[
                ("srv/replaced", "y"),
                (
                    "var/lib/dpkg/status",
                    &(stanza("a") + &stanza("b") + &stanza("c")),
                ),
            ],
            &store,
        );
        let chain = Chain {
            layers: vec![base, below, run],
            anchor: 1,
            size: None,
            tools: Tools {
                stub: "stub".into(),
                busybox: "busybox".into(),
            },
            hostname: "web".to_owned(),
            base: "debian-12".to_owned(),
            arch: Arch::Amd64,
            copied: vec![(1, data)],
        };
        let bom = collect(&store, &chain, Digest::of(b"disk")).unwrap();
        let licences: Vec<_> = bom
            .packages
            .iter()
            .map(|p| {
                (
                    p.name.as_str(),
                    p.licence.as_ref().map(|l| l.expression.as_str()),
                )
            })
            .collect();
        assert_eq!(
            licences,
            [("a", Some("MIT")), ("b", Some("MIT")), ("c", None)]
        );
        assert_eq!(
            (bom.os.id.as_str(), bom.os.version.as_str()),
            ("debian", "12")
        );
        let files: Vec<_> = bom.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["srv/kept"]);
        assert_eq!(
            bom.files[0].hashes.sha1,
            "a9993e364706816aba3e25717850c26c9cd0d89d"
        );
    }
}
