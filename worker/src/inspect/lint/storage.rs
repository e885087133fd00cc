//! What is mounted, swapped to, and grown.

use super::Finding;
use crate::inspect::disk::{Disk, Purpose};
use crate::inspect::ext4::{Kind, ReadError};

const FSTAB: &str = "etc/fstab";
/// Where installers put a swap file.
const SWAP_FILES: [&str; 4] = ["swapfile", "swap.img", "var/swap", "var/swapfile"];
const UNITS: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];
const SWAP_FIX: &str = "take it out of the image; swap belongs on Azure's temporary disk (waagent: ResourceDisk.EnableSwap, or cloud-init's mounts)";
/// Any of these makes the root as large as the disk that a machine gets.
const GROWERS: [&str; 5] = [
    "usr/bin/growpart",
    "usr/share/initramfs-tools/scripts/local-bottom/growroot",
    "etc/repart.d/50-root.conf",
    "usr/lib/repart.d/50-root.conf",
    "usr/lib/dracut/modules.d/50growroot",
];

/// Looks at swap, mounts and growth.
///
/// # Errors
/// The file system is damaged.
pub fn look(disk: &Disk) -> Result<Vec<Finding>, ReadError> {
    let mut found = Vec::new();
    for (place, partition) in disk.table.partitions().iter().enumerate() {
        if partition.purpose == Purpose::Swap {
            let at = format!("partition {}", place + 1);
            found.push(Finding::error(
                "no-swap",
                at,
                "it is a swap partition on the OS disk",
                SWAP_FIX,
            ));
        }
    }
    let fstab = disk.text(FSTAB)?.unwrap_or_default();
    for (number, line) in fstab.lines().enumerate() {
        let fields: Vec<_> = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let [device, mount, system, ..] = fields[..] else {
            continue;
        };
        let at = format!("/{FSTAB}:{}", number + 1);
        if system == "swap" {
            found.push(Finding::error(
                "no-swap",
                at,
                format!("swap on {device}, on the OS disk"),
                SWAP_FIX,
            ));
        } else if device.starts_with("/dev/")
            && !device.starts_with("/dev/disk/")
            && !device.starts_with("/dev/mapper/")
        {
            found.push(Finding::error(
                "root-by-id",
                at,
                format!("{mount} is looked for at {device}, and Azure names disks otherwise, even from one boot to the next"),
                "UUID=... or LABEL=... (blkid says which)",
            ));
        }
    }
    for path in SWAP_FILES {
        if disk
            .find(path)?
            .is_some_and(|found| found.inode.kind == Kind::File)
        {
            found.push(Finding::error(
                "no-swap",
                format!("/{path}"),
                "it is a swap file on the OS disk",
                SWAP_FIX,
            ));
        }
    }
    for path in disk.paths(&UNITS)? {
        if path.ends_with(".swap") {
            found.push(Finding::error(
                "no-swap",
                format!("/{path}"),
                "it is a unit that swaps",
                SWAP_FIX,
            ));
        }
    }
    let mut grows = fstab.contains("x-systemd.growfs");
    for path in GROWERS {
        grows |= disk.has(path)?;
    }
    if !grows {
        found.push(Finding::warning(
            "root-grows",
            "root file system",
            "nothing makes it as large as the machine's disk at first boot",
            "install cloud-guest-utils (growpart), or a repart.d file with x-systemd.growfs in /etc/fstab",
        ));
    }
    Ok(found)
}
