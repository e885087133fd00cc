//! What drives a member, in the order of `consensus/driver.rs`: take everything that came, propose,
//! let ticks pass, one turn; when the disk has answered publish the view, answer, let the office
//! look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oast_coordinator::consensus::driver::{make_snapshot, prepare};
use oast_coordinator::consensus::machine::{EncodedCommand, Machine as _};
use oast_coordinator::consensus::replica::{
    Applied, Output, ProposeError, Reading, ReplicaError, Role, Ticket,
};
use oast_coordinator::consensus::roster::{Letterhead, Stranger};
use oast_coordinator::leader::office::{Act, Look, Note, Outcome};
use oast_coordinator::store::log::LogStore as _;
use oast_coordinator::store::space::Space;
use oast_coordinator::store::state::{HistoryGap, StateStore as _};
use oast_model::ledger::{Applied as Decided, Request};
use oast_model::principal::Principal;
use oast_model::time::Timestamp;
use raft::eraftpb::{Message, MessageType};

use crate::bugs::{self, Bug, planted};
use crate::client::{Ask, Question, Reply};
use crate::disk::Crash;
use crate::event::Event;
use crate::keeping::{LOOK, brings};
use crate::machine::SimMachine;
use crate::member::{Background, CLUSTER, Input, Node, Waiter};
use crate::network::{Fate, Place};
use crate::queue::{MS, Micros};
use crate::stream::Down;
use crate::world::{World, chain};

/// Inputs that may wait for a member; more are lost.
const QUEUE: usize = 4096;
/// Ticks made up for after a member was held up.
const MAX_TICKS_PER_TURN: u32 = 3;
/// What a member wants done, and a ticket for each.
pub type Proposals = Vec<(Ticket, EncodedCommand)>;

impl World {
    /// Gives a member something to do, now or when it is neither paused nor waiting for its disk.
    pub fn input(&mut self, id: u64, input: Input) {
        let now = self.now;
        let member = self.member(id);
        let paused = now < member.paused_until;
        let Some(node) = member.node.as_mut() else {
            return;
        };
        if node.inbox.len() < QUEUE {
            node.inbox.push(input);
        }
        if !paused && node.busy_until <= now && node.outputs.is_empty() {
            self.drive(id);
        }
    }

    /// A tick is due.
    pub fn on_tick(&mut self, id: u64, life: u32) {
        let (now, tick) = (self.now, self.tick());
        if !self.is_life(id, life) {
            return;
        }
        // While the member is held up this only keeps the beat; what was missed is made up for later.
        self.queue.put(now + tick, Event::Tick { member: id, life });
        self.input(id, Input::Tick);
    }

    fn drive(&mut self, id: u64) {
        bugs::enter_member(id);
        let Some(mut node) = self.member(id).node.take() else {
            return;
        };
        let done = self.turn(id, &mut node);
        bugs::enter_member(0);
        match done {
            Ok(ready_at) => {
                let busy = ready_at > self.now;
                if busy {
                    self.syncs(id, ready_at);
                }
                node.busy_until = ready_at;
                let member = self.member(id);
                let life = member.life;
                member.node = Some(node);
                if busy {
                    self.queue.put(ready_at, Event::Ready { member: id, life });
                } else {
                    self.finish(id);
                }
            }
            Err(error) => {
                self.member(id).node = Some(node);
                self.stopped(id, &error);
            }
        }
    }

