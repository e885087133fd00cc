//! What the three processes of a sandbox say to each other (see [`super`] for who is who).

use serde::{Deserialize, Serialize};

use oast_daemon::isolate::{Fault, IdMap};

use super::spec::Spec;
use super::stage::Stage;

/// The first thing the monitor gets, as a memory file on [`ToMonitor::Begin`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub spec: Spec,
    pub idmap: IdMap,
}

/// Launcher to monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToMonitor {
    Begin,
    /// Sends a signal to process 1 inside; our init passes it on to the command.
    Signal(i32),
    Kill,
}

/// Monitor to launcher.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromMonitor {
    /// The command runs. Carries the network namespace, then the proxy's listening socket if there is one.
    Started {
        init_pid: i32,
    },
    Failed(Fault),
    Ended(Exit),
}

/// Monitor to the process inside.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInside {
    /// The id map is written and the sources are staged.
    Go { stage: Stage },
}

/// The process inside to its monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInside {
    /// Carries the network namespace, then the proxy's listening socket if there is one.
    Network,
    /// The console's other end, before the image's init takes over.
    Console,
    /// Our init has started the command.
    Started,
    Failed(Fault),
    Ended(Exit),
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

impl Exit {
    pub const fn success(self) -> bool {
        matches!(self, Self::Code(0))
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}
