//! raft-rs and raft-engine log through other crates; raft-rs's lines become ours here.

use slog::{Drain, Level, Logger, OwnedKVList, Record, o};

struct ToTracing {
    member: u64,
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), slog::Never> {
        let member = self.member;
        let message = record.msg();
        match record.level() {
            Level::Critical => tracing::error!(member, "{message}"),
            // raft-rs calls lost messages and refused votes errors and warnings.
            Level::Error | Level::Warning => tracing::debug!(member, "{message}"),
            _ => tracing::trace!(member, "{message}"),
        }
        Ok(())
    }
}

pub(crate) fn logger(member: u64) -> Logger {
    Logger::root(ToTracing { member }.fuse(), o!())
}
