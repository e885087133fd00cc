//! The calling side: a connector for tonic and hyper, and for whoever wants a bare stream.
//!
//! In TLS 1.3 the caller is done before the other end has looked at its certificate, so a refusal
//! arrives with the first read. [`Line`] turns that into the same kind of error as one from the
//! handshake, so that the reason is not lost as "connection reset". HTTP/2 keeps only the text of
//! an I/O error, so the dialer remembers such a refusal too ([`Dialer::refusal`]).
//!
//! A call takes as long as it takes: who calls bounds it (`connect_timeout` of an endpoint).

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{Certificate, PIN_PREFIX};
use super::identity::{Identity, Watch, root_store};
use super::pem::{Bundle, FileError};
use super::problem::Problem;
use super::verify::{Strangers, Trust, noted};
use crate::clock::SharedClock;

/// Where Debian and its kin keep the authorities that browsers know.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A connection was not made, or was refused after it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address}: {problem}")]
pub struct Refused {
    /// Who was called.
    pub address: String,
    /// Why.
    pub problem: Problem,
}

/// Whom to trust cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The file of authorities.
    #[error("read the authorities to trust")]
    Roots(#[from] FileError),
    /// There is none.
    #[error(
        "no authority is known: give the farm's with `--ca FILE`, or keep it: `oast context set NAME --addr ADDRESS --ca FILE`"
    )]
    NoRoots,
    /// The pin.
    #[error(
        "`{0}` is no pin of an authority: it is `sha256:` and 64 hex digits, as `oast operator worker-token create` prints it"
    )]
    Pin(String),
    /// The library refused.
    #[error("set TLS up")]
    Setup(#[source] rustls::Error),
}

/// How others are called. Cheap to clone; sessions are resumed between clones.
#[derive(Clone)]
pub struct Dialer {
    how: How,
    refused: Slot,
}

/// The last refusal that came after a handshake.
type Slot = Arc<Mutex<Option<Refused>>>;

#[derive(Clone)]
enum How {
    /// In the clear.
    Plain,
    /// As a member or worker of a farm, with whatever certificate is newest.
    Farm(Identity),
    /// As somebody who shows a token, or nothing.
    Stranger(Arc<ClientConfig>),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.how {
            How::Plain => "Dialer(plain)",
            How::Farm(_) => "Dialer(farm)",
            How::Stranger(_) => "Dialer(stranger)",
        })
    }
}

impl Dialer {
    fn new(how: How) -> Dialer {
        Dialer {
            how,
            refused: Slot::default(),
        }
    }

    /// Without TLS: inside one machine.
    #[must_use]
    pub fn plain() -> Dialer {
        Dialer::new(How::Plain)
    }

    /// With our certificate, to members of our farm only.
    #[must_use]
    pub fn farm(identity: Identity) -> Dialer {
        Dialer::new(How::Farm(identity))
    }

    /// Without a certificate, to who is trusted by `roots`.
    ///
    /// # Errors
    /// [`DialError`].
    pub fn trusting(roots: &[Certificate], clock: SharedClock) -> Result<Dialer, DialError> {
        if roots.is_empty() {
            return Err(DialError::NoRoots);
        }
        let store = root_store(roots).map_err(DialError::Setup)?;
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(store.into(), provider).build();
        let inner =
            inner.map_err(|err| DialError::Setup(rustls::Error::General(err.to_string())))?;
        Dialer::stranger(Trust::Roots(inner), clock)
    }

    /// Without a certificate, to who is trusted by this machine's own list of authorities.
    ///
    /// # Errors
    /// [`DialError`]; a machine without a list says how to give an authority.
    pub fn system(clock: SharedClock) -> Result<Dialer, DialError> {
        let path = PathBuf::from(SYSTEM_ROOTS);
        if !path.exists() {
            return Err(DialError::NoRoots);
        }
        Dialer::trusting(&Bundle::read(&path)?.chain, clock)
    }

    /// Without a certificate, to who shows a root with this pin: the first contact of a worker.
    ///
    /// # Errors
    /// [`DialError::Pin`].
    pub fn pinned(pin: &str, clock: SharedClock) -> Result<Dialer, DialError> {
        let hex = pin.strip_prefix(PIN_PREFIX).unwrap_or_default();
        let good = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !good {
            return Err(DialError::Pin(pin.to_owned()));
        }
        Dialer::stranger(Trust::Pin(pin.to_owned()), clock)
    }

