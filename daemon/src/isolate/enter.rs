//! The farm namespace: how a process of an ordinary user becomes root of a world of its own.
//!
//! A user and mount namespace with the whole id map, written by `newuidmap` and `newgidmap`: 0 is
//! the caller, 1 to 65535 are the caller's subordinate ids. The process stays the same process
//! (same pid, same files), it only sees itself as uid 0; what it writes belongs to the caller
//! outside. Real root needs none of this and [`enter`] leaves it as it is.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Gid, Uid};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::fault::{Fault, Named};
use super::idmap::{ID_COUNT, IdMap, IdMapError, subordinate};
use super::proc::{self, Forked};
use super::wire;

/// Where distributions put the setuid helpers, besides `PATH`.
const HELPER_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"];

/// What [`enter`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// Nothing: this already is root with enough ids.
    AlreadyRoot,
    /// This process is root of a fresh farm namespace.
    Farm,
}

/// Who the caller is and which ids it may map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Start of 65,535 subordinate ids.
    pub subuid: u32,
    pub subgid: u32,
}

/// Makes this process root of the farm namespace unless it is root already. Only for a process
/// with one thread, before any runtime.
///
/// # Errors
/// The failing call; [`crate::preflight`] knows what to do about it.
pub fn enter() -> Result<Entered, Fault> {
    match IdMap::detect() {
        Ok(_) => return Ok(Entered::AlreadyRoot),
        Err(IdMapError::NotRoot) => {}
        Err(error) => {
            return Err(Fault::refused(
                "check id map",
                "/proc/self/uid_map",
                error.to_string(),
            ));
        }
    }
    let caller = Caller::current()?;
    let helpers = [helper("newuidmap")?, helper("newgidmap")?];
    let (ours, theirs) = wire::pair().named("socketpair")?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // The helpers must run outside of the namespace they write for, so by a child made before it.
    let child = match proc::fork(0)? {
        Forked::Parent { child } => child,
        Forked::Child => {
            drop(ours);
            let told = wire::recv::<()>(&theirs);
            let result = match told {
                Ok(Some(_)) => write_maps(pid, &caller, &helpers),
                _ => proc::exit(0),
            };
            let _ = wire::send(&theirs, &result, &[]);
            proc::exit(0)
        }
    };
    drop(theirs);
    // SAFETY: neither flag touches the descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .named("unshare user and mount namespaces")?;
    wire::send(&ours, &(), &[]).named("send to the id map helper")?;
    let written = wire::recv::<Result<(), Fault>>(&ours).named("receive from the id map helper")?;
    proc::wait_for(child)?;
    match written {
        Some((result, _)) => result?,
        None => {
            return Err(Fault::refused(
                "write id map",
                "newuidmap",
                "its process died",
            ));
        }
    }
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).named("setresgid 0")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).named("setresuid 0")?;
    // Ids changed, so the kernel made our /proc entries root's; children must be able to use theirs.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .named("prctl PR_SET_DUMPABLE")?;
    private_mounts()?;
    Ok(Entered::Farm)
}

/// Keeps mounts made here from showing anywhere else.
pub(crate) fn private_mounts() -> Result<(), Fault> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .at("mount --make-rprivate", "/")
}

impl Caller {
    /// Reads the user database and `/etc/subuid`, `/etc/subgid`.
    ///
    /// # Errors
    /// No such user, or no range of 65,535 ids.
    pub fn current() -> Result<Self, Fault> {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        let name = user_name(uid).unwrap_or_else(|| uid.to_string());
        let range = |file: &str| {
            subordinate(Path::new(file), &name, uid)
                .into_iter()
                .find(|(_, count)| *count >= ID_COUNT - 1)
                .map(|(start, _)| start)
                .ok_or_else(|| {
                    Fault::refused(
                        "find subordinate ids",
                        file,
                        format!("{name} has no range of 65,536 ids"),
                    )
                })
        };
        let (subuid, subgid) = (range("/etc/subuid")?, range("/etc/subgid")?);
        Ok(Self {
            name,
            uid,
            gid,
            subuid,
            subgid,
        })
    }
}

/// The caller's name in the user database.
pub fn user_name(uid: u32) -> Option<String> {
    // SAFETY: called while the process has one thread, so nothing else uses getpwuid's static
    // buffer; the result is copied before anything else runs.
    unsafe {
        let entry = libc::getpwuid(uid);
        if entry.is_null() {
            return None;
        }
        Some(
            CStr::from_ptr((*entry).pw_name)
                .to_string_lossy()
                .into_owned(),
        )
    }
}

/// Finds a setuid helper of the `uidmap` package.
///
/// # Errors
/// It is not installed.
pub fn helper(name: &str) -> Result<PathBuf, Fault> {
    HELPER_FOLDERS
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0))
        .ok_or_else(|| Fault::refused("find", name, "not installed (package uidmap)"))
}

fn write_maps(pid: i32, caller: &Caller, helpers: &[PathBuf; 2]) -> Result<(), Fault> {
    let ranges = [(caller.uid, caller.subuid), (caller.gid, caller.subgid)];
    for (helper, (own, subordinate)) in helpers.iter().zip(ranges) {
        let args = [pid as u32, 0, own, 1, 1, subordinate, ID_COUNT - 1].map(|arg| arg.to_string());
        let done = Command::new(helper)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .at("run", helper)?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            return Err(Fault::refused("write id map with", helper, said));
        }
    }
    Ok(())
}

/// Removes a folder that may hold files of subordinate ids, which their owner's owner cannot
/// remove from outside. The whole life of `oast internal farm-remove FOLDER`.
pub fn remove_entry(folder: &Path) -> ! {
    let result = enter().and_then(|_| match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", folder),
    });
    match result {
        Ok(()) => proc::exit(0),
        Err(fault) => {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{fault}");
            proc::exit(1)
        }
    }
}
