//! A member's process: from its configuration to a port that answers.
//!
//! ```text
//! lock the data folder -> take the ports -> open log and state -> links to peers -> leader's part
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use camino::Utf8PathBuf;
use oast_artifacts::ArtifactStore;
use oast_daemon::clock::SharedClock;
use oast_daemon::health::{self, Health};
use oast_daemon::lock::{DirLock, LockError};
use oast_daemon::metrics::{Metrics, Role};
use oast_daemon::secret::Secret;
use oast_daemon::serve::Serving;
use oast_daemon::task::{Lost, TaskKind, Tasks};
use oast_model::schedule::Rules;
use oast_proto::worker::v1::certificates_server::CertificatesServer;
use oast_proto::worker::v1::workers_server::WorkersServer;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::InterceptorLayer;
use tracing::info;

use crate::api::{self, Parts};
use crate::archive::{Archive, ArchiveError};
use crate::certificates;
use crate::config::CoordinatorConfig;
use crate::consensus::driver::{self, Setup};
use crate::consensus::halt::Halt;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::open::{Membership, OpenError, StoreOptions};
use crate::consensus::options::Options;
use crate::consensus::transport::grpc::{LinkOptions, Links, PeerServer};
use crate::farm::Farm;
use crate::gauges;
use crate::git;
use crate::join::{self, WhoError};
use crate::leader::sessions::WorkerService;
use crate::leader::{self, Leader};
use crate::notary::{Notary, NotaryError};
use crate::operations::{space, version};
use crate::ports::{self, Ports, PortsError};
use crate::retention::Keeper;
use crate::secrets::{SecretError, Secrets};
use crate::store::disk::DiskError;

/// Largest message from a worker: a report with its details.
const WORKER_MESSAGE_MAX: usize = 16 << 20;

