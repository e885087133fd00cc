//! The process inside: builds the sandbox around itself, then becomes or starts the command.
//!
//! Runs as a fork of the monitor in a fresh user and PID namespace, as process 1. Order matters here:
//! ids first (so that what is created belongs to the sandbox's root), then the other namespaces, then everything that
//! needs the host's root in view (staged folders, devices, `/proc`, which may only be mounted while a whole one is
//! visible) as detached mounts, then `pivot_root`, and only then the places inside, so that a symbolic link in the
//! image can never lead out of it.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use oast_daemon::isolate::proc;
use oast_daemon::isolate::{Fault, Named, wire};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use rustix::thread::UnshareFlags;

use super::capability;
use super::init;
use super::loopback;
use super::message::{FromInside, ToInside};
use super::proxy::PROXY_PORT;
use super::spec::{InitMode, Network, Root, Spec};
use super::stage::{self, Stage};

/// Device files that every program expects.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Where the kernel tells about the whole machine.
const MASKED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/proc/timer_list"];

/// Runs in the child; never returns.
pub(crate) fn run(spec: &Spec, monitor: OwnedFd) -> ! {
    let fault = match prepare(spec, monitor.as_fd()) {
        Ok(()) => match spec.init {
            InitMode::Ours => init::run(spec, monitor.as_fd()),
            InitMode::Own => init::become_command(spec),
        },
        Err(fault) => fault,
    };
    // If the monitor is gone there is nobody left to tell.
    let _ = wire::send(&monitor, &FromInside::Failed(fault), &[]);
    proc::exit(1)
}

/// Everything up to the moment when the command could be started.
fn prepare(spec: &Spec, monitor: BorrowedFd<'_>) -> Result<(), Fault> {
    let stage = match wire::recv::<ToInside>(monitor).named("receive from monitor")? {
        Some((ToInside::Go { stage }, _)) => stage,
        None => proc::exit(1),
    };
    become_root()?;
    proc::die_with_parent()?;
    // The monitor may have died before the line above; then its end of the socket is closed.
    if hung_up(monitor) {
        proc::exit(1);
    }
    let mut namespaces =
        UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC | UnshareFlags::NEWCGROUP;
    namespaces.set(UnshareFlags::NEWNET, spec.network != Network::Host);
    // SAFETY: none of these flags touches the descriptor table.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }
        .named("unshare mount, uts, ipc, cgroup, net namespaces")?;
    rustix::system::sethostname(spec.hostname.as_bytes()).named("sethostname")?;
    leave_session_keyring();
    network(spec, monitor)?;

    let sources = Sources::collect(spec, &stage)?;
    enter_root(spec, &stage)?;
    sources.place(spec)?;
    write_secrets(spec)?;
    if spec.init == InitMode::Own {
        console(monitor)?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

/// Takes id 0 of the sandbox: until here we were the monitor's user, which may have no name in this namespace.
fn become_root() -> Result<(), Fault> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[]).named("setgroups")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).named("setresgid 0")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).named("setresuid 0")
}

fn hung_up(socket: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Keys of the worker's session are not the sandbox's business. Kernels without keyrings refuse, which is as good.
fn leave_session_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for a new anonymous keyring; no memory is touched.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0, 0, 0, 0) };
}

