//! A member: its disks, which outlive it, and the process, which does not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oast_coordinator::consensus::change::Change;
use oast_coordinator::consensus::counters::Counters;
use oast_coordinator::consensus::machine::EncodedCommand;
use oast_coordinator::consensus::open::{self, Membership, OpenError, Stores};
use oast_coordinator::consensus::options::Options;
use oast_coordinator::consensus::replica::{Note, Output, Reading, Replica, SnapshotJob, Ticket};
use oast_coordinator::consensus::roster::{Letterhead, Roster};
use oast_coordinator::leader::desk::SessionId;
use oast_coordinator::leader::office::{Key, Office};
use oast_coordinator::store::identity::Identity;
use oast_coordinator::store::log::LogStore as _;
use oast_coordinator::store::snapshot::{Shelf, SnapshotOffer};
use oast_coordinator::store::space::Space;
use oast_coordinator::store::state::{HistoryGap, Mark, StateRoot as _};
use oast_model::ledger::{Request, VERSION};
use oast_model::time::Timestamp;
use raft::eraftpb::Message;

use crate::client::Ask;
use crate::disk::log::{LogDisk, SimLog};
use crate::disk::state::SimRoot;
use crate::machine::{SimMachine, SimView};
use crate::plan::Plan;
use crate::queue::Micros;
use crate::stream::{StreamId, Up};

/// Name of the farm.
pub const CLUSTER: &str = "sim";
/// Calendar at the beginning: 2026-01-01T00:00:40Z, so that a minute begins in the midst of everything.
pub const EPOCH_MS: u64 = 1_767_225_640_000;

/// Where the others reach a member.
pub fn address_of(member: u64) -> String {
    format!("member-{member}:7443")
}

/// Creation stamp of a member's first disk.
pub fn stamp_of(member: u64) -> u64 {
    1_000 + member
}

/// The replica of the simulation.
pub type SimReplica = Replica<SimMachine, SimLog, SimRoot>;

/// What comes in from outside.
#[derive(Debug)]
pub enum Input {
    /// From a peer.
    Peer(Arc<Letterhead>, Box<Message>),
    /// A peer's note beside raft.
    Note(Arc<Letterhead>, Box<Note>),
    /// A peer does not take what we send, and says why in a word.
    Refused(&'static str),
    /// From a client, maybe through another member.
    Ask(Box<Ask>),
    /// From a worker.
    Up(StreamId, Up),
    /// A stream is over.
    Lost(StreamId),
    /// Background work is over.
    Done(u64),
    /// Stand for election.
    Campaign,
    /// Hand leadership over.
    Transfer(u64),
    /// The operator's call.
    Change {
        /// Which attempt of it.
        call: u64,
        /// Names it for good.
        request_id: String,
        /// What is to change.
        change: Box<Change>,
    },
    /// The office wants this in the log.
    Propose(Box<(Waiter, Request)>),
    /// Time for a turn.
    Tick,
}

/// Who waits for an answer of the replica.
#[derive(Debug)]
pub enum Waiter {
    /// The office.
    Office(Key),
    /// A client.
    Ask(Box<Ask>),
    /// A worker's Hello, recorded in this term.
    Hello(StreamId, u64),
    /// A worker's report.
    Report(StreamId, u64),
    /// The operator's call.
    Operator(u64),
    /// Nobody: whoever wanted it looks at the state.
    Nobody,
}

/// Work outside the replica.
pub enum Background {
    /// A snapshot file is written.
    Snapshot(Box<SnapshotJob<SimView>>),
    /// A snapshot file is fetched.
    Fetch {
        /// From whom.
        from: u64,
        /// What.
        offer: SnapshotOffer,
        /// Where to.
        state_dir: String,
    },
    /// History is fetched.
    History {
        /// From whom.
        from: u64,
        /// What is missing.
        gap: HistoryGap,
    },
}

impl std::fmt::Debug for Background {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Background::Snapshot(_) => "Snapshot",
            Background::Fetch { .. } => "Fetch",
            Background::History { .. } => "History",
        })
    }
}

