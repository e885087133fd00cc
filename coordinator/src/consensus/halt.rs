//! The one way in which a member stops for good.
//!
//! An unwritable log, a record that cannot be, a command nobody here understands: the process ends
//! at once, without flushing or answering anything. Its peers go on. There is no retry, because
//! after a failed fsync nobody knows what the disk holds.

use std::sync::Arc;

/// What a failed write or fsync of the log means. raft-engine panics on it, on purpose.
pub const DISK_FAILED: &str = "the disk did not keep the raft log, so nobody knows what is on it; \
    nothing of it was acknowledged. Check the disk and make room, then start the member again; if it \
    refuses its log, remove this member and add it again under a new id";

/// What to do when the member must stop.
#[derive(Clone)]
pub struct Halt(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Halt")
    }
}

impl Halt {
    /// Says why and aborts the process: what every real member uses.
    #[must_use]
    pub fn abort() -> Self {
        Halt(Arc::new(|reason| {
            tracing::error!(reason, "This member must stop.");
            use std::io::Write as _;
            // Also without a subscriber, and without a panic if stderr is gone.
            let _ = writeln!(std::io::stderr(), "oast: this member must stop: {reason}");
            std::process::abort();
        }))
    }

    /// Calls `report` instead, after which the driver's thread ends. For tests that look at why.
    #[must_use]
    pub fn report(report: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Halt(Arc::new(report))
    }

    pub(crate) fn stop(&self, reason: &str) {
        (self.0)(reason);
    }
}
