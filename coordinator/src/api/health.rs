//! `grpc.health.v1`: SERVING while this member knows a leader, for the farm and for each service.

use axum::Router;
use oast_daemon::task::{TaskKind, Tasks};
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Api;
use crate::farm::Farm;
use oast_proto::v1::changes_server::ChangesServer;
use oast_proto::v1::fleets_server::FleetsServer;
use oast_proto::v1::images_server::ImagesServer;
use oast_proto::v1::operator_server::OperatorServer;
use oast_proto::v1::resources_server::ResourcesServer;
use oast_proto::v1::runs_server::RunsServer;

/// What can be asked about; the empty name is the member as a whole.
const SERVICES: [&str; 7] = [
    "",
    RunsServer::<Api>::NAME,
    ImagesServer::<Api>::NAME,
    FleetsServer::<Api>::NAME,
    ResourcesServer::<Api>::NAME,
    OperatorServer::<Api>::NAME,
    ChangesServer::<Api>::NAME,
];

/// The service. It needs no token: it says nothing but yes and no.
pub(super) fn routes(farm: &Farm, tasks: &Tasks) -> Router {
    let (reporter, service) = tonic_health::server::health_reporter();
    tasks.spawn(
        "health",
        TaskKind::BACKGROUND,
        follow(farm.clone(), reporter),
    );
    tonic::service::Routes::new(service)
        .into_axum_router()
        .reset_fallback()
}

async fn follow(farm: Farm, reporter: HealthReporter) {
    let mut status = farm.status();
    let mut said = None;
    loop {
        let led = {
            let status = status.borrow_and_update();
            status.leader.is_some() && status.stopped.is_none()
        };
        if said != Some(led) {
            said = Some(led);
            let word = match led {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            for service in SERVICES {
                reporter.set_service_status(service, word).await;
            }
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}
