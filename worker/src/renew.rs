//! A worker's next certificate, signed by whichever member answers.
//!
//! Not over the session: a worker whose certificate is nearly over must get the next one also
//! while nobody leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::random;
use oast_daemon::telemetry::chain;
use oast_daemon::tls::{self, Certificate, Dialer, Problem, RenewError, Renewer, Signed};
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::certificates_client::CertificatesClient;
use tonic::transport::{Channel, Endpoint};

/// Time for one member to answer, the connection included.
const ANSWER: Duration = Duration::from_secs(5);

/// Members that sign.
#[derive(Clone, Debug)]
pub struct Members {
    addresses: Arc<[SocketAddr]>,
    dialer: Dialer,
    clock: SharedClock,
}

impl Members {
    /// Any of these may be asked.
    pub fn new(addresses: &[SocketAddr], dialer: Dialer, clock: SharedClock) -> Members {
        Members {
            addresses: addresses.into(),
            dialer,
            clock,
        }
    }

    /// Asks one after the other, beginning anywhere.
    async fn ask(self, request: Vec<u8>) -> Result<Vec<Certificate>, RenewError> {
        let mut last = "no member is configured".to_owned();
        let first = usize::try_from(random::number() >> 32).unwrap_or_default();
        for place in 0..self.addresses.len() {
            let address = self.addresses[(first + place) % self.addresses.len()];
            let asked = timeout(&*self.clock, ANSWER, self.one(address, &request)).await;
            match asked.map_err(|late| late.to_string()) {
                Ok(Ok(chain)) => return Ok(chain),
                Ok(Err(why)) | Err(why) => last = format!("{address}: {why}"),
            }
        }
        Err(RenewError::Asked(last))
    }

    async fn one(&self, address: SocketAddr, request: &[u8]) -> Result<Vec<Certificate>, String> {
        let channel = channel(address, &self.dialer).await;
        let channel = channel.map_err(|unreachable| unreachable.to_string())?;
        let asked = wire::RenewRequest {
            request: request.to_vec().into(),
        };
        let answer = CertificatesClient::new(channel).renew(asked).await;
        let answer = answer.map_err(|status| match self.dialer.refusal() {
            Some(refused) => refused.problem.to_string(),
            None => status.message().to_owned(),
        })?;
        certificates(&answer.into_inner().chain)
    }
}

impl Renewer for Members {
    fn renew(&self, request: Vec<u8>) -> Signed {
        Box::pin(self.clone().ask(request))
    }
}

/// Why there is no connection to a member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    /// One of the two does not trust the other; trying again changes nothing.
    #[error("{0}")]
    Distrust(Problem),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A connection to one member.
pub(crate) async fn channel(address: SocketAddr, dialer: &Dialer) -> Result<Channel, Unreachable> {
    let other = |err: &tonic::transport::Error| match tls::reason(err) {
        Some(refused) if refused.problem.is_distrust() => {
            Unreachable::Distrust(refused.problem.clone())
        }
        _ => Unreachable::Other(chain(err).to_string()),
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|err| other(&err))?;
    let endpoint = endpoint.connect_timeout(ANSWER);
    let connected = endpoint.connect_with_connector(dialer.connector()).await;
    connected.map_err(|err| other(&err))
}

/// Reads what a member sent.
pub(crate) fn certificates<B: AsRef<[u8]>>(ders: &[B]) -> Result<Vec<Certificate>, String> {
    let read = ders
        .iter()
        .map(|der| Certificate::read(&der.as_ref().to_vec().into()));
    read.collect::<Result<_, _>>()
        .map_err(|err| format!("it sent a certificate that cannot be used: {err}"))
}
