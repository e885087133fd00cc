//! Asks one instance how it is, over the same way in as the balancer's connections.
//!
//! ```text
//!                 healthy_after in a row
//! Initializing ---------------------------> Healthy
//!      |  unhealthy_after answers in a row     |  unhealthy_after in a row,
//!      |  that were wrong, or GRACE over       |  or one refused connection
//!      '-------------> Unhealthy <-------------'
//! ```
//!
//! While an instance starts, refused connections and silence are no verdict, wrong answers are.
//! The check speaks just enough HTTP/1.1 to read a status line. It decides nothing about repair.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::{Clock, SharedClock, timeout};

use super::backend::{Backend, Health};
use super::spec::HealthCheck;

/// Time a boot has until silence means unhealthy.
pub const GRACE: Duration = Duration::from_secs(15);
/// Time between checks until the first verdict, when the set's interval is longer.
const EAGER: Duration = Duration::from_millis(25);
/// Longest status line and headers that are read.
const HEAD_MAX: usize = 8 << 10;

/// A verdict, or the reason of an unhealthy one, has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The instance.
    pub id: String,
    /// The boot it is about.
    pub boot: u64,
    /// The verdict.
    pub health: Health,
    /// Why it is unhealthy.
    pub reason: String,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("connection refused")]
    Refused,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("connection failed: {0}")]
    Io(io::ErrorKind),
    #[error("answered {got} instead of {want}")]
    Status { got: u16, want: u16 },
    #[error("answered something that is not HTTP")]
    NotHttp,
}

impl CheckError {
    /// Whether the service spoke, so that its being slow to start is no excuse.
    fn is_answer(&self) -> bool {
        matches!(self, CheckError::Status { .. } | CheckError::NotHttp)
    }
}

/// Checks `backend` until `stop`, and reports each change.
pub async fn run(
    backend: Arc<Backend>,
    mut config: watch::Receiver<HealthCheck>,
    verdicts: mpsc::Sender<Verdict>,
    clock: SharedClock,
    stop: CancellationToken,
) {
    let mut state = Streak::begin(0, clock.monotonic());
    loop {
        let check = config.borrow_and_update().clone();
        if let Some(boot) = backend.boot() {
            if state.boot != boot {
                state = Streak::begin(boot, clock.monotonic());
            }
            let result = probe(&backend, &check, &*clock).await;
            let now = backend.health();
            if now == Health::Unhealthy && state.was(Health::Healthy) {
                // The balancer met a refusal in between: what was good before it does not count.
                state.good = 0;
            }
            let (health, reason) = state.judge(now, result, &check, clock.monotonic());
            let changed =
                health != now || state.reported.as_ref() != Some(&(health, reason.clone()));
            if changed && backend.set_health(boot, health) {
                state.reported = Some((health, reason.clone()));
                let verdict = Verdict {
                    id: backend.id.clone(),
                    boot,
                    health,
                    reason,
                };
                // The owner gone means that the cloud is stopping.
                if verdicts.send(verdict).await.is_err() {
                    return;
                }
            }
        }
        let pause = match backend.health() {
            Health::Initializing => check.interval.min(EAGER),
            _ => check.interval,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            // A refused connection or a new boot: look now.
            () = backend.suspect.notified() => {}
            Ok(()) = config.changed() => {}
            () = clock.sleep(pause) => {}
        }
    }
}

/// Successes and failures in a row of one boot.
#[derive(Debug)]
struct Streak {
    boot: u64,
    since: Duration,
    good: u32,
    bad: u32,
    reported: Option<(Health, String)>,
}

impl Streak {
    fn begin(boot: u64, since: Duration) -> Streak {
        Streak {
            boot,
            since,
            good: 0,
            bad: 0,
            reported: None,
        }
    }

    fn was(&self, health: Health) -> bool {
        self.reported.as_ref().is_some_and(|r| r.0 == health)
    }

    fn judge(
        &mut self,
        now: Health,
        result: Result<(), CheckError>,
        check: &HealthCheck,
        at: Duration,
    ) -> (Health, String) {
        let failure = match result {
            Ok(()) => {
                self.good += 1;
                self.bad = 0;
                // Initializing | Unhealthy => Healthy
                let health = if self.good >= check.healthy_after {
                    Health::Healthy
                } else {
                    now
                };
                let reason = self
                    .reported
                    .as_ref()
                    .map(|r| r.1.clone())
                    .unwrap_or_default();
                return (
                    health,
                    if health == Health::Unhealthy {
                        reason
                    } else {
                        String::new()
                    },
                );
            }
            Err(failure) => failure,
        };
        self.good = 0;
        self.bad += 1;
        let health = match now {
            Health::Healthy if matches!(failure, CheckError::Refused) => Health::Unhealthy,
            Health::Healthy | Health::Unhealthy => {
                if self.bad >= check.unhealthy_after {
                    Health::Unhealthy
                } else {
                    now
                }
            }
            Health::Initializing if failure.is_answer() && self.bad >= check.unhealthy_after => {
                Health::Unhealthy
            }
            Health::Initializing if at.saturating_sub(self.since) >= GRACE => Health::Unhealthy,
            Health::Initializing => Health::Initializing,
        };
        let reason = match health {
            Health::Unhealthy => failure.to_string(),
            _ => String::new(),
        };
        (health, reason)
    }
}

