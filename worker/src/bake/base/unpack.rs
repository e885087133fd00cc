//! Unpacks packages into a root, in process and on all cores.
//!
//! Packages are unpacked side by side, so nothing may depend on their order: a folder that many
//! packages ship gets the attributes of the first package of the list, and a file that two ship
//! goes to the one that `Replaces` the other, or is an error. Folders get their attributes at
//! the end. Maintainer scripts are not run here; see [`super::configure`].

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use md5::Digest;
use tokio_util::sync::CancellationToken;

use super::deb::{Deb, DebError};
use super::fetch::hex;
use super::index::{Stanzas, relations};
use super::tree::{Attributes, Folders, Tree, split};
use super::version::Relation;

/// Packages that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Deb(#[from] DebError),
    #[error("unpack {package}: /{path}")]
    Write {
        package: String,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("unpack {package}: the entry `{path}` {problem}; the package is refused")]
    Refused {
        package: String,
        path: String,
        problem: &'static str,
    },
    #[error("unpack {package}: /{path} is in {other}, too, and neither replaces the other")]
    Overlap {
        package: String,
        other: String,
        path: String,
    },
    #[error("unpack {package}: the file {path} holds {found}")]
    Misnamed {
        package: String,
        path: Utf8PathBuf,
        found: String,
    },
    #[error("unpack the packages: cancelled")]
    Cancelled,
}

/// One package to unpack.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: String,
    pub version: String,
    pub file: Utf8PathBuf,
    pub size: u64,
}

/// What dpkg's database needs to know about an unpacked package.
#[derive(Clone, Debug)]
pub struct Unpacked {
    pub name: String,
    pub control: BTreeMap<String, Vec<u8>>,
    /// Shipped paths, without a leading slash, in the package's order.
    pub paths: Vec<Vec<u8>>,
    /// MD5 of each configuration file, by its path without a leading slash.
    pub conffiles: BTreeMap<Vec<u8>, String>,
    replaces: Vec<(String, Option<(Relation, String)>)>,
    version: String,
}

/// Unpacks into a root.
#[derive(Debug)]
pub struct Unpacker<'a> {
    pub tree: &'a Tree,
    /// Folders of `/` that are links into `/usr`.
    pub merged: &'a [&'a str],
    pub threads: usize,
    pub cancel: &'a CancellationToken,
}

/// Size of one copy into a file.
const COPY_BYTES: usize = 128 << 10;

