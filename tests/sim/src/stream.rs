//! The stream between a worker and a member: ordered in each direction, held up by cuts, broken by
//! deaths and by keep-alives without an answer.

use std::collections::VecDeque;
use std::time::Duration;

use oast_model::digest::Digest;
use oast_model::fleet::{Observation, Watch};
use oast_model::ids::Token;
use oast_model::names::{FleetName, WorkerName};
use oast_model::task::Assignment;
use oast_proto::worker::v1 as wire;

use crate::event::Event;
use crate::member::Input;
use crate::network::Place;
use crate::queue::{MS, Micros, SECOND};
use crate::world::World;

/// Numbers a connection.
pub type StreamId = u64;

/// Time without progress after which keep-alives break a connection.
pub const KEEPALIVE: Micros = 6 * SECOND;

/// What a worker says.
#[derive(Clone, Debug)]
pub enum Up {
    /// Who it is, and the tokens that it holds.
    Hello {
        /// Its name.
        name: WorkerName,
        /// Its start.
        incarnation: u64,
        /// Tasks side by side.
        slots: u32,
        /// Whether it reaches the cloud.
        provider: bool,
        /// Tokens of running work and of reports without an answer.
        held: Vec<Token>,
    },
    /// It is alive.
    Heartbeat {
        /// Counts within the session.
        number: u64,
        /// Layers at hand.
        cached: Vec<Digest>,
    },
    /// Something for the log.
    Report(wire::Report),
    /// What the cloud shows.
    Observation(FleetName, Observation),
}

/// What a member says.
#[derive(Clone, Debug)]
pub enum Down {
    /// The session is open.
    Welcome {
        /// The leader's term.
        term: u64,
        /// Number of the last command applied there.
        applied: u64,
        /// Life of a lease after the last heartbeat.
        ttl: Duration,
        /// Time between heartbeats.
        heartbeat: Duration,
    },
    /// Somebody else leads.
    Redirect(Option<u64>),
    /// Leases that began and ended.
    Assignments {
        /// The leader's term.
        term: u64,
        /// Number of the last command applied there.
        applied: u64,
        /// Work to begin.
        begin: Vec<Assignment>,
        /// Leases that are over.
        ended: Vec<Token>,
    },
    /// A report was recorded or refused.
    Ack {
        /// Which.
        number: u64,
        /// The ledger does not want it.
        refused: bool,
    },
    /// A heartbeat came.
    Alive(u64),
    /// What to watch.
    Observe(Vec<Watch>),
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// To the member.
    Up(Up),
    /// To the worker.
    Down(Down),
    /// The sender has ended the stream.
    Close,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    /// When the newest packet under way arrives: none overtakes it.
    pub last: Micros,
    /// Packets that wait for a cut to be mended.
    pub held: VecDeque<Packet>,
    /// Since when.
    pub held_since: Micros,
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    /// The worker.
    pub worker: usize,
    /// The member.
    pub member: u64,
    /// From the worker.
    pub up: Pipe,
    /// From the member.
    pub down: Pipe,
    /// Until then the worker has not read what has arrived.
    pub unread_until: Micros,
}

impl World {
    /// A worker connects to a member.
    pub fn open_stream(&mut self, worker: usize, member: u64) -> StreamId {
        let stream = self.number();
        self.streams.insert(
            stream,
            Stream {
                worker,
                member,
                up: Pipe::default(),
                down: Pipe::default(),
                unread_until: 0,
            },
        );
        if self.member(member).node.is_none() {
            self.break_at(stream, 100 * MS);
        }
        stream
    }

    /// Streams to a member.
    pub fn streams_of(&self, member: u64) -> Vec<StreamId> {
        let of = self.streams.iter().filter(|(_, s)| s.member == member);
        of.map(|(id, _)| *id).collect()
    }

    /// A worker says something.
    pub fn say_up(&mut self, stream: StreamId, up: Up) {
        self.send(stream, true, Packet::Up(up));
    }

    /// A member says something.
    pub fn say_down(&mut self, stream: StreamId, down: Down) {
        self.send(stream, false, Packet::Down(down));
    }

    /// A member ends a stream after what it has said.
    pub fn close_down(&mut self, stream: StreamId) {
        self.send(stream, false, Packet::Close);
    }

