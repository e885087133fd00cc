//! Reads an ext4 file system (ext3 and ext2 too) in a part of a file.
//!
//! Folders are read entry by entry, which is right for indexed ones as well: the blocks of an index look like deleted entries. A journal
//! that was not replayed is not replayed here either; [`Ext4::is_clean`] says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where the superblock lies, and its length.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;
const ROOT: u32 = 2;
/// A folder that is larger does not come from anybody's package.
const FOLDER_MAX: u64 = 64 << 20;
/// Links on the way to a file, as the kernel counts.
const LINKS_MAX: usize = 40;
/// Folders in folders; a loop of a damaged disk ends here.
const DEPTH_MAX: usize = 128;
/// Entries of one file system.
const ENTRIES_MAX: usize = 8 << 20;
/// Longest target of a link.
const TARGET_MAX: u64 = 4096;
/// Deepest tree of extents that the format allows.
const EXTENT_DEPTH_MAX: u16 = 5;

/// Features without which a reader misunderstands, and which this one knows: entries with types, journals to replay, extents, 64 bit,
/// multiple mount protection, flexible groups, values in inodes, checksum seeds, large folders, folded names.
const UNDERSTOOD: u32 =
    0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x2_0000;
const NEEDS_RECOVERY: u32 = 0x4;
const INCOMPAT_64BIT: u32 = 0x80;

const EXTENTS_FLAG: u32 = 0x8_0000;
const INLINE_FLAG: u32 = 0x1000_0000;

/// Why a file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The machine.
    #[error("read the disk")]
    Io(#[from] io::Error),
    /// It is another file system.
    #[error("it is no ext4 file system")]
    Foreign,
    /// It has what this reader does not know.
    #[error("it uses a feature that is not understood here ({0})")]
    Feature(String),
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Larger than whoever asked wants to read.
    #[error("a file of {size} bytes is larger than the {limit} that are read")]
    TooLarge {
        /// It has.
        size: u64,
        /// It may have.
        limit: u64,
    },
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One inode.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Names that it has.
    pub links: u16,
    /// Extended attributes, by full name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    flags: u32,
    block: [u8; 60],
}

/// A run of blocks of a file that are on the disk.
#[derive(Clone, Copy, Debug)]
struct Run {
    logical: u64,
    physical: u64,
    count: u64,
}

/// A file system.
#[derive(Debug)]
pub struct Ext4 {
    file: File,
    start: u64,
    len: u64,
    block: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: u64,
    group_bytes: u64,
    groups_at: u64,
    wide: bool,
    clean: bool,
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

impl Inode {
    /// Major and minor number of a device, as the inode has them.
    pub fn device(&self) -> (u32, u32) {
        (word(&self.block, 0), word(&self.block, 4))
    }
}

impl Ext4 {
    /// Opens the file system of `len` bytes at `start` of the file.
    ///
    /// # Errors
    /// There is none, or one that cannot be understood.
    pub fn open(file: File, start: u64, len: u64) -> Result<Ext4, ReadError> {
        if len < SUPERBLOCK + SUPERBLOCK_BYTES as u64 {
            return Err(ReadError::Foreign);
        }
        let mut sb = [0; SUPERBLOCK_BYTES];
        file.read_exact_at(&mut sb, start + SUPERBLOCK)?;
        if half(&sb, 56) != MAGIC {
            return Err(ReadError::Foreign);
        }
        let incompat = word(&sb, 96);
        if incompat & !UNDERSTOOD != 0 {
            let unknown = format!("incompatible features {:#x}", incompat & !UNDERSTOOD);
            return Err(ReadError::Feature(unknown));
        }
        let shift = word(&sb, 24);
        if shift > 6 {
            return Err(ReadError::Damaged("its blocks have an impossible size"));
        }
        let block = 1024 << shift;
        let wide = incompat & INCOMPAT_64BIT != 0;
        let high = if wide {
            u64::from(word(&sb, 0x150)) << 32
        } else {
            0
        };
        let blocks = u64::from(word(&sb, 4)) | high;
        // Revision 0 has fixed sizes.
        let inode_bytes = match word(&sb, 76) {
            0 => 128,
            _ => u64::from(half(&sb, 88)),
        };
        let group_bytes = match u64::from(half(&sb, 254)) {
            size if wide && size >= 64 => size,
            _ => 32,
        };
        let inodes_per_group = word(&sb, 40);
        let sizes_fit = inode_bytes.is_power_of_two() && (128..=block).contains(&inode_bytes);
        if !sizes_fit || group_bytes > block || inodes_per_group == 0 {
            return Err(ReadError::Damaged("its superblock has impossible sizes"));
        }
        if blocks.checked_mul(block).is_none_or(|bytes| bytes > len) {
            return Err(ReadError::Damaged("it is larger than its partition"));
        }
        Ok(Ext4 {
            file,
            start,
            len,
            block,
            blocks,
            inodes: word(&sb, 0),
            inodes_per_group,
            inode_bytes,
            group_bytes,
            groups_at: (u64::from(word(&sb, 20)) + 1) * block,
            wide: wide && group_bytes >= 64,
            clean: incompat & NEEDS_RECOVERY == 0 && half(&sb, 58) & 1 != 0,
        })
    }

