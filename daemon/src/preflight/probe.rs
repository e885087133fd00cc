//! The helper process of the preflight: does it all once and reports on stdout.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::fix::{Machine, fix};
use super::{Finding, Outcome, Request};
use crate::isolate::enter::{self, Caller, Entered};
use crate::isolate::proc::{self, Forked};
use crate::isolate::{Fault, IdMap, Named, cgroup, wire};

/// Every check in its order, with what it says when it passes.
const CHECKS: [(&str, &str); 12] = [
    ("data folder", "can be written"),
    ("disk", "enough is free"),
    ("newuidmap", "newuidmap and newgidmap are installed"),
    ("subordinate ids", "65,536 ids belong to this user"),
    ("namespaces", "user, PID and mount namespaces can be made"),
    ("id map", "65,536 ids can be mapped"),
    ("chown", "files can be given to mapped ids"),
    ("network", "network namespaces can be made"),
    ("overlay", "overlays work on the data folder"),
    ("proc", "/proc can be mounted"),
    ("root", "pivot_root works"),
    (
        "control groups",
        "an image's own init can be process 1 of an instance",
    ),
];

/// A place above every other, hidden in our own mount namespace only.
const STAGE: &str = "/tmp";

/// The whole life of `oast internal preflight REQUEST`. Call it before any thread exists.
pub fn entry() -> ! {
    // The request is the last argument, wherever the command line put it.
    let request = std::env::args().next_back().unwrap_or_default();
    let code = match serde_json::from_str(&request) {
        Ok(request) => {
            let answer = serde_json::to_string(&findings(&request)).unwrap_or_default();
            let mut stdout = std::io::stdout();
            let told = stdout
                .write_all(answer.as_bytes())
                .and_then(|()| stdout.flush());
            i32::from(told.is_err())
        }
        Err(_unreadable) => 2,
    };
    proc::exit(code)
}

/// A fault and the check that met it.
struct Stopped {
    check: &'static str,
    fault: Fault,
}

fn findings(request: &Request) -> Vec<Finding> {
    let uid = rustix::process::getuid();
    let user = enter::user_name(uid.as_raw()).unwrap_or_else(|| uid.as_raw().to_string());
    let machine = Machine::read(user, uid.is_root(), &request.data);
    // Before a farm namespace of our own makes it look like more.
    let groups = if uid.is_root() {
        cgroup::available()
    } else {
        Err(Fault::refused(
            "use control groups",
            "/sys/fs/cgroup",
            "needs root",
        ))
    };
    let folder = request
        .data
        .join(format!(".preflight-{}", std::process::id()));
    let stopped = sequence(request, &folder, uid.is_root()).err();
    let removed = match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", &folder),
    };
    let stopped = stopped.or_else(|| {
        removed.err().map(|fault| Stopped {
            check: "data folder",
            fault,
        })
    });
    let mut past = false;
    CHECKS
        .iter()
        .filter(|(name, _)| !(uid.is_root() && matches!(*name, "newuidmap" | "subordinate ids")))
        .map(|(name, passes)| match &stopped {
            _ if past => Finding {
                outcome: Outcome::Skipped,
                ..Finding::passed(name, "not reached")
            },
            Some(stopped) if stopped.check == *name => {
                past = true;
                Finding::failed(name, &stopped.fault, fix(&machine, name, &stopped.fault))
            }
            _ if *name == "control groups" => match &groups {
                Ok(()) => Finding::passed(name, *passes),
                Err(fault) => Finding::limited(
                    name,
                    format!(
                        "{fault}: instances run their enabled units instead of the image's own init"
                    ),
                    format!("for the image's own init: sudo {} quickstart", machine.exe),
                ),
            },
            _ => Finding::passed(name, *passes),
        })
        .collect()
}

fn during<T>(check: &'static str, result: Result<T, Fault>) -> Result<T, Stopped> {
    result.map_err(|fault| Stopped { check, fault })
}

