//! The provider over the local cloud's control API.
//!
//! A thin client: each call has a deadline, a code becomes an [`ErrorKind`], and nothing is
//! retried here, because the caller knows whether its intent still stands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use oast_daemon::clock::SharedClock;
use oast_daemon::secret::Secret;
use oast_proto::localcloud::v1 as wire;
use oast_proto::localcloud::v1::local_cloud_client::LocalCloudClient;

use super::{
    ErrorKind, FleetObservation, ImageRef, InstanceObservation, Provider, ProviderError,
    SetObservation, SetSpec, Target,
};
use crate::local_cloud::api::ETAG_TRAILER;

mod convert;
mod watch;

use convert::{instance, observation, set_observation, wire_image, wire_spec};

/// Deadline of a call; the local cloud answers within a few synced writes.
const CALL: Duration = Duration::from_secs(10);
/// Deadline of unpacking an image.
const PREFETCH: Duration = Duration::from_secs(300);
const CONNECT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Adds the bearer token to each call.
#[derive(Clone, Debug)]
pub struct Credentials(Arc<Secret<String>>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0.expose());
        let value = value.parse().map_err(|_| {
            Status::unauthenticated("the local cloud's token holds characters a header cannot")
        })?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

type Client = LocalCloudClient<InterceptedService<Channel, Credentials>>;

/// A local cloud as a provider. Clones share one connection.
#[derive(Clone, Debug)]
pub struct LocalProvider {
    client: Client,
    clock: SharedClock,
}

impl LocalProvider {
    /// Talks to the local cloud at `address`. Connects when first used, and again when lost.
    ///
    /// # Errors
    /// The address does not make a URL.
    pub fn new(
        address: SocketAddr,
        token: Secret<String>,
        clock: SharedClock,
    ) -> Result<LocalProvider, ProviderError> {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|err| ProviderError {
                kind: ErrorKind::Permanent,
                doing: format!("reach the local cloud at {address}"),
                reason: err.to_string(),
            })?;
        let channel = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .connect_lazy();
        let credentials = Credentials(Arc::new(token));
        Ok(LocalProvider {
            client: LocalCloudClient::with_interceptor(channel, credentials),
            clock,
        })
    }

    async fn states(&self, fleet: &str) -> Result<Vec<wire::SetState>, ProviderError> {
        let call = wire::ListSetsRequest {
            fleet: fleet.to_owned(),
        };
        let answer = self.client.clone().list_sets(timed(call, CALL)).await;
        answer
            .map(|a| a.into_inner().sets)
            .map_err(|s| error(format!("observe fleet {fleet}"), &s))
    }

    async fn get_set(&self, set: &str) -> Result<Option<wire::SetState>, ProviderError> {
        let call = wire::GetSetRequest {
            set: set.to_owned(),
        };
        match self.client.clone().get_set(timed(call, CALL)).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(error(format!("read set {set}"), &status)),
        }
    }
}

fn timed<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn error(doing: String, status: &Status) -> ProviderError {
    let etag = status
        .metadata()
        .get(ETAG_TRAILER)
        .and_then(|v| v.to_str().ok());
    let kind = match (status.code(), etag) {
        (Code::FailedPrecondition, Some(etag)) => ErrorKind::Conflict {
            current: Some(etag.to_owned()),
        },
        (Code::AlreadyExists, _) => ErrorKind::Conflict { current: None },
        (Code::NotFound, _) => ErrorKind::NotFound,
        (Code::ResourceExhausted, _) => ErrorKind::Quota,
        (Code::Unauthenticated | Code::PermissionDenied, _) => ErrorKind::Denied,
        (Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented, _) => {
            ErrorKind::Permanent
        }
        // Unavailable, deadlines, a cloud that restarts, a full disk that may have room again.
        _ => ErrorKind::Transient,
    };
    ProviderError {
        kind,
        doing,
        reason: status.message().to_owned(),
    }
}

impl Target {
    fn doing(&self, verb: &str) -> String {
        format!("{verb} instance {} of set {}", self.id, self.set)
    }

    fn etag(&self) -> String {
        self.if_match.clone().unwrap_or_default()
    }
}

fn answered(
    answer: Result<Response<wire::Instance>, Status>,
    doing: impl FnOnce() -> String,
) -> Result<InstanceObservation, ProviderError> {
    match answer {
        Ok(answer) => Ok(instance(answer.get_ref())),
        Err(status) => Err(error(doing(), &status)),
    }
}

