//! One member as a deterministic state machine: raft, the machine, and who waits for what.
//!
//! Everything comes in as a call ([`Replica::tick`], [`receive`](Replica::receive),
//! [`propose`](Replica::propose), ...), then [`Replica::turn`] does all rounds that are due, and
//! what the outside has to do is taken with [`Replica::take_outputs`], in order. There is no clock,
//! thread, channel or randomness in here, so a simulator can drive many of these from one seed.
//!
//! A command's life on the leader:
//!
//! ```text
//! propose -> entry (index, term) -> committed -> applied -> Output::Answered(Applied)
//!    |             |                    '- another entry committed at its index: NotLeader (not applied)
//!    |             '- leadership lost before it was seen committed:               Unknown
//!    '- refused: NotLeader, Overloaded, TooLarge (not applied)
//! ```
//!
//! A member that is too far behind gets a snapshot *offer* from raft; the file is fetched outside
//! ([`Output::Fetch`]) and only when it is verified and loaded does raft see the offer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use raft::eraftpb::{ConfChangeV2, Message, MessageType};

use super::core::{Core, CoreError, PeerProgress, Refused};
use super::counters::{Counters, count};
use super::entry::{self, EnvelopeError};
use super::machine::{EncodedCommand, LoadError, Machine, Undecodable};
use super::options::Options;
use crate::store::log::{LogPosition, LogStore};
use crate::store::snapshot::{SnapshotFile, SnapshotHeader, SnapshotOffer};
use crate::store::state::{HistoryGap, Mark, StateError, StateRoot, StateStore, Syncer};

mod reads;
mod side;

use reads::Reads;
pub use side::Prepared;
use side::{Round, Side};

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
    /// Not applied.
    #[error("an earlier change of the members is not finished")]
    ChangePending,
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
    #[error("keep the state")]
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
    TakeSnapshot(SnapshotJob<M::View>),
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
    /// Peers, on the leader.
    pub peers: Vec<PeerProgress>,
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

struct Waiting {
    term: u64,
    tickets: Vec<Ticket>,
}

/// Monotone leader time: calendar at election, own monotonic clock from then on, so that a
/// calendar that is set back or forward during a term moves no deadline.
struct LeaderClock {
    term: u64,
    base_ms: u64,
    started: Duration,
}

/// One member. See the module's documentation.
pub struct Replica<M: Machine, L: LogStore, R: StateRoot> {
    core: Core<L>,
    side: Side<M, R>,
    reads: Reads,
    clock: Option<LeaderClock>,
    /// (leads, leader, term) as of the last look.
    seen: (bool, Option<u64>, u64),
    ticks: u64,
    snapshot: Snapshots,
    options: Options,
    counters: Arc<Counters>,
}

/// Making and passing on snapshots.
#[derive(Default)]
struct Snapshots {
    newest: Option<LogPosition>,
    /// Position and bytes applied when the last one was begun.
    begun_at: u64,
    making: bool,
    /// Peers that were offered one, and the tick at which the offer is repeated.
    offered: BTreeMap<u64, u64>,
    /// An offer that we fetch, and the message that carried it.
    fetching: Option<(SnapshotOffer, Message)>,
    /// Another offer that came meanwhile.
    later: Option<Message>,
    /// A fetch of history is under way.
    filling: bool,
    /// Tick before which no history is asked for.
    fill_after: u64,
}

/// Ticks between attempts to fill a gap in the history.
const FILL_RETRY_TICKS: u64 = 20;

impl<M: Machine, L: LogStore, R: StateRoot> std::fmt::Debug for Replica<M, L, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}

/// What [`super::open`] found on the disk.
pub(crate) struct Opened<M, L: LogStore, R: StateRoot> {
    pub(crate) core: Core<L>,
    pub(crate) machine: M,
    pub(crate) root: Arc<R>,
    pub(crate) state: R::Store,
    pub(crate) snapshot: Option<LogPosition>,
    /// Told apart from earlier lives of this process, for read contexts.
    pub(crate) incarnation: u64,
}

