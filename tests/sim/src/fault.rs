//! What goes wrong: one fault after the other, at random times, each ended after a while. At the
//! time of healing everything is mended at once and stays so.

use oast_coordinator::store::space::Space;
use oast_coordinator::store::state::StateStore as _;
use oast_model::names::FleetName;

use crate::disk::Crash;
use crate::disk::log::SyncTime;
use crate::event::Event;
use crate::member::Input;
use crate::network::Place;
use crate::operator::{MEMBERS_MAX, Task};
use crate::queue::{MS, Micros, SECOND};
use crate::stream::StreamId;
use crate::world::World;

/// How a fault ends.
#[derive(Clone, Debug)]
pub enum Mend {
    /// A member starts again.
    Start(u64),
    /// Links carry again, each in the direction given.
    Links(Vec<(Place, Place)>),
    /// A disk is fast again.
    Disk(u64),
    /// A disk has room again.
    Space(u64),
    /// A worker starts again.
    Worker(usize),
    /// No mending: a worker that has just called the cloud dies, if it is this start of it.
    EndWorker(usize, u32),
    /// No mending: a member stands for election.
    Stand(u64),
}

/// The usual time of a sync.
pub const SYNC: SyncTime = SyncTime {
    low: 80,
    high: 9 * MS,
};
/// That of a disk with troubles.
const SLOW_SYNC: SyncTime = SyncTime {
    low: 20 * MS,
    high: 600 * MS,
};

impl World {
    /// Something goes wrong.
    pub fn on_fault(&mut self) {
        if self.healing {
            return;
        }
        let gap = self.plan.fault_gap;
        let next = self.dice.range(gap / 4, gap * 2);
        self.queue.put(self.now + next, Event::Fault);
        match self.dice.below(31) {
            0 | 1 => self.crash_some(Crash::Killed),
            2..=4 => self.crash_some(Crash::PowerLost),
            5 => self.pause_member(),
            6 => self.jump_calendar(),
            7 => self.cut_one_way(),
            8 | 9 => self.isolate(),
            10 => self.split(),
            11 => self.slow_disk(),
            12 => self.fail_disk(),
            13 => self.hand_over(),
            14 | 23 => self.change_members(),
            24 => self.wipe_disk(),
            25 | 26 => self.duel(),
            15 | 16 => self.kill_worker(),
            17 => self.pause_worker(),
            18 | 19 => self.cut_worker(),
            20 => self.cut_from_cloud(),
            21 => self.drain_worker(),
            22 => self.break_stream(),
            28 => self.fill_disk(),
            _ => self.crash_instance(),
        }
    }

    fn some_member(&mut self) -> u64 {
        // The leader as often as all the others together: most rules are about it.
        match self.leader() {
            Some(leader) if self.dice.chance(500) => leader,
            _ => {
                let present = self.present();
                *self.dice.pick(&present)
            }
        }
    }

    fn mend_after(&mut self, low: Micros, high: Micros, mend: Mend) {
        let after = self.dice.skewed(low, high);
        let event = Event::Mend(Box::new(mend));
        self.queue.put(self.now + after, event);
    }

    fn crash_some(&mut self, how: Crash) {
        let id = self.some_member();
        if self.member(id).node.is_none() {
            return;
        }
        // All at once now and then: the lights go out.
        let all = how == Crash::PowerLost && self.dice.chance(120);
        let ids = match all {
            true => self.present(),
            false => vec![id],
        };
        for id in ids {
            let mut after = 0;
            if let Some(node) = &self.member(id).node {
                let busy_until = node.busy_until;
                if busy_until <= self.now && self.dice.chance(400) {
                    // In the middle of its next sync.
                    after = self.dice.range(0, 120 * MS);
                    self.armed.insert(id, how);
                }
            }
            if after == 0 {
                self.armed.remove(&id);
                self.crash_member(id, how);
            }
        }
    }

