//! Bugs that are planted to see whether the simulator finds them.
//!
//! Each is planted at a seam of the simulator (a disk, a machine around the ledger, the transport,
//! the worker), so that the product carries none of them. A bug that is not found says that a
//! checker or a fault is missing, not that the farm is good.

use std::cell::Cell;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A follower's promises leave before the disk has what they promise.
    EarlySend,
    /// The vote is not stored with the term.
    LostVote,
    /// The disk says "synced" and is not.
    SyncLies,
    /// A member answers reads from what it has, without asking the leader.
    StaleRead,
    /// A submission is acknowledged when it is proposed.
    EarlyAcknowledge,
    /// Request ids are not remembered.
    NoDedup,
    /// Snapshots leave out the remembered request ids.
    SnapshotWithoutRequests,
    /// A new leader counts silence from before its term.
    LeaseNotExtended,
    /// The log is cut beyond the newest snapshot file.
    CompactedTooEarly,
    /// After a restart the state claims more than it holds.
    ApplySkipped,
    /// Half of a write survived, and nobody notices.
    TornStateAccepted,
    /// A report is taken although its lease is over.
    StaleTokenAccepted,
    /// Members apply the commands of one entry in different orders.
    ApplyOrder,
    /// A leased task is leased again.
    TwoLeases,
    /// A worker changes instances without asking how long its lease lasts.
    ZombieMutates,
    /// Changes are made without the etag that they were decided on.
    NoEtags,
    /// The operation's id is made of the lease instead of the task.
    OperationPerAttempt,
    /// The leader raises the cluster version without having heard what everybody supports.
    VersionGuessed,
}

/// All of them.
pub const ALL: [Bug; 18] = [
    Bug::EarlySend,
    Bug::LostVote,
    Bug::SyncLies,
    Bug::StaleRead,
    Bug::EarlyAcknowledge,
    Bug::NoDedup,
    Bug::SnapshotWithoutRequests,
    Bug::LeaseNotExtended,
    Bug::CompactedTooEarly,
    Bug::ApplySkipped,
    Bug::TornStateAccepted,
    Bug::StaleTokenAccepted,
    Bug::ApplyOrder,
    Bug::TwoLeases,
    Bug::ZombieMutates,
    Bug::NoEtags,
    Bug::OperationPerAttempt,
    Bug::VersionGuessed,
];

impl Bug {
    /// As it is written on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Bug::EarlySend => "early-send",
            Bug::LostVote => "lost-vote",
            Bug::SyncLies => "sync-lies",
            Bug::StaleRead => "stale-read",
            Bug::EarlyAcknowledge => "early-acknowledge",
            Bug::NoDedup => "no-dedup",
            Bug::SnapshotWithoutRequests => "snapshot-without-requests",
            Bug::LeaseNotExtended => "lease-not-extended",
            Bug::CompactedTooEarly => "compacted-too-early",
            Bug::ApplySkipped => "apply-skipped",
            Bug::TornStateAccepted => "torn-state-accepted",
            Bug::StaleTokenAccepted => "stale-token-accepted",
            Bug::ApplyOrder => "apply-order",
            Bug::TwoLeases => "two-leases",
            Bug::ZombieMutates => "zombie-mutates",
            Bug::NoEtags => "no-etags",
            Bug::OperationPerAttempt => "operation-per-attempt",
            Bug::VersionGuessed => "version-guessed",
        }
    }

    /// The bug of that name.
    pub fn named(name: &str) -> Option<Bug> {
        ALL.into_iter().find(|bug| bug.name() == name)
    }
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    static MEMBER: Cell<u64> = const { Cell::new(0) };
}

/// Plants a bug for everything that this thread simulates from now on.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Says which member runs now, for bugs that make members differ. 0 is nobody.
pub fn enter_member(member: u64) {
    MEMBER.set(member);
}

/// The member that runs now.
pub fn member() -> u64 {
    MEMBER.get()
}