/// A worker's session as this member has it.
#[derive(Debug, Default)]
pub struct Reception {
    /// What was said and not taken yet, because a report is being recorded.
    pub queue: std::collections::VecDeque<Up>,
    /// A proposal has no answer yet.
    pub waits: bool,
    /// What it said at the beginning.
    pub hello: Option<Up>,
    /// Its place at the desk, once admitted.
    pub session: Option<SessionId>,
}

/// The process.
pub struct Node {
    /// Its member.
    pub id: u64,
    /// The member of the group.
    pub replica: SimReplica,
    /// Who may talk to it.
    pub roster: Roster,
    /// The leader's part.
    pub office: Office,
    /// What came while it was busy or paused.
    pub inbox: Vec<Input>,
    /// It waits for its disk until then.
    pub busy_until: Micros,
    /// What the last turn wants done once the disk has answered.
    pub outputs: Vec<Output<SimMachine>>,
    /// When the next tick is due.
    pub next_tick: Micros,
    /// Who waits.
    pub waiters: BTreeMap<Ticket, Waiter>,
    /// Numbers them.
    pub next_ticket: Ticket,
    /// Workers' sessions.
    pub receptions: BTreeMap<StreamId, Reception>,
    /// Where the desk's sessions are.
    pub streams: BTreeMap<SessionId, StreamId>,
    /// Background work.
    pub jobs: BTreeMap<u64, Background>,
    /// Numbers it.
    pub next_job: u64,
    /// The state as readers see it.
    pub view: SimView,
    /// Its position.
    pub mark: Mark,
    /// The term in which this member leads with the full state.
    pub leading: Option<u64>,
    /// Numbers the office's wake-ups.
    pub office_wake: u64,
    /// The office has something to look at.
    pub look: bool,
    /// When the cluster version and the room on the disk are looked at.
    pub next_look: Micros,
    /// What it lacked of the history after its last turn.
    pub gap: Option<HistoryGap>,
    /// Reports that were taken while the last turn's answers were told.
    pub late_proposals: Vec<(Ticket, EncodedCommand)>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

/// A member, running or not.
#[derive(Debug)]
pub struct Member {
    /// Raft id.
    pub id: u64,
    /// Counts its starts.
    pub life: u32,
    /// When each life ended; what was to leave later never did.
    pub ended: Vec<Micros>,
    /// The log's disk.
    pub log: LogDisk,
    /// The states' disk.
    pub root: Arc<SimRoot>,
    /// Its snapshot files.
    pub shelf: Shelf,
    identity: Identity,
    /// The members that the group began with, if it is one of them.
    founders: Vec<u64>,
    /// The group has let it go, or its disk was wiped and the others refuse it: it does not start
    /// again.
    pub gone: bool,
    /// Its disk was wiped.
    pub wiped: bool,
    /// How far its calendar is off, in milliseconds.
    pub calendar: i64,
    /// Begin of its monotonic clock.
    origin: Micros,
    /// It does nothing before.
    pub paused_until: Micros,
    /// The highest cluster version that its binary supports.
    pub supports: u32,
    /// Room on its disk.
    pub space: Space,
    /// Its disk was told to fail, so it may stop.
    pub may_stop: bool,
    /// The process.
    pub node: Option<Box<Node>>,
}

impl Member {
    /// A member that was never started.
    pub fn new(
        id: u64,
        log: LogDisk,
        (calendar, origin): (i64, Micros),
        founders: Vec<u64>,
    ) -> Member {
        Member {
            id,
            life: 0,
            ended: Vec::new(),
            root: Arc::new(SimRoot::new(log.clone())),
            log,
            shelf: Shelf::in_memory(),
            identity: Identity {
                cluster: CLUSTER.to_owned(),
                member: id,
                stamp: stamp_of(id),
            },
            founders,
            gone: false,
            wiped: false,
            calendar,
            origin,
            paused_until: 0,
            supports: VERSION,
            space: Space::Room,
            may_stop: false,
            node: None,
        }
    }

