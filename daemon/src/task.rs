//! Starting tasks: each has a name, a span and a declared meaning for cancel and for error.
//!
//! A bare `tokio::spawn` is a lint failure, because a task whose error nobody reads is how a
//! daemon comes to be up but dead. [`Tasks`] is the process's register of live tasks, handed to
//! whatever starts some. A [`TaskKind`] says what an ending means:
//!
//! ```text
//!              shutdown asked                 ended with an error or a panic
//! SERVICE      waited for, it drains          the process ends (with the reason)
//! WATCHER      dropped where it stands        the process ends
//! REQUEST      waited for, it drains          logged
//! BACKGROUND   dropped where it stands        logged
//! ```
//!
//! "The process ends" is a cancelled root token and a [`Failure`] that [`Tasks::finish`] returns
//! to `main`; when the orderly way does not come to its end within [`FAILURE_GRACE`], a register
//! made by [`Tasks::for_process`] ends the process itself. Not here: retries and back-off, which
//! are the task's own business.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info_span, warn};

use crate::clock::{SharedClock, SystemClock, timeout};
use crate::telemetry::chain;

/// Time an orderly end may take after a critical task has failed.
pub const FAILURE_GRACE: Duration = Duration::from_secs(15);

/// What shutdown does to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// The future is dropped at its next await.
    Drop,
    /// The future watches the token itself and is waited for until the shutdown deadline.
    Drain,
}

/// What the error or panic of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is logged; the process goes on.
    Log,
    /// Without this task the process is of no use: it ends, with the error as the reason.
    EndProcess,
}

/// The declared meaning of a task's two unplanned endings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKind {
    /// What shutdown does to it.
    pub on_cancel: OnCancel,
    /// What its error means.
    pub on_error: OnError,
}

impl TaskKind {
    /// A part the process cannot do without, which drains on shutdown.
    pub const SERVICE: TaskKind = TaskKind {
        on_cancel: OnCancel::Drain,
        on_error: OnError::EndProcess,
    };
    /// A part the process cannot do without that holds nothing worth draining.
    pub const WATCHER: TaskKind = TaskKind {
        on_cancel: OnCancel::Drop,
        on_error: OnError::EndProcess,
    };
    /// One caller's work: drained on shutdown, its failure is the caller's.
    pub const REQUEST: TaskKind = TaskKind {
        on_cancel: OnCancel::Drain,
        on_error: OnError::Log,
    };
    /// Work whose loss is harmless because something will do it again.
    pub const BACKGROUND: TaskKind = TaskKind {
        on_cancel: OnCancel::Drop,
        on_error: OnError::Log,
    };
}

/// How a task came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned without an error.
    Done,
    /// Shutdown, or its [`TaskHandle`], dropped it.
    Cancelled,
    /// It returned an error; the whole chain as text.
    Failed(String),
    /// It panicked; the message.
    Panicked(String),
}

/// The task that ended the process, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task {task} {how}: {reason}")]
pub struct Failure {
    /// The task's name.
    pub task: &'static str,
    /// "failed" or "panicked".
    pub how: &'static str,
    /// The error chain or panic message.
    pub reason: String,
}

/// Tasks were still running when the shutdown deadline passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("still running {after:?} after shutdown was asked for: {}", tasks.join(", "))]
pub struct Stuck {
    /// Names of the tasks that did not end.
    pub tasks: Vec<&'static str>,
    /// The deadline they missed.
    pub after: Duration,
}

/// Why [`Tasks::finish`] does not return "all well".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclean {
    /// A critical task failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// Everything was asked to stop and something did not.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// What a task's future may return: nothing, or a result whose error can be logged.
pub trait TaskOutput {
    /// The error chain, when there is an error.
    fn failure(self) -> Option<String>;
}

impl TaskOutput for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> TaskOutput for Result<(), E> {
    fn failure(self) -> Option<String> {
        self.err().map(|e| chain(&*e.into()).to_string())
    }
}

/// The register of live tasks. Clones are the same register.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    clock: SharedClock,
    cancel: CancellationToken,
    /// Whether a missed [`FAILURE_GRACE`] ends the process.
    owns_process: bool,
    state: Mutex<State>,
    /// The number of live tasks, for waiting until there is none.
    live: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    next: u64,
    live: BTreeMap<u64, (&'static str, TaskKind)>,
    failure: Option<Failure>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}

impl Tasks {
    /// A register whose critical failures cancel `cancel` and are reported by [`Tasks::finish`].
    #[must_use]
    pub fn new(clock: SharedClock, cancel: CancellationToken) -> Self {
        Tasks::build(clock, cancel, false)
    }

    /// The register of a whole process: a critical failure that the orderly way does not bring to
    /// an end within [`FAILURE_GRACE`] ends the process.
    #[must_use]
    pub fn for_process(cancel: CancellationToken) -> Self {
        Tasks::build(SystemClock::shared(), cancel, true)
    }

