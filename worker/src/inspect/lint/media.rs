//! The file, its footer and its partition table.

use oast_artifacts::vhd::ALIGNMENT;

use super::{Finding, Way};
use crate::inspect::disk::{Disk, Footer, Table};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// What an upload to a managed disk takes, footer included.
const UPLOAD_MIN: u64 = 20 * MIB + 512;
/// Largest disk that Azure starts a machine from: 4,095 GiB.
const OS_DISK_MAX: u64 = 4095 * GIB;
/// The kind of a fixed disk.
const FIXED: u32 = 2;

/// Looks at everything outside the file systems.
pub fn look(disk: &Disk, way: Way) -> Vec<Finding> {
    let mut found = Vec::new();
    let file = disk.path.as_str();
    match (disk.footer, way) {
        (Some(footer), Way::AsIs) => found.extend(footer_is_right(disk, footer)),
        (None, Way::AsIs) => found.push(Finding::error(
            "vhd-fixed",
            file,
            "it has no VHD footer: Azure takes a fixed VHD only",
            "oast image export NAME --format vhd, or qemu-img convert -O vpc -o subformat=fixed,force_size",
        )),
        (_, Way::Exported) => {}
    }
    if !disk.len.is_multiple_of(ALIGNMENT) {
        found.push(Finding::error(
            "size-aligned",
            file,
            format!(
                "the disk has {} bytes, which is not a whole number of MiB: Azure refuses it",
                disk.len
            ),
            format!(
                "grow it before it becomes a VHD: truncate -s {} FILE",
                disk.len.next_multiple_of(ALIGNMENT)
            ),
        ));
    }
    if disk.len + 512 < UPLOAD_MIN {
        found.push(Finding::error(
            "size-allowed",
            file,
            format!(
                "the disk has {} bytes; an upload has at least 20 MiB",
                disk.len
            ),
            "make the disk larger",
        ));
    }
    if disk.len > OS_DISK_MAX {
        found.push(Finding::error(
            "size-allowed",
            file,
            format!(
                "the disk has {} GiB; one to start from has at most 4,095",
                disk.len / GIB
            ),
            "make it smaller; it grows on the machine to what the disk there has",
        ));
    }
    match &disk.table {
        Table::None { why } => found.push(Finding::error(
            "partition-table",
            "partition table",
            format!("there is none that can be read: {why}"),
            "make the image anew; a bare file system does not start",
        )),
        Table::Gpt {
            backup: Some(why), ..
        } => found.push(Finding::warning(
            "partition-table",
            "the GPT at the end of the disk",
            format!("it is not the one at the start: {why}"),
            "sgdisk --move-second-header FILE, after the disk has its last size",
        )),
        _ => {}
    }
    for (place, partition) in disk.table.partitions().iter().enumerate() {
        if !partition.start.is_multiple_of(MIB) {
            found.push(Finding::warning(
                "partition-aligned",
                format!("partition {}", place + 1),
                format!("it starts at byte {}, which is not a whole MiB: every write costs two on Azure's disks", partition.start),
                "partition the disk with 1 MiB alignment (2,048 sectors)",
            ));
        }
    }
    found
}

fn footer_is_right(disk: &Disk, footer: Footer) -> Vec<Finding> {
    let place = "VHD footer";
    let fix = "write it anew: oast image export NAME --format vhd, or qemu-img convert -O vpc -o subformat=fixed,force_size";
    let mut found = Vec::new();
    if !footer.sound {
        found.push(Finding::error(
            "vhd-fixed",
            place,
            "its checksum is wrong",
            fix,
        ));
    }
    if footer.kind != FIXED {
        let what = match footer.kind {
            3 => "dynamic",
            4 => "differencing",
            _ => "unknown",
        };
        found.push(Finding::error(
            "vhd-fixed",
            place,
            format!("it states a {what} disk: Azure takes a fixed one only"),
            fix,
        ));
    }
    if footer.size != disk.len {
        found.push(Finding::error(
            "vhd-fixed",
            place,
            format!(
                "it states {} bytes, the disk in front of it has {}",
                footer.size, disk.len
            ),
            fix,
        ));
    }
    found
}
