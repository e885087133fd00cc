//! Changes of the group under way: from a question to its answer.
//!
//! ```text
//! change -> planned -> entry (index, term) -> applied -> [joint, left automatically] -> Ok
//!    |          |             |                  '- passed over by all members: PassedOver
//!    |          |             '- leadership lost, or no majority in time: Unknown
//!    '----------'- refused, or done already: said once a majority has confirmed that we lead
//! ```
//!
//! A leader that was stopped for a while does not know that the group went on without it. Where nothing
//! goes through the log, its answer would be about a group of long ago, so it is found again after a
//! read index.
//!
//! raft-rs turns a configuration change that it does not like into an empty entry and says nothing;
//! so what counts is what was applied at the index of the proposal, never that it was accepted.

use std::collections::BTreeMap;

use super::{Output, ReadError, Replica, ReplicaError, Ticket};
use crate::consensus::change::{self, Change, ChangeError, Changed, Ground, Plan};
use crate::consensus::core::Refused;
use crate::consensus::entry;
use crate::consensus::machine::Machine;
use crate::store::log::{LogPosition, LogStore};
use crate::store::state::StateRoot;

/// Ticks for which a member that was introduced is not introduced again.
const INTRODUCE_TICKS: u64 = 20;

/// A change whose outcome somebody waits for.
struct Pending {
    term: u64,
    ticket: Ticket,
    request_id: String,
    changed: Changed,
    /// Tick after which it is given up.
    until: u64,
    /// It was applied; the old voters are still to be let go.
    applied: bool,
}

/// A question whose answer no entry will confirm.
struct Asked {
    request_id: String,
    change: Change,
}

/// What a question led to.
enum Begun {
    /// It goes through the log.
    Waits,
    /// This, whoever leads.
    Sure(Result<Changed, ChangeError>),
    /// This, if we still lead.
    Unsure(Result<Changed, ChangeError>),
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Changes {
    pending: BTreeMap<u64, Pending>,
    asked: BTreeMap<Ticket, Asked>,
    /// Members that were introduced to the log, and until when they are not again.
    introduced: BTreeMap<u64, u64>,
}

fn refused(refused: Refused) -> ChangeError {
    match refused {
        Refused::NotLeader { leader } => ChangeError::NotLeader { leader },
        Refused::Overloaded => ChangeError::Overloaded,
        Refused::ChangePending => ChangeError::Pending,
    }
}

impl<M: Machine, L: LogStore, R: StateRoot> Replica<M, L, R> {
    /// Changes the group. The ticket, which no read may have too, gets exactly one answer, when
    /// the change is in force. A repeated `request_id` gets the answer of the first.
    pub fn change(&mut self, ticket: Ticket, request_id: &str, change: &Change) {
        match self.begin_change(ticket, request_id, change) {
            Begun::Waits => {}
            Begun::Sure(answer) => self.changed(ticket, answer),
            Begun::Unsure(_) => {
                let asked = Asked {
                    request_id: request_id.to_owned(),
                    change: change.clone(),
                };
                self.changes.asked.insert(ticket, asked);
                self.read(ticket);
            }
        }
    }

    /// Takes those of the reads' answers that are for questions about the group.
    pub(super) fn confirm_changes(&mut self) {
        let asked = &self.changes.asked;
        if asked.is_empty() {
            return;
        }
        let ours = |output: &mut Output<M>| matches!(output, Output::ReadReady(ticket, _) if asked.contains_key(ticket));
        let confirmed: Vec<_> = self.side.outputs.extract_if(.., ours).collect();
        for output in confirmed {
            if let Output::ReadReady(ticket, result) = output
                && let Some(asked) = self.changes.asked.remove(&ticket)
            {
                self.confirmed(ticket, &asked, result);
            }
        }
    }

    fn confirmed(&mut self, ticket: Ticket, asked: &Asked, result: Result<u64, ReadError>) {
        let answer = match result {
            Err(ReadError::Overloaded) => Err(ChangeError::Overloaded),
            Err(ReadError::Stopped) => Err(ChangeError::Stopped),
            // Nobody confirmed it, least of all a majority.
            Err(ReadError::Unavailable) => Err(ChangeError::NotLeader { leader: None }),
            Ok(_) => match self.begin_change(ticket, &asked.request_id, &asked.change) {
                Begun::Waits => return,
                Begun::Sure(answer) | Begun::Unsure(answer) => answer,
            },
        };
        self.changed(ticket, answer);
    }

    fn changed(&mut self, ticket: Ticket, answer: Result<Changed, ChangeError>) {
        self.side.outputs.push(Output::Changed(ticket, answer));
    }

    /// What the leader knows; `None` on other members.
    pub(super) fn ground(&self) -> Option<Ground<'_>> {
        let meta = self.core.meta()?;
        if !self.core.leads() {
            return None;
        }
        let matched = self.core.peers().into_iter();
        Some(Ground {
            us: meta.identity.member,
            members: &meta.members,
            conf: &meta.conf_state,
            answered: self.answered(),
            matched: matched
                .filter(|peer| !peer.snapshot)
                .map(|peer| (peer.member, peer.matched))
                .collect(),
            skewed: self.skewed(),
            last: self.core.last_index(),
            promote_lag: self.options.promote_lag,
            whole: self.snapshot.kept,
        })
    }

