//! A disk image in a file: its form, its partitions, its boot partition and its file systems.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::vhd as footer;

use super::ext4::{Ext4, Inode, Kind, ReadError};
use crate::image::gpt::{self, Guid};

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// A boot partition that is larger is not read.
const ESP_MAX: u64 = 1 << 30;
/// Files and folders of a boot partition.
const ESP_FILES_MAX: usize = 10_000;
const ESP_DEPTH_MAX: usize = 16;
/// Texts that are read from an image.
const TEXT_MAX: u64 = 32 << 20;

/// A Linux file system without a special purpose.
const TYPE_LINUX: Guid = Guid::new(0x0fc6_3daf_8483_4772_8e79_3d69_d847_7de4);
/// Kernels and loaders apart from the root.
const TYPE_BOOT: Guid = Guid::new(0xbc13_c2ff_59e6_4262_a352_b275_fd6f_7172);
/// Swap.
const TYPE_SWAP: Guid = Guid::new(0x0657_fd6d_a4ab_43c4_84e5_0933_c84b_4f4f);
/// Where GRUB's core lies for BIOS.
const TYPE_BIOS: Guid = Guid::new(0x2168_6148_6449_6e6f_744e_6565_6445_4649);

/// Why a file is no disk image that can be looked into.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The machine.
    #[error("read {path}")]
    Io {
        /// The file.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    /// Another form.
    #[error(
        "{path} is a {form}, which is not looked into; make a raw disk of it: qemu-img convert -O raw {path} disk.raw"
    )]
    Form {
        /// The file.
        path: Utf8PathBuf,
        /// What it is.
        form: &'static str,
    },
    /// Shorter than any disk.
    #[error("{path} has {len} bytes, which is no disk")]
    Short {
        /// The file.
        path: Utf8PathBuf,
        /// It has.
        len: u64,
    },
}

/// What the last 512 bytes of a VHD state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// 2 is a fixed disk.
    pub kind: u32,
    /// The disk's length.
    pub size: u64,
    /// Whether its checksum is right.
    pub sound: bool,
}

/// The partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// A GPT.
    Gpt {
        /// Its partitions.
        partitions: Vec<Partition>,
        /// What is wrong with the copy at the end.
        backup: Option<String>,
    },
    /// An old one.
    Mbr {
        /// Its primary partitions.
        partitions: Vec<Partition>,
    },
    /// None that can be read.
    None {
        /// Why not.
        why: String,
    },
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The EFI system partition.
    Esp,
    /// GRUB for BIOS.
    Bios,
    /// Kernels.
    Boot,
    /// The root, by its type.
    Root,
    /// Some Linux file system.
    Linux,
    /// Swap.
    Swap,
    /// Anything else.
    Other,
}

/// One partition, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// What it is for.
    pub purpose: Purpose,
    /// Where it begins.
    pub start: u64,
    /// Its length.
    pub len: u64,
}

impl Table {
    /// All of its partitions.
    pub fn partitions(&self) -> &[Partition] {
        match self {
            Table::Gpt { partitions, .. } | Table::Mbr { partitions } => partitions,
            Table::None { .. } => &[],
        }
    }
}

/// A disk image.
#[derive(Debug)]
pub struct Disk {
    /// The file.
    pub path: Utf8PathBuf,
    /// The file's length.
    pub file_len: u64,
    /// The disk's: without a footer.
    pub len: u64,
    /// Of a VHD.
    pub footer: Option<Footer>,
    /// Its partitions.
    pub table: Table,
    /// The root file system, or why it cannot be read.
    pub root: Result<Ext4, String>,
    boot: Option<Ext4>,
    esp: Result<Esp, String>,
}

impl Disk {
    /// Opens an image.
    ///
    /// # Errors
    /// [`OpenError`]. What is wrong with what is on the disk is none.
    pub fn open(path: &Utf8Path) -> Result<Disk, OpenError> {
        let failed = |err| OpenError::Io {
            path: path.to_owned(),
            err,
        };
        let file = File::open(path).map_err(failed)?;
        let file_len = file.metadata().map_err(failed)?.len();
        if file_len < 4 * SECTOR {
            return Err(OpenError::Short {
                path: path.to_owned(),
                len: file_len,
            });
        }
        let mut head = [0; 8];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        let footer = read_footer(&file, file_len).map_err(failed)?;
        let form = match &head {
            [b'Q', b'F', b'I', 0xfb, ..] => Some("qcow2 image"),
            b"vhdxfile" => Some("VHDX image"),
            [b'K', b'D', b'M', b'V', ..] => Some("VMDK image"),
            b"conectix" => Some("dynamic VHD"),
            _ => None,
        };
        if let Some(form) = form {
            return Err(OpenError::Form {
                path: path.to_owned(),
                form,
            });
        }
        let len = file_len - if footer.is_some() { SECTOR } else { 0 };
        let table = read_table(&file, len);
        let (root, boot) = file_systems(&file, &table);
        let esp = Esp::read(&file, &table);
        Ok(Disk {
            path: path.to_owned(),
            file_len,
            len,
            footer,
            table,
            root,
            boot,
            esp,
        })
    }

