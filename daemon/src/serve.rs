//! One port for everything a process answers: gRPC, pages and metrics, over HTTP/1.1 and HTTP/2.
//!
//! `axum::serve` sets neither keepalive nor stream limits, so the accept loop is here:
//!
//! ```text
//! bind -> accept, bounded -> (TLS) -> hyper auto builder -> router (axum + tonic routes)
//!                              |                    |
//!                           shutdown            shutdown: GOAWAY, finish what is open,
//!                        stops accepting        drop it at the drain deadline
//! ```
//!
//! Without TLS an address that others can reach is refused ([`BindError::Exposed`]): tokens would
//! travel in the clear. With it ([`Port::bind_tls`]) each connection first shakes hands in its own
//! task, so that a slow stranger holds up nobody, and requests carry who is on the other end as an
//! extension of type [`Name`]. A gRPC router joins by `Routes::into_axum_router`.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::{SharedClock, timeout};
use crate::config::{Problems, TimeSpan, Validate};
use crate::metrics::{Counter, Counters, Gauge, Histograms, Metric, Metrics};
use crate::task::{TaskHandle, TaskKind, Tasks};
use crate::tls::{Acceptor, Identity, Name, Purpose};

mod holder;

/// Pause after the kernel could not hand over a connection, so that a full table is not a hot loop.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Bounds of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; further ones wait in the kernel's queue. Default 1024, at least 1.
    pub max_connections: u32,
    /// Concurrent HTTP/2 streams of one connection. Default 256, at least 1.
    pub max_streams: u32,
    /// Largest header block of a request in bytes. Default 16384, at least 8192.
    pub max_header_bytes: u32,
    /// Time a client may take for the TLS handshake. Default 10s.
    pub handshake_timeout: TimeSpan,
    /// Time an HTTP/1 client may take for a request's head. Default 10s.
    pub header_timeout: TimeSpan,
    /// Time between HTTP/2 pings on a connection. Default 20s.
    pub keepalive_interval: TimeSpan,
    /// Time a ping may stay unanswered before the connection is dropped. Default 10s, shorter
    /// than `keepalive_interval`.
    pub keepalive_timeout: TimeSpan,
    /// Time open requests may take after shutdown began. Default 5s.
    pub drain: TimeSpan,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 1024,
            max_streams: 256,
            max_header_bytes: 16 * 1024,
            handshake_timeout: TimeSpan::from_secs(10),
            header_timeout: TimeSpan::from_secs(10),
            keepalive_interval: TimeSpan::from_secs(20),
            keepalive_timeout: TimeSpan::from_secs(10),
            drain: TimeSpan::from_secs(5),
        }
    }
}

/// The smallest header block hyper accepts as a limit.
const LEAST_HEADER_BYTES: u32 = 8192;

impl Validate for Limits {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            self.max_connections >= 1,
            "max_connections",
            "must be at least 1",
        );
        problems.require(self.max_streams >= 1, "max_streams", "must be at least 1");
        let least = format!("must be at least {LEAST_HEADER_BYTES}");
        problems.require(
            self.max_header_bytes >= LEAST_HEADER_BYTES,
            "max_header_bytes",
            least,
        );
        let relation = format!(
            "must be shorter than keepalive_interval ({})",
            self.keepalive_interval
        );
        let shorter = self.keepalive_timeout < self.keepalive_interval;
        problems.require(shorter, "keepalive_timeout", relation);
    }
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Others could reach it, and there is no TLS to protect the tokens they would send.
    #[error(
        "refusing to listen on {address}: without TLS only loopback addresses are allowed; \
         write 127.0.0.1:{port} or [::1]:{port}, or give it TLS: `oast operator pki init` and a \
         [tls] table in the configuration",
        port = address.port()
    )]
    Exposed {
        /// As configured.
        address: SocketAddr,
    },
    /// Somebody else has the port.
    #[error(
        "port {port} on {ip} is in use by {holder}; stop it or choose another port",
        port = address.port(),
        ip = address.ip()
    )]
    InUse {
        /// As configured.
        address: SocketAddr,
        /// The process, where it can be seen.
        holder: String,
    },
    /// The kernel refused for another reason.
    #[error("cannot listen on {address}")]
    Refused {
        /// As configured.
        address: SocketAddr,
        #[source]
        err: io::Error,
    },
}

