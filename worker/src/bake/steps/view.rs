//! The layers below a step as one file system, read without mounting it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;

use super::copy::CopyError;
use crate::bake::layer::{LayerEntry, Node, UnpackedLayer};

/// Links followed on the way to one path, as the kernel does.
const LINKS_MAX: u32 = 40;
/// A longer file is not one of accounts or of a system's name.
const TEXT_MAX: u64 = 4 << 20;

/// The layers below as one file system.
#[derive(Clone, Copy)]
pub(super) struct View<'a>(pub &'a [UnpackedLayer]);

impl<'a> View<'a> {
    /// What is at exactly this path; links on the way are not followed.
    pub fn at(self, path: &str) -> Option<(&'a UnpackedLayer, &'a LayerEntry)> {
        for layer in self.0.iter().rev() {
            if let Some(entry) = layer.index.get(path) {
                return (entry.node != Node::Whiteout).then_some((layer, entry));
            }
            // Hidden by what this layer has on the way.
            let hidden = path.match_indices('/').any(|(at, _)| {
                layer
                    .index
                    .get(&path[..at])
                    .is_some_and(|above| above.node != Node::Folder { opaque: false })
            });
            if hidden {
                return None;
            }
        }
        None
    }

    /// The path without symbolic links in its folders.
    pub fn resolve(self, path: &str) -> Result<String, CopyError> {
        let bad = |why: &str| CopyError::Path {
            path: format!("/{path}"),
            why: why.to_owned(),
        };
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done = String::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.truncate(done.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let here = join(&done, &part);
            match self.at(&here).map(|(_, entry)| &entry.node) {
                Some(Node::Symlink { target }) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(bad("leads through too many symbolic links"));
                    }
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.split('/').rev().map(str::to_owned));
                }
                Some(Node::Folder { .. }) | None => done = here,
                Some(_) => {
                    return Err(CopyError::Path {
                        path: format!("/{here}"),
                        why: "is a file, and a folder is needed there".to_owned(),
                    });
                }
            }
        }
        Ok(done)
    }

    /// Every path that some layer has at or under a path; [`View::at`] says what is there in the end.
    pub fn under(self, path: &str) -> BTreeSet<&'a str> {
        let entries = self.0.iter().flat_map(|layer| layer.index.entries());
        let inside = entries.filter_map(|entry| {
            let rest = entry.path.strip_prefix(path)?;
            let below = path.is_empty() || rest.is_empty() || rest.starts_with('/');
            below.then_some(entry.path.as_str())
        });
        inside.collect()
    }

    pub fn is_folder(self, path: &str) -> Result<bool, CopyError> {
        if path.is_empty() {
            return Ok(true);
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let path = join(&self.resolve(folder)?, name);
        Ok(match self.at(&path).map(|(_, entry)| &entry.node) {
            Some(Node::Folder { .. }) => true,
            // A link to a folder is a folder; one to a file makes `resolve` refuse.
            Some(Node::Symlink { .. }) => self
                .resolve(&path)
                .is_ok_and(|target| self.at(&target).is_some()),
            _ => false,
        })
    }

    pub fn read(self, path: &str) -> Result<String, CopyError> {
        let Some((layer, entry)) = self.at(path) else {
            return Ok(String::new());
        };
        if !matches!(entry.node, Node::File { .. }) {
            return Ok(String::new());
        }
        let file = layer.root.join(path);
        let io = |err| CopyError::Io {
            doing: "read",
            path: file.clone(),
            err,
        };
        let mut text = String::new();
        fs::File::open(&file)
            .map_err(io)?
            .take(TEXT_MAX)
            .read_to_string(&mut text)
            .map_err(io)?;
        Ok(text)
    }
}

/// What the system calls itself, as the engine names distributions: `debian-12`.
///
/// # Errors
/// Its file cannot be read.
pub fn distribution(below: &[UnpackedLayer]) -> Result<String, CopyError> {
    let view = View(below);
    let mut text = view.read("etc/os-release")?;
    if text.is_empty() {
        // The link at the usual place leads here.
        text = view.read("usr/lib/os-release")?;
    }
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let value = line.and_then(|rest| rest.strip_prefix('='));
        value.map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let name = value("ID").unwrap_or_else(|| "a system without a name".to_owned());
    Ok(match value("VERSION_ID") {
        Some(version) => format!("{name}-{version}"),
        None => name,
    })
}

/// A path of two parts.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}
