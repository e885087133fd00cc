//! The worker's side of the session: find the leader, say who we are, beat, repeat, obey.

use std::time::Duration;

use oast_model::ids::Token;

use super::{Link, Live, Watching};
use crate::event::Event;
use crate::network::Place;
use crate::queue::{MS, Micros, SECOND};
use crate::stream::{Down, Packet, StreamId, Up};
use crate::world::World;

/// First pause after a failed session, and the longest.
const BACKOFF_MIN: Micros = 50 * MS;
const BACKOFF_MAX: Micros = SECOND;
/// Redirects followed without a pause.
const REDIRECTS_MAX: u32 = 3;
/// Time a member may take to say Welcome or Redirect.
const WELCOME_MAX: Micros = 5 * SECOND;
/// Heartbeats without an answer after which the connection counts as dead.
const UNANSWERED_MAX: usize = 4;
/// How often reports without an answer are looked at.
const REPEAT_CHECK: Micros = SECOND;
/// Between two looks at the fleets.
const LOOK: Micros = 100 * MS;
/// Time the last reports may take when the worker leaves.
pub const GOODBYE: Micros = 3 * SECOND;
/// Layers named in one heartbeat.
const CACHED_MAX: usize = 8;

impl World {
    /// Wakes a worker again when something is due.
    pub fn wake_worker_at(&mut self, worker: usize, at: Micros) {
        let now = self.now;
        let start = self.workers[worker].starts;
        if let Some(running) = self.workers[worker].running.as_mut() {
            running.wake += 1;
            let wake = running.wake;
            let event = Event::WorkerWake {
                worker,
                start,
                wake,
            };
            self.queue.put(at.max(now), event);
        }
    }

    /// Something may be due at a worker.
    pub fn on_worker_wake(&mut self, worker: usize, start: u32, wake: u64) {
        let current = self.workers[worker].starts == start
            && self.workers[worker]
                .running
                .as_ref()
                .is_some_and(|running| running.wake == wake);
        if current {
            self.worker_turn(worker);
        }
    }

    /// Does what is due at a worker.
    pub fn worker_turn(&mut self, worker: usize) {
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        running.at(now);
        let next = match &mut running.link {
            Link::Resting { until } if *until <= now => {
                self.greet(worker);
                now + WELCOME_MAX
            }
            Link::Resting { until } => *until,
            Link::Greeting { stream, until, .. } => {
                if *until <= now {
                    let stream = *stream;
                    self.lose_session(worker, Some(stream), false);
                    return;
                }
                *until
            }
            Link::Live(_) => match self.live_turn(worker) {
                Some(next) => next,
                None => return,
            },
        };
        self.wake_worker_at(worker, next);
    }

    fn greet(&mut self, worker: usize) {
        let now = self.now;
        let members = self.members.len() as u64;
        let w = &mut self.workers[worker];
        let member = w.next_member;
        w.next_member = member % members + 1;
        let (name, slots, provider) = (w.name.clone(), w.slots, w.provider);
        let Some(running) = w.running.as_mut() else {
            return;
        };
        let sent = running.monotonic();
        let hello = Up::Hello {
            name,
            incarnation: running.incarnation,
            slots,
            provider,
            held: running.held(),
        };
        running.sessions += 1;
        let stream = self.open_stream(worker, member);
        if let Some(running) = self.workers[worker].running.as_mut() {
            running.link = Link::Greeting {
                stream,
                sent,
                until: now + WELCOME_MAX,
            };
        }
        self.say_up(stream, hello);
    }

