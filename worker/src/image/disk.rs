//! Makes and patches disks. The order is readable in [`build`] and [`patch`].

use std::fs::{self, File};
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::Digest;

use super::check::{CheckError, check};
use super::copy::copy_disk;
use super::ext4::{self, Ext4Error, Place};
use super::gpt::{self, Guid, Partition};
use super::initrd::{self, InitrdError, Modules};
use super::merged::Merged;
use super::packages::{Package, installed_packages};
use super::uki::{self, Section, UkiError};
use super::{defaults, esp};
use crate::bake::layer::{LayerIndex, Node, UnpackedLayer};

const MIB: u64 = 1 << 20;
/// The journal and the tables want their share.
pub const MIN_ROOT_BYTES: u64 = 64 << 20;
const LABEL: &str = "root";
const ESP_START: u64 = MIB;
const FSTAB: &str = "etc/fstab";
/// Where kernels and their modules lie, with and without a merged /usr.
const BOOT: &str = "boot";
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];
/// Read whole into memory; larger ones are not kernels.
const MAX_BOOT_FILE_BYTES: u64 = 256 << 20;

/// Files that the engine needs beside the image's own.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The UEFI stub of systemd (`linuxx64.efi.stub`, Debian package systemd-boot-efi).
    pub stub: Utf8PathBuf,
    /// A static busybox (Debian package busybox-static).
    pub busybox: Utf8PathBuf,
}

/// What is not in the layers.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Size of the root partition; whole MiB. It grows to its disk at first boot.
    pub root_bytes: u64,
    /// Hostname of an instance that is given none.
    pub hostname: String,
    /// Behind `root=UUID=…`. The first console is where the kernel writes, the last is `/dev/console`.
    pub kernel_args: String,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            root_bytes: 2 << 30,
            hostname: "instance".to_owned(),
            kernel_args: "rw console=tty0 console=ttyS0,115200n8 net.ifnames=0 panic=30".to_owned(),
        }
    }
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    pub disk_bytes: u64,
    pub root_uuid: String,
    /// Release of the kernel that boots.
    pub kernel: String,
    pub packages: Vec<Package>,
}

/// Why there is no disk. Nothing is left under the asked name.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("a disk needs at least one layer")]
    NoLayers,
    #[error(
        "the image has no kernel (/boot/vmlinuz-*); install one, for instance linux-image-cloud-amd64, or bake without a disk"
    )]
    NoKernel,
    #[error("a root partition of {bytes} bytes cannot be made; give it whole MiB and at least {}", MIN_ROOT_BYTES / MIB)]
    RootSize { bytes: u64 },
    #[error(
        "the kernel, its modules and the loader need {need} bytes, the boot partition of this image has {have}; change the base so that the disk is made anew"
    )]
    BootPartition { need: u64, have: u64 },
    #[error("make the initrd")]
    Initrd(#[from] InitrdError),
    #[error("make a boot loader from {stub}")]
    Uki {
        stub: Utf8PathBuf,
        #[source]
        err: UkiError,
    },
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

fn io_at<'a>(
    action: &'static str,
    path: &'a Utf8Path,
) -> impl Fn(io::Error) -> DiskError + Copy + 'a {
    move |err| DiskError::Io {
        action,
        path: path.to_owned(),
        err,
    }
}

/// Makes the disk of a chain of layers, checked, at `out`, which must not exist.
pub fn build(
    layers: &[UnpackedLayer],
    tools: &Tools,
    options: &DiskOptions,
    out: &Utf8Path,
) -> Result<DiskInfo, DiskError> {
    let chain = Chain::new(layers, options)?;
    if options.root_bytes < MIN_ROOT_BYTES || !options.root_bytes.is_multiple_of(MIB) {
        return Err(DiskError::RootSize {
            bytes: options.root_bytes,
        });
    }
    finish(out, |partial| {
        // Layer by layer, never merged first: patching an older disk must give the same bytes.
        let mut merged = Merged::default();
        let mut layout = None;
        for (at, layer) in chain.layers.iter().enumerate() {
            let changes = merged.apply(at, &layer.index);
            // The defaults and the first layer make the file system together.
            let place = match layout {
                Some(Layout { root, len, .. }) => Place {
                    disk: partial,
                    offset: root,
                    len,
                },
                None => {
                    let made = chain.new_disk(tools, options, partial)?;
                    let place = Place {
                        disk: partial,
                        offset: made.root,
                        len: made.len,
                    };
                    ext4::format(place, &chain.root_uuid, LABEL)?;
                    layout = Some(made);
                    place
                }
            };
            // mke2fs made the folders `/` and `lost+found`; everything else is created.
            let changes: Vec<_> = changes
                .into_iter()
                .filter(|change| !made_by_mke2fs(at, change))
                .collect();
            ext4::change(place, &changes, &layer.index, &layer.root)?;
        }
        let Some(layout) = layout else {
            return Err(DiskError::NoLayers);
        };
        chain.write_boot(tools, options, &merged, partial, layout.esp)?;
        Ok(chain.info(&merged, layout.disk))
    })
}

