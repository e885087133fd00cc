//! raft-rs with its traps closed, and the order in which a member acts.
//!
//! A round ([`Core::turn`]) is always the same:
//!
//! ```text
//! 1 send       the leader's appends, in parallel with its own disk (Raft thesis 10.2.1)
//! 2 persist    entries, vote and commit in one atomic write; fsync unless only commit moved
//! 3 send       a follower's or candidate's messages: they promise what step 2 made durable
//! 4 apply      committed entries to the machine and the state store
//! 5 send+apply what became possible through step 2 (raft-rs calls it the light ready)
//! 6 tell raft  how far we applied; then the caller acknowledges to its clients
//! ```
//!
//! Sending step 3 before step 2 loses acknowledged commands in about one crash in twenty. A
//! received snapshot is handled synchronously in step 2.
//!
//! Traps of raft-rs 0.7 that are closed here: a follower silently forwards proposals; reads vanish
//! without a leader; a second configuration change silently becomes an empty entry; a heartbeat
//! from before a member lost its log panics; election timeouts come from `thread_rng`.

use std::sync::Arc;

use oast_daemon::panic::doing;
use oast_proto::peer::v1::DigestVerdict;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeV2, ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot,
};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, ReadState, SnapshotStatus, StateRole};

use super::change;
use super::counters::{Counters, Timed};
use super::halt::DISK_FAILED;
use super::logger;
use super::options::Options;
use super::storage::RaftStorage;
use crate::store::log::{LogError, LogMeta, LogPosition, LogStore, LogWrite};
use crate::store::members::Members;
use crate::store::snapshot::SnapshotOffer;

/// A committed entry for the host. `data` is empty for entries that only Raft itself cares about.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Where it stands.
    pub position: LogPosition,
    /// Envelope, or empty.
    pub data: bytes::Bytes,
    /// What most voters' states look like, if the entry says so.
    pub verdict: Option<DigestVerdict>,
}

/// What a received snapshot was turned into.
#[derive(Clone, Debug)]
pub struct Installed {
    /// State directory that holds it, complete and synced.
    pub state_dir: String,
    /// The file, now on our own shelf.
    pub offer: SnapshotOffer,
    /// The members in it.
    pub members: Members,
}

/// What the core needs done around it during a round.
pub trait Host {
    /// Why the host cannot go on.
    type Error;
    /// Hands messages to the network; loss is fine.
    fn send(&mut self, messages: Vec<Message>);
    /// Makes the announced snapshot ready to become current. Called before the log says so.
    ///
    /// # Errors
    /// Ends the member.
    fn install(&mut self, snapshot: &Snapshot) -> Result<Installed, Self::Error>;
    /// Applies entries durably-or-replayably, in order.
    ///
    /// # Errors
    /// Ends the member.
    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), Self::Error>;
    /// Reads that may be served once their index is applied.
    fn reads(&mut self, states: Vec<ReadState>);
    /// A change of the group took its turn: it is in force, or why all members passed over it.
    fn settled(&mut self, position: LogPosition, outcome: Result<(), String>);
}

/// The member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// raft-rs refused to start.
    #[error("start raft")]
    Start(#[source] raft::Error),
    /// The log failed.
    #[error("keep the log")]
    Log(#[source] LogError),
    /// A change of the group that this binary does not know.
    #[error("apply the change of the group in log entry {index}: {problem}")]
    Group {
        /// Log index.
        index: u64,
        /// What does not fit.
        problem: String,
    },
    /// The leader knows more of our log than we do.
    #[error(
        "go on as member {member}: the leader counts on entry {wanted}, our log ends at {last}. This data directory lost what it acknowledged; remove this member and add it again under a new id"
    )]
    LostLog {
        /// Our id.
        member: u64,
        /// Commit index in the leader's heartbeat.
        wanted: u64,
        /// Our last index.
        last: u64,
    },
}