    /// Whether it was unmounted, so that nothing waits in its journal.
    pub fn is_clean(&self) -> bool {
        self.clean
    }

    /// Bytes that it has room for.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(ReadError::Damaged("it points behind its end"));
        }
        Ok(self.file.read_exact_at(into, self.start + at)?)
    }

    fn block_at(&self, number: u64) -> Result<Vec<u8>, ReadError> {
        if number >= self.blocks {
            return Err(ReadError::Damaged("it points behind its end"));
        }
        let mut block = vec![0; usize::try_from(self.block).unwrap_or(0)];
        self.read_at(number * self.block, &mut block)?;
        Ok(block)
    }

    /// The root folder.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn root(&self) -> Result<Inode, ReadError> {
        self.inode(ROOT)
    }

    fn inode(&self, number: u32) -> Result<Inode, ReadError> {
        if number == 0 || number > self.inodes {
            return Err(ReadError::Damaged("an entry has an impossible inode"));
        }
        let (group, place) = (
            (number - 1) / self.inodes_per_group,
            (number - 1) % self.inodes_per_group,
        );
        let mut descriptor = vec![0; usize::try_from(self.group_bytes).unwrap_or(0)];
        self.read_at(
            self.groups_at + u64::from(group) * self.group_bytes,
            &mut descriptor,
        )?;
        let high = if self.wide {
            u64::from(word(&descriptor, 40)) << 32
        } else {
            0
        };
        let table = u64::from(word(&descriptor, 8)) | high;
        let at = table
            .checked_mul(self.block)
            .and_then(|table| table.checked_add(u64::from(place) * self.inode_bytes))
            .ok_or(ReadError::Damaged("it points behind its end"))?;
        let mut raw = vec![0; usize::try_from(self.inode_bytes).unwrap_or(0)];
        self.read_at(at, &mut raw)?;
        let kind = match half(&raw, 0) & 0xf000 {
            0x8000 => Kind::File,
            0x4000 => Kind::Folder,
            0xa000 => Kind::Link,
            0x2000 => Kind::CharDevice,
            0x6000 => Kind::BlockDevice,
            0x1000 => Kind::Fifo,
            0xc000 => Kind::Socket,
            _ => return Err(ReadError::Damaged("an inode is of no kind")),
        };
        let mut block = [0; 60];
        block.copy_from_slice(&raw[40..100]);
        let pair = |low, high| u32::from(half(&raw, low)) | u32::from(half(&raw, high)) << 16;
        Ok(Inode {
            number,
            kind,
            mode: u32::from(half(&raw, 0) & 0o7777),
            uid: pair(2, 120),
            gid: pair(24, 122),
            size: u64::from(word(&raw, 4)) | u64::from(word(&raw, 108)) << 32,
            links: half(&raw, 26),
            xattrs: self.xattrs(&raw)?,
            flags: word(&raw, 32),
            block,
        })
    }

    /// Attributes behind the inode's fields, and in a block of their own.
    fn xattrs(&self, raw: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ReadError> {
        const XATTR_MAGIC: u32 = 0xea02_0000;
        let mut found = BTreeMap::new();
        let extra = 128 + usize::from(half(raw, 128));
        if raw.len() > 128 && extra + 4 < raw.len() && word(raw, extra) == XATTR_MAGIC {
            let inside = &raw[extra + 4..];
            attributes(inside, inside, &mut found)?;
        }
        let own = u64::from(word(raw, 104)) | u64::from(half(raw, 118)) << 32;
        if own != 0 {
            let block = self.block_at(own)?;
            if word(&block, 0) != XATTR_MAGIC {
                return Err(ReadError::Damaged(
                    "a block of attributes is something else",
                ));
            }
            attributes(&block[32..], &block, &mut found)?;
        }
        Ok(found)
    }

    /// Where the blocks of a file are, in order.
    fn runs(&self, inode: &Inode) -> Result<Vec<Run>, ReadError> {
        let mut runs = Vec::new();
        if inode.flags & INLINE_FLAG != 0 {
            return Err(ReadError::Feature("contents in inodes".to_owned()));
        }
        if inode.flags & EXTENTS_FLAG != 0 {
            self.extents(&inode.block, EXTENT_DEPTH_MAX + 1, &mut runs)?;
        } else {
            let mut logical = 0;
            for (place, level) in (0..15).zip([0; 12].into_iter().chain([1, 2, 3])) {
                let number = u64::from(word(&inode.block, place * 4));
                self.indirect(number, level, &mut logical, inode, &mut runs)?;
            }
        }
        let mut before = 0;
        let mut total: u64 = 0;
        for run in &runs {
            total = total.saturating_add(run.count);
            let end = run.physical.checked_add(run.count);
            if run.logical < before
                || end.is_none_or(|end| end > self.blocks)
                || total > self.blocks
            {
                return Err(ReadError::Damaged(
                    "a file's blocks overlap or lie behind its end",
                ));
            }
            before = run.logical + run.count;
        }
        Ok(runs)
    }

    fn extents(&self, node: &[u8], above: u16, runs: &mut Vec<Run>) -> Result<(), ReadError> {
        let (count, depth) = (usize::from(half(node, 2)), half(node, 6));
        if half(node, 0) != 0xf30a || depth >= above || 12 + count * 12 > node.len() {
            return Err(ReadError::Damaged("a tree of extents is none"));
        }
        // No file has more runs than there are blocks; what a damaged tree repeats ends here.
        if runs.len() as u64 > self.blocks {
            return Err(ReadError::Damaged("a tree of extents has no end"));
        }
        for entry in node[12..12 + count * 12].chunks_exact(12) {
            if depth > 0 {
                let child = u64::from(word(entry, 4)) | u64::from(half(entry, 8)) << 32;
                let child = self.block_at(child)?;
                self.extents(&child, depth, runs)?;
                continue;
            }
            let count = u64::from(half(entry, 4));
            // Reserved and never written: it reads as zeros.
            if count <= 32768 {
                runs.push(Run {
                    logical: u64::from(word(entry, 0)),
                    physical: u64::from(word(entry, 8)) | u64::from(half(entry, 6)) << 32,
                    count,
                });
            }
        }
        Ok(())
    }

    fn indirect(
        &self,
        number: u64,
        level: u32,
        logical: &mut u64,
        inode: &Inode,
        runs: &mut Vec<Run>,
    ) -> Result<(), ReadError> {
        let covers = (self.block / 4).pow(level);
        if number == 0 || *logical * self.block >= inode.size {
            *logical += covers;
            return Ok(());
        }
        if level == 0 {
            runs.push(Run {
                logical: *logical,
                physical: number,
                count: 1,
            });
            *logical += 1;
            return Ok(());
        }
        for pointer in self.block_at(number)?.chunks_exact(4) {
            self.indirect(u64::from(word(pointer, 0)), level - 1, logical, inode, runs)?;
        }
        Ok(())
    }

    /// The content of a file or folder.
    ///
    /// # Errors
    /// It is larger than `limit`, or damaged.
    pub fn read(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>, ReadError> {
        let size = inode.size;
        if size > limit {
            return Err(ReadError::TooLarge { size, limit });
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        for run in self.runs(inode)? {
            let at = run.logical * self.block;
            if at < size {
                let end = (at + run.count * self.block).min(size);
                let (from, to) = (usize::try_from(at), usize::try_from(end));
                let (Ok(from), Ok(to)) = (from, to) else {
                    continue;
                };
                self.read_at(run.physical * self.block, &mut content[from..to])?;
            }
        }
        Ok(content)
    }

    /// A hash that two files share when their contents are equal, however they lie on their disks: of the length and of the blocks of
    /// 4 KiB that are not zero.
    ///
    /// # Errors
    /// It is damaged.
    pub fn hash(&self, inode: &Inode) -> Result<blake3::Hash, ReadError> {
        const PIECE: usize = 1024;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&inode.size.to_le_bytes());
        let mut buffer = vec![0; usize::try_from(self.block).unwrap_or(0) * 64];
        for run in self.runs(inode)? {
            let mut done = 0;
            while done < run.count * self.block {
                let at = run.logical * self.block + done;
                if at >= inode.size {
                    break;
                }
                let left = (run.count * self.block - done).min(inode.size - at);
                let some = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                self.read_at(run.physical * self.block + done, &mut buffer[..some])?;
                // The smallest block there is, so that file systems with other ones compare.
                for (place, piece) in buffer[..some].chunks(PIECE).enumerate() {
                    if piece.iter().any(|byte| *byte != 0) {
                        hasher.update(&(at + (place * PIECE) as u64).to_le_bytes());
                        hasher.update(piece);
                    }
                }
                done += some as u64;
            }
        }
        Ok(hasher.finalize())
    }

    /// What is in a folder, without `.` and `..`, sorted by name.
    ///
    /// # Errors
    /// It is damaged, or no folder.
    pub fn entries(&self, folder: &Inode) -> Result<BTreeMap<Vec<u8>, u32>, ReadError> {
        if folder.kind != Kind::Folder {
            return Err(ReadError::Damaged("a folder is none"));
        }
        let content = self.read(folder, FOLDER_MAX)?;
        let mut found = BTreeMap::new();
        for block in content.chunks(usize::try_from(self.block).unwrap_or(usize::MAX)) {
            let mut at = 0;
            while at + 8 <= block.len() {
                let step = match usize::from(half(block, at + 4)) {
                    // 64 KiB does not fit into its field.
                    0 | 0xffff => block.len() - at,
                    step => step,
                };
                let (number, length) = (word(block, at), usize::from(block[at + 6]));
                if step < 8 || at + step > block.len() {
                    return Err(ReadError::Damaged("a folder's entries overlap"));
                }
                if number != 0 && length > 0 {
                    let name = block.get(at + 8..at + 8 + length);
                    let name = name.ok_or(ReadError::Damaged("a name leaves its folder"))?;
                    if !matches!(name, b"." | b"..") {
                        found.insert(name.to_vec(), number);
                    }
                }
                at += step;
            }
        }
        Ok(found)
    }

    /// Where a link points to.
    ///
    /// # Errors
    /// It is damaged.
    pub fn target(&self, link: &Inode) -> Result<String, ReadError> {
        let bytes = match usize::try_from(link.size) {
            // A short one lies where a file's blocks are named.
            Ok(size) if size < link.block.len() && link.flags & EXTENTS_FLAG == 0 => {
                link.block[..size].to_vec()
            }
            _ => self.read(link, TARGET_MAX)?,
        };
        Ok(text(&bytes))
    }

    /// The inode at a path, with links followed inside this file system. None when nothing is there.
    ///
    /// # Errors
    /// It is damaged.
    pub fn find(&self, path: &str) -> Result<Option<Inode>, ReadError> {
        self.find_as(path, true)
    }

    /// As [`Ext4::find`], but a link at the path itself is the answer.
    ///
    /// # Errors
    /// It is damaged.
    pub fn find_link(&self, path: &str) -> Result<Option<Inode>, ReadError> {
        self.find_as(path, false)
    }

    fn find_as(&self, path: &str, follow: bool) -> Result<Option<Inode>, ReadError> {
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut above = Vec::new();
        let mut here = self.root()?;
        let mut links = 0;
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    here = above.pop().map_or_else(|| self.root(), Ok)?;
                    continue;
                }
                _ => {}
            }
            if here.kind != Kind::Folder {
                return Ok(None);
            }
            let Some(number) = self.entries(&here)?.get(part.as_bytes()).copied() else {
                return Ok(None);
            };
            let next = self.inode(number)?;
            if next.kind == Kind::Link && (follow || !rest.is_empty()) {
                links += 1;
                if links > LINKS_MAX {
                    return Ok(None);
                }
                let target = self.target(&next)?;
                if target.starts_with('/') {
                    above.clear();
                    here = self.root()?;
                }
                rest.extend(target.split('/').rev().map(str::to_owned));
            } else {
                above.push(std::mem::replace(&mut here, next));
            }
        }
        Ok(Some(here))
    }

    /// Every path below the root, sorted within each folder.
    ///
    /// # Errors
    /// It is damaged.
    pub fn walk(&self) -> Result<BTreeMap<String, Inode>, ReadError> {
        let mut found = BTreeMap::new();
        self.walk_into("", &self.root()?, 0, &mut found)?;
        Ok(found)
    }

    fn walk_into(
        &self,
        path: &str,
        folder: &Inode,
        depth: usize,
        found: &mut BTreeMap<String, Inode>,
    ) -> Result<(), ReadError> {
        if depth > DEPTH_MAX {
            return Err(ReadError::Damaged(
                "its folders are too deep or form a circle",
            ));
        }
        for (name, number) in self.entries(folder)? {
            let inode = self.inode(number)?;
            let path = match path {
                "" => text(&name),
                path => format!("{path}/{}", text(&name)),
            };
            if found.len() >= ENTRIES_MAX {
                return Err(ReadError::Damaged(
                    "it has more entries than anybody's root",
                ));
            }
            found.insert(path.clone(), inode.clone());
            if inode.kind == Kind::Folder {
                self.walk_into(&path, &inode, depth + 1, found)?;
            }
        }
        Ok(())
    }
}

