//! What starts the machine: firmware, loader, kernel, drivers, console.

use super::kernel::{Driver, Kernel};
use super::{Finding, Fit};
use crate::image::uki;
use crate::inspect::disk::{Disk, Purpose, Table};

/// What UEFI starts on a disk without boot entries, by machine.
const LOADERS: [(&str, u16); 2] = [
    ("EFI/BOOT/BOOTX64.EFI", 0x8664),
    ("EFI/BOOT/BOOTAA64.EFI", 0xaa64),
];
/// Names in the certificates of those whose signatures Azure's firmware believes.
const BELIEVED: [&str; 2] = [
    "Microsoft Corporation UEFI CA 2011",
    "Microsoft UEFI CA 2023",
];
/// Before the root is mounted: the bus, and the disk on it.
const EARLY: [(&str, &str); 2] = [
    ("hv_vmbus", "the bus of Hyper-V"),
    ("hv_storvsc", "the disks of Hyper-V"),
];
const NETWORK: &str = "hv_netvsc";

/// What was found of the boot chain.
#[derive(Debug)]
pub struct Boot {
    uefi: Result<(), String>,
    bios: bool,
    /// Who signed the first loader: an empty text where nobody did.
    signed: Option<String>,
    scsi: bool,
    nvme: Result<(), String>,
    guest: bool,
}

/// Looks at the chain, from firmware to drivers.
pub fn look(disk: &Disk, findings: &mut Vec<Finding>) -> Boot {
    let mut boot = Boot {
        uefi: Ok(()),
        nvme: Ok(()),
        bios: starts_from_bios(disk),
        signed: None,
        scsi: false,
        guest: false,
    };
    let kernel = match loader(disk) {
        Ok((path, bytes)) => {
            boot.signed = Some(signer(&bytes));
            match unified(disk, &bytes) {
                Some(kernel) => Ok(Some(kernel)),
                None => {
                    if grub_is_missing(disk) {
                        findings.push(Finding::error(
                            "gen2-boot",
                            path,
                            "it is neither a unified kernel image nor is a grub beside it, so it finds no kernel",
                            "install the distribution's signed grub (grub-efi-amd64-signed) into the removable path",
                        ));
                    }
                    Kernel::newest(disk)
                }
            }
        }
        Err(why) => {
            findings.push(Finding::error(
                "gen2-boot",
                "EFI system partition",
                format!("a generation 2 machine finds nothing to start: {why}"),
                "put a loader at EFI/BOOT/BOOTX64.EFI (grub-install --removable); Azure keeps no boot entries of an image",
            ));
            boot.uefi = Err(why);
            Kernel::newest(disk)
        }
    };
    match kernel {
        Ok(Some(kernel)) => drivers(&kernel, &mut boot, findings),
        Ok(None) if disk.root.is_ok() => findings.push(Finding::error(
            "kernel",
            "/boot",
            "there is no kernel (vmlinuz-*)",
            "install one, for instance linux-image-cloud-amd64",
        )),
        Ok(None) => {}
        Err(err) => findings.push(super::unreadable("the kernel", &err)),
    }
    boot
}

fn starts_from_bios(disk: &Disk) -> bool {
    match &disk.table {
        Table::Gpt { partitions, .. } => partitions
            .iter()
            .any(|partition| partition.purpose == Purpose::Bios),
        Table::Mbr { .. } => true,
        Table::None { .. } => false,
    }
}

fn loader(disk: &Disk) -> Result<(&'static str, Vec<u8>), String> {
    let esp = disk.esp()?;
    let mut why = "the EFI system partition has no EFI/BOOT/BOOTX64.EFI".to_owned();
    for (path, machine) in LOADERS {
        let Some(bytes) = esp.file(path) else {
            continue;
        };
        match uki::sections(&bytes) {
            Ok(_) if uki::machine(&bytes) == Some(machine) => return Ok((path, bytes)),
            Ok(_) => why = format!("{path} is for another machine"),
            Err(err) => why = format!("{path}: {err}"),
        }
    }
    Err(why)
}

