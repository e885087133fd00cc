//! What a worker does under its leases. Private work takes time and reports; batches call the cloud.

use std::collections::BTreeMap;

use oast_model::bake::{BakedImage, Layer};
use oast_model::digest::Digest;
use oast_model::fleet::{
    GateOutcome, GateReading, InstanceState, InstanceView, Observation, Watch,
};
use oast_model::ids::Token;
use oast_model::pipeline::Arch;
use oast_model::task::{Assignment, Outcome, Output, Report, SourceOutput, Work};

use super::batch::{BatchJob, Want};
use super::{Job, Link};
use crate::bugs::{Bug, planted};
use crate::cloud::{Call, Cloud, Quality, Refusal, Seen, Verb};
use crate::event::Event;
use crate::network::Place;
use crate::queue::{MS, Micros, SECOND};
use crate::recipe::Recipe;
use crate::world::World;

/// Between two polls of a batch.
const POLL: Micros = 40 * MS;
/// The longest that anybody waits here for an instance to become healthy.
const HEALTHY_MAX: Micros = 5 * SECOND;
/// Time one call may take before its outcome counts as unknown.
const CALL_MAX: Micros = 15 * SECOND;

/// What a look at the cloud says of a fleet.
pub fn observation(cloud: &Cloud, watch: &Watch, now: Micros) -> Observation {
    let seen = cloud.look(&watch.fleet.name, now);
    let readings = watch.probe.iter().flat_map(|probe| {
        probe
            .http_gates()
            .flat_map(|(gate, _)| probe.instances.iter().map(move |name| (gate, name.clone())))
    });
    let readings = readings.map(|(gate, name)| {
        let outcome = match seen.iter().find(|seen| seen.name == name) {
            Some(seen) if seen.gate_open => GateOutcome::Open,
            Some(seen) if seen.running => GateOutcome::Shut,
            _ => GateOutcome::Unknown,
        };
        GateReading {
            gate,
            instance: Some(name),
            outcome,
            measured: "asked".to_owned(),
        }
    });
    Observation {
        readings: readings.collect(),
        probed: watch
            .probe
            .as_ref()
            .map(|probe| (probe.rollout, probe.batch)),
        error: None,
        instances: seen.iter().map(view).collect(),
    }
}

fn view(seen: &Seen) -> InstanceView {
    InstanceView {
        name: seen.name.clone(),
        version: Some(seen.version.clone()),
        state: match (seen.creating, seen.running) {
            (true, _) => InstanceState::Creating,
            (false, true) => InstanceState::Running,
            (false, false) => InstanceState::Stopped,
        },
        healthy: seen.healthy,
        in_rotation: seen.serves(),
        direct: None,
        replaced: seen.replaced,
        note: String::new(),
    }
}

impl World {
    /// Begins what was leased, once.
    pub fn begin_work(&mut self, worker: usize, assignment: Assignment) {
        let token = assignment.token;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        if running.jobs.contains_key(&token) {
            return;
        }
        if matches!(&running.link, Link::Live(live) if live.leaving.is_some()) {
            return;
        }
        let job = match &assignment.work {
            Work::Bake { done, .. } => Job::Bake {
                step: done.len(),
                assignment: Box::new(assignment),
                begun: false,
            },
            Work::Batch {
                order,
                image,
                gates,
                healthy_deadline,
                ..
            } => {
                let image = image
                    .as_ref()
                    .map(|image| (image.version.clone(), Quality::of(&image.disk)));
                let gates = u16::try_from(gates.len()).unwrap_or(0);
                // The default is longer than everything here.
                let deadline = healthy_deadline.duration().as_micros() as Micros;
                let deadline = deadline.min(HEALTHY_MAX);
                let job = BatchJob::new(
                    assignment.task,
                    token,
                    order.clone(),
                    image,
                    gates,
                    deadline,
                );
                let seen = order
                    .instances
                    .iter()
                    .map(|name| self.cloud.instance(&order.fleet, name, self.now))
                    .collect();
                Job::Batch {
                    job: Box::new(job),
                    seen,
                    calls: BTreeMap::new(),
                    again: BTreeMap::new(),
                }
            }
            _ => Job::Plain(Box::new(assignment)),
        };
        running.jobs.insert(token, job);
        let after = self.rng.skewed(10 * MS, 700 * MS);
        self.work_at(worker, token, after);
    }

    fn work_at(&mut self, worker: usize, token: Token, after: Micros) {
        let event = Event::Work {
            worker,
            start: self.workers[worker].starts,
            token,
        };
        self.queue.put(self.now + after, event);
    }

    /// Work under a lease goes on.
    pub fn on_work(&mut self, worker: usize, start: u32, token: Token) {
        if self.workers[worker].starts != start {
            return;
        }
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        running.at(now);
        let Some(job) = running.jobs.remove(&token) else {
            return;
        };
        match job {
            Job::Plain(assignment) => {
                let outcome = self.plain_outcome(&assignment);
                self.finish_work(worker, token, outcome);
            }
            Job::Bake {
                assignment,
                step,
                begun,
            } => self.bake(worker, token, assignment, step, begun),
            Job::Batch {
                job,
                seen,
                calls,
                again,
            } => self.batch(worker, token, job, seen, calls, again),
        }
    }