impl<M, L: LogStore, R: StateRoot> std::fmt::Debug for Opened<M, L, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}

impl<M: Machine, L: LogStore, R: StateRoot> Replica<M, L, R> {
    pub(crate) fn new(opened: Opened<M, L, R>, options: Options, counters: Arc<Counters>) -> Self {
        let begun_at = opened.snapshot.map_or(0, |position| position.index);
        Replica {
            seen: (false, None, opened.core.term()),
            core: opened.core,
            side: Side::new(opened.machine, opened.root, opened.state, counters.clone()),
            reads: Reads::new(opened.incarnation, &options),
            clock: None,
            ticks: 0,
            snapshot: Snapshots {
                newest: opened.snapshot,
                begun_at,
                ..Snapshots::default()
            },
            options,
            counters,
        }
    }

    /// Lets one tick pass.
    pub fn tick(&mut self) {
        self.ticks += 1;
        self.core.tick();
        self.reads.tick(self.ticks, &mut self.side.outputs);
        let due: Vec<u64> = self
            .snapshot
            .offered
            .iter()
            .filter(|(_, at)| **at <= self.ticks)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in due {
            self.snapshot.offered.remove(&peer);
            if self
                .core
                .peers()
                .iter()
                .any(|p| p.member == peer && p.snapshot)
            {
                self.core.report_snapshot_lost(peer);
            }
        }
        self.fill_history();
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// [`ReplicaError::Core`] if this member lost what it acknowledged.
    pub fn receive(&mut self, message: Message) -> Result<(), ReplicaError> {
        count(&self.counters.messages_received, 1);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.offered(message)
        } else {
            Ok(self.core.receive(message)?)
        }
    }

    fn offered(&mut self, message: Message) -> Result<(), ReplicaError> {
        let Some(offer) = SnapshotOffer::decode(message.get_snapshot().get_data()) else {
            tracing::warn!(
                from = message.from,
                "A snapshot offer cannot be read and is ignored."
            );
            return Ok(());
        };
        // Raft refuses or fast-forwards these without needing the content.
        let useless = message.term < self.core.term()
            || offer.position.index <= self.core.commit()
            || self.core.has(offer.position);
        if useless || self.side.is_prepared(&offer) {
            return Ok(self.core.receive(message)?);
        }
        match &mut self.snapshot.fetching {
            Some((current, kept)) if *current == offer => *kept = message,
            Some(_) => self.snapshot.later = Some(message),
            None => {
                self.side.outputs.push(Output::Fetch {
                    from: message.from,
                    offer: offer.clone(),
                    state_dir: self.next_state_dir(),
                });
                self.snapshot.fetching = Some((offer, message));
            }
        }
        Ok(())
    }

    fn next_state_dir(&self) -> String {
        crate::store::state::next_name(self.core.meta().map_or("", |meta| &meta.state_dir))
    }

    /// A fetch ended; `None` says that it failed and the offer may come again.
    ///
    /// # Errors
    /// See [`Replica::receive`].
    pub fn fetched(&mut self, prepared: Option<Prepared<M, R::Store>>) -> Result<(), ReplicaError> {
        let fetching = self.snapshot.fetching.take();
        if let Some(prepared) = prepared {
            self.side.prepare(prepared);
        }
        if let Some((offer, message)) = fetching
            && self.side.is_prepared(&offer)
        {
            self.offered(message)?;
        }
        match self.snapshot.later.take() {
            Some(later) => self.offered(later),
            None => Ok(()),
        }
    }

