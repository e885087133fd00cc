//! One way to write and to read, on any member.
//!
//! A write goes to the leader, wherever it is: proposed here when this member leads, else
//! carried to the leader over the peer service. A write whose outcome is unknown is tried
//! again only when its request id makes that safe. A read waits until this member shows
//! everything that was acknowledged before; [`Farm::view`] is the same without waiting, and
//! [`Farm::look`] waits as little as the caller's patience with old answers allows. Many writes of
//! one caller go through [`many::Writes`].
//!
//! How old the local state may be is known exactly: everything acknowledged before the start of
//! the last read that succeeded is in it. [`Farm::keep_fresh`] reads now and then so that a member
//! nobody asks knows it too.

pub mod many;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::retry::{Policy, RandomJitter};
use oast_daemon::tls::Dialer;
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
use crate::feed::Feed;
use crate::operations::version::{self, TooNew};

/// How long a write is tried before the caller is told that there is no leader.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a linearizable read may wait.
pub const READ_DEADLINE: Duration = Duration::from_secs(5);
/// How a write looks for the leader again.
const WRITE: Policy = Policy {
    first: Duration::from_millis(50),
    most: Duration::from_millis(250),
    within: WRITE_DEADLINE,
};
/// How long a member lets its knowledge of its own age grow old.
const FRESH_PAUSE: Duration = Duration::from_millis(500);
/// How long the leader may take to answer one forwarded write.
const FORWARD_DEADLINE: Duration = Duration::from_secs(5);

/// The state at one position.
#[derive(Clone, Debug)]
pub struct FarmView(Arc<Published<LedgerView>>);

impl FarmView {
    /// The newest changes.
    pub fn feed(&self) -> &Feed {
        self.0.view.feed()
    }

    /// The newest time that the ledger has seen.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.mark.now_ms)
    }
}

impl Deref for FarmView {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.0.view
    }
}

/// How old an answer may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Patience {
    /// It shows everything that was acknowledged before the question.
    #[default]
    Linearizable,
    /// It lacks nothing that was acknowledged longer ago than this.
    Stale(Duration),
    /// Whatever this member knows.
    Any,
}

/// A state and how old it may be.
#[derive(Clone, Debug)]
pub struct Look {
    /// The state.
    pub view: FarmView,
    /// It has everything that was acknowledged longer ago than this; none for a linearizable
    /// look, and the greatest for a member that has never heard from a leader.
    pub age: Option<Duration>,
}

impl Deref for Look {
    type Target = FarmView;

    fn deref(&self) -> &FarmView {
        &self.view
    }
}

/// The state is not available as wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookError {
    /// No linearizable one.
    #[error(transparent)]
    Read(ReadError),
    /// None that is new enough.
    #[error(
        "this member has heard nothing from a leader for {}, and at most {bound:?} was asked for: ask another member or accept older answers",
        span(*age)
    )]
    Stale {
        /// How old this member's state may be; none when it was never known.
        age: Option<Duration>,
        /// What was asked for.
        bound: Duration,
    },
}

fn span(age: Option<Duration>) -> String {
    age.map_or_else(
        || "as long as it runs".to_owned(),
        |age| format!("{} ms", age.as_millis()),
    )
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
        "no leader was found within {} ms: a majority of the members must run and reach each other",
        within.as_millis()
    )]
    NoLeader {
        /// How long it was tried.
        within: Duration,
    },
    /// It was proposed, and nobody said in time what became of it. It has a request id.
    #[error(
        "not decided within {} ms, and it may be yet: the same request id again tells",
        within.as_millis()
    )]
    Late {
        /// How long it was tried.
        within: Duration,
    },
    /// The outcome is unknown and the request has no id to ask again with.
    #[error(
        "the leader changed while this was decided: look whether it happened, or send a request id"
    )]
    Unknown,
    /// Too much waits already.
    #[error("too many commands wait for a majority: try again later")]
    Overloaded,
    /// The leader's disk is full.
    #[error(
        "the leader's disk has too little room: free some, or move the member's data; reads go on"
    )]
    NoSpace,
    /// It can never be accepted.
    #[error("{0}")]
    TooLarge(String),
    /// Not every member understands it yet.
    #[error(transparent)]
    TooNew(TooNew),
}

/// A member's access to the farm. Cheap to clone.
#[derive(Clone)]
pub struct Farm {
    handle: Handle<LedgerMachine>,
    /// By address: a member may move.
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
    token: Arc<str>,
    dialer: Dialer,
    clock: SharedClock,
    /// Start of the last read that succeeded, in microseconds of monotonic time plus one; 0 for
    /// none yet.
    fresh: Arc<AtomicU64>,
}

