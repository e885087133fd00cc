//! The public API, `oast.v1`: every member answers every call.
//!
//! ```text
//! request -> auth (token -> principal) -> service -> read: barrier, then the ledger or the archive
//!                                                 -> write: Farm::write, authorized again in the ledger
//!                                                 -> leader's memory: forward the call to the leader
//! ```
//!
//! Watches are level-triggered: they look whenever the state changes and send when the object's
//! number differs from the last one sent, so a missed wake-up or a reconnect loses nothing.

pub mod auth;
mod changes;
mod convert;
mod filter;
mod fleets;
mod forward;
mod group;
mod health;
mod images;
mod join;
mod logs;
mod operator;
mod page;
mod resources;
mod runs;
pub mod sight;
pub mod status;
mod submit;
#[cfg(test)]
pub(crate) mod tests;
mod upkeep;

mod upload;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use oast_artifacts::ArtifactStore;
use oast_daemon::secret::Secret;
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::tls::Identity;
use oast_proto::v1::changes_server::ChangesServer;
use oast_proto::v1::fleets_server::FleetsServer;
use oast_proto::v1::images_server::ImagesServer;
use oast_proto::v1::operator_server::OperatorServer;
use oast_proto::v1::resources_server::ResourcesServer;
use oast_proto::v1::runs_server::RunsServer;
use oast_proto::v1::worker_tokens_server::WorkerTokensServer;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::archive::Archive;
use crate::farm::{Farm, Look};
use crate::notary::Notary;
use crate::secrets::Secrets;
use auth::Caller;
use sight::LeaderSight;

/// Messages that may wait in a stream for a slow client.
const STREAM_QUEUE: usize = 8;

/// What the API answers from.
pub struct Parts {
    /// The group.
    pub farm: Farm,
    /// What is over.
    pub archive: Archive,
    /// Logs, trees and disks; writable.
    pub artifacts: ArtifactStore,
    /// Secrets' values.
    pub secrets: Secrets,
    /// The farm's signing key.
    pub notary: Notary,
    /// The leader's memory.
    pub sight: Arc<dyn LeaderSight>,
    /// Where streams and blocking reads run.
    pub tasks: Tasks,
    /// What members show each other; also allows `InitFarm`.
    pub peer_token: Secret<String>,
    /// Bare repositories that the farm serves, shared by its members.
    pub git_dir: std::path::PathBuf,
    /// Where people reach this member, such as `http://127.0.0.1:7443`.
    pub address: String,
    /// The member's certificates, where it has some.
    pub identity: Option<Identity>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// The services. Clones answer from the same parts.
#[derive(Clone)]
pub struct Api {
    parts: Arc<Parts>,
    /// Places for watches of everything.
    watches: Arc<Semaphore>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// What a streaming call answers with.
type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;
/// Where the work behind a stream puts its messages.
type Sender<T> = mpsc::Sender<Result<T, Status>>;

impl Api {
    /// The API over its parts.
    pub fn new(parts: Parts) -> Api {
        Api {
            parts: Arc::new(parts),
            watches: Arc::new(Semaphore::new(changes::WATCHES_MAX)),
        }
    }

    /// Runs `work` behind a stream; an error that it returns is the stream's last message.
    fn stream<T, W>(&self, name: &'static str, work: impl FnOnce(Sender<T>) -> W) -> Answers<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let work = work(sender.clone());
        // The handle is not needed: the task ends with its stream or with the process.
        let _handle = self.tasks.spawn(name, TaskKind::REQUEST, async move {
            let last = sender.clone();
            let ended = tokio::select! {
                () = sender.closed() => return,
                ended = work => ended,
            };
            if let Err(status) = ended {
                // A client that has gone needs no reason.
                let _ = last.send(Err(status)).await;
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// The state as the caller wants it, noted for the answer.
    async fn look(&self, caller: &Caller) -> Result<Look, Status> {
        let look = self.farm.look(caller.patience).await?;
        caller.note(&look);
        Ok(look)
    }

    /// Runs something that reads files.
    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let done = self.tasks.blocking(name, work).await;
        done.map_err(|lost| status::internal(&lost))
    }
}

/// Everything of this member that people and their tools speak to. Workers, peers and health
/// are merged by the process.
pub fn router(parts: Parts) -> Router {
    let api = Api::new(parts);
    let fresh = api.farm.clone().keep_fresh();
    let _handle = api.tasks.spawn("keep-fresh", TaskKind::BACKGROUND, fresh);
    services(&api)
        .merge(health::routes(&api.farm, &api.tasks))
        .merge(crate::webhook::routes(api.clone()))
        .merge(crate::web::routes(api))
}

/// The gRPC services behind authentication, and reflection in both versions.
fn services(api: &Api) -> Router {
    let services = tonic::service::Routes::new(RunsServer::new(api.clone()))
        .add_service(ImagesServer::new(api.clone()))
        .add_service(FleetsServer::new(api.clone()))
        .add_service(ResourcesServer::new(api.clone()))
        .add_service(OperatorServer::new(api.clone()))
        .add_service(ChangesServer::new(api.clone()))
        .add_service(WorkerTokensServer::new(api.clone()))
        .into_axum_router()
        // Other routers are merged, and an unknown page is a 404, not a gRPC answer.
        .reset_fallback()
        .layer(axum::middleware::from_fn_with_state(
            api.clone(),
            auth::authenticate,
        ));
    let mut router = services;
    for reflection in [reflect_v1(), reflect_v1alpha()] {
        router = router.merge(reflection);
    }
    router
}

fn reflect_v1() -> Router {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(oast_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the build made these descriptors");
    let routes = tonic::service::Routes::new(service);
    routes.into_axum_router().reset_fallback()
}

/// Python's client still asks for this one.
fn reflect_v1alpha() -> Router {
    let service = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(oast_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()
        .expect("the build made these descriptors");
    let routes = tonic::service::Routes::new(service);
    routes.into_axum_router().reset_fallback()
}
