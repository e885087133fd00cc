//! Disks that fail on request, and disks that lose power: small libraries that are loaded before the
//! C library, see `faults/disk.c` and `faults/power.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::power::Forgetful;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// fsync and fdatasync.
    Sync,
    /// Writing.
    Write,
    /// Whatever changes the file system: it became read-only.
    Change,
}

/// Input/output error.
pub const EIO: i32 = 5;
/// No space left on the device.
pub const ENOSPC: i32 = 28;
/// Read-only file system.
pub const EROFS: i32 = 30;

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Fault::Sync => "sync",
            Fault::Write => "write",
            Fault::Change => "change",
        }
    }

    /// The control file's content for a fault below `folder`.
    pub(crate) fn order(self, number: i32, folder: &Path) -> String {
        format!("{} {number} {}\n", self.word(), folder.display())
    }
}

/// Compiles one of the libraries of `faults/` into `folder`. The linker's driver does it, which is
/// there wherever this test was built.
///
/// # Errors
/// The compiler's.
pub fn library(folder: &Path, name: &str) -> Result<PathBuf> {
    let made = folder.join(format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("faults/{name}.c"));
    let done = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&made, &source])
        .args(["-ldl", "-lpthread"])
        .stdin(Stdio::null())
        .output()
        .context("start the C compiler")?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "compile {}: {said}",
        source.display()
    );
    fs::metadata(&made)?;
    Ok(made)
}

/// What can be done to the disks of a farm's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Disks {
    /// Nothing.
    #[default]
    Healthy,
    /// They fail on request.
    Faulty,
    /// They can lose power.
    Forgetful,
}

impl Disks {
    /// Makes what the members are started with, in a folder of its own.
    ///
    /// # Errors
    /// The compiler's.
    pub(crate) fn prepare(self, folder: &Path) -> Result<()> {
        let name = match self {
            Disks::Healthy => return Ok(()),
            Disks::Faulty => "disk",
            Disks::Forgetful => "power",
        };
        fs::create_dir(folder)?;
        library(folder, name).map(drop)
    }

    /// Variables for a member that has its data in `data`.
    ///
    /// # Errors
    /// A folder could not be made.
    pub(crate) fn environment(self, folder: &Path, data: &Path) -> Result<Vec<(String, String)>> {
        let name = data.file_name().context("a data folder has a name")?;
        Ok(match self {
            Disks::Healthy => Vec::new(),
            Disks::Faulty => [
                ("LD_PRELOAD", folder.join("disk.so")),
                ("OAST_FAULTS", folder.join(name)),
            ]
            .map(|(key, value)| (key.to_owned(), value.display().to_string()))
            .to_vec(),
            Disks::Forgetful => {
                let disk = Forgetful::new(data, &folder.join(name))?;
                disk.environment(&folder.join("power.so"))
            }
        })
    }
}
