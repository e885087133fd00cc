//! Puts the caller's folders where the sandbox's root can reach them.
//!
//! Inside, uid 0 is an ordinary id of the host that may not walk through the caller's folders (`/root`, a data
//! directory with mode 0700). So the monitor, which may, clones each source as a mount and hangs it under one small
//! tmpfs in its private mount namespace; the sandbox starts from a copy of that namespace. Mounts that are read-only
//! here are locked read-only there. It also keeps overlay options short however long the paths are.
//!
//! Changes nothing outside of the monitor's own mount namespace.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use oast_daemon::isolate::{Fault, IdMap, Named};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::spec::{Overlay, Root, Spec};

/// Folders that every Linux root has; one of them carries the staging tmpfs and is hidden meanwhile.
const PLACES: [&str; 4] = ["/tmp", "/run", "/mnt", "/var"];

/// What was staged and where, relative to [`Stage::folder`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub folder: PathBuf,
    /// Options for the overlay mount, or nothing when `root` is already a mount.
    pub overlay: Option<String>,
    /// File name and whether it is a folder, in the order of [`Spec::binds`].
    pub binds: Vec<(String, bool)>,
}

pub(crate) const ROOT: &str = "root";

/// Makes the calling process's mount namespace private.
pub(crate) fn own_mounts() -> Result<(), Fault> {
    // SAFETY: CLONE_NEWNS does not touch the descriptor table, which is what makes other unshares unsafe.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .named("unshare CLONE_NEWNS")?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .at("mount --make-rprivate", "/")
}

/// Stages everything of `spec`. `user_namespace` is the sandbox's, for mapped binds.
pub(crate) fn stage(
    spec: &Spec,
    idmap: IdMap,
    user_namespace: BorrowedFd<'_>,
) -> Result<Stage, Fault> {
    // Clone first, mount the tmpfs after: it may hide the very folders that are cloned.
    let mut trees: Vec<(OwnedFd, String, bool)> = Vec::new();
    let overlay = match &spec.root {
        Root::Dir(dir) => {
            owned_by_root(dir, idmap)?;
            trees.push((clone_tree(dir, false)?, ROOT.into(), true));
            None
        }
        Root::Overlay(overlay) => Some(overlay_trees(overlay, idmap, &mut trees)?),
    };
    let mut binds = Vec::with_capacity(spec.binds.len());
    for (index, bind) in spec.binds.iter().enumerate() {
        let is_folder = fs::metadata(&bind.source)
            .at("bind source", &bind.source)?
            .is_dir();
        let tree = clone_tree(&bind.source, is_folder)?;
        if bind.mapped && idmap != IdMap::IDENTITY {
            set_attributes(&tree, libc::MOUNT_ATTR_IDMAP, Some(user_namespace))
                .at("mount_setattr MOUNT_ATTR_IDMAP", &bind.source)?;
        }
        if !bind.writable {
            set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, None)
                .at("mount_setattr MOUNT_ATTR_RDONLY", &bind.source)?;
        }
        let name = format!("b{index}");
        trees.push((tree, name.clone(), is_folder));
        binds.push((name, is_folder));
    }

    let folder = PLACES
        .iter()
        .map(PathBuf::from)
        .find(|place| place.is_dir())
        .ok_or_else(|| {
            Fault::refused(
                "stage",
                "/",
                "none of /tmp, /run, /mnt and /var is a folder",
            )
        })?;
    rustix::mount::mount(
        "tmpfs",
        &folder,
        "tmpfs",
        MountFlags::NOSUID,
        Some(c"mode=0755,size=1m"),
    )
    .at("mount tmpfs", &folder)?;
    let mode_755 = |path: &Path| {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            .at("mkdir", path)
    };
    if overlay.is_some() {
        mode_755(&folder.join(ROOT))?;
    }
    for (tree, name, is_folder) in trees {
        let place = folder.join(&name);
        if is_folder {
            mode_755(&place)?;
        } else {
            fs::write(&place, "").at("create", &place)?;
        }
        rustix::mount::move_mount(
            &tree,
            "",
            CWD,
            &place,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .at("move_mount", &place)?;
    }
    Ok(Stage {
        folder,
        overlay,
        binds,
    })
}

/// Stages the layers as `l0`, `l1`, ... and the folder that holds upper and work (they must share a mount) as `up`.
fn overlay_trees(
    overlay: &Overlay,
    idmap: IdMap,
    trees: &mut Vec<(OwnedFd, String, bool)>,
) -> Result<String, Fault> {
    let (Some(parent), Some(upper), true) = (
        overlay.upper.parent(),
        overlay.upper.file_name(),
        overlay.upper.parent() == overlay.work.parent(),
    ) else {
        return Err(Fault::refused(
            "stage overlay",
            &overlay.upper,
            "upper and work must be in the same folder",
        ));
    };
    let mode = fs::metadata(parent).at("stat", parent)?;
    if mode.uid() != idmap.host_id(0) && mode.mode() & 0o001 == 0 {
        return Err(Fault::refused(
            "stage overlay",
            parent,
            "the sandbox's root may not enter the folder of upper and work; chmod o+x or use Overlay::prepare",
        ));
    }
    owned_by_root(&overlay.upper, idmap)?;
    owned_by_root(&overlay.work, idmap)?;
    if overlay.lowers.is_empty() {
        return Err(Fault::refused(
            "stage overlay",
            &overlay.upper,
            "no lower layer",
        ));
    }
    let mut options = String::from("userxattr,lowerdir=");
    for (index, lower) in overlay.lowers.iter().enumerate() {
        let name = format!("l{index}");
        if index > 0 {
            options.push(':');
        }
        options.push_str(&name);
        trees.push((clone_tree(lower, false)?, name, true));
    }
    trees.push((clone_tree(parent, false)?, "up".into(), true));
    let work = overlay.work.file_name().unwrap_or_default();
    for (key, name) in [("upperdir", upper), ("workdir", work)] {
        let name = name
            .to_str()
            .filter(|name| !name.contains([',', ':', '\\']))
            .ok_or_else(|| {
                Fault::refused(
                    "stage overlay",
                    parent.join(name),
                    "the folder's name has a comma, colon or backslash",
                )
            })?;
        options.push_str(&[",", key, "=up/", name].concat());
    }
    if overlay.volatile {
        options.push_str(",volatile");
    }
    Ok(options)
}

fn owned_by_root(folder: &Path, idmap: IdMap) -> Result<(), Fault> {
    let owner = fs::metadata(folder).at("stat", folder)?.uid();
    if owner == idmap.host_id(0) {
        return Ok(());
    }
    let detail = format!(
        "owned by uid {owner}; a sandbox's root is uid {} here, so chown it",
        idmap.host_id(0)
    );
    Err(Fault::refused("check root", folder, detail))
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Fault> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, path, flags).at("open_tree", path)
}

/// `mount_setattr(2)` on a detached tree.
fn set_attributes(
    tree: &OwnedFd,
    set: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH
        | if user_namespace.is_none() {
            libc::AT_RECURSIVE
        } else {
            0
        };
    // SAFETY: the structure outlives the call and its real size is passed; the path is a valid empty C string.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