impl std::fmt::Debug for Farm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Farm")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl Farm {
    /// `token`: what members show each other.
    pub fn new(handle: Handle<LedgerMachine>, token: &str, clock: SharedClock) -> Farm {
        Farm {
            handle,
            channels: Arc::default(),
            token: token.into(),
            dialer: Dialer::plain(),
            clock,
            fresh: Arc::default(),
        }
    }

    /// The same, which calls other members in this way.
    #[must_use]
    pub fn dialing(mut self, dialer: Dialer) -> Farm {
        self.dialer = dialer;
        self
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
        let asked = self.clock.monotonic();
        match timeout(&*self.clock, READ_DEADLINE, self.handle.read_barrier()).await {
            Ok(done) => {
                done?;
                let asked = u64::try_from(asked.as_micros()).unwrap_or(u64::MAX - 1);
                self.fresh.fetch_max(asked + 1, Ordering::Relaxed);
                Ok(self.view())
            }
            Err(_) => Err(ReadError::Unavailable),
        }
    }

    /// How old the local state may be, if a read ever succeeded.
    pub fn age(&self) -> Option<Duration> {
        let asked = self.fresh.load(Ordering::Relaxed).checked_sub(1)?;
        let now = self.clock.monotonic();
        Some(now.saturating_sub(Duration::from_micros(asked)))
    }

    /// The state as new as `patience` wants it.
    ///
    /// # Errors
    /// [`LookError`], which says how old it would be.
    pub async fn look(&self, patience: Patience) -> Result<Look, LookError> {
        let bound = match patience {
            Patience::Linearizable => {
                let view = self.read().await.map_err(LookError::Read)?;
                return Ok(Look { view, age: None });
            }
            Patience::Stale(bound) => bound,
            Patience::Any => Duration::MAX,
        };
        // The age first: the state only gets newer after it.
        let age = self.age().unwrap_or(Duration::MAX);
        if age <= bound {
            let view = self.view();
            return Ok(Look {
                view,
                age: Some(age),
            });
        }
        match timeout(&*self.clock, bound, self.read()).await {
            Ok(Ok(view)) => Ok(Look {
                view,
                age: Some(Duration::ZERO),
            }),
            _ => Err(LookError::Stale {
                age: self.age(),
                bound,
            }),
        }
    }

    /// The local state once it has the command of this number, which was acknowledged.
    ///
    /// # Errors
    /// This member is too far behind.
    pub async fn see(&self, seq: Seq) -> Result<FarmView, ReadError> {
        let mut changes = self.changes();
        let seen = async {
            loop {
                changes.mark_unchanged();
                let view = self.view();
                if view.seq() >= seq {
                    return Ok(view);
                }
                if changes.changed().await.is_err() {
                    return Err(ReadError::Stopped);
                }
            }
        };
        timeout(&*self.clock, READ_DEADLINE, seen)
            .await
            .unwrap_or(Err(ReadError::Unavailable))
    }

    /// Reads now and then until the member stops, so that [`Farm::age`] stays small while the
    /// leader can be reached.
    pub async fn keep_fresh(self) {
        loop {
            self.clock.sleep(FRESH_PAUSE).await;
            if self.age().is_none_or(|age| age >= FRESH_PAUSE)
                && matches!(self.read().await, Err(ReadError::Stopped))
            {
                return;
            }
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

    /// Where the members answer.
    pub fn addresses(&self) -> Vec<String> {
        let status = self.status();
        let status = status.borrow();
        let members = status.members.keys();
        members.filter_map(|id| address(&status, *id)).collect()
    }

    /// Where the leader answers, if one is known.
    pub fn leader_address(&self) -> Option<String> {
        let status = self.status();
        let status = status.borrow();
        address(&status, status.leader?)
    }

    /// A connection to the member that leads, if one is known.
    pub fn leader_channel(&self) -> Option<Channel> {
        let leader = self.status().borrow().leader?;
        self.channel(leader)
    }

    /// Writes as the leader itself. Refused on a member that does not lead.
    pub async fn lead(&self, command: Command) -> Result<Written, WriteError> {
        self.understood(&command)?;
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

    /// Writes many as the leader itself, together.
    pub fn lead_many<'a>(&self, commands: impl IntoIterator<Item = &'a Command>) -> many::Led {
        let checked = commands
            .into_iter()
            .map(|command| self.understood(command).map(|()| command));
        many::Led::propose(&self.handle, checked)
    }

    /// Refuses a command that some member could not apply. The version never falls, so what our
    /// view allows the leader's does too.
    fn understood(&self, command: &Command) -> Result<(), WriteError> {
        let heard = || self.handle.supported_versions();
        version::check(&self.view(), heard, command).map_err(WriteError::TooNew)
    }

    /// Writes for somebody, through whichever member leads.
    pub async fn write(&self, request: &Request) -> Result<Written, WriteError> {
        self.write_by(request, None).await
    }

    /// The same, given up at this monotonic time if that comes first.
    pub async fn write_by(
        &self,
        request: &Request,
        end: Option<Duration>,
    ) -> Result<Written, WriteError> {
        self.understood(&request.command)?;
        let mut retries = WRITE.begin(self.clock.monotonic());
        if let Some(end) = end {
            retries.not_after(end);
        }
        let within = retries.left(self.clock.monotonic());
        loop {
            let left = retries.left(self.clock.monotonic());
            let outcome = match timeout(&*self.clock, left, self.once(request, left)).await {
                Ok(outcome) => outcome,
                // Nobody decided it, but somebody still may.
                Err(_) => Err(ProposeError::Unknown),
            };
            let err = match outcome {
                Ok(done) => return done,
                Err(err) => err,
            };
            let again = match err {
                ProposeError::NotLeader { .. } => true,
                ProposeError::Unknown | ProposeError::Stopped => request.request_id.is_some(),
                _ => false,
            };
            if !again {
                return Err(give_up(err));
            }
            match retries.pause(self.clock.monotonic(), None, &RandomJitter) {
                Some(pause) => self.clock.sleep(pause).await,
                None => return Err(too_late(err, within)),
            }
        }
    }

    async fn once(
        &self,
        request: &Request,
        left: Duration,
    ) -> Result<Result<Written, WriteError>, ProposeError> {
        if self.leading().is_some() {
            let applied = self.handle.propose(request).await?;
            Ok(written(applied.answer.seq, applied.answer.result))
        } else {
            self.forward(request, left).await
        }
    }

    async fn forward(
        &self,
        request: &Request,
        left: Duration,
    ) -> Result<Result<Written, WriteError>, ProposeError> {
        let (leader, channel) = self.leader_link()?;
        let letter = self.handle.letterhead(leader);
        let call = self.to_peer(propose_request::<LedgerMachine>(letter, request), left);
        match PeerClient::new(channel).propose(call).await {
            Ok(response) => {
                let applied = propose_outcome::<LedgerMachine>(response.into_inner())?;
                Ok(written(applied.answer.seq, applied.answer.result))
            }
            Err(status) => Err(not_carried(&status)),
        }
    }

    /// Who leads and the way there. A forwarded command is never forwarded again: the callee
    /// proposes it or says that it does not lead.
    fn leader_link(&self) -> Result<(u64, Channel), ProposeError> {
        let leader = self.status().borrow().leader;
        let channel = leader.and_then(|leader| self.channel(leader));
        leader
            .zip(channel)
            .ok_or(ProposeError::NotLeader { leader })
    }

    fn to_peer<T>(&self, message: T, left: Duration) -> tonic::Request<T> {
        let mut call = tonic::Request::new(message);
        call.set_timeout(FORWARD_DEADLINE.min(left));
        if let Ok(value) = format!("Bearer {}", self.token).parse() {
            call.metadata_mut().insert("authorization", value);
        }
        call
    }

    fn channel(&self, member: u64) -> Option<Channel> {
        let address = address(&self.status().borrow(), member)?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&address) {
            return Some(channel.clone());
        }
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .ok()?
            .connect_timeout(FORWARD_DEADLINE)
            .connect_with_connector_lazy(self.dialer.connector());
        channels.insert(address, channel.clone());
        Some(channel)
    }
}

