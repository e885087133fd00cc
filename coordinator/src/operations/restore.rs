//! `oast operator snapshot restore`: the data directory of a new cluster from a backup.
//!
//! ```text
//! prove the file -> build everything in <directory>/.restore -> move it up, the log first
//! ```
//!
//! Inside of the directory because that may be where a disk is mounted. The log goes first: a member
//! that finds one without the state that belongs to it refuses to start, so a restore that was killed
//! is never taken for a new member.
//!
//! The new cluster has another id, so that members of the old one are refused, and its numbers begin
//! in a higher epoch, so that no token, run id or watch position is issued twice. Members that are
//! restored from the same file with the same cluster id and list of members make one group: their
//! logs begin at the same entry of the same term.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use oast_daemon::clock::Clock;
use oast_model::ids::Seq;
use raft::eraftpb::{ConfState, HardState};

use super::inspect::{self, Contents, InspectError};
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::{Machine as _, View as _};
use crate::store::disk::{self, DiskError};
use crate::store::identity::{ClusterId, Identity, IdentityError};
use crate::store::log::engine::{EngineLog, EngineLogOptions};
use crate::store::log::{LogError, LogMeta, LogPosition, LogStore as _, LogWrite};
use crate::store::members::Members;
use crate::store::snapshot::{Shelf, SnapshotError, SnapshotHeader};
use crate::store::state::tree::{TreeOptions, TreeRoot, TreeState};
use crate::store::state::{Mark, StateError, StateRoot as _, StateStore as _, next_name};

/// Where everything is built.
const STAGING: &str = ".restore";
/// The part of a data directory that is moved first.
const LOG: &str = "raft";
/// The part that is moved last.
const IDENTITY: &str = "identity";
/// Bytes of history written at once.
const HISTORY_BYTES: usize = 4 << 20;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The backup.
    pub file: PathBuf,
    /// The data directory; absent or empty.
    pub directory: PathBuf,
    /// The member that it is for.
    pub member: u64,
    /// Every member of the new cluster, this one included.
    pub members: BTreeSet<u64>,
    /// Id that the restore of another member made; none makes a new one.
    pub cluster: Option<ClusterId>,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What was in the file.
    pub contents: Contents,
    /// The new cluster.
    pub cluster: ClusterId,
    /// The last number of the old epoch.
    pub kept: Seq,
    /// Every new number is higher than this one.
    pub begun: Seq,
}

