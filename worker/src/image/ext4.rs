//! The root file system: an empty ext4 made by mke2fs, and changes written into it by debugfs scripts, both at a byte offset
//! of the disk file.
//!
//! The same script language makes the first layer and patches every later one. debugfs sets any owner, mode, attribute and
//! device without privileges, and takes file contents from the unpacked layer.
//!
//! Limits that come from the script's form: no line breaks in names (refused when a layer is packed) and lines below
//! [`MAX_LINE_BYTES`].

use std::collections::BTreeMap;
use std::io::{Seek, Write};

use camino::Utf8Path;

use super::FIXED_TIME;
use super::merged::Change;
use super::tool::{self, ToolError};
use crate::bake::layer::{LayerEntry, LayerIndex, Node};

/// debugfs reads lines into a buffer of 8192 bytes.
const MAX_LINE_BYTES: usize = 8000;
const BLOCK_BYTES: u64 = 4096;
/// Named one by one, so that the version of mke2fs does not decide them.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
const JOURNAL_MIB: &str = "size=16";
/// Always empty on a new disk, so that every instance gets its own at first boot.
const MACHINE_ID: &str = "etc/machine-id";

/// Where the file system lies in the disk file.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub disk: &'a Utf8Path,
    pub offset: u64,
    pub len: u64,
}

/// Why the file system could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum Ext4Error {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("the root file system of {mib} MiB is full; raise the image's disk size")]
    Full { mib: u64 },
    #[error("{path:?} cannot be written to a disk: its line would be too long for debugfs")]
    TooLong { path: String },
    #[error("debugfs could not make a change: {said}")]
    Script { said: String },
    #[error("write the script")]
    Write(#[source] std::io::Error),
}

impl Place<'_> {
    fn device(&self) -> String {
        format!("{}?offset={}", self.disk, self.offset)
    }
}

/// Makes an empty file system. Equal arguments give equal bytes.
pub fn format(place: Place<'_>, uuid: &str, label: &str) -> Result<(), Ext4Error> {
    let extended = format!(
        "offset={},lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,hash_seed={uuid}",
        place.offset
    );
    let blocks = (place.len / BLOCK_BYTES).to_string();
    let args = [
        "-q",
        "-F",
        "-b",
        "4096",
        "-I",
        "256",
        "-i",
        "16384",
        "-m",
        "1",
        "-O",
        FEATURES,
        "-J",
        JOURNAL_MIB,
        "-U",
        uuid,
        "-L",
        label,
        "-E",
        &extended,
        place.disk.as_str(),
        &blocks,
    ];
    let output = tool::run("mke2fs", &args, None)?;
    if output.code != 0 {
        return Err(ToolError::Failed {
            tool: "mke2fs",
            said: output.said(),
        }
        .into());
    }
    Ok(())
}

/// Makes `changes`, which come from `index`; contents are read from the unpacked layer at `root`.
pub fn change(
    place: Place<'_>,
    changes: &[Change<'_>],
    index: &LayerIndex,
    root: &Utf8Path,
) -> Result<(), Ext4Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let folder = tempfile::tempdir().map_err(Ext4Error::Write)?;
    let scratch = Utf8Path::from_path(folder.path()).ok_or_else(|| {
        Ext4Error::Write(std::io::Error::other(
            "the temporary folder's name is not UTF-8",
        ))
    })?;
    let script = Script::new(scratch, root).build(changes, index)?;
    let mut file = tempfile::tempfile_in(folder.path()).map_err(Ext4Error::Write)?;
    file.write_all(&script)
        .and_then(|()| file.rewind())
        .map_err(Ext4Error::Write)?;
    let output = tool::run("debugfs", &["-w", "-f", "-", &place.device()], Some(file))?;
    // debugfs ends with 0 whatever happened; every failure is a line on stderr, the banner is the only other one.
    let mut problems = output
        .err
        .lines()
        .filter(|line| !line.starts_with("debugfs 1.") && !line.is_empty());
    if let Some(first) = problems.next() {
        if output.err.contains("Could not allocate") {
            return Err(Ext4Error::Full {
                mib: place.len >> 20,
            });
        }
        return Err(Ext4Error::Script {
            said: first.to_owned(),
        });
    }
    if output.code != 0 {
        return Err(ToolError::Failed {
            tool: "debugfs",
            said: output.said(),
        }
        .into());
    }
    Ok(())
}

/// Checks the file system without changing it. `Ok(None)` is clean, otherwise what e2fsck says.
pub fn check(place: Place<'_>) -> Result<Option<String>, ToolError> {
    let output = tool::run("e2fsck", &["-f", "-n", &place.device()], None)?;
    Ok((output.code != 0).then(|| output.said()))
}

struct Script<'a> {
    scratch: &'a Utf8Path,
    root: &'a Utf8Path,
    text: Vec<u8>,
    /// The folder in which debugfs stands.
    at: Option<String>,
    values: usize,
}

impl<'a> Script<'a> {
    fn new(scratch: &'a Utf8Path, root: &'a Utf8Path) -> Self {
        Self {
            scratch,
            root,
            text: Vec::new(),
            at: None,
            values: 0,
        }
    }

