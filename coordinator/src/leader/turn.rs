//! One turn of the leader: what is, what should be, and the difference as proposals and messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use oast_model::codec;
use oast_model::fleet::{Observation, Probe, Watch};
use oast_model::ids::{TaskId, Token};
use oast_model::ledger::{BatchKind, BatchPhase, Command, FleetRecord, Ledger};
use oast_model::names::InstanceName;
use oast_model::pipeline::cron;
use oast_model::rollout::{Decision, Situation, plan};
use oast_model::schedule::schedule;
use oast_model::task::TaskKind;
use oast_model::time::Timestamp;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::to_worker::Message;
use tracing::{info, warn};

use super::desk::{Connected, Desk, SessionId};
use super::{Leader, Pending, TURN_MAX};
use crate::farm::FarmView;

impl Leader {
    /// Does what is due and says how long nothing will be due if nothing changes.
    pub(super) fn turn(self: &Arc<Self>) -> Duration {
        let term = self.farm.leading();
        let view = self.farm.view();
        let (now, wall) = (self.clock.monotonic(), self.clock.wall());
        let mut desk = self.desk();
        desk.enter(term, now);
        let Some(term) = term else { return TURN_MAX };
        if view.farm().name.is_empty() {
            return TURN_MAX;
        }
        self.tell_workers(&mut desk, &view, term);
        self.grant(&desk, &view, wall);
        let expiry = self.expire(&desk, &view, now);
        let fleets = self.reconcile(&mut desk, &view, wall);
        self.assign_watches(&mut desk, &view);
        let calendar = self.fire_calendars(&view, wall);
        expiry.min(fleets).min(calendar).min(TURN_MAX)
    }

    /// Leases that a session does not know begin; tokens that it knows and no lease has, ended.
    fn tell_workers(&self, desk: &mut Desk, view: &FarmView, term: u64) {
        let applied = view.seq().as_u64();
        let mut gone = Vec::new();
        for (id, connected) in desk.sessions_mut() {
            let live: BTreeSet<Token> = view
                .leases()
                .iter()
                .filter(|(_, lease)| {
                    lease.worker == connected.session.worker
                        && lease.incarnation == connected.session.incarnation
                })
                .map(|(token, _)| *token)
                .collect();
            let begin: Vec<wire::Assignment> = live
                .difference(&connected.told)
                .filter_map(|token| self.assignment(view, *token))
                .collect();
            let ended: Vec<u64> = connected
                .told
                .difference(&live)
                .map(|token| token.as_u64())
                .collect();
            if begin.is_empty() && ended.is_empty() {
                continue;
            }
            let assignments = wire::Assignments {
                term,
                applied,
                begin,
                ended,
            };
            if send(connected, Message::Assignments(assignments)) {
                connected.told = live;
            } else {
                gone.push(id);
            }
        }
        for id in gone {
            desk.disconnect(id);
        }
    }

    fn assignment(&self, view: &Ledger, token: Token) -> Option<wire::Assignment> {
        let mut assignment = view.assignment(token)?;
        if let Err(error) = self.secrets.fill(&mut assignment) {
            // The worker says the same of a missing secret, with the step that wants it.
            warn!(task = %assignment.task, %error, "A secret could not be read.");
        }
        let spec = codec::encode(&assignment).into();
        Some(wire::Assignment {
            token: token.as_u64(),
            spec,
        })
    }

    fn grant(self: &Arc<Self>, desk: &Desk, view: &Ledger, wall: Timestamp) {
        let pending: BTreeSet<TaskId> = self
            .pending()
            .iter()
            .filter_map(|pending| match pending {
                Pending::Grant(task) => Some(*task),
                _ => None,
            })
            .collect();
        for grant in schedule(view, &desk.schedule_sessions(), &pending, wall) {
            let command = Command::GrantLease {
                task: grant.task,
                worker: grant.worker,
                incarnation: grant.incarnation,
            };
            self.propose(Pending::Grant(grant.task), command);
        }
    }

    /// Ends leases whose holders were silent for their full time within this term.
    fn expire(self: &Arc<Self>, desk: &Desk, view: &Ledger, now: Duration) -> Duration {
        let mut next = TURN_MAX;
        for (token, lease) in view.leases().iter() {
            let silence = desk.silence(&lease.worker, lease.incarnation, now);
            if silence < self.options.lease_ttl {
                next = next.min(self.options.lease_ttl - silence);
                continue;
            }
            let reason = format!(
                "worker `{}` was silent for {} ms",
                lease.worker,
                silence.as_millis()
            );
            let command = Command::ExpireLease {
                token: *token,
                reason,
            };
            self.propose(Pending::Expire(*token), command);
        }
        next
    }

