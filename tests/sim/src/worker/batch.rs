//! One leased batch, carried out step by step as `worker/src/batch.rs` and `batch/instance.rs` do:
//! look, drain, replace, wait until healthy, ask the gates, put into rotation.
//!
//! What is observed decides what is still to do; every change carries the etag that it was decided
//! on and an operation id made of task, instance and verb. Nothing here waits: a poll says what the
//! instance needs now.

use oast_model::fleet::{GateOutcome, GateReading, VersionRef};
use oast_model::ids::{TaskId, Token};
use oast_model::names::{FleetName, InstanceName};
use oast_model::task::{BatchAction, BatchInstance, BatchOrder, BatchOutput};

use crate::bugs::{Bug, planted};
use crate::cloud::{Call, Quality, Refusal, Seen, Verb};
use crate::queue::{MS, Micros, SECOND};

/// How often the cloud may be found changed under our hands before we give up.
const LOOKS_MAX: u32 = 20;
/// Errors that pass by themselves before we give up.
const RETRIES_MAX: u32 = 30;
/// Beyond the drain time-out until an instance is replaced although connections remain.
const DRAIN_MAX: Micros = 3 * SECOND;
/// Time to get into rotation.
const ADMIT_MAX: Micros = 10 * SECOND;
/// Pause after a refusal.
const PAUSE: Micros = 50 * MS;
/// Bad answers in a row that shut a gate.
const SHUT_AFTER: u32 = 2;

#[derive(Clone, Debug)]
enum Stage {
    /// Decide from the newest look, not before the given time.
    Change {
        looks: u32,
        after: Micros,
    },
    /// A call is on its way; what follows its answer.
    Calling {
        next: Next,
        tries: u32,
    },
    WaitDrained {
        until: Micros,
        etag: u64,
    },
    WaitHealthy {
        until: Micros,
    },
    Gates {
        until: Micros,
        shut: u32,
    },
    Admit {
        until: Micros,
        looks: u32,
    },
    Done {
        good: bool,
    },
    /// We or the cloud are at fault.
    Errored(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Drained { looks: u32 },
    Replaced { etag: Option<u64>, looks: u32 },
    Held,
    Undrained { looks: u32 },
}

/// What one instance of the batch needs now.
#[derive(Clone, Debug)]
pub enum Want {
    /// Time.
    Nothing,
    /// This call, if the lease permits it.
    Call(Call),
}

/// One instance on its way.
#[derive(Debug)]
struct Replacement {
    name: InstanceName,
    stage: Stage,
    before: Option<VersionRef>,
    looked: bool,
    /// Our change was accepted: the etag from before it, so that older looks are told apart.
    acted_on: Option<Option<u64>>,
    /// The etag of the look that found it healthy: what is put into rotation.
    judged: Option<u64>,
    undrained: bool,
    note: String,
    readings: Vec<GateReading>,
    /// The call that is on its way or waits for a permit.
    call: Option<Call>,
}

/// A batch being carried out.
#[derive(Debug)]
pub struct BatchJob {
    task: TaskId,
    token: Token,
    order: BatchOrder,
    image: Option<(VersionRef, Quality)>,
    gates: u16,
    healthy_deadline: Micros,
    instances: Vec<Replacement>,
}

impl BatchJob {
    /// A batch that begins now.
    pub fn new(
        task: TaskId,
        token: Token,
        order: BatchOrder,
        image: Option<(VersionRef, Quality)>,
        gates: u16,
        healthy_deadline: Micros,
    ) -> BatchJob {
        let instances = order
            .instances
            .iter()
            .map(|name| Replacement {
                name: name.clone(),
                stage: Stage::Change { looks: 0, after: 0 },
                before: None,
                looked: false,
                acted_on: None,
                judged: None,
                undrained: false,
                note: String::new(),
                readings: Vec::new(),
                call: None,
            })
            .collect();
        BatchJob {
            task,
            token,
            order,
            image,
            gates,
            healthy_deadline,
            instances,
        }
    }

    /// The fleet it changes.
    pub fn fleet(&self) -> &FleetName {
        &self.order.fleet
    }

    /// Names of its instances, in order.
    pub fn names(&self) -> impl Iterator<Item = &InstanceName> {
        self.instances.iter().map(|instance| &instance.name)
    }