    fn begin_change(&mut self, ticket: Ticket, request_id: &str, change: &Change) -> Begun {
        if self.core.leads() && change.takes_out() {
            self.keep_history();
        }
        let nobody = ChangeError::NotLeader {
            leader: self.core.leader(),
        };
        let Some(ground) = self.ground() else {
            return Begun::Sure(Err(nobody));
        };
        // Before that the configuration in force may not be the newest one.
        if !self.core.leads_with_full_state() {
            return Begun::Sure(Err(ChangeError::NotLeader { leader: None }));
        }
        let (position, changed) = match change::plan(change, request_id, &ground) {
            Err(refusal) => return Begun::Unsure(Err(refusal)),
            Ok(Plan::Done(done)) => return Begun::Unsure(Ok(done)),
            Ok(Plan::HandOver(to)) => {
                self.core.transfer(to);
                return Begun::Sure(Ok(Changed { members: vec![to] }));
            }
            Ok(Plan::HandOverFirst(to)) => {
                self.core.transfer(to);
                return Begun::Sure(Err(ChangeError::HandingOver { to }));
            }
            Ok(Plan::Configure(conf, changed)) => (self.core.propose_change(conf), changed),
            Ok(Plan::Note(context, changed)) => (self.propose_note(context), changed),
        };
        let position = match position {
            Ok(position) => position,
            Err(error) => return Begun::Sure(Err(refused(error))),
        };
        let pending = Pending {
            term: position.term,
            ticket,
            request_id: request_id.to_owned(),
            changed,
            until: self.ticks + self.options.change_timeout_ticks,
            applied: false,
        };
        self.changes.pending.insert(position.index, pending);
        Begun::Waits
    }

    /// Puts an entry without commands into the log.
    pub(super) fn propose_note(&mut self, context: Vec<u8>) -> Result<LogPosition, Refused> {
        let now_ms = self.now_ms(self.time);
        self.core.propose_note(entry::note(now_ms), context)
    }

    /// A member told its creation stamp and its address. The leader puts what is new about it
    /// into the log.
    pub fn introduce(&mut self, member: u64, stamp: u64, address: &str) {
        let Some(meta) = self.core.meta() else { return };
        let Some(record) = meta.members.known.get(&member) else {
            return;
        };
        let moved = !address.is_empty() && address != record.address;
        if !self.core.leads_with_full_state() || (record.stamp != 0 && !moved) {
            return;
        }
        let wait = self.changes.introduced.get(&member).copied();
        if wait.is_some_and(|until| self.ticks < until) {
            return;
        }
        let bind = Change::Bind {
            member,
            stamp,
            address: address.to_owned(),
        };
        let planned = self.ground().map(|ground| change::plan(&bind, "", &ground));
        if let Some(Ok(Plan::Note(context, _))) = planned
            && self.propose_note(context).is_ok()
        {
            let until = self.ticks + INTRODUCE_TICKS;
            self.changes.introduced.insert(member, until);
        }
    }

    pub(super) fn tick_changes(&mut self) {
        let now = self.ticks;
        let late: Vec<u64> = self
            .changes
            .pending
            .iter()
            .filter(|(_, pending)| pending.until < now)
            .map(|(index, _)| *index)
            .collect();
        for index in late {
            if let Some(pending) = self.changes.pending.remove(&index) {
                self.changed(pending.ticket, Err(ChangeError::Unknown));
            }
        }
        self.changes.introduced.retain(|_, until| *until > now);
        let (us, stamp) = match self.core.meta() {
            Some(meta) => (meta.identity.member, meta.identity.stamp),
            None => return,
        };
        let address = self.address.clone();
        self.introduce(us, stamp, &address);
    }

    /// Answers whose changes came into force, and stops if we were removed.
    pub(super) fn settle_changes(&mut self) -> Result<(), ReplicaError> {
        for (position, outcome) in std::mem::take(&mut self.side.settled) {
            self.side.outputs.push(Output::MembersChanged);
            let Some(mut pending) = self.changes.pending.remove(&position.index) else {
                continue;
            };
            if pending.term != position.term {
                self.changed(pending.ticket, Err(ChangeError::NotLeader { leader: None }));
                continue;
            }
            match outcome {
                Ok(()) => {
                    pending.applied = true;
                    self.changes.pending.insert(position.index, pending);
                }
                Err(problem) => {
                    let settled = self
                        .core
                        .meta()
                        .and_then(|meta| meta.members.settled(&pending.request_id).cloned());
                    let answer = match settled {
                        // The same call came into force through another leader.
                        Some(settled) => Ok(Changed {
                            members: settled.members,
                        }),
                        None => Err(ChangeError::PassedOver { problem }),
                    };
                    self.changed(pending.ticket, answer);
                }
            }
        }
        if !self.core.joint() {
            let done: Vec<u64> = self
                .changes
                .pending
                .iter()
                .filter(|(_, pending)| pending.applied)
                .map(|(index, _)| *index)
                .collect();
            for index in done {
                if let Some(pending) = self.changes.pending.remove(&index) {
                    self.changed(pending.ticket, Ok(pending.changed));
                }
            }
        }
        match self.core.meta() {
            Some(meta) if meta.members.retired(meta.identity.member) && !self.core.joint() => {
                Err(ReplicaError::Removed {
                    member: meta.identity.member,
                })
            }
            _ => Ok(()),
        }
    }

    /// Leadership is lost: nobody here can tell what becomes of them.
    pub(super) fn forget_changes(&mut self) {
        for (_, pending) in std::mem::take(&mut self.changes.pending) {
            self.changed(pending.ticket, Err(ChangeError::Unknown));
        }
    }

    /// Whether a change of the group is under way.
    pub(super) fn changing(&self) -> bool {
        self.core.change_pending()
    }
}
