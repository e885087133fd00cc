//! The one place that reads a clock or sleeps.
//!
//! Everything else takes a [`SharedClock`], so a test (and later a simulated cloud) can move time
//! by hand. Wall time is for stamps that people and other machines read and may jump; monotonic
//! time is for measuring silence, deadlines and rates and never goes back. The two are not
//! comparable, which is why they have different types: [`Timestamp`] and [`Duration`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use oast_model::time::Timestamp;

mod manual;

pub use manual::ManualClock;

/// A future that ends when the clock has moved far enough.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// A clock handed to whatever needs one.
pub type SharedClock = Arc<dyn Clock>;

/// Wall time, monotonic time and waiting, as one injected capability.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The machine's idea of the calendar. May jump either way.
    fn wall(&self) -> Timestamp;

    /// Time since an origin fixed for the life of the process. Never decreases.
    fn monotonic(&self) -> Duration;

    /// Ends once monotonic time has advanced by `d`. Dropping the future cancels the wait.
    fn sleep(&self, d: Duration) -> Sleep;

    /// Ends once monotonic time has reached `at`.
    fn sleep_until(&self, at: Duration) -> Sleep {
        self.sleep(at.saturating_sub(self.monotonic()))
    }
}

/// The clock went past the limit before the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no result within {limit:?}")]
pub struct TimedOut {
    /// How long the caller was willing to wait.
    pub limit: Duration,
}

/// Runs `work` for at most `limit` of `clock`'s time; the future is dropped when time is up.
///
/// # Errors
/// [`TimedOut`] when the limit passes first. A result that is ready at the same moment wins.
pub async fn timeout<T>(
    clock: &dyn Clock,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    tokio::select! {
        // Biased so that finished work is never thrown away for a timer that is also due.
        biased;
        done = work => Ok(done),
        () = clock.sleep(limit) => Err(TimedOut { limit }),
    }
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// A shareable system clock.
    #[must_use]
    pub fn shared() -> SharedClock {
        Arc::new(SystemClock)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is where the clocks are read"
)]
impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        // A clock set before 1970 reads as the epoch: refusing to start over it helps nobody.
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        now.saturating_duration_since(*ORIGIN.get_or_init(|| now))
    }

    fn sleep(&self, d: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(d))
    }
}

#[cfg(test)]
mod tests;