/// Why a proposal was not accepted; it is certain not to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Somebody else leads, or nobody.
    NotLeader {
        /// Who, as far as known.
        leader: Option<u64>,
    },
    /// Too much is waiting for a majority.
    Overloaded,
    /// A configuration change is still under way.
    ChangePending,
}

/// Progress of a peer as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProgress {
    /// Raft id.
    pub member: u64,
    /// Highest entry known to be on its disk.
    pub matched: u64,
    /// Waiting for a snapshot.
    pub snapshot: bool,
    /// Heard from within the last election timeout.
    pub active: bool,
}

/// raft-rs and the log.
pub struct Core<L: LogStore> {
    node: RawNode<RaftStorage<L>>,
    election_ticks: usize,
    seed: u64,
    /// Must not stand for election.
    barred: bool,
    counters: Arc<Counters>,
}

impl<L: LogStore> std::fmt::Debug for Core<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("member", &self.node.raft.id)
            .field("term", &self.node.raft.term)
            .field("role", &self.node.raft.state)
            .finish_non_exhaustive()
    }
}

impl<L: LogStore> Core<L> {
    /// Starts raft over a validated log whose commit index is at least `applied`.
    ///
    /// # Errors
    /// [`CoreError::Start`].
    pub fn new(
        member: u64,
        options: &Options,
        log: L,
        offer: Option<(SnapshotOffer, ConfState)>,
        applied: u64,
        counters: Arc<Counters>,
    ) -> Result<Self, CoreError> {
        let config = Config {
            id: member,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied,
            max_size_per_msg: options.max_message_bytes,
            max_inflight_msgs: options.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            // Lease-based reads count ticks, and a stopped process does not.
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: options.max_uncommitted_bytes,
            max_committed_size_per_ready: options.max_apply_bytes,
            ..Config::default()
        };
        let node = RawNode::new(
            &config,
            RaftStorage::new(log, offer),
            &logger::logger(member),
        )
        .map_err(CoreError::Start)?;
        let mut core = Core {
            node,
            election_ticks: options.election_ticks,
            seed: options.seed,
            barred: false,
            counters,
        };
        core.settle();
        Ok(core)
    }

    /// Puts raft-rs's randomness under our control. Voters get different timeouts in every term,
    /// evenly spread, so that two of them hardly ever stand at once.
    fn settle(&mut self) {
        let raft = &self.node.raft;
        let mut voters: Vec<u64> = raft.prs().conf().voters().ids().iter().collect();
        voters.sort_unstable();
        let count = voters.len().max(1) as u64;
        let rank = voters.iter().position(|id| *id == raft.id).unwrap_or(0) as u64;
        let slot = (rank + mix(self.seed ^ raft.term)) % count;
        let spread = slot * self.election_ticks as u64 / count;
        let timeout = if self.barred {
            // The longest that raft-rs takes; `tick` stops short of it.
            2 * self.election_ticks - 1
        } else {
            self.election_ticks + usize::try_from(spread).unwrap_or(0)
        };
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        // A barred member lets its time stand still just before it would campaign, but after it
        // believes the leader dead, so that it votes for others.
        let held = self.barred
            && !self.leads()
            && self.node.raft.election_elapsed + 2 >= 2 * self.election_ticks;
        if !held {
            self.node.tick();
        }
        self.settle();
    }

    /// Whether this member must not stand for election.
    pub fn barred(&self) -> bool {
        self.barred
    }