#[tonic::async_trait]
impl Provider for LocalProvider {
    async fn observe(&self, fleet: &str) -> Result<FleetObservation, ProviderError> {
        Ok(observation(&self.states(fleet).await?))
    }

    fn watch(&self, fleet: &str) -> BoxStream<'static, Result<FleetObservation, ProviderError>> {
        watch::fleet(self.clone(), fleet.to_owned()).boxed()
    }

    async fn ensure_set(
        &self,
        operation_id: &str,
        spec: &SetSpec,
    ) -> Result<SetObservation, ProviderError> {
        let wanted = wire_spec(spec);
        let mut if_match = String::new();
        if let Some(state) = self.get_set(&spec.name).await? {
            let set = state.set.clone().unwrap_or_default();
            if set.spec.as_ref() == Some(&wanted) {
                return Ok(set_observation(&state));
            }
            if_match = set.etag;
        }
        let call = wire::PutSetRequest {
            operation_id: operation_id.to_owned(),
            if_match,
            spec: Some(wanted),
        };
        let answer = self.client.clone().put_set(timed(call, CALL)).await;
        answer.map_err(|s| error(format!("change set {}", spec.name), &s))?;
        let state = self.get_set(&spec.name).await?;
        state
            .as_ref()
            .map(set_observation)
            .ok_or_else(|| ProviderError {
                kind: ErrorKind::NotFound,
                doing: format!("read set {}", spec.name),
                reason: "it was deleted in the same moment".to_owned(),
            })
    }

    async fn delete_set(&self, operation_id: &str, set: &str) -> Result<(), ProviderError> {
        let call = wire::DeleteSetRequest {
            operation_id: operation_id.to_owned(),
            if_match: String::new(),
            set: set.to_owned(),
        };
        let answer = self.client.clone().delete_set(timed(call, CALL)).await;
        answer
            .map(drop)
            .map_err(|s| error(format!("delete set {set}"), &s))
    }

    async fn create(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError> {
        let call = wire::PutInstanceRequest {
            operation_id: target.operation_id.clone(),
            caller_token: target.caller_token.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            image: Some(wire_image(image)),
        };
        let answer = self.client.clone().put_instance(timed(call, CALL)).await;
        answered(answer, || target.doing("create"))
    }

    async fn reimage(
        &self,
        target: &Target,
        image: &ImageRef,
    ) -> Result<InstanceObservation, ProviderError> {
        let call = wire::ReimageRequest {
            operation_id: target.operation_id.clone(),
            caller_token: target.caller_token.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            image: Some(wire_image(image)),
            if_match: target.etag(),
        };
        let answer = self.client.clone().reimage(timed(call, CALL)).await;
        answered(answer, || target.doing("reimage"))
    }

    async fn restart(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        let call = wire::RestartRequest {
            operation_id: target.operation_id.clone(),
            caller_token: target.caller_token.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            if_match: target.etag(),
        };
        let answer = self.client.clone().restart(timed(call, CALL)).await;
        answered(answer, || target.doing("restart"))
    }

    async fn delete(&self, target: &Target) -> Result<(), ProviderError> {
        let call = wire::DeleteInstanceRequest {
            operation_id: target.operation_id.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            if_match: target.etag(),
        };
        let answer = self.client.clone().delete_instance(timed(call, CALL)).await;
        answer
            .map(drop)
            .map_err(|s| error(target.doing("delete"), &s))
    }

    async fn drain(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        let call = wire::DrainRequest {
            operation_id: target.operation_id.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            if_match: target.etag(),
        };
        let answer = self.client.clone().drain(timed(call, CALL)).await;
        answered(answer, || target.doing("drain"))
    }

    async fn undrain(&self, target: &Target) -> Result<InstanceObservation, ProviderError> {
        let call = wire::UndrainRequest {
            operation_id: target.operation_id.clone(),
            set: target.set.clone(),
            id: target.id.clone(),
            if_match: target.etag(),
        };
        let answer = self.client.clone().undrain(timed(call, CALL)).await;
        answered(answer, || target.doing("undrain"))
    }

    async fn prefetch(&self, image: &ImageRef) -> Result<(), ProviderError> {
        let call = wire::PrefetchRequest {
            image: Some(wire_image(image)),
        };
        let answer = self.client.clone().prefetch(timed(call, PREFETCH)).await;
        answer.map(drop).map_err(|s| {
            error(
                format!("prefetch image {}:{}", image.name, image.version),
                &s,
            )
        })
    }
}