fn sequence(request: &Request, folder: &Path, root: bool) -> Result<(), Stopped> {
    during(
        "data folder",
        fs::DirBuilder::new()
            .mode(0o711)
            .create(folder)
            .at("mkdir", folder),
    )?;
    during("disk", enough(request))?;
    if !root {
        during(
            "newuidmap",
            enter::helper("newuidmap")
                .and_then(|_| enter::helper("newgidmap"))
                .map(drop),
        )?;
        during("subordinate ids", Caller::current().map(drop))?;
    }
    let entered = enter::enter().map_err(|fault| {
        let check = if fault.call.contains("id map") {
            "id map"
        } else {
            "namespaces"
        };
        Stopped { check, fault }
    })?;
    if entered == Entered::AlreadyRoot {
        // SAFETY: CLONE_NEWNS does not touch the descriptor table.
        let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) };
        during(
            "namespaces",
            unshared
                .named("unshare CLONE_NEWNS")
                .and_then(|()| enter::private_mounts()),
        )?;
    }
    let idmap = IdMap::detect()
        .map_err(|error| Fault::refused("check id map", "/proc/self/uid_map", error.to_string()));
    let idmap = during("id map", idmap)?;
    during("chown", folders(folder, idmap))?;
    let (ours, theirs) = during("namespaces", wire::pair().named("socketpair"))?;
    match during(
        "namespaces",
        proc::fork(libc::CLONE_NEWUSER | libc::CLONE_NEWPID),
    )? {
        Forked::Parent { child } => {
            drop(theirs);
            let result = during("id map", idmap.write(child.as_raw_nonzero().get()))
                .and_then(|()| during("overlay", stage(folder)))
                .and_then(|()| {
                    during(
                        "namespaces",
                        wire::send(&ours, &(), &[]).named("send to the child"),
                    )
                })
                .and_then(|()| {
                    during(
                        "namespaces",
                        wire::recv::<Option<(String, Fault)>>(&ours).named("receive"),
                    )
                });
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
            during("namespaces", proc::wait_for(child))?;
            // What the child staged is ours too; it must go before the folder can be removed.
            let _ = rustix::mount::unmount(STAGE, UnmountFlags::DETACH);
            match result? {
                Some((None, _)) => Ok(()),
                Some((Some((name, fault)), _)) => {
                    let check = CHECKS
                        .iter()
                        .map(|(check, _)| *check)
                        .find(|check| *check == name);
                    Err(Stopped {
                        check: check.unwrap_or("root"),
                        fault,
                    })
                }
                None => {
                    let fault = Fault::refused("run the probe", "", "its process died");
                    Err(Stopped {
                        check: "namespaces",
                        fault,
                    })
                }
            }
        }
        Forked::Child => {
            drop(ours);
            let met = match wire::recv::<()>(&theirs) {
                Ok(Some(_)) => inside().err(),
                _ => proc::exit(1),
            };
            let _ = wire::send(
                &theirs,
                &met.map(|stopped| (stopped.check, stopped.fault)),
                &[],
            );
            proc::exit(0)
        }
    }
}

fn enough(request: &Request) -> Result<(), Fault> {
    let stat = rustix::fs::statvfs(&request.data).at("statvfs", &request.data)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free >= request.free_bytes {
        return Ok(());
    }
    const MIB: u64 = 1 << 20;
    let detail = format!(
        "{} MiB are free, {} MiB are needed",
        free / MIB,
        request.free_bytes / MIB
    );
    Err(Fault::refused(
        "check free disk space",
        &request.data,
        detail,
    ))
}

fn folders(folder: &Path, idmap: IdMap) -> Result<(), Fault> {
    let root = Some(idmap.host_id(0));
    for name in ["lower", "upper", "work", "lower/proc"] {
        let made = folder.join(name);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&made)
            .at("mkdir", &made)?;
        chown(&made, root, root).at("chown", &made)?;
    }
    let file = folder.join("lower/file");
    fs::write(&file, "").at("create", &file)?;
    let last = Some(idmap.host_id(65_534));
    chown(&file, last, last).at("chown", &file)
}

/// Hangs the folder where the mapped root can reach it.
fn stage(folder: &Path) -> Result<(), Fault> {
    let tree = clone_tree(folder)?;
    rustix::mount::mount(
        "tmpfs",
        STAGE,
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=0755,size=1m"),
    )
    .at("mount tmpfs", STAGE)?;
    for name in ["up", "root"] {
        let made = Path::new(STAGE).join(name);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&made)
            .at("mkdir", &made)?;
    }
    attach(&tree, &Path::new(STAGE).join("up"))
}

/// The mapped root's part.
fn inside() -> Result<(), Stopped> {
    during("id map", become_root())?;
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: neither call's flags touch the descriptor table.
    let unshared = unsafe { rustix::thread::unshare_unsafe(namespaces) };
    during(
        "namespaces",
        unshared.named("unshare mount, UTS and IPC namespaces"),
    )?;
    // SAFETY: as above.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    during("network", unshared.named("unshare CLONE_NEWNET"))?;
    let root = Path::new(STAGE).join("root");
    during("overlay", overlay(&root))?;
    during(
        "proc",
        rustix::mount::mount("proc", root.join("proc"), "proc", MountFlags::empty(), None)
            .named("mount proc"),
    )?;
    during("root", pivot(&root))
}

fn become_root() -> Result<(), Fault> {
    rustix::thread::set_thread_groups(&[]).named("setgroups")?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).named("setresgid 0")?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).named("setresuid 0")
}

fn overlay(root: &Path) -> Result<(), Fault> {
    rustix::process::chdir(STAGE).at("chdir", STAGE)?;
    let options = c"userxattr,lowerdir=up/lower,upperdir=up/upper,workdir=up/work";
    rustix::mount::mount("overlay", root, "overlay", MountFlags::empty(), options)
        .named("mount overlay in the data folder")?;
    // Copying up, a whiteout and an opaque folder need all that layers need.
    let file = root.join("file");
    chown(&file, Some(1), Some(1)).at("chown in the overlay", &file)?;
    fs::remove_file(&file).at("remove in the overlay", &file)?;
    let over = root.join("made");
    fs::create_dir(&over).at("mkdir in the overlay", &over)
}

fn pivot(root: &Path) -> Result<(), Fault> {
    rustix::process::chdir(root).at("chdir", root)?;
    let old =
        rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at("open", "/")?;
    rustix::process::pivot_root(".", ".").at("pivot_root", root)?;
    rustix::process::fchdir(&old).named("fchdir to the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).named("umount the old root")?;
    rustix::process::chdir("/").at("chdir", "/")
}

fn clone_tree(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags).at("open_tree", path)
}

fn attach(tree: &OwnedFd, place: &PathBuf) -> Result<(), Fault> {
    rustix::mount::move_mount(
        tree.as_fd(),
        "",
        CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .at("move_mount", place)
}