    /// What the instance at `place` needs, given what was last seen of it.
    pub fn poll(&mut self, place: usize, seen: Option<&Seen>, now: Micros) -> Want {
        let wanted = self.image.clone();
        let instance = &mut self.instances[place];
        if !instance.looked {
            instance.looked = true;
            instance.before = seen.map(|seen| seen.version.clone());
        }
        match instance.stage.clone() {
            Stage::Calling { .. } | Stage::Done { .. } | Stage::Errored(_) => Want::Nothing,
            Stage::Change { looks, after } => {
                if now < after {
                    return Want::Nothing;
                }
                if looks >= LOOKS_MAX {
                    instance.stage = Stage::Errored("it does not hold still".to_owned());
                    return Want::Nothing;
                }
                if instance.is_changed(seen, wanted.as_ref()) {
                    instance.stage = Stage::WaitHealthy {
                        until: now + self.healthy_deadline,
                    };
                    return Want::Nothing;
                }
                self.change(place, seen, looks, now)
            }
            Stage::WaitDrained { until, etag } => {
                let over = seen.is_none_or(|seen| !seen.running || seen.draining && seen.drained);
                match over || now >= until {
                    true => self.replace(place, Some(etag), 0),
                    false => Want::Nothing,
                }
            }
            Stage::WaitHealthy { until } => {
                instance.until_healthy(seen, now, until, self.gates, self.healthy_deadline);
                Want::Nothing
            }
            Stage::Gates { until, shut } => {
                instance.ask_gates(seen, now, until, shut, self.gates);
                Want::Nothing
            }
            Stage::Admit { until, looks } => self.admit(place, seen, now, until, looks),
        }
    }

    fn call(&mut self, place: usize, verb: Verb, if_match: Option<u64>, next: Next) -> Want {
        let name = match &verb {
            Verb::Create(..) => "create",
            Verb::Reimage(..) => "reimage",
            Verb::Restart => "restart",
            Verb::Drain if next == Next::Held => "hold",
            Verb::Drain => "drain",
            Verb::Undrain => "undrain",
        };
        let instance = &mut self.instances[place];
        let operation = match planted(Bug::OperationPerAttempt) {
            true => format!("{}.{}.{}.{name}", self.task, self.token, instance.name),
            false => format!("{}.{}.{name}", self.task, instance.name),
        };
        let call = Call {
            operation,
            token: self.token,
            task: self.task,
            fleet: self.order.fleet.clone(),
            instance: instance.name.clone(),
            if_match: if_match.filter(|_| !planted(Bug::NoEtags)),
            verb,
        };
        instance.stage = Stage::Calling { next, tries: 0 };
        instance.call = Some(call.clone());
        Want::Call(call)
    }

    fn change(&mut self, place: usize, seen: Option<&Seen>, looks: u32, now: Micros) -> Want {
        let Some(seen) = seen else {
            let Some((version, quality)) = self.image.clone() else {
                return self.bad(place, "it does not exist");
            };
            let next = Next::Replaced { etag: None, looks };
            return self.call(place, Verb::Create(version, quality), None, next);
        };
        if seen.running {
            if seen.draining {
                self.instances[place].stage = Stage::WaitDrained {
                    until: now + DRAIN_MAX,
                    etag: seen.etag,
                };
                return Want::Nothing;
            }
            let next = Next::Drained { looks };
            return self.call(place, Verb::Drain, Some(seen.etag), next);
        }
        self.replace(place, Some(seen.etag), looks)
    }

    fn replace(&mut self, place: usize, etag: Option<u64>, looks: u32) -> Want {
        let verb = match (&self.order.action, self.image.clone()) {
            (BatchAction::Deploy(_), Some((version, quality))) => Verb::Reimage(version, quality),
            (BatchAction::Deploy(_), None) => {
                return self.bad(place, "it came without its layers");
            }
            (BatchAction::Restart, _) => Verb::Restart,
        };
        self.call(place, verb, etag, Next::Replaced { etag, looks })
    }

    fn admit(
        &mut self,
        place: usize,
        seen: Option<&Seen>,
        now: Micros,
        until: Micros,
        looks: u32,
    ) -> Want {
        let undrained = self.instances[place].undrained;
        let Some(seen) = seen else {
            return self.bad(place, "it is gone");
        };
        if seen.serves() {
            self.instances[place].end(true, "serves");
            return Want::Nothing;
        }
        if now >= until {
            return self.bad(place, "it does not get into rotation");
        }
        if looks >= LOOKS_MAX {
            self.instances[place].stage = Stage::Errored("it does not hold still".to_owned());
            return Want::Nothing;
        }
        if seen.draining && !undrained {
            if self.instances[place].judged != Some(seen.etag) {
                let why = "it was changed after it was judged".to_owned();
                self.instances[place].stage = Stage::Errored(why);
                return Want::Nothing;
            }
            let next = Next::Undrained { looks };
            return self.call(place, Verb::Undrain, Some(seen.etag), next);
        }
        Want::Nothing
    }

    fn bad(&mut self, place: usize, why: &str) -> Want {
        self.instances[place].end(false, why);
        Want::Nothing
    }

    /// The call of the instance at `place` that has no answer yet.
    pub fn waiting(&self, place: usize) -> Option<&Call> {
        self.instances[place].call.as_ref()
    }