    /// The boot partition, or why there is none.
    pub fn esp(&self) -> Result<&Esp, &str> {
        self.esp.as_ref().map_err(String::as_str)
    }

    /// What is at a path of the running system, links followed.
    ///
    /// # Errors
    /// The file system is damaged. One that is not understood has nothing.
    pub fn find(&self, path: &str) -> Result<Option<Found<'_>>, ReadError> {
        let kernels = path.strip_prefix("boot/").zip(self.boot.as_ref());
        for (path, system) in kernels
            .into_iter()
            .chain(self.root.as_ref().ok().map(|root| (path, root)))
        {
            if let Some(inode) = system.find(path)? {
                return Ok(Some(Found { system, inode }));
            }
        }
        Ok(None)
    }

    /// Whether something is at a path; a link that leads nowhere is something.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn has(&self, path: &str) -> Result<bool, ReadError> {
        if self.find(path)?.is_some() {
            return Ok(true);
        }
        match &self.root {
            Ok(root) => Ok(root.find_link(path)?.is_some()),
            Err(_) => Ok(false),
        }
    }

    /// A text file; none when no file is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn text(&self, path: &str) -> Result<Option<String>, ReadError> {
        match self.find(path)? {
            Some(found) if found.inode.kind == Kind::File => {
                let bytes = found.system.read(&found.inode, TEXT_MAX)?;
                Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
            }
            _ => Ok(None),
        }
    }

    /// Names in a folder, sorted; none when no folder is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn names(&self, path: &str) -> Result<Vec<String>, ReadError> {
        match self.find(path)? {
            Some(found) if found.inode.kind == Kind::Folder => {
                let entries = found.system.entries(&found.inode)?;
                let names = entries
                    .keys()
                    .map(|name| String::from_utf8_lossy(name).into_owned());
                Ok(names.collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The names of a folder with their folder in front, when it is one, for each of several folders.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn paths(&self, folders: &[&str]) -> Result<Vec<String>, ReadError> {
        let mut paths = Vec::new();
        for folder in folders {
            let names = self.names(folder)?;
            paths.extend(names.into_iter().map(|name| format!("{folder}/{name}")));
        }
        Ok(paths)
    }
}

/// Something in a file system.
#[derive(Debug)]
pub struct Found<'d> {
    /// Which one.
    pub system: &'d Ext4,
    /// What.
    pub inode: Inode,
}

fn read_footer(file: &File, len: u64) -> io::Result<Option<Footer>> {
    let mut bytes = [0; footer::FOOTER_BYTES];
    file.read_exact_at(&mut bytes, len - SECTOR)?;
    if &bytes[..8] != b"conectix" {
        return Ok(None);
    }
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    Ok(Some(Footer {
        kind: number(60),
        size: u64::from(number(48)) << 32 | u64::from(number(52)),
        sound: footer::checksum(&bytes) == number(64),
    }))
}

fn read_table(file: &File, len: u64) -> Table {
    let why = match gpt::read(file, len, false) {
        Ok(found) => {
            let partitions = found.iter().map(|found| Partition {
                purpose: purpose(found),
                start: found.start,
                len: found.len,
            });
            let backup = match gpt::read(file, len, true) {
                Ok(other) if other == found => None,
                Ok(_) => Some("it names other partitions than the first one".to_owned()),
                Err(why) => Some(why),
            };
            return Table::Gpt {
                partitions: partitions.collect(),
                backup,
            };
        }
        Err(why) => why,
    };
    let mut sector = [0; 512];
    if file.read_exact_at(&mut sector, 0).is_err() || sector[510..] != [0x55, 0xaa] {
        return Table::None { why };
    }
    let rows = sector[446..510].chunks_exact(16);
    let mut partitions = Vec::new();
    for row in rows.filter(|row| row[4] != 0) {
        let number = |at: usize| {
            u64::from(u32::from_le_bytes(
                row[at..at + 4].try_into().expect("four bytes"),
            ))
        };
        let (start, length) = (number(8) * SECTOR, number(12) * SECTOR);
        // A protective row of a GPT that is gone.
        if row[4] == 0xee || start + length > len {
            return Table::None { why };
        }
        let purpose = match row[4] {
            0x82 => Purpose::Swap,
            0x83 => Purpose::Linux,
            0xef => Purpose::Esp,
            _ => Purpose::Other,
        };
        partitions.push(Partition {
            purpose,
            start,
            len: length,
        });
    }
    if partitions.is_empty() {
        return Table::None { why };
    }
    Table::Mbr { partitions }
}

fn purpose(found: &gpt::Found) -> Purpose {
    let known = [
        (gpt::TYPE_ESP, Purpose::Esp),
        (gpt::TYPE_ROOT_X86_64, Purpose::Root),
        (TYPE_LINUX, Purpose::Linux),
        (TYPE_BOOT, Purpose::Boot),
        (TYPE_SWAP, Purpose::Swap),
        (TYPE_BIOS, Purpose::Bios),
    ];
    let known = known.iter().find(|(kind, _)| found.is(*kind));
    known.map_or(Purpose::Other, |(_, purpose)| *purpose)
}

/// The root: the partition of that type, else the first Linux one that has an `/etc`. And the kernels' own, if there is one.
fn file_systems(file: &File, table: &Table) -> (Result<Ext4, String>, Option<Ext4>) {
    let open = |partition: &Partition| {
        let file = file.try_clone().map_err(ReadError::Io)?;
        Ext4::open(file, partition.start, partition.len)
    };
    let mut boot = None;
    let mut candidates = Vec::new();
    for partition in table.partitions() {
        match partition.purpose {
            Purpose::Boot => boot = open(partition).ok(),
            Purpose::Root => candidates.insert(0, partition),
            Purpose::Linux => candidates.push(partition),
            _ => {}
        }
    }
    let mut why = "it has no partition for a Linux root".to_owned();
    for partition in candidates {
        match open(partition) {
            Ok(system) => match system.find("etc") {
                Ok(Some(_)) => return (Ok(system), boot),
                Ok(None) => "its Linux partition has no /etc".clone_into(&mut why),
                Err(err) => why = err.to_string(),
            },
            Err(err) => {
                why = match form(file, partition.start) {
                    Some(name) => format!("its root is {name}, and only ext4 is understood here"),
                    None => err.to_string(),
                }
            }
        }
    }
    (Err(why), boot)
}

fn form(file: &File, start: u64) -> Option<&'static str> {
    let is = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, start + at).is_ok() && bytes == magic
    };
    [
        (0, &b"XFSB"[..], "xfs"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
        (512, b"LABELONE", "a physical volume of LVM"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (0, b"hsqs", "squashfs"),
    ]
    .into_iter()
    .find(|(at, magic, _)| is(*at, magic))
    .map(|(_, _, name)| name)
}

/// The EFI system partition.
#[derive(Debug)]
pub struct Esp {
    image: Vec<u8>,
}

impl Esp {
    fn read(file: &File, table: &Table) -> Result<Esp, String> {
        let partition = table
            .partitions()
            .iter()
            .find(|partition| partition.purpose == Purpose::Esp);
        let partition = partition.ok_or("there is no EFI system partition")?;
        if partition.len > ESP_MAX {
            return Err(format!(
                "the EFI system partition is larger than the {} MiB that are read",
                ESP_MAX / MIB
            ));
        }
        let mut image = vec![0; usize::try_from(partition.len).unwrap_or(0)];
        file.read_exact_at(&mut image, partition.start)
            .map_err(|err| err.to_string())?;
        let esp = Esp { image };
        esp.with(|_| Ok(())).map_err(|err| {
            format!("the EFI system partition has no readable FAT file system ({err})")
        })?;
        Ok(esp)
    }

    fn with<T>(
        &self,
        look: impl FnOnce(fatfs::Dir<'_, &mut ReadOnly<'_>>) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut source = ReadOnly(Cursor::new(&self.image));
        let system = fatfs::FileSystem::new(&mut source, fatfs::FsOptions::new())?;
        look(system.root_dir())
    }

    /// A file; none when it is not there.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.with(|root| {
            let mut content = Vec::new();
            let limit = self.image.len() as u64;
            root.open_file(path)?
                .take(limit)
                .read_to_end(&mut content)?;
            Ok(content)
        })
        .ok()
    }

    /// Length and hash of every file, by absolute path.
    pub fn walk(&self) -> BTreeMap<String, (u64, blake3::Hash)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for name in self.names(&folder) {
                let path = match folder.as_str() {
                    "" => name,
                    folder => format!("{folder}/{name}"),
                };
                if found.len() + folders.len() >= ESP_FILES_MAX {
                    return found;
                }
                match self.file(&path) {
                    Some(content) => drop(found.insert(
                        format!("/{path}"),
                        (content.len() as u64, blake3::hash(&content)),
                    )),
                    // Deeper than any loader wants it is a circle.
                    None if path.matches('/').count() < ESP_DEPTH_MAX => folders.push(path),
                    None => {}
                }
            }
        }
        found
    }

    /// Names in a folder, in their short form: `GRUBX64.EFI`, `SYSTEM~1.EFI`.
    pub fn names(&self, path: &str) -> Vec<String> {
        self.with(|root| {
            let entries = match path {
                "" => root,
                path => root.open_dir(path)?,
            };
            let names = entries.iter().flatten().map(|entry| {
                String::from_utf8_lossy(entry.short_file_name_as_bytes()).into_owned()
            });
            Ok(names.filter(|name| !name.starts_with('.')).collect())
        })
        .unwrap_or_default()
    }
}

/// The FAT library wants to write; here nobody can.
struct ReadOnly<'a>(Cursor<&'a Vec<u8>>);

impl Read for ReadOnly<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl io::Seek for ReadOnly<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl io::Write for ReadOnly<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        // Pretended: it marks the volume as used while it is open.
        self.0.set_position(self.0.position() + from.len() as u64);
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