/// The address of the client, as a request extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A port that is ours but not yet answered.
#[derive(Debug)]
pub struct Port {
    listener: StdListener,
    address: SocketAddr,
    tls: Option<(Identity, Purpose)>,
}

impl Port {
    /// Takes a loopback address; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// See [`BindError`]; an occupied port names its holder where /proc shows it.
    pub fn bind(address: SocketAddr) -> Result<Port, BindError> {
        if !address.ip().is_loopback() {
            return Err(BindError::Exposed { address });
        }
        Port::take(address, None)
    }

    /// Takes any address, on which everybody must speak TLS.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind_tls(
        address: SocketAddr,
        identity: Identity,
        purpose: Purpose,
    ) -> Result<Port, BindError> {
        Port::take(address, Some((identity, purpose)))
    }

    fn take(address: SocketAddr, tls: Option<(Identity, Purpose)>) -> Result<Port, BindError> {
        let refused = |err: io::Error| match err.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse {
                address,
                holder: holder::describe(address.port()),
            },
            _ => BindError::Refused { address, err },
        };
        let listener = StdListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Port {
            listener,
            address,
            tls,
        })
    }

    /// The address with the port the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers with `router` until shutdown, then drains.
    ///
    /// # Errors
    /// When the runtime cannot take over the socket.
    pub fn serve(self, router: Router, with: &Serving) -> io::Result<TaskHandle> {
        let listener = TcpListener::from_std(self.listener)?;
        let tls = self.tls.map(|(identity, purpose)| {
            Acceptor::new(identity, purpose, with.limits.handshake_timeout.duration())
        });
        info!(address = %self.address, tls = tls.is_some(), "Listening.");
        let accept = Accept {
            listener,
            tls,
            router: TowerToHyperService::new(router),
            limits: with.limits,
            clock: with.clock.clone(),
            tasks: with.tasks.clone(),
            counts: Counts::new(&with.metrics),
        };
        Ok(with.tasks.spawn("accept", TaskKind::SERVICE, accept.run()))
    }
}

/// What a port needs from its process.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Bounds.
    pub limits: Limits,
    /// For pauses and the drain deadline.
    pub clock: SharedClock,
    /// Connections are registered here, and its root token means shutdown.
    pub tasks: Tasks,
    /// Where connections and requests are counted.
    pub metrics: Metrics,
}

#[derive(Clone, Debug)]
struct Counts {
    connections: Gauge,
    accept_errors: Counter,
    requests: Counters,
    seconds: Histograms,
}

impl Counts {
    fn new(metrics: &Metrics) -> Counts {
        Counts {
            connections: metrics.gauge(Metric::HttpConnections),
            accept_errors: metrics.counter(Metric::HttpAcceptErrors),
            requests: metrics.counters(Metric::HttpRequests),
            seconds: metrics.histograms(Metric::HttpRequestSeconds),
        }
    }
}

struct Accept {
    listener: TcpListener,
    tls: Option<Acceptor>,
    router: TowerToHyperService<Router>,
    limits: Limits,
    clock: SharedClock,
    tasks: Tasks,
    counts: Counts,
}

