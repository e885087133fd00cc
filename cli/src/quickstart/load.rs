//! The built-in client: asks the fleet's address all the time and counts what it gets.
//!
//! It is independent of the load balancer's own counters. Half of its askers open a connection
//! for each request, half keep theirs for as long as the server does. Nothing is tried twice: a
//! request has failed unless a 200 with a known version comes within [`PATIENCE`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oast_daemon::clock::{Clock, SystemClock, timeout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long one request may take, the connection included.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Pause of one asker between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// Askers of each kind.
const ASKERS: usize = 2;
/// Largest answer that is read.
const ANSWER_MAX: usize = 64 << 10;
/// Failures that are kept with their reason.
const REASONS_MAX: usize = 20;

/// What the client counted so far.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests that were answered well.
    pub good: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Good answers by the version that the page named.
    pub versions: BTreeMap<String, u64>,
    /// The first failures, with their reason.
    pub reasons: Vec<String>,
}

impl Counts {
    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            good: self.good - earlier.good,
            failed: self.failed - earlier.failed,
            connections: self.connections - earlier.connections,
            versions: self
                .versions
                .iter()
                .map(|(version, count)| {
                    (
                        version.clone(),
                        count - earlier.versions.get(version).copied().unwrap_or(0),
                    )
                })
                .filter(|(_, count)| *count > 0)
                .collect(),
            reasons: self
                .reasons
                .iter()
                .skip(earlier.reasons.len())
                .cloned()
                .collect(),
        }
    }
}

/// The running client.
#[derive(Clone, Debug)]
pub struct Load {
    address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    /// Versions that a good answer may name.
    known: Arc<Mutex<BTreeSet<String>>>,
    stop: CancellationToken,
}

impl Load {
    /// Begins to ask `address`. Ends with the token.
    pub fn start(
        address: SocketAddr,
        stop: CancellationToken,
        tasks: &oast_daemon::task::Tasks,
    ) -> Load {
        let load = Load {
            address,
            counts: Arc::default(),
            known: Arc::default(),
            stop,
        };
        for _ in 0..ASKERS {
            for keep in [false, true] {
                let load = load.clone();
                let kind = oast_daemon::task::TaskKind::BACKGROUND;
                tasks.spawn("load-client", kind, async move {
                    load.ask_until_stopped(keep).await
                });
            }
        }
        load
    }

    /// A version that the page may name from now on.
    pub fn expect(&self, version: &str) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(version.to_owned());
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn ask_until_stopped(&self, keep: bool) {
        let clock = SystemClock;
        let mut connection = None;
        while !self.stop.is_cancelled() {
            let asked = timeout(&clock, PATIENCE, self.ask(&mut connection, keep)).await;
            let outcome = match asked {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            if outcome.is_err() || !keep {
                connection = None;
            }
            self.count(outcome);
            clock.sleep(PAUSE).await;
        }
    }

    async fn ask(&self, kept: &mut Option<TcpStream>, keep: bool) -> Result<String, String> {
        let fresh = kept.is_none();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                self.counts
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .connections += 1;
                TcpStream::connect(self.address)
                    .await
                    .map_err(|err| format!("connect: {err}"))?
            }
        };
        let wish = if keep { "keep-alive" } else { "close" };
        let request = format!("GET /version HTTP/1.1\r\nHost: fleet\r\nConnection: {wish}\r\n\r\n");
        let place = if fresh {
            "new connection"
        } else {
            "kept connection"
        };
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|err| format!("{place}: write: {err}"))?;
        let answer = read_answer(&mut stream)
            .await
            .map_err(|err| format!("{place}: {err}"))?;
        if answer.status != 200 {
            return Err(format!("{place}: status {}", answer.status));
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&answer.body) {
            return Err(format!("{place}: unknown version {:?}", answer.body));
        }
        drop(known);
        if keep && answer.keep {
            *kept = Some(stream);
        }
        Ok(answer.body)
    }

    fn count(&self, outcome: Result<String, String>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(version) => {
                counts.good += 1;
                *counts.versions.entry(version).or_default() += 1;
            }
            Err(reason) => {
                counts.failed += 1;
                if counts.reasons.len() < REASONS_MAX {
                    counts.reasons.push(reason);
                }
            }
        }
    }
}

/// An HTTP/1.1 answer with a length.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body without surrounding blanks.
    pub body: String,
    /// The server keeps the connection.
    pub keep: bool,
}

/// Reads one answer with a Content-Length, as the example's server sends them.
pub async fn read_answer(stream: &mut TcpStream) -> Result<Answer, String> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let read = stream
            .read_buf(&mut bytes)
            .await
            .map_err(|err| format!("read: {err}"))?;
        if let Some(answer) = parse(&bytes)? {
            return Ok(answer);
        }
        if read == 0 {
            return Err(format!("closed after {} bytes of an answer", bytes.len()));
        }
        if bytes.len() > ANSWER_MAX {
            return Err(format!("an answer of more than {ANSWER_MAX} bytes"));
        }
    }
}

/// The answer, once it is complete.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or("no status line")?;
    let (mut length, mut keep) = (None, true);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "connection" => keep = !value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let length = length.ok_or("an answer without a length")?;
    let Some(body) = bytes.get(end + 4..end + 4 + length) else {
        return Ok(None);
    };
    let body = String::from_utf8_lossy(body).trim().to_owned();
    Ok(Some(Answer { status, body, keep }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_length_is_there() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n3\n";
        for cut in 0..text.len() {
            assert!(parse(&text[..cut]).expect("no error").is_none(), "{cut}");
        }
        let answer = parse(text).expect("no error").expect("complete");
        assert_eq!(
            (answer.status, answer.body.as_str(), answer.keep),
            (200, "3", false)
        );
    }
}
