//! What an instance prints: the start of each boot in a bounded file, the last lines in memory for
//! the reason of its end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use oast_daemon::task::{TaskKind, Tasks};

use crate::sandbox::Sandbox;

/// Bytes of a boot's output that are kept in its file.
const FILE_MAX: usize = 1 << 20;
/// Bytes kept in memory.
const TAIL_MAX: usize = 2048;
/// Lines of it that are told as a reason.
const WORDS: usize = 3;

/// The newest output of a boot.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let over = tail.len().saturating_sub(TAIL_MAX);
        tail.drain(..over);
    }

    /// `how` with the last lines that were printed.
    pub(super) fn words(&self, how: &str) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text: Vec<u8> = tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect();
        let from = lines.len().saturating_sub(WORDS);
        if lines.is_empty() {
            return how.to_owned();
        }
        format!("{how}; it printed last: {}", lines[from..].join(" | "))
    }
}

/// Copies a sandbox's output until it ends.
pub(super) fn keep(tasks: &Tasks, sandbox: &mut Sandbox, path: Utf8PathBuf) -> Tail {
    let tail = Tail::default();
    let (stdout, stderr) = (sandbox.stdout.take(), sandbox.stderr.take());
    let kept = tail.clone();
    tasks.spawn("console", TaskKind::BACKGROUND, async move {
        let file = tokio::fs::File::create(&path).await;
        if let Err(err) = &file {
            tracing::warn!(%path, %err, "Console of an instance is not kept.");
        }
        let file = Arc::new(tokio::sync::Mutex::new((file.ok(), FILE_MAX)));
        let copies = (copy(stdout, &kept, &file), copy(stderr, &kept, &file));
        tokio::join!(copies.0, copies.1);
    });
    tail
}

type File = tokio::sync::Mutex<(Option<tokio::fs::File>, usize)>;

async fn copy(stream: Option<impl AsyncRead + Unpin>, tail: &Tail, file: &File) {
    let Some(mut stream) = stream else { return };
    let mut piece = vec![0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        tail.push(&piece[..n]);
        let mut file = file.lock().await;
        let fits = n.min(file.1);
        file.1 -= fits;
        if let Some(file) = &mut file.0 {
            // A full disk costs the console, not the instance.
            let _ = file.write_all(&piece[..fits]).await;
            let _ = file.flush().await;
        }
    }
}