    fn turn(&mut self, id: u64, node: &mut Node) -> Result<Micros, Stop> {
        let now = self.now;
        let disk = self.member(id).log.clone();
        disk.begin(now);
        let mut proposals = std::mem::take(&mut node.late_proposals);
        for input in std::mem::take(&mut node.inbox) {
            self.take_input(id, node, input, &mut proposals)?;
        }
        if self.member(id).space != Space::Room {
            self.refuse(id, node, &mut proposals);
        }
        if !proposals.is_empty() {
            let reading = self.member(id).reading(now);
            node.replica.propose(proposals, reading);
        }
        let tick = self.tick();
        let mut passed = 0;
        let reading = self.member(id).reading(now);
        node.replica.clock(reading);
        while node.next_tick <= now && passed < MAX_TICKS_PER_TURN {
            node.replica.tick();
            node.next_tick += tick;
            passed += 1;
        }
        if node.next_tick <= now {
            node.next_tick = now + tick;
        }
        let before = node.replica.log().first_index();
        let mut sent: Vec<(Micros, Message)> = Vec::new();
        node.replica.turn(&mut |messages| {
            let departs = match planted(Bug::EarlySend) {
                true => now,
                false => now + disk.elapsed(),
            };
            sent.extend(messages.into_iter().map(|message| (departs, message)));
        })?;
        if node.replica.log().first_index() > before {
            self.coverage.fault("log compacted");
        }
        if matches!(node.replica.role(), Role::Leader | Role::Elected) {
            let term = node.replica.term();
            let wrong = self.checks.leaders.elected(term, id);
            self.judge(wrong);
            if node.replica.role() == Role::Leader {
                let wrong = self.checks.leaders.leads(term, id);
                self.judge(wrong);
            }
        }
        self.feed(id, node);
        let gap = node.replica.state().gap();
        if gap != node.gap {
            node.gap = gap;
            self.trace
                .say(now, format_args!("member {id} {}", lacks(gap)));
        }
        self.send_messages(id, node, sent);
        node.outputs = node.replica.take_outputs();
        Ok(now + disk.elapsed())
    }

    fn send_messages(&mut self, from: u64, node: &Node, sent: Vec<(Micros, Message)>) {
        let life = self.member(from).life;
        let mut letters: BTreeMap<u64, Arc<Letterhead>> = BTreeMap::new();
        for (departs, message) in sent {
            let to = message.to;
            if !self.exists(to) {
                continue;
            }
            if message.get_msg_type() == MessageType::MsgRequestVoteResponse && !message.reject {
                self.voted(from, departs);
            }
            let fate = self.net.fate(Place::Member(from), Place::Member(to));
            let (first, second) = match fate {
                Fate::Lost => {
                    self.coverage.fault("message lost");
                    continue;
                }
                Fate::Once(first) => (first, None),
                Fate::Twice(first, second) => {
                    self.coverage.fault("message doubled");
                    (first, Some(second))
                }
            };
            let letter = letters.entry(to).or_insert_with(|| {
                Arc::new(self.members[from as usize - 1].letterhead(&node.roster, to))
            });
            for delay in std::iter::once(first).chain(second) {
                let event = Event::Peer {
                    from,
                    life,
                    departs,
                    letter: letter.clone(),
                    message: Box::new(message.clone()),
                };
                self.queue.put(departs + delay, event);
            }
        }
    }

    fn take_input(
        &mut self,
        id: u64,
        node: &mut Node,
        input: Input,
        proposals: &mut Proposals,
    ) -> Result<(), Stop> {
        match input {
            Input::Tick => {}
            Input::Peer(letter, message) => {
                let full = self.member(id).space == Space::Full;
                if self.admits(id, node, &letter)? && !(full && brings(&message)) {
                    node.replica.receive(*message)?;
                }
            }
            Input::Note(letter, note) => {
                if self.admits(id, node, &letter)? {
                    let reading = self.reading_of(id);
                    node.replica.hear(letter.from, &note, reading);
                }
            }
            Input::Refused("removed") => {
                return Err(ReplicaError::Removed { member: id }.into());
            }
            Input::Refused("remade") => return Err(Stranger::WeAreRemade { ours: id }.into()),
            Input::Refused(_) => {}
            Input::Ask(ask) => self.asked(id, node, ask, proposals),
            Input::Up(stream, up) => self.said(id, node, stream, up, proposals),
            Input::Lost(stream) => self.reception_lost(node, stream),
            Input::Campaign => node.replica.campaign(),
            Input::Transfer(to) => node.replica.transfer(to),
            Input::Change {
                call,
                request_id,
                change,
            } => {
                let ticket = node.ticket(Waiter::Operator(call));
                let reading = self.reading_of(id);
                node.replica.clock(reading);
                node.replica.change(ticket, &request_id, &change);
            }
            Input::Propose(proposal) => {
                let (waiter, request) = *proposal;
                let command = SimMachine::encode(&request);
                proposals.push((node.ticket(waiter), command));
            }
            Input::Done(job) => self.background_done(id, node, job)?,
        }
        Ok(())
    }

