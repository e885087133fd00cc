//! A root file system under construction, written from outside.
//!
//! Every path is resolved inside the root by the kernel (`openat2` with `RESOLVE_IN_ROOT`), so a
//! symbolic link in a package, or one that a maintainer script left, can never lead a write out
//! of it. Owners are shifted: id `i` of the image is `host_base + i` on this machine.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use camino::Utf8Path;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, openat2,
};

/// An open root folder.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    host_base: u32,
}

/// Owner, mode and time that an entry shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits only.
    pub mode: u32,
    /// Seconds since the epoch.
    pub modified: i64,
}

impl Attributes {
    /// Owned by the image's root.
    pub fn root(mode: u32, modified: i64) -> Self {
        Self {
            uid: 0,
            gid: 0,
            mode,
            modified,
        }
    }

    fn times(self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.modified,
            tv_nsec: 0,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

impl Tree {
    /// Opens an existing folder as a root.
    pub fn open(root: &Utf8Path, host_base: u32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root.as_std_path(), flags, Mode::empty())?;
        Ok(Self { root, host_base })
    }

    /// Opens a folder for use with the `*at` calls. Links on the way are followed inside the root.
    pub fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = if path.is_empty() { b"." } else { path };
        Ok(openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )?)
    }

    /// As [`Tree::folder`], but makes what is missing, owned by the image's root.
    pub fn make_folders(&self, path: &[u8]) -> io::Result<OwnedFd> {
        match self.folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_empty() => {}
            other => return other,
        }
        let (parent, name) = split(path);
        let parent = self.make_folders(parent)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let attributes = Attributes::root(0o755, 0);
                self.own_at(parent.as_fd(), name, attributes)?;
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.folder(path)
    }

    /// Makes one folder in an open one; an existing folder, or a link to one, stays.
    pub fn make_folder_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Err(error) if error != rustix::io::Errno::EXIST => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Creates a file that must not be there yet.
    pub fn create_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<std::fs::File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
        Ok(std::fs::File::from(file))
    }

    /// Gives an open file its owner, mode and time, in the order that keeps set-id bits.
    pub fn dress(&self, file: &std::fs::File, attributes: Attributes) -> io::Result<()> {
        if self.shifts(attributes) {
            rustix::fs::fchown(
                file,
                Some(self.uid(attributes.uid)),
                Some(self.gid(attributes.gid)),
            )?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode & 0o7777))?;
        rustix::fs::futimens(file, &attributes.times())?;
        Ok(())
    }

    /// Gives a folder its owner, mode and time.
    pub fn dress_folder(&self, path: &[u8], attributes: Attributes) -> io::Result<()> {
        let (parent, name) = split(path);
        let name = if name.is_empty() { b"." } else { name };
        let parent = self.folder(parent)?;
        self.own_at(parent.as_fd(), name, attributes)?;
        let mode = Mode::from_raw_mode(attributes.mode & 0o7777);
        rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
        rustix::fs::utimensat(&parent, name, &attributes.times(), AtFlags::empty())?;
        Ok(())
    }

    /// A file capability as the image's own user namespace will see it: bound to the id that is
    /// its root.
    pub fn capability(&self, value: &[u8]) -> Vec<u8> {
        // Version 2 of the kernel's `vfs_cap_data` has 20 bytes, version 3 the root's id behind them.
        let mut value = value.to_vec();
        if self.host_base != 0 && value.len() == 20 {
            value[3] = 3;
            value.extend_from_slice(&self.host_base.to_le_bytes());
        }
        value
    }

    /// Makes a symbolic link.
    pub fn symlink_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        attributes: Attributes,
    ) -> io::Result<()> {
        rustix::fs::symlinkat(target, parent, name)?;
        self.own_at(parent, name, attributes)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(parent, name, &attributes.times(), flags)?;
        Ok(())
    }

    fn own_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        attributes: Attributes,
    ) -> io::Result<()> {
        if self.shifts(attributes) {
            let (uid, gid) = (self.uid(attributes.uid), self.gid(attributes.gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), flags)?;
        }
        Ok(())
    }

    /// What this process creates already belongs to its own root.
    fn shifts(&self, attributes: Attributes) -> bool {
        self.host_base != 0 || attributes.uid != 0 || attributes.gid != 0
    }

    fn uid(&self, uid: u32) -> Uid {
        Uid::from_raw(self.host_base + uid)
    }

    fn gid(&self, gid: u32) -> Gid {
        Gid::from_raw(self.host_base + gid)
    }

    /// Writes a whole file, replacing what is there (a link is replaced, not followed).
    pub fn write(&self, path: &str, bytes: &[u8], attributes: Attributes) -> io::Result<()> {
        let (parent, name) = split(path.as_bytes());
        let parent = self.make_folders(parent)?;
        self.remove_at(parent.as_fd(), name)?;
        let mut file = self.create_at(parent.as_fd(), name)?;
        io::Write::write_all(&mut file, bytes)?;
        self.dress(&file, attributes)
    }

    /// Makes a link, replacing what is there.
    pub fn link(&self, path: &str, target: &str, modified: i64) -> io::Result<()> {
        let (parent, name) = split(path.as_bytes());
        let parent = self.make_folders(parent)?;
        self.remove_at(parent.as_fd(), name)?;
        let attributes = Attributes::root(0o777, modified);
        self.symlink_at(parent.as_fd(), name, target.as_bytes(), attributes)
    }

    /// Reads a whole file; `None` when it is not there.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match openat2(
            &self.root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        ) {
            Ok(file) => {
                let mut bytes = Vec::new();
                io::Read::read_to_end(&mut std::fs::File::from(file), &mut bytes)?;
                Ok(Some(bytes))
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file or link if it is there.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = split(path.as_bytes());
        match self.folder(parent) {
            Ok(parent) => self.remove_at(parent.as_fd(), name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the files (not the folders) of one folder whose name `which` picks.
    pub fn remove_files(&self, folder: &str, which: impl Fn(&str) -> bool) -> io::Result<()> {
        for (name, kind) in self.list(folder)? {
            if kind != FileType::Directory && which(&name) {
                self.remove(&format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    }

    /// The entries of a folder; none if it is not there. Names that are not UTF-8 are left out.
    pub fn list(&self, folder: &str) -> io::Result<Vec<(String, FileType)>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match openat2(
            &self.root,
            folder,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        ) {
            Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                continue;
            };
            if name != "." && name != ".." {
                found.push((name.to_owned(), entry.file_type()));
            }
        }
        found.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(found)
    }

    /// The target of a symbolic link; `None` for anything else.
    pub fn link_target_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Option<Vec<u8>> {
        let target = rustix::fs::readlinkat(parent, name, Vec::new()).ok()?;
        Some(target.into_bytes())
    }

    /// Whether the path is a folder once links are followed inside the root.
    pub fn is_folder(&self, path: &[u8]) -> bool {
        self.folder(path).is_ok()
    }
}

/// Splits a relative path into its folder and its last part.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Keeps folders open that a run of writes goes to: packages list their files folder by folder.
#[derive(Debug, Default)]
pub struct Folders {
    open: HashMap<Vec<u8>, OwnedFd>,
}

/// Open folders per thread, far below the usual limit of 1024 open files.
const FOLDERS_OPEN_MAX: usize = 96;

impl Folders {
    /// The folder at `path`, made if it is missing.
    pub fn get(&mut self, tree: &Tree, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        if !self.open.contains_key(path) {
            if self.open.len() >= FOLDERS_OPEN_MAX {
                self.open.clear();
            }
            let folder = tree.make_folders(path)?;
            self.open.insert(path.to_vec(), folder);
        }
        Ok(self.open[path].as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_lead_a_write_out_of_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        let root = path.join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(path.join("outside")).unwrap();
        std::os::unix::fs::symlink(path.join("outside"), root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("relative")).unwrap();
        std::fs::write(path.join("outside/kept"), "kept").unwrap();
        std::os::unix::fs::symlink(path.join("outside/kept"), root.join("file")).unwrap();

        let tree = Tree::open(&root, rustix::process::getuid().as_raw()).unwrap();
        let attributes = Attributes::root(0o644, 7);
        // Inside the root the links lead nowhere, so nothing can be written through them.
        assert!(tree.write("absolute/x", b"x", attributes).is_err());
        assert!(tree.write("relative/x", b"x", attributes).is_err());
        assert!(tree.write("../outside/x", b"x", attributes).is_ok());
        tree.write("file", b"new", attributes).unwrap();
        assert_eq!(std::fs::read(path.join("outside/kept")).unwrap(), b"kept");
        assert_eq!(std::fs::read_dir(path.join("outside")).unwrap().count(), 1);
        assert_eq!(tree.read("file").unwrap().unwrap(), b"new");
    }
}
