//! A worker: keeps a session with the leader, carries out what is leased to it, reports.
//!
//! What decides in the real worker is here itself: [`Outbox`] repeats reports, [`Contact`] and
//! [`Lease::permit`] say how long shared things may be changed. The session around them and the
//! work are small models of `worker/src/session.rs` and `runner.rs`.

pub mod batch;
pub mod session;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use oast_daemon::clock::{Clock, Sleep};
use oast_model::digest::Digest;
use oast_model::fleet::{Observation, Watch};
use oast_model::ids::Token;
use oast_model::names::{FleetName, WorkerName};
use oast_model::task::{Assignment, Report};
use oast_model::time::Timestamp;
use oast_worker::lease::{Contact, Lease};
use oast_worker::session::outbox::Outbox;
use tokio_util::sync::CancellationToken;

use crate::cloud::Seen;
use crate::queue::Micros;
use crate::stream::StreamId;
use batch::BatchJob;

/// The worker's clock, moved by the world.
#[derive(Debug, Default)]
pub struct WorkerClock(AtomicU64);

impl Clock for WorkerClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed) / 1_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    fn sleep(&self, _: Duration) -> Sleep {
        // Nothing of the worker sleeps here: the world wakes it.
        Box::pin(std::future::pending())
    }
}

/// Where a worker's session stands.
#[derive(Debug)]
pub enum Link {
    /// Waits before it tries again.
    Resting {
        /// Until then.
        until: Micros,
    },
    /// Has said Hello.
    Greeting {
        /// On this stream.
        stream: StreamId,
        /// When, on its own clock.
        sent: Duration,
        /// Gives up then.
        until: Micros,
    },
    /// Open.
    Live(Live),
}

/// An open session.
#[derive(Debug)]
pub struct Live {
    /// Its stream.
    pub stream: StreamId,
    /// When the Hello was sent.
    pub sent_hello: Duration,
    /// Life of a lease.
    pub ttl: Duration,
    /// Between heartbeats.
    pub heartbeat: Micros,
    /// Heartbeats without an answer.
    pub unanswered: Vec<(u64, Duration)>,
    /// This leader answers them.
    pub answered: bool,
    /// Number of the last one.
    pub beat: u64,
    /// When the next is due.
    pub next_beat: Micros,
    /// When reports without an answer are looked at.
    pub next_repeat: Micros,
    /// When the fleets are looked at.
    pub next_look: Micros,
    /// Leaves when its last report has an answer, or then.
    pub leaving: Option<Micros>,
}

/// Work under a lease.
#[derive(Debug)]
pub enum Job {
    /// Ends with one report.
    Plain(Box<Assignment>),
    /// Step by step.
    Bake {
        /// What.
        assignment: Box<Assignment>,
        /// The step that comes next or is being done.
        step: usize,
        /// It has been begun.
        begun: bool,
    },
    /// Instances are changed.
    Batch {
        /// The work.
        job: Box<BatchJob>,
        /// What was seen at the last poll, instance by instance.
        seen: Vec<Option<Seen>>,
        /// Calls on their way: number, and when the caller stops waiting.
        calls: BTreeMap<usize, (u64, Micros)>,
        /// Calls that are made again then.
        again: BTreeMap<usize, Micros>,
    },
}

/// A fleet that this worker watches.
#[derive(Debug)]
pub struct Watching {
    /// What was ordered.
    pub watch: Watch,
    /// What the cloud showed at the last look, and for which probe it was taken.
    pub look: Option<Observation>,
    /// What was sent last.
    pub sent: Option<Observation>,
}

/// A worker process.
#[derive(Debug)]
pub struct Running {
    /// Made anew with each start.
    pub incarnation: u64,
    /// Its clock.
    pub clock: Arc<WorkerClock>,
    /// What the leader is known to have heard.
    pub contact: Arc<Contact>,
    /// What must reach the log.
    pub outbox: Outbox,
    /// Its session.
    pub link: Link,
    /// Work by lease.
    pub jobs: BTreeMap<Token, Job>,
    /// Highest (term, applied) seen.
    pub newest: (u64, u64),
    /// Counts sessions.
    pub sessions: u64,
    /// Pause after the next failure.
    pub backoff: Micros,
    /// Redirects followed without a pause.
    pub redirects: u32,
    /// Fleets that it watches.
    pub watching: BTreeMap<FleetName, Watching>,
    /// Layers at hand.
    pub cached: Vec<Digest>,
    /// Numbers the wake-ups, so that an older one is known as such.
    pub wake: u64,
}

/// A worker, running or not.
#[derive(Debug)]
pub struct Worker {
    /// Its name.
    pub name: WorkerName,
    /// Tasks side by side.
    pub slots: u32,
    /// Whether it reaches the cloud.
    pub provider: bool,
    /// How often it was started.
    pub starts: u32,
    /// Member that is asked next.
    pub next_member: u64,
    /// It does nothing before.
    pub paused_until: Micros,
    /// The process.
    pub running: Option<Running>,
}

impl Running {
    /// A process that was just started.
    pub fn new(incarnation: u64, now: Micros, margin: Duration) -> Running {
        let clock = Arc::new(WorkerClock(AtomicU64::new(now)));
        Running {
            incarnation,
            contact: Arc::new(Contact::new(clock.clone(), margin)),
            clock,
            outbox: Outbox::default(),
            link: Link::Resting { until: now },
            jobs: BTreeMap::new(),
            newest: (0, 0),
            sessions: 0,
            backoff: 0,
            redirects: 0,
            watching: BTreeMap::new(),
            cached: Vec::new(),
            wake: 0,
        }
    }

    /// Time passes here as well.
    pub fn at(&mut self, now: Micros) {
        self.clock.0.store(now, Ordering::Relaxed);
    }

    /// Its monotonic clock.
    pub fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Queues a report.
    pub fn report(&mut self, token: Token, report: &Report) {
        // A queue that is full would wait; no lease here makes that many reports.
        let queued = self.outbox.push(token, report).now_or_never();
        assert!(queued.is_some(), "lease {token} has too many reports");
    }

    /// Whether shared things may be changed under this lease now, and for how long.
    pub fn permit(&self, token: Token) -> Option<Duration> {
        // A job is dropped when its lease ends, so whoever asks has not been told of an end.
        let lease = Lease::new(token, CancellationToken::new(), self.contact.clone());
        lease.permit().now_or_never()?.ok()
    }

    /// Tokens of running work and of reports that have no answer yet.
    pub fn held(&self) -> Vec<Token> {
        let mut held: Vec<Token> = self.jobs.keys().copied().collect();
        held.extend(self.outbox.tokens());
        held.sort_unstable();
        held.dedup();
        held
    }
}
