//! What goes into a replica and what comes out of it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::consensus::change::{ChangeError, Changed};
use crate::consensus::core::{CoreError, PeerProgress};
use crate::consensus::entry::EnvelopeError;
use crate::consensus::machine::{LoadError, Machine, Undecodable};
use crate::store::log::LogPosition;
use crate::store::members::MemberRecord;
use crate::store::snapshot::{SnapshotHeader, SnapshotOffer};
use crate::store::state::{HistoryGap, StateError, Syncer};

/// Names a waiting caller.
pub type Ticket = u64;

/// A command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<A> {
    /// Where it stands in the log.
    pub position: LogPosition,
    /// Which command of the entry.
    pub ordinal: u32,
    /// What the machine answered.
    pub answer: A,
}

/// A command that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not applied. Ask the leader.
    #[error("this member does not lead{}", hint(*leader))]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<u64>,
    },
    /// It may be applied or not; only a request id can tell.
    #[error("leadership was lost before the outcome was known; ask again with the same request id")]
    Unknown,
    /// Not applied; try later.
    #[error("too many commands wait for a majority; try again later")]
    Overloaded,
    /// Not applied.
    #[error("the command has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Encoded size.
        bytes: usize,
        /// Limit.
        limit: usize,
    },
    /// Not applied; the leader keeps what it has.
    #[error("the leader's disk has too little room; it takes no writes until there is more")]
    NoSpace,
    /// This member is ending; unless it was refused at once, the outcome is unknown.
    #[error("this member is stopping")]
    Stopped,
}

fn hint(leader: Option<u64>) -> String {
    leader.map_or_else(
        || " and knows no leader".to_owned(),
        |id| format!("; member {id} does"),
    )
}

/// A read that cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No majority answered in time.
    #[error("no leader with a majority answered in time; try again, or accept a stale read")]
    Unavailable,
    /// Too many reads wait.
    #[error("too many reads wait for the leader; try again later")]
    Overloaded,
    /// This member is ending.
    #[error("this member is stopping")]
    Stopped,
}

/// The member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Raft or the log.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The materialised state.
    #[error(
        "keep the state; nothing is lost, it is made again from the log. Check the disk and make room, then start the member again"
    )]
    State(#[source] StateError),
    /// An entry.
    #[error(transparent)]
    Envelope(EnvelopeError),
    /// A command.
    #[error("apply log entry {index}")]
    Command {
        /// Log index.
        index: u64,
        /// Cause.
        #[source]
        source: Undecodable,
    },
    /// A received snapshot.
    #[error("load a received snapshot")]
    Load(#[source] LoadError),
    /// The group went on without us.
    #[error(
        "go on as member {member}: it was removed from the group. Its data directory is of no use any more: erase it; to come back, add the address again with `oast operator raft add-learner` and start with `join`"
    )]
    Removed {
        /// Our id.
        member: u64,
    },
    /// Our state is not that of most voters.
    #[error(
        "go on as member {member}: its state after entry {index} is not that of most voters (digest {ours}, theirs {theirs}). Keep a copy of the data directory for whoever looks into it; then remove this member and add it again under a new id"
    )]
    Diverged {
        /// Our id.
        member: u64,
        /// Log index.
        index: u64,
        /// Our digest.
        ours: String,
        /// What most voters have.
        theirs: String,
    },
    /// raft-rs produced something that was not asked for.
    #[error("install the snapshot at {index}: it was never fetched")]
    NotPrepared {
        /// Log index.
        index: u64,
    },
}

/// Time as the driver reads it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Calendar time in milliseconds since the epoch; may jump.
    pub wall_ms: u64,
    /// Time since some start; never goes back.
    pub monotonic: Duration,
}

/// Everything needed to make a snapshot file on another thread.
pub struct SnapshotJob<V> {
    /// What to write about the file.
    pub header: SnapshotHeader,
    /// What to write.
    pub view: V,
    /// To be called after the file is verified, before the log may be compacted.
    pub sync: Syncer,
}

impl<V> std::fmt::Debug for SnapshotJob<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotJob")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

/// What the outside has to do.
#[derive(Debug)]
pub enum Output<M: Machine> {
    /// Tell the proposer.
    Answered(Ticket, Result<Applied<M::Answer>, ProposeError>),
    /// Tell the reader that the view is now at least as new as its question.
    ReadReady(Ticket, Result<u64, ReadError>),
    /// Make a snapshot file, then call [`Replica::snapshot_made`].
    TakeSnapshot(Box<SnapshotJob<M::View>>),
    /// Fetch this file from the peer, prepare it, then call [`Replica::fetched`].
    Fetch {
        /// Who offered it.
        from: u64,
        /// What to fetch.
        offer: SnapshotOffer,
        /// Name for the state directory.
        state_dir: String,
    },
    /// Fetch history from a peer, then call [`Replica::history_fetched`].
    FetchHistory {
        /// Whom to ask.
        from: u64,
        /// What is missing.
        gap: HistoryGap,
    },
    /// Tell who asked for a change of the group.
    Changed(Ticket, Result<Changed, ChangeError>),
    /// Tell a member about our clock and digest; loss is fine.
    Note {
        /// Whom.
        to: u64,
        /// What.
        note: Note,
    },
    /// Members came, went, or have other addresses; see [`Status::members`].
    MembersChanged,
    /// Raft changed its mind about who leads, or a term began.
    RoleChanged,
    /// The history reader was replaced.
    StateReplaced,
}

/// What a member knows about itself and the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Our raft id.
    pub member: u64,
    /// Farm.
    pub cluster: String,
    /// What we are.
    pub role: Role,
    /// Who leads, as far as known.
    pub leader: Option<u64>,
    /// Current term.
    pub term: u64,
    /// Commit index.
    pub commit: u64,
    /// Applied index.
    pub applied: u64,
    /// Last index.
    pub last: u64,
    /// First index still in the log.
    pub first: u64,
    /// Index of the newest snapshot file, 0 for none.
    pub snapshot: u64,
    /// Missing history records.
    pub history_missing: u64,
    /// Voting members.
    pub voters: Vec<u64>,
    /// Members that only follow.
    pub learners: Vec<u64>,
    /// While a change of the voters is under way: those of before.
    pub outgoing: Vec<u64>,
    /// Who the members are.
    pub members: BTreeMap<u64, MemberRecord>,
    /// A change of the group is under way.
    pub changing: bool,
    /// Peers, on the leader.
    pub peers: Vec<PeerProgress>,
    /// Members heard from within the last moments, this one among them.
    pub answered: Vec<u64>,
    /// Other members' clocks minus ours in milliseconds, as far as they were measured lately.
    pub clocks: BTreeMap<u64, i64>,
    /// Our clock minus that of most voters in milliseconds, where that can be told.
    pub skew_ms: Option<i64>,
    /// Our clock is so wrong that we must not lead.
    pub barred: bool,
    /// The last entry after which the members' states were compared, and found equal here.
    pub compared: u64,
    /// Why this member stopped, once it has.
    pub stopped: Option<String>,
}

/// What a member is in its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader or waits for one.
    #[default]
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads, but has not applied everything of earlier terms yet: must not decide anything.
    Elected,
    /// Leads with the full state.
    Leader,
}

/// What members tell each other beside raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// The sender's wall clock when it wrote this, in milliseconds since the epoch.
    pub wall_ms: u64,
    /// The receiver's wall clock in the last note that the sender got; 0 for none.
    pub echo_ms: u64,
    /// The sender's wall clock when it got that.
    pub echo_received_ms: u64,
    /// The sender's newest digest and the entry after which it was taken.
    pub digest: Option<(u64, [u8; 32])>,
}
