//! What runs: versions on instances, as a provider shows them.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::ids::RolloutId;
use crate::names::{ImageName, InstanceName};
use crate::pipeline::{Gate, HttpCheck};
use crate::resource;

/// An image version by name and number, written `web:3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionRef {
    /// The lineage.
    pub image: ImageName,
    /// Counts from 1 in the lineage.
    pub number: u32,
}

impl fmt::Display for VersionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.image, self.number)
    }
}

/// A text that names no image version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no image version; one looks like web:3")]
pub struct ParseVersionError(String);

impl FromStr for VersionRef {
    type Err = ParseVersionError;

    fn from_str(text: &str) -> Result<VersionRef, ParseVersionError> {
        let error = || ParseVersionError(text.into());
        let (image, number) = text.split_once(':').ok_or_else(error)?;
        Ok(VersionRef {
            image: ImageName::new(image).map_err(|_| error())?,
            number: number.parse().map_err(|_| error())?,
        })
    }
}

/// What an instance needs in order to run a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployImage {
    /// Which version.
    pub version: VersionRef,
    /// Layer manifests in the artifact store, the base first.
    pub layers: Vec<Digest>,
    /// The raw disk's chunk manifest.
    pub disk: Digest,
}

/// What an instance does, as its provider says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Being made or replaced.
    Creating,
    /// Started.
    Running,
    /// Ended by itself or by a crash.
    Stopped,
    /// Could not be made.
    Failed,
}

/// One instance, as its provider shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Unique in the fleet.
    pub name: InstanceName,
    /// What it runs; judged by its image, never by a flag.
    pub version: Option<VersionRef>,
    /// What it does.
    pub state: InstanceState,
    /// Its health check passes.
    pub healthy: bool,
    /// The load balancer sends it new connections.
    pub in_rotation: bool,
    /// Reaches it without the load balancer.
    pub direct: Option<SocketAddr>,
    /// How often its disk was replaced.
    pub replaced: u32,
    /// How it was started, or why it is not running.
    pub note: String,
}

impl InstanceView {
    /// Serves, or could within a moment.
    pub fn available(&self) -> bool {
        self.state == InstanceState::Running && self.healthy && self.in_rotation
    }
}

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateOutcome {
    /// Good.
    Open,
    /// Not known. Is not Open.
    Unknown,
    /// Bad.
    Shut,
}

/// One evaluation of a gate, with what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateReading {
    /// Place of the gate in the rollout's policy.
    pub gate: u16,
    /// The instance that was asked, for gates that ask instances.
    pub instance: Option<InstanceName>,
    /// What it says.
    pub outcome: GateOutcome,
    /// What was seen, in a few words.
    pub measured: String,
}

/// A fleet as a worker's provider sees it now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// Every instance that exists, by name.
    pub instances: Vec<InstanceView>,
    /// Readings for the batch that [`Watch::probe`] names, newest evaluation only.
    pub readings: Vec<GateReading>,
    /// The batch that [`Watch::probe`] named when this look began, for which the readings
    /// are. Proves that the look is younger than the batch's end.
    pub probed: Option<(RolloutId, u32)>,
    /// Set when the provider could not be asked; the rest is then empty and says nothing.
    pub error: Option<String>,
}

impl Observation {
    /// The instance of that name.
    pub fn instance(&self, name: &InstanceName) -> Option<&InstanceView> {
        self.instances
            .iter()
            .find(|instance| instance.name == *name)
    }
}

/// What a worker shall observe of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The fleet as it was declared.
    pub fleet: resource::Fleet,
    /// The batch that soaks now, if one does.
    pub probe: Option<Probe>,
}

/// Gates to evaluate for a batch that soaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The rollout.
    pub rollout: RolloutId,
    /// Its batch.
    pub batch: u32,
    /// The batch's instances.
    pub instances: Vec<InstanceName>,
    /// The policy's gates, in order.
    pub gates: Vec<Gate>,
}

impl Probe {
    /// The gates that ask an instance a page.
    pub fn http_gates(&self) -> impl Iterator<Item = (u16, &HttpCheck)> {
        http_gates(&self.gates)
    }
}

/// The gates of a policy that ask an instance a page, with their places.
pub fn http_gates(gates: &[Gate]) -> impl Iterator<Item = (u16, &HttpCheck)> {
    gates
        .iter()
        .zip(0..)
        .filter_map(|(gate, place)| match gate {
            Gate::Http(check) => Some((place, check)),
            Gate::Prometheus(_) => None,
        })
}
