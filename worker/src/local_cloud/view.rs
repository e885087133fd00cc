//! What the local cloud shows: records and what is seen at run time, as one value per set.

use std::net::SocketAddr;

use super::backend::Health;
use super::balancer::Counts;
use super::record::{Etag, InstanceRecord};
use super::runtime::BootMode;
use super::spec::SetSpec;

/// Where an instance is on the way to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its first boot is on the way.
    Creating,
    /// The boot that was asked for runs.
    Running,
    /// A boot of another image is on the way.
    Reimaging,
    /// A boot of the same image is on the way.
    Restarting,
    /// The main process ended by itself.
    Stopped,
    /// The boot could not be started.
    Failed,
    /// It is going away.
    Deleting,
}

/// One instance.
#[derive(Clone, Debug)]
pub struct InstanceView {
    /// What was asked, and the history of it.
    pub record: InstanceRecord,
    /// Grows with each change of anything.
    pub revision: u64,
    /// Where it is.
    pub phase: Phase,
    /// What the health check says.
    pub health: Health,
    /// Why it is stopped, failed or unhealthy.
    pub reason: String,
    /// Draining and without connections.
    pub drained: bool,
    /// Connections through the balancer.
    pub connections: u32,
    /// Reaches it without the balancer.
    pub direct: Option<SocketAddr>,
    /// How its services run.
    pub mode: Option<BootMode>,
    /// Boots started since this process came up.
    pub starts: u32,
}

/// One set with its instances, in the order of their ids.
#[derive(Clone, Debug)]
pub struct SetView {
    /// What was asked.
    pub spec: SetSpec,
    /// Changes with each accepted operation on the set.
    pub etag: Etag,
    /// Where the balancer listens.
    pub address: Option<SocketAddr>,
    /// Why it does not.
    pub listen_error: String,
    /// What the balancer counted.
    pub counts: Counts,
    /// The instances.
    pub instances: Vec<InstanceView>,
}
