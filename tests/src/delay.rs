//! Distance: a TCP proxy that delivers every byte so much later than it came.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Forwards connections while it lives.
#[derive(Debug)]
pub struct Distance(JoinHandle<()>);

impl Drop for Distance {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Distance {
    /// What connects to `near` reaches `far`, `one_way` later in each direction. The connection
    /// itself is made at once.
    ///
    /// # Errors
    /// `near` is taken.
    pub async fn between(near: SocketAddr, far: SocketAddr, one_way: Duration) -> Result<Distance> {
        let listener = TcpListener::bind(near).await?;
        let forward = async move {
            while let Ok((here, _)) = listener.accept().await {
                tokio::task::spawn(async move {
                    // Nobody there: the connection ends, as it would without us.
                    let Ok(there) = TcpStream::connect(far).await else {
                        return;
                    };
                    // A small message is not to wait for the next one.
                    let _ = (here.set_nodelay(true), there.set_nodelay(true));
                    let (here, there) = (here.into_split(), there.into_split());
                    tokio::join!(
                        pump(here.0, there.1, one_way),
                        pump(there.0, here.1, one_way)
                    );
                });
            }
        };
        Ok(Distance(tokio::task::spawn(forward)))
    }
}

/// Ends when either side does.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
    let (queue, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async move {
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let arrives = Instant::now() + one_way;
            if queue.send((arrives, chunk[..length].to_vec())).is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some((arrives, bytes)) = due.recv().await {
            tokio::time::sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}
