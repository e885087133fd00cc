//! When to try again: one policy for every caller in the farm.
//!
//! The pause before the n-th repetition is drawn evenly between nothing and a bound that doubles
//! (full jitter): callers that failed together do not come back together. A server's own wish
//! (`RetryInfo`) is a floor under the pause. Everything ends with the caller's deadline: a pause
//! that would reach it is not begun, so the caller hears the reason instead of a time-out.
//!
//! Whether a call may be repeated at all is the caller's knowledge, not this module's.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where pauses come from. Injected, so that a test or a simulation repeats them.
pub trait Jitter: fmt::Debug + Send + Sync + 'static {
    /// A span from zero up to `bound`.
    fn up_to(&self, bound: Duration) -> Duration;
}

/// A source of pauses handed to whatever retries.
pub type SharedJitter = Arc<dyn Jitter>;

/// The kernel's randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomJitter;

impl Jitter for RandomJitter {
    fn up_to(&self, bound: Duration) -> Duration {
        share(bound, crate::random::number())
    }
}

/// The same pauses for the same seed.
#[derive(Debug)]
pub struct SeededJitter(AtomicU64);

impl SeededJitter {
    /// Begins at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SeededJitter {
        SeededJitter(AtomicU64::new(seed))
    }
}

impl Jitter for SeededJitter {
    fn up_to(&self, bound: Duration) -> Duration {
        // SplitMix64.
        let state = self
            .0
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        share(bound, mixed ^ (mixed >> 31))
    }
}

/// Steps in which a bound is divided.
const STEPS: u32 = 4096;

fn share(bound: Duration, random: u64) -> Duration {
    let step = u32::try_from(random % u64::from(STEPS + 1)).unwrap_or(STEPS);
    // Divided first: a bound of years must not overflow. Below 4 microseconds nothing matters.
    (bound / STEPS).saturating_mul(step)
}

/// How long and how densely somebody tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Bound of the first pause.
    pub first: Duration,
    /// Largest bound of a pause.
    pub most: Duration,
    /// All tries together.
    pub within: Duration,
}

impl Policy {
    /// Begins to count at `now`, a monotonic time.
    #[must_use]
    pub fn begin(self, now: Duration) -> Retries {
        Retries {
            bound: self.first,
            end: now.saturating_add(self.within),
            policy: self,
        }
    }
}

/// One caller's tries.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    policy: Policy,
    bound: Duration,
    end: Duration,
}

impl Retries {
    /// Time until the caller gives up.
    #[must_use]
    pub fn left(&self, now: Duration) -> Duration {
        self.end.saturating_sub(now)
    }

    /// Ends the tries earlier, if `end` is earlier.
    pub fn not_after(&mut self, end: Duration) {
        self.end = self.end.min(end);
    }

    /// Something went well in between: the next pauses are short again.
    pub fn ease(&mut self) {
        self.bound = self.policy.first;
    }

    /// The pause before the next try; none when it would last to the end. `wanted` is what the
    /// other side asked for.
    pub fn pause(
        &mut self,
        now: Duration,
        wanted: Option<Duration>,
        jitter: &dyn Jitter,
    ) -> Option<Duration> {
        let drawn = jitter.up_to(self.bound);
        self.bound = (self.bound * 2).min(self.policy.most);
        let pause = wanted.unwrap_or_default().saturating_add(drawn);
        (pause < self.left(now)).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy {
        first: Duration::from_millis(50),
        most: Duration::from_millis(400),
        within: Duration::from_secs(10),
    };

    #[test]
    fn pauses_are_drawn_below_a_bound_that_doubles_and_repeat_with_the_seed() {
        let draw = |seed| {
            let (jitter, mut tries) = (SeededJitter::new(seed), POLICY.begin(Duration::ZERO));
            let pause = |_| tries.pause(Duration::ZERO, None, &jitter).expect("in time");
            (0..8).map(pause).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert_eq!(first, draw(7));
        assert_ne!(first, draw(8));
        for (pause, bound) in first.iter().zip([50, 100, 200, 400, 400, 400, 400, 400]) {
            assert!(*pause <= Duration::from_millis(bound), "{first:?}");
        }
        // Full jitter uses the whole span, the lower half too.
        let jitter = SeededJitter::new(1);
        let low = (0..1000).filter(|_| jitter.up_to(POLICY.most) < POLICY.most / 2);
        assert!((400..600).contains(&low.count()));
    }

    #[test]
    fn the_other_sides_wish_is_a_floor_and_the_deadline_ends_it() {
        let jitter = SeededJitter::new(3);
        let mut tries = POLICY.begin(Duration::from_secs(5));
        let wish = Duration::from_secs(2);
        let pause = tries.pause(Duration::from_secs(6), Some(wish), &jitter);
        assert!(pause.expect("in time") >= wish);
        assert_eq!(
            tries.pause(Duration::from_secs(14), Some(wish), &jitter),
            None
        );
        assert_eq!(tries.left(Duration::from_secs(20)), Duration::ZERO);
        tries.not_after(Duration::from_secs(7));
        assert_eq!(tries.left(Duration::from_secs(6)), Duration::from_secs(1));
    }

    #[test]
    fn a_huge_bound_neither_overflows_nor_shrinks_to_nothing() {
        let jitter = SeededJitter::new(3);
        assert!(jitter.up_to(Duration::MAX) > Duration::from_secs(1));
    }
}
