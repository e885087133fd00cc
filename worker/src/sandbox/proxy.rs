//! The way out of a sandbox with `network: proxy`: an HTTP and CONNECT proxy run by the worker.
//!
//! The listening socket was made inside the sandbox's network namespace (127.0.0.1:3128) and
//! handed over, so the sandbox reaches nothing but this proxy, and nobody else reaches it. A
//! destination is resolved once, every address is judged ([`policy`]), and what is dialled is the
//! judged address: a name that resolves differently the second time gains nothing. Requests of one
//! client connection to one host share a connection, because package managers fetch hundreds of
//! small files.
//!
//! Not here: caching, authentication, a look into TLS.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use oast_daemon::clock::{Clock, SharedClock, timeout};
use oast_daemon::task::{TaskHandle, TaskKind, Tasks};
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tracing::{debug, warn};

pub mod policy;

use policy::{Destination, Policy, Refusal};

/// Where the proxy listens inside the sandbox.
pub const PROXY_PORT: u16 = 3128;
/// Connections of one sandbox at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 128;
/// A request's head; hyper answers a longer one with an error.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Resolving and connecting, each.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Refusals kept for the step's log; the counter goes on.
const KEPT_REFUSALS: usize = 32;

type Body = BoxBody<Bytes, hyper::Error>;

/// The variables that make programs use the proxy.
pub fn environment() -> [(String, String); 7] {
    let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
    let inside = "localhost,127.0.0.1,::1";
    [
        ("http_proxy", proxy.as_str()),
        ("https_proxy", &proxy),
        ("ftp_proxy", &proxy),
        ("HTTP_PROXY", &proxy),
        ("HTTPS_PROXY", &proxy),
        ("no_proxy", inside),
        ("NO_PROXY", inside),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// Runs proxies for sandboxes under one policy.
#[derive(Debug, Clone)]
pub struct Proxy {
    policy: Arc<Policy>,
    tasks: Tasks,
    clock: SharedClock,
}

/// One sandbox's proxy. Dropping it ends it.
#[derive(Debug)]
pub struct Egress {
    shared: Arc<Shared>,
    task: TaskHandle,
}

/// A destination that was not dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub destination: Destination,
    pub address: IpAddr,
    pub why: Refusal,
}

/// What went through so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: u64,
    pub tunnels: u64,
    pub refused: u64,
    pub failed: u64,
}

#[derive(Debug)]
struct Shared {
    policy: Arc<Policy>,
    tasks: Tasks,
    clock: SharedClock,
    requests: AtomicU64,
    tunnels: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    refusals: Mutex<VecDeque<Refused>>,
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0} is not reachable from a step: it is {1}")]
    Refused(Destination, Refusal),
    #[error("{0} cannot be resolved: {1}")]
    Resolve(Destination, io::Error),
    #[error("{0} cannot be reached: {1}")]
    Connect(Destination, io::Error),
    #[error("{0} did not answer within {DIAL_TIMEOUT:?}")]
    Silent(Destination),
}

impl Proxy {
    pub fn new(policy: Policy, tasks: Tasks, clock: SharedClock) -> Self {
        Self {
            policy: Arc::new(policy),
            tasks,
            clock,
        }
    }

    /// Serves the listening socket of one sandbox.
    ///
    /// # Errors
    /// The descriptor cannot be used by this runtime.
    pub fn serve(&self, listener: StdListener) -> io::Result<Egress> {
        let listener = super::netns::adopt(listener)?;
        let shared = Arc::new(Shared {
            policy: self.policy.clone(),
            tasks: self.tasks.clone(),
            clock: self.clock.clone(),
            requests: AtomicU64::new(0),
            tunnels: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refusals: Mutex::new(VecDeque::new()),
        });
        let serving = shared.clone();
        let task = self
            .tasks
            .spawn("egress proxy", TaskKind::BACKGROUND, async move {
                let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
                loop {
                    let permit = room
                        .clone()
                        .acquire_owned()
                        .await
                        .map_err(io::Error::other)?;
                    // An error here is the socket's own; it does not get better by asking again.
                    let (stream, _) = listener.accept().await?;
                    let shared = serving.clone();
                    serving
                        .tasks
                        .spawn("egress connection", TaskKind::BACKGROUND, async move {
                            let _permit = permit;
                            shared.connection(stream).await;
                        });
                }
                #[expect(unreachable_code, reason = "gives the task its type")]
                Ok::<(), io::Error>(())
            });
        Ok(Egress { shared, task })
    }
}

impl Egress {
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: read(&self.shared.requests),
            tunnels: read(&self.shared.tunnels),
            refused: read(&self.shared.refused),
            failed: read(&self.shared.failed),
        }
    }

    /// The last refusals, oldest first.
    pub fn refusals(&self) -> Vec<Refused> {
        let kept = self
            .shared
            .refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.task.cancel();
    }
}

/// The connection that the last request of a client connection went to.
type Upstream = Arc<tokio::sync::Mutex<Option<(Destination, SendRequest<Incoming>)>>>;

