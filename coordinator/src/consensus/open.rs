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
use crate::store::identity::{Identity, IdentityError, farm_of};
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
    // A forced recovery writes the log first, so where only the cluster differs the log is right.
    let logged = log.meta().map(|meta| meta.identity.clone());
    let recovered = |file: &Identity| {
        logged.as_ref().is_some_and(|log| {
            (log.member, log.stamp) == (file.member, file.stamp)
                && farm_of(&log.cluster) == farm_of(&file.cluster)
                && log.cluster != file.cluster
        })
    };
    let written = written.filter(|file| !recovered(file));
    let found = written.clone().or_else(|| logged.clone());
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
        return place_members(stores, meta, membership);
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

/// Takes from the configuration where the other voters are, as long as the group has not said so: it
/// was restored, or begun before addresses were kept.
fn place_members<L: LogStore, R: StateRoot>(
    stores: &mut Stores<L, R>,
    meta: LogMeta,
    membership: &Membership,
) -> Result<(), OpenError> {
    let mut members = match meta.members.next {
        0 => Members::of_voters(meta.conf_state.voters.iter().copied()),
        _ => meta.members.clone(),
    };
    members.place(&membership.initial);
    let lost = members
        .known
        .iter()
        .find(|(id, record)| record.address.is_empty() && **id != membership.member);
    if lost.is_some() {
        return Err(OpenError::Membership {
            member: membership.member,
            problem: "its configuration does not say where the other voters are; list every member under `peers`",
        });
    }
    if members == meta.members {
        return Ok(());
    }
    let write = LogWrite {
        meta: Some(LogMeta { members, ..meta }),
        sync: true,
        ..LogWrite::default()
    };
    stores.log.write(write).map_err(OpenError::Log)
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
    let newest = newest_fitting(&log, &shelf)?;
    let (state, machine) = current(&mut log, root.as_ref(), newest.as_ref())?;
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
    let snapshot = newest.as_ref().map(|file| file.header.mark.position);
    shelf
        .sweep(snapshot.unwrap_or_default())
        .map_err(OpenError::Snapshot)?;
    let offer = newest.map(|file| (file.offer(), file.header.conf_state));
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

/// The newest good snapshot file that our log can follow. One that was fetched from a peer but
/// never became current is ahead of the log, and one below the truncation cannot be followed.
pub(crate) fn newest_fitting<L: LogStore>(
    log: &L,
    shelf: &Shelf,
) -> Result<Option<SnapshotFile>, OpenError> {
    let fits = |position: LogPosition| matches!(log.term(position.index), Ok(Some(term)) if term == position.term);
    shelf.newest(fits).map_err(OpenError::Snapshot)
}

/// The applied state, rebuilt from snapshot file and log when what is there cannot be trusted.
pub(crate) fn current<M: Machine, L: LogStore, R: StateRoot>(
    log: &mut L,
    root: &R,
    newest: Option<&SnapshotFile>,
) -> Result<(R::Store, M), OpenError> {
    let meta = log.meta().cloned().ok_or_else(|| OpenError::LogLost {
        place: log.place().to_owned(),
    })?;
    match load_current::<M, _, _>(log, &meta, root)? {
        Ok(loaded) => Ok(loaded),
        Err(problem) => {
            tracing::warn!(
                problem,
                "The state is rebuilt from a snapshot file and the log."
            );
            rebuild(log, &meta, root, newest)
        }
    }
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
    let mut state = match newest {
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