    fn finish_work(&mut self, worker: usize, token: Token, outcome: Outcome) {
        if let Some(running) = self.workers[worker].running.as_mut() {
            running.report(token, &Report::Finished(outcome));
        }
        self.worker_turn(worker);
    }

    /// Now and then something of ours breaks, or the recipe is wrong.
    fn mishap(&mut self) -> Option<Outcome> {
        if self.healing {
            return None;
        }
        if self.rng.chance(30) {
            return Some(Outcome::Errored {
                reason: "a machine was at fault".to_owned(),
            });
        }
        self.rng.chance(8).then(|| Outcome::Failed {
            reason: "the recipe is wrong".to_owned(),
            details: vec!["line 1".to_owned()],
        })
    }

    fn plain_outcome(&mut self, assignment: &Assignment) -> Outcome {
        if let Some(outcome) = self.mishap() {
            return outcome;
        }
        let output = match &assignment.work {
            Work::Source { origin, inputs, .. } => {
                let recipe = Recipe::of(origin, inputs);
                if recipe.skip {
                    return Outcome::Skipped {
                        reason: "nothing here is watched".to_owned(),
                    };
                }
                Output::Source(Box::new(SourceOutput {
                    tree: Digest::of(recipe.text().as_bytes()),
                    pipeline: recipe.pipeline(&assignment.team),
                    subject: Some(recipe.text()),
                    author: None,
                }))
            }
            Work::Test { .. } => Output::Tested(vec!["it boots".to_owned()]),
            Work::Publish { .. } => Output::Published,
            Work::Bake { .. } | Work::Batch { .. } => {
                return Outcome::Errored {
                    reason: "this is no plain work".to_owned(),
                };
            }
        };
        Outcome::Succeeded(Box::new(output))
    }

    fn bake(
        &mut self,
        worker: usize,
        token: Token,
        assignment: Box<Assignment>,
        step: usize,
        begun: bool,
    ) {
        if let Some(outcome) = self.mishap() {
            self.finish_work(worker, token, outcome);
            return;
        }
        let Work::Bake { bake, done, .. } = &assignment.work else {
            return;
        };
        let quality = Recipe::quality_of(bake);
        if step > bake.steps.len() {
            let layers = (0..step).map(|step| layer_key(&assignment, step)).collect();
            let image = BakedImage {
                base: "debian-12".to_owned(),
                arch: Arch::Amd64,
                layers,
                disk: quality.disk(),
                disk_size: 1,
                disk_digest: quality.disk(),
                packages: quality.disk(),
                package_count: 1,
                bills: None,
                provenance: None,
            };
            let output = Outcome::Succeeded(Box::new(Output::Baked(image)));
            self.finish_work(worker, token, output);
            return;
        }
        let place = u16::try_from(step).unwrap_or(u16::MAX);
        let key = layer_key(&assignment, step);
        let parent = done.last().map(|layer| layer.key);
        let name = self.workers[worker].name.clone();
        if begun {
            let wrong = self.checks.steps.ran(assignment.task, place, token);
            self.judge(wrong);
        }
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        let (report, step) = match begun {
            false => (Report::StepStarted { step: place }, step),
            true => {
                running.cached.push(key);
                let layer = Layer {
                    key,
                    parent,
                    manifest: key,
                    size: 1,
                    title: format!("step {step}"),
                    worker: name,
                    made_at: oast_model::time::Timestamp::from_millis(now / 1_000),
                };
                let report = Report::StepFinished {
                    step: place,
                    layer,
                    cached: false,
                    took_ms: 1,
                };
                (report, step + 1)
            }
        };
        running.report(token, &report);
        running.jobs.insert(
            token,
            Job::Bake {
                assignment,
                step,
                begun: !begun,
            },
        );
        self.worker_turn(worker);
        let after = self.rng.skewed(20 * MS, 900 * MS);
        self.work_at(worker, token, after);
    }

