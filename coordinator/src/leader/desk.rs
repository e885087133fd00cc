//! The leader's memory of one term: sessions, silence, observations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_model::fleet::{Observation, Watch};
use oast_model::ids::Token;
use oast_model::names::{FleetName, WorkerName};
use oast_model::schedule::Session;
use oast_model::time::Timestamp;

/// A number for each session, so that a late message of an old one is known as such.
pub type SessionId = u64;

/// A connected worker.
#[derive(Debug)]
pub struct Connected {
    /// What the scheduler sees of it.
    pub session: Session,
    /// Its binary.
    pub version: String,
    /// When it connected.
    pub connected_at: Timestamp,
    /// Tokens that it holds or was told.
    pub told: BTreeSet<Token>,
    /// The last list of fleets to watch, to send it only when it changes.
    pub watching: Vec<Watch>,
}

/// An observation with the session that made it.
#[derive(Debug)]
struct Seen {
    by: SessionId,
    observation: Observation,
}

/// Memory of one term.
#[derive(Debug, Default)]
pub struct Desk {
    term: Option<u64>,
    /// Monotonic time at which this term's leadership began here.
    since: Duration,
    next: SessionId,
    sessions: BTreeMap<SessionId, Connected>,
    /// When each start of a worker was last heard in this term.
    heard: BTreeMap<(WorkerName, u64), Duration>,
    seen: BTreeMap<FleetName, Seen>,
    notes: BTreeMap<FleetName, String>,
}

impl Desk {
    /// Follows leadership. Another term, or none, begins with an empty desk. Returns the sessions
    /// that are over with it.
    pub(super) fn enter(&mut self, term: Option<u64>, now: Duration) -> Vec<SessionId> {
        if self.term == term {
            return Vec::new();
        }
        let ended = self.sessions.keys().copied().collect();
        let next = self.next;
        *self = Desk {
            term,
            since: now,
            next,
            ..Desk::default()
        };
        ended
    }

    /// The term this desk serves.
    pub fn term(&self) -> Option<u64> {
        self.term
    }

    /// Admits a session and returns the older ones of the same worker, which it replaces.
    pub(super) fn connect(
        &mut self,
        connected: Connected,
        now: Duration,
    ) -> (SessionId, Vec<SessionId>) {
        let worker = connected.session.worker.clone();
        let older: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, other)| other.session.worker == worker)
            .map(|(id, _)| *id)
            .collect();
        for id in &older {
            self.disconnect(*id);
        }
        self.next += 1;
        self.heard
            .insert((worker, connected.session.incarnation), now);
        self.sessions.insert(self.next, connected);
        (self.next, older)
    }

    /// Forgets a session and what it observed. Its leases live on until their time is over.
    pub(super) fn disconnect(&mut self, id: SessionId) {
        self.sessions.remove(&id);
        self.seen.retain(|_, seen| seen.by != id);
    }

    /// Notes that a session's worker is alive. False for a session that is over.
    pub(super) fn hear(&mut self, id: SessionId, now: Duration) -> bool {
        let Some(connected) = self.sessions.get(&id) else {
            return false;
        };
        let key = (
            connected.session.worker.clone(),
            connected.session.incarnation,
        );
        self.heard.insert(key, now);
        true
    }

    pub(super) fn session_mut(&mut self, id: SessionId) -> Option<&mut Connected> {
        self.sessions.get_mut(&id)
    }

    /// Keeps what a session's provider shows.
    pub(super) fn observe(&mut self, id: SessionId, fleet: FleetName, observation: Observation) {
        if self.sessions.contains_key(&id) {
            self.seen.insert(
                fleet,
                Seen {
                    by: id,
                    observation,
                },
            );
        }
    }

    /// How long a start of a worker has been silent, measured within this term only.
    pub fn silence(&self, worker: &WorkerName, incarnation: u64, now: Duration) -> Duration {
        let heard = self.heard.get(&(worker.clone(), incarnation)).copied();
        now.saturating_sub(heard.unwrap_or(self.since))
    }

    /// Sessions whose workers were silent for so long.
    pub(super) fn silent(&self, now: Duration, limit: Duration) -> Vec<SessionId> {
        let silence = |of: &Session| self.silence(&of.worker, of.incarnation, now);
        self.sessions
            .iter()
            .filter(|(_, connected)| silence(&connected.session) >= limit)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Connected workers.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Connected)> {
        self.sessions.iter().map(|(id, connected)| (*id, connected))
    }

    pub(super) fn sessions_mut(&mut self) -> impl Iterator<Item = (SessionId, &mut Connected)> {
        self.sessions
            .iter_mut()
            .map(|(id, connected)| (*id, connected))
    }

    /// What the scheduler sees.
    pub fn schedule_sessions(&self) -> Vec<Session> {
        self.sessions
            .values()
            .map(|connected| connected.session.clone())
            .collect()
    }

    /// What a provider shows of a fleet.
    pub fn observation(&self, fleet: &FleetName) -> Option<&Observation> {
        self.seen.get(fleet).map(|seen| &seen.observation)
    }

    /// What the reconciler last said about a fleet.
    pub fn note(&self, fleet: &FleetName) -> Option<String> {
        self.notes.get(fleet).cloned()
    }

    pub(super) fn set_note(&mut self, fleet: &FleetName, note: Option<String>) {
        match note {
            Some(note) => self.notes.insert(fleet.clone(), note),
            None => self.notes.remove(fleet),
        };
    }
}