    fn stranger(trust: Trust, clock: SharedClock) -> Result<Dialer, DialError> {
        let provider = Arc::new(ring::default_provider());
        let strangers = Strangers {
            trust,
            provider: provider.clone(),
        };
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(Watch(clock)))
            .with_safe_default_protocol_versions()
            .map_err(DialError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(strangers))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Dialer::new(How::Stranger(Arc::new(config))))
    }

    /// Whether what is sent can be read on the way.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(self.how, How::Plain)
    }

    /// Why the other end closed a connection of this dialer after the handshake; each refusal is
    /// given once.
    #[must_use]
    pub fn refusal(&self) -> Option<Refused> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.take()
    }

    /// Calls `address`, which is host:port.
    ///
    /// # Errors
    /// An I/O error whose inner error is [`Refused`] when TLS is the reason.
    pub async fn dial(&self, address: &str) -> io::Result<Line> {
        let (config, own) = match &self.how {
            How::Plain => return Ok(Line::Plain(connect(address).await?)),
            How::Farm(identity) => {
                let current = identity.current();
                let own = current.certificate();
                let now = identity.clock().wall();
                // Nobody would believe it, and where an earlier session is resumed the other end
                // cuts it off without a word.
                if now > own.not_after() {
                    let at = own.not_after();
                    let whose = super::problem::whose(Some(own));
                    return Err(refused(address, Problem::Expired { whose, at, now }));
                }
                (current.calls.clone(), Some(own.clone()))
            }
            How::Stranger(config) => (config.clone(), None),
        };
        let tcp = connect(address).await?;
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned())
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidInput, err))?;
        let (shaken, note) = noted(TlsConnector::from(config).connect(name, tcp)).await;
        match shaken {
            Ok(stream) => Ok(Line::Tls(Box::new(Tls {
                stream,
                address: address.to_owned(),
                own,
                refused: self.refused.clone(),
            }))),
            Err(error) => {
                let problem = note.unwrap_or_else(|| Problem::of_error(&error, own.as_ref()));
                Err(refused(address, problem))
            }
        }
    }

    /// For tonic's `connect_with_connector`: the address is taken from the URI.
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector(self.clone())
    }
}

async fn connect(address: &str) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

fn refused(address: &str, problem: Problem) -> io::Error {
    let refused = Refused {
        address: address.to_owned(),
        problem,
    };
    io::Error::new(io::ErrorKind::ConnectionRefused, refused)
}

/// What is wrong with TLS, if that is among the causes of an error.
#[must_use]
pub fn reason<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e Refused> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(refused);
        }
        // io::Error's source is its inner error's source: the inner one itself is left out.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn std::error::Error + 'static));
        if let Some(refused) = inner.and_then(|inner| inner.downcast_ref::<Refused>()) {
            return Some(refused);
        }
        next = inner
            .and_then(std::error::Error::source)
            .or_else(|| error.source());
    }
    None
}

/// A [`Dialer`] as a service from URI to stream.
#[derive(Clone, Debug)]
pub struct Connector(Dialer);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Line>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Line>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            let Some(address) = uri.authority() else {
                let what = format!("`{uri}` names no host");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            };
            dialer.dial(address.as_str()).await.map(TokioIo::new)
        })
    }
}

/// A connection that was made.
#[derive(Debug)]
pub enum Line {
    /// In the clear.
    Plain(TcpStream),
    /// Under TLS.
    Tls(Box<Tls>),
}

/// A connection under TLS, whose errors say why.
#[derive(Debug)]
pub struct Tls {
    stream: TlsStream<TcpStream>,
    address: String,
    own: Option<Certificate>,
    refused: Slot,
}

impl Tls {
    /// An alert that comes after the handshake is the other end's judgement of our certificate.
    fn explain(&self, error: io::Error) -> io::Error {
        let alert = error.get_ref().is_some_and(|inner| {
            matches!(
                inner.downcast_ref::<rustls::Error>(),
                Some(rustls::Error::AlertReceived(_))
            )
        });
        if !alert {
            return error;
        }
        let refused = Refused {
            address: self.address.clone(),
            problem: Problem::of_error(&error, self.own.as_ref()),
        };
        let mut slot = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(refused.clone());
        io::Error::new(io::ErrorKind::ConnectionRefused, refused)
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Line::Tls(tls) => {
                let read = ready!(Pin::new(&mut tls.stream).poll_read(cx, buf));
                Poll::Ready(read.map_err(|error| tls.explain(error)))
            }
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Line::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Line::Tls(tls) => {
                let written = ready!(Pin::new(&mut tls.stream).poll_write(cx, buf));
                Poll::Ready(written.map_err(|error| tls.explain(error)))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Line::Tls(tls) => Pin::new(&mut tls.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Line::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Line::Tls(tls) => Pin::new(&mut tls.stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Line::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Line::Tls(tls) => {
                let written = ready!(Pin::new(&mut tls.stream).poll_write_vectored(cx, bufs));
                Poll::Ready(written.map_err(|error| tls.explain(error)))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Line::Plain(tcp) => tcp.is_write_vectored(),
            Line::Tls(tls) => tls.stream.is_write_vectored(),
        }
    }
}
