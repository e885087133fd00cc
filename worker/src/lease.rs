//! How long this worker may believe that it holds its leases.
//!
//! A lease ends only by a command, and the leader expires one only after the session has been
//! silent for the lease's time to live, counted from the last heartbeat that *it received*. So
//! until `sent + ttl` of the last heartbeat that the leader is known to have received, no lease
//! of the session can have ended by silence. [`Contact`] keeps that one point in time.
//!
//! Private work does not care: it runs on, and its result counts while no higher token exists.
//! Shared work asks [`Lease::permit`] before each change and holds still when there is none.

use std::sync::Arc;
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_model::ids::Token;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Less time than this left is not enough for any change.
const CHANGE_MIN: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    /// When the newest heartbeat that the leader has received was sent, monotonic.
    sent: Option<Duration>,
    ttl: Duration,
}

/// What is known of the leader's patience. One per worker, shared by all its leases.
#[derive(Debug)]
pub struct Contact {
    clock: SharedClock,
    margin: Duration,
    heard: watch::Sender<Heard>,
}

impl Contact {
    /// No contact yet. `margin` is kept free before leases can end.
    pub fn new(clock: SharedClock, margin: Duration) -> Contact {
        Contact {
            clock,
            margin,
            heard: watch::Sender::new(Heard::default()),
        }
    }

    /// The leader has what was sent at `sent` (monotonic), and leases live for `ttl` from then.
    pub fn heard(&self, sent: Duration, ttl: Duration) {
        self.heard.send_if_modified(|heard| {
            let newer = heard.sent.is_none_or(|before| before < sent) || heard.ttl != ttl;
            if newer {
                heard.sent = Some(heard.sent.map_or(sent, |before| before.max(sent)));
                heard.ttl = ttl;
            }
            newer
        });
    }

    /// Until when shared things may be changed, monotonic.
    pub fn until(&self) -> Option<Duration> {
        let heard = *self.heard.borrow();
        // A lease shorter than two margins would never allow anything.
        let margin = self.margin.min(heard.ttl / 2);
        Some(heard.sent? + heard.ttl.saturating_sub(margin))
    }

    /// Time left for changes, when there is enough.
    fn left(&self) -> Option<Duration> {
        let left = self.until()?.saturating_sub(self.clock.monotonic());
        (left >= CHANGE_MIN).then_some(left)
    }
}

/// The lease was ended by a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {token} has ended")]
pub struct Ended {
    /// Which.
    pub token: Token,
}

/// One lease that this worker holds.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Its fencing token.
    pub token: Token,
    ended: CancellationToken,
    contact: Arc<Contact>,
}

impl Lease {
    /// A lease that ends when `ended` is cancelled.
    pub fn new(token: Token, ended: CancellationToken, contact: Arc<Contact>) -> Lease {
        Lease {
            token,
            ended,
            contact,
        }
    }

    /// Waits until shared things may be changed and says for how long. Cancel-safe.
    ///
    /// # Errors
    /// When the lease has been ended.
    pub async fn permit(&self) -> Result<Duration, Ended> {
        let mut heard = self.contact.heard.subscribe();
        loop {
            if self.ended.is_cancelled() {
                return Err(Ended { token: self.token });
            }
            heard.mark_unchanged();
            if let Some(left) = self.contact.left() {
                return Ok(left);
            }
            tokio::select! {
                () = self.ended.cancelled() => {}
                // The sender lives in `self.contact`, so it is never gone.
                _ = heard.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use oast_daemon::clock::{Clock, ManualClock};

    use super::*;

    fn lease(clock: &Arc<ManualClock>) -> (Lease, Arc<Contact>, CancellationToken) {
        let contact = Arc::new(Contact::new(clock.clone(), Duration::from_secs(1)));
        let ended = CancellationToken::new();
        let token = Token::from_u64(7);
        (
            Lease::new(token, ended.clone(), contact.clone()),
            contact,
            ended,
        )
    }

    #[tokio::test]
    async fn changes_stop_a_margin_before_the_lease_can_end_and_go_on_after_contact() {
        let clock = Arc::new(ManualClock::default());
        let (lease, contact, _ended) = lease(&clock);
        let ttl = Duration::from_secs(5);
        contact.heard(clock.monotonic(), ttl);
        assert_eq!(lease.permit().await, Ok(Duration::from_secs(4)));
        clock.advance(Duration::from_secs(4));
        let waiting = lease.permit();
        tokio::pin!(waiting);
        let now = futures_util::poll!(&mut waiting);
        assert!(
            now.is_pending(),
            "4 s after the heartbeat nothing may change"
        );
        contact.heard(clock.monotonic(), ttl);
        assert_eq!(waiting.await, Ok(Duration::from_secs(4)));
    }

    #[tokio::test]
    async fn an_ended_lease_permits_nothing_even_with_contact() {
        let clock = Arc::new(ManualClock::default());
        let (lease, contact, ended) = lease(&clock);
        contact.heard(clock.monotonic(), Duration::from_secs(5));
        ended.cancel();
        assert_eq!(lease.permit().await, Err(Ended { token: lease.token }));
    }

    #[test]
    fn an_answer_to_an_older_heartbeat_takes_nothing_back() {
        let clock = Arc::new(ManualClock::default());
        let (_, contact, _) = lease(&clock);
        let ttl = Duration::from_secs(4);
        contact.heard(Duration::from_secs(9), ttl);
        contact.heard(Duration::from_secs(3), ttl);
        assert_eq!(contact.until(), Some(Duration::from_secs(12)));
    }
}