/// Makes the disk of a chain whose disk without the last layer is `parent`, checked, at `out`, which must not exist.
///
/// `options` and `tools` must be those of the parent.
pub fn patch(
    parent: &Utf8Path,
    layers: &[UnpackedLayer],
    tools: &Tools,
    options: &DiskOptions,
    out: &Utf8Path,
) -> Result<DiskInfo, DiskError> {
    let chain = Chain::new(layers, options)?;
    finish(out, |partial| {
        copy_disk(parent, partial).map_err(io_at("copy the disk to", partial))?;
        let disk = File::options()
            .read(true)
            .write(true)
            .open(partial)
            .map_err(io_at("open", partial))?;
        let len = disk.metadata().map_err(io_at("open", partial))?.len() / MIB * MIB;
        // A parent that is a VHD has a footer, the new disk gets its own.
        disk.set_len(len).map_err(io_at("cut", partial))?;
        let bad = |what| CheckError::Bad {
            path: parent.to_owned(),
            what,
        };
        let found = gpt::read(&disk, len, false).map_err(bad)?;
        let [boot, root] = found.as_slice() else {
            return Err(
                bad("it does not have the two partitions of a baked disk".to_owned()).into(),
            );
        };
        drop(disk);

        let mut merged = Merged::default();
        let (last, below) = chain.layers.split_last().ok_or(DiskError::NoLayers)?;
        for (at, layer) in below.iter().enumerate() {
            merged.apply(at, &layer.index);
        }
        let changes = merged.apply(below.len(), &last.index);
        let place = Place {
            disk: partial,
            offset: root.start,
            len: root.len,
        };
        ext4::change(place, &changes, &last.index, &last.root)?;
        if touches_boot(last) {
            let boot = (boot.start, boot.len);
            chain.write_boot(tools, options, &merged, partial, boot)?;
        }
        Ok(chain.info(&merged, len))
    })
}

/// Whether a layer may change what the boot partition is made from.
fn touches_boot(layer: &UnpackedLayer) -> bool {
    let boot = |path: &str| {
        path.starts_with("boot/vmlinuz-")
            || path == BOOT
            || MODULES.iter().any(|folder| path.starts_with(folder))
            || path == "etc/os-release"
            || path == "usr/lib/os-release"
    };
    layer
        .index
        .entries()
        .iter()
        .any(|entry| boot(&entry.path) && !(matches!(entry.node, Node::Folder { opaque: false })))
}

fn made_by_mke2fs(layer: usize, change: &super::merged::Change<'_>) -> bool {
    matches!(change, super::merged::Change::Create(entry) if layer == 0 && matches!(entry.path.as_str(), "" | "lost+found"))
}

/// Works on a partial file and gives it its name when it is whole and checked.
fn finish(
    out: &Utf8Path,
    work: impl FnOnce(&Utf8Path) -> Result<DiskInfo, DiskError>,
) -> Result<DiskInfo, DiskError> {
    let name = format!(
        ".{}.partial-{}",
        out.file_name().unwrap_or("disk"),
        std::process::id()
    );
    let partial = out.with_file_name(name);
    // Left by an earlier process that had this id and died.
    let _ = fs::remove_file(&partial);
    let made = work(&partial).and_then(|info| {
        check(&partial)?;
        fs::rename(&partial, out).map_err(io_at("rename to", out))?;
        Ok(info)
    });
    if made.is_err() {
        let _ = fs::remove_file(&partial);
    }
    made
}

