//! What the leader decides, without doing any of it.
//!
//! ```text
//!  view, time ──> turn ──> Act::Propose{key, ..} ──> answered(key, ..) ──┐
//!  a worker said ──> admit | hear | observe | disconnect ─> desk          ├─> the next turn
//!                    turn ──> Act::Send | Act::Close ──> undelivered(..) ─┘
//! ```
//!
//! An office reads no clock, waits for nothing and holds no channel: time and the ledger come in as
//! arguments, what is to be done goes out as [`Act`]s, and what became of them comes back as calls.
//! The tokio shell around it is [`super::Leader`]; the simulator has another one.
//!
//! Decisions are made with the time of the ledger ([`LedgerTime`]), not with the calendar of the
//! member that happens to lead: a task that is ready "not before" a time stamped by a leader whose
//! calendar runs ahead would otherwise wait until the next leader's calendar has caught up.

mod calendars;
mod time;
mod turn;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_model::fleet::{Observation, Watch};
use oast_model::ids::{TaskId, Token};
use oast_model::ledger::{Command, Ledger};
use oast_model::names::{FleetName, PipelineName, TeamName};
use oast_model::schedule::{Overlay, Rules};
use oast_model::task::Assignment;
use oast_model::time::Timestamp;

use super::desk::{Connected, Desk, SessionId};
use calendars::Calendars;
use time::LedgerTime;

/// Longest time between two turns of a leader: bounds the harm of a missed wake-up.
pub const TURN_MAX: Duration = Duration::from_secs(1);
/// Pause after a refusal, so that a planner that is wrong does not fill the log.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Names a proposal. The same one is not made again before its answer is there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A lease for a task.
    Grant(TaskId),
    /// The end of a lease.
    Expire(Token),
    /// The next step of a fleet's rollout or repair.
    Fleet(FleetName),
    /// A calendar that came due.
    Cron(TeamName, PipelineName),
}

/// What a worker is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// Leases that it does not know, and leases that it knows and that are over.
    Assignments {
        /// The leader's term.
        term: u64,
        /// Number of the last command that the leader has applied.
        applied: u64,
        /// Work to begin; the secrets that it names are not filled in.
        begin: Vec<Assignment>,
        /// Tokens that have ended.
        ended: Vec<Token>,
    },
    /// The complete list of fleets that it watches from now on.
    Observe(Vec<Watch>),
}

/// What the office wants done.
#[derive(Clone, Debug)]
pub enum Act {
    /// Bring a command into the log, then call [`Office::answered`].
    Propose {
        /// Names the proposal.
        key: Key,
        /// What is proposed.
        command: Box<Command>,
    },
    /// Tell a worker, in order; call [`Office::undelivered`] when it does not keep up.
    Send {
        /// To whom.
        session: SessionId,
        /// What.
        note: Note,
    },
    /// End a session: it was replaced, or the term is over.
    Close {
        /// Which.
        session: SessionId,
    },
}

/// What became of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Applied,
    /// The ledger refused it, or nobody knows whether it was applied.
    NotApplied,
}

/// What the leader sees of the world in one turn.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The ledger as applied here.
    pub view: &'a Ledger,
    /// The newest time that the ledger has seen.
    pub applied: Timestamp,
    /// The term in which this member leads with the full state, if it does.
    pub term: Option<u64>,
    /// This member's monotonic clock.
    pub now: Duration,
    /// This member's calendar. May jump.
    pub wall: Timestamp,
}

/// The leader's part of a member, as decisions. Idle while another member leads.
#[derive(Debug)]
pub struct Office {
    desk: Desk,
    clock: LedgerTime,
    calendars: Calendars,
    /// Proposals without an answer, or that were refused and rest until the given time.
    pending: BTreeMap<Key, Option<Duration>>,
    /// The grants among them, which count as held.
    overlay: Overlay,
    lease_ttl: Duration,
    rules: Rules,
    acts: Vec<Act>,
}

