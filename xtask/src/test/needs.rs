//! Programs that the suites need from the machine, and the Debian package each comes with.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::apt::Apt;
use crate::command::found;

/// Something that must be there before a suite can run in full.
#[derive(Debug)]
pub struct Need {
    /// The program, looked for on PATH and in the sbin folders, or a file by its full path.
    pub what: &'static str,
    /// The Debian and Ubuntu package that has it.
    pub package: &'static str,
    /// What it is for.
    pub why: &'static str,
}

pub const GIT: Need = Need {
    what: "git",
    package: "git",
    why: "pushes are made with it",
};
pub const UIDMAP: Need = Need {
    what: "newuidmap",
    package: "uidmap",
    why: "maps a range of user ids, so that an ordinary user can bake",
};
pub const E2FSPROGS: Need = Need {
    what: "debugfs",
    package: "e2fsprogs",
    why: "makes, patches and checks the ext4 file system of an image",
};
pub const QEMU_IMG: Need = Need {
    what: "qemu-img",
    package: "qemu-utils",
    why: "an independent judge of the disk formats we write",
};
pub const QEMU: Need = Need {
    what: "qemu-system-x86_64",
    package: "qemu-system-x86",
    why: "boots a baked disk",
};
pub const OVMF: Need = Need {
    what: "/usr/share/OVMF/OVMF_CODE_4M.fd",
    package: "ovmf",
    why: "the firmware that the booted disk is started by",
};
pub const IP: Need = Need {
    what: "ip",
    package: "iproute2",
    why: "makes the networks of members that are cut off from each other",
};
pub const NFT: Need = Need {
    what: "nft",
    package: "nftables",
    why: "cuts them off, one direction at a time",
};

pub const PYTHON: Need = Need {
    what: "python3",
    package: "python3-venv",
    why: "runs the tools of others that judge our attestations and the simulated Azure",
};

impl Need {
    fn present(&self) -> bool {
        match self.what.starts_with('/') {
            true => Path::new(self.what).exists(),
            false => found(self.what),
        }
    }
}

/// Everything that some suite needs.
pub const ALL: &[&Need] = &[
    &GIT, &UIDMAP, &E2FSPROGS, &QEMU_IMG, &QEMU, &OVMF, &IP, &NFT, &PYTHON,
];

/// Installs what is missing where that is allowed; returns what is missing still.
pub fn provide(needed: &[&'static Need]) -> Result<Vec<String>> {
    let needs: BTreeMap<&str, &'static Need> =
        needed.iter().map(|need| (need.package, *need)).collect();
    let absent = |needs: &BTreeMap<&str, &'static Need>| -> Vec<&'static Need> {
        needs
            .values()
            .copied()
            .filter(|need| !need.present())
            .collect()
    };
    let missing = absent(&needs);
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    for need in &missing {
        println!(
            "test: {} is not here; package {}: {}",
            need.what, need.package, need.why
        );
    }
    match Apt::allowed() {
        Ok(mut apt) => {
            for need in &missing {
                if let Err(error) = apt.install(need.package) {
                    println!("test: {} cannot be installed: {error:#}", need.package);
                }
            }
        }
        Err(why) => println!("test: not installing anything: {why}"),
    }
    let still: Vec<String> = absent(&needs)
        .iter()
        .map(|need| format!("{} (package {})", need.what, need.package))
        .collect();
    for what in &still {
        println!("test: going on without {what}; tests that need it skip themselves");
    }
    Ok(still)
}
