//! `copy`: files of the commit into the image, without a container.
//!
//! The upper folder is written directly. Folders on the way keep what the layers below say of
//! them, symbolic links on the way are followed as they would be inside (a copy to `/bin` of a
//! system with a merged `/usr` lands in `/usr/bin`), and owners are looked up in the image's own
//! `/etc/passwd` and `/etc/group`.
//!
//! A commit has no times of files. Each file's time is made from its content, so that the same
//! content gives the same layer, and changed content gets another time: web servers compare it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, EntryKind, StoreError, Tree, TreeError};
use oast_model::pipeline::CopyFiles;

use crate::bake::layer::{LayerEntry, Node, UnpackedLayer};
use crate::source::normal_path;

/// 2024-01-01 00:00:00 UTC, before the times of all files.
const EPOCH: Duration = Duration::from_secs(1_704_067_200);
/// Links followed on the way to one path, as the kernel does.
const LINKS_MAX: u32 = 40;
/// A longer account file is not one.
const ACCOUNTS_MAX: u64 = 4 << 20;

/// A copy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The commit does not have it.
    #[error("the commit has no {from}")]
    Nothing {
        /// What was to be copied.
        from: String,
    },
    /// The image's own account files do not know it.
    #[error(
        "the image has no {kind} {name:?}; create it in a `run` step before, or write its number"
    )]
    Account {
        /// `user` or `group`.
        kind: &'static str,
        /// Who.
        name: String,
    },
    /// The path cannot be used.
    #[error("{path} in the image {why}")]
    Path {
        /// Which.
        path: String,
        /// Why not.
        why: String,
    },
    /// This disk.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    /// The tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CopyError {
    /// Whether the recipe is wrong, and not we.
    pub fn is_recipe(&self) -> bool {
        matches!(
            self,
            CopyError::Nothing { .. } | CopyError::Account { .. } | CopyError::Path { .. }
        )
    }
}

/// One copy.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// What is copied where.
    pub copy: &'a CopyFiles,
    /// The commit.
    pub tree: &'a Tree,
    /// Where its content is.
    pub store: &'a ArtifactStore,
    /// The layers below, the base first.
    pub below: &'a [UnpackedLayer],
    /// Becomes the upper folder; must not exist.
    pub upper: &'a Utf8Path,
    /// Id 0 of the image is this id here.
    pub host_base: u32,
}

/// Makes the upper folder. Blocks.
///
/// # Errors
/// See [`CopyError`]; what was written stays for the caller to remove.
pub fn make(order: Order<'_>) -> Result<(), CopyError> {
    let view = View(order.below);
    let (uid, gid) = owner(order, view)?;
    let mut writer = Writer {
        order,
        view,
        uid,
        gid,
        made: BTreeMap::new(),
    };
    writer.folder("")?;
    let from = normal_path(&order.copy.from);
    // Checked out beside the upper folder, then moved piece by piece.
    let files = order.upper.with_extension("files");
    order.store.checkout(order.tree, from, &files)?;
    let to = order.copy.to.trim_matches('/');
    let into = order.copy.to.ends_with('/');
    let mut found = false;
    for entry in order.tree.under(from) {
        found = true;
        let inner = entry.path[from.len()..].trim_start_matches('/');
        let (target, source) = if inner.is_empty() {
            let name = from.rsplit('/').next().unwrap_or(from);
            let folder = into || view.is_folder(to)?;
            let target = if folder {
                join(to, name)
            } else {
                to.to_owned()
            };
            (target, files.clone())
        } else {
            (join(to, inner), files.join(inner))
        };
        writer.entry(&target, &entry.kind, &source)?;
    }
    if !found {
        return Err(CopyError::Nothing {
            from: order.copy.from.clone(),
        });
    }
    let _ = fs::remove_dir_all(&files).or_else(|_| fs::remove_file(&files));
    writer.settle()
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

/// The layers below as one file system.
#[derive(Clone, Copy)]
struct View<'a>(&'a [UnpackedLayer]);

impl<'a> View<'a> {
    /// What is at exactly this path; links on the way are not followed.
    fn at(self, path: &str) -> Option<(&'a UnpackedLayer, &'a LayerEntry)> {
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
    fn resolve(self, path: &str) -> Result<String, CopyError> {
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

    fn is_folder(self, path: &str) -> Result<bool, CopyError> {
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

    fn read(self, path: &str) -> Result<String, CopyError> {
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
            .take(ACCOUNTS_MAX)
            .read_to_string(&mut text)
            .map_err(io)?;
        Ok(text)
    }
}

fn owner(order: Order<'_>, view: View<'_>) -> Result<(u32, u32), CopyError> {
    let Some(owner) = &order.copy.owner else {
        return Ok((0, 0));
    };
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner.as_str(), None),
    };
    let (uid, own_group) = match user.parse() {
        Ok(uid) => (uid, 0),
        Err(_) => account(&view.read("etc/passwd")?, "user", user)?,
    };
    let gid = match group {
        None => own_group,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => account(&view.read("etc/group")?, "group", group)?.0,
        },
    };
    Ok((uid, gid))
}

