//! The TCP load balancer of one listen address: one scale set, or several of one fleet.
//!
//! It moves bytes and knows no HTTP: a connection goes to the healthy, not draining instance with
//! the fewest connections (ties in turn) and stays there to its end. It never repeats a request.
//! When the chosen instance refuses, another one is dialled, which is safe because no byte of the
//! client has been forwarded yet. Without a healthy instance the connection is reset at once, so
//! that a client learns it in a round trip and not in a time-out.
//!
//! ```text
//! accept -> choose -> dial --refused--> mark unhealthy, choose another
//!                       '--open--> pump both ways -> both sides ended
//!                                       '--drain time-out--> cut at the first quiet moment
//! ```
//!
//! Draining: an instance that drains gets no new connection; those it has go on, idle or not,
//! until they end or the drain time-out passes. Then each is closed at its first quiet moment in
//! which the instance spoke last (so nothing seems to be owed), and after [`CUT_MAX`] in any case.
//! The drawback accepted: a client that keeps a connection beyond the time-out may send into the
//! closing; servers that announce the end (`Connection: close`) within the time-out avoid it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::{Clock, SharedClock, timeout};
use oast_daemon::task::{TaskKind, Tasks};

use super::backend::{Backend, Entered};

/// Time in which an instance on this machine must take a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was answered last and has been quiet for so long may be cut.
const QUIET: Duration = Duration::from_millis(100);
/// The same for one that had no such moment for [`GENTLE`]: a client that asks again and again.
const QUIET_BUSY: Duration = Duration::from_millis(10);
/// Time for which the longer quiet is waited for.
const GENTLE: Duration = Duration::from_millis(500);
/// Time that a connection is given in all beyond the drain time-out.
const CUT_MAX: Duration = Duration::from_secs(5);
/// Time between looks at a connection that shall be cut.
const LOOK: Duration = Duration::from_millis(2);
/// Bytes moved at a time, per direction and connection.
const BUFFER: usize = 16 << 10;
/// Connections open at a time; beyond it new ones are reset.
pub const CONNECTIONS_MAX: usize = 8192;
/// Pause after the system refused to accept (out of descriptors), so that it is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the balancer did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub accepted: u64,
    /// Reset at once: no healthy instance, or too many connections.
    pub refused: u64,
    /// Dialled again because an instance refused.
    pub redialled: u64,
    /// Closed by force after the drain time-out.
    pub cut: u64,
    /// Ended by an error of the instance's side.
    pub broken: u64,
}

