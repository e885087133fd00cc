//! A cloud as bad as real ones: it knows no tokens, takes calls however late they come, and protects
//! itself by etags and operation ids alone.
//!
//! The rules are those of the local cloud (`worker/src/local_cloud/record.rs`): an operation id that
//! was accepted before changes nothing, an etag that no longer matches refuses, every accepted
//! operation makes a new etag. What was accepted is written down for the checkers.

use std::collections::{BTreeMap, VecDeque};

use oast_model::digest::Digest;
use oast_model::fleet::VersionRef;
use oast_model::ids::{TaskId, Token};
use oast_model::names::{FleetName, InstanceName};

use crate::queue::{MS, Micros};
use crate::rng::Rng;

/// Operation ids remembered per instance.
const OPERATIONS_MAX: usize = 64;
/// Time from a start to the first good health check.
const HEALTHY_AFTER: Micros = 120 * MS;

/// How good an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// It serves.
    Good,
    /// It never becomes healthy.
    Sick,
    /// It is healthy, but its gate is shut.
    Shut,
}

impl Quality {
    /// The disk of an image of this quality.
    pub fn disk(self) -> Digest {
        Digest::of(match self {
            Quality::Good => b"good disk",
            Quality::Sick => b"sick disk",
            Quality::Shut => b"shut disk",
        })
    }

    /// The quality of a disk.
    pub fn of(disk: &Digest) -> Quality {
        [Quality::Sick, Quality::Shut]
            .into_iter()
            .find(|quality| quality.disk() == *disk)
            .unwrap_or(Quality::Good)
    }
}

/// What a call wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Make the instance.
    Create(VersionRef, Quality),
    /// Replace its root.
    Reimage(VersionRef, Quality),
    /// Boot it anew.
    Restart,
    /// No new connections.
    Drain,
    /// Connections again.
    Undrain,
}

/// One call. The token is for the record: nobody here looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Makes a repeat harmless.
    pub operation: String,
    /// Under which lease it was made.
    pub token: Token,
    /// For which task.
    pub task: TaskId,
    /// The fleet.
    pub fleet: FleetName,
    /// The instance.
    pub instance: InstanceName,
    /// The etag that was decided on.
    pub if_match: Option<u64>,
    /// What it wants.
    pub verb: Verb,
}

/// Why a call changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It changed since the caller looked, or exists already.
    Conflict,
    /// It is not there.
    NotFound,
    /// Nobody is to blame: again later.
    Transient,
}

/// A call that changed something.
#[derive(Clone, Debug)]
pub struct Effect {
    /// When.
    pub at: Micros,
    /// What.
    pub call: Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating { until: Micros },
    Stopped,
}

#[derive(Clone, Debug)]
struct Instance {
    etag: u64,
    version: VersionRef,
    quality: Quality,
    phase: Phase,
    /// Draining, and when the last connection ends.
    draining: Option<Micros>,
    replaced: u32,
    operations: VecDeque<String>,
}

/// One instance as somebody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: InstanceName,
    /// Changes with each accepted operation.
    pub etag: u64,
    /// What it runs or is moved to.
    pub version: VersionRef,
    /// Being made or replaced.
    pub creating: bool,
    /// Started.
    pub running: bool,
    /// Its health check passes.
    pub healthy: bool,
    /// Its gate is open, when asked directly.
    pub gate_open: bool,
    /// Gets no new connections.
    pub draining: bool,
    /// Draining and without connections.
    pub drained: bool,
    /// Reimages since it was made.
    pub replaced: u32,
}

impl Seen {
    /// Whether clients are sent there.
    pub fn serves(&self) -> bool {
        self.running && self.healthy && !self.draining
    }
}

/// The cloud.
#[derive(Debug)]
pub struct Cloud {
    instances: BTreeMap<(FleetName, InstanceName), Instance>,
    effects: Vec<Effect>,
    rng: Rng,
}

impl Cloud {
    /// An empty cloud.
    pub fn new(rng: Rng) -> Cloud {
        Cloud {
            instances: BTreeMap::new(),
            effects: Vec::new(),
            rng,
        }
    }

