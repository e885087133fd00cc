//! Sockets: HTTP/1.1 in the clear and under TLS, in front of one world behind one lock.
//!
//! Real time enters here and nowhere else. The lock is held for one request at a time and never
//! over an await, so the world sees requests in one order.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::http::{Answer, Content, Method, Reply, Request};
use crate::world::{Settings, World};

/// Largest body of a request: a page write and its headers fit many times.
const LARGEST_BODY: usize = 16 << 20;
/// Largest head of a request: URLs of operations have kilobytes.
const LARGEST_HEAD: usize = 256 << 10;

/// A world with the process's clock.
#[derive(Debug)]
pub struct Sim {
    world: Mutex<World>,
    began: Instant,
}

impl Sim {
    /// A new, empty cloud.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where real time enters"
    )]
    pub fn new(settings: Settings) -> Arc<Sim> {
        Arc::new(Sim {
            world: Mutex::new(World::new(settings)),
            began: Instant::now(),
        })
    }

    /// The world, to ask or tell it something.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, request: &Request) -> Answer {
        let real = self.began.elapsed();
        self.world().handle(real, request)
    }
}

/// A certificate authority of our own and the certificate that it gave us.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// What clients have to trust, PEM.
    pub authority_pem: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Makes both, for `localhost` and `127.0.0.1`.
    ///
    /// # Errors
    /// The keys cannot be made.
    pub fn new() -> io::Result<Tls> {
        let made = || -> Result<_, rcgen::Error> {
            let mut authority = CertificateParams::default();
            authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            authority
                .distinguished_name
                .push(DnType::CommonName, "azure-sim authority");
            let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let key = KeyPair::generate()?;
            let own = CertificateParams::new(names)?.signed_by(&key, &authority)?;
            Ok((pem(authority.der()), own, key))
        };
        let (authority_pem, own, key) = made().map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .map_err(io::Error::other)?;
        Ok(Tls {
            config: Arc::new(config),
            authority_pem,
        })
    }

    /// Writes what clients have to trust.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_authority(&self, folder: &Path) -> io::Result<PathBuf> {
        let path = folder.join("azure-sim-ca.pem");
        std::fs::write(&path, &self.authority_pem)?;
        Ok(path)
    }
}

/// A certificate as text, 64 characters a line.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

/// Serves one port until the runtime ends; returns the address at once.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(sim: Arc<Sim>, address: SocketAddr, tls: Option<Tls>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    spawn(async move {
        loop {
            // A connection that could not be taken is the caller's to repeat.
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            // Small answers are not held back for larger ones.
            let _ = stream.set_nodelay(true);
            let sim = sim.clone();
            match tls.clone() {
                None => spawn(connection(sim, stream, "http")),
                Some(tls) => spawn(async move {
                    if let Ok(stream) = TlsAcceptor::from(tls.config).accept(stream).await {
                        connection(sim, stream, "https").await;
                    }
                }),
            }
        }
    });
    Ok(bound)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a simulator has no shutdown to take part in: it ends with its runtime"
)]
fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

async fn connection<S>(sim: Arc<Sim>, stream: S, scheme: &'static str)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| one(sim.clone(), scheme, request));
    // How a connection ends is the caller's business.
    let _ = http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The connection is cut on purpose.
#[derive(Debug)]
struct CutOff;

impl std::fmt::Display for CutOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut by a fault")
    }
}

impl std::error::Error for CutOff {}

async fn one(
    sim: Arc<Sim>,
    scheme: &str,
    request: hyper::Request<Incoming>,
) -> Result<Response<Full<Bytes>>, CutOff> {
    let (head, body) = request.into_parts();
    let Some(method) = Method::parse(head.method.as_str()) else {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED));
    };
    let Ok(body) = Limited::new(body, LARGEST_BODY).collect().await else {
        return Ok(plain(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let uri = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let mut request = Request::at(method, uri);
    request.body = body.to_bytes();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        request.headers.push((name.as_str().to_owned(), value));
    }
    let host = request.header("host").unwrap_or("localhost").to_owned();
    request.base = format!("{scheme}://{host}");
    match sim.handle(&request) {
        Answer::Reply(reply) => Ok(response(reply)),
        Answer::Cut => Err(CutOff),
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn response(reply: Reply) -> Response<Full<Bytes>> {
    let (kind, body) = match reply.content {
        Content::Empty => (None, Bytes::new()),
        Content::Json(value) => (
            Some("application/json; charset=utf-8"),
            Bytes::from(value.to_string()),
        ),
        Content::Text(kind, text) => (Some(kind), Bytes::from(text)),
        Content::Bytes(bytes) => (Some("application/octet-stream"), bytes),
    };
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    if let Some(kind) = kind {
        response = response.header("content-type", kind);
    }
    let infallible: Result<_, Infallible> = response
        .body(Full::new(body))
        .or_else(|_| Ok(plain(StatusCode::INTERNAL_SERVER_ERROR)));
    let Ok(response) = infallible;
    response
}
