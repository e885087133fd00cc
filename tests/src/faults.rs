//! Disks that fail on request: a small library that is loaded before the C library, see
//! `faults/disk.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

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

/// Compiles the library into `folder`. The linker's driver does it, which is there wherever this
/// test was built.
///
/// # Errors
/// The compiler's.
pub fn library(folder: &Path) -> Result<PathBuf> {
    let made = folder.join("disk.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/disk.c");
    let done = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .args([&made, &source])
        .arg("-ldl")
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
