//! From what is on the disk to a running replica.
//!
//! ```text
//! identity  log      what happens
//! absent    empty    a new member: write the first log record, then the identity file
//! absent    there    the previous start ended in between: write the identity file
//! there     empty    the log is lost: refuse; the member must not vote again under this id
//! there     there    check that they agree and go on
//!
//! state                                        what happens
//! opens, applied within the log                commit = max(commit, applied, newest configuration), replay the rest
//! ahead of the log                             refuse: the log lost what it acknowledged
//! damaged, or older than the log               rebuild from the newest snapshot file and the log
//! no snapshot file fits                        refuse
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use raft::eraftpb::{ConfState, HardState};

use super::chain;
use super::core::{Core, CoreError};
use super::counters::Counters;
use super::machine::{LoadError, Machine, View as _};
use super::options::{Options, OptionsError};
use super::replica::{Opened, Replica};
use crate::store::disk::{self, DiskError};
use crate::store::identity::{Identity, IdentityError};
use crate::store::log::engine::{EngineLog, EngineLogOptions};
use crate::store::log::{self, LogError, LogMeta, LogPosition, LogStore, LogWrite};
use crate::store::members::Members;
use crate::store::snapshot::{self, Shelf, SnapshotError, SnapshotFile};
use crate::store::state::tree::{TreeOptions, TreeRoot};
use crate::store::state::{HistoryTail, Mark, StateError, StateRoot, StateStore, next_name};

/// Where every log begins. Not 0, so that a member that joins later is behind and gets a snapshot
/// with the configuration in it.
const GENESIS: LogPosition = LogPosition { index: 1, term: 1 };

/// Where the log of a member begins that joins: before everybody else's.
const NOTHING: LogPosition = LogPosition { index: 0, term: 0 };

/// Who we are and with whom the group began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Farm; the same on all members.
    pub cluster: String,
    /// Our raft id, never 0.
    pub member: u64,
    /// Voters of the very first configuration and where they are reached (`host:port`), the same
    /// list on each of them. Empty for a member that joins a running group.
    pub initial: BTreeMap<u64, String>,
    /// Where the others are to reach us; empty: as the group knows it.
    pub address: String,
    /// Creation stamp of a new data directory, where the group was told one; else it is made.
    pub stamp: Option<u64>,
}

impl Membership {
    /// A member of a group that begins with these ids, at made-up addresses. For groups in one
    /// process.
    #[must_use]
    pub fn founder(cluster: &str, member: u64, ids: impl IntoIterator<Item = u64>) -> Self {
        let at = |id: u64| (id, format!("member-{id}:7443"));
        Membership {
            cluster: cluster.to_owned(),
            member,
            initial: ids.into_iter().map(at).collect(),
            ..Membership::default()
        }
    }
}

/// How the stores use the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreOptions {
    /// The log.
    pub log: EngineLogOptions,
    /// The state.
    pub state: TreeOptions,
}