    /// A member is about to wait for its disk: the time to die that was waited for.
    pub fn syncs(&mut self, id: u64, until: Micros) {
        let Some(how) = self.armed.remove(&id) else {
            return;
        };
        let at = self.dice.range(self.now, until);
        let life = self.member(id).life;
        self.queue.put(
            at,
            Event::Die {
                member: id,
                life,
                how,
            },
        );
    }

    /// A member has given its vote: a good time to forget it.
    pub fn voted(&mut self, id: u64, departs: Micros) {
        let duel = self.now < self.duel_until;
        let likely = if duel { 700 } else { 60 };
        if self.healing || !self.dice.chance(likely) {
            return;
        }
        let at = departs + self.dice.skewed(1, if duel { 2 * MS } else { 20 * MS });
        let life = self.member(id).life;
        let how = Crash::PowerLost;
        self.queue.put(
            at,
            Event::Die {
                member: id,
                life,
                how,
            },
        );
    }

    /// Two members that do not hear each other stand for election at the same time, in front of one
    /// that was just started and dies as soon as it has voted.
    fn duel(&mut self) {
        let voters = self.voters();
        let Some(judge) = self.leader() else { return };
        let rivals: Vec<u64> = voters.into_iter().filter(|id| *id != judge).collect();
        if rivals.len() < 2 {
            return;
        }
        let first = self.dice.index(rivals.len());
        let (a, b) = (rivals[first], rivals[(first + 1) % rivals.len()]);
        self.coverage.fault("election contested");
        let (here, there) = (Place::Member(a), Place::Member(b));
        self.cut(vec![(here, there), (there, here)], 1_500 * MS, 3 * SECOND);
        if !self.crash(judge, Crash::Killed) {
            return;
        }
        self.duel_until = self.now + 3 * SECOND;
        // Long enough for both to have forgotten the leader.
        let start = self.now + self.dice.range(600, 1_100) * MS;
        let back = Event::Mend(Box::new(Mend::Start(judge)));
        self.queue.put(start, back);
        for rival in [a, b] {
            let at = start + self.dice.range(1, 30) * MS;
            let stand = Event::Mend(Box::new(Mend::Stand(rival)));
            self.queue.put(at, stand);
        }
    }

    /// A member dies now, and starts again after a while.
    pub fn crash_member(&mut self, id: u64, how: Crash) {
        if !self.crash(id, how) {
            return;
        }
        let duel = self.now < self.duel_until;
        match self.dice.below(10) {
            _ if duel => self.mend_after(2 * MS, 30 * MS, Mend::Start(id)),
            0..4 => self.mend_after(3 * MS, 80 * MS, Mend::Start(id)),
            4..8 => self.mend_after(200 * MS, 3 * SECOND, Mend::Start(id)),
            _ => self.mend_after(3 * SECOND, 14 * SECOND, Mend::Start(id)),
        }
    }

    /// A member dies now. Whether it lived.
    fn crash(&mut self, id: u64, how: Crash) -> bool {
        let now = self.now;
        let Some(node) = self.member(id).node.take() else {
            return false;
        };
        self.trace
            .say(now, format_args!("member {id} dies: {how:?}"));
        self.trace.note(now, 20, id);
        self.coverage.fault(match how {
            Crash::Killed => "member killed",
            Crash::PowerLost => "member lost power",
        });
        self.member(id).ended.push(now);
        let lost = self.member(id).log.crash(now, how);
        if lost > 0 {
            self.coverage.fault("member lost unsynced writes");
        }
        let elsewhere = self.history_elsewhere(id);
        let damage = how == Crash::PowerLost && !self.healing && elsewhere && self.dice.chance(80);
        if damage {
            self.coverage.fault("member's state damaged");
            self.trace
                .say(now, format_args!("the state of member {id} is damaged"));
        }
        let root = self.member(id).root.clone();
        root.crash(now, how, damage, &mut self.dice);
        let streams: Vec<StreamId> = self.streams_of(id);
        for stream in streams {
            self.break_at(stream, 4 * SECOND);
        }
        drop(node);
        true
    }

