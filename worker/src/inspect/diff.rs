//! How two images differ: packages, files, sizes, and what starts.
//!
//! Both disks are read, so the answer is about what is in them, whoever made them. Contents are compared by hash; a file that only lies elsewhere
//! on its disk, or has another time, has not changed.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use oast_attest::dpkg;
use serde::Serialize;

use super::disk::Disk;
use super::ext4::{Ext4, Inode, Kind, ReadError};
use crate::bake::base::version;
use crate::image::installed_packages;

/// What happened to a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// The second has a newer one.
    Upgraded,
    /// The second has an older one.
    Downgraded,
    /// Both have it, and it is not the same.
    Changed,
}

impl Change {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Upgraded => "upgraded",
            Change::Downgraded => "downgraded",
            Change::Changed => "changed",
        }
    }
}

/// A package that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PackageChange {
    /// Its name.
    pub name: String,
    /// Its architecture.
    pub arch: String,
    /// What happened.
    pub change: Change,
    /// Version in the first; empty where it has none.
    pub from: String,
    /// Version in the second; empty where it has none.
    pub to: String,
}

/// A path that is not the same in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Absolute.
    pub path: String,
    /// What happened.
    pub change: Change,
    /// What is not the same: content, type, mode, owner, target, attributes. Empty for one that is new or gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<String>,
    /// Bytes in the first.
    pub from: u64,
    /// Bytes in the second.
    pub to: u64,
}

/// Sizes of one image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sizes {
    /// The disk.
    pub disk: u64,
    /// All files' bytes.
    pub files: u64,
    /// How many paths.
    pub paths: u64,
}

/// How two images differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// By name.
    pub packages: Vec<PackageChange>,
    /// By path.
    pub files: Vec<FileChange>,
    /// Files of the EFI system partition, by path.
    pub boot: Vec<FileChange>,
    /// Of the first.
    pub from: Sizes,
    /// Of the second.
    pub to: Sizes,
}

impl Diff {
    /// Whether anything differs.
    pub fn has_changes(&self) -> bool {
        !self.packages.is_empty()
            || !self.files.is_empty()
            || !self.boot.is_empty()
            || self.from.disk != self.to.disk
    }
}

/// Why two images cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// One has no root that is understood.
    #[error("{path}: {why}")]
    Root {
        /// Which.
        path: String,
        /// Why not.
        why: String,
    },
    /// One is damaged.
    #[error("{path}: its root file system")]
    Read {
        /// Which.
        path: String,
        #[source]
        err: ReadError,
    },
}

/// Compares.
///
/// # Errors
/// [`DiffError`].
pub fn diff(from: &Disk, to: &Disk) -> Result<Diff, DiffError> {
    let (old, new) = (Side::of(from)?, Side::of(to)?);
    let (before, after) = (old.text(dpkg::STATUS)?, new.text(dpkg::STATUS)?);
    let mut files = Vec::new();
    let mut paths: Vec<&String> = old.paths.keys().chain(new.paths.keys()).collect();
    paths.sort();
    paths.dedup();
    for path in paths {
        let change = match (old.paths.get(path), new.paths.get(path)) {
            (Some(was), None) => Some((Change::Removed, Vec::new(), was.size, 0)),
            (None, Some(is)) => Some((Change::Added, Vec::new(), 0, is.size)),
            (Some(was), Some(is)) => {
                let what = compare((&old, was), (&new, is))?;
                (!what.is_empty()).then_some((Change::Changed, what, was.size, is.size))
            }
            (None, None) => None,
        };
        files.extend(change.map(|(change, what, from, to)| FileChange {
            path: format!("/{path}"),
            change,
            what,
            from,
            to,
        }));
    }
    Ok(Diff {
        packages: packages(&before, &after),
        files,
        boot: boot(from, to),
        from: old.sizes(from),
        to: new.sizes(to),
    })
}

/// How two lists of packages differ, each as `/var/lib/dpkg/status` has it.
fn packages(before: &str, after: &str) -> Vec<PackageChange> {
    let list = |status: &str| -> Vec<(String, String, String)> {
        let packages = installed_packages(status).into_iter();
        packages
            .map(|package| (package.name, package.arch, package.version))
            .collect()
    };
    compare_packages(&list(before), &list(after))
}

/// How two lists of packages differ: name, architecture and version of each.
pub fn compare_packages(
    before: &[(String, String, String)],
    after: &[(String, String, String)],
) -> Vec<PackageChange> {
    type Versions<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a str>>;
    fn sorted(list: &[(String, String, String)]) -> Versions<'_> {
        let mut all = Versions::new();
        for (name, arch, version) in list {
            all.entry((name, arch)).or_default().push(version);
        }
        all
    }
    let (before, after) = (sorted(before), sorted(after));
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let mut changes = Vec::new();
    for key in names {
        let text =
            |versions: Option<&Vec<&str>>| versions.map(|all| all.join(" ")).unwrap_or_default();
        let (from, to) = (text(before.get(key)), text(after.get(key)));
        let change = match (from.is_empty(), to.is_empty()) {
            (true, _) => Change::Added,
            (_, true) => Change::Removed,
            _ => match version::compare(&from, &to) {
                Ordering::Less => Change::Upgraded,
                Ordering::Greater => Change::Downgraded,
                Ordering::Equal => continue,
            },
        };
        changes.push(PackageChange {
            name: key.0.to_owned(),
            arch: key.1.to_owned(),
            change,
            from,
            to,
        });
    }
    changes
}