    /// Proposes commands, many per log entry. Each ticket gets exactly one answer.
    pub fn propose(&mut self, commands: Vec<(Ticket, EncodedCommand)>, time: Reading) {
        let mut tickets = Vec::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (ticket, command) in commands {
            let size = command.body.len();
            if size > self.options.max_command_bytes {
                let limit = self.options.max_command_bytes;
                self.side
                    .refuse(ticket, ProposeError::TooLarge { bytes: size, limit });
                continue;
            }
            let full = batch.len() >= self.options.max_entry_commands
                || bytes + size > self.options.max_entry_bytes;
            if full && !batch.is_empty() {
                self.propose_entry(
                    std::mem::take(&mut tickets),
                    std::mem::take(&mut batch),
                    time,
                );
                bytes = 0;
            }
            bytes += size;
            tickets.push(ticket);
            batch.push(command);
        }
        if !batch.is_empty() {
            self.propose_entry(tickets, batch, time);
        }
    }

    fn propose_entry(&mut self, tickets: Vec<Ticket>, batch: Vec<EncodedCommand>, time: Reading) {
        let now_ms = self.now_ms(time);
        match self.core.propose(entry::encode(now_ms, batch)) {
            Ok(position) => {
                count(&self.counters.proposals_accepted, tickets.len() as u64);
                count(&self.counters.entries_proposed, 1);
                let waiting = Waiting {
                    term: position.term,
                    tickets,
                };
                self.side.waiting.insert(position.index, waiting);
            }
            Err(refused) => {
                let (error, counter) = match refused {
                    Refused::NotLeader { leader } => (
                        ProposeError::NotLeader { leader },
                        &self.counters.proposals_refused,
                    ),
                    Refused::Overloaded => (
                        ProposeError::Overloaded,
                        &self.counters.proposals_overloaded,
                    ),
                    Refused::ChangePending => (
                        ProposeError::ChangePending,
                        &self.counters.proposals_refused,
                    ),
                };
                count(counter, tickets.len() as u64);
                for ticket in tickets {
                    self.side.refuse(ticket, error);
                }
            }
        }
    }

    /// Leader time for an entry proposed now.
    fn now_ms(&mut self, time: Reading) -> u64 {
        let term = self.core.term();
        let applied_ms = self.side.mark.now_ms;
        let clock = match self.clock.take() {
            Some(clock) if clock.term == term => clock,
            _ => LeaderClock {
                term,
                base_ms: time.wall_ms.max(applied_ms),
                started: time.monotonic,
            },
        };
        let passed = time.monotonic.saturating_sub(clock.started).as_millis();
        let now_ms = clock
            .base_ms
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
        self.clock = Some(clock);
        now_ms.max(applied_ms)
    }

    /// Proposes a change of the members. The caller watches [`Status::voters`] for the effect.
    ///
    /// # Errors
    /// [`ProposeError`]; the change has no effect.
    pub fn change_members(&mut self, change: ConfChangeV2) -> Result<LogPosition, ProposeError> {
        self.core
            .propose_change(change)
            .map_err(|refused| match refused {
                Refused::NotLeader { leader } => ProposeError::NotLeader { leader },
                Refused::Overloaded => ProposeError::Overloaded,
                Refused::ChangePending => ProposeError::ChangePending,
            })
    }

    /// Asks to be told when the view is at least as new as every command acknowledged before this
    /// call, by any member.
    pub fn read(&mut self, ticket: Ticket) {
        self.reads.ask(ticket, self.ticks, &mut self.side.outputs);
    }

    /// Stands for election now.
    pub fn campaign(&mut self) {
        self.core.campaign();
    }

    /// Hands leadership over if we have it.
    pub fn transfer(&mut self, to: u64) {
        self.core.transfer(to);
    }

    /// The transport could not deliver to a peer.
    pub fn unreachable(&mut self, member: u64) {
        self.core.report_unreachable(member);
    }

    /// Stores stamps of other members.
    ///
    /// # Errors
    /// [`ReplicaError::Core`].
    pub fn learn_stamps(&mut self, stamps: &BTreeMap<u64, u64>) -> Result<(), ReplicaError> {
        let known = |meta: &crate::store::log::LogMeta| {
            stamps
                .keys()
                .all(|member| meta.known_stamps.contains_key(member))
        };
        if self.core.meta().is_some_and(known) {
            return Ok(());
        }
        Ok(self.core.describe(|meta| {
            for (member, stamp) in stamps {
                meta.known_stamps.entry(*member).or_insert(*stamp);
            }
        })?)
    }

