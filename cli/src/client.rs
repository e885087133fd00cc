//! The farm's API as the command line uses it: any member, a token, a deadline, and another
//! member when one does not answer.
//!
//! A call goes round the members without a pause, then waits as [`oast_daemon::retry`] says and
//! goes round again until its time is up. Who could not answer, and why, is told by address.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oast_daemon::clock::{SharedClock, SystemClock};
use oast_daemon::retry::{Policy, RandomJitter, SharedJitter};
use oast_daemon::secret::Secret;
use oast_daemon::tls::{self, DialError};
use oast_proto::fault::{self, Advice};
use oast_proto::v1::changes_client::ChangesClient;
use oast_proto::v1::fleets_client::FleetsClient;
use oast_proto::v1::images_client::ImagesClient;
use oast_proto::v1::operator_client::OperatorClient;
use oast_proto::v1::resources_client::ResourcesClient;
use oast_proto::v1::runs_client::RunsClient;
use oast_proto::v1::worker_tokens_client::WorkerTokensClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::reach::Reach;

/// How long one try of a call may take unless it streams.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How a call is tried again.
const RETRY: Policy = Policy {
    first: Duration::from_millis(100),
    most: Duration::from_secs(2),
    within: Duration::from_secs(15),
};
/// How long a call is tried while no member answers anything at all: a farm that is there and
/// elects a leader says so.
const SILENCE: Duration = Duration::from_secs(5);
/// Largest message that is accepted.
const MESSAGE_MAX: usize = 16 << 20;
/// How old an answer may be, in the metadata of a read: milliseconds or `any`.
const MAX_STALENESS: &str = "oast-max-staleness-ms";
/// The stable reason when no member could be asked.
const NO_MEMBER: &str = "NO_MEMBER";
/// Whose reason it is.
const DOMAIN: &str = "oast.dev";

/// Adds the token, the deadline and the accepted age to each call.
#[derive(Clone)]
pub struct Bearer {
    token: Option<MetadataValue<Ascii>>,
    stale: Option<MetadataValue<Ascii>>,
    deadline: Option<Duration>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        if let Some(value) = &self.stale {
            request.metadata_mut().insert(MAX_STALENESS, value.clone());
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// How old an answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The member that is asked answers whatever it knows.
    Any,
    /// It answers if what it knows is at most this old.
    For(Duration),
}

/// One member's services.
#[derive(Clone)]
pub struct Member {
    place: usize,
    channel: Channel,
    bearer: Bearer,
}

macro_rules! services {
    ($($name:ident: $client:ident;)*) => {
        impl Member {
            $(
                /// The service of that name.
                pub fn $name(&self) -> $client<Authorized> {
                    $client::with_interceptor(self.channel.clone(), self.bearer.clone())
                        .max_decoding_message_size(MESSAGE_MAX)
                }
            )*
        }
    };
}

services! {
    runs: RunsClient;
    images: ImagesClient;
    fleets: FleetsClient;
    resources: ResourcesClient;
    operator: OperatorClient;
    changes: ChangesClient;
    worker_tokens: WorkerTokensClient;
}

/// The farm, through whichever member answers.
#[derive(Clone)]
pub struct Client {
    members: Arc<[Member]>,
    addresses: Arc<[String]>,
    next: Arc<AtomicUsize>,
    clock: SharedClock,
    jitter: SharedJitter,
}

/// An address or a token that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address.
    #[error("no address of a member is known: use a context, --addr or OAST_ADDR")]
    NoAddress,
    /// Not an address.
    #[error("`{0}` is no address of a member: write host:port or https://host:port")]
    Address(String),
    /// Others could read the token.
    #[error("refusing to speak to {0} in the clear: a token would travel with it; write https://")]
    Clear(String),
    /// The authority that is kept for the farm.
    #[error("the authority of the farm {0}")]
    Authority(&'static str),
    /// Nobody to trust.
    #[error(transparent)]
    Trust(DialError),
    /// Not a token.
    #[error("the token holds characters that no token has")]
    Token,
}

impl Client {
    /// A client on this machine, which connects when it is first used.
    pub fn new(
        addresses: &[String],
        token: Option<&Secret<String>>,
    ) -> Result<Client, ClientError> {
        Client::reaching(addresses, token, &Reach::default())
    }

