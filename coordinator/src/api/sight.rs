//! What only the leader knows and nobody writes down: who is connected, what instances do.

use std::time::Duration;

use oast_model::fleet::Observation;
use oast_model::names::FleetName;
use oast_model::schedule::{Rules, Session};
use oast_model::time::Timestamp;

/// A worker that is connected to this leader.
#[derive(Clone, Debug)]
pub struct WorkerSight {
    /// What it can do.
    pub session: Session,
    /// Its binary's version.
    pub version: String,
    /// Since when.
    pub connected_at: Timestamp,
    /// How long ago it last said something.
    pub silent: Duration,
}

/// The memory of a leader's term. Empty on every other member.
pub trait LeaderSight: Send + Sync + 'static {
    /// Connected workers, by name.
    fn workers(&self) -> Vec<WorkerSight>;
    /// What a provider shows of a fleet, while a worker watches it.
    fn observation(&self, fleet: &FleetName) -> Option<Observation>;
    /// What the reconciler waits for or does.
    fn note(&self, fleet: &FleetName) -> Option<String>;
    /// Connected workers as the scheduler sees them.
    fn sessions(&self) -> Vec<Session>;
    /// What operators decide about scheduling.
    fn rules(&self) -> Rules {
        Rules::default()
    }
}
