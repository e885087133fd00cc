//! One turn of the leader: what is, what should be, and the difference as proposals and notes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_model::fleet::{Observation, Probe, Watch};
use oast_model::ids::Token;
use oast_model::ledger::{BatchKind, BatchPhase, Command, FleetRecord, Ledger};
use oast_model::names::InstanceName;
use oast_model::rollout::{Decision, Situation, plan};
use oast_model::schedule::schedule;
use oast_model::task::TaskKind;
use oast_model::time::Timestamp;
use tracing::info;

use super::{Act, Key, Look, Note, Office, TURN_MAX};
use crate::leader::desk::SessionId;

impl Office {
    /// Decides what is due and says how long nothing will be due if nothing changes.
    pub fn turn(&mut self, look: Look<'_>) -> Duration {
        self.enter(look.term, look.now);
        let rested = self.rested(look.now);
        let Some(term) = look.term else {
            return TURN_MAX;
        };
        if look.view.farm().name.is_empty() {
            return TURN_MAX;
        }
        let time = self.clock.read(term, look.now, look.wall, look.applied);
        self.close_silent(look.now);
        self.tell_workers(look.view, term);
        let ready = self.grant(look.view, time);
        let expiry = self.expire(look.view, look.now);
        let fleets = self.reconcile(look.view, time);
        self.assign_watches(look.view);
        // Calendars are about days and hours as people read them.
        let calendar = self.fire_calendars(look.view, look.wall);
        let next = ready.min(expiry).min(fleets).min(calendar);
        next.min(rested).min(TURN_MAX)
    }

    /// A session that was silent for the time of a lease is over, though its connection may stand: its
    /// worker begins another one when it is heard again. Until then it gets no work, which would end
    /// at once; and a heartbeat that was held up on its way is not answered, because the
    /// worker would take the answer for a lease that lasts.
    fn close_silent(&mut self, now: Duration) {
        for session in self.desk.silent(now, self.lease_ttl) {
            self.desk.disconnect(session);
            self.acts.push(Act::Close { session });
        }
    }

    /// Leases that a session does not know begin; tokens that it knows and no lease has, ended.
    fn tell_workers(&mut self, view: &Ledger, term: u64) {
        let applied = view.seq().as_u64();
        for (session, connected) in self.desk.sessions_mut() {
            let (worker, incarnation) = (&connected.session.worker, connected.session.incarnation);
            let live = || view.index().leases_of(worker, incarnation);
            if live().eq(connected.told.iter().copied()) {
                continue;
            }
            let live: BTreeSet<Token> = live().collect();
            let begin = live
                .difference(&connected.told)
                .filter_map(|token| view.assignment(*token))
                .collect();
            let ended = connected.told.difference(&live).copied().collect();
            connected.told = live;
            let note = Note::Assignments {
                term,
                applied,
                begin,
                ended,
            };
            self.acts.push(Act::Send { session, note });
        }
    }

    /// Proposes leases and says when the next task becomes ready.
    fn grant(&mut self, view: &Ledger, time: Timestamp) -> Duration {
        let sessions = self
            .desk
            .sessions()
            .map(|(_, connected)| &connected.session);
        for grant in schedule(view, &self.overlay, sessions, &self.rules, time) {
            let command = Command::GrantLease {
                task: grant.task,
                worker: grant.worker.clone(),
                incarnation: grant.incarnation,
            };
            self.propose(Key::Grant(grant.task), command);
            self.overlay.assume(grant);
        }
        let next = view.index().next_ready(time);
        next.map_or(TURN_MAX, |at| at.since(time) + Duration::from_millis(1))
    }

    /// Ends leases whose holders were silent for their full time within this term.
    fn expire(&mut self, view: &Ledger, now: Duration) -> Duration {
        let mut next = TURN_MAX;
        for (worker, incarnation, tokens) in view.index().holders() {
            let silence = self.desk.silence(worker, incarnation, now);
            if silence < self.lease_ttl {
                next = next.min(self.lease_ttl - silence);
                continue;
            }
            for token in tokens {
                let silent = silence.as_millis();
                let command = Command::ExpireLease {
                    token: *token,
                    reason: format!("worker `{worker}` was silent for {silent} ms"),
                };
                self.propose(Key::Expire(*token), command);
            }
        }
        next
    }

