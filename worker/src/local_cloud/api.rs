//! The control API (`oast.localcloud.v1`): wire types to calls on the owner, errors to codes.
//!
//! Nothing is decided here. Authentication is a bearer token checked before every call; the port
//! is refused unless it is loopback, since the token travels in the clear.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use oast_daemon::clock::SharedClock;
use oast_daemon::secret::Secret;
use oast_proto::localcloud::v1 as wire;
use oast_proto::localcloud::v1::local_cloud_server::LocalCloud;

use super::cloud::{Action, CloudError, Handle, InstanceCall};
use super::view::InstanceView;

mod convert;
mod status;

pub use status::ETAG_TRAILER;

/// The service.
#[derive(Clone, Debug)]
pub struct Api {
    cloud: Handle,
    clock: SharedClock,
}

impl Api {
    /// Serves `cloud`.
    #[must_use]
    pub fn new(cloud: Handle, clock: SharedClock) -> Api {
        Api { cloud, clock }
    }

    async fn act(&self, call: InstanceCall) -> Result<Response<wire::Instance>, Status> {
        let view = self.cloud.instance(call).await.map_err(status::of)?;
        Ok(Response::new(convert::instance(&view)))
    }

    async fn find(&self, set: &str, id: &str) -> Result<InstanceView, CloudError> {
        let found = self
            .cloud
            .set(set)
            .await?
            .instances
            .into_iter()
            .find(|i| i.record.id == id);
        found.ok_or_else(|| CloudError::NotFound(format!("instance {id} of set {set}")))
    }
}

/// Refuses calls without the cloud's token.
#[derive(Clone, Debug)]
pub struct Bearer(Arc<Secret<String>>);

impl Bearer {
    /// Accepts exactly this token.
    #[must_use]
    pub fn new(token: Secret<String>) -> Bearer {
        Bearer(Arc::new(token))
    }
}

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let given = request
            .metadata()
            .get("authorization")
            .and_then(|v| v.to_str().ok());
        match given.and_then(|v| v.strip_prefix("Bearer ")) {
            Some(token) if self.0.matches(token.as_bytes()) => Ok(request),
            Some(_) => Err(Status::unauthenticated(
                "the bearer token is not this cloud's",
            )),
            None => Err(Status::unauthenticated("the call carries no bearer token")),
        }
    }
}

type States = Pin<Box<dyn Stream<Item = Result<wire::SetState, Status>> + Send>>;

#[tonic::async_trait]
impl LocalCloud for Api {
    async fn put_set(
        &self,
        request: Request<wire::PutSetRequest>,
    ) -> Result<Response<wire::PutSetResponse>, Status> {
        let call = request.into_inner();
        let spec = convert::set_spec(call.spec).map_err(|err| status::of(err.into()))?;
        let (view, created) = self
            .cloud
            .put_set(call.operation_id, call.if_match, spec)
            .await
            .map_err(status::of)?;
        let set = Some(convert::set(&view));
        Ok(Response::new(wire::PutSetResponse { set, created }))
    }

    async fn delete_set(
        &self,
        request: Request<wire::DeleteSetRequest>,
    ) -> Result<Response<wire::DeleteSetResponse>, Status> {
        let call = request.into_inner();
        self.cloud
            .delete_set(call.operation_id, call.if_match, call.set)
            .await
            .map_err(status::of)?;
        Ok(Response::new(wire::DeleteSetResponse {}))
    }

    async fn get_set(
        &self,
        request: Request<wire::GetSetRequest>,
    ) -> Result<Response<wire::SetState>, Status> {
        let view = self
            .cloud
            .set(&request.into_inner().set)
            .await
            .map_err(status::of)?;
        Ok(Response::new(convert::state(&view)))
    }

    async fn list_sets(
        &self,
        request: Request<wire::ListSetsRequest>,
    ) -> Result<Response<wire::ListSetsResponse>, Status> {
        let fleet = request.into_inner().fleet;
        let views = self.cloud.sets().await.map_err(status::of)?;
        let wanted = views
            .iter()
            .filter(|v| fleet.is_empty() || v.spec.fleet == fleet);
        let sets = wanted.map(convert::state).collect();
        Ok(Response::new(wire::ListSetsResponse { sets }))
    }