    fn reading_of(&mut self, id: u64) -> Reading {
        let now = self.now;
        self.member(id).reading(now)
    }

    /// Whether what a peer sends is taken: as `consensus/handle.rs` does it.
    fn admits(&mut self, id: u64, node: &mut Node, letter: &Letterhead) -> Result<bool, Stop> {
        match node.roster.admit(letter) {
            Ok(news) => {
                if !news.stamps.is_empty() {
                    node.replica.learn_stamps(&news.stamps)?;
                    node.roster.learn(&news.stamps);
                }
                if news.introduce {
                    let reading = self.reading_of(id);
                    node.replica.clock(reading);
                    let (from, stamp) = (letter.from, letter.stamp);
                    node.replica.introduce(from, stamp, &letter.address);
                }
                Ok(true)
            }
            Err(stranger) => {
                self.coverage.fault("stranger refused");
                if let Fate::Once(delay) | Fate::Twice(delay, _) =
                    self.net.fate(Place::Member(id), Place::Member(letter.from))
                {
                    let life = self.member(letter.from).life;
                    let event = Event::Refused {
                        member: letter.from,
                        life,
                        why: stranger.code(),
                    };
                    self.queue.put(self.now + delay, event);
                }
                match stranger {
                    Stranger::WeAreRemade { .. } => Err(stranger.into()),
                    _ => Ok(false),
                }
            }
        }
    }

    fn asked(&mut self, id: u64, node: &mut Node, ask: Box<Ask>, proposals: &mut Proposals) {
        match &ask.question {
            Question::Read(_) if planted(Bug::StaleRead) => {
                let reply = self.read_reply(node, &ask);
                self.reply(id, &ask, reply);
            }
            Question::Read(_) => {
                let ticket = node.ticket(Waiter::Ask(ask));
                node.replica.read(ticket);
            }
            Question::Write(request) => {
                if node.leading.is_some() {
                    let command = SimMachine::encode(request);
                    if planted(Bug::EarlyAcknowledge) {
                        self.acknowledge_early(id, node, &ask);
                    }
                    proposals.push((node.ticket(Waiter::Ask(ask)), command));
                    return;
                }
                let leader = node.replica.leader().filter(|leader| *leader != id);
                match leader {
                    // Once: a member that is told to carry it and does not lead says so.
                    Some(leader) if ask.via.is_none() => {
                        let ask = Ask {
                            via: Some(id),
                            ..*ask
                        };
                        self.forward(id, leader, ask);
                    }
                    _ => self.reply(id, &ask, Reply::NotTaken),
                }
            }
        }
    }

    /// Planted: the run's number is guessed from the state before it is decided.
    fn acknowledge_early(&mut self, id: u64, node: &Node, ask: &Ask) {
        if let Question::Write(request) = &ask.question
            && matches!(request.command, oast_model::ledger::Command::SubmitRun(_))
        {
            let run = oast_model::ids::RunId(node.view.seq().next());
            let answer = oast_model::ledger::Answer::Run(run);
            self.reply(id, ask, Reply::Applied(Ok(answer)));
        }
    }