/// Who signed a loader: a name that Azure's firmware believes, another one, or nobody.
fn signer(pe: &[u8]) -> String {
    let Some(signature) = uki::signature(pe) else {
        return String::new();
    };
    let names = BELIEVED.iter().find(|name| {
        let name = name.as_bytes();
        signature.windows(name.len()).any(|part| part == name)
    });
    names.map_or_else(|| "somebody else".to_owned(), |name| (*name).to_owned())
}

fn unified(disk: &Disk, pe: &[u8]) -> Option<Kernel> {
    let rows = uki::sections(pe).ok()?;
    let section = |name: &str| {
        let row = rows.iter().find(|row| row.name == name)?;
        let start = usize::try_from(row.file_offset).ok()?;
        let length = usize::try_from(row.virtual_size.min(row.file_size)).ok()?;
        pe.get(start..start.checked_add(length)?)
    };
    let text = |name: &str| {
        let bytes = section(name).unwrap_or_default();
        String::from_utf8_lossy(bytes)
            .trim_end_matches(['\0', '\n'])
            .to_owned()
    };
    section(".linux")?;
    Some(Kernel::unified(
        disk,
        text(".uname"),
        text(".cmdline"),
        section(".initrd").unwrap_or_default(),
    ))
}

/// A shim starts the grub beside it; systemd-boot reads its own entries.
fn grub_is_missing(disk: &Disk) -> bool {
    let Ok(esp) = disk.esp() else { return true };
    let folders = esp.names("EFI");
    let files = folders
        .iter()
        .flat_map(|folder| esp.names(&format!("EFI/{folder}")));
    let starts = |name: &String| name.starts_with("GRUB") || name == "SYSTEMD";
    !files
        .chain(folders.clone())
        .any(|name| starts(&name.to_ascii_uppercase()))
}

fn drivers(kernel: &Kernel, boot: &mut Boot, findings: &mut Vec<Finding>) {
    let place = format!("kernel {}", kernel.release);
    boot.scsi = true;
    for (name, what) in EARLY {
        let wrong = match kernel.driver(name) {
            Driver::Early => continue,
            Driver::Unknown => {
                let why = kernel.blind.as_deref().unwrap_or_default();
                findings.push(Finding::warning(
                    "hyperv-drivers",
                    &place,
                    format!("whether it drives {what} ({name}) before the root is mounted cannot be told: {why}"),
                    "look yourself: lsinitramfs /boot/initrd.img-* | grep hv_",
                ));
                continue;
            }
            Driver::Later => "only a module on the root, which is behind it",
            Driver::Missing => "neither built in nor among its modules",
        };
        boot.scsi = false;
        findings.push(Finding::error(
            "hyperv-drivers",
            &place,
            format!("{name}, which drives {what}, is {wrong}"),
            format!("add {name} to /etc/initramfs-tools/modules and run update-initramfs -u, or install linux-image-cloud-amd64"),
        ));
    }
    if !kernel.has(NETWORK) && kernel.driver(NETWORK) != Driver::Unknown {
        findings.push(Finding::error(
            "hyperv-drivers",
            &place,
            format!(
                "{NETWORK}, which drives Azure's network, is neither built in nor among its modules"
            ),
            "install a kernel with Hyper-V support, for instance linux-image-cloud-amd64",
        ));
    }
    let early = |name: &str| kernel.driver(name) == Driver::Early;
    let missing: Vec<_> = ["nvme", "pci_hyperv"]
        .into_iter()
        .filter(|name| !early(name))
        .collect();
    if !missing.is_empty() {
        boot.nvme = Err(format!(
            "{} must be built in or in the RAM disk",
            missing.join(" and ")
        ));
    }
    boot.guest = kernel.has("sev_guest") || kernel.has("tdx_guest");
    console(kernel, &place, findings);
}