    /// A worker lets go of a stream.
    pub fn abandon_stream(&mut self, stream: StreamId) {
        self.send(stream, true, Packet::Close);
    }

    fn send(&mut self, id: StreamId, up: bool, packet: Packet) {
        let now = self.now;
        let delay = self.net.delay();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let (here, there) = (Place::Worker(stream.worker), Place::Member(stream.member));
        let (pipe, cut) = match up {
            true => (&mut stream.up, self.net.is_cut(here, there)),
            false => (&mut stream.down, self.net.is_cut(there, here)),
        };
        if cut || !pipe.held.is_empty() {
            if pipe.held.is_empty() {
                pipe.held_since = now;
                self.queue.put(now + 100 * MS, Event::Pump { stream: id });
            }
            pipe.held.push_back(packet);
            return;
        }
        pipe.last = pipe.last.max(now + delay);
        let event = Event::Packet {
            stream: id,
            up,
            packet: Box::new(packet),
        };
        self.queue.put(pipe.last, event);
    }

    /// Sends what a cut held up, or gives up.
    pub fn pump(&mut self, id: StreamId) {
        let now = self.now;
        let mut again = false;
        for up in [true, false] {
            let delay = self.net.delay();
            let Some(stream) = self.streams.get_mut(&id) else {
                return;
            };
            let (here, there) = (Place::Worker(stream.worker), Place::Member(stream.member));
            let (pipe, cut) = match up {
                true => (&mut stream.up, self.net.is_cut(here, there)),
                false => (&mut stream.down, self.net.is_cut(there, here)),
            };
            if pipe.held.is_empty() {
                continue;
            }
            if cut && now >= pipe.held_since + KEEPALIVE {
                self.break_at(id, 50 * MS);
                return;
            }
            if cut {
                again = true;
                continue;
            }
            pipe.last = pipe.last.max(now + delay);
            let at = pipe.last;
            for packet in std::mem::take(&mut pipe.held) {
                let event = Event::Packet {
                    stream: id,
                    up,
                    packet: Box::new(packet),
                };
                self.queue.put(at, event);
            }
        }
        if again {
            self.queue.put(now + 100 * MS, Event::Pump { stream: id });
        }
    }

    /// Something on a stream has arrived.
    pub fn on_packet(&mut self, id: StreamId, up: bool, packet: Box<Packet>) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let (worker, member) = (stream.worker, stream.member);
        let late = self.workers[worker].paused_until.max(stream.unread_until);
        if !up && late > self.now {
            // Nor does what comes after it overtake it, when the pause ends early.
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.unread_until = late;
            }
            let at = late;
            let event = Event::Packet {
                stream: id,
                up,
                packet,
            };
            self.queue.put(at, event);
            return;
        }
        match (up, *packet) {
            (true, Packet::Up(up)) => self.input(member, Input::Up(id, up)),
            (true, _) => {
                self.streams.remove(&id);
                self.input(member, Input::Lost(id));
            }
            (false, packet) => {
                let closed = matches!(packet, Packet::Close);
                self.told(worker, id, packet);
                if closed {
                    self.streams.remove(&id);
                }
            }
        }
    }

    /// Breaks a stream: each end learns of it within `by`.
    pub fn break_at(&mut self, id: StreamId, by: Micros) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.coverage.fault("stream broken");
        let (first, second) = (self.rng.range(0, by), self.rng.range(0, by));
        let life = self.member(stream.member).life;
        self.queue.put(
            self.now + first,
            Event::Broken {
                stream: id,
                worker: Some(stream.worker),
                member: None,
            },
        );
        self.queue.put(
            self.now + second,
            Event::Broken {
                stream: id,
                worker: None,
                member: Some((stream.member, life)),
            },
        );
    }

    /// An end learns that its stream is broken.
    pub fn on_broken(&mut self, id: StreamId, worker: Option<usize>, member: Option<(u64, u32)>) {
        if let Some(worker) = worker {
            if self.workers[worker].paused_until > self.now {
                let at = self.workers[worker].paused_until;
                let event = Event::Broken {
                    stream: id,
                    worker: Some(worker),
                    member: None,
                };
                self.queue.put(at, event);
                return;
            }
            self.told(worker, id, Packet::Close);
        }
        if let Some((member, life)) = member
            && self.is_life(member, life)
        {
            self.input(member, Input::Lost(id));
        }
    }
}