impl Unpacker<'_> {
    /// Unpacks all packages; the result is in the order of `sources`.
    pub fn unpack(
        &self,
        sources: &[Source],
        on_package: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<Unpacked>, UnpackError> {
        // The headers first: who replaces whom must be known before the first file is written.
        let mut headers = Vec::with_capacity(sources.len());
        for source in sources {
            headers.push(self.header(source)?);
        }
        let shared = Shared {
            owners: Mutex::new(HashMap::new()),
            folders: Mutex::new(BTreeMap::new()),
            headers: &headers,
        };
        // The largest package first, so that the cores finish together.
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|position| (std::cmp::Reverse(sources[*position].size), *position));
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<Contents, UnpackError>)>> = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.clamp(1, sources.len().max(1)) {
                scope.spawn(|| {
                    let mut folders = Folders::default();
                    let mut buffer = vec![0; COPY_BYTES];
                    while let Some(position) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let source = &sources[*position];
                        let mut job = Job {
                            unpacker: self,
                            shared: &shared,
                            position: *position,
                            folders: &mut folders,
                            buffer: &mut buffer,
                            contents: Contents::default(),
                        };
                        let result = job.run(source).map(|()| job.contents);
                        if result.is_err() {
                            next.store(order.len(), Ordering::Relaxed);
                        }
                        on_package(&source.name);
                        results
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push((*position, result));
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
        results.sort_by_key(|(position, _)| *position);
        let mut contents = Vec::with_capacity(results.len());
        for (_, result) in results {
            contents.push(result?);
        }
        let owners = shared
            .owners
            .into_inner()
            .unwrap_or_else(|e| e.into_inner());
        let folders = shared
            .folders
            .into_inner()
            .unwrap_or_else(|e| e.into_inner());
        self.dress_folders(&folders, &headers)?;
        for (position, (header, contents)) in headers.iter_mut().zip(contents).enumerate() {
            header.paths = contents
                .paths
                .into_iter()
                .filter(|path| {
                    owners
                        .get(&self.canonical(path))
                        .is_none_or(|owner| *owner == position)
                })
                .collect();
            header.conffiles = contents.conffiles;
        }
        Ok(headers)
    }

    fn header(&self, source: &Source) -> Result<Unpacked, UnpackError> {
        let deb = Deb::open(&source.file)?;
        let text = deb.control_text()?.to_owned();
        let stanza = Stanzas::new(&text).next();
        let field = |key: &str| stanza.as_ref().and_then(|s| s.get(key)).unwrap_or_default();
        if field("Package") != source.name || field("Version") != source.version {
            return Err(UnpackError::Misnamed {
                package: source.name.clone(),
                path: source.file.clone(),
                found: format!("{} {}", field("Package"), field("Version")),
            });
        }
        let replaces = relations(field("Replaces"))
            .flatten()
            .map(|wanted| {
                let constraint = wanted
                    .constraint
                    .map(|(r, version)| (r, version.to_owned()));
                (wanted.name.to_owned(), constraint)
            })
            .collect();
        Ok(Unpacked {
            name: source.name.clone(),
            version: source.version.clone(),
            control: deb.control,
            paths: Vec::new(),
            conffiles: BTreeMap::new(),
            replaces,
        })
    }

    /// The path with merged folders spelled as they are on the disk.
    fn canonical(&self, path: &[u8]) -> Vec<u8> {
        let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let below = first.len() < path.len();
        if below && self.merged.iter().any(|name| name.as_bytes() == first) {
            [b"usr/", path].concat()
        } else {
            path.to_vec()
        }
    }

    /// Sets the attributes of folders, the deepest first: a time is lost when an entry is made.
    fn dress_folders(
        &self,
        folders: &BTreeMap<Vec<u8>, (usize, Attributes)>,
        headers: &[Unpacked],
    ) -> Result<(), UnpackError> {
        for (path, (position, attributes)) in folders.iter().rev() {
            self.tree
                .dress_folder(path, *attributes)
                .map_err(|source| UnpackError::Write {
                    package: headers[*position].name.clone(),
                    path: String::from_utf8_lossy(path).into_owned(),
                    source,
                })?;
        }
        Ok(())
    }
}

impl Unpacked {
    fn replaces(&self, other: &Self) -> bool {
        self.replaces.iter().any(|(name, constraint)| {
            *name == other.name
                && constraint
                    .as_ref()
                    .is_none_or(|(relation, version)| relation.holds(&other.version, version))
        })
    }
}

/// What all threads share.
struct Shared<'a> {
    /// Which package a file belongs to, by canonical path.
    owners: Mutex<HashMap<Vec<u8>, usize>>,
    /// Attributes of each folder and the earliest package that ships it.
    folders: Mutex<BTreeMap<Vec<u8>, (usize, Attributes)>>,
    headers: &'a [Unpacked],
}

#[derive(Default)]
struct Contents {
    paths: Vec<Vec<u8>>,
    conffiles: BTreeMap<Vec<u8>, String>,
}

/// One package being unpacked by one thread.
struct Job<'a> {
    unpacker: &'a Unpacker<'a>,
    shared: &'a Shared<'a>,
    position: usize,
    folders: &'a mut Folders,
    buffer: &'a mut [u8],
    contents: Contents,
}