/// The third and fourth field of the line that begins with `name`.
fn account(text: &str, kind: &'static str, name: &str) -> Result<(u32, u32), CopyError> {
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let id = fields.nth(1)?.parse().ok()?;
        let second = fields.next().and_then(|field| field.parse().ok());
        Some((id, second.unwrap_or(0)))
    });
    found.ok_or_else(|| CopyError::Account {
        kind,
        name: name.to_owned(),
    })
}

struct Writer<'a> {
    order: Order<'a>,
    view: View<'a>,
    uid: u32,
    gid: u32,
    /// Folders that exist in the upper already, with the times they get in the end.
    made: BTreeMap<String, Duration>,
}

impl Writer<'_> {
    fn entry(
        &mut self,
        target: &str,
        kind: &EntryKind,
        source: &Utf8Path,
    ) -> Result<(), CopyError> {
        let (folder, name) = target.rsplit_once('/').unwrap_or(("", target));
        let folder = self.view.resolve(folder)?;
        self.folder(&folder)?;
        let inner = join(&folder, name);
        let path = self.order.upper.join(&inner);
        let io = |doing: &'static str, path: &Utf8Path| {
            let path = path.to_owned();
            move |err| CopyError::Io { doing, path, err }
        };
        let is_folder = matches!(
            self.view.at(&inner).map(|(_, entry)| &entry.node),
            Some(Node::Folder { .. })
        );
        match kind {
            EntryKind::EmptyFolder => {
                let inner = self.view.resolve(&inner)?;
                return self.folder(&inner);
            }
            _ if is_folder => {
                return Err(CopyError::Path {
                    path: format!("/{inner}"),
                    why: "is a folder, and a file is copied there".to_owned(),
                });
            }
            EntryKind::Symlink { target } => {
                symlink(target, &path).map_err(io("link", &path))?;
            }
            EntryKind::File {
                executable, digest, ..
            } => {
                fs::rename(source, &path).map_err(io("move to", &path))?;
                let plain = if *executable { 0o755 } else { 0o644 };
                let mode = self.order.copy.mode.unwrap_or(plain);
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .map_err(io("set the mode of", &path))?;
                let bytes = digest.as_bytes();
                let own = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
                set_time(&path, EPOCH + Duration::from_secs(u64::from(own)))
                    .map_err(io("set the time of", &path))?;
            }
        }
        let (uid, gid) = (
            self.order.host_base + self.uid,
            self.order.host_base + self.gid,
        );
        lchown(&path, Some(uid), Some(gid)).map_err(io("give away", &path))?;
        if let EntryKind::File { .. } = kind
            && let Some(mode) = self.order.copy.mode
        {
            // A change of owner takes set-id bits away.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(io("set the mode of", &path))?;
        }
        Ok(())
    }

    /// Makes a folder (links resolved) and those above it, as the layers below have them, or new.
    fn folder(&mut self, path: &str) -> Result<(), CopyError> {
        if self.made.contains_key(path) {
            return Ok(());
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above)?;
        } else if !path.is_empty() {
            self.folder("")?;
        }
        let on_disk = if path.is_empty() {
            self.order.upper.to_owned()
        } else {
            self.order.upper.join(path)
        };
        let io = |doing: &'static str| {
            let path = on_disk.clone();
            move |err| CopyError::Io { doing, path, err }
        };
        fs::create_dir(&on_disk).map_err(io("make"))?;
        let base = self.order.host_base;
        let (uid, gid, mode, time) = match self.view.at(path) {
            Some((_, entry)) => {
                let seconds = u64::try_from(entry.mtime).unwrap_or(0);
                let time = Duration::new(seconds, entry.mtime_nanos.min(999_999_999));
                (entry.uid, entry.gid, entry.mode, time)
            }
            None => (self.uid, self.gid, self.folder_mode(), EPOCH),
        };
        lchown(&on_disk, Some(base + uid), Some(base + gid)).map_err(io("give away"))?;
        fs::set_permissions(&on_disk, fs::Permissions::from_mode(mode))
            .map_err(io("set the mode of"))?;
        self.made.insert(path.to_owned(), time);
        Ok(())
    }

    /// Sets the folders' times, when nothing more is written into them.
    fn settle(&self) -> Result<(), CopyError> {
        for (path, time) in &self.made {
            let path = self.order.upper.join(path);
            set_time(&path, *time).map_err(|err| CopyError::Io {
                doing: "set the time of",
                path,
                err,
            })?;
        }
        Ok(())
    }

    /// `x` where there is `r`.
    fn folder_mode(&self) -> u32 {
        match self.order.copy.mode {
            None => 0o755,
            Some(mode) => mode & 0o777 | (mode & 0o444) >> 2,
        }
    }
}

fn set_time(path: &Utf8Path, since_1970: Duration) -> io::Result<()> {
    let time = SystemTime::UNIX_EPOCH + since_1970;
    let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
    fs::File::open(path)?.set_times(times)
}
