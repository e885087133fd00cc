//! Many writes of one caller under way at once.
//!
//! ```text
//! push -> queued -> flush -> leader's log (here, or carried there) -> next: results
//!            ^                                   |
//!            '------ pause, drawn anew <---------' no leader, overload, outcome unknown
//! ```
//!
//! What is flushed together shares log entries, and so an fsync. Every write has a request id, so
//! one whose outcome is unknown is simply proposed again. Nothing is spawned and nothing waits but
//! [`Writes::next`], which is cancel-safe. The caller bounds how much it pushes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use oast_daemon::retry::{Policy, RandomJitter, Retries};
use oast_model::ledger::{Command, Request};
use oast_model::principal::Principal;
use oast_proto::peer::v1::peer_client::PeerClient;
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::{Farm, WRITE_DEADLINE, WriteError, Written, give_up, not_carried, too_late, written};
use crate::consensus::handle::{Handle, Outcome};
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::{EncodedCommand, Machine as _};
use crate::consensus::replica::ProposeError;
use crate::consensus::transport::grpc::{propose_many_request, propose_outcome};

/// Commands carried to the leader in one call.
const CARRY_MAX: usize = 256;
/// Bytes carried in one call, unless a single command has more.
const CARRY_BYTES: usize = 1 << 20;
/// Results taken at once.
const RESULTS_MAX: usize = 1024;
/// How what was not decided is proposed again. Each write has its own end, [`WRITE_DEADLINE`].
const AGAIN: Policy = Policy {
    first: Duration::from_millis(20),
    most: Duration::from_millis(250),
    within: Duration::MAX,
};

struct Pending<T> {
    tag: T,
    command: EncodedCommand,
    since: Duration,
}

/// Writes under way; `T` is the caller's name for each.
pub struct Writes<T> {
    farm: Farm,
    next: u64,
    pending: BTreeMap<u64, Pending<T>>,
    bytes: usize,
    queued: Vec<u64>,
    again: Vec<u64>,
    again_at: Option<Duration>,
    retries: Retries,
    sender: mpsc::Sender<Outcome<LedgerMachine>>,
    receiver: mpsc::Receiver<Outcome<LedgerMachine>>,
    carried: FuturesUnordered<BoxFuture<'static, Vec<Outcome<LedgerMachine>>>>,
}

