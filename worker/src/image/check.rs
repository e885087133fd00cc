//! The static test tier: everything about a disk that can be proved without starting it.

use std::fs::File;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use super::ext4::{self, Place};
use super::tool::ToolError;
use super::{esp, gpt, uki, vhd};

/// What the stub needs to start a Linux.
const SECTIONS: [&str; 3] = [".linux", ".initrd", ".cmdline"];
const MIB: u64 = 1 << 20;

/// A disk that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Bytes of the raw disk.
    pub disk_bytes: u64,
    /// Whether a VHD footer follows.
    pub vhd: bool,
    /// Where the root file system is.
    pub root_start: u64,
    pub root_len: u64,
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("read {path}")]
    Io {
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
    #[error("{path} is no good disk: {what}; it is a cache, remove it and bake again")]
    Bad { path: Utf8PathBuf, what: String },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Checks partition tables, boot loader, root file system and, if there is one, the VHD footer.
pub fn check(path: &Utf8Path) -> Result<Checked, CheckError> {
    let io = |err| CheckError::Io {
        path: path.to_owned(),
        err,
    };
    let bad = |what: String| CheckError::Bad {
        path: path.to_owned(),
        what,
    };
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let has_footer = len % MIB == vhd::FOOTER_BYTES;
    if has_footer {
        vhd::check_footer(&file, len).map_err(bad)?;
    } else if len == 0 || len % MIB != 0 {
        return Err(bad(format!("it has {len} bytes, not whole MiB")));
    }
    let disk = if has_footer {
        len - vhd::FOOTER_BYTES
    } else {
        len
    };

    let partitions = gpt::read(&file, disk, false).map_err(bad)?;
    if gpt::read(&file, disk, true).map_err(bad)? != partitions {
        return Err(bad("its two partition tables differ".to_owned()));
    }
    let find = |kind, name| {
        let found = partitions.iter().find(|partition| partition.is(kind));
        let found = found.ok_or_else(|| bad(format!("it has no {name} partition")))?;
        if found.start % MIB != 0 {
            return Err(bad(format!(
                "its {name} partition does not start at a whole MiB"
            )));
        }
        Ok(found)
    };
    let boot = find(gpt::TYPE_ESP, "EFI system")?;
    let loader = esp::read(&file, boot.start, boot.len).map_err(|err| {
        bad(format!(
            "its EFI system partition has no readable boot loader ({err})"
        ))
    })?;
    let sections = uki::check(&loader).map_err(|err| bad(format!("its boot loader: {err}")))?;
    for wanted in SECTIONS {
        if !sections
            .iter()
            .any(|section| section.name == wanted && section.virtual_size > 0)
        {
            return Err(bad(format!("its boot loader has no {wanted}")));
        }
    }
    let root = find(gpt::TYPE_ROOT_X86_64, "root")?;
    let place = Place {
        disk: path,
        offset: root.start,
        len: root.len,
    };
    if let Some(said) = ext4::check(place)? {
        return Err(bad(format!("its root file system has errors: {said}")));
    }
    Ok(Checked {
        disk_bytes: disk,
        vhd: has_footer,
        root_start: root.start,
        root_len: root.len,
    })
}