impl Shared {
    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let upstream: Upstream = Arc::default();
        let service = service_fn(|request| {
            let (shared, upstream) = (self.clone(), upstream.clone());
            async move { Ok::<_, Infallible>(shared.answer(request, &upstream).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            debug!(%error, "a sandbox's proxy connection ended early");
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        upstream: &Upstream,
    ) -> Response<Body> {
        let answer = if request.method() == Method::CONNECT {
            self.clone().tunnel(request).await
        } else {
            self.forward(request, upstream).await
        };
        answer.unwrap_or_else(|(status, text)| {
            if status != StatusCode::FORBIDDEN {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            let mut response = Response::new(full(format!("oast: {text}\n")));
            *response.status_mut() = status;
            response
        })
    }

    async fn tunnel(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, (StatusCode, String)> {
        let destination = destination(request.uri(), None)?;
        let mut remote = self.dial(&destination).await.map_err(status)?;
        self.tunnels.fetch_add(1, Ordering::Relaxed);
        let tasks = self.tasks.clone();
        // Ends with the sandbox: its side of the connection closes when its namespace goes.
        tasks.spawn("egress tunnel", TaskKind::BACKGROUND, async move {
            let upgraded = match hyper::upgrade::on(request).await {
                Ok(upgraded) => upgraded,
                Err(error) => return debug!(%error, "a tunnel was not taken up"),
            };
            let mut local = TokioIo::new(upgraded);
            if let Err(error) = tokio::io::copy_bidirectional(&mut local, &mut remote).await {
                debug!(%error, "a tunnel ended early");
            }
        });
        Ok(Response::new(full(String::new())))
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        upstream: &Upstream,
    ) -> Result<Response<Body>, (StatusCode, String)> {
        if request.uri().scheme_str() != Some("http") {
            let text = "only http:// addresses and CONNECT go through this proxy".to_owned();
            return Err((StatusCode::BAD_REQUEST, text));
        }
        let destination = destination(request.uri(), Some(80))?;
        strip_hop_by_hop(request.headers_mut());
        if let Ok(host) = request.uri().authority().map_or("", |a| a.as_str()).parse() {
            request.headers_mut().insert(HOST, host);
        }
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().map_err(|_bad| {
            (
                StatusCode::BAD_REQUEST,
                "the path cannot be read".to_owned(),
            )
        })?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut slot = upstream.lock().await;
        let mut kept = match slot.take() {
            Some((last, sender)) if last == destination => Some(sender),
            _ => None,
        };
        if let Some(sender) = &mut kept
            && sender.ready().await.is_err()
        {
            kept = None;
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.open(&destination).await?,
        };
        let response = sender.send_request(request).await.map_err(|error| {
            (
                StatusCode::BAD_GATEWAY,
                format!("{destination} broke off: {error}"),
            )
        })?;
        *slot = Some((destination, sender));
        let (mut parts, body) = response.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, body.boxed()))
    }

    async fn open(
        &self,
        destination: &Destination,
    ) -> Result<SendRequest<Incoming>, (StatusCode, String)> {
        let stream = self.dial(destination).await.map_err(status)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| {
                (
                    StatusCode::BAD_GATEWAY,
                    format!("{destination} does not speak HTTP: {error}"),
                )
            })?;
        self.tasks
            .spawn("egress upstream", TaskKind::BACKGROUND, async move {
                if let Err(error) = connection.await {
                    debug!(%error, "an upstream connection ended early");
                }
            });
        Ok(sender)
    }

    /// Resolves once, judges every address, dials a judged one.
    async fn dial(&self, destination: &Destination) -> Result<TcpStream, DialError> {
        let silent = |_late| DialError::Silent(destination.clone());
        let clock: &dyn Clock = &*self.clock;
        let resolving = lookup_host((destination.host.as_str(), destination.port));
        let addresses: Vec<SocketAddr> = timeout(clock, DIAL_TIMEOUT, resolving)
            .await
            .map_err(silent)?
            .map_err(|error| DialError::Resolve(destination.clone(), error))?
            .collect();
        if !self.policy.allows(destination) {
            // One bad address condemns the name: which one is dialled must not be a matter of luck.
            for address in &addresses {
                if let Some(why) = self.judge(address.ip()) {
                    self.note(Refused {
                        destination: destination.clone(),
                        address: address.ip(),
                        why,
                    });
                    return Err(DialError::Refused(destination.clone(), why));
                }
            }
        }
        let connecting = TcpStream::connect(addresses.as_slice());
        let stream = timeout(clock, DIAL_TIMEOUT, connecting)
            .await
            .map_err(silent)?
            .map_err(|error| DialError::Connect(destination.clone(), error))?;
        // Small requests of package managers should not wait for more.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    fn judge(&self, address: IpAddr) -> Option<Refusal> {
        self.policy
            .refuses(address)
            .or_else(|| is_own(address).then_some(Refusal::OwnAddress))
    }

    fn note(&self, refused: Refused) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        warn!(destination = %refused.destination, address = %refused.address, why = %refused.why,
            "a step may not connect there");
        let mut kept = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_REFUSALS {
            kept.pop_front();
        }
        kept.push_back(refused);
    }
}

/// Whether an address is one of this machine's, whatever its interfaces are called: only such an
/// address can be bound to.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn destination(uri: &Uri, default: Option<u16>) -> Result<Destination, (StatusCode, String)> {
    let bad = || {
        (
            StatusCode::BAD_REQUEST,
            format!("{uri} names no host and port"),
        )
    };
    let authority = uri.authority().ok_or_else(bad)?;
    let host = authority.host();
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    let port = authority.port_u16().or(default).ok_or_else(bad)?;
    if host.is_empty() {
        return Err(bad());
    }
    Ok(Destination {
        host: host.to_owned(),
        port,
    })
}

fn status(error: DialError) -> (StatusCode, String) {
    let status = match error {
        DialError::Refused(..) => StatusCode::FORBIDDEN,
        DialError::Resolve(..) | DialError::Connect(..) => StatusCode::BAD_GATEWAY,
        DialError::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    (status, error.to_string())
}

/// Removes what concerns one connection only, whatever `Connection` names included.
fn strip_hop_by_hop(headers: &mut http::HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = [
        CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("upgrade"),
    ];
    for name in named.into_iter().chain(always) {
        headers.remove(name);
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed()
}