    fn read_reply(&self, node: &Node, ask: &Ask) -> Reply {
        let Question::Read(team) = &ask.question else {
            return Reply::NotTaken;
        };
        let record = node.view.teams().get(team);
        Reply::Read(record.map(|record| {
            let value = record.spec.description.clone().unwrap_or_default();
            (record.revision, value)
        }))
    }

    fn background_done(&mut self, id: u64, node: &mut Node, job: u64) -> Result<(), ReplicaError> {
        let Some(job) = node.jobs.remove(&job) else {
            return Ok(());
        };
        match job {
            Background::Snapshot(job) => {
                let shelf = self.member(id).shelf.clone();
                let full = self.member(id).space == Space::Full;
                let failed = full || self.rng.chance(if self.healing { 0 } else { 60 });
                let mut file = match failed {
                    true => None,
                    false => make_snapshot(&shelf, *job),
                };
                self.coverage.fault(match file.is_some() {
                    true => "snapshot made",
                    false => "snapshot failed",
                });
                if planted(Bug::CompactedTooEarly)
                    && let Some(file) = &mut file
                {
                    file.header.mark.position.index = node.mark.position.index;
                }
                // As the driver does it; a file that stays does no harm.
                if let Some(file) = &file {
                    let _ = shelf.sweep(file.header.mark.position);
                }
                node.replica.snapshot_made(file.as_ref())
            }
            Background::Fetch {
                from,
                offer,
                state_dir,
            } => {
                let reachable = self.reaches(id, from);
                let broken = !reachable || self.rng.chance(if self.healing { 0 } else { 100 });
                let garbled = self.rng.chance(if self.healing { 0 } else { 30 });
                let bytes = self.member(from).shelf.read(&offer, 0, usize::MAX);
                let bytes = bytes.ok().flatten().filter(|_| !broken);
                let there = bytes.is_some();
                let prepared = bytes.and_then(|mut bytes| {
                    if garbled && !bytes.is_empty() {
                        let place = bytes.len() / 2;
                        bytes[place] ^= 0x40;
                    }
                    let member = self.member(id);
                    let part = member.shelf.receive(&bytes).ok()?;
                    let file = member.shelf.adopt(&part, &offer).ok()?;
                    prepare(member.root.as_ref(), CLUSTER, file, &state_dir).ok()
                });
                self.trace.say(
                    self.now,
                    format_args!(
                        "member {id} fetched snapshot {} of member {from}: there {there}, usable {}",
                        offer.position.index,
                        prepared.is_some()
                    ),
                );
                self.coverage.fault(match prepared.is_some() {
                    true => "snapshot fetched",
                    false => "snapshot fetch failed",
                });
                node.replica.fetched(prepared)
            }
            Background::History { from, gap } => {
                let first = gap.after.last + 1;
                let mut records = Vec::new();
                if self.reaches(id, from)
                    && let Some(peer) = &self.member(from).node
                {
                    let reader = peer.replica.state().history_reader();
                    records = reader.read(first, 64 << 10).unwrap_or_default();
                    let missing = gap.until.last - gap.after.last;
                    records.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
                }
                if !records.is_empty() {
                    self.coverage.fault("history fetched");
                }
                node.replica.history_fetched(first, records);
                Ok(())
            }
        }
    }

    /// The disk has answered: what the last turn did is seen and told.
    pub fn finish(&mut self, id: u64) {
        let now = self.now;
        if now < self.member(id).paused_until {
            let (at, life) = (self.member(id).paused_until, self.member(id).life);
            self.queue.put(at, Event::Ready { member: id, life });
            return;
        }
        let Some(mut node) = self.member(id).node.take() else {
            return;
        };
        let mark = node.replica.mark();
        if node.mark != mark {
            node.mark = mark;
            node.view = node.replica.view();
            node.look = true;
        }
        let leads = node.replica.role() == Role::Leader;
        let leading = leads.then(|| node.replica.term());
        if node.leading != leading {
            node.leading = leading;
            node.look = true;
            if let Some(term) = leading {
                self.trace
                    .say(now, format_args!("member {id} leads in term {term}"));
            }
        }
        for output in std::mem::take(&mut node.outputs) {
            self.put_out(id, &mut node, output);
        }
        if node.next_look <= now {
            node.next_look = now + LOOK;
            self.keep(id, &mut node);
        }
        if std::mem::take(&mut node.look) {
            self.office(id, &mut node);
        }
        let more = !node.inbox.is_empty();
        self.member(id).node = Some(node);
        if more {
            self.drive(id);
        }
    }