    fn batch(
        &mut self,
        worker: usize,
        token: Token,
        mut job: Box<BatchJob>,
        mut seen: Vec<Option<Seen>>,
        mut calls: BTreeMap<usize, (u64, Micros)>,
        mut again: BTreeMap<usize, Micros>,
    ) {
        let now = self.now;
        let late: Vec<usize> = calls
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(place, _)| *place)
            .collect();
        for place in late {
            calls.remove(&place);
            job.answered(place, None, now);
        }
        let names: Vec<_> = job.names().cloned().collect();
        let reaches = !self.net.is_cut(Place::Worker(worker), Place::Cloud)
            && !self.net.is_cut(Place::Cloud, Place::Worker(worker));
        for (place, name) in names.iter().enumerate() {
            if let Want::Call(_) = job.poll(place, seen[place].as_ref(), now) {
                again.insert(place, now);
            }
            if reaches {
                // What is seen is decided on at the next poll: a look takes time.
                seen[place] = self.cloud.instance(job.fleet(), name, now);
            }
        }
        let due: Vec<usize> = again
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(place, _)| *place)
            .collect();
        for place in due {
            let Some(call) = job.waiting(place).cloned() else {
                again.remove(&place);
                continue;
            };
            // Without a permit the call waits for the next poll.
            if let Some(left) = self.permitted(worker, token) {
                again.remove(&place);
                let number = self.number();
                calls.insert(place, (number, now + left.min(CALL_MAX)));
                self.issue(worker, token, place, number, call);
            }
        }
        match job.output() {
            Some(Ok(output)) => {
                let output = Outcome::Succeeded(Box::new(Output::Batch(output)));
                self.finish_work(worker, token, output);
            }
            Some(Err(reason)) => self.finish_work(worker, token, Outcome::Errored { reason }),
            None => {
                let work = Job::Batch {
                    job,
                    seen,
                    calls,
                    again,
                };
                if let Some(running) = self.workers[worker].running.as_mut() {
                    running.jobs.insert(token, work);
                }
                self.work_at(worker, token, POLL);
            }
        }
    }

    fn permitted(&mut self, worker: usize, token: Token) -> Option<Micros> {
        let running = self.workers[worker].running.as_ref()?;
        if planted(Bug::ZombieMutates) {
            return Some(CALL_MAX);
        }
        Some(running.permit(token)?.as_micros() as Micros)
    }

    /// A call leaves for the cloud.
    fn issue(&mut self, worker: usize, token: Token, place: usize, number: u64, call: Call) {
        let wrong = self.checks.leases.issued(self.now, token, &call.operation);
        self.judge(wrong);
        let (here, cloud) = (Place::Worker(worker), Place::Cloud);
        let start = self.workers[worker].starts;
        self.called(worker);
        let calm = self.healing;
        if self.net.is_cut(here, cloud) || (!calm && self.rng.chance(15)) {
            self.coverage.fault("cloud call lost");
            return;
        }
        let mut delay = self.rng.skewed(MS, 60 * MS);
        if !calm && self.rng.chance(self.plan.late_calls) {
            self.coverage.fault("cloud call late");
            delay = self.rng.range(200 * MS, self.plan.late_by);
        }
        let event = |number| Event::CallArrives {
            worker,
            start,
            token,
            place,
            number,
            call: Box::new(call.clone()),
        };
        self.queue.put(self.now + delay, event(number));
        if !calm && self.rng.chance(20) {
            self.coverage.fault("cloud call doubled");
            let again = delay + self.rng.range(MS, self.plan.late_by);
            // Nobody waits for the answer to the second copy.
            self.queue.put(self.now + again, event(0));
        }
    }

    /// A call has arrived at the cloud.
    pub fn on_call(
        &mut self,
        caller: (usize, u32),
        token: Token,
        place: usize,
        number: u64,
        call: &Call,
    ) {
        let now = self.now;
        let (worker, start) = caller;
        let before = self.cloud.effects().len();
        let answer = match !self.healing && self.rng.chance(15) {
            true => Err(Refusal::Transient),
            false => self.cloud.take(call, now),
        };
        if answer == Err(Refusal::Conflict) {
            self.coverage.fault("cloud call refused by etag");
        }
        if self.cloud.effects().len() > before {
            self.trace.note(now, 11, call.token.as_u64());
            self.trace.say(
                now,
                format_args!("cloud: {} by {}", call.operation, call.token),
            );
            if call.verb == Verb::Restart {
                self.coverage.fault("instance repaired");
            }
            let wrong = self.checks.effects.accepted(now, call);
            self.judge(wrong);
        }
        if number == 0 {
            return;
        }
        let lost = self.net.is_cut(Place::Cloud, Place::Worker(worker))
            || (!self.healing && self.rng.chance(15));
        if lost {
            self.coverage.fault("cloud answer lost");
            return;
        }
        let delay = self.rng.skewed(MS, 60 * MS);
        let event = Event::CallAnswered {
            worker,
            start,
            token,
            place,
            number,
            answer: Box::new(answer),
        };
        self.queue.put(now + delay, event);
    }

    /// The cloud's answer has arrived.
    pub fn on_call_answered(
        &mut self,
        caller: (usize, u32),
        token: Token,
        place: usize,
        number: u64,
        answer: Result<Seen, Refusal>,
    ) {
        let (worker, start) = caller;
        if self.workers[worker].starts != start {
            return;
        }
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        if let Some(Job::Batch {
            job, calls, again, ..
        }) = running.jobs.get_mut(&token)
            && calls.get(&place).is_some_and(|(ours, _)| *ours == number)
        {
            calls.remove(&place);
            if let Some(at) = job.answered(place, Some(answer), now) {
                again.insert(place, at);
            }
        }
    }
}

fn layer_key(assignment: &Assignment, step: usize) -> Digest {
    Digest::of(format!("{} step {step}", assignment.task).as_bytes())
}