impl Counts {
    /// What was counted after `before`; a balancer that began anew counts from zero.
    #[must_use]
    pub fn since(&self, before: &Counts) -> Counts {
        let more = |now: u64, before: u64| if now >= before { now - before } else { now };
        Counts {
            accepted: more(self.accepted, before.accepted),
            refused: more(self.refused, before.refused),
            redialled: more(self.redialled, before.redialled),
            cut: more(self.cut, before.cut),
            broken: more(self.broken, before.broken),
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    redialled: AtomicU64,
    cut: AtomicU64,
    broken: AtomicU64,
}

/// The backends of one set, and what happened to their connections.
#[derive(Debug)]
pub struct Pool {
    clock: SharedClock,
    backends: RwLock<Vec<Arc<Backend>>>,
    turn: AtomicUsize,
    open: AtomicUsize,
    counters: Counters,
}

impl Pool {
    /// A pool without backends.
    #[must_use]
    pub fn new(clock: SharedClock) -> Pool {
        Pool {
            clock,
            backends: RwLock::default(),
            turn: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            counters: Counters::default(),
        }
    }

    /// Adds a backend.
    pub fn add(&self, backend: Arc<Backend>) {
        self.backends
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(backend);
    }

    /// Removes a backend; its connections go on.
    pub fn remove(&self, backend: &Arc<Backend>) {
        let mut backends = self
            .backends
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        backends.retain(|b| !Arc::ptr_eq(b, backend));
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let c = &self.counters;
        Counts {
            accepted: get(&c.accepted),
            refused: get(&c.refused),
            redialled: get(&c.redialled),
            cut: get(&c.cut),
            broken: get(&c.broken),
        }
    }

    /// Chooses the backend with the fewest connections and counts the new one there, leaving out
    /// those already `tried`.
    fn choose(&self, tried: &[Arc<Backend>]) -> Option<Entered> {
        let backends = self.backends.read().unwrap_or_else(PoisonError::into_inner);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = backends.len();
        loop {
            let best = (0..count)
                .map(|n| &backends[(turn + n) % count])
                .filter(|b| b.takes_connections() && !tried.iter().any(|t| Arc::ptr_eq(t, b)))
                .min_by_key(|b| b.active())?;
            let entered = best.enter();
            // A drain may have begun in between and have seen no connection.
            if !best.is_draining() {
                return Some(entered);
            }
        }
    }

    async fn connect(&self) -> Option<(TcpStream, Entered)> {
        let mut tried = Vec::new();
        while let Some(entered) = self.choose(&tried) {
            let answer = timeout(&*self.clock, DIAL_TIMEOUT, entered.backend.connect()).await;
            match answer {
                Ok(Ok(stream)) => return Some((stream, entered)),
                Ok(Err(err)) => {
                    tracing::debug!(instance = %entered.backend.id, %err, "Instance refused a connection; another is tried.");
                }
                Err(_) => {
                    tracing::debug!(instance = %entered.backend.id, "Instance did not take a connection in time; another is tried.");
                }
            }
            entered.backend.refused();
            self.counters.redialled.fetch_add(1, Ordering::Relaxed);
            tried.push(Arc::clone(&entered.backend));
        }
        None
    }

    async fn serve(&self, client: TcpStream) {
        // Small answers must not wait for an acknowledgement.
        let _ = client.set_nodelay(true);
        let Some((server, entered)) = self.connect().await else {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            return;
        };
        let _ = server.set_nodelay(true);
        entered.count();
        match pump(client, server, &entered.cut, &*self.clock).await {
            Ended::Closed | Ended::ClientGone => {}
            Ended::Cut => {
                self.counters.cut.fetch_add(1, Ordering::Relaxed);
            }
            Ended::ServerBroke => {
                self.counters.broken.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Listens for the set.
///
/// # Errors
/// The address is taken or not ours; the text says which and what to do.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|err| BindError { address, err })
}

/// The balancer's address could not be used.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {}", hint(err))]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    #[source]
    err: io::Error,
}

fn hint(err: &io::Error) -> &'static str {
    match err.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; stop it or give the set another `listen` address"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need more rights; give the set a higher port"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        _ => "the system refused",
    }
}

/// Accepts connections until `stop`; connections that are open then are closed.
pub async fn run(listener: TcpListener, pool: Arc<Pool>, tasks: Tasks, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            // Stop first: a flood of connections must not keep the balancer alive.
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let client = match accepted {
            Ok((client, _)) => client,
            Err(err) => {
                tracing::warn!(%err, "Balancer could not accept; it pauses.");
                pool.clock.sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        pool.counters.accepted.fetch_add(1, Ordering::Relaxed);
        if pool.open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            pool.counters.refused.fetch_add(1, Ordering::Relaxed);
            reset(&client);
            continue;
        }
        let (pool, stop) = (Arc::clone(&pool), stop.clone());
        tasks.spawn("balanced connection", TaskKind::BACKGROUND, async move {
            // The guard counts down also when the task is dropped.
            let _open = Open::new(&pool);
            tokio::select! {
                () = stop.cancelled() => {}
                () = pool.serve(client) => {}
            }
        });
    }
}

struct Open<'a>(&'a Pool);

impl<'a> Open<'a> {
    fn new(pool: &'a Pool) -> Open<'a> {
        pool.open.fetch_add(1, Ordering::Relaxed);
        Open(pool)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts on an instance's direct address and connects to exactly that instance.
pub async fn run_direct(
    listener: TcpListener,
    backend: Arc<Backend>,
    clock: SharedClock,
    tasks: Tasks,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else {
            clock.sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (backend, clock, stop) = (Arc::clone(&backend), clock.clone(), stop.clone());
        tasks.spawn("direct connection", TaskKind::BACKGROUND, async move {
            // Neither health nor draining counts here: this is how one looks at an instance.
            let Ok(Ok(server)) = timeout(&*clock, DIAL_TIMEOUT, backend.connect()).await else {
                reset(&client);
                return;
            };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let never = CancellationToken::new();
            tokio::select! {
                () = stop.cancelled() => {}
                _ = pump(client, server, &never, &*clock) => {}
            }
        });
    }
}

/// Makes the close of `stream` a reset: the client must not take it for an empty answer.
fn reset(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

enum Ended {
    Closed,
    ClientGone,
    ServerBroke,
    Cut,
}

/// Moves bytes both ways until both sides have ended or the connection is cut.
async fn pump(
    mut client: TcpStream,
    mut server: TcpStream,
    cut: &CancellationToken,
    clock: &dyn Clock,
) -> Ended {
    let moved = Activity::default();
    let ended = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = async {
            copy(&mut from_client, &mut to_server, || moved.note(true))
                .await
                .map_err(|side| match side {
                    Side::Read => Ended::ClientGone,
                    Side::Write => Ended::ServerBroke,
                })
        };
        let down = async {
            copy(&mut from_server, &mut to_client, || moved.note(false))
                .await
                .map_err(|side| match side {
                    Side::Read => Ended::ServerBroke,
                    Side::Write => Ended::ClientGone,
                })
        };
        let both = async { tokio::try_join!(up, down) };
        tokio::select! {
            // Finished work first: a connection that just ended is not one that was cut.
            biased;
            ended = both => match ended {
                Ok(_) => Ended::Closed,
                Err(ended) => ended,
            },
            () = quiet_after(cut, &moved, clock) => Ended::Cut,
        }
    };
    if matches!(ended, Ended::ServerBroke) {
        // The client's answer may be cut short; an orderly close would hide that.
        reset(&client);
    }
    ended
}

enum Side {
    Read,
    Write,
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    note: impl Fn(),
) -> Result<(), Side> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = from.read(&mut buffer).await.map_err(|_| Side::Read)?;
        if n == 0 {
            // Half-close is passed on: the other direction may have an answer to bring.
            return to.shutdown().await.map_err(|_| Side::Write);
        }
        note();
        to.write_all(&buffer[..n]).await.map_err(|_| Side::Write)?;
    }
}

/// When bytes moved, and whose the last ones were.
#[derive(Debug, Default)]
struct Activity {
    moves: AtomicU64,
    client_spoke_last: AtomicBool,
}

impl Activity {
    fn note(&self, by_client: bool) {
        self.client_spoke_last.store(by_client, Ordering::Relaxed);
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends at the first quiet moment after `cut`.
async fn quiet_after(cut: &CancellationToken, activity: &Activity, clock: &dyn Clock) {
    cut.cancelled().await;
    let began = clock.monotonic();
    let (mut moves, mut since) = (activity.moves.load(Ordering::Relaxed), began);
    while clock.monotonic() - began < CUT_MAX {
        clock.sleep(LOOK).await;
        let now = activity.moves.load(Ordering::Relaxed);
        if now != moves {
            (moves, since) = (now, clock.monotonic());
            continue;
        }
        let enough = if clock.monotonic() - began < GENTLE {
            QUIET
        } else {
            QUIET_BUSY
        };
        let owed = activity.client_spoke_last.load(Ordering::Relaxed);
        if !owed && clock.monotonic() - since >= enough {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
