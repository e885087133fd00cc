//! One instance of a batch, from what it is to what it shall be.

use std::time::Duration;

use oast_daemon::clock::timeout;
use oast_model::fleet::{GateOutcome, GateReading, VersionRef, http_gates};
use oast_model::names::InstanceName;
use oast_model::task::{BatchAction, BatchInstance};

use super::{Refused, Work};
use crate::fleet::{Place, version_of};
use crate::probe::{self, Subject};
use crate::provider::{Health, InstanceObservation, Phase, Target};
use crate::runner::Halt;

/// How often the cloud may be found changed under our hands before we give up.
const LOOKS_MAX: u32 = 20;
/// Time beyond the drain time-out until an instance is replaced although connections remain.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// Pause between two readings of a gate that is not open.
const GATE_PAUSE: Duration = Duration::from_millis(50);
/// Bad answers in a row that shut a gate: one could be a service that is just starting.
const SHUT_AFTER: u32 = 2;
/// Time for an undrained, healthy instance to get into rotation.
const ADMIT_MAX: Duration = Duration::from_secs(10);

/// What is known and done about one instance.
pub(super) struct Replacement<'w, 'a> {
    work: &'w Work<'a>,
    name: &'w InstanceName,
    place: Place,
    /// What it ran when this attempt first looked.
    before: Option<VersionRef>,
    /// Our change was accepted: the etag from before it, so that older looks are told apart.
    acted_on: Option<Option<String>>,
}

/// It did not become good; in one sentence why.
enum Bad {
    Because(String),
    Halt(Halt),
}

impl From<Halt> for Bad {
    fn from(halt: Halt) -> Bad {
        Bad::Halt(halt)
    }
}