fn console(kernel: &Kernel, place: &str, findings: &mut Vec<Finding>) {
    let Some(line) = &kernel.command_line else {
        findings.push(Finding::warning(
            "serial-console",
            place,
            "its command line was not found (no boot/grub/grub.cfg that names it)",
            "run update-grub in a step; without console=ttyS0 the boot diagnostics stay empty",
        ));
        return;
    };
    let serial = |word: &str| word == "console=ttyS0" || word.starts_with("console=ttyS0,");
    if !line.split_whitespace().any(serial) {
        findings.push(Finding::warning(
            "serial-console",
            place,
            format!("its command line has no console=ttyS0, so boot diagnostics and the serial console stay empty: {line}"),
            "GRUB_CMDLINE_LINUX=\"console=tty1 console=ttyS0,115200n8\" in /etc/default/grub, then update-grub",
        ));
    }
    let root = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("root="));
    if let Some(device) =
        root.filter(|root| root.starts_with("/dev/") && !root.starts_with("/dev/disk/"))
    {
        findings.push(Finding::error(
            "root-by-id",
            place,
            format!("it looks for its root at {device}, and Azure names disks otherwise"),
            "root=UUID=... : update-grub writes it so unless GRUB_DISABLE_LINUX_UUID is set",
        ));
    }
}

impl Boot {
    /// Firmware.
    pub fn generations(&self) -> Vec<Fit> {
        vec![
            match &self.uefi {
                Ok(()) => Fit::yes("V2", "UEFI"),
                Err(why) => Fit::no("V2", why),
            },
            match self.bios {
                true => Fit::yes("V1", "BIOS"),
                false => Fit::no("V1", "the disk has nothing for BIOS to start"),
            },
        ]
    }

    /// Standard, TrustedLaunch, ConfidentialVM.
    pub fn security_types(&self) -> Vec<Fit> {
        let believed = self
            .signed
            .as_deref()
            .is_some_and(|name| BELIEVED.contains(&name));
        let unsigned = match self.signed.as_deref() {
            Some("") => "its loader is not signed",
            _ => "its loader is signed by somebody whom Azure's firmware does not know",
        };
        let trusted = match (&self.uefi, believed) {
            (Err(_), _) => Fit::no("TrustedLaunch", "it needs generation 2"),
            (Ok(()), true) => Fit::yes("TrustedLaunch", "also with Secure Boot"),
            (Ok(()), false) => Fit::yes(
                "TrustedLaunch",
                format!("only with secureBootEnabled=false: {unsigned}"),
            ),
        };
        let confidential = match (&self.uefi, believed, self.guest) {
            (Err(_), ..) => Fit::no("ConfidentialVM", "it needs generation 2"),
            (Ok(()), false, _) => Fit::no("ConfidentialVM", unsigned),
            (Ok(()), true, false) => Fit::no(
                "ConfidentialVM",
                "its kernel is no guest of SEV-SNP or TDX (sev_guest, tdx_guest)",
            ),
            (Ok(()), true, true) => {
                Fit::yes("ConfidentialVM", "its kernel is a guest of SEV-SNP or TDX")
            }
        };
        let standard = match (&self.uefi, self.bios) {
            (Err(why), false) => Fit::no("Standard", why),
            _ => Fit::yes("Standard", ""),
        };
        vec![standard, trusted, confidential]
    }

    /// How the disk is attached.
    pub fn controllers(&self) -> Vec<Fit> {
        vec![
            match self.scsi {
                true => Fit::yes("SCSI", ""),
                false => Fit::no(
                    "SCSI",
                    "hv_vmbus and hv_storvsc must be there before the root is",
                ),
            },
            match &self.nvme {
                Ok(()) if self.scsi => Fit::yes("NVMe", ""),
                Ok(()) => Fit::no("NVMe", "hv_vmbus must be there before the root is"),
                Err(why) => Fit::no("NVMe", why),
            },
        ]
    }
}