    fn build(mut self, changes: &[Change<'_>], index: &LayerIndex) -> Result<Vec<u8>, Ext4Error> {
        std::fs::write(self.scratch.join("empty"), b"").map_err(Ext4Error::Write)?;
        let mut names: BTreeMap<&str, u32> = BTreeMap::new();
        for entry in index.entries() {
            if let Node::HardLink { target } = &entry.node {
                *names.entry(target).or_insert(1) += 1;
            }
        }
        for change in changes {
            match change {
                Change::Remove(path) => {
                    self.at_parent(path, |name| format!("rm {}", quote(name)))?
                }
                Change::RemoveFolder(path) => {
                    self.at_parent(path, |name| format!("rmdir {}", quote(name)))?
                }
                Change::Create(entry) => self.create(entry, &names)?,
                Change::Update { .. } => {}
            }
        }
        // Folders last: making entries in them touches them.
        for change in changes {
            match change {
                Change::Create(entry) if matches!(entry.node, Node::Folder { .. }) => {
                    self.metadata(entry, true)?
                }
                Change::Update { entry, old_xattrs } => {
                    for name in old_xattrs {
                        let line =
                            format!("ea_rm {} {}", quote(&absolute(&entry.path)), quote(name));
                        self.line(&entry.path, &line)?;
                    }
                    self.metadata(entry, true)?;
                }
                _ => {}
            }
        }
        Ok(self.text)
    }

    fn create(&mut self, entry: &LayerEntry, names: &BTreeMap<&str, u32>) -> Result<(), Ext4Error> {
        let path = entry.path.as_str();
        match &entry.node {
            Node::Folder { .. } => {
                return self.at_parent(path, |name| format!("mkdir {}", quote(name)));
            }
            Node::File { .. } => {
                let source = if path == MACHINE_ID {
                    self.scratch.join("empty")
                } else {
                    self.root.join(path)
                };
                self.at_parent(path, |name| {
                    format!("write {} {}", quote(source.as_str()), quote(name))
                })?;
            }
            Node::HardLink { target } => {
                let target = absolute(target);
                return self.at_parent(path, |name| {
                    format!("ln {} {}", quote(&target), quote(name))
                });
            }
            Node::Symlink { target } => {
                self.at_parent(path, |name| {
                    format!("symlink {} {}", quote(name), quote(target))
                })?;
            }
            Node::CharDevice { major, minor } => {
                self.at_parent(path, |name| {
                    format!("mknod {} c {major} {minor}", quote(name))
                })?;
            }
            Node::BlockDevice { major, minor } => {
                self.at_parent(path, |name| {
                    format!("mknod {} b {major} {minor}", quote(name))
                })?;
            }
            Node::Fifo => self.at_parent(path, |name| format!("mknod {} p", quote(name)))?,
            Node::Whiteout => return Ok(()),
        }
        self.metadata(entry, false)?;
        if let Some(count) = names.get(path) {
            self.set(path, "links_count", &count.to_string())?;
        }
        Ok(())
    }

    /// Sets what differs from what debugfs gives a new inode (owner 0, the fixed time), or everything with `all`.
    fn metadata(&mut self, entry: &LayerEntry, all: bool) -> Result<(), Ext4Error> {
        let path = entry.path.as_str();
        let kind = match &entry.node {
            Node::Folder { .. } => 0o040_000,
            Node::File { .. } => 0o100_000,
            Node::CharDevice { .. } => 0o020_000,
            Node::BlockDevice { .. } => 0o060_000,
            Node::Fifo => 0o010_000,
            Node::Symlink { .. } => 0o120_000,
            Node::HardLink { .. } | Node::Whiteout => return Ok(()),
        };
        if !matches!(entry.node, Node::Symlink { .. }) {
            self.set(path, "mode", &format!("0{:o}", kind | entry.mode))?;
        }
        if all || entry.uid != 0 {
            self.owner(path, "uid", entry.uid)?;
        }
        if all || entry.gid != 0 {
            self.owner(path, "gid", entry.gid)?;
        }
        if all || entry.mtime != FIXED_TIME {
            self.set(path, "mtime", &format!("@{}", entry.mtime))?;
        }
        for xattr in &entry.xattrs {
            self.values += 1;
            let value = self.scratch.join(format!("value-{}", self.values));
            std::fs::write(&value, &xattr.value).map_err(Ext4Error::Write)?;
            let line = format!(
                "ea_set -f {} {} {}",
                quote(value.as_str()),
                quote(&absolute(path)),
                quote(&xattr.name)
            );
            self.line(path, &line)?;
        }
        Ok(())
    }

    /// The upper half of an id is a field of its own.
    fn owner(&mut self, path: &str, field: &str, id: u32) -> Result<(), Ext4Error> {
        self.set(path, field, &(id & 0xffff).to_string())?;
        if id > 0xffff {
            self.set(path, &format!("{field}_high"), &(id >> 16).to_string())?;
        }
        Ok(())
    }

    fn set(&mut self, path: &str, field: &str, value: &str) -> Result<(), Ext4Error> {
        if path.is_empty() {
            return self.line(path, &format!("sif / {field} {value}"));
        }
        // A name like <12> would be taken for an inode number.
        self.at_parent(path, |name| {
            format!("sif {} {field} {value}", quote(&format!("./{name}")))
        })
    }

    /// A command on the last part of `path`, made while standing in its folder: new names must have no slash, and short
    /// names are looked up fastest.
    fn at_parent(&mut self, path: &str, command: impl Fn(&str) -> String) -> Result<(), Ext4Error> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if self.at.as_deref() != Some(parent) {
            self.line(path, &format!("cd {}", quote(&absolute(parent))))?;
            self.at = Some(parent.to_owned());
        }
        self.line(path, &command(name))
    }

    fn line(&mut self, path: &str, line: &str) -> Result<(), Ext4Error> {
        if line.len() > MAX_LINE_BYTES {
            return Err(Ext4Error::TooLong {
                path: path.to_owned(),
            });
        }
        self.text.extend_from_slice(line.as_bytes());
        self.text.push(b'\n');
        Ok(())
    }
}

fn absolute(path: &str) -> String {
    format!("/{path}")
}

/// debugfs splits lines at blanks; inside quotes only a doubled quote is special.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
