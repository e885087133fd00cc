//! What a task needs of a worker. Tasks of one class can be done by the same workers, so that
//! the scheduler asks once for a class and not once for a task.

use std::fmt;

use crate::ledger::Ledger;
use crate::names::RegionName;
use crate::pipeline::Arch;
use crate::resource::Provider;
use crate::task::{Task, TaskKind, TaskOwner};

/// Number of kinds of task.
pub const KINDS: usize = 5;

/// A kind of task without its details: a worker's capability, and a dimension of a team's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Commit to tree.
    Source,
    /// Steps to image.
    Bake,
    /// The image is tried.
    Test,
    /// The image is copied.
    Publish,
    /// Instances are replaced or restarted.
    Batch,
}

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Kind; KINDS] = [
        Kind::Source,
        Kind::Bake,
        Kind::Test,
        Kind::Publish,
        Kind::Batch,
    ];

    /// The kind of a task.
    pub const fn of(kind: &TaskKind) -> Kind {
        match kind {
            TaskKind::Source => Kind::Source,
            TaskKind::Bake => Kind::Bake,
            TaskKind::Test => Kind::Test,
            TaskKind::Publish(_) => Kind::Publish,
            TaskKind::Batch(_) => Kind::Batch,
        }
    }

    /// The worker's capability.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Source => "source",
            Kind::Bake => "bake",
            Kind::Test => "test",
            Kind::Publish => "publish",
            Kind::Batch => "batch",
        }
    }

    /// Its place among [`Kind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// What a task needs of a worker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// The capability.
    pub kind: Kind,
    /// The architecture that it bakes for or boots.
    pub arch: Option<Arch>,
    /// Who runs the instances that it touches.
    pub provider: Option<Provider>,
    /// The region that the worker must stand in.
    pub region: Option<RegionName>,
}

impl Class {
    /// The class of a task as its owner is declared now.
    pub fn of(ledger: &Ledger, task: &Task) -> Class {
        let arch = match (&task.kind, &task.owner) {
            (TaskKind::Bake | TaskKind::Test, TaskOwner::Run(run)) => ledger
                .runs()
                .get(run)
                .and_then(|run| run.pipeline.as_ref())
                .map(|pipeline| pipeline.bake.arch),
            _ => None,
        };
        let provider = match &task.kind {
            TaskKind::Batch(order) => ledger
                .fleets()
                .get(&order.fleet)
                .map(|fleet| fleet.spec.provider),
            _ => None,
        };
        let region = match &task.kind {
            TaskKind::Publish(region) => region.clone(),
            _ => None,
        };
        Class {
            kind: Kind::of(&task.kind),
            arch,
            provider,
            region,
        }
    }
}

/// Reads after "no connected worker can".
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.arch, &self.provider, &self.region) {
            (Some(arch), ..) => write!(f, "{} for {}", self.kind.as_str(), arch.as_str()),
            (_, Some(provider), _) => write!(f, "reach the provider `{}`", provider.as_str()),
            (_, _, Some(region)) => write!(f, "{} to region `{region}`", self.kind.as_str()),
            _ => write!(f, "do a {} task", self.kind.as_str()),
        }
    }
}
