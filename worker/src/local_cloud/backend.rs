//! One instance as the balancer and the health check see it: a way to connect, and counts.
//!
//! The instance's driver gives a [`Dial`] when a boot has started and takes it away before the
//! boot is stopped. Health is written by the health check and by refused connections; draining by
//! the control API. The balancer only reads. Everything here is lock-free or a short lock, since
//! each new connection looks at every backend of its set.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::sandbox::netns::Dialer;

/// A way to open TCP connections to one running instance.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// Connects to `port` of the instance.
    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// What the health check has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not decided yet since the last start.
    Initializing = 0,
    /// Gets new connections unless it is draining.
    Healthy = 1,
    /// Gets none.
    Unhealthy = 2,
}

/// A backend of the balancer.
pub struct Backend {
    /// The instance's id.
    pub id: String,
    target: RwLock<Option<Target>>,
    health: AtomicU8,
    draining: AtomicBool,
    active: watch::Sender<u32>,
    accepted: AtomicU64,
    failed_dials: AtomicU32,
    /// Woken when a connection was refused or the target changed, so that the check looks at once.
    pub(super) suspect: Notify,
    cut: RwLock<CancellationToken>,
}

#[derive(Clone)]
struct Target {
    dial: Arc<dyn Dial>,
    port: u16,
    /// Which boot this is, so that a late verdict about the boot before is not believed.
    boot: u64,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("id", &self.id)
            .field("health", &self.health())
            .field("draining", &self.is_draining())
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

impl Backend {
    /// A backend that leads nowhere yet.
    #[must_use]
    pub fn new(id: &str, draining: bool) -> Arc<Backend> {
        Arc::new(Backend {
            id: id.to_owned(),
            target: RwLock::new(None),
            health: AtomicU8::new(Health::Initializing as u8),
            draining: AtomicBool::new(draining),
            active: watch::Sender::new(0),
            accepted: AtomicU64::new(0),
            failed_dials: AtomicU32::new(0),
            suspect: Notify::new(),
            cut: RwLock::new(CancellationToken::new()),
        })
    }

    /// A boot has started: connections go there once it is healthy.
    pub fn attach(&self, dial: Arc<dyn Dial>, port: u16, boot: u64) {
        let mut target = self.target.write().unwrap_or_else(PoisonError::into_inner);
        *target = Some(Target { dial, port, boot });
        self.health
            .store(Health::Initializing as u8, Ordering::Release);
        drop(target);
        self.suspect.notify_one();
    }

    /// The boot is about to stop: no connection is opened any more.
    pub fn detach(&self) {
        let mut target = self.target.write().unwrap_or_else(PoisonError::into_inner);
        *target = None;
        self.health
            .store(Health::Initializing as u8, Ordering::Release);
        drop(target);
        self.suspect.notify_one();
    }

    /// Which boot is attached.
    #[must_use]
    pub fn boot(&self) -> Option<u64> {
        self.target
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|t| t.boot)
    }

    /// Opens a connection to the attached boot.
    ///
    /// # Errors
    /// Nothing is attached (as a refused connection), or the instance did not take it.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let target = self
            .target
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(target) = target else {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "no boot is running",
            ));
        };
        target.dial.dial(target.port).await
    }

    /// The verdict now.
    #[must_use]
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Initializing,
        }
    }

    /// Sets the verdict about `boot`; false when another boot is attached by now.
    pub(super) fn set_health(&self, boot: u64, health: Health) -> bool {
        // Under the lock, so that `attach` cannot slip in between the test and the store.
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        if target.as_ref().map(|t| t.boot) != Some(boot) {
            return false;
        }
        self.health.store(health as u8, Ordering::Release);
        true
    }

    /// A connection was refused: nothing more goes there until the check has seen it healthy.
    pub(super) fn refused(&self) {
        self.failed_dials.fetch_add(1, Ordering::Relaxed);
        // Healthy => Unhealthy. Initializing stays: that it refuses while it starts is no news.
        let _ = self.health.compare_exchange(
            Health::Healthy as u8,
            Health::Unhealthy as u8,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        self.suspect.notify_one();
    }

    /// Starts or ends draining.
    pub fn set_draining(&self, draining: bool) {
        if !draining {
            *self.cut.write().unwrap_or_else(PoisonError::into_inner) = CancellationToken::new();
        }
        self.draining.store(draining, Ordering::Release);
    }

    /// Whether it is draining.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether a new connection may go there.
    #[must_use]
    pub fn takes_connections(&self) -> bool {
        !self.is_draining() && self.health() == Health::Healthy
    }

    /// Connections through the balancer now.
    #[must_use]
    pub fn active(&self) -> u32 {
        *self.active.borrow()
    }

    /// Connections through the balancer since the process started.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Ends when no connection is left.
    pub async fn idle(&self) {
        let mut active = self.active.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = active.wait_for(|n| *n == 0).await;
    }

    /// Closes what connections are left, each at its first quiet moment.
    pub fn cut(&self) {
        self.cut
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .cancel();
    }

    /// Counts a connection for as long as the guard lives.
    ///
    /// The count is raised *before* draining is looked at again by the balancer, so a drain that
    /// sees 0 cannot be followed by a connection that was chosen before it.
    pub(super) fn enter(self: &Arc<Backend>) -> Entered {
        self.active.send_modify(|n| *n += 1);
        let cut = self
            .cut
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Entered {
            backend: Arc::clone(self),
            cut,
        }
    }
}

/// One counted connection.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) backend: Arc<Backend>,
    pub(super) cut: CancellationToken,
}

impl Entered {
    pub(super) fn count(&self) {
        self.backend.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.backend.active.send_modify(|n| *n -= 1);
    }
}

/// Dials 127.0.0.1 inside an instance's network.
impl Dial for Dialer {
    fn dial(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(self.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
    }
}

/// Dials a fixed address, whatever the port: for servers that run beside the cloud.
#[derive(Debug)]
pub struct AddressDial(pub SocketAddr);

impl Dial for AddressDial {
    fn dial(&self, _port: u16) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(self.0))
    }
}