/// A restore that was refused or failed. Unless the last moves failed, the directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error(transparent)]
    File(InspectError),
    /// The directory is in use.
    #[error(
        "restore into {}: it is not empty; name a new directory, or move this one away and keep it until the farm is well",
        directory.display()
    )]
    NotEmpty {
        /// Which.
        directory: PathBuf,
    },
    /// The list of members.
    #[error("restore member {member}: {problem}")]
    Members {
        /// Our id.
        member: u64,
        /// What does not fit.
        problem: &'static str,
    },
    /// The cluster id is of another farm or of an older epoch.
    #[error("restore into cluster {cluster}: {problem}; use the id that the first restore printed")]
    Cluster {
        /// The id.
        cluster: String,
        /// What does not fit.
        problem: String,
    },
    /// Disk.
    #[error("make the data directory")]
    Disk(#[source] DiskError),
    /// Log.
    #[error("make the log")]
    Log(#[source] LogError),
    /// State.
    #[error("make the state")]
    State(#[source] StateError),
    /// Snapshot file.
    #[error("make the member's snapshot file")]
    Snapshot(#[source] SnapshotError),
    /// Identity.
    #[error(transparent)]
    Identity(IdentityError),
}

/// Makes the data directory.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(plan: &Plan, clock: &dyn Clock) -> Result<Restored, RestoreError> {
    check_members(plan)?;
    check_empty(&plan.directory)?;
    let (contents, mut machine) = inspect::read(&plan.file).map_err(RestoreError::File)?;
    let kept = Seq::from_u64(contents.header.seq);
    let cluster = cluster(plan, &contents, kept, clock)?;
    machine.begin_epoch(cluster.epoch);
    // Brings the digest up to date; the whole state is written anyway.
    let _ = machine.take_changes();
    let begun = machine.view().seq();
    let new = !plan.directory.exists();
    let staging = plan.directory.join(STAGING);
    let built = disk::remove(&staging)
        .and_then(|()| disk::make_dir(&staging))
        .map_err(RestoreError::Disk)
        .and_then(|()| build(plan, &contents, &machine, &cluster, &staging));
    if let Err(error) = built {
        // The reason matters more than what is left in the directory.
        let _ = disk::remove(&staging);
        if new {
            let _ = fs::remove_dir(&plan.directory);
        }
        return Err(error);
    }
    place(&staging, &plan.directory).map_err(RestoreError::Disk)?;
    Ok(Restored {
        contents,
        cluster,
        kept,
        begun,
    })
}

fn check_members(plan: &Plan) -> Result<(), RestoreError> {
    let problem = if plan.member == 0 || plan.members.contains(&0) {
        "member ids begin at 1"
    } else if !plan.members.contains(&plan.member) {
        "it is not in the list of members"
    } else {
        return Ok(());
    };
    Err(RestoreError::Members {
        member: plan.member,
        problem,
    })
}

fn check_empty(directory: &Path) -> Result<(), RestoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(RestoreError::Disk(disk::at("list", directory)(error)));
        }
    };
    for entry in entries {
        let name = entry
            .map_err(disk::at("list", directory))
            .map_err(RestoreError::Disk)?
            .file_name();
        // A new file system has the one, a restore that was killed early leaves the other.
        if name != "lost+found" && name != STAGING {
            return Err(RestoreError::NotEmpty {
                directory: directory.to_owned(),
            });
        }
    }
    Ok(())
}

fn cluster(
    plan: &Plan,
    contents: &Contents,
    kept: Seq,
    clock: &dyn Clock,
) -> Result<ClusterId, RestoreError> {
    let farm = &contents.header.farm;
    let Some(cluster) = &plan.cluster else {
        return Ok(ClusterId {
            farm: farm.clone(),
            epoch: kept.next_epoch(clock.wall()),
            nonce: u32::from_le_bytes(oast_daemon::random::bytes()),
        });
    };
    let problem = if cluster.farm != *farm {
        format!("the file is of farm {farm}")
    } else if cluster.epoch <= kept.epoch() {
        format!("the file is of epoch {} already", kept.epoch())
    } else if Seq::begin(cluster.epoch).is_none() {
        "its epoch is out of range".to_owned()
    } else {
        return Ok(cluster.clone());
    };
    Err(RestoreError::Cluster {
        cluster: cluster.to_string(),
        problem,
    })
}

