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
//!
//! One file for each kind of transition: `propose` (commands), `reads`, `group` (changes of the
//! members), `notes` (clocks and digests), `snapshots`; `side` is what raft calls back into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft::eraftpb::{Message, MessageType};

use super::core::Core;
use super::counters::{Counters, Timed, count};
use super::machine::Machine;
use super::options::Options;
use crate::store::log::{LogPosition, LogStore};
use crate::store::state::{Mark, StateRoot, StateStore};

mod group;
mod notes;
mod propose;
mod reads;
mod side;
mod snapshots;
mod types;

use group::Changes;
use notes::{Clocks, NOTE_TICKS};
use propose::{LeaderClock, Waiting};
use reads::Reads;
pub use side::Prepared;
use side::{Round, Side};
use snapshots::Snapshots;
pub use types::{
    Applied, Note, Output, ProposeError, ReadError, Reading, ReplicaError, Role, SnapshotJob,
    Status, Ticket,
};

/// One member. See the module's documentation.
pub struct Replica<M: Machine, L: LogStore, R: StateRoot> {
    core: Core<L>,
    side: Side<M, R>,
    reads: Reads,
    clock: Option<LeaderClock>,
    /// (leads, leader, term) as of the last look.
    seen: (bool, Option<u64>, u64),
    ticks: u64,
    /// What the clocks showed last.
    time: Reading,
    /// Tick at which each other member was heard last.
    heard: BTreeMap<u64, u64>,
    clocks: Clocks,
    changes: Changes,
    snapshot: Snapshots,
    /// Where the others reach us; empty: as the group knows it.
    address: String,
    options: Options,
    counters: Arc<Counters>,
}

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
    /// Where the others are to reach us.
    pub(crate) address: String,
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
        let us = opened.core.meta().map_or(0, |meta| meta.identity.member);
        let begun_at = opened.snapshot.map_or(0, |position| position.index);
        Replica {
            seen: (false, None, opened.core.term()),
            core: opened.core,
            side: Side::new(
                opened.machine,
                opened.root,
                opened.state,
                (us, options.digest_entries),
                counters.clone(),
            ),
            reads: Reads::new(opened.incarnation, &options),
            clock: None,
            ticks: 0,
            time: Reading::default(),
            heard: BTreeMap::new(),
            clocks: Clocks::default(),
            changes: Changes::default(),
            address: opened.address,
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
        self.tick_changes();
        self.pass_notes();
    }

    /// Members heard from within the last moments, us among them.
    fn answered(&self) -> BTreeSet<u64> {
        let window = if self.core.leads() {
            2 * self.options.election_ticks as u64
        } else {
            3 * NOTE_TICKS
        };
        let heard = self.heard.iter();
        heard
            .filter(|(_, at)| **at + window >= self.ticks)
            .map(|(member, _)| *member)
            .chain([self.side.member(&self.core)])
            .collect()
    }

    /// Takes a message from a peer.
    ///
    /// # Errors
    /// [`ReplicaError::Core`] if this member lost what it acknowledged.
    pub fn receive(&mut self, message: Message) -> Result<(), ReplicaError> {
        count(&self.counters.messages_received, 1);
        self.heard.insert(message.from, self.ticks);
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.offered(message)
        } else {
            Ok(self.core.receive(message)?)
        }
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

    /// Does everything that is due. Messages are handed to `send` at the moment at which they may
    /// leave, which for a leader is before its own disk has the entries.
    ///
    /// # Errors
    /// The member must stop.
    pub fn turn(&mut self, send: &mut dyn FnMut(Vec<Message>)) -> Result<(), ReplicaError> {
        let began = self.counters.begin();
        let mut rounds = 0;
        self.reads.flush(&mut self.core, self.ticks);
        while self.core.turn(&mut Round {
            side: &mut self.side,
            send: &mut *send,
        })? {
            rounds += 1;
            self.after_round()?;
            self.reads.flush(&mut self.core, self.ticks);
        }
        if rounds > 0 {
            self.counters.end(Timed::Turn, began);
        }
        self.after_round()?;
        self.consider_snapshot();
        Ok(())
    }

    fn after_round(&mut self) -> Result<(), ReplicaError> {
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
            self.snapshot.kept = false;
            side.outputs.push(Output::StateReplaced);
            side.outputs.push(Output::MembersChanged);
        }
        self.confirm_changes();

        let side = &mut self.side;
        let now = (self.core.leads(), self.core.leader(), self.core.term());
        if now != self.seen {
            if now.0 && !self.seen.0 {
                count(&self.counters.elections_won, 1);
            }
            if self.seen.0 && (!now.0 || now.2 != self.seen.2) {
                // Leader => Follower: what is under way may or may not be committed by others.
                let lost = side.forget_waiting();
                count(&self.counters.proposals_unknown, lost);
                self.forget_changes();
            }
            if self.seen.1 != now.1 {
                count(&self.counters.leader_changes, 1);
            }
            self.seen = now;
            self.side.outputs.push(Output::RoleChanged);
        }
        self.settle_changes()
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

    /// What we are in the present term.
    pub fn role(&self) -> Role {
        match self.core.role() {
            raft::StateRole::Leader if self.core.leads_with_full_state() => Role::Leader,
            raft::StateRole::Leader => Role::Elected,
            raft::StateRole::Follower => Role::Follower,
            raft::StateRole::Candidate | raft::StateRole::PreCandidate => Role::Candidate,
        }
    }

    /// The present term.
    pub fn term(&self) -> u64 {
        self.core.term()
    }

    /// Who leads in it, as far as we know.
    pub fn leader(&self) -> Option<u64> {
        self.core.leader()
    }

    /// Term and leader as raft sees them, and our role.
    pub fn status(&self) -> Status {
        let meta = self.core.meta();
        Status {
            member: meta.map_or(0, |meta| meta.identity.member),
            cluster: meta
                .map(|meta| meta.identity.cluster.clone())
                .unwrap_or_default(),
            role: self.role(),
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
            outgoing: meta
                .map(|meta| meta.conf_state.voters_outgoing.clone())
                .unwrap_or_default(),
            members: meta
                .map(|meta| meta.members.known.clone())
                .unwrap_or_default(),
            changing: self.changing(),
            peers: self.core.peers(),
            answered: self.answered().into_iter().collect(),
            clocks: self.clocks.fresh(self.ticks),
            skew_ms: self.skew(),
            barred: self.core.barred(),
            compared: self.side.digests.compared,
            stopped: None,
        }
    }
}
