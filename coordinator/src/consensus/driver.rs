//! The thread that owns a replica and drives it for real.
//!
//! ```text
//! loop:  wait for an event, at most until the next tick
//!        take everything else that came meanwhile          (this is what makes commits groups:
//!        propose all commands as few entries                what arrives during one fsync shares
//!        let due ticks pass                                 the next one; no timer holds anything)
//!        turn: persist -> send -> apply
//!        publish the view, then acknowledge, then start background work
//! ```
//!
//! Files are written, fetched and loaded on threads of their own, whose results come back through
//! an inbox. Any error or panic of the owner thread stops the member for good, see [`super::halt`].

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use oast_daemon::clock::SharedClock;
use raft::eraftpb::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::chain;
use super::change::{ChangeError, Changed, is_address};
use super::counters::{Counters, count};
use super::halt::Halt;
use super::handle::{Event, Handle, HistoryHolder, Outcome, ProposeReply, Published, Shared};
use super::machine::{EncodedCommand, Machine};
use super::open::{self, Membership, OpenError, StoreOptions, Stores};
use super::options::Options;
use super::replica::{
    Applied, Output, ProposeError, ReadError, Reading, Replica, ReplicaError, Ticket,
};
use super::roster::Roster;
use super::transport::Transport;
use crate::store::disk;
use crate::store::log::{LogMeta, LogPosition, LogStore};
use crate::store::snapshot::SnapshotFile;
use crate::store::state::{StateRoot, StateStore};

mod fetch;

use fetch::{Fetched, Fetcher};
pub use fetch::{make_snapshot, prepare};

/// Events handled before the replica gets its turn.
const MAX_EVENTS_PER_TURN: usize = 1024;
/// From this time on a turn is worth a line in the log: others may be about to elect a leader.
const SLOW_TURN: Duration = Duration::from_millis(500);
/// Ticks made up for after the thread was held up; more would depose a healthy leader.
const MAX_TICKS_PER_TURN: u32 = 3;

/// By how much what is not urgent is nicer than a member's other threads.
const NICENESS: i32 = 10;
/// Members that are remembered before the log tells of them.
const MAX_STRANGERS: usize = 32;

/// Lets this thread run when the member's other threads have nothing to do.
fn stand_back() {
    // On Linux a thread has a niceness of its own. Where that is not allowed, it is only slower.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "A background thread keeps its priority.");
    }
}

/// What a member needs to start.
#[derive(Debug)]
pub struct Setup {
    /// Data directory, locked by the caller.
    pub directory: PathBuf,
    /// Who we are.
    pub membership: Membership,
    /// Behaviour.
    pub options: Options,
    /// Disk use.
    pub stores: StoreOptions,
    /// Time.
    pub clock: SharedClock,
    /// What to do when the member must stop.
    pub halt: Halt,
}

/// A running member.
#[derive(Debug)]
pub struct Running {
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Waits until the driver has ended, which [`Handle::stop`] asks it to.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            // The driver catches its own panics.
            let _ = thread.join();
        }
    }
}

/// A member that is open but not driven yet: its handle can already be given to the server and the
/// transport, which is what it needs to be started.
pub struct Member<M: Machine, L: LogStore, R: StateRoot> {
    replica: Replica<M, L, R>,
    root: Arc<R>,
    incoming: PathBuf,
    events: Receiver<Event<M>>,
    shared: Arc<Shared<M>>,
    options: Options,
    clock: SharedClock,
    halt: Halt,
}

impl<M: Machine, L: LogStore, R: StateRoot> std::fmt::Debug for Member<M, L, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

/// A member on disk.
pub type DiskMember<M> =
    Member<M, crate::store::log::engine::EngineLog, crate::store::state::tree::TreeRoot>;

/// Opens a member's data directory.
///
/// # Errors
/// [`OpenError`], each saying what to do.
pub fn open<M: Machine>(setup: Setup) -> Result<DiskMember<M>, OpenError> {
    let stores = open::open_stores(&setup.directory, &setup.membership, &setup.stores)?;
    open_with(setup, stores)
}