    /// A client that connects when it is first used, trusting whom `reach` says.
    pub fn reaching(
        addresses: &[String],
        token: Option<&Secret<String>>,
        reach: &Reach,
    ) -> Result<Client, ClientError> {
        if addresses.is_empty() {
            return Err(ClientError::NoAddress);
        }
        let token = match token {
            None => None,
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
                    .parse()
                    .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let bearer = Bearer {
            token,
            stale: None,
            deadline: None,
        };
        let members = addresses
            .iter()
            .enumerate()
            .map(|(place, address)| {
                Ok(Member {
                    place,
                    channel: reach.channel(address)?,
                    bearer: bearer.clone(),
                })
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        Ok(Client {
            members: members.into(),
            addresses: addresses.into(),
            next: Arc::default(),
            clock: SystemClock::shared(),
            jitter: Arc::new(RandomJitter),
        })
    }

    /// The same farm, whose reads may be answered by a member that is behind.
    #[must_use]
    pub fn accepting(mut self, stale: Option<Stale>) -> Client {
        let value = stale.map(|stale| match stale {
            Stale::Any => MetadataValue::from_static("any"),
            Stale::For(age) => u64::try_from(age.as_millis()).unwrap_or(u64::MAX).into(),
        });
        let members = self.members.iter().cloned().map(|mut member| {
            member.bearer.stale.clone_from(&value);
            member
        });
        self.members = members.collect();
        self
    }

    /// Addresses of the members.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The member to ask now.
    pub fn member(&self) -> &Member {
        &self.members[self.next.load(Ordering::Relaxed) % self.members.len()]
    }

    /// Asks another member from now on.
    pub fn turn(&self) {
        self.turn_from(self.member());
    }

    /// Asks another member than this one from now on. Several streams that broke with the same
    /// member turn only once.
    pub fn turn_from(&self, member: &Member) {
        let turn = |next: usize| (next % self.members.len() == member.place).then_some(next + 1);
        // Somebody else has turned already.
        let _ = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, turn);
    }

    /// Calls until a member answers. Only for calls that may be repeated: reads, and writes
    /// with a request id.
    pub async fn call<T, F, Fut>(&self, call: F) -> Result<T, Status>
    where
        F: FnMut(Member) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.tried(call, false).await.map(|(answer, _)| answer)
    }

    /// Opens a stream, with the member that sends it: the deadline is for its beginning only.
    pub async fn open<T, F, Fut>(&self, call: F) -> Result<(T, Member), Status>
    where
        F: FnMut(Member) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.tried(call, true).await
    }

    async fn tried<T, F, Fut>(&self, mut call: F, streams: bool) -> Result<(T, Member), Status>
    where
        F: FnMut(Member) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let began = self.clock.monotonic();
        let mut retries = RETRY.begin(began);
        let mut failures = Failures::default();
        let mut hint: Option<Duration> = None;
        let mut asked = 0;
        loop {
            let limit = CALL_DEADLINE.min(retries.left(self.clock.monotonic()));
            let mut member = self.member().clone();
            member.bearer.deadline = (!streams).then_some(limit);
            let answer = call(member.clone());
            let answer = oast_daemon::clock::timeout(&*self.clock, limit, answer).await;
            let status = match answer {
                Ok(Ok(response)) => return Ok((response.into_inner(), member)),
                Ok(Err(status)) => status,
                Err(late) => Status::deadline_exceeded(late.to_string()),
            };
            let advice = fault::advice(&status);
            if advice == Advice::Never {
                return Err(status);
            }
            failures.note(member.place, status);
            match advice {
                Advice::Never => {}
                Advice::Later(after) => hint = Some(after),
                Advice::Elsewhere(after) => {
                    self.turn_from(&member);
                    hint = hint.max(after);
                    asked += 1;
                    if asked % self.members.len() != 0 {
                        continue;
                    }
                }
            }
            let now = self.clock.monotonic();
            let silent = failures.silent(self.members.len()) && now - began >= SILENCE;
            match retries.pause(now, hint.take(), &*self.jitter) {
                Some(pause) if !silent => self.clock.sleep(pause).await,
                _ => return Err(failures.told(&self.addresses)),
            }
        }
    }
}

/// What each member said last.
#[derive(Debug, Default)]
struct Failures {
    by_place: BTreeMap<usize, Status>,
}

impl Failures {
    fn note(&mut self, place: usize, status: Status) {
        self.by_place.insert(place, status);
    }

    /// All of them were asked and none answered.
    fn silent(&self, members: usize) -> bool {
        let silent = |status: &Status| fault::reason(status).is_none();
        self.by_place.len() == members && self.by_place.values().all(silent)
    }

    /// One status with the reason of each address. What a member itself said comes first.
    fn told(self, addresses: &[String]) -> Status {
        let said = self
            .by_place
            .values()
            .find(|status| fault::reason(status).is_some())
            .cloned();
        let mut message = match &said {
            Some(said) => said.message().to_owned(),
            None => "no member of the farm answers".to_owned(),
        };
        for (place, status) in &self.by_place {
            let address = addresses.get(*place).map_or("", String::as_str);
            // Writing to a String cannot fail.
            let _ = write!(message, "\n  {address}: {}", cause(status));
        }
        match said {
            Some(said) => {
                let details = said.details().to_vec().into();
                Status::with_details(said.code(), message, details)
            }
            None => {
                let details = ErrorDetails::with_error_info(NO_MEMBER, DOMAIN, []);
                Status::with_error_details(Code::Unavailable, message, details)
            }
        }
    }
}

/// Why a member did not answer: tonic's own words name no cause, the innermost error does.
pub fn cause(status: &Status) -> String {
    if fault::reason(status).is_some() {
        return status.message().to_owned();
    }
    if let Some(refused) = tls::reason(status) {
        return refused.problem.to_string();
    }
    let mut deepest = None;
    let mut source = status.source();
    while let Some(err) = source {
        deepest = Some(err);
        source = err.source();
    }
    deepest.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// The member did not answer, or said that another may.
pub fn may_be_tried_again(status: &Status) -> bool {
    fault::advice(status) != Advice::Never
}

#[cfg(test)]
mod tests;