impl Job<'_> {
    fn run(&mut self, source: &Source) -> Result<(), UnpackError> {
        let conffiles = conffile_paths(&self.shared.headers[self.position].control);
        Deb::open(&source.file)?.data(|archive| {
            let read = |error| DebError::Read {
                path: source.file.clone(),
                source: error,
            };
            for entry in archive.entries().map_err(read)? {
                if self.unpacker.cancel.is_cancelled() {
                    return Err(UnpackError::Cancelled);
                }
                let mut entry = entry.map_err(read)?;
                self.entry(&mut entry, source, &conffiles)?;
            }
            Ok(())
        })
    }

    fn entry<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        source: &Source,
        conffiles: &[Vec<u8>],
    ) -> Result<(), UnpackError> {
        let read = |error| DebError::Read {
            path: source.file.clone(),
            source: error,
        };
        let raw = entry.path_bytes().into_owned();
        let path = clean(&raw).map_err(|problem| UnpackError::Refused {
            package: source.name.clone(),
            path: String::from_utf8_lossy(&raw).into_owned(),
            problem,
        })?;
        let failed = |error| UnpackError::Write {
            package: source.name.clone(),
            path: String::from_utf8_lossy(&path).into_owned(),
            source: error,
        };
        let header = entry.header();
        let attributes = Attributes {
            uid: id(header.uid()).map_err(failed)?,
            gid: id(header.gid()).map_err(failed)?,
            mode: header.mode().map_err(failed)? & 0o7777,
            modified: i64::try_from(header.mtime().map_err(failed)?).unwrap_or(i64::MAX),
        };
        let kind = header.entry_type();
        let target = match kind {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                entry.link_name_bytes().unwrap_or_default().into_owned()
            }
            _ => Vec::new(),
        };
        if !path.is_empty() {
            self.contents.paths.push(path.clone());
        }
        if kind.is_dir() {
            return self.folder(&path, attributes).map_err(failed);
        }
        if path.is_empty() || !self.claim(&path)? {
            return Ok(());
        }
        match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let (parent, name) = split(&path);
                let tree = self.unpacker.tree;
                let parent = self.folders.get(tree, parent).map_err(failed)?;
                let mut file = match tree.create_at(parent, name) {
                    // Another package that replaces this one was quicker.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::AlreadyExists
                            && !self.owns(&path) =>
                    {
                        return Ok(());
                    }
                    other => other.map_err(failed)?,
                };
                let mut digest = conffiles.contains(&path).then(md5::Md5::new);
                loop {
                    let length = entry.read(self.buffer).map_err(read)?;
                    if length == 0 {
                        break;
                    }
                    file.write_all(&self.buffer[..length]).map_err(failed)?;
                    if let Some(digest) = &mut digest {
                        digest.update(&self.buffer[..length]);
                    }
                }
                tree.dress(&file, attributes).map_err(failed)?;
                if let Some(digest) = digest {
                    self.contents
                        .conffiles
                        .insert(path, hex(&digest.finalize()));
                }
                Ok(())
            }
            tar::EntryType::Symlink => self.symlink(&path, &target, attributes).map_err(failed),
            tar::EntryType::Link => {
                let target = clean(&target).map_err(|problem| UnpackError::Refused {
                    package: source.name.clone(),
                    path: String::from_utf8_lossy(&target).into_owned(),
                    problem,
                })?;
                self.hard_link(&path, &target).map_err(failed)
            }
            _ => Err(UnpackError::Refused {
                package: source.name.clone(),
                path: String::from_utf8_lossy(&path).into_owned(),
                problem: "is neither a file, a folder nor a link",
            }),
        }
    }

    /// Takes a path for this package. `false` when a package that replaces this one has it.
    fn claim(&self, path: &[u8]) -> Result<bool, UnpackError> {
        let canonical = self.unpacker.canonical(path);
        let mut owners = self.shared.owners.lock().unwrap_or_else(|e| e.into_inner());
        let Some(owner) = owners.get(&canonical).copied() else {
            owners.insert(canonical, self.position);
            return Ok(true);
        };
        if owner == self.position {
            return Ok(true);
        }
        let (own, other) = (
            &self.shared.headers[self.position],
            &self.shared.headers[owner],
        );
        if other.replaces(own) {
            return Ok(false);
        }
        let text = String::from_utf8_lossy(path).into_owned();
        if !own.replaces(other) {
            return Err(UnpackError::Overlap {
                package: own.name.clone(),
                other: other.name.clone(),
                path: text,
            });
        }
        owners.insert(canonical, self.position);
        // Under the lock, so that the replaced package cannot create it in between unseen.
        self.unpacker
            .tree
            .remove(&text)
            .map_err(|source| UnpackError::Write {
                package: own.name.clone(),
                path: text.clone(),
                source,
            })?;
        Ok(true)
    }

    fn owns(&self, path: &[u8]) -> bool {
        let owners = self.shared.owners.lock().unwrap_or_else(|e| e.into_inner());
        owners.get(&self.unpacker.canonical(path)) == Some(&self.position)
    }

    fn folder(&mut self, path: &[u8], attributes: Attributes) -> std::io::Result<()> {
        if !path.is_empty() {
            let (parent, name) = split(path);
            let tree = self.unpacker.tree;
            let parent = self.folders.get(tree, parent)?;
            tree.make_folder_at(parent, name)?;
            // A link to a folder stays one (the merged /usr), and has no attributes to set.
            if tree.link_target_at(parent, name).is_some() {
                return Ok(());
            }
        }
        let canonical = self.unpacker.canonical(path);
        let mut folders = self
            .shared
            .folders
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        let known = folders
            .entry(canonical)
            .or_insert((self.position, attributes));
        if self.position < known.0 {
            *known = (self.position, attributes);
        }
        Ok(())
    }

    fn symlink(
        &mut self,
        path: &[u8],
        target: &[u8],
        attributes: Attributes,
    ) -> std::io::Result<()> {
        let (parent, name) = split(path);
        let tree = self.unpacker.tree;
        let parent = self.folders.get(tree, parent)?;
        match tree.symlink_at(parent, name, target, attributes) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let same = tree
                    .link_target_at(parent, name)
                    .is_some_and(|known| known == target);
                // dpkg, too, leaves a folder where a package has a link to one.
                if same || tree.is_folder(path) || !self.owns(path) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            other => other,
        }
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> std::io::Result<()> {
        let tree = self.unpacker.tree;
        let (target_parent, target_name) = split(target);
        let target_parent = tree.folder(target_parent)?;
        let (parent, name) = split(path);
        let parent = self.folders.get(tree, parent)?;
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::linkat(target_parent.as_fd(), target_name, parent, name, flags)?;
        Ok(())
    }
}

