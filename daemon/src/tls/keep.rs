//! Keeping certificates good: renewed at two thirds of their life, read again when an operator
//! replaces the files. Connections that are open go on either way.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use oast_model::time::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::authority::{IssueError, LEAF_LIFE, Order};
use super::certificate::Certificate;
use super::identity::{Identity, IdentityError};
use super::key::{Key, KeyError};
use super::request::{self, RequestError};
use crate::metrics::{Counters, Metric};
use crate::random;
use crate::telemetry::chain;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// First pause after a renewal failed; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// A new certificate was not had.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The key or the request.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Our own request, as a member's issuer sees it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// This member has no issuer.
    #[error(
        "this member has no issuer.pem: `oast operator pki issue member` makes a certificate and an issuer"
    )]
    NoIssuer,
    /// It was not signed.
    #[error("sign it")]
    Issue(#[source] IssueError),
    /// Nobody answers who could sign it.
    #[error("ask a member to sign it: {0}")]
    Asked(String),
    /// What came back cannot be used.
    #[error("use the new certificate")]
    Install(#[source] IdentityError),
}

/// A chain, the holder's own certificate first.
pub type Signed = Pin<Box<dyn Future<Output = Result<Vec<Certificate>, RenewError>> + Send>>;

/// Who signs a new certificate for the one in use.
pub trait Renewer: Send + Sync + 'static {
    /// Signs a request (PKCS#10) for the same identity. May wait for others.
    fn renew(&self, request: Vec<u8>) -> Signed;
}

/// A member signs for itself.
#[derive(Clone, Debug)]
pub struct OwnIssuer {
    /// Whose issuer, and for whom.
    pub identity: Identity,
    /// Life of what it signs.
    pub life: Duration,
}

impl OwnIssuer {
    /// With the usual life.
    #[must_use]
    pub fn new(identity: Identity) -> OwnIssuer {
        OwnIssuer {
            identity,
            life: LEAF_LIFE,
        }
    }

    fn sign(&self, request: &[u8]) -> Result<Vec<Certificate>, RenewError> {
        let current = self.identity.current();
        let issuer = current.issuer().ok_or(RenewError::NoIssuer)?;
        let order = Order {
            name: current.name().clone(),
            hosts: current.certificate().hosts().to_vec(),
            key: request::check(request)?,
            now: self.identity.clock().wall(),
            life: self.life,
        };
        let signed = issuer.issue(&order).map_err(RenewError::Issue)?;
        Ok(vec![signed, issuer.certificate().clone()])
    }
}

impl Renewer for OwnIssuer {
    fn renew(&self, request: Vec<u8>) -> Signed {
        let signed = self.sign(&request);
        Box::pin(std::future::ready(signed))
    }
}

/// What is to be done now, and when to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    renew: bool,
    look_again: Duration,
}

/// Decides from the clock and the certificate; `retry_at` is the end of the pause after a failure.
fn plan(now: Timestamp, renew_at: Timestamp, retry_at: Option<Timestamp>) -> Plan {
    let due = renew_at.max(retry_at.unwrap_or(Timestamp::EPOCH));
    if now >= due {
        return Plan {
            renew: true,
            look_again: Duration::ZERO,
        };
    }
    Plan {
        renew: false,
        look_again: due.since(now).min(LOOK),
    }
}

/// Looks after `identity` until shutdown. No error ends it.
pub async fn keep(identity: Identity, renewer: impl Renewer, shutdown: CancellationToken) {
    let clock = identity.clock().clone();
    let renewals = identity.metrics().counters(Metric::TlsRenewals);
    let mut pause = PAUSE;
    let mut retry_at = None;
    let mut said = String::new();
    loop {
        if identity.changed() {
            reload(&identity, &mut said);
        }
        let current = identity.current();
        let planned = plan(clock.wall(), current.certificate().renew_at(), retry_at);
        let mut wait = planned.look_again;
        if planned.renew {
            let renewed = tokio::select! {
                renewed = renew(&identity, &renewer) => renewed,
                // What a member signs meanwhile is worth nothing without the key.
                () = shutdown.cancelled() => return,
            };
            match renewed {
                Ok(()) => {
                    count(&renewals, "renewed");
                    (pause, retry_at) = (PAUSE, None);
                    let until = identity.current().certificate().not_after();
                    info!(%until, "The certificate is renewed.");
                }
                Err(err) => {
                    count(&renewals, "failed");
                    let until = current.certificate().not_after();
                    warn!(%until, error = %chain(&err), "The certificate could not be renewed; will try again.");
                    // Spread, so that workers do not ask at the same moment.
                    let share = u32::try_from(random::number() % 1000).expect("below 1000");
                    retry_at = Some(clock.wall() + pause / 2 + pause * share / 2000);
                    pause = (pause * 2).min(PAUSE_MAX);
                    wait = Duration::ZERO;
                }
            }
        }
        if !wait.is_zero() {
            tokio::select! {
                () = clock.sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
        } else if shutdown.is_cancelled() {
            return;
        }
    }
}

fn reload(identity: &Identity, said: &mut String) {
    match identity.reload() {
        Ok(()) => {
            said.clear();
            let current = identity.current();
            let until = current.certificate().not_after();
            info!(name = %current.name(), %until, "The certificate files have changed; the new ones are in use.");
        }
        Err(err) => {
            // Files that are replaced one after the other may not fit for a moment.
            let text = chain(&err).to_string();
            if *said != text {
                error!(error = %text, "The certificate files have changed and cannot be used; the old ones stay in use.");
                *said = text;
            }
        }
    }
}

async fn renew(identity: &Identity, renewer: &impl Renewer) -> Result<(), RenewError> {
    // A new key each time: one that leaked is worth nothing after this.
    let key = Key::generate()?;
    let request = request::make(&key, identity.current().name().name())?;
    let signed = renewer.renew(request).await?;
    identity.install(key, signed).map_err(RenewError::Install)
}

fn count(renewals: &Counters, outcome: &str) {
    renewals.with(&[outcome]).inc();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_and_files_are_looked_at_meanwhile() {
        let at = |seconds: u64| Timestamp::from_millis(seconds * 1_000);
        let wait = |seconds| Plan {
            renew: false,
            look_again: Duration::from_secs(seconds),
        };
        let renew = Plan {
            renew: true,
            look_again: Duration::ZERO,
        };
        assert_eq!(plan(at(0), at(100), None), wait(5));
        assert_eq!(plan(at(97), at(100), None), wait(3));
        assert_eq!(plan(at(100), at(100), None), renew);
        assert_eq!(plan(at(5_000), at(100), None), renew);
        // After a failure not before the pause is over.
        assert_eq!(plan(at(101), at(100), Some(at(103))), wait(2));
        assert_eq!(plan(at(103), at(100), Some(at(103))), renew);
    }
}