/// What a failed call to the leader says about the command.
fn not_carried(status: &tonic::Status) -> ProposeError {
    match status.code() {
        // Refused before it was proposed.
        tonic::Code::FailedPrecondition => ProposeError::NotLeader { leader: None },
        tonic::Code::ResourceExhausted => ProposeError::Overloaded,
        _ => ProposeError::Unknown,
    }
}

/// Where a member is reached, if the group knows it.
fn address(status: &Status, member: u64) -> Option<String> {
    let record = status.members.get(&member)?;
    Some(record.address.clone()).filter(|address| !address.is_empty())
}

fn written(seq: Seq, result: Result<Answer, Rejected>) -> Result<Written, WriteError> {
    result
        .map(|answer| Written { seq, answer })
        .map_err(WriteError::Rejected)
}

/// What a refusal means that is not tried again.
fn give_up(err: ProposeError) -> WriteError {
    match err {
        ProposeError::NotLeader { .. } => WriteError::NoLeader {
            within: Duration::ZERO,
        },
        ProposeError::Unknown | ProposeError::Stopped => WriteError::Unknown,
        ProposeError::Overloaded => WriteError::Overloaded,
        ProposeError::NoSpace => WriteError::NoSpace,
        err @ ProposeError::TooLarge { .. } => WriteError::TooLarge(err.to_string()),
    }
}

/// What the last try of a write with a request id came to, when there is no time for another.
fn too_late(err: ProposeError, within: Duration) -> WriteError {
    match err {
        ProposeError::NotLeader { .. } => WriteError::NoLeader { within },
        ProposeError::Unknown | ProposeError::Stopped => WriteError::Late { within },
        err => give_up(err),
    }
}
