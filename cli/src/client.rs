//! The farm's API as the command line uses it: any member, a token, a deadline, and another
//! member when one does not answer.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oast_daemon::clock::{Clock, SystemClock};
use oast_daemon::secret::Secret;
use oast_proto::v1::fleets_client::FleetsClient;
use oast_proto::v1::images_client::ImagesClient;
use oast_proto::v1::operator_client::OperatorClient;
use oast_proto::v1::resources_client::ResourcesClient;
use oast_proto::v1::runs_client::RunsClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How long one call may take unless it streams.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a member may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a call is tried on other members.
const RETRY_DEADLINE: Duration = Duration::from_secs(15);
/// First pause between two tries; doubles up to [`PAUSE_MAX`], with full jitter.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Largest message that is accepted.
const MESSAGE_MAX: usize = 16 << 20;

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

/// One member's services.
#[derive(Clone)]
pub struct Member {
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
}

/// The farm, through whichever member answers.
#[derive(Clone)]
pub struct Client {
    members: Arc<[Member]>,
    addresses: Arc<[String]>,
    next: Arc<AtomicUsize>,
}

/// An address or a token that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No address.
    #[error("no address of a member is known: use a context, --addr or OAST_ADDR")]
    NoAddress,
    /// Not an address.
    #[error("`{0}` is no address of a member: write host:port")]
    Address(String),
    /// Not a token.
    #[error("the token holds characters that no token has")]
    Token,
}

impl Client {
    /// A client that connects when it is first used.
    pub fn new(
        addresses: &[String],
        token: Option<&Secret<String>>,
    ) -> Result<Client, ClientError> {
        if addresses.is_empty() {
            return Err(ClientError::NoAddress);
        }
        let bearer = match token {
            None => Bearer(None),
            Some(token) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
                    .parse()
                    .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Bearer(Some(value))
            }
        };
        let members = addresses
            .iter()
            .map(|address| {
                let endpoint = Endpoint::from_shared(format!("http://{address}"))
                    .map_err(|_| ClientError::Address(address.clone()))?;
                Ok(Member {
                    channel: endpoint.connect_timeout(CONNECT_DEADLINE).connect_lazy(),
                    bearer: bearer.clone(),
                })
            })
            .collect::<Result<Vec<_>, ClientError>>()?;
        Ok(Client {
            members: members.into(),
            addresses: addresses.into(),
            next: Arc::default(),
        })
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
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    /// Calls until a member answers. Only for calls that may be repeated: reads, and writes
    /// with a request id.
    pub async fn call<T, F, Fut>(&self, mut call: F) -> Result<T, Status>
    where
        F: FnMut(Member) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let clock = SystemClock;
        let end = clock.monotonic() + RETRY_DEADLINE;
        let mut pause = PAUSE;
        loop {
            let answer = match oast_daemon::clock::timeout(
                &clock,
                CALL_DEADLINE,
                call(self.member().clone()),
            )
            .await
            {
                Ok(answer) => answer,
                Err(late) => Err(Status::deadline_exceeded(late.to_string())),
            };
            match answer {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if may_be_tried_again(&status) && clock.monotonic() < end => {
                    self.turn();
                    let jitter = oast_daemon::random::number() % 1000;
                    clock.sleep(pause.mul_f64(jitter as f64 / 1000.0)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(status) => return Err(status),
            }
        }
    }
}

/// The member did not answer, or said that another may.
pub fn may_be_tried_again(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    )
}