    /// The call has an answer; `None` says that none came in time. Returns the time to call again.
    pub fn answered(
        &mut self,
        place: usize,
        answer: Option<Result<Seen, Refusal>>,
        now: Micros,
    ) -> Option<Micros> {
        let has_gates = self.gates > 0;
        let deadline = self.healthy_deadline;
        let instance = &mut self.instances[place];
        let Stage::Calling { next, tries } = instance.stage.clone() else {
            return None;
        };
        if answer == Some(Err(Refusal::Transient)) {
            if tries >= RETRIES_MAX {
                instance.call = None;
                instance.stage = Stage::Errored("the cloud does not answer".to_owned());
                return None;
            }
            let tries = tries + 1;
            instance.stage = Stage::Calling { next, tries };
            return Some(now + ((20 * MS) << tries.min(6)).min(SECOND));
        }
        let call = instance.call.take();
        let seen = answer.and_then(Result::ok);
        instance.stage = match (next, seen) {
            (Next::Drained { .. }, Some(seen)) => Stage::WaitDrained {
                until: now + DRAIN_MAX,
                etag: seen.etag,
            },
            (Next::Replaced { etag, .. }, Some(seen)) => {
                instance.acted_on = Some(etag.filter(|etag| *etag != seen.etag));
                let created = matches!(call.map(|call| call.verb), Some(Verb::Create(..)));
                if created && has_gates {
                    // Kept out of rotation until its gates have been read.
                    let etag = Some(seen.etag);
                    self.call(place, Verb::Drain, etag, Next::Held);
                    return Some(now);
                }
                Stage::WaitHealthy {
                    until: now + deadline,
                }
            }
            (Next::Held, _) => Stage::WaitHealthy {
                until: now + deadline,
            },
            (Next::Undrained { looks }, seen) => {
                instance.undrained |= seen.is_some();
                Stage::Admit {
                    until: now + ADMIT_MAX,
                    looks: looks + 1,
                }
            }
            (Next::Drained { looks } | Next::Replaced { looks, .. }, None) => Stage::Change {
                looks: looks + 1,
                after: now + PAUSE,
            },
        };
        None
    }

    /// The end of the batch, once every instance has one.
    pub fn output(&self) -> Option<Result<BatchOutput, String>> {
        let mut output = BatchOutput {
            instances: Vec::new(),
            readings: Vec::new(),
        };
        for instance in &self.instances {
            match &instance.stage {
                Stage::Done { good } => output.instances.push(BatchInstance {
                    name: instance.name.clone(),
                    before: instance.before.clone(),
                    good: *good,
                    note: instance.note.clone(),
                }),
                Stage::Errored(why) => return Some(Err(why.clone())),
                _ => return None,
            }
            output.readings.extend(instance.readings.iter().cloned());
        }
        Some(Ok(output))
    }
}

impl Replacement {
    fn end(&mut self, good: bool, note: &str) {
        note.clone_into(&mut self.note);
        self.stage = Stage::Done { good };
    }

    /// Nothing is left to be replaced, though it may still be on its way.
    fn is_changed(&self, seen: Option<&Seen>, wanted: Option<&(VersionRef, Quality)>) -> bool {
        if self.acted_on.is_some() {
            return true;
        }
        let (Some(seen), Some((version, _))) = (seen, wanted) else {
            return false;
        };
        (seen.running || seen.creating) && seen.version == *version
    }

    fn until_healthy(
        &mut self,
        seen: Option<&Seen>,
        now: Micros,
        until: Micros,
        gates: u16,
        deadline: Micros,
    ) {
        let old = self.acted_on.flatten();
        if let Some(seen) = seen
            && Some(seen.etag) != old
            && !seen.creating
        {
            if seen.running && seen.healthy {
                self.judged = Some(seen.etag);
                self.stage = match gates {
                    0 => Stage::Admit {
                        until: now + ADMIT_MAX,
                        looks: 0,
                    },
                    _ => Stage::Gates {
                        until: now + deadline,
                        shut: 0,
                    },
                };
                return;
            }
            if !seen.running {
                self.end(false, "it stopped");
                return;
            }
        }
        if now >= until {
            self.end(false, "not healthy in time");
        }
    }

    fn ask_gates(
        &mut self,
        seen: Option<&Seen>,
        now: Micros,
        until: Micros,
        shut: u32,
        gates: u16,
    ) {
        let outcome = match seen {
            Some(seen) if seen.running && seen.gate_open => GateOutcome::Open,
            Some(seen) if seen.running => GateOutcome::Shut,
            _ => GateOutcome::Unknown,
        };
        let shut = match outcome {
            GateOutcome::Shut => shut + 1,
            _ => 0,
        };
        if outcome != GateOutcome::Open && shut < SHUT_AFTER && now < until {
            self.stage = Stage::Gates { until, shut };
            return;
        }
        self.readings = (0..gates)
            .map(|gate| GateReading {
                gate,
                instance: Some(self.name.clone()),
                outcome,
                measured: "asked".to_owned(),
            })
            .collect();
        match outcome {
            GateOutcome::Open => {
                self.stage = Stage::Admit {
                    until: now + ADMIT_MAX,
                    looks: 0,
                };
            }
            _ => self.end(false, "a gate is not open"),
        }
    }
}
