//! `oast operator recover`: one surviving member becomes the only voter of a new cluster.
//!
//! For when a majority of the members is lost for good. Whatever this member's log holds counts as
//! committed: an acknowledged write may be in it although the member was not told so yet. What only
//! the lost members had is gone, which nobody can find out here; so the operator has to say that
//! this is accepted.
//!
//! ```text
//! lock -> open -> state (rebuilt if need be) -> replay the whole log -> new epoch
//!      -> new state directory, new snapshot file       (nothing of the old ones is touched)
//!      -> one log write: configuration, term, truncation, state directory, cluster id
//!      -> identity file, old snapshot files removed
//! ```
//!
//! Killed before the log write, nothing has changed; killed after it, the next start finishes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oast_daemon::clock::Clock;
use oast_daemon::lock::{DirLock, LockError};
use oast_model::ids::Seq;
use raft::eraftpb::{ConfState, Entry, EntryType};

use super::restore::{begin_at, first_record};
use crate::consensus::entry::{self, EnvelopeError};
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::{Machine, Position, Undecodable, View as _};
use crate::consensus::open::{self, OpenError};
use crate::store::identity::{ClusterId, Identity, IdentityError, farm_of};
use crate::store::log::engine::{EngineLog, EngineLogOptions};
use crate::store::log::{self, LogError, LogPosition, LogStore};
use crate::store::snapshot::{Shelf, SnapshotError, SnapshotHeader};
use crate::store::state::tree::{TreeOptions, TreeRoot, TreeState};
use crate::store::state::{
    Changes, HistoryTail, Mark, StateError, StateRoot as _, StateStore as _, next_name,
};

/// Bytes of log entries replayed at once.
const ENTRIES_BYTES: u64 = 4 << 20;
/// Bytes of history copied at once.
const HISTORY_BYTES: usize = 4 << 20;

/// What a stopped member has. Of several survivors the one with the highest `last` is to be
/// recovered: by term first, then by index.
#[derive(Clone, Debug)]
pub struct Found {
    /// Cluster that it belongs to.
    pub cluster: String,
    /// Its id.
    pub member: u64,
    /// Last entry of its log.
    pub last: LogPosition,
    /// Last entry that it knows to be committed.
    pub commit: u64,
    /// Voting members as far as it knows.
    pub voters: BTreeSet<u64>,
}

/// What was made of it.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What was there.
    pub found: Found,
    /// The new cluster.
    pub cluster: ClusterId,
    /// The last number of the old epoch.
    pub kept: Seq,
    /// Every new number is higher than this one.
    pub begun: Seq,
    /// Records of finished work that only the lost members had.
    pub history_lost: u64,
}