    fn put_out(&mut self, id: u64, node: &mut Node, output: Output<SimMachine>) {
        let (now, life) = (self.now, self.member(id).life);
        let later = |world: &mut World, node: &mut Node, work: Background, low: u64, high: u64| {
            let job = node.job(work);
            let at = now + world.rng.skewed(low * MS, high * MS);
            let member = id;
            world.queue.put(at, Event::Done { member, life, job });
        };
        match output {
            Output::Answered(ticket, result) => {
                if let Some(waiter) = node.waiters.remove(&ticket) {
                    self.answered(id, node, waiter, result);
                }
            }
            Output::ReadReady(ticket, result) => {
                if let Some(Waiter::Ask(ask)) = node.waiters.remove(&ticket) {
                    let reply = match result {
                        Ok(_) => self.read_reply(node, &ask),
                        Err(_) => Reply::NotTaken,
                    };
                    self.reply(id, &ask, reply);
                }
            }
            Output::TakeSnapshot(job) => {
                later(self, node, Background::Snapshot(job), 5, 900);
            }
            Output::Fetch {
                from,
                offer,
                state_dir,
            } => {
                let work = Background::Fetch {
                    from,
                    offer,
                    state_dir,
                };
                later(self, node, work, 10, 1_500);
            }
            Output::FetchHistory { from, gap } => {
                later(self, node, Background::History { from, gap }, 2, 300);
            }
            Output::Changed(ticket, result) => {
                if let Some(Waiter::Operator(call)) = node.waiters.remove(&ticket) {
                    self.tell_operator(id, call, result);
                }
            }
            Output::Note { to, note } => {
                if let Fate::Once(delay) | Fate::Twice(delay, _) =
                    self.net.fate(Place::Member(id), Place::Member(to))
                    && self.exists(to)
                {
                    let letter = Arc::new(self.member(id).letterhead(&node.roster, to));
                    let note = Box::new(note);
                    self.queue.put(now + delay, Event::Note { letter, note });
                }
            }
            Output::MembersChanged => {
                if let Some(meta) = node.replica.log().meta() {
                    node.roster.set_members(meta.members.clone());
                }
            }
            Output::RoleChanged => {}
            Output::StateReplaced => self.member(id).sweep(node),
        }
    }

    /// A proposal has its answer.
    pub fn answered(
        &mut self,
        id: u64,
        node: &mut Node,
        waiter: Waiter,
        result: Result<Applied<Decided>, ProposeError>,
    ) {
        let now = self.now;
        let now = self.member(id).monotonic(now);
        match waiter {
            Waiter::Office(key) => {
                let applied = result.is_ok_and(|applied| applied.answer.result.is_ok());
                let outcome = match applied {
                    true => Outcome::Applied,
                    false => Outcome::NotApplied,
                };
                node.office.answered(&key, outcome, now);
                node.look = true;
            }
            Waiter::Ask(ask) => {
                let reply = match result {
                    Ok(applied) => Reply::Applied(applied.answer.result),
                    Err(ProposeError::Unknown | ProposeError::Stopped) => Reply::Unknown,
                    Err(_) => Reply::NotTaken,
                };
                self.reply(id, &ask, reply);
            }
            Waiter::Hello(stream, term) => {
                let recorded = result.is_ok_and(|applied| applied.answer.result.is_ok());
                self.admit(id, node, stream, term, recorded);
            }
            Waiter::Report(stream, number) => self.recorded(id, node, stream, number, result),
            Waiter::Operator(_) | Waiter::Nobody => {}
        }
    }

