//! The kernel that starts: its command line, and what it can drive before and after the root is mounted.

use std::collections::BTreeSet;

use crate::inspect::disk::Disk;
use crate::inspect::ext4::{Kind, ReadError};
use crate::inspect::initrd;

/// Kernels and RAM disks that are read.
const BOOT_FILE_MAX: u64 = 1 << 30;

/// Where a driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// In the kernel or its RAM disk: there before the root is.
    Early,
    /// Among the modules of the root.
    Later,
    /// Nowhere.
    Missing,
    /// It may be in the RAM disk, which cannot be read.
    Unknown,
}

/// One kernel of an image.
#[derive(Debug, Default)]
pub struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// What the loader hands it; none when that could not be found.
    pub command_line: Option<String>,
    early: BTreeSet<String>,
    later: BTreeSet<String>,
    /// Why its RAM disk could not be read.
    pub blind: Option<String>,
}

/// `kernel/drivers/hv/hv-vmbus.ko.xz` -> `hv_vmbus`.
fn stem(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let (stem, _) = name.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

impl Kernel {
    /// The kernel of a unified image, whose RAM disk is in it.
    pub fn unified(disk: &Disk, release: String, command_line: String, ram_disk: &[u8]) -> Kernel {
        let mut kernel = Kernel {
            release,
            command_line: Some(command_line),
            ..Kernel::default()
        };
        kernel.take_ram_disk(ram_disk);
        kernel.take_modules(disk);
        kernel
    }

    /// The newest kernel in `/boot`, as GRUB starts it.
    ///
    /// # Errors
    /// The file system is damaged.
    pub fn newest(disk: &Disk) -> Result<Option<Kernel>, ReadError> {
        let names = disk.names("boot")?;
        let releases = names
            .iter()
            .filter_map(|name| name.strip_prefix("vmlinuz-"));
        let newest = releases.max_by(|a, b| crate::bake::base::version::compare(a, b));
        let Some(release) = newest.map(str::to_owned) else {
            return Ok(None);
        };
        let mut kernel = Kernel {
            command_line: grub(disk, &release)?,
            ..Kernel::default()
        };
        let path = format!("boot/initrd.img-{release}");
        if let Some(found) = disk.find(&path)?
            && found.inode.kind == Kind::File
        {
            let bytes = found.system.read(&found.inode, BOOT_FILE_MAX)?;
            kernel.take_ram_disk(&bytes);
        }
        kernel.release = release;
        kernel.take_modules(disk);
        Ok(Some(kernel))
    }

    fn take_ram_disk(&mut self, bytes: &[u8]) {
        match initrd::names(bytes) {
            Ok(names) => self
                .early
                .extend(names.iter().filter_map(|path| stem(path))),
            Err(why) => self.blind = Some(why),
        }
    }

    /// What cannot be read counts as not there: the findings then name the drivers.
    fn take_modules(&mut self, disk: &Disk) {
        for folder in ["usr/lib/modules", "lib/modules"] {
            let read = |name: &str| {
                disk.text(&format!("{folder}/{}/{name}", self.release))
                    .ok()
                    .flatten()
            };
            let builtin = read("modules.builtin").unwrap_or_default();
            let later = read("modules.dep").unwrap_or_default();
            self.early.extend(builtin.lines().filter_map(stem));
            let paths = later.lines().filter_map(|line| line.split(':').next());
            self.later.extend(paths.filter_map(stem));
        }
    }

    /// Where a driver is.
    pub fn driver(&self, name: &str) -> Driver {
        if self.early.contains(name) {
            Driver::Early
        } else if self.blind.is_some() {
            Driver::Unknown
        } else if self.later.contains(name) {
            Driver::Later
        } else {
            Driver::Missing
        }
    }

    /// Whether a driver is anywhere.
    pub fn has(&self, name: &str) -> bool {
        self.early.contains(name) || self.later.contains(name)
    }
}

/// The command line in GRUB's own configuration.
fn grub(disk: &Disk, release: &str) -> Result<Option<String>, ReadError> {
    for path in ["boot/grub/grub.cfg", "boot/grub2/grub.cfg"] {
        let Some(text) = disk.text(path)? else {
            continue;
        };
        let lines = text
            .lines()
            .map(str::trim_start)
            .filter(|line| line.starts_with("linux"));
        for line in lines {
            let mut words = line.split_whitespace().skip(1);
            if words.next().is_some_and(|kernel| kernel.ends_with(release)) {
                return Ok(Some(words.collect::<Vec<_>>().join(" ")));
            }
        }
    }
    Ok(None)
}
