//! `copy`: files of the commit, of the web or of another image into the image, without a container.
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
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, EntryKind, StoreError, Tree, TreeError};
use oast_model::pipeline::CopyFiles;

use super::account;
use super::view::{View, join};
use crate::bake::key::last;
use crate::bake::layer::{Node, UnpackedLayer};
use crate::source::normal_path;

/// 2024-01-01 00:00:00 UTC, before the times of all files.
const EPOCH: Duration = Duration::from_secs(1_704_067_200);

/// A copy that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The commit does not have it.
    #[error("the commit has no {from}")]
    Nothing {
        /// What was to be copied.
        from: String,
    },
    /// The other image does not have it.
    #[error("the other image has no {from}")]
    Nowhere {
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
            CopyError::Nothing { .. }
                | CopyError::Nowhere { .. }
                | CopyError::Account { .. }
                | CopyError::Path { .. }
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
    /// Where the files are.
    pub source: &'a Source,
    /// The layers below, the base first.
    pub below: &'a [UnpackedLayer],
    /// Becomes the upper folder; must not exist.
    pub upper: &'a Utf8Path,
    /// Id 0 of the image is this id here.
    pub host_base: u32,
}

/// Where the files of a copy are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the commit.
    Commit,
    /// In this file, which was fetched from the web and is named by its digest.
    Fetched(Utf8PathBuf),
    /// In these layers of another image, the base first.
    Image(Vec<UnpackedLayer>),
}

/// Makes the upper folder. Blocks.
///
/// # Errors
/// See [`CopyError`]; what was written stays for the caller to remove.
pub fn make(order: Order<'_>) -> Result<(), CopyError> {
    let view = View(order.below);
    let (uid, gid) = match &order.copy.owner {
        None => (0, 0),
        Some(owner) => {
            let account = account::find(order.below, owner)?;
            (account.uid, account.gid)
        }
    };
    let mut writer = Writer {
        order,
        view,
        uid,
        gid,
        made: BTreeMap::new(),
    };
    writer.folder("")?;
    match order.source {
        Source::Commit => writer.commit()?,
        Source::Fetched(fetched) => writer.fetched(fetched)?,
        Source::Image(layers) => writer.image(View(layers))?,
    }
    writer.settle()
}

/// One thing that is put into the image.
struct Item<'a> {
    kind: Kind<'a>,
    /// Where a file's content is; it is moved.
    source: &'a Utf8Path,
}

enum Kind<'a> {
    Folder,
    Symlink(&'a str),
    /// With its permission bits and its time.
    File {
        mode: u32,
        time: Duration,
    },
}