/// One check.
async fn probe(
    backend: &Backend,
    check: &HealthCheck,
    clock: &dyn Clock,
) -> Result<(), CheckError> {
    timeout(clock, check.timeout, ask(backend, check))
        .await
        .unwrap_or(Err(CheckError::Timeout(check.timeout)))
}

async fn ask(backend: &Backend, check: &HealthCheck) -> Result<(), CheckError> {
    let failed = |err: io::Error| CheckError::Io(err.kind());
    let mut stream = backend.connect().await.map_err(|err| match err.kind() {
        io::ErrorKind::ConnectionRefused => CheckError::Refused,
        kind => CheckError::Io(kind),
    })?;
    if check.path.is_empty() {
        return Ok(());
    }
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: oast-health\r\nConnection: close\r\n\r\n",
        check.path
    );
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(512);
    loop {
        if let Some(status) = status(&head)? {
            return if status == check.status {
                Ok(())
            } else {
                Err(CheckError::Status {
                    got: status,
                    want: check.status,
                })
            };
        }
        if head.len() >= HEAD_MAX || stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            return Err(CheckError::NotHttp);
        }
    }
}

/// The status, once the status line is complete.
fn status(head: &[u8]) -> Result<Option<u16>, CheckError> {
    let Some(end) = head.iter().position(|b| *b == b'\n') else {
        return Ok(None);
    };
    let mut response = httparse::Response::new(&mut []);
    // Only the first line is given, so that headers need no room: httparse sees a partial head.
    match response.parse(&head[..=end]) {
        Ok(_) => response.code.map(Some).ok_or(CheckError::NotHttp),
        Err(_) => Err(CheckError::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            healthy_after: 2,
            unhealthy_after: 3,
            ..HealthCheck::default()
        }
    }

    fn wrong() -> Result<(), CheckError> {
        Err(CheckError::Status {
            got: 500,
            want: 200,
        })
    }

    #[test]
    fn an_instance_is_healthy_after_enough_good_answers_in_a_row() {
        let mut streak = Streak::begin(1, Duration::ZERO);
        let (h, _) = streak.judge(Health::Initializing, Ok(()), &check(), Duration::ZERO);
        assert_eq!(h, Health::Initializing);
        let (h, _) = streak.judge(h, wrong(), &check(), Duration::ZERO);
        let (h, _) = streak.judge(h, Ok(()), &check(), Duration::ZERO);
        assert_eq!(h, Health::Initializing);
        let (h, _) = streak.judge(h, Ok(()), &check(), Duration::ZERO);
        assert_eq!(h, Health::Healthy);
    }

    #[test]
    fn a_refused_connection_is_believed_at_once_when_the_instance_was_healthy() {
        let mut streak = Streak::begin(1, Duration::ZERO);
        let (h, reason) = streak.judge(
            Health::Healthy,
            Err(CheckError::Refused),
            &check(),
            Duration::ZERO,
        );
        assert_eq!(
            (h, reason.as_str()),
            (Health::Unhealthy, "connection refused")
        );
    }

    #[test]
    fn refusing_while_it_starts_is_no_verdict_but_wrong_answers_are() {
        let mut streak = Streak::begin(1, Duration::ZERO);
        for _ in 0..10 {
            let (h, _) = streak.judge(
                Health::Initializing,
                Err(CheckError::Refused),
                &check(),
                Duration::ZERO,
            );
            assert_eq!(h, Health::Initializing);
        }
        let (h, reason) = streak.judge(Health::Initializing, wrong(), &check(), Duration::ZERO);
        assert_eq!(h, Health::Unhealthy);
        assert_eq!(reason, "answered 500 instead of 200");
    }

    #[test]
    fn the_status_line_alone_is_enough() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nServer").unwrap(), Some(200));
        assert_eq!(status(b"HTTP/1.1 50").unwrap(), None);
        assert!(status(b"SSH-2.0-OpenSSH\r\n").is_err());
    }
}
