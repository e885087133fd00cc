//! What a sandbox is made of, as data: the worker or the local cloud writes it, the sandbox's helpers read it.
//!
//! Paths on the left (`source`, `lowers`, `upper`) are the caller's; paths on the right (`target`, `cwd`) are inside.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use oast_daemon::isolate::cgroup::Cgroup;
use oast_daemon::isolate::{Fault, IdMap, Named};

/// One sandbox, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Host name inside, and the name in logs.
    pub hostname: String,
    pub root: Root,
    pub init: InitMode,
    /// Program and arguments. A program without a slash is looked up in `PATH` of [`Spec::env`].
    pub command: Vec<String>,
    /// The whole environment; nothing of the worker's own is inherited.
    pub env: BTreeMap<String, String>,
    pub cwd: PathBuf,
    /// Ids inside.
    pub uid: u32,
    pub gid: u32,
    pub network: Network,
    /// Addresses on the loopback device besides 127.0.0.1.
    pub addresses: Vec<Ipv4Addr>,
    pub binds: Vec<Bind>,
    pub tmpfs: Vec<Tmpfs>,
    pub secrets: Vec<SecretFile>,
    pub rlimits: Vec<Rlimit>,
    pub cgroup: Option<Cgroup>,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// This folder, read and written in place.
    Dir(PathBuf),
    /// Layers with everything written going to `upper`.
    Overlay(Overlay),
}

/// An overlay mounted inside the sandbox's user namespace (`userxattr`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Read-only layers, the top one first.
    pub lowers: Vec<PathBuf>,
    /// Owned by the mapped root; `work` is beside it in the same folder and empty.
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Leaves out every sync to disk: a crash of the machine loses the upper folder, which is right for steps (they
    /// start again from their parent layer) and makes package installation several times quicker. A volatile
    /// upper cannot be mounted as an upper twice, only used as a lower.
    pub volatile: bool,
}

impl Overlay {
    /// Makes `folder/upper` and `folder/work` as a sandbox needs them: owned by its root, in a folder it may enter.
    pub fn prepare(folder: &Path, lowers: Vec<PathBuf>, idmap: IdMap) -> Result<Self, Fault> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(folder)
            .at("mkdir", folder)?;
        let mode = std::fs::metadata(folder)
            .at("stat", folder)?
            .permissions()
            .mode();
        if mode & 0o011 != 0o011 {
            std::fs::set_permissions(folder, PermissionsExt::from_mode(mode & 0o7777 | 0o011))
                .at("chmod", folder)?;
        }
        let root = idmap.host_id(0);
        let [upper, work] = ["upper", "work"].map(|name| folder.join(name));
        for made in [&upper, &work] {
            match std::fs::DirBuilder::new().mode(0o755).create(made) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error).at("mkdir", made);
                }
                _ => std::os::unix::fs::chown(made, Some(root), Some(root)).at("chown", made)?,
            }
        }
        Ok(Self {
            lowers,
            upper,
            work,
            volatile: true,
        })
    }
}

/// Who is process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitMode {
    /// A small reaper of ours that starts the command and ends everything when the command ends. Capabilities are cut
    /// to what package scripts need.
    Ours,
    /// The command itself (an image's `/sbin/init`): gets `container=oast`, a console, `/run` and `/tmp` in memory, and
    /// the capabilities of a container manager's guest.
    Own,
}

/// What the sandbox can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Its own loopback device and nothing else.
    None,
    /// As `None`, with a listening socket at 127.0.0.1:3128 that is handed to the caller for [`super::proxy`].
    Proxy,
    /// The worker's own network. Needs the worker's permission.
    Host,
}

/// A folder or file of the host shown inside. Missing targets are created (and stay in an overlay's upper).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: PathBuf,
    pub target: PathBuf,
    pub writable: bool,
    /// Show owners as if they had been written inside: id 0 on disk is root inside. Without it only files owned by
    /// the sandbox's own range have names inside. Only matters (and only works) as real root.
    pub mapped: bool,
}

impl Bind {
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            writable: false,
            mapped: false,
        }
    }

    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            writable: true,
            mapped: false,
        }
    }

    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    pub target: PathBuf,
    pub mode: u32,
    pub size_bytes: u64,
}

/// A file that exists in the sandbox's memory only. Its folder must be on one of [`Spec::tmpfs`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    pub target: PathBuf,
    pub mode: u32,
    pub data: Vec<u8>,
}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile")
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

/// A limit of `setrlimit(2)`, soft and hard the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: LimitOf,
    pub value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitOf {
    OpenFiles,
    Processes,
    FileSize,
    CoreSize,
}

/// Where the environment's commands are looked for.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Room for temporary files in memory.
const SCRATCH_BYTES: u64 = 512 * 1024 * 1024;
const MAX_OPEN_FILES: u64 = 65_536;

impl Spec {
    /// A step: the command under our init with `/run` and `/tmp` in memory, no network, a small environment.
    pub fn step(root: Root, command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let env = [
            ("PATH", DEFAULT_PATH),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("TERM", "dumb"),
        ];
        Self {
            hostname: "oast".into(),
            root,
            init: InitMode::Ours,
            command: command.into_iter().map(Into::into).collect(),
            env: env.map(|(key, value)| (key.into(), value.into())).into(),
            cwd: PathBuf::from("/"),
            uid: 0,
            gid: 0,
            network: Network::None,
            addresses: Vec::new(),
            binds: Vec::new(),
            tmpfs: vec![
                Tmpfs {
                    target: "/run".into(),
                    mode: 0o755,
                    size_bytes: SCRATCH_BYTES,
                },
                Tmpfs {
                    target: "/tmp".into(),
                    mode: 0o1777,
                    size_bytes: SCRATCH_BYTES,
                },
            ],
            secrets: Vec::new(),
            rlimits: vec![
                Rlimit {
                    resource: LimitOf::OpenFiles,
                    value: MAX_OPEN_FILES,
                },
                Rlimit {
                    resource: LimitOf::CoreSize,
                    value: 0,
                },
            ],
            cgroup: None,
        }
    }

    /// An instance: the image's own init as process 1, in a control group of its own.
    pub fn instance(root: Root, hostname: impl Into<String>, cgroup: Cgroup) -> Self {
        let mut spec = Self::step(root, ["/sbin/init"]);
        spec.hostname = hostname.into();
        spec.init = InitMode::Own;
        spec.env = [
            ("container", "oast"),
            ("PATH", DEFAULT_PATH),
            ("TERM", "linux"),
        ]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
        spec.cgroup = Some(cgroup);
        spec
    }
}
