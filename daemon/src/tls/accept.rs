//! The answering side of a handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::certificate::Certificate;
use super::identity::{Identity, unix};
use super::name::Name;
use super::problem::Problem;
use super::verify::noted;
use crate::clock::timeout;
use crate::metrics::{Counters, Metric};

/// First byte of a TLS conversation: a handshake record.
const HANDSHAKE: u8 = 0x16;
/// Shortest time between two warnings for the same reason; all of them are counted.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// What somebody reads who speaks HTTP to a TLS port.
const SAY_HTTPS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 45\r\n\r\nthis port speaks TLS only: write https://...\n";

/// Who uses a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Members and workers, who show certificates.
    Farm,
    /// People and their tools, who show tokens.
    People,
}

/// Shakes hands on one port.
#[derive(Clone, Debug)]
pub struct Acceptor {
    identity: Identity,
    purpose: Purpose,
    patience: Duration,
    done: Counters,
    failed: Counters,
    warned: Arc<Mutex<[Option<Duration>; Problem::LABELS.len()]>>,
}

/// A connection that may be used.
#[derive(Debug)]
pub struct Accepted {
    /// The conversation.
    pub stream: TlsStream<TcpStream>,
    /// Who is on the other end, if they showed a certificate.
    pub who: Option<Name>,
}

impl Acceptor {
    /// For connections to `purpose`, which may take `patience` to shake hands.
    #[must_use]
    pub fn new(identity: Identity, purpose: Purpose, patience: Duration) -> Acceptor {
        let metrics = identity.metrics().clone();
        Acceptor {
            identity,
            purpose,
            patience,
            done: metrics.counters(Metric::TlsHandshakes),
            failed: metrics.counters(Metric::TlsHandshakeFailures),
            warned: Arc::default(),
        }
    }

    /// Shakes hands. A failure is counted and logged here, once.
    pub async fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Option<Accepted> {
        let clock = self.identity.clock().clone();
        let shaken = timeout(&*clock, self.patience, self.shake(stream)).await;
        let problem = match shaken.unwrap_or(Err(Problem::Slow)) {
            Ok(accepted) => return Some(accepted),
            Err(problem) => problem,
        };
        self.failed.with(&[problem.label()]).inc();
        if self.may_warn(&problem) {
            warn!(%peer, reason = problem.label(), "A connection is refused: {problem}.");
        } else {
            debug!(%peer, reason = problem.label(), "A connection is refused: {problem}.");
        }
        None
    }

    async fn shake(&self, mut stream: TcpStream) -> Result<Accepted, Problem> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return Err(Problem::Broken),
            Ok(_) if first[0] != HANDSHAKE => {
                // They may be gone, and it is a courtesy only.
                let _ = stream.write_all(SAY_HTTPS).await;
                let _ = stream.shutdown().await;
                return Err(Problem::Plain("it must call this port with TLS (https://)"));
            }
            Ok(_) => {}
        }
        let current = self.identity.current();
        let config = match self.purpose {
            Purpose::Farm => current.farm.clone(),
            Purpose::People => current.people.clone(),
        };
        let acceptor = TlsAcceptor::from(config);
        let (shaken, note) = noted(async {
            let stream = acceptor.accept(stream).await?;
            let (_, connection) = stream.get_ref();
            let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
            let who = match connection.peer_certificates() {
                // A resumed session repeats what was judged when it began; since then the
                // certificate may have come to its end.
                Some(chain) if resumed => {
                    let now = unix(self.identity.clock().wall());
                    let admitted = current.callers.admit(chain, now);
                    Some(admitted.map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?)
                }
                Some([end, ..]) => Certificate::read(end).ok().and_then(|end| end.name()),
                _ => None,
            };
            Ok::<_, io::Error>((Accepted { stream, who }, resumed))
        })
        .await;
        match shaken {
            Ok((accepted, resumed)) => {
                let kind = if resumed { "resumed" } else { "full" };
                self.done.with(&[kind]).inc();
                Ok(accepted)
            }
            Err(error) => {
                Err(note.unwrap_or_else(|| Problem::of_error(&error, Some(current.certificate()))))
            }
        }
    }

    /// Strangers must not be able to fill the log.
    fn may_warn(&self, problem: &Problem) -> bool {
        let place = Problem::LABELS
            .iter()
            .position(|label| *label == problem.label());
        let now = self.identity.clock().monotonic();
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = place.and_then(|place| warned.get_mut(place)) else {
            return true;
        };
        let due = last.is_none_or(|last| now.saturating_sub(last) >= WARN_INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }
}
