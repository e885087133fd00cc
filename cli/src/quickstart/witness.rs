//! Witnesses outside of the farm: one asks every instance directly, one is told by the steps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oast_daemon::clock::{Clock, SystemClock, timeout};
use oast_daemon::task::{TaskKind, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::load::read_answer;

/// Pause between two rounds over the instances.
const ROUND: Duration = Duration::from_millis(50);
/// How long an instance may take to answer the observer.
const PATIENCE: Duration = Duration::from_millis(300);
/// Longest request line that the counter reads.
const LINE_MAX: usize = 4096;

/// Which instance was seen with which version, by asking it directly.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    instances: Arc<Mutex<BTreeMap<String, SocketAddr>>>,
    seen: Arc<Mutex<BTreeSet<(String, String)>>>,
}

impl Observer {
    /// Begins to ask; which instances there are is told by [`Observer::watch`].
    pub fn start(tasks: &Tasks) -> Observer {
        let observer = Observer::default();
        let own = observer.clone();
        let stopped = tasks.cancelled();
        tasks.spawn("observer", TaskKind::BACKGROUND, async move {
            let clock = SystemClock;
            while !stopped.is_cancelled() {
                own.round().await;
                clock.sleep(ROUND).await;
            }
        });
        observer
    }

    /// The instances with their direct addresses.
    pub fn watch(&self, instances: BTreeMap<String, SocketAddr>) {
        *self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = instances;
    }

    /// Instances that were ever seen with `version`.
    pub fn with(&self, version: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter()
            .filter(|(_, v)| v == version)
            .map(|(name, _)| name.clone())
            .collect()
    }

    async fn round(&self) {
        let instances = self
            .instances
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (name, address) in instances {
            if let Some(version) = ask(address).await {
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert((name, version));
            }
        }
    }
}

/// The version that an instance names, if it answers at all.
async fn ask(address: SocketAddr) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let request = b"GET /version HTTP/1.1\r\nHost: instance\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        read_answer(&mut stream)
            .await
            .ok()
            .filter(|answer| answer.status == 200)
    };
    timeout(&SystemClock, PATIENCE, asked)
        .await
        .ok()?
        .map(|answer| answer.body)
}

/// Counts how often each step of the last push ran: the steps themselves tell it at their end,
/// through the engine's proxy.
#[derive(Clone, Debug)]
pub struct Counter {
    address: SocketAddr,
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Counter {
    /// Listens on a loopback port of the kernel's choice.
    pub async fn start(tasks: &Tasks) -> io::Result<Counter> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let counter = Counter {
            address: listener.local_addr()?,
            counts: Arc::default(),
        };
        let (own, spawner) = (counter.clone(), tasks.clone());
        tasks.spawn("counter", TaskKind::BACKGROUND, async move {
            // Ends with the process: a listener on loopback does not fail by itself.
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                spawner.spawn("counter-call", TaskKind::BACKGROUND, async move {
                    own.answer(stream).await;
                });
            }
        });
        Ok(counter)
    }

    /// Where the steps call.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often each step ran.
    pub fn counts(&self) -> BTreeMap<String, u32> {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut bytes = Vec::new();
        while !bytes.windows(4).any(|window| window == b"\r\n\r\n") && bytes.len() < LINE_MAX {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        let line = String::from_utf8_lossy(&bytes);
        let step = line
            .split(' ')
            .nth(1)
            .map(|path| path.trim_start_matches('/').to_owned());
        if let Some(step) = step {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(step).or_default() += 1;
        }
        // The step only needs to know that it was heard; it may be gone already.
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
    }
}
