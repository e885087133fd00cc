//! A clock that stands still until a test moves it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oast_model::time::Timestamp;
use tokio::sync::{Notify, oneshot};

use super::{Clock, Sleep};

/// Wall time a fresh manual clock shows: a fixed day, so that golden files stay the same.
const START: Timestamp = Timestamp(1_767_225_600_000); // 2026-01-01T00:00:00Z

/// Time under a test's control. Clones share the same hands.
#[derive(Clone)]
pub struct ManualClock {
    inner: Arc<Inner>,
}

struct Inner {
    hands: Mutex<Hands>,
    /// Signalled whenever somebody starts to sleep, for [`ManualClock::wait_for_sleepers`].
    slept: Notify,
}

struct Hands {
    wall: Timestamp,
    monotonic: Duration,
    next: u64,
    /// Ordered by deadline, then by who slept first, so that waking is reproducible.
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hands = self.hands();
        f.debug_struct("ManualClock")
            .field("wall", &hands.wall.to_string())
            .field("monotonic", &hands.monotonic)
            .field("sleepers", &hands.sleepers.len())
            .finish()
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        ManualClock::at(START)
    }
}

impl ManualClock {
    /// A clock that shows `wall` and has a monotonic time of zero.
    #[must_use]
    pub fn at(wall: Timestamp) -> Self {
        let hands = Hands {
            wall,
            monotonic: Duration::ZERO,
            next: 0,
            sleepers: BTreeMap::new(),
        };
        ManualClock {
            inner: Arc::new(Inner {
                hands: Mutex::new(hands),
                slept: Notify::new(),
            }),
        }
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        // A panicking test thread leaves whole values behind: every update is one assignment.
        self.inner
            .hands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves both hands forward and wakes, in deadline order, everybody whose time has come.
    ///
    /// Woken tasks run when the caller next awaits.
    pub fn advance(&self, d: Duration) {
        let mut hands = self.hands();
        hands.wall += d;
        hands.monotonic = hands.monotonic.saturating_add(d);
        let now = hands.monotonic;
        let later = hands.sleepers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut hands.sleepers, later);
        drop(hands);
        for (_, wake) in due {
            // The sleeper may have been dropped meanwhile, which is its right.
            let _ = wake.send(());
        }
    }

    /// Moves to the next deadline anybody sleeps for; false when nobody sleeps.
    pub fn advance_to_next(&self) -> bool {
        let mut hands = self.hands();
        hands.sleepers.retain(|_, wake| !wake.is_closed());
        let Some((at, _)) = hands.sleepers.keys().next().copied() else {
            return false;
        };
        let d = at.saturating_sub(hands.monotonic);
        drop(hands);
        self.advance(d);
        true
    }

    /// Sets the calendar without touching monotonic time, as an administrator or NTP would.
    pub fn set_wall(&self, wall: Timestamp) {
        self.hands().wall = wall;
    }

    /// How many futures are asleep right now.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        let mut hands = self.hands();
        hands.sleepers.retain(|_, wake| !wake.is_closed());
        hands.sleepers.len()
    }

    /// Ends once at least `n` futures sleep: the point where a test may advance.
    pub async fn wait_for_sleepers(&self, n: usize) {
        loop {
            let signal = self.inner.slept.notified();
            tokio::pin!(signal);
            // Registered before the check, so a sleeper that arrives in between is not missed.
            signal.as_mut().enable();
            if self.sleepers() >= n {
                return;
            }
            signal.await;
        }
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        self.hands().wall
    }

    fn monotonic(&self) -> Duration {
        self.hands().monotonic
    }

    fn sleep(&self, d: Duration) -> Sleep {
        if d.is_zero() {
            return Box::pin(tokio::task::yield_now());
        }
        let (wake, woken) = oneshot::channel();
        let mut hands = self.hands();
        let key = (hands.monotonic.saturating_add(d), hands.next);
        hands.next += 1;
        hands.sleepers.insert(key, wake);
        drop(hands);
        self.inner.slept.notify_waiters();
        Box::pin(async move {
            if woken.await.is_err() {
                // The clock itself is gone, so this moment never comes.
                std::future::pending::<()>().await;
            }
        })
    }
}