struct Side<'d> {
    path: String,
    root: &'d Ext4,
    paths: BTreeMap<String, Inode>,
}

impl<'d> Side<'d> {
    fn of(disk: &'d Disk) -> Result<Side<'d>, DiffError> {
        let path = disk.path.to_string();
        let root = disk.root.as_ref().map_err(|why| DiffError::Root {
            path: path.clone(),
            why: why.clone(),
        })?;
        let paths = root.walk().map_err(|err| DiffError::Read {
            path: path.clone(),
            err,
        })?;
        Ok(Side { path, root, paths })
    }

    fn or_damaged<T>(&self, read: Result<T, ReadError>) -> Result<T, DiffError> {
        read.map_err(|err| DiffError::Read {
            path: self.path.clone(),
            err,
        })
    }

    fn text(&self, path: &str) -> Result<String, DiffError> {
        const LIST_MAX: u64 = 64 << 20;
        let found = self.or_damaged(self.root.find(path))?;
        match found {
            Some(inode) if inode.kind == Kind::File => {
                let bytes = self.or_damaged(self.root.read(&inode, LIST_MAX))?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => Ok(String::new()),
        }
    }

    fn sizes(&self, disk: &Disk) -> Sizes {
        let files = self.paths.values().filter(|inode| inode.kind == Kind::File);
        // A file with two names has its bytes once.
        let once: BTreeMap<u32, u64> = files.map(|inode| (inode.number, inode.size)).collect();
        Sizes {
            disk: disk.len,
            files: once.values().sum(),
            paths: self.paths.len() as u64,
        }
    }
}

/// What is not the same at a path that both have.
fn compare(
    (old, was): (&Side<'_>, &Inode),
    (new, is): (&Side<'_>, &Inode),
) -> Result<Vec<String>, DiffError> {
    let mut what = Vec::new();
    if was.kind != is.kind {
        return Ok(vec![format!(
            "type {} -> {}",
            word(was.kind),
            word(is.kind)
        )]);
    }
    match was.kind {
        Kind::File => {
            let same = was.size == is.size
                && old.or_damaged(old.root.hash(was))? == new.or_damaged(new.root.hash(is))?;
            if !same {
                what.push("content".to_owned());
            }
        }
        Kind::Link => {
            let (from, to) = (
                old.or_damaged(old.root.target(was))?,
                new.or_damaged(new.root.target(is))?,
            );
            if from != to {
                what.push(format!("target {from} -> {to}"));
            }
        }
        Kind::CharDevice | Kind::BlockDevice if was.device() != is.device() => {
            what.push("device".to_owned())
        }
        _ => {}
    }
    if was.mode != is.mode {
        what.push(format!("mode {:04o} -> {:04o}", was.mode, is.mode));
    }
    if (was.uid, was.gid) != (is.uid, is.gid) {
        what.push(format!(
            "owner {}:{} -> {}:{}",
            was.uid, was.gid, is.uid, is.gid
        ));
    }
    if was.xattrs != is.xattrs {
        let mut names: Vec<_> = was.xattrs.keys().chain(is.xattrs.keys()).collect();
        names.retain(|name| was.xattrs.get(*name) != is.xattrs.get(*name));
        names.sort();
        names.dedup();
        let names: Vec<_> = names.into_iter().map(String::as_str).collect();
        what.push(format!("attributes {}", names.join(", ")));
    }
    Ok(what)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Folder => "folder",
        Kind::Link => "link",
        Kind::CharDevice | Kind::BlockDevice => "device",
        Kind::Fifo => "pipe",
        Kind::Socket => "socket",
    }
}

/// How the EFI system partitions differ. One that cannot be read has no files.
fn boot(from: &Disk, to: &Disk) -> Vec<FileChange> {
    let list = |disk: &Disk| match disk.esp() {
        Ok(esp) => esp.walk(),
        Err(_) => BTreeMap::new(),
    };
    let (before, after) = (list(from), list(to));
    let mut paths: Vec<_> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let mut changes = Vec::new();
    for path in paths {
        let (was, is) = (before.get(path), after.get(path));
        let change = match (was, is) {
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
            (was, is) if was == is => continue,
            _ => Change::Changed,
        };
        let what = match change {
            Change::Changed => vec!["content".to_owned()],
            _ => Vec::new(),
        };
        let size = |file: Option<&(u64, blake3::Hash)>| file.map_or(0, |(size, _)| *size);
        changes.push(FileChange {
            path: path.clone(),
            change,
            what,
            from: size(was),
            to: size(is),
        });
    }
    changes
}
