//! The initial RAM disk: a static busybox, the modules that reach the root disk, and one script.
//!
//! A distribution's own initrd is some 15 MB and takes seconds to make; this one has what virtual machines need (virtio,
//! Hyper-V, SCSI, NVMe) and is a pure function of the image's files. Modules are loaded in the order that `modules.dep`
//! implies and stored uncompressed, so that busybox can insert them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

/// What may lie between the kernel and its root disk. Missing ones are built in, or not of this kernel.
const WANTED: &[&str] = &[
    "crc32c_generic",
    "crc32c_intel",
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "hv_vmbus",
    "hv_storvsc",
    "sd_mod",
    "pci_hyperv",
    "nvme",
    "ext4",
];
/// Without this there is no root: it must be built in or among the modules.
const ESSENTIAL: &str = "ext4";

const INIT: &str = include_str!("initrd/init.sh");

/// Why no initrd could be made.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    #[error("the kernel {0} has no {1}; install its modules and run depmod in a step")]
    NoIndex(String, &'static str),
    #[error(
        "the kernel {0} has no {ESSENTIAL}, neither built in nor as a module; install another kernel"
    )]
    NoRootDriver(String),
    #[error("read the module {0}")]
    Module(String, #[source] io::Error),
}

/// The modules of one kernel, read through a function so that any layer may provide each file.
pub struct Modules<'a> {
    /// For instance `6.1.0-56-cloud-amd64`.
    pub release: &'a str,
    /// Reads a file below the modules folder of the release, `None` when there is none.
    pub read: &'a dyn Fn(&str) -> io::Result<Option<Vec<u8>>>,
}

impl std::fmt::Debug for Modules<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Modules")
            .field("release", &self.release)
            .finish_non_exhaustive()
    }
}

/// Makes the archive.
pub fn build(busybox: &[u8], modules: &Modules<'_>) -> Result<Vec<u8>, InitrdError> {
    let text = |name: &'static str| {
        let bytes =
            (modules.read)(name).map_err(|err| InitrdError::Module(name.to_owned(), err))?;
        let bytes = bytes.ok_or_else(|| InitrdError::NoIndex(modules.release.to_owned(), name))?;
        Ok::<_, InitrdError>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let order = load_order(&text("modules.dep")?);
    let builtin = text("modules.builtin")?;
    if !order.iter().any(|path| stem(path) == ESSENTIAL)
        && !builtin.lines().any(|path| stem(path) == ESSENTIAL)
    {
        return Err(InitrdError::NoRootDriver(modules.release.to_owned()));
    }

    let mut archive = Cpio::default();
    for folder in ["bin", "dev", "modules", "proc", "root", "run", "sys"] {
        archive.entry(folder, 0o040_755, &[]);
    }
    archive.entry("init", 0o100_755, INIT.as_bytes());
    archive.entry("bin/busybox", 0o100_755, busybox);
    let mut list = String::new();
    for path in &order {
        let bad = |err| InitrdError::Module(path.clone(), err);
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = (modules.read)(path)
            .and_then(|file| file.ok_or_else(missing))
            .map_err(bad)?;
        let name = format!("{}.ko", stem(path));
        archive.entry(
            &format!("modules/{name}"),
            0o100_644,
            &unpacked(path, file).map_err(bad)?,
        );
        list.push_str(&name);
        list.push('\n');
    }
    archive.entry("modules/order", 0o100_644, list.as_bytes());
    Ok(archive.finish())
}

/// `kernel/drivers/x/virtio-blk.ko.xz` -> `virtio_blk`.
fn stem(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split_once(".ko")
        .map_or(name, |(stem, _)| stem)
        .replace('-', "_")
}

/// The wanted modules with all they depend on, each behind its dependencies. Paths as `modules.dep` has them.
fn load_order(dep: &str) -> Vec<String> {
    let mut lines = BTreeMap::new();
    for line in dep.lines() {
        if let Some((path, needs)) = line.split_once(':') {
            lines.insert(stem(path), (path, needs));
        }
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for wanted in WANTED {
        let Some((path, needs)) = lines.get(*wanted) else {
            continue;
        };
        // A line names all dependencies, the nearest first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if seen.insert(stem(path)) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

fn unpacked(path: &str, file: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    if path.ends_with(".xz") {
        liblzma::read::XzDecoder::new(file.as_slice()).read_to_end(&mut plain)?;
    } else if path.ends_with(".zst") {
        zstd::stream::read::Decoder::new(file.as_slice())?.read_to_end(&mut plain)?;
    } else if path.ends_with(".gz") {
        flate2::read::GzDecoder::new(file.as_slice()).read_to_end(&mut plain)?;
    } else {
        return Ok(file);
    }
    Ok(plain)
}

/// A cpio archive in the "newc" form that the kernel unpacks.
#[derive(Debug, Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: usize,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.inode += 1;
        let inode = if name == "TRAILER!!!" { 0 } else { self.inode };
        let fields = [
            inode,
            mode as usize,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_behind_what_they_need_and_once() {
        let dep = "kernel/a/virtio.ko:\nkernel/a/virtio_ring.ko: kernel/a/virtio.ko\n\
            kernel/b/virtio_blk.ko.xz: kernel/a/virtio_ring.ko kernel/a/virtio.ko\n\
            kernel/b/virtio_pci.ko: kernel/a/virtio_ring.ko kernel/a/virtio.ko\nkernel/c/sound.ko:\n";
        assert_eq!(
            load_order(dep),
            [
                "kernel/a/virtio.ko",
                "kernel/a/virtio_ring.ko",
                "kernel/b/virtio_pci.ko",
                "kernel/b/virtio_blk.ko.xz"
            ]
        );
    }

    #[test]
    fn a_kernel_that_cannot_mount_its_root_is_refused() {
        let read = |name: &str| {
            Ok(match name {
                "modules.dep" => Some(Vec::new()),
                "modules.builtin" => Some(b"kernel/fs/xfs/xfs.ko\n".to_vec()),
                _ => None,
            })
        };
        let modules = Modules {
            release: "6.1",
            read: &read,
        };
        assert!(matches!(
            build(b"", &modules),
            Err(InitrdError::NoRootDriver(_))
        ));
        let modules = Modules {
            release: "6.1",
            read: &|_| Ok(None),
        };
        assert!(matches!(
            build(b"", &modules),
            Err(InitrdError::NoIndex(_, "modules.dep"))
        ));
    }

    #[test]
    fn compressed_modules_are_stored_plain() {
        let packed = zstd::bulk::compress(b"module", 1).unwrap();
        assert_eq!(unpacked("kernel/x.ko.zst", packed).unwrap(), b"module");
        assert_eq!(
            unpacked("kernel/x.ko", b"module".to_vec()).unwrap(),
            b"module"
        );
        assert!(unpacked("kernel/x.ko.xz", b"module".to_vec()).is_err());
    }
}