    async fn put_instance(
        &self,
        request: Request<wire::PutInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        self.act(InstanceCall {
            operation_id: call.operation_id,
            caller_token: call.caller_token,
            set: call.set,
            id: call.id,
            if_match: String::new(),
            action: Action::Create(call.image.map(convert::image)),
        })
        .await
    }

    async fn reimage(
        &self,
        request: Request<wire::ReimageRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        let image = call
            .image
            .ok_or_else(|| Status::invalid_argument("image: is needed"))?;
        self.act(InstanceCall {
            operation_id: call.operation_id,
            caller_token: call.caller_token,
            set: call.set,
            id: call.id,
            if_match: call.if_match,
            action: Action::Reimage(convert::image(image)),
        })
        .await
    }

    async fn restart(
        &self,
        request: Request<wire::RestartRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        self.act(InstanceCall {
            operation_id: call.operation_id,
            caller_token: call.caller_token,
            set: call.set,
            id: call.id,
            if_match: call.if_match,
            action: Action::Restart,
        })
        .await
    }

    async fn delete_instance(
        &self,
        request: Request<wire::DeleteInstanceRequest>,
    ) -> Result<Response<wire::DeleteInstanceResponse>, Status> {
        let call = request.into_inner();
        let deleted = self
            .cloud
            .instance(InstanceCall {
                operation_id: call.operation_id,
                caller_token: String::new(),
                set: call.set,
                id: call.id,
                if_match: call.if_match,
                action: Action::Delete,
            })
            .await;
        match deleted {
            Ok(_) | Err(CloudError::NotFound(_) | CloudError::Gone(_)) => {
                Ok(Response::new(wire::DeleteInstanceResponse {}))
            }
            Err(err) => Err(status::of(err)),
        }
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        self.act(InstanceCall {
            operation_id: call.operation_id,
            caller_token: String::new(),
            set: call.set,
            id: call.id,
            if_match: call.if_match,
            action: Action::Drain,
        })
        .await
    }

    async fn undrain(
        &self,
        request: Request<wire::UndrainRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        self.act(InstanceCall {
            operation_id: call.operation_id,
            caller_token: String::new(),
            set: call.set,
            id: call.id,
            if_match: call.if_match,
            action: Action::Undrain,
        })
        .await
    }

    async fn get_instance(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Result<Response<wire::Instance>, Status> {
        let call = request.into_inner();
        let view = self.find(&call.set, &call.id).await.map_err(status::of)?;
        Ok(Response::new(convert::instance(&view)))
    }

    async fn list_instances(
        &self,
        request: Request<wire::ListInstancesRequest>,
    ) -> Result<Response<wire::ListInstancesResponse>, Status> {
        let view = self
            .cloud
            .set(&request.into_inner().set)
            .await
            .map_err(status::of)?;
        let instances = view.instances.iter().map(convert::instance).collect();
        Ok(Response::new(wire::ListInstancesResponse { instances }))
    }

    type WatchStream = States;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<States>, Status> {
        let set = request.into_inner().set;
        let views = self.cloud.watch(set.clone()).await.map_err(status::of)?;
        let states = WatchStream::from_changes(views).map(|view| Ok(convert::state(&view)));
        // The queue closes with the set (or the cloud, when the transport closes anyway).
        let gone = futures_util::stream::once(async move {
            Err(status::of(CloudError::NotFound(format!("set {set}"))))
        });
        Ok(Response::new(Box::pin(states.chain(gone))))
    }

    async fn prefetch(
        &self,
        request: Request<wire::PrefetchRequest>,
    ) -> Result<Response<wire::PrefetchResponse>, Status> {
        let image = request.into_inner().image;
        let image = image.ok_or_else(|| Status::invalid_argument("image: is needed"))?;
        let began = self.clock.monotonic();
        self.cloud
            .prefetch(&convert::image(image))
            .await
            .map_err(status::of)?;
        let took = self.clock.monotonic().saturating_sub(began);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Ok(Response::new(wire::PrefetchResponse { took_ms }))
    }
}