    /// The session is over: rest, then try the next member.
    pub fn lose_session(&mut self, worker: usize, stream: Option<StreamId>, redirected: bool) {
        let now = self.now;
        if let Some(stream) = stream {
            self.abandon_stream(stream);
        }
        let rest = self.rng.range(50, 150);
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        let until = if redirected && running.redirects < REDIRECTS_MAX {
            running.redirects += 1;
            now
        } else {
            running.redirects = 0;
            running.backoff = (running.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
            now + running.backoff * rest / 100
        };
        running.watching.clear();
        running.link = Link::Resting { until };
        self.wake_worker_at(worker, until);
    }

    fn live_turn(&mut self, worker: usize) -> Option<Micros> {
        let now = self.now;
        let running = self.workers[worker].running.as_mut()?;
        let monotonic = running.monotonic();
        let number = running.sessions;
        let Link::Live(live) = &mut running.link else {
            return None;
        };
        let stream = live.stream;
        let mut up = Vec::new();
        if live.next_beat <= now {
            if live.answered && live.unanswered.len() >= UNANSWERED_MAX {
                self.lose_session(worker, Some(stream), false);
                return None;
            }
            live.next_beat = now + live.heartbeat;
            live.beat += 1;
            live.unanswered.push((live.beat, monotonic));
            if !live.answered {
                let old = live.unanswered.len().saturating_sub(64);
                live.unanswered.drain(..old);
            }
            let skip = running.cached.len().saturating_sub(CACHED_MAX);
            up.push(Up::Heartbeat {
                number: live.beat,
                cached: running.cached[skip..].to_vec(),
            });
        }
        if live.next_repeat <= now {
            live.next_repeat = now + REPEAT_CHECK;
        }
        for report in running.outbox.take_due(number, monotonic) {
            up.push(Up::Report(report));
        }
        let look = live.next_look <= now;
        if look {
            live.next_look = now + LOOK;
        }
        let mut next = live.next_beat.min(live.next_repeat);
        if !running.watching.is_empty() {
            next = next.min(live.next_look);
        }
        if let Some(by) = live.leaving {
            if running.outbox.tokens().is_empty() || by <= now {
                self.stop_worker(worker);
                return None;
            }
            next = next.min(by);
        }
        if look {
            up.extend(self.observe(worker));
        }
        for message in up {
            self.say_up(stream, message);
        }
        Some(next)
    }

    /// What the fleets show, where it changed since it was sent last. What is sent is what the look
    /// before this one showed: a look takes time.
    fn observe(&mut self, worker: usize) -> Vec<Up> {
        let now = self.now;
        if self.net.is_cut(Place::Worker(worker), Place::Cloud)
            || self.net.is_cut(Place::Cloud, Place::Worker(worker))
        {
            return Vec::new();
        }
        let Some(running) = self.workers[worker].running.as_mut() else {
            return Vec::new();
        };
        let mut changed = Vec::new();
        for (fleet, watching) in &mut running.watching {
            let look = super::work::observation(&self.cloud, &watching.watch, now);
            let before = watching.look.replace(look);
            if before.is_some() && before != watching.sent {
                watching.sent.clone_from(&before);
                changed.extend(before.map(|seen| Up::Observation(fleet.clone(), seen)));
            }
        }
        changed
    }

    /// A packet for a worker has arrived.
    pub fn told(&mut self, worker: usize, stream: StreamId, packet: Packet) {
        let now = self.now;
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        running.at(now);
        let current = match &running.link {
            Link::Greeting { stream: ours, .. } => *ours == stream,
            Link::Live(live) => live.stream == stream,
            Link::Resting { .. } => false,
        };
        if !current {
            return;
        }
        match packet {
            Packet::Up(_) => {}
            Packet::Close => self.lose_session(worker, Some(stream), false),
            Packet::Down(down) => {
                self.obey(worker, stream, down);
                self.worker_turn(worker);
            }
        }
    }

    fn obey(&mut self, worker: usize, stream: StreamId, down: Down) {
        let now = self.now;
        let members = self.members.len() as u64;
        let w = &mut self.workers[worker];
        let Some(running) = w.running.as_mut() else {
            return;
        };
        let greeting = match &running.link {
            Link::Greeting { sent, .. } => Some(*sent),
            _ => None,
        };
        match down {
            Down::Redirect(leader) => {
                if let Some(leader) = leader {
                    w.next_member = leader.clamp(1, members);
                }
                self.lose_session(worker, Some(stream), leader.is_some());
            }
            Down::Welcome {
                term,
                applied,
                ttl,
                heartbeat,
            } => {
                let Some(sent_hello) = greeting else { return };
                if (term, applied) < running.newest {
                    self.lose_session(worker, Some(stream), false);
                    return;
                }
                running.newest = (term, applied);
                running.backoff = 0;
                running.redirects = 0;
                running.link = Link::Live(Live {
                    stream,
                    sent_hello,
                    ttl,
                    heartbeat: heartbeat.as_micros() as Micros,
                    unanswered: Vec::new(),
                    answered: false,
                    beat: 0,
                    next_beat: now,
                    next_repeat: now + REPEAT_CHECK,
                    next_look: now,
                    leaving: None,
                });
            }
            // The first message must be one of the two above.
            _ if greeting.is_some() => self.lose_session(worker, Some(stream), false),
            Down::Assignments {
                term,
                applied,
                begin,
                ended,
            } => {
                let at = (term, applied);
                if self.trace.reads() {
                    let tokens: Vec<Token> = begin.iter().map(|a| a.token).collect();
                    self.trace.say(
                        now,
                        format_args!(
                            "worker {worker} hears at {at:?}, newest {:?}: begin {tokens:?}, ended {ended:?}",
                            running.newest
                        ),
                    );
                }
                if at < running.newest {
                    return;
                }
                running.newest = at;
                for token in ended {
                    self.end_work(worker, token);
                }
                for assignment in begin {
                    self.begin_work(worker, assignment);
                }
                self.heard(worker, None);
            }
            Down::Ack { number, refused } => {
                let settled = running.outbox.settle(number, refused);
                if let Some(settled) = settled {
                    if settled.unwanted {
                        self.end_work(worker, settled.token);
                    }
                    if let Some(sent) = settled.sent {
                        self.heard(worker, Some(sent));
                    }
                }
            }
            Down::Alive(number) => {
                let Link::Live(live) = &mut running.link else {
                    return;
                };
                live.answered = true;
                let beat = live.unanswered.iter().find(|(beat, _)| *beat == number);
                let sent = beat.map(|(_, sent)| *sent);
                live.unanswered.retain(|(beat, _)| *beat > number);
                if let Some(sent) = sent {
                    self.heard(worker, Some(sent));
                }
            }
            Down::Observe(watches) => {
                let mut old = std::mem::take(&mut running.watching);
                for watch in watches {
                    let name = watch.fleet.name.clone();
                    let sent = old.remove(&name).and_then(|old| old.sent);
                    let watching = Watching {
                        watch,
                        look: None,
                        sent,
                    };
                    running.watching.insert(name, watching);
                }
            }
        }
    }

    /// The leader has what was sent then; none means the Hello.
    fn heard(&mut self, worker: usize, sent: Option<Duration>) {
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        let Link::Live(live) = &running.link else {
            return;
        };
        let sent = sent.unwrap_or(live.sent_hello);
        running.contact.heard(sent, live.ttl);
    }

    fn end_work(&mut self, worker: usize, token: Token) {
        let Some(running) = self.workers[worker].running.as_mut() else {
            return;
        };
        running.jobs.remove(&token);
        running.outbox.discard(token);
    }
}