    /// What was accepted, in order.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    fn view(name: &InstanceName, instance: &Instance, now: Micros) -> Seen {
        let running_since = match instance.phase {
            Phase::Creating { until } if until <= now => Some(until),
            _ => None,
        };
        let up = running_since.is_some_and(|since| since + HEALTHY_AFTER <= now);
        Seen {
            name: name.clone(),
            etag: instance.etag,
            version: instance.version.clone(),
            creating: matches!(instance.phase, Phase::Creating { until } if until > now),
            running: running_since.is_some(),
            healthy: up && instance.quality != Quality::Sick,
            gate_open: up && instance.quality == Quality::Good,
            draining: instance.draining.is_some(),
            drained: instance.draining.is_some_and(|until| until <= now),
            replaced: instance.replaced,
        }
    }

    /// A fleet's instances as they are now.
    pub fn look(&self, fleet: &FleetName, now: Micros) -> Vec<Seen> {
        self.instances
            .iter()
            .filter(|((of, _), _)| of == fleet)
            .map(|((_, name), instance)| Cloud::view(name, instance, now))
            .collect()
    }

    /// One instance as it is now.
    pub fn instance(&self, fleet: &FleetName, name: &InstanceName, now: Micros) -> Option<Seen> {
        let instance = self.instances.get(&(fleet.clone(), name.clone()))?;
        Some(Cloud::view(name, instance, now))
    }

    /// Takes a call.
    ///
    /// # Errors
    /// [`Refusal`]; nothing changed.
    pub fn take(&mut self, call: &Call, now: Micros) -> Result<Seen, Refusal> {
        let key = (call.fleet.clone(), call.instance.clone());
        let boot = now + self.rng.range(50, 400) * MS;
        let drained = now + self.rng.range(10, 600) * MS;
        let Some(instance) = self.instances.get_mut(&key) else {
            let Verb::Create(version, quality) = &call.verb else {
                return Err(Refusal::NotFound);
            };
            let instance = Instance {
                etag: 1,
                version: version.clone(),
                quality: *quality,
                phase: Phase::Creating { until: boot },
                draining: None,
                replaced: 0,
                operations: VecDeque::from([call.operation.clone()]),
            };
            let seen = Cloud::view(&call.instance, &instance, now);
            self.instances.insert(key, instance);
            self.note(call, now);
            return Ok(seen);
        };
        if instance.operations.contains(&call.operation) {
            return Ok(Cloud::view(&call.instance, instance, now));
        }
        if matches!(call.verb, Verb::Create(..))
            || call.if_match.is_some_and(|etag| etag != instance.etag)
        {
            return Err(Refusal::Conflict);
        }
        match &call.verb {
            Verb::Reimage(version, quality) => {
                instance.version = version.clone();
                instance.quality = *quality;
                instance.replaced += 1;
                instance.phase = Phase::Creating { until: boot };
            }
            Verb::Restart => instance.phase = Phase::Creating { until: boot },
            Verb::Drain => instance.draining = Some(drained),
            Verb::Undrain => instance.draining = None,
            Verb::Create(..) => {}
        }
        instance.etag += 1;
        if instance.operations.len() == OPERATIONS_MAX {
            instance.operations.pop_front();
        }
        instance.operations.push_back(call.operation.clone());
        let seen = Cloud::view(&call.instance, instance, now);
        self.note(call, now);
        Ok(seen)
    }

    fn note(&mut self, call: &Call, now: Micros) {
        self.effects.push(Effect {
            at: now,
            call: call.clone(),
        });
    }

    /// Some running instance of one of these fleets stops by itself. None when there is none.
    pub fn crash_one(
        &mut self,
        now: Micros,
        of: impl Fn(&FleetName) -> bool,
    ) -> Option<(FleetName, InstanceName)> {
        let running: Vec<_> = self
            .instances
            .iter()
            .filter(|((fleet, name), instance)| {
                of(fleet) && Cloud::view(name, instance, now).running
            })
            .map(|(key, _)| key.clone())
            .collect();
        if running.is_empty() {
            return None;
        }
        let key = self.rng.pick(&running).clone();
        let instance = self.instances.get_mut(&key)?;
        instance.phase = Phase::Stopped;
        Some(key)
    }
}
