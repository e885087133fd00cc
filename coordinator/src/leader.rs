//! What only the leader does: workers' sessions, leases, rollouts, calendars.
//!
//! ```text
//!   view changed ─┐
//!   worker said   ├─> one turn of the office: look at the ledger and the desk ─> acts
//!   time passed  ─┘            (pure, see [`office`])                             (performed here)
//! ```
//!
//! Everything here is memory of one term ([`desk::Desk`]): who is connected, what was heard when,
//! what providers show. A new leader begins with an empty desk and gives every lease its full
//! time; what must survive is in the ledger. A turn is level-triggered: it compares what is with
//! what should be, so a missed event costs one turn and nothing else.

pub mod desk;
pub mod office;
mod reports;
pub mod sessions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::{TaskKind, Tasks};
use oast_model::codec;
use oast_model::fleet::Observation;
use oast_model::ledger::Command;
use oast_model::names::FleetName;
use oast_model::schedule::{Rules, Session};
use oast_model::task::Assignment;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::to_worker::Message;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::sight::{LeaderSight, WorkerSight};
use crate::farm::{Farm, WriteError, Written};
use crate::notary::Notary;
use crate::secrets::Secrets;
use desk::SessionId;
use office::{Act, Key, Look, Note, Office, Outcome};
use sessions::Outbox;

/// A turn rests so many times as long as it took: decisions take at most a third of one core,
/// and what happens meanwhile is decided together.
const REST: u32 = 2;
/// Rest that is put off until so much of it has come together, because a timer has no finer
/// ticks: a turn now and then is never late by it.
const REST_AT_ONCE: Duration = Duration::from_millis(2);

/// How the leader treats its workers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Silence after which a lease is taken away. Default 15 s.
    pub lease_ttl: Duration,
    /// Time between a worker's heartbeats; at most a third of `lease_ttl`. Default 2 s.
    pub heartbeat: Duration,
    /// What operators decide about scheduling.
    pub rules: Rules,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            lease_ttl: Duration::from_secs(15),
            heartbeat: Duration::from_secs(2),
            rules: Rules::default(),
        }
    }
}

/// The rest that turns owe.
#[derive(Debug, Default)]
struct Pace {
    /// When all of it would be taken.
    rested: Duration,
}

impl Pace {
    /// How long to rest now, after a turn.
    fn after(&mut self, began: Duration, ended: Duration) -> Option<Duration> {
        let took = ended.saturating_sub(began);
        self.rested = self.rested.max(began) + took * (1 + REST);
        let owed = self.rested.saturating_sub(ended);
        (owed >= REST_AT_ONCE).then_some(owed)
    }
}

