//! The world: everything there is, and the one loop in which it happens.

use std::collections::BTreeMap;

use oast_coordinator::consensus::open::OpenError;
use oast_model::ledger::VERSION;
use raft::eraftpb::MessageType;

use crate::bugs::{self, Bug};
use crate::checks::{Checks, Wrong, ending};
use crate::client::Client;
use crate::cloud::Cloud;
use crate::coverage::Coverage;
use crate::disk::Crash;
use crate::disk::log::LogDisk;
use crate::event::{Event, number_of};
use crate::fault::SYNC;
use crate::member::{Input, Member};
use crate::network::{Network, Place};
use crate::operator::Operator;
use crate::oracle::Oracle;
use crate::plan::{AT_LEAST, PATIENCE, Plan};
use crate::queue::{MS, Micros, Queue, SECOND};
use crate::rng::Rng;
use crate::stream::{Stream, StreamId};
use crate::trace::Trace;
use crate::worker::session::GOODBYE;
use crate::worker::{Link, Running, Worker};

/// Violations after which a world ends: the rest would only repeat them.
const ENOUGH: usize = 5;
/// Between two looks at whether everything has ended.
const CHECK: Micros = 250 * MS;

/// Everything there is.
pub struct World {
    pub plan: Plan,
    pub now: Micros,
    pub queue: Queue<Event>,
    /// For everything that is no fault.
    pub rng: Rng,
    /// For faults.
    pub dice: Rng,
    pub net: Network,
    pub members: Vec<Member>,
    pub streams: BTreeMap<StreamId, Stream>,
    pub workers: Vec<Worker>,
    pub cloud: Cloud,
    pub clients: Vec<Client>,
    pub operator: Operator,
    pub oracle: Oracle,
    pub checks: Checks,
    pub coverage: Coverage,
    pub trace: Trace,
    pub violations: Vec<String>,
    /// Members that shall die in their next sync.
    pub armed: BTreeMap<u64, Crash>,
    /// Until then whoever votes is likely to die right after.
    pub duel_until: Micros,
    pub healing: bool,
    /// The farm is set up.
    pub ready: bool,
    done: bool,
    numbers: u64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("plan", &self.plan)
            .field("now", &self.now)
            .finish_non_exhaustive()
    }
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, text: bool) -> World {
        let plan = Plan::of(seed);
        let root = Rng::new(seed);
        let mut clocks = root.fork("clocks");
        let members = (1..=plan.members)
            .map(|id| {
                let disk = LogDisk::new(root.fork(&format!("disk {id}")), SYNC);
                let calendar = clocks.range(0, 300) as i64 - 150;
                let origin = clocks.range(1, 1_000) * SECOND;
                let founders = (1..=plan.members).collect();
                let mut member = Member::new(id, disk, (calendar, origin), founders);
                member.supports = plan.supports;
                member
            })
            .collect();
        let workers = (0..plan.workers)
            .map(|place| Worker {
                name: crate::recipe::name(&format!("worker-{place}")),
                slots: 1 + (place as u32 + 1) % 3,
                // Two workers at least reach the cloud, so that one can die.
                provider: place < 2 || place % 2 == 0,
                starts: 0,
                next_member: 1 + place as u64 % plan.members,
                paused_until: 0,
                running: None,
            })
            .collect();
        let clients = (0..plan.clients)
            .map(|place| Client::new(root.fork(&format!("client {place}")), place == 0))
            .collect();
        World {
            now: 0,
            queue: Queue::default(),
            rng: root.fork("world"),
            dice: root.fork("faults"),
            net: Network::new(&plan, root.fork("network")),
            members,
            streams: BTreeMap::new(),
            workers,
            cloud: Cloud::new(root.fork("cloud")),
            clients,
            operator: Operator::new(root.fork("operator")),
            oracle: Oracle::default(),
            checks: Checks::default(),
            coverage: Coverage::default(),
            trace: Trace::new(text),
            violations: Vec::new(),
            armed: BTreeMap::new(),
            duel_until: 0,
            healing: false,
            ready: false,
            done: false,
            numbers: 0,
            plan,
        }
    }

    /// Lets everything happen.
    pub fn run(&mut self) {
        for id in 1..=self.plan.members {
            self.start_member(id);
        }
        for worker in 0..self.workers.len() {
            self.start_worker(worker);
        }
        for client in 0..self.clients.len() {
            self.wake_client_at(client, 100 * MS);
        }
        self.queue.put(2 * SECOND, Event::Fault);
        self.queue.put(self.plan.heal_at, Event::Heal);
        while !self.done
            && let Some((at, event)) = self.queue.take()
        {
            self.now = at;
            self.happen(event);
            if self.violations.len() >= ENOUGH {
                break;
            }
        }
        if self.violations.is_empty() {
            let wrong = self.checks.registers.check();
            self.judge(wrong);
            let wrong = self.checks.submissions.at_the_end(self.oracle.ledger());
            self.judge(wrong);
        }
    }

    fn happen(&mut self, event: Event) {
        let (what, detail) = number_of(&event);
        self.trace.note(self.now, what, detail);
        match event {
            Event::Tick { member, life } => self.on_tick(member, life),
            Event::Ready { member, life } => {
                if self.is_life(member, life) {
                    self.finish(member);
                }
            }
            Event::Office { member, life, wake } => self.on_office(member, life, wake),
            Event::Done { member, life, job } => {
                if self.is_life(member, life) {
                    self.input(member, Input::Done(job));
                }
            }
            Event::Decision { office, proposal } => {
                let member = match office {
                    Some((member, life)) => Some(member).filter(|id| self.is_life(*id, life)),
                    None => self.leader(),
                };
                if let Some(member) = member {
                    self.input(member, Input::Propose(proposal));
                }
            }
            Event::Die { member, life, how } => {
                if self.is_life(member, life) && !self.healing {
                    self.crash_member(member, how);
                }
            }
            Event::Peer {
                from,
                life,
                departs,
                letter,
                message,
            } => {
                if self.member(from).had_left(life, departs) {
                    if message.get_msg_type() == MessageType::MsgRequestVoteResponse
                        && !message.reject
                        && !self.member(from).wiped
                    {
                        let wrong = self.checks.votes.given(from, message.term, letter.to);
                        self.judge(wrong);
                    }
                    self.input(letter.to, Input::Peer(letter, message));
                }
            }
            Event::Note { letter, note } => self.input(letter.to, Input::Note(letter, note)),
            Event::Refused { member, life, why } => {
                if self.is_life(member, life) {
                    self.input(member, Input::Refused(why));
                }
            }
            Event::Operator { wake } => self.on_operator(wake),
            Event::Change { member, call } => self.on_change(member, call),
            Event::Changed { call, result } => self.on_changed(call, *result),
            Event::Ask { member, ask } => self.input(member, Input::Ask(ask)),
            Event::Reply {
                client,
                call,
                reply,
            } => self.on_reply(client, call, *reply),
            Event::Client { client, wake } => self.on_client(client, wake),
            Event::Packet { stream, up, packet } => self.on_packet(stream, up, packet),
            Event::Pump { stream } => self.pump(stream),
            Event::Broken {
                stream,
                worker,
                member,
            } => self.on_broken(stream, worker, member),
            Event::WorkerWake { worker, .. } | Event::Work { worker, .. }
                if self.workers[worker].paused_until > self.now =>
            {
                let at = self.workers[worker].paused_until;
                self.queue.put(at, event);
            }
            Event::WorkerWake {
                worker,
                start,
                wake,
            } => self.on_worker_wake(worker, start, wake),
            Event::Work {
                worker,
                start,
                token,
            } => self.on_work(worker, start, token),
            Event::CallArrives {
                worker,
                start,
                token,
                place,
                number,
                call,
            } => self.on_call((worker, start), token, place, number, &call),
            Event::CallAnswered {
                worker,
                start,
                token,
                place,
                number,
                answer,
            } => self.on_call_answered((worker, start), token, place, number, *answer),
            Event::Fault => self.on_fault(),
            Event::Mend(mend) => self.on_mend(*mend),
            Event::Heal => {
                self.heal();
                self.queue.put(self.now + CHECK, Event::Check);
            }
            Event::Check => self.on_check(),
        }
    }

    fn on_check(&mut self) {
        let unrest = ending::unrest(self);
        match unrest {
            None if self.now >= AT_LEAST => self.done = true,
            Some(why) if self.now > self.plan.heal_at + PATIENCE => {
                let at = self.plan.heal_at / SECOND;
                self.describe();
                self.violate(format!("healed since second {at}, and still {why}"));
                self.done = true;
            }
            _ => self.queue.put(self.now + CHECK, Event::Check),
        }
    }

    /// Writes down where every member and worker stands.
    fn describe(&mut self) {
        for member in &self.members {
            let status = member.node.as_ref().map(|node| node.replica.status());
            let id = member.id;
            self.trace
                .say(self.now, format_args!("member {id} stands at {status:?}"));
        }
        for worker in &self.workers {
            self.trace.say(self.now, format_args!("{worker:?}"));
        }
    }

    /// Takes over what a checker found.
    pub fn judge(&mut self, wrong: Wrong) {
        if let Some(wrong) = wrong {
            self.violate(wrong);
        }
    }

    /// A rule was broken.
    pub fn violate(&mut self, what: String) {
        self.trace.say(self.now, format_args!("VIOLATION: {what}"));
        let (seconds, micros) = (self.now / SECOND, self.now % SECOND);
        self.violations
            .push(format!("at {seconds}.{micros:06}: {what}"));
    }

    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A member by id.
    pub fn member(&mut self, id: u64) -> &mut Member {
        &mut self.members[id as usize - 1]
    }

    /// Whether a member's machine is there. The group knows a new one before anybody set it up.
    pub fn exists(&self, id: u64) -> bool {
        id as usize <= self.members.len()
    }

    /// Whether a member still lives the same life.
    pub fn is_life(&mut self, id: u64, life: u32) -> bool {
        let member = self.member(id);
        member.life == life && member.node.is_some()
    }

    /// Raft's unit of time.
    pub fn tick(&self) -> Micros {
        self.plan.options.tick.as_micros() as Micros
    }

    /// Whether a member can ask another one for something long. The one that asks may be in the
    /// middle of its turn.
    pub fn reaches(&mut self, from: u64, to: u64) -> bool {
        let (here, there) = (Place::Member(from), Place::Member(to));
        let cut = self.net.is_cut(here, there) || self.net.is_cut(there, here);
        !cut && self.exists(to) && self.member(to).node.is_some()
    }

    /// A member's process begins.
    pub fn start_member(&mut self, id: u64) {
        let (now, plan) = (self.now, self.plan.clone());
        let upgrade = self.dice.chance(300);
        let member = self.member(id);
        if member.node.is_some() || member.gone {
            return;
        }
        if upgrade && member.life > 0 && member.supports < VERSION {
            member.supports = VERSION;
            self.coverage.fault("member upgraded");
        }
        let member = self.member(id);
        let started = member.start(&plan, now);
        let life = member.life;
        match started {
            Ok(()) => {
                self.trace.say(now, format_args!("member {id} starts"));
                let first = now + self.tick();
                self.queue.put(first, Event::Tick { member: id, life });
                let Some(node) = self.member(id).node.take() else {
                    return;
                };
                bugs::enter_member(id);
                self.feed(id, &node);
                bugs::enter_member(0);
                self.member(id).node = Some(node);
                self.input(id, Input::Tick);
            }
            Err(OpenError::Removed { .. }) if self.operator.removes(id) => self.leaves(id),
            Err(error) => {
                let problem = chain(&error);
                self.violate(format!("member {id} does not start: {problem}"));
            }
        }
    }

    /// A member's process has ended for good, as it must.
    pub fn leaves(&mut self, id: u64) {
        let now = self.now;
        self.trace.say(now, format_args!("member {id} is gone"));
        self.trace.note(now, 24, id);
        let wiped = self.member(id).wiped;
        self.coverage.fault(match wiped {
            true => "wiped member refused",
            false => "removed member stopped",
        });
        let member = self.member(id);
        member.gone = true;
        if member.node.take().is_some() {
            member.ended.push(now);
        }
        for stream in self.streams_of(id) {
            self.break_at(stream, SECOND);
        }
    }

    /// A member's machine is there, with empty disks; nobody started it yet.
    pub fn add_member(&mut self) -> u64 {
        let id = self.members.len() as u64 + 1;
        let mut rng = Rng::new(self.plan.seed).fork(&format!("member {id}"));
        let disk = LogDisk::new(rng.fork("disk"), SYNC);
        let calendar = rng.range(0, 300) as i64 - 150;
        let origin = rng.range(1, 1_000) * SECOND;
        let founders = Vec::new();
        self.members
            .push(Member::new(id, disk, (calendar, origin), founders));
        id
    }

    /// Whoever leads, as far as members know it themselves.
    pub fn leader(&self) -> Option<u64> {
        let leading = |member: &&Member| member.node.as_ref().and_then(|node| node.leading);
        let leads = self.members.iter().max_by_key(leading)?;
        leading(&leads).map(|_| leads.id)
    }

    /// Members that may run.
    pub fn present(&self) -> Vec<u64> {
        let here = self.members.iter().filter(|member| !member.gone);
        here.map(|member| member.id).collect()
    }

    /// A worker's process begins.
    pub fn start_worker(&mut self, worker: usize) {
        let (now, margin) = (self.now, self.plan.margin);
        if self.workers[worker].running.is_some() {
            return;
        }
        let incarnation = self.rng.bits();
        self.workers[worker].starts += 1;
        self.workers[worker].running = Some(Running::new(incarnation, now, margin));
        self.wake_worker_at(worker, now);
    }

    /// A worker gives back what it holds, says so, and ends.
    pub fn begin_leaving(&mut self, worker: usize) {
        use oast_model::task::{Outcome, Report};
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        running.at(now);
        for token in std::mem::take(&mut running.jobs).into_keys() {
            running.report(token, &Report::Finished(Outcome::Released));
        }
        match &mut running.link {
            Link::Live(live) => live.leaving = Some(now + GOODBYE),
            _ => {
                self.stop_worker(worker);
                return;
            }
        }
        self.worker_turn(worker);
    }

    /// Whether a bug is planted; for reports.
    pub fn planted() -> Option<Bug> {
        bugs::ALL.into_iter().find(|bug| bugs::planted(*bug))
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
