//! Disks that forget and tear what was not synced.
//!
//! * [`log`]: a write is atomic and ordered, as raft-engine's are. A killed process loses nothing
//!   that it has written; when the power fails, a prefix of what was not synced survives.
//! * [`state`]: the same for the materialised state, which is synced only before compaction; it
//!   may also be found damaged.
//!
//! A sync takes time. What it makes durable is durable when that time is over, so a crash in
//! between finds the write half done, whatever the process believed.

pub mod log;
pub mod state;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The kernel keeps what was written.
    Killed,
    /// Only what was synced is sure.
    PowerLost,
}