    /// Asks the planner about each fleet and proposes what it says.
    fn reconcile(self: &Arc<Self>, desk: &mut Desk, view: &Ledger, wall: Timestamp) -> Duration {
        let mut next = TURN_MAX;
        for (name, fleet) in view.fleets().iter() {
            let key = Pending::Fleet(name.clone());
            if self.is_pending(&key) {
                continue;
            }
            let Some(seen) = desk.observation(name) else {
                let wanted = fleet.active.is_some();
                desk.set_note(
                    name,
                    wanted.then(|| "no worker reaches its provider".into()),
                );
                continue;
            };
            let (note, until) = match decide(view, fleet, seen, wall) {
                Decision::Begin(begin) => {
                    let note = format!("begins a batch of {}", begin.instances.len());
                    self.propose(key, Command::BeginBatch(begin));
                    (Some(note), None)
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
                    self.propose(key, command);
                    (Some(note), None)
                }
                Decision::Conclude(rollout) => {
                    let command = Command::ConcludeRollout {
                        rollout,
                        debt: Vec::new(),
                    };
                    self.propose(key, command);
                    (None, None)
                }
                Decision::Wait { reason, until } => (Some(reason), until),
                Decision::Rest => (None, None),
            };
            desk.set_note(name, note);
            if let Some(until) = until {
                // A clock that stands a little before `until` must not make a hot loop.
                next = next.min(until.since(wall) + Duration::from_millis(1));
            }
        }
        next
    }

    /// Each fleet is watched by one session that reaches its provider.
    fn assign_watches(&self, desk: &mut Desk, view: &Ledger) {
        let mut wanted: Vec<(SessionId, String, Vec<u8>)> = Vec::new();
        for (name, fleet) in view.fleets().iter() {
            let provider = fleet.spec.provider.as_str();
            let watcher = desk
                .sessions()
                .filter(|(_, connected)| connected.session.providers.contains(provider))
                // Keep the one that watches already; else the longest connected.
                .min_by_key(|(id, connected)| {
                    let watches = connected
                        .watching
                        .iter()
                        .any(|(fleet, _)| fleet == name.as_str());
                    (!watches, *id)
                })
                .map(|(id, _)| id);
            if let Some(id) = watcher {
                let watch = Watch {
                    fleet: fleet.spec.clone(),
                    probe: probe(view, fleet),
                };
                wanted.push((id, name.to_string(), codec::encode(&watch)));
            }
        }
        let mut gone = Vec::new();
        for (id, connected) in desk.sessions_mut() {
            let list: Vec<(String, Vec<u8>)> = wanted
                .iter()
                .filter(|(by, _, _)| *by == id)
                .map(|(_, fleet, spec)| (fleet.clone(), spec.clone()))
                .collect();
            if list == connected.watching {
                continue;
            }
            let fleets = list
                .iter()
                .map(|(fleet, spec)| wire::ObserveFleet {
                    fleet: fleet.clone(),
                    spec: spec.clone().into(),
                })
                .collect();
            if send(connected, Message::Observe(wire::Observe { fleets })) {
                connected.watching = list;
            } else {
                gone.push(id);
            }
        }
        for id in gone {
            desk.disconnect(id);
        }
    }

    /// Fires calendars that came due since they were fired last; of several times missed, the last.
    fn fire_calendars(self: &Arc<Self>, view: &Ledger, wall: Timestamp) -> Duration {
        let mut next = TURN_MAX;
        for ((team, pipeline), state) in view.crons().iter() {
            for (text, zone) in &state.crons {
                let (Ok(schedule), Some(zone)) = (text.parse::<cron::Schedule>(), cron::zone(zone))
                else {
                    continue;
                };
                let Some(due) = schedule.next_after(state.fired, &zone) else {
                    continue;
                };
                if due > wall {
                    next = next.min(due.since(wall) + Duration::from_millis(1));
                    continue;
                }
                let mut last = due;
                while let Some(later) = schedule.next_after(last, &zone).filter(|t| *t <= wall) {
                    last = later;
                }
                info!(%pipeline, %team, due = %last, "Calendar came due.");
                self.propose(
                    Pending::Cron(team.clone(), pipeline.clone()),
                    Command::FireCron {
                        pipeline: pipeline.clone(),
                        team: team.clone(),
                        due: last,
                    },
                );
            }
        }
        next
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

/// Hands a message over without waiting. False when the session does not keep up or is gone.
fn send(connected: &Connected, message: Message) -> bool {
    let message = wire::ToWorker {
        message: Some(message),
    };
    if let Err(error) = connected.to.try_send(Ok(message)) {
        warn!(worker_id = %connected.session.worker, %error, "Session does not keep up.");
        return false;
    }
    true
}