impl<T> std::fmt::Debug for Writes<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes")
            .field("pending", &self.pending.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<T> Writes<T> {
    /// Nothing under way, at most `most` later.
    ///
    /// # Panics
    /// With `most` zero.
    pub fn new(farm: Farm, most: usize) -> Writes<T> {
        // Each write has at most one outcome in it: it is proposed again after that was taken out.
        let (sender, receiver) = mpsc::channel(most);
        Writes {
            farm,
            next: 0,
            pending: BTreeMap::new(),
            bytes: 0,
            queued: Vec::new(),
            again: Vec::new(),
            again_at: None,
            retries: AGAIN.begin(Duration::ZERO),
            sender,
            receiver,
            carried: FuturesUnordered::new(),
        }
    }

    /// Writes under way.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes of commands under way.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Something is proposed again after a pause: more would only wait behind it.
    pub fn holds(&self) -> bool {
        !self.again.is_empty()
    }

    /// Takes a write along with the next [`Writes::flush`].
    ///
    /// # Panics
    /// Without a request id: it could not be proposed twice. With more under way than was said.
    pub fn push(&mut self, tag: T, request: &Request) {
        assert!(request.request_id.is_some(), "a write among many has an id");
        assert!(
            self.pending.len() < self.sender.max_capacity(),
            "the caller bounds what is under way"
        );
        let command = LedgerMachine::encode(request);
        self.bytes += command.body.len();
        self.next += 1;
        let since = self.farm.clock.monotonic();
        let pending = Pending {
            tag,
            command,
            since,
        };
        self.pending.insert(self.next, pending);
        self.queued.push(self.next);
    }

    /// Proposes what was pushed.
    pub fn flush(&mut self) {
        if self.queued.is_empty() {
            return;
        }
        let queued = std::mem::take(&mut self.queued);
        if self.farm.leading().is_some() {
            let commands = self.commands(&queued);
            self.farm.handle.propose_many(commands, &self.sender);
            return;
        }
        let Ok((leader, channel)) = self.farm.leader_link() else {
            self.again.extend(queued);
            self.schedule();
            return;
        };
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (number, command) in self.commands(&queued) {
            let size = command.body.len();
            if batch.len() >= CARRY_MAX || (bytes + size > CARRY_BYTES && !batch.is_empty()) {
                self.carry(leader, channel.clone(), std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += size;
            batch.push((number, command));
        }
        self.carry(leader, channel, batch);
    }

    fn commands(&self, numbers: &[u64]) -> Vec<(u64, EncodedCommand)> {
        let found = |number: &u64| Some((*number, self.pending.get(number)?.command.clone()));
        numbers.iter().filter_map(found).collect()
    }

    fn carry(&mut self, leader: u64, channel: Channel, batch: Vec<(u64, EncodedCommand)>) {
        let farm = self.farm.clone();
        self.carried
            .push(Box::pin(carry(farm, leader, channel, batch)));
    }

    /// Waits for results, at least one while anything is under way.
    pub async fn next(&mut self) -> Vec<(T, Result<Written, WriteError>)> {
        loop {
            let mut outcomes = Vec::new();
            let clock = self.farm.clock.clone();
            let wake = self.again_at;
            let woken = async {
                match wake {
                    Some(at) => clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Biased: results make room, and there may be many.
                biased;
                _ = self.receiver.recv_many(&mut outcomes, RESULTS_MAX) => {}
                Some(found) = self.carried.next(), if !self.carried.is_empty() => outcomes = found,
                () = woken => {
                    self.again_at = None;
                    self.queued.append(&mut self.again);
                    self.flush();
                    continue;
                }
            }
            let done = self.settle(outcomes);
            if !done.is_empty() {
                return done;
            }
        }
    }

    fn settle(
        &mut self,
        outcomes: Vec<Outcome<LedgerMachine>>,
    ) -> Vec<(T, Result<Written, WriteError>)> {
        let now = self.farm.clock.monotonic();
        let mut done = Vec::with_capacity(outcomes.len());
        for (number, outcome) in outcomes {
            let Some(pending) = self.pending.get(&number) else {
                continue;
            };
            let late = now.saturating_sub(pending.since) >= WRITE_DEADLINE;
            let result = match outcome {
                Ok(applied) => {
                    self.retries.ease();
                    written(applied.answer.seq, applied.answer.result)
                }
                Err(err @ ProposeError::TooLarge { .. }) => Err(give_up(err)),
                Err(err) if late => Err(too_late(err, WRITE_DEADLINE)),
                Err(_) => {
                    self.again.push(number);
                    continue;
                }
            };
            if let Some(pending) = self.pending.remove(&number) {
                self.bytes -= pending.command.body.len();
                done.push((pending.tag, result));
            }
        }
        self.schedule();
        done
    }

    fn schedule(&mut self) {
        if self.again.is_empty() || self.again_at.is_some() {
            return;
        }
        let now = self.farm.clock.monotonic();
        let pause = self.retries.pause(now, None, &RandomJitter);
        self.again_at = Some(now + pause.unwrap_or(AGAIN.most));
    }
}

/// What a leader wrote together.
#[derive(Debug)]
pub struct Led {
    /// What was not proposed at all.
    refused: Vec<(usize, WriteError)>,
    count: usize,
    outcomes: mpsc::Receiver<Outcome<LedgerMachine>>,
}

impl Led {
    pub(super) fn propose<'a>(
        handle: &Handle<LedgerMachine>,
        commands: impl IntoIterator<Item = Result<&'a Command, WriteError>>,
    ) -> Led {
        let mut refused = Vec::new();
        let mut accepted = Vec::new();
        for (place, command) in commands.into_iter().enumerate() {
            match command {
                Ok(command) => {
                    let request = Request {
                        principal: Principal::farm(),
                        request_id: None,
                        command: command.clone(),
                    };
                    accepted.push((place as u64, LedgerMachine::encode(&request)));
                }
                Err(error) => refused.push((place, error)),
            }
        }
        let count = accepted.len().max(1);
        let (sender, outcomes) = mpsc::channel(count);
        handle.propose_many(accepted, &sender);
        Led {
            refused,
            count,
            outcomes,
        }
    }

    /// Waits for what became of some, by their places; none when all have been told.
    pub async fn next(&mut self) -> Vec<(usize, Result<Written, WriteError>)> {
        if !self.refused.is_empty() {
            let refused = self.refused.drain(..);
            return refused.map(|(place, error)| (place, Err(error))).collect();
        }
        let mut outcomes = Vec::new();
        self.outcomes.recv_many(&mut outcomes, self.count).await;
        let told = |(place, outcome): Outcome<LedgerMachine>| {
            let result = match outcome {
                Ok(applied) => written(applied.answer.seq, applied.answer.result),
                Err(error) => Err(give_up(error)),
            };
            (usize::try_from(place).unwrap_or(usize::MAX), result)
        };
        outcomes.into_iter().map(told).collect()
    }
}

/// Brings commands to the leader; each has an outcome, whatever becomes of the call.
async fn carry(
    farm: Farm,
    leader: u64,
    channel: Channel,
    batch: Vec<(u64, EncodedCommand)>,
) -> Vec<Outcome<LedgerMachine>> {
    let (numbers, commands): (Vec<u64>, Vec<EncodedCommand>) = batch.into_iter().unzip();
    let request = propose_many_request(farm.handle.letterhead(leader), commands);
    let call = farm.to_peer(request, WRITE_DEADLINE);
    let mut outcomes = match PeerClient::new(channel).propose_many(call).await {
        Ok(response) => response.into_inner().outcomes.into_iter(),
        Err(status) => {
            let error = not_carried(&status);
            return numbers.into_iter().map(|n| (n, Err(error))).collect();
        }
    };
    let outcome = |number| {
        let outcome = outcomes.next().map(propose_outcome::<LedgerMachine>);
        (number, outcome.unwrap_or(Err(ProposeError::Unknown)))
    };
    numbers.into_iter().map(outcome).collect()
}
