//! Processes in namespaces of their own: bake steps and the local cloud's instances.
//!
//! Three processes make a sandbox. The **launcher** (worker or local cloud, many threads) re-executes the binary as a
//! **monitor**, which forks **process 1** into fresh user and PID namespaces; that one builds the mount, network, UTS,
//! IPC and cgroup namespaces around itself and starts (or becomes) the command. Faults travel back the same way and
//! name the failing call. Nothing of a sandbox outlives the monitor, and the monitor outlives neither the launcher nor
//! the command.
//!
//! ids: [`IdMap`](oast_daemon::isolate::IdMap); what it consists of: [`Spec`]; starting one: [`Launcher`].
//! There is no system call filter yet, and no limit on memory or processor time.

mod capability;
mod init;
mod inside;
mod launch;
mod loopback;
mod message;
mod monitor;
pub mod netns;
pub mod proxy;
mod spec;
mod stage;

pub use launch::{Finished, Launcher, Output, Sandbox, SandboxError};
pub use message::Exit;
pub use monitor::entry;
pub use oast_daemon::isolate::cgroup::{self, Cgroup};
pub use oast_daemon::isolate::{Fault, IdMap};
pub use spec::{
    Bind, DEFAULT_PATH, InitMode, LimitOf, Network, Overlay, Rlimit, Root, SecretFile, Spec, Tmpfs,
};
