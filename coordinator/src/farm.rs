//! One way to write and to read, on any member.
//!
//! A write goes to the leader, wherever it is: proposed here when this member leads, else
//! carried to the leader over the peer service. A write whose outcome is unknown is tried
//! again only when its request id makes that safe. A read waits until this member shows
//! everything that was acknowledged before; [`Farm::view`] is the same without waiting.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oast_daemon::clock::{SharedClock, timeout};
use oast_model::ids::Seq;
use oast_model::ledger::{Answer, Command, Ledger, Rejected, Request};
use oast_model::principal::Principal;
use oast_model::time::Timestamp;
use oast_proto::peer::v1::peer_client::PeerClient;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::consensus::handle::{Handle, Published};
use crate::consensus::ledger::{LedgerMachine, LedgerView};
use crate::consensus::replica::{ProposeError, ReadError, Status};
use crate::consensus::transport::grpc::{propose_outcome, propose_request};

/// How long a write is tried before the caller is told that there is no leader.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a linearizable read may wait.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Pause before a write looks for the leader again.
const LEADER_PAUSE: Duration = Duration::from_millis(50);
/// How long the leader may take to answer one forwarded write.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);

/// The state at one position.
#[derive(Clone, Debug)]
pub struct FarmView(Arc<Published<LedgerView>>);

impl Deref for FarmView {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.0.view
    }
}

impl FarmView {
    /// The newest time that the ledger has seen.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.mark.now_ms)
    }
}

/// A write that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The command's number.
    pub seq: Seq,
    /// The ledger's answer.
    pub answer: Answer,
}

/// A write that was not applied, or whose outcome is not known.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The ledger refused it. Nothing was changed.
    #[error(transparent)]
    Rejected(Rejected),
    /// Nobody leads within the deadline.
    #[error(
        "no leader was found within {WRITE_DEADLINE:?}: a majority of the members must run and reach each other"
    )]
    NoLeader,
    /// The outcome is unknown and the request has no id to ask again with.
    #[error(
        "the leader changed while this was decided: look whether it happened, or send a request id"
    )]
    Unknown,
    /// Too much waits already.
    #[error("too many commands wait for a majority: try again later")]
    Overloaded,
    /// It can never be accepted.
    #[error("{0}")]
    TooLarge(String),
}

/// A member's access to the farm. Cheap to clone.
#[derive(Clone)]
pub struct Farm {
    handle: Handle<LedgerMachine>,
    /// Peer addresses by member id.
    peers: Arc<BTreeMap<u64, String>>,
    channels: Arc<Mutex<BTreeMap<u64, Channel>>>,
    token: Arc<str>,
    clock: SharedClock,
}

