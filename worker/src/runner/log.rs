//! The log of one attempt, shared by whatever writes to it, with secrets taken out.

use std::sync::{Arc, Mutex, PoisonError};

use oast_artifacts::{ArtifactStore, LogError, LogStream, LogWriter, SegmentKey};
use oast_daemon::clock::SharedClock;
use oast_daemon::telemetry::chain;
use tracing::warn;

/// What stands for a secret.
const MASK: &[u8] = b"***";
/// Shorter values are not masked: they would turn every log into stars and protect nothing.
const SECRET_MIN: usize = 4;

/// Appends to the log. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct TaskLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: SharedClock,
    masks: Masks,
    writer: Mutex<Option<LogWriter>>,
}

/// Texts that must not be written, longest first. Never printed.
struct Masks(Vec<Vec<u8>>);

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} masks", self.0.len())
    }
}

impl TaskLog {
    /// Begins the log of an attempt. The `secrets` are masked in everything written to it.
    pub fn begin<'s>(
        store: &ArtifactStore,
        key: &SegmentKey,
        clock: SharedClock,
        secrets: impl Iterator<Item = &'s str>,
    ) -> Result<TaskLog, LogError> {
        let mut masks: Vec<Vec<u8>> = secrets
            // Output comes line by line, so each line of a key file is a secret of its own.
            .flat_map(str::lines)
            .map(|line| line.trim().as_bytes().to_vec())
            .filter(|line| line.len() >= SECRET_MIN)
            .collect();
        masks.sort_by_key(|mask| std::cmp::Reverse(mask.len()));
        masks.dedup();
        Ok(TaskLog {
            inner: Arc::new(Inner {
                clock,
                masks: Masks(masks),
                writer: Mutex::new(Some(store.write_log(key)?)),
            }),
        })
    }

    /// Writes what the engine does or decided.
    pub fn engine(&self, step: u16, text: impl AsRef<str>) {
        self.line(step, LogStream::Engine, text.as_ref().as_bytes());
    }

    /// Writes one line of output, without its line break.
    pub fn line(&self, step: u16, stream: LogStream, line: &[u8]) {
        let masked = mask(line, &self.inner.masks.0);
        let now = self.inner.clock.wall().as_millis();
        let mut writer = self.writer();
        let Some(open) = writer.as_mut() else {
            return;
        };
        if let Err(err) = open.append(now, step, stream, &masked) {
            // Losing the log is no reason to lose the work; it is said once.
            warn!(error = %chain(&err), "The log of an attempt cannot be written; it ends here.");
            *writer = None;
        }
    }

    /// The text as the log would show it, for reasons and details.
    pub fn masked(&self, text: &str) -> String {
        String::from_utf8_lossy(&mask(text.as_bytes(), &self.inner.masks.0)).into_owned()
    }

    /// Makes what was written durable. Blocks.
    pub fn sync(&self) {
        if let Some(open) = self.writer().as_mut()
            && let Err(err) = open.sync()
        {
            warn!(error = %chain(&err), "The log of an attempt cannot be made durable.");
        }
    }

    /// Ends the log: followers stop. Blocks.
    pub fn finish(&self) {
        let now = self.inner.clock.wall().as_millis();
        if let Some(open) = self.writer().take()
            && let Err(err) = open.finish(now)
        {
            warn!(error = %chain(&err), "The log of an attempt could not be ended.");
        }
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Option<LogWriter>> {
        self.inner
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn mask<'l>(line: &'l [u8], masks: &[Vec<u8>]) -> std::borrow::Cow<'l, [u8]> {
    let mut line = std::borrow::Cow::Borrowed(line);
    for secret in masks {
        let mut from = 0;
        while let Some(at) = find(&line[from..], secret) {
            let at = from + at;
            let mut without = line[..at].to_vec();
            without.extend_from_slice(MASK);
            without.extend_from_slice(&line[at + secret.len()..]);
            line = std::borrow::Cow::Owned(without);
            from = at + MASK.len();
        }
    }
    line
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        let masks = [b"hunter22".to_vec(), b"pass".to_vec()];
        assert_eq!(&*mask(b"x hunter22hunter22 pass", &masks), b"x ****** ***");
        assert_eq!(&*mask(b"nothing here", &masks), b"nothing here");
    }
}
