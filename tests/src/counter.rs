//! What happened, counted outside the farm: whoever does something asks for a page of its name.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// How long one asker may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An HTTP server that counts requests by the last part of their path. Serves until the process
/// ends.
#[derive(Clone, Debug)]
pub struct Counter {
    address: SocketAddr,
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Counter {
    /// Starts on a free port.
    ///
    /// # Errors
    /// None is free.
    pub fn start() -> Result<Counter> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let counter = Counter {
            address: listener.local_addr()?,
            counts: Arc::default(),
        };
        let own = counter.clone();
        std::thread::Builder::new()
            .name("counter".into())
            .spawn(move || {
                for asker in listener.incoming().flatten() {
                    // Whoever gave up has not been counted, and will ask again.
                    let _ = own.serve(asker);
                }
            })?;
        Ok(counter)
    }

    /// Where to ask.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often each name was asked for.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u32> {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn serve(&self, mut asker: TcpStream) -> std::io::Result<()> {
        asker.set_read_timeout(Some(PATIENCE))?;
        let mut lines = BufReader::new(asker.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        for line in lines {
            if line?.is_empty() {
                break;
            }
        }
        let path = request.split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(name.to_owned()).or_default() += 1;
        drop(counts);
        asker.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
    }
}