/// A member cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Options.
    #[error(transparent)]
    Options(OptionsError),
    /// Ids.
    #[error("start member {member}: {problem}")]
    Membership {
        /// Our id.
        member: u64,
        /// What does not fit.
        problem: &'static str,
    },
    /// The group went on without us.
    #[error(
        "start member {member}: it was removed from the group and its id is never used again. Erase the data directory; to come back, add the address with `oast operator raft add-learner` and start with `join`"
    )]
    Removed {
        /// Our id.
        member: u64,
    },
    /// Directory.
    #[error("prepare the data directory")]
    Disk(#[source] DiskError),
    /// Identity.
    #[error(transparent)]
    Identity(IdentityError),
    /// The directory knows who it is, but its log is gone.
    #[error(
        "start from {place}: its raft log is gone, and with it the member's vote. Restore the directory, or remove this member and add it again under a new id"
    )]
    LogLost {
        /// Directory.
        place: String,
    },
    /// The state shows entries that the log does not have any more.
    #[error(
        "start from {place}: the raft log ends at entry {last}, but entry {applied} was applied here. The log lost its end and with it what this member acknowledged; remove this member and add it again under a new id"
    )]
    LogCut {
        /// Where the log is.
        place: String,
        /// Its last entry.
        last: u64,
        /// The last applied entry.
        applied: u64,
    },
    /// Log.
    #[error("open the log")]
    Log(#[source] LogError),
    /// Snapshot files.
    #[error("open the snapshot files")]
    Snapshot(#[source] SnapshotError),
    /// State.
    #[error("make the state")]
    State(#[source] StateError),
    /// State and log together cannot be made whole.
    #[error("start from {place}: {problem}. Remove this member and add it again under a new id")]
    StateLost {
        /// Where the log is.
        place: String,
        /// What is missing.
        problem: String,
    },
    /// Records that make no state.
    #[error(transparent)]
    Load(LoadError),
    /// Raft.
    #[error(transparent)]
    Core(CoreError),
}

/// The stores of one member.
#[derive(Debug)]
pub struct Stores<L, R> {
    /// The log.
    pub log: L,
    /// Where states live.
    pub root: Arc<R>,
    /// Snapshot files.
    pub shelf: Shelf,
    /// Who the directory belongs to.
    pub identity: Identity,
}

/// Opens the stores in a member's data directory, which the caller has locked.
///
/// # Errors
/// [`OpenError`], each saying what to do.
pub fn open_stores(
    directory: &Path,
    membership: &Membership,
    options: &StoreOptions,
) -> Result<Stores<EngineLog, TreeRoot>, OpenError> {
    disk::make_dir(directory).map_err(OpenError::Disk)?;
    let written = Identity::read(directory).map_err(OpenError::Identity)?;
    let log_directory = directory.join("raft");
    if written.is_some() && !log_directory.is_dir() {
        return Err(OpenError::LogLost {
            place: directory.display().to_string(),
        });
    }
    let log = EngineLog::open(&log_directory, &options.log).map_err(OpenError::Log)?;
    let found = written
        .clone()
        .or_else(|| log.meta().map(|meta| meta.identity.clone()));
    let identity = match found {
        Some(identity) => identity,
        None => Identity {
            cluster: membership.cluster.clone(),
            member: membership.member,
            stamp: membership.stamp.unwrap_or_else(oast_daemon::random::number),
        },
    };
    identity
        .expect(directory, &membership.cluster, membership.member)
        .map_err(OpenError::Identity)?;
    if written.is_some() && log.meta().is_none() {
        return Err(OpenError::LogLost {
            place: directory.display().to_string(),
        });
    }
    let root = TreeRoot::new(directory.to_owned(), options.state);
    let shelf = Shelf::open(directory.join("snapshots")).map_err(OpenError::Snapshot)?;
    let mut stores = Stores {
        log,
        root: Arc::new(root),
        shelf,
        identity,
    };
    begin(&mut stores, membership)?;
    if written.is_none() {
        stores
            .identity
            .write(directory)
            .map_err(OpenError::Identity)?;
    }
    Ok(stores)
}

/// Makes the first record of a new member; does nothing on others.
///
/// # Errors
/// [`OpenError`].
pub fn begin<L: LogStore, R: StateRoot>(
    stores: &mut Stores<L, R>,
    membership: &Membership,
) -> Result<(), OpenError> {
    let member = membership.member;
    if member == 0 {
        return Err(OpenError::Membership {
            member,
            problem: "member ids begin at 1",
        });
    }
    if !membership.initial.is_empty() && !membership.initial.contains_key(&member) {
        return Err(OpenError::Membership {
            member,
            problem: "it is not among the initial members; leave that list empty to join a group",
        });
    }
    log::validate(&stores.log).map_err(OpenError::Log)?;
    if let Some(meta) = stores.log.meta().cloned() {
        if meta.members.retired(member) && !meta.conf_state.voters_outgoing.contains(&member) {
            return Err(OpenError::Removed { member });
        }
        if meta.members.next == 0 && !meta.conf_state.voters.is_empty() {
            // Written before addresses were kept; all members have the same list.
            let meta = LogMeta {
                members: Members::founders(&membership.initial),
                ..meta
            };
            let write = LogWrite {
                meta: Some(meta),
                sync: true,
                ..LogWrite::default()
            };
            stores.log.write(write).map_err(OpenError::Log)?;
        }
        return Ok(());
    }
    let begins = match membership.initial.is_empty() {
        true => NOTHING,
        false => GENESIS,
    };
    let state_dir = next_name("");
    let mark = Mark {
        position: begins,
        now_ms: 0,
    };
    drop(
        stores
            .root
            .create(
                &state_dir,
                mark,
                HistoryTail::default(),
                &mut std::iter::empty(),
            )
            .map_err(OpenError::State)?,
    );
    let conf_state = ConfState {
        voters: membership.initial.keys().copied().collect(),
        ..ConfState::default()
    };
    let hard_state = HardState {
        term: begins.term,
        commit: begins.index,
        ..HardState::default()
    };
    let meta = LogMeta {
        identity: stores.identity.clone(),
        known_stamps: BTreeMap::new(),
        conf_state,
        members: Members::founders(&membership.initial),
        conf_index: begins.index,
        truncated: begins,
        state_dir,
    };
    stores
        .log
        .write(LogWrite {
            hard_state: Some(hard_state),
            meta: Some(meta),
            sync: true,
            ..LogWrite::default()
        })
        .map_err(OpenError::Log)
}

/// Makes a replica out of opened stores.
///
/// # Errors
/// [`OpenError`].
pub fn replica<M: Machine, L: LogStore, R: StateRoot>(
    stores: Stores<L, R>,
    options: &Options,
    (incarnation, address): (u64, &str),
    counters: Arc<Counters>,
) -> Result<Replica<M, L, R>, OpenError> {
    options.validate().map_err(OpenError::Options)?;
    let Stores {
        mut log,
        root,
        shelf,
        identity,
    } = stores;
    log::validate(&log).map_err(OpenError::Log)?;
    let meta = log.meta().cloned().ok_or_else(|| OpenError::LogLost {
        place: log.place().to_owned(),
    })?;
    if meta.identity != identity {
        return Err(OpenError::StateLost {
            place: log.place().to_owned(),
            problem: format!(
                "the log belongs to member {} of farm {} with another stamp",
                meta.identity.member, meta.identity.cluster
            ),
        });
    }
    let newest = shelf.newest().map_err(OpenError::Snapshot)?;
    let (state, machine) = match load_current::<M, _, _>(&log, &meta, root.as_ref())? {
        Ok(loaded) => loaded,
        Err(problem) => {
            tracing::warn!(
                problem,
                "The state is rebuilt from a snapshot file and the log."
            );
            rebuild(&mut log, &meta, root.as_ref(), newest.as_ref())?
        }
    };
    let applied = state.mark().position;
    // sled flushes by itself and a new configuration is synced, the commit index is not always:
    // catch up.
    let committed = applied.index.max(meta.conf_index.min(log.last_index()));
    if log.hard_state().commit < committed {
        let mut hard_state = log.hard_state().clone();
        hard_state.commit = committed;
        log.write(LogWrite {
            hard_state: Some(hard_state),
            sync: true,
            ..LogWrite::default()
        })
        .map_err(OpenError::Log)?;
    }
    let current = log
        .meta()
        .map_or(String::new(), |meta| meta.state_dir.clone());
    root.sweep(&current).map_err(OpenError::State)?;
    shelf.sweep().map_err(OpenError::Snapshot)?;

    // A file below the truncation cannot be followed by our log.
    let usable = newest.filter(|file| file.header.mark.position.index + 1 >= log.first_index());
    let snapshot = usable.as_ref().map(|file| file.header.mark.position);
    let offer = usable.map(|file| (file.offer(), file.header.conf_state));
    let core = Core::new(
        identity.member,
        options,
        log,
        offer,
        applied.index,
        counters.clone(),
    )
    .map_err(OpenError::Core)?;
    let opened = Opened {
        core,
        machine,
        root,
        state,
        snapshot,
        address: address.to_owned(),
        incarnation,
    };
    Ok(Replica::new(opened, options.clone(), counters))
}

/// The inner error says why the state must be rebuilt.
type Loaded<M, S> = Result<(S, M), String>;

fn load_current<M: Machine, L: LogStore, R: StateRoot>(
    log: &L,
    meta: &LogMeta,
    root: &R,
) -> Result<Loaded<M, R::Store>, OpenError> {
    let state = match root.open(&meta.state_dir) {
        Ok(state) => state,
        Err(error) => return Ok(Err(chain(&error))),
    };
    let applied = state.mark().position;
    if applied.index < meta.truncated.index {
        return Ok(Err(format!(
            "it ends at {}, the log begins after {}",
            applied.index, meta.truncated.index
        )));
    }
    if applied.index > log.last_index() {
        // Entries are synced before they are applied: whatever is applied was in the log.
        return Err(OpenError::LogCut {
            place: log.place().to_owned(),
            last: log.last_index(),
            applied: applied.index,
        });
    }
    match log.term(applied.index).map_err(OpenError::Log)? {
        Some(term) if term == applied.term => {}
        found => {
            return Ok(Err(format!(
                "it is at entry {} of term {}, the log has {found:?} there",
                applied.index, applied.term
            )));
        }
    }
    let loaded = M::load(&mut state.records().map(|record| record.map_err(|e| chain(&e))));
    let machine = match loaded {
        Ok(machine) => machine,
        Err(error) => return Ok(Err(chain(&error))),
    };
    let wanted = state.digest();
    if wanted.is_some_and(|wanted| machine.view().digest() != wanted) {
        return Ok(Err("it does not hold the records that it says".to_owned()));
    }
    Ok(Ok((state, machine)))
}

fn rebuild<M: Machine, L: LogStore, R: StateRoot>(
    log: &mut L,
    meta: &LogMeta,
    root: &R,
    newest: Option<&SnapshotFile>,
) -> Result<(R::Store, M), OpenError> {
    let lost = |problem: String| OpenError::StateLost {
        place: log.place().to_owned(),
        problem,
    };
    let state_dir = next_name(&meta.state_dir);
    let fits = |file: &&SnapshotFile| {
        let position = file.header.mark.position;
        matches!(log.term(position.index), Ok(Some(term)) if term == position.term)
    };
    let mut state = match newest.filter(fits) {
        Some(file) => restore(root, &state_dir, file)
            .map_err(|error| lost(format!("the state cannot be rebuilt ({})", chain(&error))))?,
        None if [GENESIS, NOTHING].contains(&meta.truncated) => root
            .create(
                &state_dir,
                Mark {
                    position: meta.truncated,
                    now_ms: 0,
                },
                HistoryTail::default(),
                &mut std::iter::empty(),
            )
            .map_err(OpenError::State)?,
        None => {
            return Err(lost(format!(
                "the state is damaged, the log begins after entry {} and no snapshot file reaches it",
                meta.truncated.index
            )));
        }
    };
    let machine = M::load(&mut state.records().map(|record| record.map_err(|e| chain(&e))))
        .map_err(OpenError::Load)?;
    if let Err(error) = root.salvage(&mut state, &meta.state_dir) {
        let error = chain(&error);
        tracing::warn!(
            error,
            "The history of the old state is of no use; the other members have it."
        );
    }
    let meta = LogMeta {
        state_dir,
        ..meta.clone()
    };
    log.write(LogWrite {
        meta: Some(meta),
        sync: true,
        ..LogWrite::default()
    })
    .map_err(OpenError::Log)?;
    Ok((state, machine))
}

/// Makes a state store out of a verified snapshot file.
pub(crate) fn restore<R: StateRoot>(
    root: &R,
    state_dir: &str,
    file: &SnapshotFile,
) -> Result<R::Store, RestoreError> {
    let records = snapshot::records(file).map_err(RestoreError::Read)?;
    root.create(
        state_dir,
        file.header.mark,
        file.header.history,
        &mut records.map(|record| record.map_err(|error| chain(&error))),
    )
    .map_err(RestoreError::Write)
}

/// Failed to make a state out of a snapshot file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The file.
    #[error("read the snapshot")]
    Read(#[source] SnapshotError),
    /// The state.
    #[error("write the state")]
    Write(#[source] StateError),
}