    /// Whether another member that stays has all of the history on its disk. What no disk but one has
    /// cannot be had back from anywhere, so that one must not be lost.
    fn history_elsewhere(&self, id: u64) -> bool {
        let records = self.oracle.records();
        self.members.iter().any(|member| {
            let stays = member.id != id && !self.operator.removes(member.id);
            let node = member.node.as_ref().filter(|_| stays);
            node.is_some_and(|node| {
                let replica = &node.replica;
                let all = replica.state().history().last >= records;
                all && replica.state().gap().is_none() && member.root.is_whole(replica.state_dir())
            })
        })
    }

    fn pause_member(&mut self) {
        let id = self.some_member();
        let until = self.now + self.dice.skewed(100 * MS, 8 * SECOND);
        self.coverage.fault("member paused");
        self.trace.say(
            self.now,
            format_args!("member {id} is stopped until {until}"),
        );
        self.member(id).paused_until = until;
    }

    fn jump_calendar(&mut self) {
        let id = self.some_member();
        let span = self.dice.range(1, 900_000) as i64;
        let sign = if self.dice.chance(500) { 1 } else { -1 };
        let far = self.dice.chance(300);
        self.coverage.fault("member's calendar jumped");
        self.member(id).calendar = sign * if far { span } else { span / 1_000 };
    }

    fn cut(&mut self, links: Vec<(Place, Place)>, low: Micros, high: Micros) {
        for (from, to) in &links {
            self.net.cut(*from, *to);
        }
        self.trace.say(self.now, format_args!("cut: {links:?}"));
        self.mend_after(low, high, Mend::Links(links));
    }

    fn others(&self, id: u64) -> Vec<Place> {
        let present = self.present().into_iter();
        let others = present.filter(|other| *other != id);
        others.map(Place::Member).collect()
    }

    fn cut_one_way(&mut self) {
        let id = self.some_member();
        let here = Place::Member(id);
        let others = self.others(id);
        let links = match self.dice.below(3) {
            0 => others.into_iter().map(|other| (here, other)).collect(),
            1 => others.into_iter().map(|other| (other, here)).collect(),
            _ => vec![(here, *self.dice.pick(&others))],
        };
        self.coverage.fault("link cut one way");
        self.cut(links, 200 * MS, 8 * SECOND);
    }

    fn isolate(&mut self) {
        let id = self.some_member();
        let here = Place::Member(id);
        let mut places = self.others(id);
        if self.dice.chance(500) {
            places.extend((0..self.plan.workers).map(Place::Worker));
        }
        let both = |other| [(here, other), (other, here)];
        let links = places.into_iter().flat_map(both).collect();
        self.coverage.fault("member cut off");
        self.cut(links, 200 * MS, 9 * SECOND);
    }

    fn split(&mut self) {
        let members = self.members.len() as u64;
        let left: Vec<bool> = (0..members).map(|_| self.dice.chance(500)).collect();
        let mut links = Vec::new();
        for a in 1..=members {
            for b in 1..=members {
                if left[a as usize - 1] != left[b as usize - 1] {
                    links.push((Place::Member(a), Place::Member(b)));
                }
            }
        }
        self.coverage.fault("group split");
        self.cut(links, 200 * MS, 7 * SECOND);
    }

    fn slow_disk(&mut self) {
        let id = self.some_member();
        self.coverage.fault("member's disk slow");
        self.member(id).log.set_sync(SLOW_SYNC);
        self.mend_after(500 * MS, 6 * SECOND, Mend::Disk(id));
    }

    fn fail_disk(&mut self) {
        let id = self.some_member();
        let member = self.member(id);
        if member.node.is_some() {
            member.may_stop = true;
            member.log.fail_next();
        }
    }