fn network(spec: &Spec, monitor: BorrowedFd<'_>) -> Result<(), Fault> {
    if spec.network != Network::Host {
        loopback::up(&spec.addresses)?;
    }
    let namespace = rustix::fs::open(
        "/proc/self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at("open", "/proc/self/ns/net")?;
    let listener = match spec.network {
        Network::Proxy => {
            let address = format!("127.0.0.1:{PROXY_PORT}");
            Some(TcpListener::bind(&address).at("listen for the proxy on", &address)?)
        }
        Network::None | Network::Host => None,
    };
    let mut fds = vec![namespace.as_fd()];
    fds.extend(listener.as_ref().map(AsFd::as_fd));
    wire::send(monitor, &FromInside::Network, &fds).named("send to monitor")
}

/// Mounts taken while the host's root is in view, not attached anywhere yet.
struct Sources {
    proc: OwnedFd,
    sys: Option<OwnedFd>,
    cgroup: Option<OwnedFd>,
    devices: Vec<(&'static str, OwnedFd)>,
    masks: Vec<(&'static str, OwnedFd)>,
    resolver: Option<OwnedFd>,
    binds: Vec<(PathBuf, bool, OwnedFd)>,
}

impl Sources {
    fn collect(spec: &Spec, stage: &Stage) -> Result<Self, Fault> {
        let plain = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let proc = detached("proc", plain).map_err(|fault| {
            fault.hint("a container that hides parts of /proc forbids this: run it with --security-opt systempaths=unconfined")
        })?;
        // Without its own network namespace, or with parts of /sys hidden, there is no /sys to be had; few miss it.
        let sys = detached("sysfs", plain | MountAttrFlags::MOUNT_ATTR_RDONLY).ok();
        let cgroup = spec
            .cgroup
            .is_some()
            .then(|| detached("cgroup2", plain))
            .transpose()?;
        let devices = DEVICES
            .iter()
            .map(|name| Ok((*name, clone_tree(&Path::new("/dev").join(name))?)))
            .collect::<Result<_, Fault>>()?;
        let masked: &[&str] = if spec.init == InitMode::Ours {
            &MASKED
        } else {
            &[]
        };
        let masks = masked
            .iter()
            .filter(|path| Path::new(path).exists())
            .map(|path| Ok((*path, clone_tree(Path::new("/dev/null"))?)))
            .collect::<Result<_, Fault>>()?;
        let resolver = Path::new("/etc/resolv.conf");
        let resolver = match spec.network {
            Network::Host if resolver.exists() => Some(clone_tree(
                &resolver.canonicalize().at("resolve", resolver)?,
            )?),
            _ => None,
        };
        let binds = spec
            .binds
            .iter()
            .zip(&stage.binds)
            .map(|(bind, (name, is_folder))| {
                Ok((
                    bind.target.clone(),
                    *is_folder,
                    clone_tree(&stage.folder.join(name))?,
                ))
            })
            .collect::<Result<_, Fault>>()?;
        Ok(Self {
            proc,
            sys,
            cgroup,
            devices,
            masks,
            resolver,
            binds,
        })
    }

    /// Attaches everything inside. `/` is the sandbox's root by now.
    fn place(self, spec: &Spec) -> Result<(), Fault> {
        attach(&self.proc, Path::new("/proc"), true)?;
        match &self.sys {
            Some(sys) => attach(sys, Path::new("/sys"), true)?,
            None => tmpfs(Path::new("/sys"), "mode=0555,size=0", MountFlags::RDONLY)?,
        }
        if let Some(cgroup) = &self.cgroup {
            attach(cgroup, Path::new("/sys/fs/cgroup"), true)?;
        }
        device_folder()?;
        for (name, device) in &self.devices {
            attach(device, &Path::new("/dev").join(name), false)?;
        }
        for (path, null) in &self.masks {
            attach(null, Path::new(path), false)?;
        }
        for wanted in &spec.tmpfs {
            let options = format!("mode={:o},size={}", wanted.mode, wanted.size_bytes);
            tmpfs(&wanted.target, &options, MountFlags::empty())?;
        }
        if let Some(resolver) = &self.resolver {
            attach(resolver, Path::new("/etc/resolv.conf"), false)?;
        }
        for (target, is_folder, tree) in &self.binds {
            attach(tree, target, *is_folder)?;
        }
        Ok(())
    }
}

/// A new file system that is not attached yet.
fn detached(kind: &str, attributes: MountAttrFlags) -> Result<OwnedFd, Fault> {
    let call = format!("mount {kind}");
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).named(&call)?;
    rustix::mount::fsconfig_create(&context).named(&call)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).named(&call)
}

fn clone_tree(path: &Path) -> Result<OwnedFd, Fault> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags).at("open_tree", path)
}

fn attach(tree: &OwnedFd, target: &Path, is_folder: bool) -> Result<(), Fault> {
    exists(target, is_folder)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    rustix::mount::move_mount(tree, "", CWD, target, flags).at("move_mount", target)
}

fn tmpfs(target: &Path, options: &str, flags: MountFlags) -> Result<(), Fault> {
    exists(target, true)?;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount(
        "tmpfs",
        target,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV | flags,
        &*options,
    )
    .at("mount tmpfs", target)
}