    fn build(clock: SharedClock, cancel: CancellationToken, owns_process: bool) -> Self {
        let state = Mutex::new(State::default());
        let live = watch::Sender::new(0);
        Tasks {
            inner: Arc::new(Inner {
                clock,
                cancel,
                owns_process,
                state,
                live,
            }),
        }
    }

    /// The token that shutdown cancels. Long-running futures watch a child of it.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.inner.cancel.clone()
    }

    /// Names of the live tasks in the order they were started.
    #[must_use]
    pub fn live(&self) -> Vec<&'static str> {
        self.state().live.values().map(|(name, _)| *name).collect()
    }

    /// Starts `future` under `name`.
    ///
    /// The name is a constant: which run or instance it serves belongs in span fields, so that
    /// names stay countable. After shutdown began a [`OnCancel::Drop`] task ends at once.
    pub fn spawn<F>(&self, name: &'static str, kind: TaskKind, future: F) -> TaskHandle
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput + Send,
    {
        self.spawn_in(info_span!("task", task = name), name, kind, future)
    }

    /// Starts `future` under `name` with a span of the caller's making.
    pub fn spawn_in<F>(
        &self,
        span: Span,
        name: &'static str,
        kind: TaskKind,
        future: F,
    ) -> TaskHandle
    where
        F: Future + Send + 'static,
        F::Output: TaskOutput + Send,
    {
        let entry = self.enter(name, kind);
        let stop = CancellationToken::new();
        let (tell, outcome) = oneshot::channel();
        let shutdown = self.inner.cancel.clone();
        let told = stop.clone();
        let work = async move {
            let ended = tokio::select! {
                // Biased: a task that has just finished is done, not cancelled.
                biased;
                ended = caught(future) => ended.map(TaskOutput::failure),
                () = told.cancelled() => return entry.end(Outcome::Cancelled, tell),
                () = shutdown.cancelled(), if kind.on_cancel == OnCancel::Drop => {
                    return entry.end(Outcome::Cancelled, tell);
                }
            };
            let outcome = match ended {
                Ok(None) => Outcome::Done,
                Ok(Some(reason)) => Outcome::Failed(reason),
                Err(message) => Outcome::Panicked(message),
            };
            entry.end(outcome, tell);
        };
        start(work.instrument(span));
        TaskHandle {
            name,
            stop,
            outcome,
        }
    }

    /// Starts work whose value the caller wants; dropping the [`Job`] drops the work.
    pub fn job<F>(&self, name: &'static str, future: F) -> Job<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (give, value) = oneshot::channel();
        let task = self.spawn(name, TaskKind::REQUEST, async move {
            // The job may have been dropped in the same moment; then nobody wants the value.
            let _ = give.send(future.await);
        });
        Job {
            task: Some(task),
            value,
        }
    }

    /// Runs blocking work on the blocking pool and waits for its value.
    ///
    /// Not cancel-safe in one respect: dropping the future does not stop work that has begun.
    ///
    /// # Errors
    /// [`Lost`] when the work panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let entry = self.enter(name, TaskKind::REQUEST);
        let span = info_span!("task", task = name);
        let (tell, outcome) = oneshot::channel();
        let value = on_blocking_pool(move || {
            let _in = span.entered();
            match std::panic::catch_unwind(AssertUnwindSafe(work)) {
                Ok(value) => {
                    entry.end(Outcome::Done, tell);
                    Some(value)
                }
                Err(payload) => {
                    entry.end(Outcome::Panicked(message_of(&*payload)), tell);
                    None
                }
            }
        })
        .await
        .flatten();
        match value {
            Some(value) => Ok(value),
            None => {
                let outcome = outcome.await.unwrap_or(Outcome::Cancelled);
                Err(Lost {
                    task: name,
                    outcome,
                })
            }
        }
    }

    /// Starts a thread of its own, for a loop that blocks for the life of the process.
    ///
    /// Shutdown can only ask it (through a token it holds), so [`OnCancel::Drop`] means here
    /// that nobody waits for it.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub fn thread<R: TaskOutput>(
        &self,
        name: &'static str,
        kind: TaskKind,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<TaskHandle> {
        let entry = self.enter(name, kind);
        let span = info_span!("task", task = name);
        let (tell, outcome) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _in = span.entered();
                let outcome = match std::panic::catch_unwind(AssertUnwindSafe(work)) {
                    Ok(output) => output.failure().map_or(Outcome::Done, Outcome::Failed),
                    Err(payload) => Outcome::Panicked(message_of(&*payload)),
                };
                entry.end(outcome, tell);
            })?;
        Ok(TaskHandle {
            name,
            stop: CancellationToken::new(),
            outcome,
        })
    }

    /// Waits for shutdown, then for every draining task, at most until `deadline` after it began.
    ///
    /// # Errors
    /// The critical failure that began the shutdown, or else the tasks that did not end in time.
    pub async fn finish(&self, deadline: Duration) -> Result<(), Unclean> {
        self.inner.cancel.cancelled().await;
        let mut live = self.inner.live.subscribe();
        let drained = timeout(&*self.inner.clock, deadline, async {
            // The sender lives in `self`, so it cannot have gone away.
            let _ = live.wait_for(|_| self.awaited().is_empty()).await;
        })
        .await;
        if let Some(failure) = self.state().failure.clone() {
            return Err(failure.into());
        }
        drained.map_err(|_| {
            Stuck {
                tasks: self.awaited(),
                after: deadline,
            }
            .into()
        })
    }

    /// Live tasks that shutdown waits for.
    fn awaited(&self) -> Vec<&'static str> {
        let state = self.state();
        let drains = state
            .live
            .values()
            .filter(|(_, kind)| kind.on_cancel == OnCancel::Drain);
        drains.map(|(name, _)| *name).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock, so poisoning carries no information.
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, name: &'static str, kind: TaskKind) -> Entry {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.live.insert(id, (name, kind));
        let count = state.live.len();
        drop(state);
        self.inner.live.send_replace(count);
        Entry {
            tasks: self.clone(),
            id,
            name,
            kind,
        }
    }

    fn fail(&self, failure: Failure) {
        error!(task = failure.task, reason = %failure.reason, "A task the process cannot do without has ended; shutting down.");
        let mut state = self.state();
        let first = state.failure.is_none();
        state.failure.get_or_insert(failure);
        drop(state);
        self.inner.cancel.cancel();
        if first && self.inner.owns_process {
            end_process_after_grace();
        }
    }
}