    /// Opens the disks as a process that starts now.
    ///
    /// # Errors
    /// Why the member does not start.
    pub fn start(&mut self, plan: &Plan, now: Micros) -> Result<(), OpenError> {
        self.life += 1;
        self.paused_until = 0;
        self.may_stop = false;
        self.log.begin(now);
        let mut stores = Stores {
            log: SimLog::open(&self.log),
            root: self.root.clone(),
            shelf: self.shelf.clone(),
            identity: self.identity.clone(),
        };
        let address = address_of(self.id);
        let membership = Membership {
            cluster: CLUSTER.to_owned(),
            member: self.id,
            initial: self
                .founders
                .iter()
                .map(|id| (*id, address_of(*id)))
                .collect(),
            address: address.clone(),
            stamp: None,
        };
        open::begin(&mut stores, &membership)?;
        let options: &Options = &plan.options;
        let incarnation = self.id << 32 | u64::from(self.life);
        let counters = Arc::new(Counters::default());
        let replica: SimReplica =
            open::replica(stores, options, (incarnation, &address), counters)?;
        let meta = replica.log().meta();
        let known = meta.map(|meta| meta.known_stamps.clone());
        let roster = Roster::new(
            self.identity.clone(),
            known.unwrap_or_default(),
            address,
            self.supports,
        );
        if let Some(meta) = meta {
            roster.set_members(meta.members.clone());
        }
        let view = replica.view();
        let mark = replica.mark();
        self.node = Some(Box::new(Node {
            id: self.id,
            view,
            mark,
            replica,
            roster,
            office: Office::new(plan.lease_ttl),
            inbox: Vec::new(),
            busy_until: 0,
            outputs: Vec::new(),
            next_tick: now + plan.options.tick.as_micros() as Micros,
            waiters: BTreeMap::new(),
            next_ticket: 0,
            receptions: BTreeMap::new(),
            streams: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            leading: None,
            office_wake: 0,
            look: true,
            next_look: now,
            gap: None,
            late_proposals: Vec::new(),
        }));
        Ok(())
    }

    /// Everything on its disks is gone, and whoever starts here next does not know that there was
    /// anything.
    pub fn wipe(&mut self) {
        self.log.wipe();
        self.root.wipe();
        // Memory cannot fail.
        let _ = self.shelf.wipe();
        self.identity.stamp += 500_000;
        self.wiped = true;
    }

    /// Its monotonic clock.
    pub fn monotonic(&self, now: Micros) -> Duration {
        Duration::from_micros(self.origin + now)
    }

    /// Its calendar.
    pub fn wall(&self, now: Micros) -> Timestamp {
        let right = EPOCH_MS + now / 1_000;
        Timestamp::from_millis(right.saturating_add_signed(self.calendar))
    }

    /// Both clocks as the replica reads them.
    pub fn reading(&self, now: Micros) -> Reading {
        Reading {
            wall_ms: self.wall(now).as_millis(),
            monotonic: self.monotonic(now),
        }
    }

    /// Whether what was to leave in a life at a time did leave.
    pub fn had_left(&self, life: u32, departs: Micros) -> bool {
        match self.ended.get(life as usize - 1) {
            Some(ended) => departs <= *ended,
            None => true,
        }
    }

    /// The covering letter of what it sends.
    pub fn letterhead(&self, roster: &Roster, to: u64) -> Letterhead {
        Letterhead {
            low_on_space: self.space != Space::Room,
            ..roster.letterhead(to)
        }
    }

    /// What a state or a snapshot that became current has outdone is removed, as the driver does it.
    pub fn sweep(&self, node: &Node) {
        // What is in memory cannot fail to go away.
        if let Some(ours) = node.replica.newest_snapshot() {
            let _ = self.shelf.sweep(ours);
        }
        if !node.replica.makes_snapshot() {
            let _ = self.root.sweep(node.replica.state_dir());
        }
    }
}

impl Node {
    /// A ticket for somebody who waits.
    pub fn ticket(&mut self, waiter: Waiter) -> Ticket {
        self.next_ticket += 1;
        self.waiters.insert(self.next_ticket, waiter);
        self.next_ticket
    }

    /// Keeps background work.
    pub fn job(&mut self, work: Background) -> u64 {
        self.next_job += 1;
        self.jobs.insert(self.next_job, work);
        self.next_job
    }
}