impl std::fmt::Debug for Farm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Farm")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl Farm {
    /// `peers`: host:port of every member by id; `token`: what members show each other.
    pub fn new(
        handle: Handle<LedgerMachine>,
        peers: BTreeMap<u64, String>,
        token: &str,
        clock: SharedClock,
    ) -> Farm {
        Farm {
            handle,
            peers: Arc::new(peers),
            channels: Arc::default(),
            token: token.into(),
            clock,
        }
    }

    /// The member of the group.
    pub fn handle(&self) -> &Handle<LedgerMachine> {
        &self.handle
    }

    /// Time.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The newest state here, without asking anybody.
    pub fn view(&self) -> FarmView {
        FarmView(self.handle.view())
    }

    /// The state with everything that was acknowledged before the call.
    pub async fn read(&self) -> Result<FarmView, ReadError> {
        match timeout(&*self.clock, READ_DEADLINE, self.handle.read_barrier()).await {
            Ok(done) => done.map(|_| self.view()),
            Err(_) => Err(ReadError::Unavailable),
        }
    }

    /// Changes whenever the view does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.handle.changes()
    }

    /// What this member knows about itself and the group.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.handle.status()
    }

    /// The term in which this member leads, if it does.
    pub fn leading(&self) -> Option<u64> {
        self.handle.leading()
    }

    /// Where the leader answers, if one is known.
    pub fn leader_address(&self) -> Option<String> {
        let leader = self.status().borrow().leader?;
        self.peers.get(&leader).cloned()
    }

    /// A connection to the member that leads, if one is known.
    pub fn leader_channel(&self) -> Option<Channel> {
        let leader = self.status().borrow().leader?;
        self.channel(leader)
    }

    /// Addresses of all members by id.
    pub fn peers(&self) -> &BTreeMap<u64, String> {
        &self.peers
    }

    /// Writes as the leader itself. Refused on a member that does not lead.
    pub async fn lead(&self, command: Command) -> Result<Written, WriteError> {
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command,
        };
        match self.handle.propose(&request).await {
            Ok(applied) => written(applied.answer.seq, applied.answer.result),
            Err(err) => Err(give_up(err)),
        }
    }

    /// Writes for somebody, through whichever member leads.
    pub async fn write(&self, request: &Request) -> Result<Written, WriteError> {
        let attempts = self.write_until_known(request);
        timeout(&*self.clock, WRITE_DEADLINE, attempts)
            .await
            .unwrap_or(Err(WriteError::NoLeader))
    }

    async fn write_until_known(&self, request: &Request) -> Result<Written, WriteError> {
        loop {
            let outcome = if self.leading().is_some() {
                self.handle
                    .propose(request)
                    .await
                    .map(|applied| written(applied.answer.seq, applied.answer.result))
            } else {
                self.forward(request).await
            };
            match outcome {
                Ok(done) => return done,
                Err(ProposeError::NotLeader { .. }) => {}
                Err(ProposeError::Unknown | ProposeError::Stopped)
                    if request.request_id.is_some() => {}
                Err(err) => return Err(give_up(err)),
            }
            self.clock.sleep(LEADER_PAUSE).await;
        }
    }

    async fn forward(
        &self,
        request: &Request,
    ) -> Result<Result<Written, WriteError>, ProposeError> {
        let leader = self.status().borrow().leader;
        let channel = leader.and_then(|leader| self.channel(leader));
        let Some(channel) = channel else {
            return Err(ProposeError::NotLeader { leader });
        };
        let letter = self.handle.letterhead(leader.unwrap_or_default());
        let mut call = tonic::Request::new(propose_request::<LedgerMachine>(letter, request));
        call.set_timeout(FORWARD_DEADLINE);
        if let Ok(value) = format!("Bearer {}", self.token).parse() {
            call.metadata_mut().insert("authorization", value);
        }
        match PeerClient::new(channel).propose(call).await {
            Ok(response) => {
                let applied = propose_outcome::<LedgerMachine>(response.into_inner())?;
                Ok(written(applied.answer.seq, applied.answer.result))
            }
            Err(status) => match status.code() {
                // Refused before it was proposed.
                tonic::Code::FailedPrecondition => Err(ProposeError::NotLeader { leader: None }),
                tonic::Code::ResourceExhausted => Err(ProposeError::Overloaded),
                _ => Err(ProposeError::Unknown),
            },
        }
    }

    fn channel(&self, member: u64) -> Option<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&member) {
            return Some(channel.clone());
        }
        let address = self.peers.get(&member)?;
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .ok()?
            .connect_timeout(FORWARD_DEADLINE)
            .connect_lazy();
        channels.insert(member, channel.clone());
        Some(channel)
    }
}

fn written(seq: Seq, result: Result<Answer, Rejected>) -> Result<Written, WriteError> {
    result
        .map(|answer| Written { seq, answer })
        .map_err(WriteError::Rejected)
}

fn give_up(err: ProposeError) -> WriteError {
    match err {
        ProposeError::NotLeader { .. } => WriteError::NoLeader,
        ProposeError::Unknown | ProposeError::Stopped => WriteError::Unknown,
        ProposeError::Overloaded | ProposeError::ChangePending => WriteError::Overloaded,
        err @ ProposeError::TooLarge { .. } => WriteError::TooLarge(err.to_string()),
    }
}