/// Opens a member over given stores.
///
/// # Errors
/// [`OpenError`].
pub fn open_with<M: Machine, L: LogStore, R: StateRoot>(
    setup: Setup,
    stores: Stores<L, R>,
) -> Result<Member<M, L, R>, OpenError> {
    let Setup {
        directory,
        membership,
        options,
        clock,
        halt,
        ..
    } = setup;
    let incoming = directory.join("incoming");
    // What was fetched in an earlier life is gone on with: the whole is verified at the end.
    disk::make_dir(&incoming).map_err(OpenError::Disk)?;
    let counters = Arc::new(Counters::default());
    let (root, shelf, identity) = (
        stores.root.clone(),
        stores.shelf.clone(),
        stores.identity.clone(),
    );
    let incarnation = oast_daemon::random::number();
    let replica: Replica<M, L, R> = open::replica(
        stores,
        &options,
        (incarnation, &membership.address),
        counters.clone(),
    )?;
    let known = replica
        .log()
        .meta()
        .map(|meta| meta.known_stamps.clone())
        .unwrap_or_default();
    let (queue, events) = sync_channel(options.queue);
    let shared = Arc::new(Shared {
        queue,
        roster: Roster::new(
            identity,
            known,
            membership.address,
            options.supported_version,
        ),
        published: ArcSwap::from_pointee(Published {
            view: replica.view(),
            mark: replica.mark(),
            history: replica.state().history(),
        }),
        applied: watch::Sender::new(replica.mark().position.index),
        status: watch::Sender::new(replica.status()),
        shelf,
        history: ArcSwap::from_pointee(HistoryHolder(replica.state().history_reader())),
        counters,
    });
    if let Some(meta) = replica.log().meta() {
        shared.roster.set_members(meta.members.clone());
    }
    Ok(Member {
        replica,
        root,
        incoming,
        events,
        shared,
        options,
        clock,
        halt,
    })
}

impl<M: Machine, L: LogStore, R: StateRoot> Member<M, L, R> {
    /// The way to talk to it.
    #[must_use]
    pub fn handle(&self) -> Handle<M> {
        Handle::new(self.shared.clone())
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn start(self, transport: Arc<dyn Transport>) -> std::io::Result<Running> {
        let inbox = Inbox {
            done: Arc::default(),
            queue: self.shared.queue.clone(),
        };
        let driver = Driver {
            replica: self.replica,
            root: self.root,
            incoming: self.incoming,
            events: self.events,
            shared: self.shared,
            transport,
            options: self.options,
            clock: self.clock,
            inbox,
            proposers: HashMap::new(),
            readers: HashMap::new(),
            changers: HashMap::new(),
            strangers: BTreeMap::new(),
            next_ticket: 0,
            background: Vec::new(),
            stopping: CancellationToken::new(),
        };
        let halt = self.halt;
        let thread = std::thread::Builder::new()
            .name("consensus".to_owned())
            .spawn(move || driver.run(&halt))?;
        Ok(Running {
            thread: Some(thread),
        })
    }
}

/// Results of background work.
enum Done<M, S> {
    Snapshot(Option<SnapshotFile>),
    Fetched(Fetched<M, S>),
    History { first: u64, records: Vec<Vec<u8>> },
}

/// Where background threads leave their results.
struct Inbox<M: Machine, S> {
    done: Arc<Mutex<Vec<Done<M, S>>>>,
    queue: SyncSender<Event<M>>,
}

impl<M: Machine, S> Clone for Inbox<M, S> {
    fn clone(&self) -> Self {
        Inbox {
            done: self.done.clone(),
            queue: self.queue.clone(),
        }
    }
}

impl<M: Machine, S> Inbox<M, S> {
    fn put(&self, done: Done<M, S>) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(done);
        // A full queue wakes the driver as well; it looks into the inbox on every turn.
        let _ = self.queue.try_send(Event::Wake);
    }