fn id(value: std::io::Result<u64>) -> std::io::Result<u32> {
    match u32::try_from(value?) {
        Ok(id) if id <= ID_MAX => Ok(id),
        _ => Err(std::io::Error::other(
            "its owner is outside the 65,536 ids of an image",
        )),
    }
}

/// The largest id that an image may use; the farm maps 65,536 of them.
const ID_MAX: u32 = 65_535;

/// Brings an entry's path into the form `a/b/c`; the root itself is empty.
fn clean(raw: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut parts: Vec<&[u8]> = Vec::new();
    if raw.starts_with(b"/") {
        return Err("is an absolute path");
    }
    for part in raw.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("leads out of its folder"),
            part if part.contains(&0) || part.contains(&b'\n') => {
                return Err("has a control character in its name");
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// The configuration files that a package declares; lines with flags name files to be removed.
fn conffile_paths(control: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<u8>> {
    let text = control
        .get("conffiles")
        .map(Vec::as_slice)
        .unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| line.trim_ascii().strip_prefix(b"/"))
        .map(<[u8]>::to_vec)
        .collect()
}

/// Makes a new, empty root with the merged folders of the distribution.
pub fn make_root(
    root: &Utf8Path,
    host_base: u32,
    merged: &[&str],
    modified: i64,
) -> std::io::Result<Tree> {
    std::fs::create_dir(root)?;
    let tree = Tree::open(root, host_base)?;
    tree.dress_folder(b"", Attributes::root(0o755, modified))?;
    for name in merged {
        tree.make_folders(format!("usr/{name}").as_bytes())?;
        tree.link(name, &format!("usr/{name}"), modified)?;
    }
    Ok(tree)
}