/// A live task's line in the register; leaving scope takes the line out.
struct Entry {
    tasks: Tasks,
    id: u64,
    name: &'static str,
    kind: TaskKind,
}

impl Entry {
    /// Records how the task ended and tells whoever holds its handle.
    fn end(self, outcome: Outcome, tell: oneshot::Sender<Outcome>) {
        let unplanned = match &outcome {
            Outcome::Done | Outcome::Cancelled => None,
            Outcome::Failed(reason) => Some(("failed", reason)),
            Outcome::Panicked(message) => Some(("panicked", message)),
        };
        if let Some((how, reason)) = unplanned {
            let failure = Failure {
                task: self.name,
                how,
                reason: reason.clone(),
            };
            match self.kind.on_error {
                OnError::EndProcess => self.tasks.fail(failure),
                OnError::Log => warn!(task = self.name, how, reason, "A task ended badly."),
            }
        }
        // Out of the register before the news is out, so that `live` agrees with the handle.
        drop(self);
        let _ = tell.send(outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.tasks.state();
        state.live.remove(&self.id);
        let count = state.live.len();
        drop(state);
        self.tasks.inner.live.send_replace(count);
    }
}

/// A started task. Dropping the handle lets the task run on.
#[derive(Debug)]
pub struct TaskHandle {
    name: &'static str,
    stop: CancellationToken,
    outcome: oneshot::Receiver<Outcome>,
}

impl TaskHandle {
    /// The name it was started under.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Drops the task's future at its next await. Threads cannot be stopped this way.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Waits for the end.
    pub async fn join(self) -> Outcome {
        // The sender only disappears unused when the runtime itself is going down.
        self.outcome.await.unwrap_or(Outcome::Cancelled)
    }
}

/// The value of a [`Job`] will never come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task {task} gave no result: {outcome:?}")]
pub struct Lost {
    /// The task's name.
    pub task: &'static str,
    /// How it ended instead.
    pub outcome: Outcome,
}

/// Work in flight whose value somebody waits for; dropped, the work is dropped with it.
#[derive(Debug)]
pub struct Job<T> {
    task: Option<TaskHandle>,
    value: oneshot::Receiver<T>,
}

impl<T> Job<T> {
    /// Waits for the value. Cancel-safe in that dropping it drops the work.
    ///
    /// # Errors
    /// [`Lost`] when the work panicked or the runtime went down.
    pub async fn value(mut self) -> Result<T, Lost> {
        if let Ok(value) = (&mut self.value).await {
            self.task = None;
            return Ok(value);
        }
        let task = self
            .task
            .take()
            .expect("only this method takes it, and it consumes the job");
        Err(Lost {
            task: task.name,
            outcome: task.join().await,
        })
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.cancel();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this module is the spawn helper")]
pub(crate) fn start(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

#[expect(clippy::disallowed_methods, reason = "this module is the spawn helper")]
async fn on_blocking_pool<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Polls `future` to its end, turning a panic into its message.
async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = Box::pin(future);
    std::future::poll_fn(move |cx| {
        // Nothing is looked at after a panic but the message, so broken invariants stay inside.
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => std::task::Poll::Ready(Err(message_of(&*payload))),
        }
    })
    .await
}

/// The text of a panic payload.
pub(crate) fn message_of(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the runtime may be what is stuck, so a plain thread waits"
)]
fn end_process_after_grace() {
    std::thread::spawn(|| {
        std::thread::sleep(FAILURE_GRACE);
        error!(grace = ?FAILURE_GRACE, "Shutdown after a critical failure did not end; leaving now.");
        std::process::exit(crate::exit::Exit::Failed.code());
    });
}

#[cfg(test)]
mod tests;