    /// A snapshot job ended; `None` says that it failed, and it is tried again later.
    ///
    /// # Errors
    /// [`ReplicaError::Core`] if the log cannot be compacted.
    pub fn snapshot_made(&mut self, file: Option<&SnapshotFile>) -> Result<(), ReplicaError> {
        self.snapshot.making = false;
        let Some(file) = file else {
            count(&self.counters.snapshots_failed, 1);
            return Ok(());
        };
        count(&self.counters.snapshots_made, 1);
        let position = file.header.mark.position;
        // One from a peer may have become current meanwhile.
        if self
            .snapshot
            .newest
            .is_none_or(|newest| newest.index < position.index)
        {
            self.snapshot.newest = Some(position);
            self.core
                .set_offer(file.offer(), file.header.conf_state.clone());
        }
        Ok(self
            .core
            .compact(position.index.saturating_sub(self.options.trailing_entries))?)
    }

    /// A fetch of history ended.
    pub fn history_fetched(&mut self, first: u64, records: Vec<Vec<u8>>) {
        self.snapshot.filling = false;
        if records.is_empty() {
            self.snapshot.fill_after = self.ticks + FILL_RETRY_TICKS;
            return;
        }
        if let Err(error) = self.side.state.fill(first, records) {
            let error = super::chain(&error);
            tracing::warn!(
                error,
                "A peer's history was not accepted; another one is asked."
            );
            self.snapshot.fill_after = self.ticks + FILL_RETRY_TICKS;
        }
        self.fill_history();
    }

    fn fill_history(&mut self) {
        let Some(gap) = self.side.state.gap() else {
            return;
        };
        if self.snapshot.filling || self.ticks < self.snapshot.fill_after {
            return;
        }
        // The leader first, then whoever: anybody may have lost the same stretch.
        let us = self.side.member(&self.core);
        let mut peers: Vec<u64> = self
            .core
            .meta()
            .map(|meta| meta.conf_state.voters.clone())
            .unwrap_or_default();
        peers.retain(|peer| *peer != us);
        let turn = usize::try_from(self.ticks / FILL_RETRY_TICKS).unwrap_or(0);
        let chosen = match self.core.leader() {
            Some(leader) if leader != us && turn.is_multiple_of(2) => Some(leader),
            _ => peers.get(turn % peers.len().max(1)).copied(),
        };
        if let Some(from) = chosen {
            self.snapshot.filling = true;
            self.side.outputs.push(Output::FetchHistory { from, gap });
        }
    }

    /// Does everything that is due. Messages are handed to `send` at the moment at which they may
    /// leave, which for a leader is before its own disk has the entries.
    ///
    /// # Errors
    /// The member must stop.
    pub fn turn(&mut self, send: &mut dyn FnMut(Vec<Message>)) -> Result<(), ReplicaError> {
        self.reads.flush(&mut self.core, self.ticks);
        while self.core.turn(&mut Round {
            side: &mut self.side,
            send: &mut *send,
        })? {
            self.after_round();
            self.reads.flush(&mut self.core, self.ticks);
        }
        self.after_round();
        self.consider_snapshot();
        Ok(())
    }

    fn after_round(&mut self) {
        let side = &mut self.side;
        let served = self.reads.serve(
            std::mem::take(&mut side.read_states),
            side.mark.position.index,
            &mut side.outputs,
        );
        count(&self.counters.reads_served, served);
        for peer in side.snapshots_sent.drain(..) {
            self.snapshot
                .offered
                .insert(peer, self.ticks + self.options.snapshot_retry_ticks);
        }
        if let Some(position) = side.installed.take() {
            count(&self.counters.snapshots_installed, 1);
            self.snapshot.newest = Some(position);
            self.snapshot.begun_at = position.index;
            side.outputs.push(Output::StateReplaced);
        }

        let now = (self.core.leads(), self.core.leader(), self.core.term());
        if now != self.seen {
            if now.0 && !self.seen.0 {
                count(&self.counters.elections_won, 1);
            }
            if self.seen.0 && (!now.0 || now.2 != self.seen.2) {
                // Leader => Follower: what is under way may or may not be committed by others.
                let lost = side.forget_waiting();
                count(&self.counters.proposals_unknown, lost);
            }
            self.seen = now;
            side.outputs.push(Output::RoleChanged);
        }
    }