/// Makes a place to mount on, if the image has none.
fn exists(target: &Path, is_folder: bool) -> Result<(), Fault> {
    if target.exists() {
        return Ok(());
    }
    let folder = if is_folder {
        Some(target)
    } else {
        target.parent()
    };
    if let Some(folder) = folder {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .at("mkdir in the sandbox", folder)?;
    }
    if !is_folder {
        fs::write(target, "").at("create in the sandbox", target)?;
    }
    Ok(())
}

/// Mounts the root and makes it `/`; the host's root is gone from view after this.
fn enter_root(spec: &Spec, stage: &Stage) -> Result<(), Fault> {
    let root = stage.folder.join(stage::ROOT);
    match &stage.overlay {
        Some(options) => {
            // The options name the layers relative to the staging folder.
            rustix::process::chdir(&stage.folder).at("chdir", &stage.folder)?;
            let data = std::ffi::CString::new(options.as_str()).unwrap_or_default();
            let shown = match &spec.root {
                Root::Overlay(overlay) => &overlay.upper,
                Root::Dir(dir) => dir,
            };
            rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), &*data)
                .at("mount overlay with upper", shown)
                .map_err(|fault| fault.hint("the kernel's log says more; the folder's file system must support user.* attributes"))?;
        }
        // A mount of our own over the staged one, which is locked in place.
        None => {
            let tree = clone_tree(&root)?;
            rustix::mount::move_mount(
                &tree,
                "",
                CWD,
                &root,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .at("move_mount", &root)?;
        }
    }
    rustix::process::chdir(&root).at("chdir", &root)?;
    // The old root ends up on top of the new one, from where it is detached without ever having a name inside.
    let old = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at("open", "/")?;
    rustix::process::pivot_root(".", ".").at("pivot_root", &root)?;
    rustix::process::fchdir(&old).named("fchdir to the old root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).named("umount the old root")?;
    rustix::process::chdir("/").at("chdir", "/")
}

fn device_folder() -> Result<(), Fault> {
    let dev = Path::new("/dev");
    exists(dev, true)?;
    rustix::mount::mount(
        "tmpfs",
        dev,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"mode=0755,size=64k",
    )
    .at("mount tmpfs", dev)?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        let link = dev.join(name);
        symlink(target, &link).at("symlink", &link)?;
    }
    let terminals = dev.join("pts");
    exists(&terminals, true)?;
    rustix::mount::mount(
        "devpts",
        &terminals,
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    )
    .at("mount devpts", &terminals)?;
    tmpfs(&dev.join("shm"), "mode=1777,size=64m", MountFlags::empty())
}

fn write_secrets(spec: &Spec) -> Result<(), Fault> {
    use std::io::Write;
    for secret in &spec.secrets {
        if !spec
            .tmpfs
            .iter()
            .any(|tmpfs| secret.target.starts_with(&tmpfs.target))
        {
            return Err(Fault::refused(
                "write secret",
                &secret.target,
                "not in a memory file system of this sandbox",
            ));
        }
        if let Some(folder) = secret.target.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .at("mkdir", folder)?;
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(secret.mode)
            .open(&secret.target)
            .and_then(|mut file| file.write_all(&secret.data))
            .at("write secret", &secret.target)?;
        let owner = (Some(spec.uid), Some(spec.gid));
        std::os::unix::fs::chown(&secret.target, owner.0, owner.1).at("chown", &secret.target)?;
    }
    Ok(())
}

/// Gives an image's init a terminal as `/dev/console` and as its standard streams; the monitor copies what it prints.
fn console(monitor: BorrowedFd<'_>) -> Result<(), Fault> {
    let ptmx = Path::new("/dev/pts/ptmx");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let controller = rustix::fs::open(ptmx, flags, Mode::empty()).at("open", ptmx)?;
    rustix::pty::unlockpt(&controller).at("unlock", ptmx)?;
    let name = rustix::pty::ptsname(&controller, Vec::new()).at("ptsname", ptmx)?;
    let name = PathBuf::from(name.to_string_lossy().into_owned());
    attach(&clone_tree(&name)?, Path::new("/dev/console"), false)?;
    let console =
        rustix::fs::open("/dev/console", flags, Mode::empty()).at("open", "/dev/console")?;
    wire::send(monitor, &FromInside::Console, &[controller.as_fd()]).named("send to monitor")?;
    for number in 0..=2 {
        proc::put_at(&console, number)?;
    }
    capability::drop_for(InitMode::Own)
}
