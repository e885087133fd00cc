//! What can be set about the replicated core, with the limits that hold between the fields.

use std::time::Duration;

/// Options of one member. Timing must be the same on all members of a group.
#[derive(Clone, Debug)]
pub struct Options {
    /// Raft's unit of time. Default 50 ms.
    pub tick: Duration,
    /// Ticks of silence after which the leader is believed dead; the voters wait for this plus a
    /// share of the same again, each another one. Default 10: a killed leader is replaced after
    /// 0.5 to 0.85 s.
    pub election_ticks: usize,
    /// Ticks between heartbeats. Default 2; at most a third of `election_ticks`.
    pub heartbeat_ticks: usize,
    /// Most commands in one log entry. Default 256.
    pub max_entry_commands: usize,
    /// Bytes after which a log entry takes no further command. Default 64 KiB.
    pub max_entry_bytes: usize,
    /// Largest single command in bytes. Default 4 MiB.
    pub max_command_bytes: usize,
    /// Bytes of proposals that may wait for a majority; more are refused as overload. Default 8 MiB.
    pub max_uncommitted_bytes: u64,
    /// Largest append message in bytes. Default 256 KiB.
    pub max_message_bytes: u64,
    /// Append messages on their way to one follower. Default 256.
    pub max_inflight_messages: usize,
    /// Bytes of committed entries applied in one round. Default 4 MiB.
    pub max_apply_bytes: u64,
    /// Events that may wait for the driver; more are refused or, from peers, dropped.
    /// Default 4096.
    pub queue: usize,
    /// A snapshot is taken after this many entries... Default 10,000.
    pub snapshot_entries: u64,
    /// ...or after this many bytes of entries, whichever comes first. Default 64 MiB.
    pub snapshot_bytes: u64,
    /// Entries kept below a snapshot for followers that are only a little behind. Default 5,000.
    pub trailing_entries: u64,
    /// Ticks after which an unanswered snapshot offer is repeated. Default 40.
    pub snapshot_retry_ticks: u64,
    /// Ticks after which a read asks the leader again. Default 6.
    pub read_retry_ticks: u64,
    /// Ticks after which a read gives up. Default 100.
    pub read_timeout_ticks: u64,
    /// The members' states are compared after every so many entries. The same on all members of a
    /// group. Default 1,000.
    pub digest_entries: u64,
    /// Entries that a learner may be behind when it is promoted. Default 1,000.
    pub promote_lag: u64,
    /// Ticks after which a change of the group is given up. Default 100.
    pub change_timeout_ticks: u64,
    /// A member whose clock is further than this from the median of the voters' clocks does not
    /// lead, in milliseconds. Default 500.
    pub max_skew_ms: u64,
    /// Makes election timing repeatable. Members of one group share it.
    pub seed: u64,
    /// Highest cluster version that this member supports and says so to its peers. Default 1.
    pub supported_version: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tick: Duration::from_millis(50),
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_entry_commands: 256,
            max_entry_bytes: 64 << 10,
            max_command_bytes: 4 << 20,
            max_uncommitted_bytes: 8 << 20,
            max_message_bytes: 256 << 10,
            max_inflight_messages: 256,
            max_apply_bytes: 4 << 20,
            queue: 4096,
            snapshot_entries: 10_000,
            snapshot_bytes: 64 << 20,
            trailing_entries: 5_000,
            snapshot_retry_ticks: 40,
            read_retry_ticks: 6,
            read_timeout_ticks: 100,
            digest_entries: 1_000,
            promote_lag: 1_000,
            change_timeout_ticks: 100,
            max_skew_ms: 500,
            seed: 0,
            supported_version: 1,
        }
    }
}

/// Options that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use the consensus options: {0}")]
pub struct OptionsError(&'static str);

impl Options {
    /// Checks the relations between the fields.
    ///
    /// # Errors
    /// [`OptionsError`] naming the first one that does not hold.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let rules = [
            (!self.tick.is_zero(), "the tick must be longer than nothing"),
            (
                self.heartbeat_ticks >= 1,
                "heartbeat_ticks must be at least 1",
            ),
            (
                self.election_ticks >= 3 * self.heartbeat_ticks,
                "election_ticks must be at least three times heartbeat_ticks",
            ),
            (
                self.max_entry_commands >= 1,
                "max_entry_commands must be at least 1",
            ),
            (
                self.max_uncommitted_bytes >= self.max_command_bytes as u64,
                "max_uncommitted_bytes must hold at least one command of max_command_bytes",
            ),
            (
                self.max_message_bytes > 0,
                "max_message_bytes must not be 0",
            ),
            (
                self.max_inflight_messages >= 1,
                "max_inflight_messages must be at least 1",
            ),
            (self.queue >= 16, "queue must be at least 16"),
            (
                self.snapshot_entries >= 1,
                "snapshot_entries must be at least 1",
            ),
            (
                self.digest_entries >= 1,
                "digest_entries must be at least 1",
            ),
            (
                self.read_timeout_ticks > self.read_retry_ticks,
                "read_timeout_ticks must be more than read_retry_ticks",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, problem)) => Err(OptionsError(problem)),
            None => Ok(()),
        }
    }
}