    /// Asks the planner about each fleet and proposes what it says.
    fn reconcile(&mut self, view: &Ledger, time: Timestamp) -> Duration {
        let mut next = TURN_MAX;
        for (name, fleet) in view.fleets().iter() {
            let key = Key::Fleet(name.clone());
            if self.pending.contains_key(&key) {
                continue;
            }
            let Some(seen) = self.desk.observation(name) else {
                let wanted = fleet.active.is_some();
                let note = wanted.then(|| "no worker reaches its provider".into());
                self.desk.set_note(name, note);
                continue;
            };
            let (note, until, command) = match decide(view, fleet, seen, time) {
                Decision::Begin(begin) => {
                    let note = format!("begins a batch of {}", begin.instances.len());
                    (Some(note), None, Some(Command::BeginBatch(begin)))
                }
                Decision::Judge {
                    rollout,
                    batch,
                    open,
                    reason,
                    readings,
                } => {
                    let note = reason.clone();
                    let command = Command::JudgeBatch {
                        rollout,
                        batch,
                        open,
                        reason,
                        readings,
                    };
                    (Some(note), None, Some(command))
                }
                Decision::Conclude(rollout) => {
                    let debt = Vec::new();
                    let command = Command::ConcludeRollout { rollout, debt };
                    (None, None, Some(command))
                }
                Decision::Wait { reason, until } => (Some(reason), until, None),
                Decision::Rest => (None, None, None),
            };
            self.desk.set_note(name, note);
            if let Some(command) = command {
                self.propose(key, command);
            }
            if let Some(until) = until {
                // A clock that stands a little before `until` must not make a hot loop.
                next = next.min(until.since(time) + Duration::from_millis(1));
            }
        }
        next
    }

    /// Each fleet is watched by one session that reaches its provider.
    fn assign_watches(&mut self, view: &Ledger) {
        let mut wanted: BTreeMap<SessionId, Vec<Watch>> = BTreeMap::new();
        for (name, fleet) in view.fleets().iter() {
            let provider = fleet.spec.provider.as_str();
            let watcher = self
                .desk
                .sessions()
                .filter(|(_, connected)| connected.session.providers.contains(provider))
                // Keep the one that watches already; else the longest connected.
                .min_by_key(|(id, connected)| {
                    let watches = connected.watching.iter().any(|w| w.fleet.name == *name);
                    (!watches, *id)
                })
                .map(|(id, _)| id);
            if let Some(id) = watcher {
                wanted.entry(id).or_default().push(Watch {
                    fleet: fleet.spec.clone(),
                    probe: probe(view, fleet),
                });
            }
        }
        for (session, connected) in self.desk.sessions_mut() {
            let list = wanted.remove(&session).unwrap_or_default();
            if list == connected.watching {
                continue;
            }
            connected.watching.clone_from(&list);
            let note = Note::Observe(list);
            self.acts.push(Act::Send { session, note });
        }
    }

    /// Fires calendars that came due since they were fired last; of several times missed, the last.
    fn fire_calendars(&mut self, view: &Ledger, wall: Timestamp) -> Duration {
        let (due, rest) = self.calendars.due(view, wall);
        for calendar in due {
            let (team, pipeline) = calendar.clone();
            let key = Key::Cron(team.clone(), pipeline.clone());
            if self.pending.contains_key(&key) {
                continue;
            }
            let Some(due) = self.calendars.newest(&calendar, wall) else {
                continue;
            };
            info!(%pipeline, %team, %due, "Calendar came due.");
            let command = Command::FireCron {
                pipeline,
                team,
                due,
            };
            self.propose(key, command);
        }
        rest.unwrap_or(TURN_MAX)
    }
}

fn decide(view: &Ledger, fleet: &FleetRecord, seen: &Observation, now: Timestamp) -> Decision {
    let in_repair: Vec<InstanceName> = fleet
        .repairs
        .iter()
        .filter_map(|task| match &view.tasks().get(task)?.kind {
            TaskKind::Batch(order) => Some(order.instances.clone()),
            _ => None,
        })
        .flatten()
        .collect();
    plan(&Situation {
        fleet,
        rollout: fleet.active.and_then(|id| view.rollouts().get(&id)),
        in_repair: &in_repair,
        seen,
        now,
    })
}

/// The batch that soaks now, for the observer to read its gates.
fn probe(view: &Ledger, fleet: &FleetRecord) -> Option<Probe> {
    let rollout = view.rollouts().get(&fleet.active?)?;
    let batch = rollout.open_batch()?;
    if !matches!(batch.phase, BatchPhase::Soaking { .. }) {
        return None;
    }
    let gates = match batch.kind {
        BatchKind::Rollback => Vec::new(),
        BatchKind::Canary | BatchKind::Rolling => rollout.gates.clone(),
    };
    Some(Probe {
        rollout: rollout.id,
        batch: u32::try_from(rollout.batches.len() - 1).ok()?,
        instances: batch.instances.clone(),
        gates,
    })
}
