//! A worker's reports on their way into the log.
//!
//! ```text
//! push ──> waiting ──propose──> on their way ──settle──> acknowledgements
//!            '─ gather while others are on their way, then go together
//! ```
//!
//! The log has the reports of a session in the order in which the worker made them, which is why
//! only one group of them is on its way: what is refused is refused with all that follows it in the group
//! ([`Replica::propose`](crate::consensus::replica::Replica::propose)), and ends the session before
//! the next group goes.

use oast_model::bake::BakedImage;
use oast_model::codec;
use oast_model::ids::{Seq, Token};
use oast_model::ledger::{Command, Request};
use oast_model::names::WorkerName;
use oast_model::principal::Principal;
use oast_model::task::{Outcome as Ended, Output, Report};
use oast_proto::worker::v1 as wire;
use tokio::sync::mpsc;
use tonic::Status;
use tracing::warn;

use crate::consensus::handle::{Handle, Outcome};
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::Machine as _;
use crate::consensus::replica::ProposeError;
use crate::farm::WriteError;

/// Most reports that go together, and that wait meanwhile.
const GROUP_MAX: usize = 256;

/// A report that was read.
pub(super) struct Said {
    number: u64,
    token: u64,
    body: Report,
}

impl Said {
    /// Reads one as it came.
    ///
    /// # Errors
    /// It is no report of this version.
    pub(super) fn read(report: &wire::Report) -> Result<Said, Status> {
        let body = codec::decode(&report.body);
        Ok(Said {
            number: report.number,
            token: report.token,
            body: body.map_err(|err| Status::invalid_argument(err.to_string()))?,
        })
    }

    /// The lease that it speaks of.
    pub(super) fn token(&self) -> Token {
        Seq::from_u64(self.token)
    }

    /// The image that it brings.
    pub(super) fn image(&self) -> Option<&BakedImage> {
        match &self.body {
            Report::Finished(Ended::Succeeded(output)) => match &**output {
                Output::Baked(image) => Some(image),
                _ => None,
            },
            _ => None,
        }
    }

    /// Puts another ending in its place.
    pub(super) fn end(&mut self, outcome: Ended) {
        self.body = Report::Finished(outcome);
    }
}

/// Reports of one session.
pub(super) struct Reports {
    worker: WorkerName,
    waiting: Vec<Said>,
    /// Number and lease of those on their way.
    proposed: Vec<(u64, u64)>,
    missing: usize,
    outcomes: Option<mpsc::Receiver<Outcome<LedgerMachine>>>,
}

impl Reports {
    pub(super) fn of(worker: &WorkerName) -> Reports {
        Reports {
            worker: worker.clone(),
            waiting: Vec::new(),
            proposed: Vec::new(),
            missing: 0,
            outcomes: None,
        }
    }

    /// Whether another may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < GROUP_MAX
    }

    pub(super) fn push(&mut self, report: Said) {
        self.waiting.push(report);
    }

    /// Whether everything that was pushed is in the log and acknowledged.
    pub(super) fn idle(&self) -> bool {
        self.waiting.is_empty() && !self.under_way()
    }

    /// Whether some are on their way.
    pub(super) fn under_way(&self) -> bool {
        self.outcomes.is_some()
    }

    /// Whether some are on their way or wait for those.
    pub(super) fn pending(&self) -> bool {
        self.under_way() || !self.waiting.is_empty()
    }

    /// Proposes what waits, unless others are on their way.
    pub(super) fn propose(&mut self, log: &Handle<LedgerMachine>) {
        if self.under_way() || self.waiting.is_empty() {
            return;
        }
        let mut commands = Vec::with_capacity(self.waiting.len());
        self.proposed.clear();
        for (place, report) in (0..).zip(self.waiting.drain(..)) {
            let request = Request {
                principal: Principal::worker(self.worker.as_str()),
                request_id: None,
                command: Command::Report {
                    token: Seq::from_u64(report.token),
                    report: Box::new(report.body),
                },
            };
            commands.push((place, LedgerMachine::encode(&request)));
            self.proposed.push((report.number, report.token));
        }
        self.missing = commands.len();
        let (sender, outcomes) = mpsc::channel(commands.len());
        log.propose_many(commands, &sender);
        self.outcomes = Some(outcomes);
    }

    /// Waits for some of those on their way and acknowledges them in their order. Cancel-safe.
    ///
    /// # Errors
    /// One is not in the log, or nobody knows. The session ends, and the worker repeats what was not
    /// acknowledged elsewhere.
    pub(super) async fn settle(&mut self) -> Result<Vec<wire::Ack>, Status> {
        let mut settled = Vec::new();
        if let Some(outcomes) = &mut self.outcomes {
            let count = outcomes.recv_many(&mut settled, GROUP_MAX).await;
            if count == 0 {
                return Err(unrecorded(ProposeError::Stopped));
            }
            self.missing -= count;
        }
        if self.missing == 0 {
            self.outcomes = None;
        }
        let known = |(place, outcome): Outcome<LedgerMachine>| {
            let (number, token) = self.proposed[usize::try_from(place).unwrap_or(usize::MAX)];
            let answer = outcome.map_err(unrecorded)?.answer;
            let refused = match answer.result {
                Ok(_) => None,
                Err(rejected) => {
                    let worker = &self.worker;
                    warn!(worker_id = %worker, lease_token = %Seq::from_u64(token), %rejected, "Report refused.");
                    Some(WriteError::Rejected(rejected).to_string())
                }
            };
            Ok(wire::Ack {
                number,
                seq: refused.as_ref().map_or(answer.seq.as_u64(), |_| 0),
                refused: refused.unwrap_or_default(),
            })
        };
        settled.into_iter().map(known).collect()
    }
}

fn unrecorded(error: ProposeError) -> Status {
    Status::unavailable(error.to_string())
}
