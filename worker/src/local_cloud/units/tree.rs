//! An image's files as its instances will see them: the layers one over the other.
//!
//! Read without mounting anything, so that a unit can be refused before an instance is touched.
//! Symbolic links are followed inside the image only; deletions (whiteouts) and replaced folders
//! (opaque) hide what is below.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};

/// Links followed for one path, as the kernel's own limit.
const LINKS_MAX: usize = 40;
/// Longest file that is read; dpkg's status of a large image is the longest.
const FILE_MAX: u64 = 8 << 20;
const OPAQUE: [&str; 2] = ["user.overlay.opaque", "trusted.overlay.opaque"];

/// Layers, base first.
#[derive(Clone, Debug)]
pub struct ImageTree {
    layers: Vec<Utf8PathBuf>,
    base: usize,
}

impl ImageTree {
    /// The image of these layers, of which the first `base` are the base system.
    #[must_use]
    pub fn new(layers: Vec<Utf8PathBuf>, base: usize) -> ImageTree {
        ImageTree { layers, base }
    }

    /// The base system alone.
    #[must_use]
    pub fn base(&self) -> ImageTree {
        let base = self.base.min(self.layers.len());
        ImageTree {
            layers: self.layers[..base].to_vec(),
            base,
        }
    }

    /// Whether the path is there, at the end of all links.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_some()
    }

    /// The text of a file; none when it is absent, too long or not text.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<String> {
        let path = self.resolve(path)?;
        let (file, meta) = self.find(&path)?;
        (meta.is_file() && meta.len() <= FILE_MAX).then(|| fs::read_to_string(file).ok())?
    }

    /// Whether the path itself is a link to nothing: how a unit is masked.
    #[must_use]
    pub fn is_masked(&self, path: &str) -> bool {
        let link = self
            .find(Utf8Path::new(path))
            .filter(|(_, m)| m.is_symlink());
        link.and_then(|(file, _)| fs::read_link(file).ok())
            .is_some_and(|t| t == *"/dev/null")
    }

    /// Names in a folder, sorted; empty when it is absent.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let Some(path) = self.resolve(path) else {
            return Vec::new();
        };
        let mut names = BTreeSet::new();
        let mut hidden = BTreeSet::new();
        for layer in self.layers.iter().rev() {
            let folder = below(layer, &path);
            if self.is_whiteout_above(layer, &path) {
                break;
            }
            for entry in folder.read_dir_utf8().into_iter().flatten().flatten() {
                let name = entry.file_name().to_owned();
                let Ok(meta) = entry.path().symlink_metadata() else {
                    continue;
                };
                if is_whiteout(&meta) {
                    hidden.insert(name);
                } else if !hidden.contains(&name) {
                    names.insert(name);
                }
            }
            if is_opaque(&folder) {
                break;
            }
        }
        names.into_iter().collect()
    }

    /// The path with every link on the way and at its end followed.
    #[must_use]
    pub fn resolve(&self, path: &str) -> Option<Utf8PathBuf> {
        let mut rest: VecDeque<String> = parts(Utf8Path::new(path)).collect();
        let mut done = Utf8PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&part);
            let (file, meta) = self.find(&next)?;
            if !meta.is_symlink() {
                done = next;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            let target = Utf8PathBuf::from_path_buf(fs::read_link(file).ok()?).ok()?;
            if target.is_absolute() {
                done = Utf8PathBuf::from("/");
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
        }
        self.find(&done).map(|_| done)
    }

    /// The topmost entry of a path whose folders are no links.
    fn find(&self, path: &Utf8Path) -> Option<(Utf8PathBuf, Metadata)> {
        for layer in self.layers.iter().rev() {
            let file = below(layer, path);
            match file.symlink_metadata() {
                Ok(meta) if is_whiteout(&meta) => return None,
                Ok(meta) => return Some((file, meta)),
                Err(err) if is_absent(&err) => {
                    if self.is_whiteout_above(layer, path) {
                        return None;
                    }
                }
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether this layer hides what is below it at `path`: a parent was deleted or replaced.
    fn is_whiteout_above(&self, layer: &Utf8Path, path: &Utf8Path) -> bool {
        let mut parents: Vec<&Utf8Path> = path.ancestors().skip(1).collect();
        parents.reverse();
        parents.into_iter().any(|parent| {
            let folder = below(layer, parent);
            let hides = |m: Metadata| is_whiteout(&m) || !m.is_dir() || is_opaque(&folder);
            folder.symlink_metadata().is_ok_and(hides)
        })
    }
}

fn below(layer: &Utf8Path, path: &Utf8Path) -> Utf8PathBuf {
    layer.join(path.strip_prefix("/").unwrap_or(path))
}

fn parts(path: &Utf8Path) -> impl Iterator<Item = String> {
    path.components().filter_map(|part| match part {
        Utf8Component::Normal(name) => Some(name.to_owned()),
        Utf8Component::ParentDir => Some("..".to_owned()),
        _ => None,
    })
}

fn is_absent(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(folder: &Utf8Path) -> bool {
    let mut value = [0; 4];
    OPAQUE.iter().any(|name| {
        rustix::fs::lgetxattr(folder.as_std_path(), *name, &mut value)
            .is_ok_and(|n| value[..n].first() == Some(&b'y'))
    })
}