/// The time of a file that has none, made of its content.
fn time_of([a, b, c]: [u8; 3]) -> Duration {
    EPOCH + Duration::from_secs(u64::from(u32::from_be_bytes([0, a, b, c])))
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
    /// Puts what the commit has into the image.
    fn commit(&mut self) -> Result<(), CopyError> {
        let order = self.order;
        let from = normal_path(&order.copy.from);
        // Checked out beside the upper folder, then moved piece by piece.
        let files = order.upper.with_extension("files");
        order.store.checkout(order.tree, from, &files)?;
        let mut found = false;
        for entry in order.tree.under(from) {
            found = true;
            let inner = entry.path[from.len()..].trim_start_matches('/');
            let kind = match &entry.kind {
                EntryKind::EmptyFolder => Kind::Folder,
                EntryKind::Symlink { target } => Kind::Symlink(target),
                EntryKind::File {
                    executable, digest, ..
                } => {
                    let [a, b, c, ..] = *digest.as_bytes();
                    Kind::File {
                        mode: if *executable { 0o755 } else { 0o644 },
                        time: time_of([a, b, c]),
                    }
                }
            };
            let (target, source) = if inner.is_empty() {
                let name = from.rsplit('/').next().unwrap_or(from);
                (self.landing(name)?, files.clone())
            } else {
                let to = order.copy.to.trim_matches('/');
                (join(to, inner), files.join(inner))
            };
            let source = &source;
            self.entry(&target, Item { kind, source })?;
        }
        if !found {
            return Err(CopyError::Nothing {
                from: order.copy.from.clone(),
            });
        }
        let _ = fs::remove_dir_all(&files).or_else(|_| fs::remove_file(&files));
        Ok(())
    }

    /// Puts a fetched file into the image. Its content was checked when it was fetched.
    fn fetched(&mut self, fetched: &Utf8Path) -> Result<(), CopyError> {
        let io = |doing: &'static str| {
            move |err| CopyError::Io {
                doing,
                path: fetched.to_owned(),
                err,
            }
        };
        let target = self.landing(last(&self.order.copy.from))?;
        let source = self.order.upper.with_extension("files");
        fs::copy(fetched, &source).map_err(io("copy"))?;
        let name = fetched.file_name().unwrap_or_default();
        let byte = |at: usize| {
            let digits = name.get(at..at + 2).unwrap_or_default();
            u8::from_str_radix(digits, 16).unwrap_or(0)
        };
        let kind = Kind::File {
            mode: 0o644,
            time: time_of([byte(0), byte(2), byte(4)]),
        };
        let source = &source;
        self.entry(&target, Item { kind, source })
    }

    /// Puts what another image has into this one: files with their modes and times, links as they are.
    fn image(&mut self, other: View<'_>) -> Result<(), CopyError> {
        let order = self.order;
        let written = order.copy.from.trim_matches('/');
        // The last part is followed as those before it, as `cp` does with what it is told.
        let from = match other.resolve(written) {
            Ok(from) => from,
            Err(_) => {
                let (folder, name) = written.rsplit_once('/').unwrap_or(("", written));
                join(&other.resolve(folder)?, name)
            }
        };
        let mut found = false;
        for path in other.under(&from) {
            let Some((layer, entry)) = other.at(path) else {
                continue;
            };
            found = true;
            let inner = path[from.len()..].trim_start_matches('/');
            let source = order.upper.with_extension("files");
            let kind = match &entry.node {
                Node::Folder { .. } => Kind::Folder,
                Node::Symlink { target } => Kind::Symlink(target),
                Node::File { .. } | Node::HardLink { .. } => {
                    let content = layer.root.join(path);
                    fs::copy(&content, &source).map_err(|err| CopyError::Io {
                        doing: "copy",
                        path: content,
                        err,
                    })?;
                    let seconds = u64::try_from(entry.mtime).unwrap_or(0);
                    Kind::File {
                        mode: entry.mode,
                        time: Duration::new(seconds, entry.mtime_nanos.min(999_999_999)),
                    }
                }
                Node::CharDevice { .. } | Node::BlockDevice { .. } | Node::Fifo => {
                    return Err(CopyError::Path {
                        path: format!("/{path}"),
                        why: "is a device, which cannot be copied".to_owned(),
                    });
                }
                Node::Whiteout => continue,
            };
            let target = if inner.is_empty() && !matches!(kind, Kind::Folder) {
                self.landing(from.rsplit('/').next().unwrap_or(&from))?
            } else {
                join(order.copy.to.trim_matches('/'), inner)
            };
            let target = target.trim_end_matches('/').to_owned();
            let source = &source;
            self.entry(&target, Item { kind, source })?;
        }
        if found {
            return Ok(());
        }
        Err(CopyError::Nowhere {
            from: order.copy.from.clone(),
        })
    }

    /// Where one file of that name lands: in the folder that is named, or under the name that is.
    fn landing(&self, name: &str) -> Result<String, CopyError> {
        let to = self.order.copy.to.trim_matches('/');
        if self.order.copy.to.ends_with('/') || self.view.is_folder(to)? {
            return Ok(join(to, name));
        }
        Ok(to.to_owned())
    }

    fn entry(&mut self, target: &str, item: Item<'_>) -> Result<(), CopyError> {
        let Item { kind, source } = item;
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
            Kind::Folder => {
                let inner = self.view.resolve(&inner)?;
                return self.folder(&inner);
            }
            _ if is_folder => {
                return Err(CopyError::Path {
                    path: format!("/{inner}"),
                    why: "is a folder, and a file is copied there".to_owned(),
                });
            }
            Kind::Symlink(target) => {
                symlink(target, &path).map_err(io("link", &path))?;
            }
            Kind::File { mode, time } => {
                fs::rename(source, &path).map_err(io("move to", &path))?;
                let mode = self.order.copy.mode.unwrap_or(mode);
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .map_err(io("set the mode of", &path))?;
                set_time(&path, time).map_err(io("set the time of", &path))?;
            }
        }
        let (uid, gid) = (
            self.order.host_base + self.uid,
            self.order.host_base + self.gid,
        );
        lchown(&path, Some(uid), Some(gid)).map_err(io("give away", &path))?;
        if let Kind::File { .. } = kind
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
