//! What the farm needs from a cloud that runs fleets: one trait, which the local cloud and Azure
//! both satisfy, and one suite that proves it (`conformance`).
//!
//! The shape is Azure's: sets of instances, etags that refuse a decision made on an old look, long
//! operations that answer at once and are seen to end by observing. Every mutating call carries an
//! operation id, so a repeat after a lost answer is harmless. Errors are sorted here, once; what a
//! cloud's own client says travels no further than its text.
//!
//! The trait decides nothing: which instance is replaced when is the leader's plan.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::BoxStream;

pub mod conformance;
pub mod local;

/// An image as a provider needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// Named lineage.
    pub name: String,
    /// Version within the lineage.
    pub version: String,
    /// Digests of the layer manifests, base first. Clouds that boot disks ignore them.
    pub layers: Vec<String>,
    /// How many leading layers are the base system.
    pub base_layers: usize,
}

/// How an instance's health is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Path of an HTTP GET; empty means that a TCP connection is enough.
    pub path: String,
    /// Expected status.
    pub status: u16,
    /// Time between checks.
    pub interval: Duration,
    /// Time until a check without an answer has failed.
    pub timeout: Duration,
    /// Consecutive successes until healthy.
    pub healthy_after: u32,
    /// Consecutive failures until unhealthy.
    pub unhealthy_after: u32,
}

/// A scale set as the farm wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name, unique in the cloud.
    pub name: String,
    /// The fleet it belongs to.
    pub fleet: String,
    /// Where clients reach it.
    pub listen: SocketAddr,
    /// TCP port on which an instance serves.
    pub service_port: u16,
    /// How health is asked.
    pub health: HealthCheck,
    /// Time after which a draining instance's connections are closed.
    pub drain_timeout: Duration,
    /// The set's model: what scale-out and repair may use. Stays on the last good version.
    pub model: Option<ImageRef>,
    /// Owner tags.
    pub tags: BTreeMap<String, String>,
}

/// Where an instance is on the way to what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Being made, replaced or restarted.
    Creating,
    /// Started.
    Running,
    /// Ended by itself.
    Stopped,
    /// Could not be started.
    Failed,
    /// Going away.
    Deleting,
}

/// What the provider's health check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not decided yet.
    Initializing,
    /// Good.
    Healthy,
    /// Bad.
    Unhealthy,
}

/// One instance as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceObservation {
    /// Its set.
    pub set: String,
    /// Its id in the set.
    pub id: String,
    /// Changes with each accepted operation.
    pub etag: String,
    /// What it runs, or is being moved to while the phase says so.
    pub image: ImageRef,
    /// Where it is.
    pub phase: Phase,
    /// How it is.
    pub health: Health,
    /// Why it is not running or not healthy; how it was started otherwise.
    pub note: String,
    /// Gets no new connections.
    pub draining: bool,
    /// Draining and without connections.
    pub drained: bool,
    /// Connections through the balancer.
    pub connections: u32,
    /// Reaches it without the balancer.
    pub direct: Option<SocketAddr>,
    /// Reimages accepted since it was created.
    pub replaced: u32,
}

impl InstanceObservation {
    /// Whether clients are sent there.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Running && self.health == Health::Healthy && !self.draining
    }
}

/// One set as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetObservation {
    /// Its name.
    pub name: String,
    /// Changes with each accepted operation on the set.
    pub etag: String,
    /// Where clients reach it.
    pub address: Option<SocketAddr>,
    /// The set's model.
    pub model: Option<ImageRef>,
    /// What is wrong with the set itself.
    pub problem: Option<String>,
    /// Its instances.
    pub instances: Vec<InstanceObservation>,
}

/// A fleet as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FleetObservation {
    /// Its sets, by name.
    pub sets: Vec<SetObservation>,
}

impl FleetObservation {
    /// The instance of that set and id.
    #[must_use]
    pub fn instance(&self, set: &str, id: &str) -> Option<&InstanceObservation> {
        let set = self.sets.iter().find(|s| s.name == set)?;
        set.instances.iter().find(|i| i.id == id)
    }
}

/// One instance, and the operation on it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Makes a repeat harmless: the same for the same intent, never reused for another.
    pub operation_id: String,
    /// The caller's lease token, for the record.
    pub caller_token: String,
    /// The set.
    pub set: String,
    /// The instance.
    pub id: String,
    /// The etag that was decided on; none for "whatever it is".
    pub if_match: Option<String>,
}

/// Why a call did not work, sorted by what a caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Too many calls: again, not before this has passed.
    Throttled {
        /// How long to wait.
        retry_after: Duration,
    },
    /// Nobody is to blame: again later.
    Transient,
    /// It is not there.
    NotFound,
    /// It changed since the caller looked, or exists already: look again.
    Conflict {
        /// The etag now, where the cloud said it.
        current: Option<String>,
    },
    /// A limit of the cloud is reached: somebody must raise it or use less.
    Quota,
    /// We may not.
    Denied,
    /// The same call will never work.
    Permanent,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {reason}")]
pub struct ProviderError {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// What was tried, on what.
    pub doing: String,
    /// What the cloud said.
    pub reason: String,
}

/// A cloud that runs fleets.
#[tonic::async_trait]
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// Everything of a fleet, now. A fleet without sets is an empty observation.
    async fn observe(&self, fleet: &str) -> Result<FleetObservation, ProviderError>;

    /// The fleet at once and again after each change. States in between may be skipped, the
    /// newest is not. An error is an item, after which the stream goes on trying.
    fn watch(&self, fleet: &str) -> BoxStream<'static, Result<FleetObservation, ProviderError>>;

    /// Makes the set or brings its settings to `spec`; does nothing when they are that already.
    async fn ensure_set(
        &self,
        operation_id: &str,
        spec: &SetSpec,
    ) -> Result<SetObservation, ProviderError>;

    /// Deletes the set with its instances; absent is success.
    async fn delete_set(&self, operation_id: &str, set: &str) -> Result<(), ProviderError>;

    /// Begins to create an instance.
    async fn create(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError>;

    /// Begins to replace an instance's root.
    async fn reimage(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError>;

    /// Begins to boot an instance anew from the image it has.
    async fn restart(&self, target: &Target) -> Result<InstanceObservation, ProviderError>;

    /// Begins to delete an instance; absent is success.
    async fn delete(&self, target: &Target) -> Result<(), ProviderError>;

    /// Takes an instance out of rotation; `drained` says when its last connection has ended.
    async fn drain(&self, target: &Target) -> Result<InstanceObservation, ProviderError>;

    /// Puts it back.
    async fn undrain(&self, target: &Target) -> Result<InstanceObservation, ProviderError>;

    /// Brings an image near before instances need it.
    async fn prefetch(&self, image: &ImageRef) -> Result<(), ProviderError>;
}