impl Accept {
    async fn run(self) {
        let shutdown = self.tasks.cancelled();
        let slots = Arc::new(Semaphore::new(
            usize::try_from(self.limits.max_connections).unwrap_or(usize::MAX),
        ));
        loop {
            let next = async {
                // The slot first: a connection we could not serve stays in the kernel's queue.
                let slot = slots
                    .clone()
                    .acquire_owned()
                    .await
                    .expect("nobody closes the slots");
                (slot, self.listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                // Biased, so that a flood of connections cannot hold up the shutdown.
                biased;
                () = shutdown.cancelled() => return,
                next = next => next,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(err) => {
                    // Out of descriptors, or the client left early; both pass.
                    self.counts.accept_errors.inc();
                    warn!(error = %err, "A connection could not be accepted.");
                    self.clock.sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            };
            let connection = Connection {
                service: Counted {
                    router: self.router.clone(),
                    peer: Peer(peer),
                    who: None,
                    clock: self.clock.clone(),
                    counts: self.counts.clone(),
                },
                limits: self.limits,
                shutdown: shutdown.clone(),
            };
            let tls = self.tls.clone();
            let _handle = self
                .tasks
                .spawn("connection", TaskKind::REQUEST, async move {
                    let _slot = slot;
                    connection.open(stream, tls.as_ref()).await;
                });
        }
    }
}

struct Connection {
    service: Counted,
    limits: Limits,
    shutdown: CancellationToken,
}

impl Connection {
    async fn open(mut self, stream: TcpStream, tls: Option<&Acceptor>) {
        if let Err(err) = stream.set_nodelay(true) {
            debug!(error = %err, "No TCP_NODELAY on a connection.");
        }
        let Some(tls) = tls else {
            return self.run(stream).await;
        };
        let peer = self.service.peer.0;
        let accepted = tokio::select! {
            accepted = tls.accept(stream, peer) => accepted,
            // Nothing was asked yet, so nothing has to be finished.
            () = self.shutdown.cancelled() => None,
        };
        if let Some(accepted) = accepted {
            self.service.who = accepted.who;
            self.run(accepted.stream).await;
        }
    }

    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Connection {
            service,
            limits,
            shutdown,
        } = self;
        let clock = service.clock.clone();
        let _open = Open::count(&service.counts.connections);
        let builder = builder(&limits);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = shutdown.cancelled() => {
                // GOAWAY and `connection: close`; streams that are open may end by themselves.
                serving.as_mut().graceful_shutdown();
                match timeout(&*clock, limits.drain.duration(), serving.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) => Ok(()),
                }
            }
        };
        if let Err(error) = ended {
            // Clients that go away in the middle are routine.
            debug!(error = %error, "A connection ended badly.");
        }
    }
}

/// Counts a connection as open until it leaves scope, however that happens.
struct Open(Gauge);

impl Open {
    fn count(gauge: &Gauge) -> Open {
        gauge.inc();
        Open(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout.duration())
        .max_buf_size(usize::try_from(limits.max_header_bytes).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.keepalive_interval.duration())
        .keep_alive_timeout(limits.keepalive_timeout.duration())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(limits.max_header_bytes);
    builder
}

/// The router with the peer's address in each request, counted and timed.
#[derive(Clone, Debug)]
struct Counted {
    router: TowerToHyperService<Router>,
    peer: Peer,
    /// Who showed a certificate.
    who: Option<Name>,
    clock: SharedClock,
    counts: Counts,
}

impl Service<Request<Incoming>> for Counted {
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Response, std::convert::Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        if let Some(who) = &self.who {
            request.extensions_mut().insert(who.clone());
        }
        let grpc = request.headers().get(CONTENT_TYPE);
        let grpc = grpc.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let kind = if grpc { "grpc" } else { "page" };
        let (clock, counts) = (self.clock.clone(), self.counts.clone());
        let begun = clock.monotonic();
        let answer = self.router.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            let class = match answer.status().as_u16() {
                100..200 => "1xx",
                200..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                _ => "5xx",
            };
            counts.requests.with(&[kind, class]).inc();
            counts
                .seconds
                .with(&[kind])
                .observe(clock.monotonic().saturating_sub(begun));
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests;
