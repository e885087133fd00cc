//! Control groups of instances, in the unified (v2) hierarchy.
//!
//! An image's init wants a control group of its own to sort its services into. They live under one folder per farm,
//! `oast-FARM/NAME`, so that whoever cleans up after a killed farm finds them by name: a control group cannot be
//! tied to a process. A machine without a writable v2 hierarchy gives a fault that says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fault::{Fault, Named};
use super::idmap::IdMap;

/// A control group of its own in the unified hierarchy: needed by an image's init, made before it
/// starts and removed after it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The farm: the parent folder, which [`sweep`] clears.
    pub farm: String,
    pub name: String,
}

/// How often an emptied group is tried before it is reported: its processes are dead but may not be buried yet.
const REMOVE_TRIES: u32 = 200;
const REMOVE_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// Where the v2 hierarchy is mounted: alone, or beside v1.
pub fn hierarchy() -> Result<PathBuf, Fault> {
    let mounts = fs::read_to_string("/proc/self/mounts").at("read", "/proc/self/mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        })
        .ok_or_else(|| {
            Fault::refused(
                "find control groups",
                "/sys/fs/cgroup",
                "no cgroup2 hierarchy is mounted",
            )
        })
}

/// Whether instances can have control groups here, so whether an image's own init can be process 1.
pub fn available() -> Result<(), Fault> {
    let root = hierarchy()?;
    let probe = root.join(format!("oast-probe-{}", std::process::id()));
    fs::create_dir(&probe).at("mkdir", &probe)?;
    fs::remove_dir(&probe).at("rmdir", &probe)
}

fn farm_folder(farm: &str) -> Result<PathBuf, Fault> {
    one_name(farm)?;
    Ok(hierarchy()?.join(format!("oast-{farm}")))
}

fn folder(group: &Cgroup) -> Result<PathBuf, Fault> {
    one_name(&group.name)?;
    Ok(farm_folder(&group.farm)?.join(&group.name))
}

fn one_name(name: &str) -> Result<(), Fault> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(Fault::refused(
        "name a control group",
        name,
        "only letters, digits, '-', '_' and '.' are allowed",
    ))
}

/// Makes the group, gives it to the sandbox's root and puts the process in.
pub fn make(group: &Cgroup, idmap: IdMap, pid: i32) -> Result<(), Fault> {
    let folder = folder(group)?;
    // One of the same name can only be a dead one's.
    remove(group)?;
    fs::create_dir_all(&folder).at("mkdir control group", &folder)?;
    let root = Some(idmap.host_id(0));
    for name in [
        "",
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.subtree_control",
    ] {
        let path = if name.is_empty() {
            folder.clone()
        } else {
            folder.join(name)
        };
        match std::os::unix::fs::chown(&path, root, root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.at("chown", &path)?,
        }
    }
    let procs = folder.join("cgroup.procs");
    fs::write(&procs, pid.to_string()).at("write", &procs)
}

/// Ends what is in the group and removes it with everything below.
pub fn remove(group: &Cgroup) -> Result<(), Fault> {
    let folder = folder(group)?;
    remove_tree(&folder)?;
    if let Some(farm) = folder.parent() {
        // Others may still be in it; the last one takes it away.
        let _ = fs::remove_dir(farm);
    }
    Ok(())
}

/// Removes every group of a farm, killing what is left in them. For whoever cleans up after a killed farm.
pub fn sweep(farm: &str) -> Result<(), Fault> {
    one_name(farm)?;
    match hierarchy() {
        Ok(root) => remove_tree(&root.join(format!("oast-{farm}"))),
        // Where there is no hierarchy nothing can be left in it.
        Err(_none) => Ok(()),
    }
}

fn remove_tree(folder: &Path) -> Result<(), Fault> {
    if !folder.exists() {
        return Ok(());
    }
    let kill = folder.join("cgroup.kill");
    if kill.exists() {
        fs::write(&kill, "1").at("write", &kill)?;
    }
    let mut last = Ok(());
    for _ in 0..REMOVE_TRIES {
        last = remove_folders(folder);
        match &last {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => pause(),
            _ => break,
        }
    }
    match last {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("rmdir control group", folder),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "waits for the kernel, in helpers that have no clock to hand"
)]
fn pause() {
    std::thread::sleep(REMOVE_PAUSE);
}

/// Folders only, deepest first: the files in them cannot be removed and need not be.
fn remove_folders(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_folders(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_out_of_the_hierarchy() {
        for bad in ["", "..", "a/b", ".hidden", "x\n"] {
            assert!(one_name(bad).is_err(), "{bad:?} was taken");
        }
        assert!(one_name("web-prod_0.1").is_ok());
    }
}