    /// Somebody else writes too much.
    fn fill_disk(&mut self) {
        let id = self.some_member();
        let (space, what) = match self.dice.chance(500) {
            true => (Space::Low, "member's disk nearly full"),
            false => (Space::Full, "member's disk full"),
        };
        self.coverage.fault(what);
        self.trace.say(self.now, format_args!("{what}: {id}"));
        self.member(id).space = space;
        self.mend_after(500 * MS, 8 * SECOND, Mend::Space(id));
    }

    fn hand_over(&mut self) {
        let id = self.some_member();
        if self.dice.chance(700) {
            let present = self.present();
            let to = *self.dice.pick(&present);
            self.coverage.fault("leadership handed over");
            self.trace.say(
                self.now,
                format_args!("member {id} is asked to hand over to {to}"),
            );
            self.input(id, Input::Transfer(to));
        } else {
            self.coverage.fault("election forced");
            self.input(id, Input::Campaign);
        }
    }

    /// The operator is to add, remove or replace a member.
    fn change_members(&mut self) {
        let present = self.present();
        let room = self.members.len() < MEMBERS_MAX;
        if !self.operator.idle() || !self.ready {
            return;
        }
        let old = self.some_member();
        match self.dice.below(3) {
            0 if present.len() > 3 => self.order(Task::Shrink(old)),
            1 if room => self.order(Task::Replace(old)),
            _ if room && present.len() < 6 => self.order(Task::Grow),
            _ => {}
        }
    }

    /// A member's disk is replaced by an empty one. It must not come back under its old id.
    fn wipe_disk(&mut self) {
        let room = self.members.len() < MEMBERS_MAX;
        let voters = self.voters();
        if !self.operator.idle() || !self.ready || !room || voters.len() < 3 {
            return;
        }
        let id = *self.dice.pick(&voters);
        // Most of the founders, emptied and started as they were the first time, would begin a second
        // farm: nobody is left among them who knows better (docs/operating.md).
        let founders = self.plan.members;
        let emptied = self.members[..founders as usize]
            .iter()
            .filter(|member| member.wiped)
            .count() as u64;
        if id <= founders && (emptied + 1) * 2 > founders {
            return;
        }
        let lost = voters
            .iter()
            .any(|voter| self.members[*voter as usize - 1].gone);
        if lost || self.member(id).node.is_none() || !self.history_elsewhere(id) {
            return;
        }
        self.crash_member(id, Crash::PowerLost);
        self.coverage.fault("member's disk wiped");
        self.trace
            .say(self.now, format_args!("member {id} loses its disk"));
        self.member(id).wipe();
        self.order(Task::Replace(id));
    }

    /// Voters as the leader knows them; none while a change is under way.
    fn voters(&mut self) -> Vec<u64> {
        let Some(leader) = self.leader() else {
            return Vec::new();
        };
        let status = self
            .member(leader)
            .node
            .as_ref()
            .map(|n| n.replica.status());
        match status {
            Some(status) if status.outgoing.is_empty() && !status.changing => status.voters,
            _ => Vec::new(),
        }
    }

    fn some_worker(&mut self) -> usize {
        self.dice.index(self.workers.len())
    }

    fn kill_worker(&mut self) {
        let worker = self.some_worker();
        if self.workers[worker].running.is_some() {
            self.coverage.fault("worker killed");
            self.stop_worker(worker);
        }
    }