fn build(
    plan: &Plan,
    contents: &Contents,
    machine: &LedgerMachine,
    cluster: &ClusterId,
    staging: &Path,
) -> Result<(), RestoreError> {
    let view = machine.view();
    let mark = Mark {
        position: begin_at(contents.header.mark.position, cluster.epoch),
        now_ms: contents.header.mark.now_ms,
    };
    let state_dir = next_name("");
    let root = TreeRoot::new(staging.to_owned(), TreeOptions::default());
    let mut state = root
        .create(
            &state_dir,
            mark,
            contents.history,
            &mut view.records().map(Ok),
        )
        .map_err(RestoreError::State)?;
    fill(plan, &mut state)?;
    state.syncer()().map_err(RestoreError::State)?;
    drop(state);

    let conf_state = ConfState {
        voters: plan.members.iter().copied().collect(),
        ..ConfState::default()
    };
    // The first start takes their addresses from its configuration.
    let members = Members::of_voters(plan.members.iter().copied());
    let header = SnapshotHeader {
        cluster: cluster.to_string(),
        mark,
        conf_state: conf_state.clone(),
        members: members.clone(),
        digest: view.digest(),
        history: contents.history,
    };
    Shelf::open(staging.join("snapshots"))
        .and_then(|shelf| shelf.write(header, view.records()))
        .map_err(RestoreError::Snapshot)?;

    let identity = Identity {
        cluster: cluster.to_string(),
        member: plan.member,
        stamp: oast_daemon::random::number(),
    };
    let mut log = EngineLog::open(&staging.join(LOG), &EngineLogOptions::default())
        .map_err(RestoreError::Log)?;
    let first = LogWrite {
        // There is nothing to replace.
        reset: false,
        ..first_record(identity.clone(), (conf_state, members), mark, state_dir)
    };
    log.write(first).map_err(RestoreError::Log)?;
    drop(log);
    identity.write(staging).map_err(RestoreError::Identity)?;
    disk::sync_tree(staging).map_err(RestoreError::Disk)
}

/// Where the log of a new cluster begins. Terms go on from the epoch: they count seconds, and no
/// group elects a leader every second, so what is stamped with (term, index) rises over the
/// restore for whoever remembers the old cluster.
pub(super) fn begin_at(old: LogPosition, epoch: u64) -> LogPosition {
    LogPosition {
        index: old.index,
        term: epoch.max(old.term + 1),
    }
}

/// The one write that makes a state with its configuration the beginning of a log.
pub(super) fn first_record(
    identity: Identity,
    (conf_state, members): (ConfState, Members),
    mark: Mark,
    state_dir: String,
) -> LogWrite {
    LogWrite {
        reset: true,
        hard_state: Some(HardState {
            term: mark.position.term,
            commit: mark.position.index,
            ..HardState::default()
        }),
        meta: Some(LogMeta {
            identity,
            known_stamps: BTreeMap::new(),
            conf_state,
            members,
            conf_index: mark.position.index,
            truncated: mark.position,
            state_dir,
        }),
        sync: true,
        ..LogWrite::default()
    }
}

/// Reads the file a second time, for its history. The hash of the first reading decides.
fn fill(plan: &Plan, state: &mut TreeState) -> Result<(), RestoreError> {
    let mut reader = inspect::open(&plan.file).map_err(RestoreError::File)?;
    let wrong = inspect::at(&plan.file);
    let mut batch = Vec::new();
    let (mut bytes, mut next) = (0, 1);
    loop {
        let record = reader
            .history()
            .map_err(|error| RestoreError::File(wrong(error)))?;
        let over = record.is_none();
        if let Some(record) = record {
            bytes += record.len();
            batch.push(record);
        }
        if !batch.is_empty() && (over || bytes >= HISTORY_BYTES) {
            let count = batch.len() as u64;
            state
                .fill(next, std::mem::take(&mut batch))
                .map_err(RestoreError::State)?;
            next += count;
            bytes = 0;
        }
        if over {
            break;
        }
    }
    match state.gap() {
        None => Ok(()),
        Some(_) => Err(RestoreError::File(InspectError::Content {
            path: plan.file.clone(),
            problem: "it changed while it was read".to_owned(),
        })),
    }
}

/// Moves what was built to where a member looks for it.
fn place(staging: &Path, directory: &Path) -> Result<(), DiskError> {
    let mut parts: Vec<_> = fs::read_dir(staging)
        .map_err(disk::at("list", staging))?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    parts.sort_by_key(|name| match name.to_str() {
        Some(LOG) => 0,
        Some(IDENTITY) => 2,
        _ => 1,
    });
    for part in parts {
        let to = directory.join(&part);
        fs::rename(staging.join(&part), &to).map_err(disk::at("move into place", &to))?;
        disk::sync_dir(directory)?;
    }
    disk::remove(staging)?;
    disk::sync_dir(directory)
}