/// A member cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Somebody else has the data folder.
    #[error(transparent)]
    Lock(LockError),
    /// The ports cannot be had.
    #[error(transparent)]
    Ports(PortsError),
    /// The members' secret cannot be read.
    #[error("read the members' secret from {}", path.display())]
    PeerToken {
        /// Where it should be.
        path: PathBuf,
        #[source]
        err: std::io::Error,
    },
    /// The members' secret cannot be sent.
    #[error("the members' secret in {} must be one line of printable text", path.display())]
    PeerTokenText {
        /// Where it is.
        path: PathBuf,
    },
    /// Log or state cannot be opened.
    #[error("open the member's data")]
    Open(#[source] OpenError),
    /// Opening broke off.
    #[error("open the member's data")]
    OpenLost(#[source] Lost),
    /// It cannot be told who we are in the group.
    #[error(transparent)]
    Who(WhoError),
    /// The artifact store cannot be opened.
    #[error("open the artifact store")]
    Store(#[source] oast_artifacts::StoreError),
    /// The index of finished runs cannot be made.
    #[error(transparent)]
    Archive(ArchiveError),
    /// The folder of secrets cannot be used.
    #[error(transparent)]
    Secrets(SecretError),
    /// The signing key cannot be used.
    #[error(transparent)]
    Notary(NotaryError),
    /// The store's path cannot be used.
    #[error("the artifact store's path {} is no UTF-8", path.display())]
    StorePath {
        /// As configured.
        path: PathBuf,
    },
    /// The data folder's file system cannot be looked at.
    #[error("look for room on the disk")]
    Space(#[source] DiskError),
    /// The farm went on to a version that this binary does not know.
    #[error("{}", version::outgrown(*version, *supported))]
    Outgrown {
        /// The farm's.
        version: u32,
        /// Ours.
        supported: u32,
    },
    /// The runtime refused something.
    #[error("start serving")]
    Start(#[source] std::io::Error),
}

/// Runs a member until shutdown.
///
/// # Errors
/// [`RunError`], each saying what to do.
pub async fn run(
    config: CoordinatorConfig,
    tasks: Tasks,
    clock: SharedClock,
) -> Result<(), RunError> {
    let shutdown = tasks.cancelled();
    let metrics = Metrics::for_process(
        Role::Coordinator,
        env!("CARGO_PKG_VERSION"),
        clock.clone(),
        &tasks,
    );
    let space = space::Watch::begin(&config.data_dir, config.disk_reserve.bytes())
        .map_err(RunError::Space)?;
    let _lock =
        DirLock::acquire(&config.data_dir, "coordinator", &*clock).map_err(RunError::Lock)?;
    let ports = Ports::take(&config, &clock, &metrics).map_err(RunError::Ports)?;
    let peer_token = read_peer_token(&config)?;
    let authorization = bearer(&config, &peer_token)?;
    let links = LinkOptions {
        authorization: Some(authorization),
        dialer: ports.dialer(),
        ..LinkOptions::default()
    };
    let membership = join::membership(&config, &links, &clock);
    let membership = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Ok(()),
        membership = membership => membership.map_err(RunError::Who)?,
    };
    let setup = setup(&config, membership, &clock);
    let member = tasks
        .blocking("open-member", move || driver::open::<LedgerMachine>(setup))
        .await
        .map_err(RunError::OpenLost)?
        .map_err(RunError::Open)?;
    let handle = member.handle();
    handle.watch_space(space.gauge());
    let (version, supported) = (
        handle.view().view.farm().version,
        config.supported_version(),
    );
    if version > supported {
        return Err(RunError::Outgrown { version, supported });
    }
    let links = Links::start(&handle, links, &tasks, &clock);
    let running = member.start(links).map_err(RunError::Start)?;

    let farm =
        Farm::new(handle.clone(), peer_token.expose(), clock.clone()).dialing(ports.dialer());
    let secrets = Secrets::open(&config.secrets_dir()).map_err(RunError::Secrets)?;
    let store_dir =
        Utf8PathBuf::try_from(config.store_dir.clone()).map_err(|err| RunError::StorePath {
            path: err.into_path_buf(),
        })?;
    let artifacts = ArtifactStore::open(&store_dir).map_err(RunError::Store)?;
    let given = config.signing_key_file.as_deref();
    let notary = Notary::open(given, &config.secrets_dir(), artifacts.clone());
    let notary = notary.map_err(RunError::Notary)?;
    let options = leader::Options {
        lease_ttl: config.lease_ttl.duration(),
        heartbeat: config.heartbeat.duration(),
        rules: Rules {
            reserve: config.reserve_slots,
        },
    };
    let leader = Leader::new(
        farm.clone(),
        secrets.clone(),
        notary.clone(),
        tasks.clone(),
        options,
    );
    tasks.spawn(
        "leader",
        TaskKind::SERVICE,
        Arc::clone(&leader).run(shutdown.clone()),
    );
    let keeper = Keeper::new(farm.clone(), tasks.clone(), config.retention());
    tasks.spawn("retention", TaskKind::SERVICE, keeper.run(shutdown.clone()));
    gauges::publish(&metrics, &farm, &leader);
    let keeper = version::run(farm.clone(), supported, shutdown.clone());
    tasks.spawn("cluster-version", TaskKind::SERVICE, keeper);

    let (history, index) = (handle.clone(), config.data_dir.join("index"));
    let archive = tasks
        .blocking("open-index", move || {
            let archive = Archive::open(history, &index)?;
            archive.refresh()?;
            Ok(archive)
        })
        .await
        .map_err(RunError::OpenLost)?
        .map_err(RunError::Archive)?;
    let api = api::router(Parts {
        farm: farm.clone(),
        archive,
        artifacts,
        secrets: secrets.clone(),
        notary,
        sight: leader.clone(),
        tasks: tasks.clone(),
        peer_token,
        git_dir: config.git_dir(),
        address: ports.address(),
        identity: ports.identity().cloned(),
    });
    let poller = git::poll::run(farm.clone(), secrets, config.git_dir(), shutdown.clone());
    tasks.spawn("git-poller", TaskKind::SERVICE, poller);
    let hosted = git::host::routes(git::host::Host {
        farm: farm.clone(),
        folder: config.git_dir(),
        tasks: tasks.clone(),
    });
    let workers = WorkersServer::new(WorkerService::new(leader))
        .max_decoding_message_size(WORKER_MESSAGE_MAX);
    // One answer to unknown paths, the API's.
    let workers = tonic::service::Routes::new(workers)
        .into_axum_router()
        .reset_fallback();
    let health = Health::default();
    let part = health.part("group");
    let disk = health.part("disk");
    let watch = space.run(clock.clone(), disk, metrics.clone(), shutdown.clone());
    tasks.spawn("disk-space", TaskKind::SERVICE, watch);
    let aside = space::step_aside(farm.clone(), shutdown.clone());
    tasks.spawn("step-aside", TaskKind::SERVICE, aside);
    let health = health::routes(metrics.clone(), health);
    let mut own = workers.merge(peer_routes(&config, handle.clone())?);
    if let (Some(identity), Some(tls)) = (ports.identity(), &config.tls) {
        let life = tls.life.duration();
        let service = certificates::Service::new(farm.clone(), identity.clone(), life);
        let service = tonic::service::Routes::new(CertificatesServer::new(service));
        own = own.merge(service.into_axum_router().reset_fallback());
    }
    let answered = ports::Farm {
        own,
        passed_on: api.clone().merge(health.clone()),
    };
    ports.keep(&config, &tasks);
    let serving = Serving {
        limits: config.limits,
        clock,
        tasks: tasks.clone(),
        metrics,
    };
    let people = api.merge(hosted).merge(health);
    ports
        .serve(people, answered, &serving)
        .map_err(RunError::Start)?;
    info!(member = handle.member(), farm = %config.farm, address = %config.listen, "Member runs.");

    tasks.spawn("readiness", TaskKind::BACKGROUND, async move {
        let mut status = farm.status();
        loop {
            let leader = status.borrow_and_update().leader;
            match leader {
                Some(_) => part.ready(),
                None => part.not_ready("no leader is known"),
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    });
    shutdown.cancelled().await;
    handle.stop();
    // The driver's last write must be over before the lock is let go.
    if let Err(lost) = tasks.blocking("stop-member", move || running.join()).await {
        tracing::warn!(%lost, "The member did not end in order.");
    }
    Ok(())
}

fn setup(config: &CoordinatorConfig, membership: Membership, clock: &SharedClock) -> Setup {
    Setup {
        directory: config.data_dir.clone(),
        membership,
        options: Options {
            tick: config.tick.duration(),
            supported_version: config.supported_version(),
            ..Options::default()
        },
        stores: StoreOptions::default(),
        clock: clock.clone(),
        halt: Halt::abort(),
    }
}

/// The peer service, for members only.
fn peer_routes(
    config: &CoordinatorConfig,
    handle: crate::consensus::handle::Handle<LedgerMachine>,
) -> Result<axum::Router, RunError> {
    let wanted = Secret::new(format!("Bearer {}", read_peer_token(config)?.expose()));
    let wanted = Arc::new(wanted);
    let check = move |request: tonic::Request<()>| {
        let shown = request.metadata().get("authorization");
        match shown {
            Some(shown) if wanted.matches(shown.as_bytes()) => Ok(request),
            _ => Err(tonic::Status::unauthenticated(
                "this port is for members of the farm",
            )),
        }
    };
    let router = tonic::service::Routes::new(PeerServer::service(handle))
        .into_axum_router()
        .reset_fallback();
    Ok(router.layer(InterceptorLayer::new(check)))
}

fn read_peer_token(config: &CoordinatorConfig) -> Result<Secret<String>, RunError> {
    let path = config.peer_token_file.clone();
    let text = std::fs::read_to_string(&path).map_err(|err| RunError::PeerToken {
        path: path.clone(),
        err,
    })?;
    let text = text.trim();
    if text.is_empty() {
        return Err(RunError::PeerTokenText { path });
    }
    Ok(Secret::new(text.to_owned()))
}

fn bearer(
    config: &CoordinatorConfig,
    token: &Secret<String>,
) -> Result<AsciiMetadataValue, RunError> {
    let mut value: AsciiMetadataValue =
        format!("Bearer {}", token.expose())
            .parse()
            .map_err(|_| RunError::PeerTokenText {
                path: config.peer_token_file.clone(),
            })?;
    value.set_sensitive(true);
    Ok(value)
}
