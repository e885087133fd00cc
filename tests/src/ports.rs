//! Ports for one farm: free, and nobody else's while the test runs.
//!
//! Blocks lie below the kernel's ephemeral range, so that no outgoing connection takes one, and
//! a lock on a file per block keeps tests of other processes away.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// First port of the first block.
const FIRST: u16 = 20_000;
/// Ports in a block. Quickstart puts its fleet 637 above its base.
const BLOCK: u16 = 700;
/// Blocks there are.
const BLOCKS: u16 = 16;

/// A block of ports; ours while this lives.
#[derive(Debug)]
pub struct Ports {
    base: u16,
    _lock: File,
}

impl Ports {
    /// Takes a free block.
    ///
    /// # Errors
    /// None is free.
    pub fn block() -> Result<Ports> {
        let start = std::process::id() % u32::from(BLOCKS);
        for number in 0..BLOCKS {
            let number = (u16::try_from(start)? + number) % BLOCKS;
            let base = FIRST + number * BLOCK;
            let path = std::env::temp_dir().join(format!("oast-test-ports-{base}"));
            let lock = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o666)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let free = (0..16).chain([637]).all(|offset| {
                TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, base + offset))).is_ok()
            });
            if free {
                return Ok(Ports { base, _lock: lock });
            }
        }
        bail!("every block of test ports from {FIRST} on is in use")
    }

    /// The first port.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.base
    }

    /// An address of the block.
    #[must_use]
    pub fn at(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base + offset))
    }
}