/// Where things lie on a new disk.
#[derive(Debug, Clone, Copy)]
struct Layout {
    esp: (u64, u64),
    root: u64,
    len: u64,
    disk: u64,
}

struct Chain {
    /// The defaults, then the image's layers.
    layers: Vec<UnpackedLayer>,
    key: Digest,
    root_uuid: String,
    _defaults: tempfile::TempDir,
}

impl Chain {
    fn new(layers: &[UnpackedLayer], options: &DiskOptions) -> Result<Self, DiskError> {
        let key = layers.first().ok_or(DiskError::NoLayers)?.key;
        let root_uuid = Guid::derived(key, "root file system").to_string();
        let place = Utf8Path::new("the temporary folder");
        let folder = tempfile::tempdir().map_err(io_at("make", place))?;
        let root = Utf8Path::from_path(folder.path())
            .ok_or_else(|| io_at("use", place)(io::Error::other("its name is not UTF-8")))?;
        let defaults =
            defaults::layer(root, &root_uuid, &options.hostname).map_err(io_at("write", root))?;
        let mut layers: Vec<_> = std::iter::once(defaults)
            .chain(layers.iter().cloned())
            .collect();
        drop_empty_fstab(&mut layers[1]).map_err(io_at("read", Utf8Path::new(FSTAB)))?;
        Ok(Self {
            layers,
            key,
            root_uuid,
            _defaults: folder,
        })
    }

    /// Makes the file with its partition table. Sizes follow from the first layer and the options only.
    fn new_disk(
        &self,
        tools: &Tools,
        options: &DiskOptions,
        path: &Utf8Path,
    ) -> Result<Layout, DiskError> {
        let mut first = Merged::default();
        for (at, layer) in self.layers.iter().take(2).enumerate() {
            first.apply(at, &layer.index);
        }
        // A kernel may also come with a later layer; then the smallest partition has to do.
        let loader = match self.loader(tools, options, &first) {
            Ok((loader, _)) => loader.len() as u64,
            Err(DiskError::NoKernel) => 0,
            Err(err) => return Err(err),
        };
        // Room for a larger kernel in a later layer.
        let esp_len = esp::MIN_BYTES.max((loader * 3).next_multiple_of(MIB));
        let root = ESP_START + esp_len;
        let len = options.root_bytes;
        let disk = (root + len + gpt::TAIL_BYTES).next_multiple_of(MIB);
        let file = File::create_new(path).map_err(io_at("make", path))?;
        file.set_len(disk).map_err(io_at("make", path))?;
        let id = |purpose| Guid::derived(self.key, purpose);
        let partitions = [
            Partition {
                kind: gpt::TYPE_ESP,
                id: id("boot partition"),
                name: "esp",
                start: ESP_START,
                len: esp_len,
            },
            Partition {
                kind: gpt::TYPE_ROOT_X86_64,
                id: id("root partition"),
                name: "root",
                start: root,
                len,
            },
        ];
        gpt::write(&file, disk, id("disk"), &partitions).map_err(io_at("write", path))?;
        Ok(Layout {
            esp: (ESP_START, esp_len),
            root,
            len,
            disk,
        })
    }

    fn write_boot(
        &self,
        tools: &Tools,
        options: &DiskOptions,
        merged: &Merged<'_>,
        disk: &Utf8Path,
        (start, len): (u64, u64),
    ) -> Result<(), DiskError> {
        let (loader, _) = self.loader(tools, options, merged)?;
        // FAT tables and the clusters' rounding take a few percent.
        let need = loader.len() as u64 + loader.len() as u64 / 16 + (4 << 20);
        if need > len {
            return Err(DiskError::BootPartition { need, have: len });
        }
        let file = File::options()
            .read(true)
            .write(true)
            .open(disk)
            .map_err(io_at("open", disk))?;
        let volume: [u8; 4] = self.key.as_bytes()[..4]
            .try_into()
            .expect("a digest has 32 bytes");
        esp::write(&file, start, len, u32::from_le_bytes(volume), &loader)
            .map_err(io_at("write", disk))
    }