    /// Forbids or allows this member to stand for election.
    pub fn set_barred(&mut self, barred: bool) {
        self.barred = barred;
        self.settle();
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// [`CoreError::LostLog`] if our data directory lost acknowledged entries.
    pub fn receive(&mut self, message: Message) -> Result<(), CoreError> {
        let raft = &self.node.raft;
        if message.to != raft.id {
            return Ok(());
        }
        match message.get_msg_type() {
            // Proposals never travel as raft messages: the answer would have nowhere to go.
            MessageType::MsgPropose => return Ok(()),
            // Somebody who does not know yet that we must not lead.
            MessageType::MsgTimeoutNow if self.barred => return Ok(()),
            MessageType::MsgHeartbeat
                if message.term >= raft.term && message.commit > raft.raft_log.last_index() =>
            {
                return Err(CoreError::LostLog {
                    member: raft.id,
                    wanted: message.commit,
                    last: raft.raft_log.last_index(),
                });
            }
            _ => {}
        }
        // Errors say that the sender is unknown or that the message is local: not for us.
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "A peer's message was not used.");
        }
        self.settle();
        Ok(())
    }

    /// Appends `data` to the log if we lead.
    ///
    /// # Errors
    /// [`Refused`]; the entry is certain not to be applied.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<LogPosition, Refused> {
        self.check_leading()?;
        let proposed = self.node.propose(Vec::new(), data);
        self.settle();
        self.proposed(proposed)
    }

    /// Proposes another configuration.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::ChangePending`] while an earlier change is not applied.
    pub fn propose_change(&mut self, change: ConfChangeV2) -> Result<LogPosition, Refused> {
        self.check_leading()?;
        if self.change_pending() {
            return Err(Refused::ChangePending);
        }
        let proposed = self.node.propose_conf_change(Vec::new(), change);
        self.settle();
        self.proposed(proposed)
    }

    /// Appends an entry that changes the group, but not raft's configuration.
    ///
    /// # Errors
    /// [`Refused`]; the entry is certain not to be applied.
    pub fn propose_note(
        &mut self,
        data: Vec<u8>,
        context: Vec<u8>,
    ) -> Result<LogPosition, Refused> {
        self.check_leading()?;
        let proposed = self.node.propose(context, data);
        self.settle();
        self.proposed(proposed)
    }

    /// Whether a change of the configuration is under way.
    pub fn change_pending(&self) -> bool {
        self.leads() && self.node.raft.has_pending_conf() || self.joint()
    }

    fn check_leading(&self) -> Result<(), Refused> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader {
            return Err(Refused::NotLeader {
                leader: self.leader(),
            });
        }
        if let Some(heir) = raft.lead_transferee {
            return Err(Refused::NotLeader { leader: Some(heir) });
        }
        Ok(())
    }

    fn proposed(&self, result: raft::Result<()>) -> Result<LogPosition, Refused> {
        match result {
            Ok(()) => Ok(LogPosition {
                index: self.last_index(),
                term: self.term(),
            }),
            Err(_) if self.node.raft.state == StateRole::Leader => Err(Refused::Overloaded),
            Err(_) => Err(Refused::NotLeader {
                leader: self.leader(),
            }),
        }
    }

    /// Asks for a read index; `context` comes back in [`Host::reads`]. False means that nothing
    /// was asked, because there is no leader or it has not committed in its term yet. True is no
    /// promise either: the answer may get lost.
    pub fn read(&mut self, context: Vec<u8>) -> bool {
        if self.node.raft.state == StateRole::Leader {
            let count = |raft: &raft::Raft<_>| raft.ready_read_count() + raft.pending_read_count();
            let before = count(&self.node.raft);
            self.node.read_index(context);
            self.settle();
            return count(&self.node.raft) > before;
        }
        if self.leader().is_none() {
            return false;
        }
        self.node.read_index(context);
        self.settle();
        true
    }

    /// Stands for election now, if it has a vote: raft-rs lets one win that knows no voters.
    pub fn campaign(&mut self) {
        if self.node.raft.promotable()
            && let Err(error) = self.node.campaign()
        {
            tracing::warn!(%error, "This member cannot stand for election now.");
        }
        self.settle();
    }

    /// Hands leadership over; done once another leader is seen.
    pub fn transfer(&mut self, to: u64) {
        self.node.transfer_leader(to);
        self.settle();
    }

    /// The transport could not deliver.
    pub fn report_unreachable(&mut self, member: u64) {
        self.node.report_unreachable(member);
        self.settle();
    }

    /// A snapshot offer went unanswered: raft offers again.
    pub fn report_snapshot_lost(&mut self, member: u64) {
        self.node.report_snapshot(member, SnapshotStatus::Failure);
        self.settle();
    }

    /// Offers this file from now on.
    pub fn set_offer(&mut self, offer: SnapshotOffer, conf_state: ConfState) {
        self.node.mut_store().offer = Some((offer, conf_state));
    }

    /// Whether a follower needs a snapshot and there was none since the last call.
    pub fn take_snapshot_wanted(&self) -> bool {
        self.node.store().take_wanted()
    }

    /// Changes the facts beside the log, durably.
    ///
    /// # Errors
    /// [`CoreError::Log`].
    pub fn describe(&mut self, change: impl FnOnce(&mut LogMeta)) -> Result<(), CoreError> {
        let log = &mut self.node.mut_store().log;
        let Some(mut meta) = log.meta().cloned() else {
            return Ok(());
        };
        change(&mut meta);
        persist(
            log,
            LogWrite {
                meta: Some(meta),
                sync: true,
                ..LogWrite::default()
            },
        )
    }

    /// Drops entries up to and including `index`, which must be applied and in a snapshot file.
    ///
    /// # Errors
    /// [`CoreError::Log`].
    pub fn compact(&mut self, index: u64) -> Result<(), CoreError> {
        let log = &mut self.node.mut_store().log;
        if index < log.first_index() {
            return Ok(());
        }
        let Some(term) = log.term(index).map_err(CoreError::Log)? else {
            return Ok(());
        };
        let Some(mut meta) = log.meta().cloned() else {
            return Ok(());
        };
        meta.truncated = LogPosition { index, term };
        log.write(LogWrite {
            meta: Some(meta),
            sync: false,
            ..LogWrite::default()
        })
        .and_then(|()| log.purge())
        .map_err(CoreError::Log)
    }

    /// Does one round in the order written at the top. False when there was nothing to do.
    ///
    /// # Errors
    /// The core's or the host's; the member must stop.
    pub fn turn<H: Host>(&mut self, host: &mut H) -> Result<bool, H::Error>
    where
        H::Error: From<CoreError>,
    {
        if !self.node.has_ready() {
            return Ok(false);
        }
        let mut ready = self.node.ready();
        let states = ready.take_read_states();
        if !states.is_empty() {
            host.reads(states);
        }

        // 1 send
        host.send(ready.take_messages());

        // 2 persist
        let mut write = LogWrite {
            entries: ready.take_entries(),
            hard_state: ready.hs().cloned(),
            sync: ready.must_sync(),
            ..LogWrite::default()
        };
        let mut applied = 0;
        let mut installed = None;
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot();
            let done = host.install(snapshot)?;
            applied = snapshot.get_metadata().index;
            self.replace_log(&mut write, snapshot, &done);
            installed = Some((done.offer, snapshot.get_metadata().get_conf_state().clone()));
        }
        if write.reset || !write.entries.is_empty() || write.hard_state.is_some() {
            let began = write.sync.then(|| self.counters.begin()).flatten();
            let store = self.node.mut_store();
            persist(&mut store.log, write)?;
            self.counters.end(Timed::Fsync, began);
            if installed.is_some() {
                store.offer = installed;
            }
        }

        // 3 send
        host.send(ready.take_persisted_messages());

        // 4 apply
        applied = applied.max(self.apply(host, ready.take_committed_entries())?);

        // 5 send and apply
        let mut light = self.node.advance_append(ready);
        host.send(light.take_messages());
        applied = applied.max(self.apply(host, light.take_committed_entries())?);

        // 6 tell raft
        if applied > 0 {
            self.node.advance_apply_to(applied);
        }
        self.step_down_if_removed();
        self.settle();
        Ok(true)
    }

    fn replace_log(&self, write: &mut LogWrite, snapshot: &Snapshot, done: &Installed) {
        let log = &self.node.store().log;
        let metadata = snapshot.get_metadata();
        let mut hard_state: HardState = write
            .hard_state
            .take()
            .unwrap_or_else(|| self.node.raft.hard_state());
        hard_state.commit = hard_state.commit.max(metadata.index);
        write.hard_state = Some(hard_state);
        write.meta = log.meta().cloned().map(|meta| LogMeta {
            truncated: LogPosition {
                index: metadata.index,
                term: metadata.term,
            },
            conf_state: metadata.get_conf_state().clone(),
            members: done.members.clone(),
            conf_index: metadata.index,
            state_dir: done.state_dir.clone(),
            ..meta
        });
        write.reset = true;
        write.sync = true;
    }

    /// Returns the index of the last entry, 0 for none.
    fn apply<H: Host>(&mut self, host: &mut H, entries: Vec<Entry>) -> Result<u64, H::Error>
    where
        H::Error: From<CoreError>,
    {
        let Some(last) = entries.last().map(|entry| entry.index) else {
            return Ok(0);
        };
        let mut committed = Vec::with_capacity(entries.len());
        for mut entry in entries {
            let position = LogPosition {
                index: entry.index,
                term: entry.term,
            };
            let mut verdict = None;
            let data = match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    if !entry.context.is_empty() {
                        verdict = self.note(host, &entry, position)?;
                    }
                    entry.take_data()
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.reconfigure(host, &entry, position)?;
                    bytes::Bytes::new()
                }
            };
            committed.push(Committed {
                position,
                data,
                verdict,
            });
        }
        let began = self.counters.begin();
        host.apply(committed)?;
        self.counters.end(Timed::Apply, began);
        Ok(last)
    }

    /// Whether the stored configuration has this entry already: it is replayed after a restart.
    fn has_change(&self, index: u64) -> bool {
        self.meta().is_some_and(|meta| meta.conf_index >= index)
    }

    /// What the members are after a change; the inner error says why it is passed over.
    fn judge(&self, index: u64, context: &[u8]) -> Result<Result<Members, String>, CoreError> {
        let change =
            change::read(context).map_err(|problem| CoreError::Group { index, problem })?;
        let meta = self.meta().ok_or_else(|| CoreError::Group {
            index,
            problem: "this member has no configuration".to_owned(),
        })?;
        Ok(change::judge(&change, &meta.members, &meta.conf_state))
    }

    /// An entry that changes the group, but not raft's configuration.
    fn note<H: Host>(
        &mut self,
        host: &mut H,
        entry: &Entry,
        position: LogPosition,
    ) -> Result<Option<DigestVerdict>, CoreError> {
        let index = entry.index;
        let read = change::read(&entry.context);
        let read = read.map_err(|problem| CoreError::Group { index, problem })?;
        if let Some(change::Wire::Verdict(verdict)) = read.change {
            return Ok(Some(verdict));
        }
        if self.has_change(index) {
            return Ok(None);
        }
        match self.judge(index, &entry.context)? {
            Ok(members) => {
                self.describe(|meta| {
                    meta.members = members;
                    meta.conf_index = index;
                })?;
                host.settled(position, Ok(()));
            }
            Err(problem) => host.settled(position, Err(problem)),
        }
        Ok(None)
    }

    fn reconfigure<H: Host>(
        &mut self,
        host: &mut H,
        entry: &Entry,
        position: LogPosition,
    ) -> Result<(), CoreError> {
        if self.has_change(entry.index) {
            return Ok(());
        }
        // Every member judges the same change in the same state, so all of them pass over it.
        match self.try_reconfigure(entry)? {
            Ok((conf_state, mut members)) => {
                tracing::info!(
                    log_index = entry.index,
                    ?conf_state,
                    "The configuration changed."
                );
                members.keep(&conf_state);
                self.describe(|meta| {
                    meta.conf_state = conf_state;
                    meta.members = members;
                    meta.conf_index = entry.index;
                })?;
                host.settled(position, Ok(()));
            }
            Err(problem) => {
                tracing::warn!(
                    log_index = entry.index,
                    problem,
                    "A change of the configuration has no effect."
                );
                host.settled(position, Err(problem));
            }
        }
        Ok(())
    }

    /// The inner error says why the change is passed over.
    fn try_reconfigure(
        &mut self,
        entry: &Entry,
    ) -> Result<Result<(ConfState, Members), String>, CoreError> {
        let mut change = ConfChangeV2::default();
        if entry.get_entry_type() == EntryType::EntryConfChange {
            return Ok(Err("no member ever wrote this kind".to_owned()));
        } else if let Err(error) = change.merge_from_bytes(&entry.data) {
            return Ok(Err(error.to_string()));
        }
        let members = if change.context.is_empty() {
            // Leaving a joint configuration changes nobody's record.
            self.meta()
                .map(|meta| meta.members.clone())
                .unwrap_or_default()
        } else {
            match self.judge(entry.index, &change.context)? {
                Ok(members) => members,
                Err(problem) => return Ok(Err(problem)),
            }
        };
        let applied = self.node.apply_conf_change(&change);
        Ok(applied
            .map(|conf_state| (conf_state, members))
            .map_err(|error| error.to_string()))
    }

    /// raft-rs lets a leader that is no member any more go on leading.
    fn step_down_if_removed(&mut self) {
        let id = self.node.raft.id;
        let voters = self.node.raft.prs().conf().voters();
        if self.leads() && !voters.contains(id) {
            let term = self.term();
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// Whether the voters are changing.
    pub fn joint(&self) -> bool {
        self.meta()
            .is_some_and(|meta| !meta.conf_state.voters_outgoing.is_empty())
    }

    /// Facts beside the log.
    pub fn meta(&self) -> Option<&LogMeta> {
        self.node.store().log.meta()
    }

    /// The log store, for looking.
    pub fn log(&self) -> &L {
        &self.node.store().log
    }

    /// Our role.
    pub fn role(&self) -> StateRole {
        self.node.raft.state
    }

    /// Whether we lead.
    pub fn leads(&self) -> bool {
        self.role() == StateRole::Leader
    }

    /// Whether we lead and have applied an entry of our own term: only then is our state complete.
    pub fn leads_with_full_state(&self) -> bool {
        self.leads() && self.node.raft.apply_to_current_term()
    }

    /// Who leads, as far as we know.
    pub fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    /// Current term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Commit index.
    pub fn commit(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Last index, durable or not.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Whether our log has exactly this entry.
    pub fn has(&self, position: LogPosition) -> bool {
        self.node
            .raft
            .raft_log
            .match_term(position.index, position.term)
    }

    /// Peers as the leader sees them; empty on other members.
    pub fn peers(&self) -> Vec<PeerProgress> {
        if !self.leads() {
            return Vec::new();
        }
        let mut peers: Vec<PeerProgress> = self
            .node
            .raft
            .prs()
            .iter()
            .filter(|(id, _)| **id != self.node.raft.id)
            .map(|(id, progress)| PeerProgress {
                member: *id,
                matched: progress.matched,
                snapshot: progress.state == ProgressState::Snapshot,
                active: progress.recent_active,
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.member);
        peers
    }
}

/// The one way to the log's disk. Also a panic below says what to do.
fn persist<L: LogStore>(log: &mut L, write: LogWrite) -> Result<(), CoreError> {
    doing(DISK_FAILED, || log.write(write)).map_err(CoreError::Log)
}

/// SplitMix64's finaliser: spreads neighbouring inputs over the whole range.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
