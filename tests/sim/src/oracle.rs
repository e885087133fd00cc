//! The committed log, applied once more beside the members: what they are compared with.
//!
//! The oracle is fed by whichever member applies an entry first. It knows every command with its
//! answer, in order, which is what the checkers look at.

use std::collections::VecDeque;

use oast_coordinator::consensus::entry;
use oast_coordinator::consensus::ledger::Archived;
use oast_coordinator::consensus::machine::{Changes, Machine as _, Position};
use oast_coordinator::store::log::LogStore as _;
use oast_model::codec;
use oast_model::ledger::{Applied, Ledger, Pruned, RUN, Request, RolloutRecord, RunRecord};
use raft::eraftpb::EntryType;

use crate::checks::digests::Point;
use crate::machine::{SimMachine, SimView};
use crate::member::Node;
use crate::world::World;

/// Finished runs that clients may ask for once more.
const FINISHED: usize = 12;
/// Records that are pruned at once.
const PRUNED: usize = 2;

/// The reference.
#[derive(Debug)]
pub struct Oracle {
    machine: SimMachine,
    view: SimView,
    index: u64,
    now_ms: u64,
    /// Newest finished runs, as the history has them.
    finished: VecDeque<RunRecord>,
    /// Records of the history that nobody has pruned yet, and how many records there were.
    kept: VecDeque<Pruned>,
    records: u64,
}

impl Default for Oracle {
    fn default() -> Self {
        let machine = SimMachine::empty();
        Oracle {
            view: machine.view(),
            machine,
            // Where every log begins.
            index: 1,
            now_ms: 0,
            finished: VecDeque::new(),
            kept: VecDeque::new(),
            records: 0,
        }
    }
}

impl Oracle {
    /// The state after everything that anybody has applied.
    pub fn ledger(&self) -> &Ledger {
        &self.view
    }

    /// Runs that ended lately.
    pub fn finished(&self) -> impl Iterator<Item = &RunRecord> {
        self.finished.iter()
    }

    /// The oldest records of the history: some that nothing refers to any more, or one that
    /// something may.
    pub fn prunable(&self) -> Vec<Pruned> {
        let free = |record: &&Pruned| self.view.kept_by(record.kind, record.id).is_none();
        let found: Vec<Pruned> = self
            .kept
            .iter()
            .filter(free)
            .take(PRUNED)
            .cloned()
            .collect();
        match found.len() < PRUNED {
            true => self.kept.iter().take(1).cloned().collect(),
            false => found,
        }
    }

    /// Takes over what went to the history with an entry.
    fn archive(&mut self, changes: Changes) {
        for number in changes.pruned {
            self.kept.retain(|record| record.number != number);
        }
        for bytes in changes.history {
            self.records += 1;
            let Ok(record) = codec::decode::<Archived>(&bytes) else {
                continue;
            };
            let team = match record.kind {
                RUN => codec::decode::<RunRecord>(&record.bytes).ok().map(|run| {
                    let team = run.run.team.clone();
                    self.finished.push_back(run);
                    team
                }),
                _ => codec::decode::<RolloutRecord>(&record.bytes)
                    .ok()
                    .and_then(|rollout| {
                        let fleet = self.view.fleets().get(&rollout.rollout.fleet)?;
                        Some(fleet.spec.team.clone())
                    }),
            };
            if self.finished.len() > FINISHED {
                self.finished.pop_front();
            }
            if let Some(team) = team {
                self.kept.push_back(Pruned {
                    number: self.records,
                    kind: record.kind,
                    id: record.id,
                    team,
                });
            }
        }
    }

    /// How many records the history has.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The newest entry that anybody has applied.
    pub fn index(&self) -> u64 {
        self.index
    }
}

impl World {
    /// Takes over what a member has applied first, and compares what it has applied.
    pub fn feed(&mut self, id: u64, node: &Node) {
        let mark = node.replica.mark();
        let applied = mark.position.index;
        if applied > self.oracle.index {
            let log = node.replica.log();
            let entries = log.entries(self.oracle.index + 1, applied + 1, u64::MAX);
            let entries = entries.unwrap_or_default();
            let first = entries.first().map(|entry| entry.index);
            if first != Some(self.oracle.index + 1) {
                self.violate(format!(
                    "member {id} has applied up to {applied}, but nobody has applied {}",
                    self.oracle.index + 1
                ));
                return;
            }
            for entry in entries {
                self.oracle.index = entry.index;
                if entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty() {
                    self.interpret(entry.index, entry.term, entry.data.clone());
                }
                // This brings the digest up to date, too.
                let changes = self.oracle.machine.take_changes();
                self.oracle.archive(changes);
                self.oracle.view = self.oracle.machine.view();
                let point = Point {
                    term: entry.term,
                    now_ms: self.oracle.now_ms,
                    digest: self.oracle.view.exact(),
                };
                self.checks.digests.reached(entry.index, point);
                let wrong = self.checks.leases.compare(&self.oracle.view);
                self.judge(wrong);
                let wrong = self.checks.quotas.compare(&self.oracle.view);
                self.judge(wrong);
            }
            self.trace.note(self.now, 7, applied);
        }
        let point = Point {
            term: mark.position.term,
            now_ms: mark.now_ms,
            digest: node.replica.view().exact(),
        };
        let wrong = self.checks.digests.compare(id, applied, &point);
        self.judge(wrong);
    }

    fn interpret(&mut self, index: u64, term: u64, data: bytes::Bytes) {
        let Ok(envelope) = entry::decode(index, data) else {
            self.violate(format!("entry {index} cannot be read"));
            return;
        };
        self.oracle.now_ms = self.oracle.now_ms.max(envelope.now_ms);
        for (ordinal, logged) in (0..).zip(envelope.commands) {
            let request = match SimMachine::decode(logged.kind, &logged.body) {
                Ok(request) => request,
                Err(error) => {
                    self.violate(format!("entry {index}: {error}"));
                    return;
                }
            };
            let at = Position {
                index,
                term,
                ordinal,
                now_ms: self.oracle.now_ms,
            };
            let applied = self.oracle.machine.apply(at, request.clone());
            self.look_at(&request, &applied);
        }
    }

    fn look_at(&mut self, request: &Request, applied: &Applied) {
        let now = self.now;
        self.coverage.transition(&request.command, &applied.result);
        if self.trace.reads() {
            self.trace.say(
                now,
                format_args!(
                    "{} {} -> {}{}",
                    applied.seq,
                    crate::coverage::command_name(&request.command),
                    crate::coverage::answer_name(&applied.result),
                    crate::checks::detail(request, applied),
                ),
            );
        }
        let wrong = self.checks.leases.applied(now, request, applied);
        self.judge(wrong);
        let wrong = self.checks.steps.applied(request, applied);
        self.judge(wrong);
        let wrong = self.checks.submissions.applied(request, applied);
        self.judge(wrong);
        if matches!(
            (&request.command, &applied.result),
            (oast_model::ledger::Command::ExpireLease { .. }, Ok(_))
        ) {
            self.coverage.fault("lease expired");
        }
    }
}