    /// A worker's process has ended; another one starts after a while.
    pub fn stop_worker(&mut self, worker: usize) {
        self.workers[worker].running = None;
        let streams: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.worker == worker)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.break_at(stream, SECOND);
        }
        match self.healing {
            true => self.mend_after(MS, 10 * MS, Mend::Worker(worker)),
            false => self.mend_after(50 * MS, 6 * SECOND, Mend::Worker(worker)),
        }
    }

    /// A worker has called the cloud: a good time to die, before or after the answer.
    pub fn called(&mut self, worker: usize) {
        if self.healing || !self.dice.chance(30) {
            return;
        }
        let start = self.workers[worker].starts;
        let end = Mend::EndWorker(worker, start);
        self.mend_after(MS, 500 * MS, end);
    }

    fn pause_worker(&mut self) {
        let worker = self.some_worker();
        if self.workers[worker].paused_until > self.now {
            return;
        }
        self.coverage.fault("worker paused");
        let until = self.now + self.dice.skewed(200 * MS, 12 * SECOND);
        self.workers[worker].paused_until = until;
    }

    fn cut_worker(&mut self) {
        let worker = self.some_worker();
        let here = Place::Worker(worker);
        let one_way = self.dice.below(3);
        let links = (1..=self.members.len() as u64)
            .map(Place::Member)
            .flat_map(|member| {
                let out = (one_way != 1).then_some((here, member));
                let back = (one_way != 2).then_some((member, here));
                out.into_iter().chain(back)
            })
            .collect();
        self.coverage.fault("worker cut off");
        self.cut(links, 300 * MS, 12 * SECOND);
    }

    fn cut_from_cloud(&mut self) {
        let worker = self.some_worker();
        let here = Place::Worker(worker);
        let links = vec![(here, Place::Cloud), (Place::Cloud, here)];
        self.coverage.fault("worker cut from the cloud");
        self.cut(links, 200 * MS, 5 * SECOND);
    }

    fn drain_worker(&mut self) {
        let worker = self.some_worker();
        if self.workers[worker].running.is_some() {
            self.coverage.fault("worker drained");
            self.begin_leaving(worker);
        }
    }

    fn break_stream(&mut self) {
        let streams: Vec<StreamId> = self.streams.keys().copied().collect();
        if !streams.is_empty() {
            let stream = *self.dice.pick(&streams);
            self.break_at(stream, 100 * MS);
        }
    }

    fn crash_instance(&mut self) {
        // Mostly where nothing is rolled out: it is repaired then, and not replaced anyway.
        let resting: Vec<FleetName> = self
            .oracle
            .ledger()
            .fleets()
            .iter()
            .filter(|(_, fleet)| fleet.good.is_some() && fleet.active.is_none())
            .map(|(name, _)| name.clone())
            .collect();
        let any = resting.is_empty() || self.dice.chance(200);
        let crashed = self
            .cloud
            .crash_one(self.now, |fleet| any || resting.contains(fleet));
        if let Some((fleet, name)) = crashed {
            self.coverage.fault("instance crashed");
            self.checks.effects.crashed(&fleet, &name);
            self.trace
                .say(self.now, format_args!("instance {fleet}/{name} stops"));
        }
    }

    /// Something works again.
    pub fn on_mend(&mut self, mend: Mend) {
        match mend {
            Mend::Start(id) => self.start_member(id),
            Mend::Links(links) => {
                self.trace.say(self.now, format_args!("mended: {links:?}"));
                for (from, to) in links {
                    self.net.mend(from, to);
                }
            }
            Mend::Disk(id) => self.member(id).log.set_sync(SYNC),
            Mend::Space(id) => self.member(id).space = Space::Room,
            Mend::Worker(worker) => self.start_worker(worker),
            Mend::EndWorker(worker, start) => {
                let of = &self.workers[worker];
                if !self.healing && of.starts == start && of.running.is_some() {
                    self.coverage.fault("worker killed in a call");
                    self.stop_worker(worker);
                }
            }
            Mend::Stand(id) => self.input(id, Input::Campaign),
        }
    }

    /// Everything works from now on.
    pub fn heal(&mut self) {
        self.healing = true;
        self.armed.clear();
        self.net.heal();
        self.trace.say(self.now, format_args!("healing begins"));
        for id in self.present() {
            self.member(id).paused_until = 0;
            self.member(id).calendar = 0;
            self.member(id).log.set_sync(SYNC);
            self.member(id).space = Space::Room;
            self.start_member(id);
        }
        for worker in 0..self.workers.len() {
            self.workers[worker].paused_until = 0;
            self.start_worker(worker);
        }
    }
}