/// The leader's part of a member: performs what its [`Office`] decides. Idle while another member
/// leads.
pub struct Leader {
    farm: Farm,
    secrets: Secrets,
    notary: Notary,
    clock: SharedClock,
    tasks: Tasks,
    options: Options,
    /// Locked before `outboxes` where both are.
    office: Mutex<Office>,
    /// The ways to connected workers. Bounded; a session that does not keep up is ended.
    outboxes: Mutex<BTreeMap<SessionId, Outbox>>,
    wake: Notify,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Leader {
    /// A leader's part that waits for leadership.
    pub fn new(
        farm: Farm,
        secrets: Secrets,
        notary: Notary,
        tasks: Tasks,
        options: Options,
    ) -> Arc<Leader> {
        let clock = farm.clock().clone();
        Arc::new(Leader {
            farm,
            secrets,
            notary,
            clock,
            tasks,
            options,
            office: Mutex::new(Office::new(options.lease_ttl).with_rules(options.rules)),
            outboxes: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Works until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut changes = self.farm.changes();
        let mut status = self.farm.status();
        let mut pace = Pace::default();
        loop {
            changes.mark_unchanged();
            status.mark_unchanged();
            let began = self.clock.monotonic();
            let rest = self.turn();
            if let Some(pause) = pace.after(began, self.clock.monotonic()) {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = self.clock.sleep(pause) => {}
                }
            }
            // Biased so that shutdown is never starved by a busy farm.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                changed = status.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = self.clock.sleep(rest) => {}
            }
        }
    }

    /// How many workers are connected to this leader.
    pub fn connected(&self) -> usize {
        self.office().desk().sessions().count()
    }

    fn office(&self) -> MutexGuard<'_, Office> {
        self.office.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outboxes(&self) -> MutexGuard<'_, BTreeMap<SessionId, Outbox>> {
        self.outboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is due and says how long nothing will be due if nothing changes.
    fn turn(self: &Arc<Self>) -> Duration {
        let term = self.farm.leading();
        // Before the view: a grant that is answered meanwhile would be in neither, and its slot would
        // look free.
        let mut office = self.office();
        let view = self.farm.view();
        let rest = office.turn(Look {
            view: &view,
            applied: view.now(),
            term,
            now: self.clock.monotonic(),
            wall: self.clock.wall(),
        });
        let lost = self.perform(office.take_acts());
        for session in &lost {
            office.undelivered(*session);
        }
        match lost.is_empty() {
            true => rest,
            // Another worker watches its fleets now.
            false => Duration::ZERO,
        }
    }

    /// Performs acts in order; returns the sessions that did not keep up.
    fn perform(self: &Arc<Self>, acts: Vec<Act>) -> Vec<SessionId> {
        let mut lost = Vec::new();
        let mut proposals = Vec::new();
        for act in acts {
            match act {
                Act::Propose { key, command } => proposals.push((key, *command)),
                Act::Send { session, note } => {
                    let message = self.letter(note);
                    if !lost.contains(&session) && !self.send(session, message) {
                        lost.push(session);
                    }
                }
                Act::Close { session } => drop(self.outboxes().remove(&session)),
            }
        }
        if !proposals.is_empty() {
            self.propose(proposals);
        }
        lost
    }

    /// Hands a message over without waiting. False when the session does not keep up or is gone.
    fn send(&self, session: SessionId, message: Message) -> bool {
        let mut outboxes = self.outboxes();
        let Some(to) = outboxes.get(&session) else {
            return false;
        };
        let message = wire::ToWorker {
            message: Some(message),
        };
        if let Err(error) = to.try_send(Ok(message)) {
            warn!(session, %error, "Session does not keep up.");
            outboxes.remove(&session);
            return false;
        }
        true
    }

    fn letter(&self, note: Note) -> Message {
        match note {
            Note::Assignments {
                term,
                applied,
                begin,
                ended,
            } => Message::Assignments(wire::Assignments {
                term,
                applied,
                begin: begin.into_iter().map(|a| self.sealed(a)).collect(),
                ended: ended.into_iter().map(|token| token.as_u64()).collect(),
            }),
            Note::Observe(watches) => {
                let fleets = watches
                    .iter()
                    .map(|watch| wire::ObserveFleet {
                        fleet: watch.fleet.name.to_string(),
                        spec: codec::encode(watch).into(),
                    })
                    .collect();
                Message::Observe(wire::Observe { fleets })
            }
        }
    }

    /// An assignment with the values of its secrets.
    fn sealed(&self, mut assignment: Assignment) -> wire::Assignment {
        if let Err(error) = self.secrets.fill(&mut assignment) {
            // The worker says the same of a missing secret, with the step that wants it.
            warn!(task = %assignment.task, %error, "A secret could not be read.");
        }
        wire::Assignment {
            token: assignment.token.as_u64(),
            spec: codec::encode(&assignment).into(),
        }
    }

    /// Proposes what one turn decided, together, and hears in the background what became of it.
    fn propose(self: &Arc<Self>, proposals: Vec<(Key, Command)>) {
        let leader = Arc::clone(self);
        let mut led = self
            .farm
            .lead_many(proposals.iter().map(|(_, command)| command));
        let mut asked: Vec<Option<(Key, u32)>> = proposals
            .into_iter()
            .map(|(key, command)| Some((key, command.kind())))
            .collect();
        self.tasks
            .spawn("leader-proposals", TaskKind::BACKGROUND, async move {
                loop {
                    let results = led.next().await;
                    let over = results.is_empty();
                    let mut answers: Vec<(Key, Outcome)> = results
                        .into_iter()
                        .filter_map(|(place, result)| {
                            let (key, kind) = asked.get_mut(place)?.take()?;
                            Some((key, told(kind, result)))
                        })
                        .collect();
                    if over {
                        // Every proposal has its answer, or it would never be made again.
                        let rest = asked.drain(..).flatten();
                        answers.extend(rest.map(|(key, _)| (key, Outcome::NotApplied)));
                    }
                    leader.answered(&answers);
                    if over {
                        return;
                    }
                }
            });
    }

    fn answered(&self, answers: &[(Key, Outcome)]) {
        if answers.is_empty() {
            return;
        }
        let now = self.clock.monotonic();
        let mut office = self.office();
        for (key, outcome) in answers {
            office.answered(key, *outcome, now);
        }
        drop(office);
        self.wake.notify_one();
    }
}

/// What became of a proposal, for the log and for the office.
fn told(kind: u32, outcome: Result<Written, WriteError>) -> Outcome {
    match outcome {
        Ok(written) => {
            debug!(kind, seq = %written.seq, "Decision applied.");
            Outcome::Applied
        }
        Err(WriteError::Rejected(rejected)) => {
            info!(kind, %rejected, "Decision refused.");
            Outcome::NotApplied
        }
        Err(error) => {
            warn!(kind, %error, "Decision lost; will look again.");
            Outcome::NotApplied
        }
    }
}

impl LeaderSight for Leader {
    fn workers(&self) -> Vec<WorkerSight> {
        let now = self.clock.monotonic();
        let office = self.office();
        let desk = office.desk();
        let mut workers: Vec<WorkerSight> = desk
            .sessions()
            .map(|(_, connected)| WorkerSight {
                session: connected.session.clone(),
                version: connected.version.clone(),
                connected_at: connected.connected_at,
                silent: desk.silence(
                    &connected.session.worker,
                    connected.session.incarnation,
                    now,
                ),
            })
            .collect();
        workers.sort_by(|a, b| a.session.worker.cmp(&b.session.worker));
        workers
    }

    fn observation(&self, fleet: &FleetName) -> Option<Observation> {
        self.office().desk().observation(fleet).cloned()
    }

    fn note(&self, fleet: &FleetName) -> Option<String> {
        self.office().desk().note(fleet)
    }

    fn sessions(&self) -> Vec<Session> {
        self.office().desk().schedule_sessions()
    }

    fn rules(&self) -> Rules {
        self.options.rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_turns_follow_each_other_until_they_owe_a_rest_worth_taking() {
        let at = Duration::from_micros;
        let mut pace = Pace::default();
        assert_eq!(pace.after(at(0), at(400)), None, "800 are owed");
        assert_eq!(pace.after(at(400), at(800)), None, "1,600 are owed");
        assert_eq!(pace.after(at(800), at(1200)), Some(at(2400)));
        // The timer was late, which is not made up for.
        assert_eq!(pace.after(at(5000), at(5400)), None);
        assert_eq!(pace.after(at(9000), at(12_000)), Some(at(6000)));
    }
}
