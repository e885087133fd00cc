//! What a member keeps on its disk, and in which order it may be trusted.
//!
//! * [`log`]: the replicated log, the vote and the configuration (raft-engine). The truth, together
//!   with
//! * [`snapshot`]: checksummed snapshot *files*. The log is compacted only below the newest file
//!   that was read back and verified.
//! * [`state`]: the applied records and the history (sled). A convenience: it saves replaying the
//!   log at start and can always be rebuilt from the two above.
//! * [`backup`]: the whole ledger with its history in one file, for `oast operator snapshot`.
//! * [`members`]: who belongs to the group, replicated, kept beside the configuration.
//! * [`identity`]: which farm, which member and which incarnation this data directory belongs to.
//!
//! ```text
//! <data>/identity           text, written once
//! <data>/raft/              raft-engine
//! <data>/state-<seq>/       sled; the current one is named inside raft-engine
//! <data>/snapshots/         snap-<index>-<term>.oast
//! <data>/incoming/          snapshot files that are still being fetched
//! ```
//!
//! Nothing here knows raft's rules beyond its record types; who writes when is decided in
//! [`crate::consensus`]. Every implementation of a trait passes the one suite in `tests`.

pub mod backup;
pub(crate) mod batch;
pub mod disk;
pub(crate) mod fault;
mod framing;
pub mod identity;
pub mod log;
pub mod members;
pub mod snapshot;
pub mod space;
pub mod state;

#[cfg(test)]
mod tests;