impl Office {
    /// An office that waits for leadership. `lease_ttl`: silence after which a lease is taken away.
    pub fn new(lease_ttl: Duration) -> Office {
        Office {
            desk: Desk::default(),
            clock: LedgerTime::default(),
            calendars: Calendars::default(),
            pending: BTreeMap::new(),
            overlay: Overlay::default(),
            lease_ttl,
            rules: Rules::default(),
            acts: Vec::new(),
        }
    }

    /// The same with what operators decide about scheduling.
    #[must_use]
    pub fn with_rules(self, rules: Rules) -> Office {
        Office { rules, ..self }
    }

    /// The memory of the term.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Takes what is to be done, in order.
    pub fn take_acts(&mut self) -> Vec<Act> {
        std::mem::take(&mut self.acts)
    }

    /// Follows leadership. Another term, or none, begins with an empty desk; the workers look for
    /// the new leader.
    pub fn enter(&mut self, term: Option<u64>, now: Duration) {
        for session in self.desk.enter(term, now) {
            self.acts.push(Act::Close { session });
        }
    }

    /// Admits a worker, if this is still the term in which its start was recorded. An older session
    /// of the same worker is ended: there is one way to a worker.
    pub fn admit(
        &mut self,
        term: u64,
        leading: Option<u64>,
        connected: Connected,
        now: Duration,
    ) -> Option<SessionId> {
        self.enter(leading, now);
        if leading != Some(term) {
            return None;
        }
        let (id, replaced) = self.desk.connect(connected, now);
        for session in replaced {
            self.acts.push(Act::Close { session });
        }
        Some(id)
    }

    /// Notes that a session's worker is alive. False for a session that is over.
    pub fn hear(&mut self, session: SessionId, now: Duration) -> bool {
        self.desk.hear(session, now)
    }

    /// Takes over which layers a worker has at hand.
    pub fn note_cache(&mut self, session: SessionId, cached: BTreeSet<oast_model::digest::Digest>) {
        if let Some(connected) = self.desk.session_mut(session) {
            connected.session.cached = cached;
        }
    }

    /// Keeps what a session's provider shows.
    pub fn observe(&mut self, session: SessionId, fleet: FleetName, seen: Observation) {
        self.desk.observe(session, fleet, seen);
    }

    /// Forgets a session and what it observed. Its leases live on until their time is over.
    pub fn disconnect(&mut self, session: SessionId) {
        self.desk.disconnect(session);
    }

    /// A note could not be handed over: the session does not keep up or is gone.
    pub fn undelivered(&mut self, session: SessionId) {
        self.desk.disconnect(session);
    }

    /// A proposal has its answer.
    pub fn answered(&mut self, key: &Key, outcome: Outcome, now: Duration) {
        match outcome {
            Outcome::Applied => {
                self.pending.remove(key);
                if let Key::Grant(task) = key {
                    self.overlay.settle(*task, true);
                }
            }
            // The state moved between the look and the apply; a later turn looks again.
            Outcome::NotApplied => {
                if let Some(until) = self.pending.get_mut(key) {
                    *until = Some(now + REFUSED_PAUSE);
                }
            }
        }
    }

    fn propose(&mut self, key: Key, command: Command) {
        if self.pending.contains_key(&key) {
            return;
        }
        self.pending.insert(key.clone(), None);
        let command = Box::new(command);
        self.acts.push(Act::Propose { key, command });
    }

    /// Lets rested proposals be made again and says when the next one may.
    fn rested(&mut self, now: Duration) -> Duration {
        let overlay = &mut self.overlay;
        self.pending.retain(|key, until| {
            let rests = until.is_none_or(|until| until > now);
            if let (Key::Grant(task), false) = (key, rests) {
                overlay.settle(*task, false);
            }
            rests
        });
        self.pending
            .values()
            .flatten()
            .map(|until| *until - now)
            .min()
            .unwrap_or(TURN_MAX)
    }
}

#[cfg(test)]
mod tests;