    fn take(&self) -> Vec<Done<M, S>> {
        std::mem::take(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who waits for a command.
enum Proposer<M: Machine> {
    One(ProposeReply<M>),
    /// One of many, under its caller's number.
    OfMany(mpsc::Sender<Outcome<M>>, u64),
}

impl<M: Machine> Proposer<M> {
    /// A proposer that went away does not want to know, and one of many has room for all.
    fn tell(self, result: Result<Applied<M::Answer>, ProposeError>) {
        match self {
            Proposer::One(reply) => drop(reply.send(result)),
            Proposer::OfMany(reply, number) => drop(reply.try_send((number, result))),
        }
    }
}

struct Driver<M: Machine, L: LogStore, R: StateRoot> {
    replica: Replica<M, L, R>,
    root: Arc<R>,
    incoming: PathBuf,
    events: Receiver<Event<M>>,
    shared: Arc<Shared<M>>,
    transport: Arc<dyn Transport>,
    options: Options,
    clock: SharedClock,
    inbox: Inbox<M, R::Store>,
    proposers: HashMap<Ticket, Proposer<M>>,
    readers: HashMap<Ticket, oneshot::Sender<Result<u64, ReadError>>>,
    changers: HashMap<Ticket, oneshot::Sender<Result<Changed, ChangeError>>>,
    /// Where members are that wrote to us and that our log does not know yet.
    strangers: BTreeMap<u64, String>,
    next_ticket: Ticket,
    background: Vec<JoinHandle<()>>,
    stopping: CancellationToken,
}

/// What the loop does next.
enum Next {
    Go,
    Stop,
}

impl<M: Machine, L: LogStore, R: StateRoot> Driver<M, L, R> {
    fn run(mut self, halt: &Halt) {
        let ended = std::panic::catch_unwind(AssertUnwindSafe(|| self.drive()));
        let reason = match ended {
            Ok(Ok(())) => "it was asked to".to_owned(),
            Ok(Err(reason)) => {
                halt.stop(&reason);
                reason
            }
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("unknown panic");
                let reason = match oast_daemon::panic::advice() {
                    Some(advice) => format!("{advice} ({message})"),
                    None => format!("a rule was broken: {message}"),
                };
                halt.stop(&reason);
                reason
            }
        };
        self.stopping.cancel();
        for thread in self.background.drain(..) {
            let _ = thread.join();
        }
        for (_, proposer) in self.proposers.drain() {
            proposer.tell(Err(ProposeError::Stopped));
        }
        for (_, reply) in self.readers.drain() {
            let _ = reply.send(Err(ReadError::Stopped));
        }
        for (_, reply) in self.changers.drain() {
            let _ = reply.send(Err(ChangeError::Stopped));
        }
        self.shared
            .status
            .send_modify(|status| status.stopped = Some(reason));
    }

    fn drive(&mut self) -> Result<(), String> {
        self.members_changed();
        let mut next_tick = self.clock.monotonic() + self.options.tick;
        loop {
            let wait = next_tick.saturating_sub(self.clock.monotonic());
            let mut next = match self.events.recv_timeout(wait) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let began = self.clock.monotonic();
            let mut proposals = Vec::new();
            let mut handled = 0;
            while let Some(event) = next {
                if let Next::Stop = self.handle(event, &mut proposals)? {
                    return Ok(());
                }
                handled += 1;
                next = if handled < MAX_EVENTS_PER_TURN {
                    self.events.try_recv().ok()
                } else {
                    None
                };
            }
            self.collect().map_err(|error| chain(&error))?;
            if !proposals.is_empty() {
                self.replica.propose(proposals, self.reading());
            }
            // After the messages: what they say about the leader counts before silence does.
            next_tick = self.pass_ticks(next_tick);
            let ready = self.clock.monotonic();
            self.turn().map_err(|error| chain(&error))?;
            let turned = self.clock.monotonic();
            self.publish();
            self.deliver();
            let ended = self.clock.monotonic();
            if ended - began >= SLOW_TURN {
                tracing::warn!(
                    events_ms = (ready - began).as_millis(),
                    turn_ms = (turned - ready).as_millis(),
                    answers_ms = (ended - turned).as_millis(),
                    handled,
                    "A turn of the log took long: the disk or the processor is busy."
                );
            }
        }
    }

    fn reading(&self) -> Reading {
        Reading {
            wall_ms: self.clock.wall().as_millis(),
            monotonic: self.clock.monotonic(),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn handle(
        &mut self,
        event: Event<M>,
        proposals: &mut Vec<(Ticket, EncodedCommand)>,
    ) -> Result<Next, String> {
        match event {
            Event::Propose { command, reply } => {
                let ticket = self.ticket();
                self.proposers.insert(ticket, Proposer::One(reply));
                proposals.push((ticket, command));
            }
            Event::ProposeMany(mut many) => {
                let (commands, reply) = many.take();
                for (number, command) in commands {
                    let ticket = self.ticket();
                    let proposer = Proposer::OfMany(reply.clone(), number);
                    self.proposers.insert(ticket, proposer);
                    proposals.push((ticket, command));
                }
            }
            Event::Read { reply } => {
                let ticket = self.ticket();
                self.readers.insert(ticket, reply);
                self.replica.read(ticket);
            }
            Event::Receive(messages) => {
                for message in messages {
                    self.replica
                        .receive(message)
                        .map_err(|error| chain(&error))?;
                }
            }
            Event::LearnStamps(stamps) => {
                self.replica
                    .learn_stamps(&stamps)
                    .map_err(|error| chain(&error))?;
                self.shared.roster.learn(&stamps);
            }
            Event::Unreachable(member) => self.replica.unreachable(member),
            Event::Campaign => self.replica.campaign(),
            Event::Transfer(to) => self.replica.transfer(to),
            Event::Change {
                request_id,
                change,
                reply,
            } => {
                let ticket = self.ticket();
                self.changers.insert(ticket, reply);
                self.replica.clock(self.reading());
                self.replica.change(ticket, &request_id, &change);
            }
            Event::Introduce {
                member,
                stamp,
                address,
            } => {
                self.replica.clock(self.reading());
                self.replica.introduce(member, stamp, &address);
                self.meet(member, address);
            }
            Event::Hear { from, note } => self.replica.hear(from, &note, self.reading()),
            Event::Wake => {}
            Event::Halt(reason) => return Err(reason),
            Event::Stop => return Ok(Next::Stop),
        }
        Ok(Next::Go)
    }

    fn pass_ticks(&mut self, mut next_tick: Duration) -> Duration {
        let now = self.clock.monotonic();
        let mut passed = 0;
        self.replica.clock(self.reading());
        while next_tick <= now && passed < MAX_TICKS_PER_TURN {
            self.replica.tick();
            next_tick += self.options.tick;
            passed += 1;
        }
        if next_tick <= now {
            now + self.options.tick
        } else {
            next_tick
        }
    }

    fn turn(&mut self) -> Result<(), ReplicaError> {
        let (transport, roster) = (&self.transport, &self.shared.roster);
        self.replica.turn(&mut |messages| {
            let mut by_peer: BTreeMap<u64, Vec<Message>> = BTreeMap::new();
            for message in messages {
                by_peer.entry(message.to).or_default().push(message);
            }
            for (to, messages) in by_peer {
                transport.send(roster.letterhead(to), messages);
            }
        })
    }

    fn publish(&mut self) {
        let mark = self.replica.mark();
        if self.shared.published.load().mark != mark {
            let view = self.replica.view();
            self.shared.published.store(Arc::new(Published {
                view,
                mark,
                history: self.replica.state().history(),
            }));
            self.shared.applied.send_replace(mark.position.index);
        }
        let status = self.replica.status();
        self.shared.status.send_if_modified(|current| {
            let changed = *current != status;
            if changed {
                *current = status;
            }
            changed
        });
    }

    fn deliver(&mut self) {
        for output in self.replica.take_outputs() {
            match output {
                Output::Answered(ticket, result) => {
                    if let Some(proposer) = self.proposers.remove(&ticket) {
                        proposer.tell(result);
                    }
                }
                Output::ReadReady(ticket, result) => {
                    if let Some(reply) = self.readers.remove(&ticket) {
                        let _ = reply.send(result);
                    }
                }
                Output::TakeSnapshot(job) => {
                    let (inbox, shelf) = (self.inbox.clone(), self.shared.shelf.clone());
                    self.spawn("snapshot", move || {
                        stand_back();
                        inbox.put(Done::Snapshot(make_snapshot(&shelf, *job)));
                    });
                }
                Output::Fetch {
                    from,
                    offer,
                    state_dir,
                } => {
                    let fetcher = Fetcher {
                        transport: self.transport.clone(),
                        letter: self.shared.roster.letterhead(from),
                        root: self.root.clone(),
                        shelf: self.shared.shelf.clone(),
                        incoming: self.incoming.clone(),
                        stopping: self.stopping.clone(),
                        counters: self.shared.counters.clone(),
                    };
                    let inbox = self.inbox.clone();
                    self.spawn("fetch", move || {
                        inbox.put(Done::Fetched(fetcher.fetch(&offer, &state_dir)));
                    });
                }
                Output::FetchHistory { from, gap } => {
                    let transport = self.transport.clone();
                    let letter = self.shared.roster.letterhead(from);
                    let inbox = self.inbox.clone();
                    self.spawn("history", move || {
                        let first = gap.after.last + 1;
                        let records = fetch::history(transport.as_ref(), letter, gap);
                        inbox.put(Done::History { first, records });
                    });
                }
                Output::Changed(ticket, result) => {
                    if let Some(reply) = self.changers.remove(&ticket) {
                        let _ = reply.send(result);
                    }
                }
                Output::Note { to, note } => {
                    self.transport.note(self.shared.roster.letterhead(to), note);
                }
                Output::MembersChanged => self.members_changed(),
                Output::RoleChanged => {
                    let status = self.replica.status();
                    tracing::info!(
                        member = status.member,
                        raft_term = status.term,
                        leader = status.leader,
                        role = ?status.role,
                        "The group's leadership changed."
                    );
                }
                Output::StateReplaced => self.replace_history(),
            }
        }
    }

    /// Remembers where a member is of which our own log does not tell yet: one that joins has to
    /// answer before it knows its group.
    fn meet(&mut self, member: u64, address: String) {
        let known = |meta: &LogMeta| meta.members.known.contains_key(&member);
        if !is_address(&address) || self.replica.log().meta().is_some_and(known) {
            return;
        }
        let full = self.strangers.len() >= MAX_STRANGERS && !self.strangers.contains_key(&member);
        if full || self.strangers.get(&member) == Some(&address) {
            return;
        }
        self.strangers.insert(member, address);
        self.members_changed();
    }

    /// Tells everybody who has to know who the members are.
    fn members_changed(&mut self) {
        if let Some(meta) = self.replica.log().meta() {
            let members = &meta.members;
            self.strangers
                .retain(|id, _| !members.known.contains_key(id) && !members.retired(*id));
            let mut addresses = self.strangers.clone();
            addresses.extend(members.addresses());
            self.shared.roster.set_members(members.clone());
            self.transport.members(&addresses);
        }
    }

    /// Removes snapshot files that the newest one of ours has outdone.
    fn sweep_shelf(&self, ours: LogPosition) {
        if let Err(error) = self.shared.shelf.sweep(ours) {
            let error = chain(&error);
            tracing::warn!(error, "Old snapshot files stay for now.");
        }
    }

    fn replace_history(&mut self) {
        let reader = self.replica.state().history_reader();
        self.shared.history.store(Arc::new(HistoryHolder(reader)));
        if let Some(position) = self.replica.newest_snapshot() {
            self.sweep_shelf(position);
        }
        // A snapshot job may still flush the old state; then the next start removes it.
        if !self.replica.makes_snapshot()
            && let Err(error) = self.root.sweep(self.replica.state_dir())
        {
            let error = chain(&error);
            tracing::warn!(error, "An old state directory stays until the next start.");
        }
    }

    /// Takes finished background work.
    fn collect(&mut self) -> Result<(), ReplicaError> {
        self.background.retain(|thread| !thread.is_finished());
        for done in self.inbox.take() {
            match done {
                Done::Snapshot(file) => {
                    if let Some(file) = &file {
                        self.sweep_shelf(file.header.mark.position);
                    }
                    self.replica.snapshot_made(file.as_ref())?;
                }
                Done::Fetched(prepared) => self.replica.fetched(prepared)?,
                Done::History { first, records } => self.replica.history_fetched(first, records),
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: &'static str, work: impl FnOnce() + Send + 'static) {
        match std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
        {
            Ok(thread) => self.background.push(thread),
            Err(error) => {
                count(&self.shared.counters.snapshots_failed, 1);
                tracing::error!(%error, name, "The system gives no thread.");
            }
        }
    }
}