    /// The unified kernel image, and the release of its kernel.
    fn loader(
        &self,
        tools: &Tools,
        options: &DiskOptions,
        merged: &Merged<'_>,
    ) -> Result<(Vec<u8>, String), DiskError> {
        let release = kernel_release(merged).ok_or(DiskError::NoKernel)?;
        let kernel = self
            .read(merged, &format!("{BOOT}/vmlinuz-{release}"))
            .and_then(|kernel| kernel.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(io_at("read the kernel", Utf8Path::new(BOOT)))?;
        let read = |name: &str| {
            for folder in MODULES {
                if let Some(file) = self.read(merged, &format!("{folder}/{release}/{name}"))? {
                    return Ok(Some(file));
                }
            }
            Ok(None)
        };
        let busybox = fs::read(&tools.busybox).map_err(io_at("read", &tools.busybox))?;
        let initrd = initrd::build(
            &busybox,
            &Modules {
                release: &release,
                read: &read,
            },
        )?;
        let stub = fs::read(&tools.stub).map_err(io_at("read", &tools.stub))?;
        let command_line = format!("root=UUID={} {}\0", self.root_uuid, options.kernel_args);
        let osrel = self
            .read(merged, "usr/lib/os-release")
            .and_then(|file| {
                if file.is_some() {
                    Ok(file)
                } else {
                    self.read(merged, "etc/os-release")
                }
            })
            .map_err(io_at("read", Utf8Path::new("os-release")))?
            .unwrap_or_else(|| b"ID=linux\n".to_vec());
        let sections = [
            Section {
                name: ".osrel",
                data: &osrel,
            },
            Section {
                name: ".cmdline",
                data: command_line.as_bytes(),
            },
            Section {
                name: ".uname",
                data: release.as_bytes(),
            },
            Section {
                name: ".initrd",
                data: &initrd,
            },
            Section {
                name: ".linux",
                data: &kernel,
            },
        ];
        let loader = uki::build(&stub, &sections).map_err(|err| DiskError::Uki {
            stub: tools.stub.clone(),
            err,
        })?;
        Ok((loader, release))
    }

    /// Reads a regular file of the merged view. Links are not followed: what is read here are package files.
    fn read(&self, merged: &Merged<'_>, path: &str) -> io::Result<Option<Vec<u8>>> {
        match merged.get(path) {
            Some((layer, entry)) => match entry.node {
                Node::File { size, .. } if size <= MAX_BOOT_FILE_BYTES => {
                    fs::read(self.layers[layer].root.join(path)).map(Some)
                }
                _ => Ok(None),
            },
            None => Ok(None),
        }
    }

    fn info(&self, merged: &Merged<'_>, disk_bytes: u64) -> DiskInfo {
        let status = self
            .read(merged, "var/lib/dpkg/status")
            .ok()
            .flatten()
            .unwrap_or_default();
        DiskInfo {
            disk_bytes,
            root_uuid: self.root_uuid.clone(),
            kernel: kernel_release(merged).unwrap_or_default(),
            packages: installed_packages(&String::from_utf8_lossy(&status)),
        }
    }
}

/// Base systems come with an fstab that has only a comment; it must not hide the default, which mounts the root.
fn drop_empty_fstab(base: &mut UnpackedLayer) -> io::Result<()> {
    let Some(Node::File { .. }) = base.index.get(FSTAB).map(|entry| &entry.node) else {
        return Ok(());
    };
    let text = fs::read_to_string(base.root.join(FSTAB))?;
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        let kept = base
            .index
            .entries()
            .iter()
            .filter(|entry| entry.path != FSTAB);
        base.index = LayerIndex::new(kept.cloned().collect());
    }
    Ok(())
}

/// The newest kernel's release, comparing numbers as numbers.
fn kernel_release(merged: &Merged<'_>) -> Option<String> {
    merged
        .inside(BOOT)
        .filter_map(|(path, _, entry)| {
            let release = path.strip_prefix("boot/vmlinuz-")?;
            matches!(entry.node, Node::File { .. }).then_some(release)
        })
        .max_by_key(|release| version_key(release))
        .map(str::to_owned)
}

fn version_key(release: &str) -> Vec<(u64, String)> {
    release
        .split(|c: char| !c.is_ascii_alphanumeric())
        .map(|part| {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            (
                part[..digits].parse().unwrap_or(0),
                part[digits..].to_owned(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_as_numbers() {
        assert!(version_key("6.1.0-56-cloud-amd64") > version_key("6.1.0-9-cloud-amd64"));
        assert!(version_key("6.12.1") > version_key("6.1.100"));
    }
}
