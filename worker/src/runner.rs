//! Runs what is assigned: one named task per lease.
//!
//! ```text
//! begin(assignment) -> waits for a slot -> work -> Finished(outcome) to the outbox
//!                           |                |
//! end(token) ---------------+----------------+--> dropped where it stands, result discarded
//! drain() ------------------+----------------+--> dropped, Finished(Released)
//! ```
//!
//! Dropping the work's future is how it is stopped: sandboxes and child processes die with their
//! handles. Every failure is sorted into *failed* (the recipe, not tried again) and *errored*
//! (us, tried again).

pub mod log;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oast_artifacts::{ArtifactStore, SegmentKey};
use oast_daemon::clock::SharedClock;
use oast_daemon::metrics::{Gauges, Histograms, Metric, Metrics};
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::telemetry::chain;
use oast_model::ids::{TaskId, Token};
use oast_model::task::{Assignment, Outcome, Output, Report, Work};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, info_span, warn};

use crate::config::Secrets;
use crate::lease::{Contact, Lease};
use crate::session::outbox::Outbox;
use log::TaskLog;

/// Why work brought no output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The recipe, the code or the image is wrong.
    Failed {
        /// In one sentence.
        reason: String,
        /// One line each.
        details: Vec<String>,
    },
    /// We or the machines are at fault.
    Errored {
        /// In one sentence.
        reason: String,
    },
    /// There is nothing to do.
    Skipped {
        /// In one sentence.
        reason: String,
    },
}

impl Halt {
    /// The recipe is wrong.
    pub fn failed(reason: impl Into<String>) -> Halt {
        Halt::Failed {
            reason: reason.into(),
            details: Vec::new(),
        }
    }

    /// We are at fault.
    pub fn errored(reason: impl Into<String>) -> Halt {
        Halt::Errored {
            reason: reason.into(),
        }
    }

    /// We are at fault; the error with its causes.
    pub fn error(error: &(dyn std::error::Error + 'static)) -> Halt {
        Halt::errored(chain(error).to_string())
    }
}

impl From<crate::lease::Ended> for Halt {
    fn from(ended: crate::lease::Ended) -> Halt {
        Halt::errored(ended.to_string())
    }
}

impl From<oast_daemon::task::Lost> for Halt {
    fn from(lost: oast_daemon::task::Lost) -> Halt {
        Halt::error(&lost)
    }
}

/// One lease's work, as the code that does it sees it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The task.
    pub task: TaskId,
    /// The lease.
    pub lease: Lease,
    /// Counts from 1.
    pub number: u32,
    /// Whose it is.
    pub team: String,
    /// Where people read what happens.
    pub log: TaskLog,
    /// Values of the secrets that the work names.
    pub secrets: Arc<SecretValues>,
    outbox: Arc<Outbox>,
}

impl Attempt {
    /// An attempt that no runner has begun.
    #[cfg(test)]
    pub(crate) fn alone(task: TaskId, lease: Lease, log: TaskLog) -> Attempt {
        Attempt {
            task,
            lease,
            number: 1,
            team: "shop".to_owned(),
            log,
            secrets: Arc::default(),
            outbox: Arc::default(),
        }
    }

    /// Queues a report under this lease.
    pub async fn report(&self, report: &Report) {
        self.outbox.push(self.lease.token, report).await;
    }
}

/// Secrets by name; never printed.
#[derive(Default)]
pub struct SecretValues(pub Secrets);

impl std::fmt::Debug for SecretValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Does the work of each kind of task.
#[tonic::async_trait]
pub trait Worker: std::fmt::Debug + Send + Sync + 'static {
    /// Does it. Dropping the future stops it.
    async fn work(&self, attempt: &Attempt, work: Work) -> Result<Output, Halt>;
}

/// What a runner needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tasks side by side, batches aside.
    pub slots: u32,
    /// For stamps.
    pub clock: SharedClock,
    /// Where tasks are registered.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Metrics,
    /// Where logs go.
    pub store: ArtifactStore,
    /// What the leader is known to have heard.
    pub contact: Arc<Contact>,
    /// Where results go.
    pub outbox: Arc<Outbox>,
}

/// Runs what is assigned. Clones are the same runner.
#[derive(Clone, Debug)]
pub struct Runner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    worker: Arc<dyn Worker>,
    slots: Arc<Semaphore>,
    running: Mutex<BTreeMap<Token, CancellationToken>>,
    /// Set when the worker stops: nothing begins any more.
    draining: CancellationToken,
    seconds: Histograms,
    busy: Gauges,
}