    /// The office looks, and what it decides is done.
    fn office(&mut self, id: u64, node: &mut Node) {
        let now = self.now;
        let (monotonic, wall) = (self.member(id).monotonic(now), self.member(id).wall(now));
        if planted(Bug::LeaseNotExtended) && node.leading != node.office.desk().term() {
            // As if silence had been measured before this term.
            node.office.enter(node.leading, Duration::ZERO);
        }
        let rest = node.office.turn(Look {
            view: &node.view,
            applied: Timestamp::from_millis(node.mark.now_ms),
            term: node.leading,
            now: monotonic,
            wall,
        });
        self.perform(node);
        node.office_wake += 1;
        if node.leading.is_some() {
            let event = Event::Office {
                member: id,
                life: self.member(id).life,
                wake: node.office_wake,
            };
            let rest = (rest.as_micros() as Micros).max(MS);
            self.queue.put(now + rest, event);
        }
    }

    /// Does what the office wants done.
    pub fn perform(&mut self, node: &mut Node) {
        for act in node.office.take_acts() {
            match act {
                Act::Propose { key, command } => {
                    let request = Request {
                        principal: Principal::farm(),
                        request_id: None,
                        command: *command,
                    };
                    self.decided(node, key, request);
                }
                Act::Send { session, note } => {
                    let Some(stream) = node.streams.get(&session).copied() else {
                        node.office.undelivered(session);
                        continue;
                    };
                    let down = match note {
                        Note::Assignments {
                            term,
                            applied,
                            begin,
                            ended,
                        } => Down::Assignments {
                            term,
                            applied,
                            begin,
                            ended,
                        },
                        Note::Observe(watches) => Down::Observe(watches),
                    };
                    self.say_down(stream, down);
                }
                // The stream ends when its worker is heard next, as it does in the product.
                Act::Close { session } => drop(node.streams.remove(&session)),
            }
        }
    }

    /// The office's rest is over.
    pub fn on_office(&mut self, id: u64, life: u32, wake: u64) {
        if !self.is_life(id, life) {
            return;
        }
        if let Some(node) = self.member(id).node.as_mut()
            && node.office_wake == wake
        {
            node.look = true;
            self.input(id, Input::Tick);
        }
    }

    fn stopped(&mut self, id: u64, stop: &Stop) {
        match stop {
            Stop::Replica(ReplicaError::Removed { .. }) if self.operator.removes(id) => {
                self.leaves(id);
                return;
            }
            Stop::Stranger(_) if self.member(id).wiped => {
                self.leaves(id);
                return;
            }
            _ => {}
        }
        if !self.member(id).may_stop {
            let text = match stop {
                Stop::Replica(error) => chain(error),
                Stop::Stranger(error) => chain(error),
            };
            self.violate(format!("member {id} had to stop: {text}"));
        }
        self.coverage.fault("member's disk failed");
        self.crash_member(id, Crash::PowerLost);
    }
}

/// A gap in the history, for the trace.
fn lacks(gap: Option<HistoryGap>) -> String {
    match gap {
        Some(gap) => format!(
            "lacks history from {} to {}",
            gap.after.last, gap.until.last
        ),
        None => "lacks no history".to_owned(),
    }
}

/// Why a member ends.
#[derive(Debug)]
enum Stop {
    /// Its replica cannot go on.
    Replica(ReplicaError),
    /// It is not who it says it is.
    Stranger(Stranger),
}

impl From<ReplicaError> for Stop {
    fn from(error: ReplicaError) -> Stop {
        Stop::Replica(error)
    }
}

impl From<Stranger> for Stop {
    fn from(stranger: Stranger) -> Stop {
        Stop::Stranger(stranger)
    }
}