impl<'w, 'a> Replacement<'w, 'a> {
    pub(super) fn new(work: &'w Work<'a>, name: &'w InstanceName, place: Place) -> Self {
        Replacement {
            work,
            name,
            place,
            before: None,
            acted_on: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<(BatchInstance, Vec<GateReading>), Halt> {
        self.before = self.look().and_then(|seen| version_of(&seen.image));
        let mut readings = Vec::new();
        let (good, note) = match self.bring(&mut readings).await {
            Ok(note) => (true, note),
            Err(Bad::Because(note)) => (false, note),
            Err(Bad::Halt(halt)) => return Err(halt),
        };
        self.say(&note);
        let instance = BatchInstance {
            name: self.name.clone(),
            before: self.before,
            good,
            note,
        };
        Ok((instance, readings))
    }

    async fn bring(&mut self, readings: &mut Vec<GateReading>) -> Result<String, Bad> {
        self.change().await?;
        let healthy = self.until_healthy().await?;
        self.gates(&healthy, readings).await?;
        self.admit(&healthy).await?;
        Ok(match (&self.work.batch.image, &self.acted_on) {
            (Some(image), Some(_)) => format!("runs {} and serves", image.version),
            (Some(image), None) => format!("ran {} already and serves", image.version),
            (None, _) => "started again and serves".to_owned(),
        })
    }

    /// The newest observation.
    fn look(&self) -> Option<InstanceObservation> {
        let seen = self.work.seen.borrow();
        let fleet = seen.as_ref()?;
        fleet.instance(&self.place.set, &self.place.id).cloned()
    }

    /// Waits until the newest observation is as wanted. None when it never was in that time.
    async fn until(
        &self,
        limit: Duration,
        wanted: impl Fn(Option<&InstanceObservation>) -> bool,
    ) -> Option<Option<InstanceObservation>> {
        let mut seen = self.work.seen.clone();
        let Place { set, id } = &self.place;
        let waiting = seen.wait_for(|fleet| {
            fleet
                .as_ref()
                .is_some_and(|fleet| wanted(fleet.instance(set, id)))
        });
        match timeout(&*self.work.executor.clock, limit, waiting).await {
            // Copied under the lock: a later state could be another one.
            Ok(Ok(fleet)) => Some(
                fleet
                    .as_ref()
                    .and_then(|fleet| fleet.instance(set, id).cloned()),
            ),
            _ => None,
        }
    }

    fn target(&self, verb: &str, if_match: Option<String>) -> Target {
        Target {
            operation_id: format!("{}.{}.{verb}", self.work.attempt.task, self.name),
            caller_token: self.work.attempt.lease.token.to_string(),
            set: self.place.set.clone(),
            id: self.place.id.clone(),
            if_match,
        }
    }

    fn say(&self, text: &str) {
        self.work
            .attempt
            .log
            .engine(0, format!("{}: {text}", self.name));
    }

    /// Makes the change that the order asks for, unless it is made already.
    async fn change(&mut self) -> Result<(), Bad> {
        for _ in 0..LOOKS_MAX {
            let seen = self.look();
            if self.is_changed(seen.as_ref()) {
                return Ok(());
            }
            match self.step(seen).await {
                Ok(()) => return Ok(()),
                Err(Refused::Look(reason)) => {
                    self.say(&format!("changed meanwhile, looking again: {reason}"));
                    // What the stream shows next is younger than the refusal, or the refused
                    // call is repeated and refused again.
                    self.work.executor.clock.sleep(GATE_PAUSE).await;
                }
                Err(Refused::Never(reason)) => return Err(Bad::Because(reason)),
                Err(Refused::Halt(halt)) => return Err(Bad::Halt(halt)),
            }
        }
        Err(Halt::errored(format!("instance {} does not hold still", self.name)).into())
    }

    /// Nothing is left to be replaced, though it may still be on its way.
    fn is_changed(&self, seen: Option<&InstanceObservation>) -> bool {
        if self.acted_on.is_some() {
            return true;
        }
        let (Some(seen), Some(image)) = (seen, &self.work.image) else {
            return false;
        };
        let alive = matches!(seen.phase, Phase::Running | Phase::Creating);
        alive && seen.image == *image
    }

    async fn step(&mut self, seen: Option<InstanceObservation>) -> Result<(), Refused> {
        let provider = &self.work.executor.provider;
        let Some(seen) = seen else {
            let Some(image) = &self.work.image else {
                return Err(Refused::Never("it does not exist".to_owned()));
            };
            self.say("create");
            let target = self.target("create", None);
            let made = self.work.call(|| provider.create(&target, image)).await?;
            self.acted_on = Some(None);
            if !self.work.batch.gates.is_empty() {
                // Kept out of rotation until its gates have been read. With the etag: a call that
                // arrives after a later attempt has admitted the instance must not take it out again.
                let target = self.target("hold", Some(made.etag));
                self.work.call(|| provider.drain(&target)).await?;
                // Later looks must not take the moment before for "in rotation".
                self.until(ADMIT_MAX, |seen| seen.is_none_or(|seen| seen.draining))
                    .await;
            }
            return Ok(());
        };
        let etag = if seen.phase == Phase::Running {
            self.drain(&seen).await?
        } else {
            seen.etag
        };
        let if_match = Some(etag.clone());
        match (&self.work.batch.order.action, &self.work.image) {
            (BatchAction::Deploy(version), Some(image)) => {
                self.say(&format!("replace by {version}"));
                let target = self.target("reimage", if_match);
                let now = self.work.call(|| provider.reimage(&target, image)).await?;
                // A repeated operation changes nothing, and then every look is young enough.
                self.acted_on = Some(Some(etag).filter(|etag| *etag != now.etag));
            }
            (BatchAction::Restart, _) => {
                self.say("start again");
                let target = self.target("restart", if_match);
                let now = self.work.call(|| provider.restart(&target)).await?;
                self.acted_on = Some(Some(etag).filter(|etag| *etag != now.etag));
            }
            (BatchAction::Deploy(version), None) => {
                return Err(Refused::Never(format!("{version} came without its layers")));
            }
        }
        Ok(())
    }

    /// Takes the instance out of rotation and waits until its connections have ended. Returns
    /// the etag to decide on.
    async fn drain(&self, seen: &InstanceObservation) -> Result<String, Refused> {
        let mut etag = seen.etag.clone();
        if !seen.draining {
            self.say("drain");
            let target = self.target("drain", Some(etag));
            let provider = &self.work.executor.provider;
            let now = self.work.call(|| provider.drain(&target)).await?;
            etag = now.etag;
        }
        let limit = self.work.batch.fleet.drain.timeout.duration() + DRAIN_GRACE;
        let drained = self.until(limit, |seen| {
            // Gone, crashed or changed by somebody else: the next call will find out.
            seen.is_none_or(|seen| seen.phase != Phase::Running || seen.drained && seen.draining)
        });
        if drained.await.is_none() {
            self.say("connections are still open after the drain time-out; they are cut");
        }
        Ok(etag)
    }

    async fn until_healthy(&self) -> Result<InstanceObservation, Bad> {
        let old = self.acted_on.clone().flatten();
        let young = |seen: &InstanceObservation| Some(&seen.etag) != old.as_ref();
        let settled = self.until(self.work.batch.healthy_deadline, |seen| match seen {
            Some(seen) if !young(seen) => false,
            Some(seen) => match seen.phase {
                Phase::Running => seen.health == Health::Healthy,
                Phase::Stopped | Phase::Failed => true,
                Phase::Creating | Phase::Deleting => false,
            },
            None => false,
        });
        match settled.await.flatten() {
            Some(seen) if seen.phase == Phase::Running => Ok(seen),
            Some(seen) => Err(Bad::Because(format!("it stopped: {}", seen.note))),
            None => {
                let limit = self.work.batch.healthy_deadline;
                let note = self.look().map(|seen| seen.note).unwrap_or_default();
                let why = if note.is_empty() {
                    String::new()
                } else {
                    format!(": {note}")
                };
                Err(Bad::Because(format!(
                    "not healthy within {} s{why}",
                    limit.as_secs_f32()
                )))
            }
        }
    }

    /// Asks every page gate directly. A shut gate leaves the instance drained.
    async fn gates(
        &self,
        healthy: &InstanceObservation,
        readings: &mut Vec<GateReading>,
    ) -> Result<(), Bad> {
        let clock = &self.work.executor.clock;
        let until = clock.monotonic() + self.work.batch.healthy_deadline;
        let subject = Subject {
            name: self.name.clone(),
            direct: healthy.direct,
            port: self.work.batch.fleet.serve.port,
        };
        for (place, check) in http_gates(&self.work.batch.gates) {
            let mut shut = 0;
            let reading = loop {
                let reading = probe::http_gate(&**clock, place, check, &subject).await;
                shut = match reading.outcome {
                    GateOutcome::Open => break reading,
                    GateOutcome::Shut => shut + 1,
                    GateOutcome::Unknown => 0,
                };
                if shut >= SHUT_AFTER || clock.monotonic() >= until {
                    break reading;
                }
                clock.sleep(GATE_PAUSE).await;
            };
            let bad = (reading.outcome != GateOutcome::Open)
                .then(|| format!("gate {place} is not open: {}", reading.measured));
            readings.push(reading);
            if let Some(bad) = bad {
                return Err(Bad::Because(bad));
            }
        }
        Ok(())
    }

    /// Puts the instance into rotation and waits until it is there. With the etag of what was
    /// judged: after an abort somebody else may replace it while we have not heard of the abort,
    /// and what they put there has passed no gate of ours.
    async fn admit(&mut self, judged: &InstanceObservation) -> Result<(), Bad> {
        let provider = &self.work.executor.provider;
        let mut undrained = false;
        for _ in 0..LOOKS_MAX {
            let settled = self.until(ADMIT_MAX, |seen| {
                seen.is_none_or(|seen| seen.is_serving() || seen.draining && !undrained)
            });
            let seen = match settled.await {
                Some(Some(seen)) => seen,
                Some(None) => return Err(Bad::Because("it is gone".to_owned())),
                None => {
                    let note = self.look().map(|seen| seen.note).unwrap_or_default();
                    return Err(Bad::Because(format!(
                        "it does not get into rotation: {note}"
                    )));
                }
            };
            if seen.is_serving() {
                return Ok(());
            }
            if seen.etag != judged.etag {
                let why = format!("instance {} was changed after it was judged", self.name);
                return Err(Halt::errored(why).into());
            }
            let target = self.target("undrain", Some(seen.etag));
            match self.work.call(|| provider.undrain(&target)).await {
                Ok(_) => undrained = true,
                Err(Refused::Look(_)) => self.work.executor.clock.sleep(GATE_PAUSE).await,
                Err(Refused::Never(reason)) => return Err(Bad::Because(reason)),
                Err(Refused::Halt(halt)) => return Err(Bad::Halt(halt)),
            }
        }
        Err(Halt::errored(format!("instance {} does not hold still", self.name)).into())
    }
}