/// A recovery that was refused or failed. Unless it says otherwise the member is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The member runs.
    #[error(transparent)]
    Lock(LockError),
    /// Nobody's directory.
    #[error("recover from {}: there is no member in it; name the data directory of a stopped member", directory.display())]
    NoMember {
        /// Which.
        directory: PathBuf,
    },
    /// Not a directory of a member.
    #[error(transparent)]
    Identity(IdentityError),
    /// Log.
    #[error("open the log")]
    Log(#[source] LogError),
    /// State.
    #[error("open the state")]
    Open(#[source] OpenError),
    /// State.
    #[error("write the state")]
    State(#[source] StateError),
    /// Snapshot files.
    #[error("write the snapshot file")]
    Snapshot(#[source] SnapshotError),
    /// An entry of a newer binary.
    #[error(transparent)]
    Envelope(EnvelopeError),
    /// A command of a newer binary.
    #[error("replay log entry {index}")]
    Command {
        /// Log index.
        index: u64,
        /// Cause.
        #[source]
        source: Undecodable,
    },
    /// A farm without a beginning has nothing to recover.
    #[error(
        "recover member {member}: its farm was never initialised; start it anew with an empty data directory"
    )]
    Empty {
        /// Who.
        member: u64,
    },
}

/// What a stopped member has, without changing anything.
///
/// # Errors
/// [`RecoverError`].
pub fn look(directory: &Path, clock: &dyn Clock) -> Result<Found, RecoverError> {
    let (_lock, log) = open_log(directory, clock)?;
    found(&log)
}

/// Makes a stopped member the only voter of a new cluster.
///
/// # Errors
/// [`RecoverError`]; up to the write of the log the member is as it was.
pub fn recover(directory: &Path, clock: &dyn Clock) -> Result<Recovered, RecoverError> {
    let (_lock, mut log) = open_log(directory, clock)?;
    let found = found(&log)?;
    let root = TreeRoot::new(directory.to_owned(), TreeOptions::default());
    let shelf = Shelf::open(directory.join("snapshots")).map_err(RecoverError::Snapshot)?;
    let newest = open::newest_fitting(&log, &shelf).map_err(RecoverError::Open)?;
    let (old, mut machine): (TreeState, LedgerMachine) =
        open::current(&mut log, &root, newest.as_ref()).map_err(RecoverError::Open)?;

    let mut replayed = Changes::default();
    let now_ms = replay(&log, old.mark(), &mut machine, &mut replayed)?;
    if machine.view().farm().name.is_empty() {
        return Err(RecoverError::Empty {
            member: found.member,
        });
    }
    let kept = machine.view().seq();
    let cluster = ClusterId {
        farm: farm_of(&found.cluster).to_owned(),
        epoch: kept.next_epoch(clock.wall()),
        nonce: u32::from_le_bytes(oast_daemon::random::bytes()),
    };
    machine.begin_epoch(cluster.epoch);
    // What is left is numbered anew: the lost stretch is at `lost`, and nobody else is asked.
    let lost = old.gap().map(|gap| (gap.after.last, gap.until.last));
    let history_lost = lost.map_or(0, |(after, until)| until - after);
    let _ = machine.take_changes();
    let view = machine.view();

    let mark = Mark {
        position: begin_at(found.last, cluster.epoch),
        now_ms,
    };
    let old_dir = log.meta().map_or("", |meta| &meta.state_dir);
    let state_dir = next_name(old_dir);
    let records = &mut view.records().map(Ok);
    let mut state = root
        .create(&state_dir, mark, HistoryTail::default(), records)
        .map_err(RecoverError::State)?;
    let mut write = |changes| state.write(mark, changes).map_err(RecoverError::State);
    each_kept(&old, &mut |history| {
        write(Changes {
            history,
            ..Changes::default()
        })
    })?;
    let renumbered = |number| match lost {
        Some((after, until)) if number > until => Some(number - (until - after)),
        Some((after, _)) if number > after => None,
        _ => Some(number),
    };
    write(Changes {
        pruned: replayed.pruned.into_iter().filter_map(renumbered).collect(),
        digest: Some(view.digest()),
        ..replayed
    })?;
    state.syncer()().map_err(RecoverError::State)?;
    drop(old);

    let conf_state = ConfState {
        voters: vec![found.member],
        ..ConfState::default()
    };
    let (stamp, members) = log.meta().map_or_else(Default::default, |meta| {
        let members = meta.members.survivor(found.member);
        (meta.identity.stamp, members)
    });
    let header = SnapshotHeader {
        cluster: cluster.to_string(),
        mark,
        conf_state: conf_state.clone(),
        members: members.clone(),
        digest: view.digest(),
        history: state.history(),
    };
    let file = shelf
        .write(header, view.records())
        .map_err(RecoverError::Snapshot)?;
    let identity = Identity {
        cluster: cluster.to_string(),
        member: found.member,
        stamp,
    };
    drop(state);
    // From here on the member belongs to the new cluster.
    log.write(first_record(
        identity.clone(),
        (conf_state, members),
        mark,
        state_dir,
    ))
    .map_err(RecoverError::Log)?;
    identity.write(directory).map_err(RecoverError::Identity)?;
    shelf.keep_only(&file).map_err(RecoverError::Snapshot)?;
    Ok(Recovered {
        found,
        cluster,
        kept,
        begun: view.seq(),
        history_lost,
    })
}

fn open_log(directory: &Path, clock: &dyn Clock) -> Result<(DirLock, EngineLog), RecoverError> {
    let none = || RecoverError::NoMember {
        directory: directory.to_owned(),
    };
    // Before the lock, which would make the directory.
    if !directory.join("raft").is_dir() {
        return Err(none());
    }
    let lock = DirLock::acquire(directory, "recovery", clock).map_err(RecoverError::Lock)?;
    Identity::read(directory).map_err(RecoverError::Identity)?;
    let log = EngineLog::open(&directory.join("raft"), &EngineLogOptions::default())
        .map_err(RecoverError::Log)?;
    log::validate(&log).map_err(RecoverError::Log)?;
    if log.meta().is_none() {
        return Err(none());
    }
    Ok((lock, log))
}

fn found(log: &EngineLog) -> Result<Found, RecoverError> {
    let (identity, conf_state) = log
        .meta()
        .map(|meta| (meta.identity.clone(), meta.conf_state.clone()))
        .expect("a log without a description was refused when it was opened");
    let index = log.last_index();
    let term = log.term(index).map_err(RecoverError::Log)?;
    Ok(Found {
        cluster: identity.cluster,
        member: identity.member,
        last: LogPosition {
            index,
            term: term.unwrap_or_default(),
        },
        commit: log.hard_state().commit,
        voters: conf_state.voters.into_iter().collect(),
    })
}

/// Applies everything behind `mark`. Returns the leader's time of the last entry.
fn replay(
    log: &EngineLog,
    mark: Mark,
    machine: &mut LedgerMachine,
    replayed: &mut Changes,
) -> Result<u64, RecoverError> {
    let mut now_ms = mark.now_ms;
    let mut next = mark.position.index + 1;
    while next <= log.last_index() {
        let entries = log
            .entries(next, log.last_index() + 1, ENTRIES_BYTES)
            .map_err(RecoverError::Log)?;
        for entry in entries {
            next = entry.index + 1;
            now_ms = apply(machine, entry, now_ms)?;
        }
        let mut changes = machine.take_changes();
        replayed.history.append(&mut changes.history);
        replayed.pruned.append(&mut changes.pruned);
    }
    Ok(now_ms)
}

fn apply(machine: &mut LedgerMachine, entry: Entry, now_ms: u64) -> Result<u64, RecoverError> {
    // The new configuration is ours alone, whatever the old one was about to be.
    if entry.get_entry_type() != EntryType::EntryNormal || entry.data.is_empty() {
        return Ok(now_ms);
    }
    let (index, term) = (entry.index, entry.term);
    let envelope = entry::decode(index, entry.data).map_err(RecoverError::Envelope)?;
    let now_ms = now_ms.max(envelope.now_ms);
    for (ordinal, logged) in (0..).zip(envelope.commands) {
        let command = LedgerMachine::decode(logged.kind, &logged.body)
            .map_err(|source| RecoverError::Command { index, source })?;
        let at = Position {
            index,
            term,
            ordinal,
            now_ms,
        };
        // A refusal is an answer that nobody waits for any more.
        let _ = machine.apply(at, command);
    }
    Ok(now_ms)
}

/// Calls `take` with all history that the state has, in order: before a gap and after it.
fn each_kept(
    state: &TreeState,
    take: &mut dyn FnMut(Vec<Vec<u8>>) -> Result<(), RecoverError>,
) -> Result<(), RecoverError> {
    let reader = state.history_reader();
    let mut next = 1;
    loop {
        let records = reader
            .read(next, HISTORY_BYTES)
            .map_err(RecoverError::State)?;
        if !records.is_empty() {
            next += records.len() as u64;
            take(records)?;
            continue;
        }
        match state.gap() {
            Some(gap) if next <= gap.until.last => next = gap.until.last + 1,
            _ => return Ok(()),
        }
    }
}