    fn consider_snapshot(&mut self) {
        let applied = self.side.mark.position;
        let due = applied.index.saturating_sub(self.snapshot.begun_at)
            >= self.options.snapshot_entries
            || self.side.bytes_since_snapshot >= self.options.snapshot_bytes;
        // A follower is waiting for one that we do not have.
        let wanted = self.core.take_snapshot_wanted();
        let newer = self
            .snapshot
            .newest
            .is_none_or(|newest| newest.index < applied.index);
        if self.snapshot.making || !newer || !(due || wanted) {
            return;
        }
        let Some(meta) = self.core.meta() else { return };
        let view = self.side.machine.view();
        let header = SnapshotHeader {
            cluster: meta.identity.cluster.clone(),
            mark: self.side.mark,
            conf_state: meta.conf_state.clone(),
            // Filled in by whoever writes the file: hashing everything takes time.
            digest: [0; 32],
            history: self.side.state.history(),
        };
        self.snapshot.making = true;
        self.snapshot.begun_at = applied.index;
        self.side.bytes_since_snapshot = 0;
        let sync = self.side.state.syncer();
        self.side
            .outputs
            .push(Output::TakeSnapshot(SnapshotJob { header, view, sync }));
    }

    /// Whether a snapshot file is being made of the current state store.
    pub fn makes_snapshot(&self) -> bool {
        self.snapshot.making
    }

    /// Name of the current state directory.
    pub fn state_dir(&self) -> &str {
        self.core.meta().map_or("", |meta| &meta.state_dir)
    }

    /// What is to be done outside, in order.
    pub fn take_outputs(&mut self) -> Vec<Output<M>> {
        std::mem::take(&mut self.side.outputs)
    }

    /// The state as it is now.
    pub fn view(&self) -> M::View {
        self.side.machine.view()
    }

    /// How far it was applied.
    pub fn mark(&self) -> Mark {
        self.side.mark
    }

    /// The state store, for looking.
    pub fn state(&self) -> &R::Store {
        &self.side.state
    }

    /// The log, for looking.
    pub fn log(&self) -> &L {
        self.core.log()
    }

    /// Term and leader as raft sees them, and our role.
    pub fn status(&self) -> Status {
        let meta = self.core.meta();
        Status {
            member: meta.map_or(0, |meta| meta.identity.member),
            cluster: meta
                .map(|meta| meta.identity.cluster.clone())
                .unwrap_or_default(),
            role: match self.core.role() {
                raft::StateRole::Leader if self.core.leads_with_full_state() => Role::Leader,
                raft::StateRole::Leader => Role::Elected,
                raft::StateRole::Follower => Role::Follower,
                raft::StateRole::Candidate | raft::StateRole::PreCandidate => Role::Candidate,
            },
            leader: self.core.leader(),
            term: self.core.term(),
            commit: self.core.commit(),
            applied: self.side.mark.position.index,
            last: self.core.last_index(),
            first: self.core.log().first_index(),
            snapshot: self.snapshot.newest.map_or(0, |position| position.index),
            history_missing: self
                .side
                .state
                .gap()
                .map_or(0, |gap| gap.until.last - gap.after.last),
            voters: meta
                .map(|meta| meta.conf_state.voters.clone())
                .unwrap_or_default(),
            learners: meta
                .map(|meta| meta.conf_state.learners.clone())
                .unwrap_or_default(),
            peers: self.core.peers(),
            stopped: None,
        }
    }
}