impl Runner {
    /// A runner whose tasks are done by `worker`.
    pub fn new(options: Options, worker: Arc<dyn Worker>) -> Runner {
        let slots = Arc::new(Semaphore::new(
            usize::try_from(options.slots).unwrap_or(usize::MAX >> 3),
        ));
        let seconds = options.metrics.histograms(Metric::TaskSeconds);
        let busy = options.metrics.gauges(Metric::WorkerSlots);
        Runner {
            inner: Arc::new(Inner {
                options,
                worker,
                slots,
                running: Mutex::default(),
                draining: CancellationToken::new(),
                seconds,
                busy,
            }),
        }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Token, CancellationToken>> {
        // Nothing under this lock panics.
        self.inner
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens of the work that runs or waits for a slot.
    pub fn held(&self) -> Vec<Token> {
        self.running().keys().copied().collect()
    }

    /// Begins the work, once: a repeated assignment changes nothing.
    pub fn begin(&self, assignment: Assignment) {
        let token = assignment.token;
        if self.inner.draining.is_cancelled() {
            return;
        }
        let ended = CancellationToken::new();
        {
            let mut running = self.running();
            if running.contains_key(&token) {
                return;
            }
            running.insert(token, ended.clone());
        }
        let span =
            info_span!("task", task = "attempt", task_id = %assignment.task, lease_token = %token);
        let runner = self.clone();
        self.inner
            .options
            .tasks
            .spawn_in(span, "attempt", TaskKind::REQUEST, async move {
                runner.attempt(assignment, ended).await
            });
    }

    /// Stops the work of an ended lease; its result is discarded.
    pub fn end(&self, token: Token) {
        if let Some(ended) = self.running().get(&token) {
            ended.cancel();
        }
    }

    /// Stops everything and gives it back.
    pub async fn drain(&self) {
        self.inner.draining.cancel();
        let held = self.held();
        for token in held {
            let released = Report::Finished(Outcome::Released);
            let still = self.running().remove(&token);
            if let Some(ended) = still {
                ended.cancel();
                self.inner.options.outbox.push(token, &released).await;
            }
        }
    }

    async fn attempt(self, assignment: Assignment, ended: CancellationToken) {
        let token = assignment.token;
        let kind = kind(&assignment.work);
        let outcome = tokio::select! {
            // Biased: a result that is ready counts, unless the lease was ended before.
            biased;
            () = ended.cancelled() => None,
            outcome = self.outcome(assignment, ended.clone()) => Some(outcome),
        };
        // Whoever takes the token out of the list reports; `drain` may have been first.
        let mine = self.running().remove(&token).is_some();
        match outcome {
            Some(outcome) if mine && !ended.is_cancelled() => {
                info!(kind, outcome = word(&outcome), "Attempt finished.");
                let report = Report::Finished(outcome);
                self.inner.options.outbox.push(token, &report).await;
            }
            _ => info!(
                kind,
                "Attempt stopped: its lease has ended or the worker stops."
            ),
        }
    }

    async fn outcome(&self, assignment: Assignment, ended: CancellationToken) -> Outcome {
        let options = &self.inner.options;
        let kind = kind(&assignment.work);
        // Batches mostly wait, and one that waits behind a bake would keep instances drained.
        let _slot = match assignment.work {
            Work::Batch { .. } => None,
            _ => self.inner.slots.clone().acquire_owned().await.ok(),
        };
        self.count_slots();
        let key = SegmentKey {
            run: assignment.run.map_or_else(
                || format!("repair-{}", assignment.team),
                |run| run.to_string(),
            ),
            task: assignment.task.to_string(),
            attempt: assignment.token.as_u64(),
        };
        let secrets = assignment.secrets.values().map(String::as_str);
        let log = match TaskLog::begin(&options.store, &key, options.clock.clone(), secrets) {
            Ok(log) => log,
            Err(err) => {
                return Outcome::Errored {
                    reason: format!("begin the log: {}", chain(&err)),
                };
            }
        };
        let attempt = Attempt {
            task: assignment.task,
            lease: Lease::new(assignment.token, ended, options.contact.clone()),
            number: assignment.attempt,
            team: assignment.team.to_string(),
            log: log.clone(),
            secrets: Arc::new(SecretValues(assignment.secrets)),
            outbox: options.outbox.clone(),
        };
        let began = options.clock.monotonic();
        let worker = self.inner.worker.clone();
        let work = assignment.work;
        let job = options
            .tasks
            .job("work", async move { worker.work(&attempt, work).await });
        let outcome = match job.value().await {
            Ok(Ok(output)) => Outcome::Succeeded(Box::new(output)),
            Ok(Err(halt)) => log_halt(&log, halt),
            Err(lost) => Outcome::Errored {
                reason: format!("a bug in the worker: {}", chain(&lost)),
            },
        };
        let took = options.clock.monotonic().saturating_sub(began);
        self.inner
            .seconds
            .with(&[kind, word(&outcome)])
            .observe(took);
        let flush = options.tasks.blocking("log-finish", move || log.finish());
        if let Err(lost) = flush.await {
            warn!(error = %chain(&lost), "The log of an attempt could not be ended.");
        }
        outcome
    }

    fn count_slots(&self) {
        let free = u32::try_from(self.inner.slots.available_permits()).unwrap_or(u32::MAX);
        let all = self.inner.options.slots;
        let busy = all.saturating_sub(free);
        self.inner.busy.with(&["busy"]).set(u64::from(busy));
        self.inner.busy.with(&["free"]).set(u64::from(free));
    }
}

fn log_halt(log: &TaskLog, halt: Halt) -> Outcome {
    match halt {
        Halt::Failed { reason, details } => {
            let reason = log.masked(&reason);
            let details: Vec<String> = details.iter().map(|line| log.masked(line)).collect();
            log.engine(0, format!("failed: {reason}"));
            Outcome::Failed { reason, details }
        }
        Halt::Errored { reason } => {
            let reason = log.masked(&reason);
            log.engine(0, format!("errored: {reason}"));
            Outcome::Errored { reason }
        }
        Halt::Skipped { reason } => {
            log.engine(0, format!("skipped: {reason}"));
            Outcome::Skipped { reason }
        }
    }
}

fn kind(work: &Work) -> &'static str {
    match work {
        Work::Source { .. } => "source",
        Work::Bake { .. } => "bake",
        Work::Test { .. } => "test",
        Work::Publish { .. } => "publish",
        Work::Batch { .. } => "batch",
    }
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed { .. } => "failed",
        Outcome::Errored { .. } => "errored",
        Outcome::Skipped { .. } => "skipped",
        Outcome::Released => "released",
    }
}