/// Reads entries of attributes; `values` is where their values' offsets begin.
fn attributes(
    entries: &[u8],
    values: &[u8],
    found: &mut BTreeMap<String, Vec<u8>>,
) -> Result<(), ReadError> {
    let bad = ReadError::Damaged("an attribute leaves its place");
    let mut at = 0;
    while at + 16 <= entries.len() && word(entries, at) != 0 {
        let length = usize::from(entries[at]);
        let prefix = match entries[at + 1] {
            0 => "",
            1 => "user.",
            2 => "system.posix_acl_access",
            3 => "system.posix_acl_default",
            4 => "trusted.",
            6 => "security.",
            7 => "system.",
            _ => "unknown.",
        };
        let Some(name) = entries.get(at + 16..at + 16 + length) else {
            return Err(bad);
        };
        let start = usize::from(half(entries, at + 2));
        let size = usize::try_from(word(entries, at + 8)).unwrap_or(usize::MAX);
        // One in an inode of its own is told by its name alone.
        let value = match word(entries, at + 4) {
            0 => start
                .checked_add(size)
                .and_then(|end| values.get(start..end)),
            _ => Some(&[][..]),
        };
        let Some(value) = value else { return Err(bad) };
        found.insert(format!("{prefix}{}", text(name)), value.to_vec());
        at += (16 + length).next_multiple_of(4);
    }
    Ok(())
}

/// A name for people: what is no UTF-8 is escaped.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}
