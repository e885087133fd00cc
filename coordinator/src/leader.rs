//! What only the leader does: workers' sessions, leases, rollouts, calendars.
//!
//! ```text
//!   view changed ─┐
//!   worker said   ├─> one turn: look at the ledger and the desk ─> proposals, messages to workers
//!   time passed  ─┘            (pure functions of model)              (each at most once in flight)
//! ```
//!
//! Everything here is memory of one term ([`desk::Desk`]): who is connected, what was heard when,
//! what providers show. A new leader begins with an empty desk and gives every lease its full
//! time; what must survive is in the ledger. A turn is level-triggered: it compares what is with
//! what should be, so a missed event costs one turn and nothing else.

pub mod desk;
pub mod sessions;
mod turn;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::{TaskKind, Tasks};
use oast_model::fleet::Observation;
use oast_model::ids::{TaskId, Token};
use oast_model::ledger::Command;
use oast_model::names::{FleetName, PipelineName, TeamName};
use oast_model::schedule::Session;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::sight::{LeaderSight, WorkerSight};
use crate::farm::{Farm, WriteError};
use crate::secrets::Secrets;
use desk::Desk;

/// How the leader treats its workers.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Silence after which a lease is taken away. Default 15 s.
    pub lease_ttl: Duration,
    /// Time between a worker's heartbeats; at most a third of `lease_ttl`. Default 2 s.
    pub heartbeat: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            lease_ttl: Duration::from_secs(15),
            heartbeat: Duration::from_secs(2),
        }
    }
}

/// Longest time between two turns of a leader: bounds the harm of a missed wake-up.
const TURN_MAX: Duration = Duration::from_secs(1);

/// A proposal in flight. The same one is not made again before its answer is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pending {
    Grant(TaskId),
    Expire(Token),
    Fleet(FleetName),
    Cron(TeamName, PipelineName),
}

/// The leader's part of a member. Idle while another member leads.
pub struct Leader {
    farm: Farm,
    secrets: Secrets,
    clock: SharedClock,
    tasks: Tasks,
    options: Options,
    desk: Mutex<Desk>,
    pending: Mutex<BTreeSet<Pending>>,
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
    pub fn new(farm: Farm, secrets: Secrets, tasks: Tasks, options: Options) -> Arc<Leader> {
        let clock = farm.clock().clone();
        Arc::new(Leader {
            farm,
            secrets,
            clock,
            tasks,
            options,
            desk: Mutex::default(),
            pending: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// Works until shutdown.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut changes = self.farm.changes();
        let mut status = self.farm.status();
        loop {
            changes.mark_unchanged();
            status.mark_unchanged();
            let rest = self.turn();
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
        self.desk().sessions().count()
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, BTreeSet<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_pending(&self, key: &Pending) -> bool {
        self.pending().contains(key)
    }

    /// Proposes in the background, at most once at a time for each key.
    fn propose(self: &Arc<Self>, key: Pending, command: Command) {
        if !self.pending().insert(key.clone()) {
            return;
        }
        let leader = Arc::clone(self);
        self.tasks
            .spawn("leader-proposal", TaskKind::BACKGROUND, async move {
                let name = command.kind();
                match leader.farm.lead(command).await {
                    Ok(written) => debug!(kind = name, seq = %written.seq, "Decision applied."),
                    Err(WriteError::Rejected(rejected)) => {
                        // The state moved between the look and the apply; the next turn looks again.
                        info!(kind = name, %rejected, "Decision refused.");
                        leader.clock.sleep(REFUSED_PAUSE).await;
                    }
                    Err(error) => {
                        warn!(kind = name, %error, "Decision lost; will look again.");
                        leader.clock.sleep(REFUSED_PAUSE).await;
                    }
                }
                leader.pending().remove(&key);
                leader.wake.notify_one();
            });
    }
}

impl LeaderSight for Leader {
    fn workers(&self) -> Vec<WorkerSight> {
        let now = self.clock.monotonic();
        let desk = self.desk();
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
        self.desk().observation(fleet).cloned()
    }

    fn note(&self, fleet: &FleetName) -> Option<String> {
        self.desk().note(fleet)
    }

    fn sessions(&self) -> Vec<Session> {
        self.desk().schedule_sessions()
    }
}

/// Pause after a refusal, so that a planner that is wrong does not fill the log.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
