//! `oast worker`: puts the parts together and runs them until shutdown.
//!
//! ```text
//! Session --assignments--> Runner --work--> Sources | Engine | Tester | publish | batch
//!    ^                        |
//!    +---- Outbox <--reports--+        Observer --observations--> Session
//! ```

use std::sync::Arc;

use camino::Utf8PathBuf;
use oast_artifacts::{ArtifactStore, StoreError};
use oast_daemon::clock::SharedClock;
use oast_daemon::health::{self, Health};
use oast_daemon::lock::{DirLock, LockError};
use oast_daemon::metrics::Metrics;
use oast_daemon::serve::{BindError, Port, Serving};
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::tls::{self, Dialer, Identity, IdentityError, Role};
use oast_model::names::{NameError, WorkerName};
use oast_model::task::{Output, Work};
use tokio::sync::watch;
use tracing::info;

use crate::bake::base::distribution::native_architecture;
use crate::bake::cache::{CacheError, Layers};
use crate::bake::disk::Disks;
use crate::bake::engine::{self, Engine, Here};
use crate::bake::find::Members;
use crate::bake::shelf::Shelf;
use crate::bake::steps::cache::StepCaches;
use crate::bake::steps::run::Kitchen;
use crate::batch::{Batch, Executor};
use crate::config::{TokenError, WorkerConfig, read_token};
use crate::lease::Contact;
use crate::observe::{self, Observer};
use crate::provider::local::LocalProvider;
use crate::provider::{Provider, ProviderError};
use crate::publish;
use crate::renew;
use crate::runner::{self, Attempt, Halt, Runner};
use crate::sandbox::proxy::Proxy;
use crate::sandbox::proxy::policy::{Block, Destination, Policy};
use crate::sandbox::{IdMap, Launcher};
use crate::session::outbox::Outbox;
use crate::session::{Introduction, Session};
use crate::source::git::{Git, PrepareError};
use crate::source::{self, Sources};
use crate::test::Tester;

/// What the process gives its parts.
#[derive(Clone, Debug)]
pub struct Process {
    /// The clock.
    pub clock: SharedClock,
    /// The register of tasks; its root token means shutdown.
    pub tasks: Tasks,
    /// Where is counted.
    pub metrics: Metrics,
    /// What `/healthz` says.
    pub health: Health,
}

/// Why the worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its name.
    #[error("use {name:?} as a worker's name")]
    Name {
        /// As configured.
        name: String,
        #[source]
        err: NameError,
    },
    /// The data directory.
    #[error("lock the data directory")]
    Lock(#[from] LockError),
    /// A folder of the data directory.
    #[error("prepare {path}")]
    Folder {
        /// Which.
        path: Utf8PathBuf,
        #[source]
        err: std::io::Error,
    },
    /// The token.
    #[error("read the access token")]
    Token(#[from] TokenError),
    /// The certificate.
    #[error("use the worker's certificate")]
    Identity(#[from] IdentityError),
    /// The artifact store.
    #[error("open the artifact store")]
    Store(#[from] StoreError),
    /// A cache.
    #[error("open a cache")]
    Cache(#[from] CacheError),
    /// The Git cache.
    #[error(transparent)]
    Git(#[from] PrepareError),
    /// The ids of sandboxes.
    #[error("find ids for sandboxes")]
    Ids(#[from] oast_daemon::isolate::IdMapError),
    /// The proxy's rules.
    #[error("read bake.{field}: {reason}")]
    Rule {
        /// Which field.
        field: &'static str,
        /// Why not.
        reason: String,
    },
    /// The local cloud's address.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The port.
    #[error("listen for /metrics and /healthz")]
    Bind(#[from] BindError),
    /// The port, once it was ours.
    #[error("serve /metrics and /healthz")]
    Serve(#[source] std::io::Error),
}

/// Does each kind of work with its own part.
#[derive(Debug)]
struct Parts {
    sources: Sources,
    engine: Engine,
    tester: Tester,
    executor: Option<Executor>,
    store: ArtifactStore,
    tasks: Tasks,
}

#[tonic::async_trait]
impl runner::Worker for Parts {
    async fn work(&self, attempt: &Attempt, work: Work) -> Result<Output, Halt> {
        match work {
            Work::Source {
                origin,
                path,
                team,
                check_triggers,
                inputs,
            } => {
                let request = source::Request {
                    origin,
                    path,
                    team,
                    check_triggers,
                    inputs,
                };
                Ok(Output::Source(Box::new(
                    self.sources.run(attempt, request).await?,
                )))
            }
            Work::Bake {
                bake,
                tree,
                trust,
                done,
                image,
                images,
            } => {
                let request = engine::Request {
                    bake: *bake,
                    tree,
                    trust,
                    done,
                    image,
                    images,
                };
                Ok(Output::Baked(self.engine.run(attempt, request).await?))
            }
            Work::Test { tests, image } => Ok(Output::Tested(
                self.tester.run(attempt, &tests, &image).await?,
            )),
            Work::Publish { image, .. } => {
                let store = self.store.clone();
                let checking = move || publish::check(&store, &image);
                let checked = self.tasks.blocking("publish", checking).await?;
                checked.map_err(|err| Halt::error(&err))?;
                Ok(Output::Published)
            }
            Work::Batch {
                order,
                fleet,
                image,
                gates,
                healthy_deadline,
            } => {
                let Some(executor) = &self.executor else {
                    return Err(Halt::errored(
                        "this worker reaches no provider; configure [local_cloud]",
                    ));
                };
                let batch = Batch {
                    order,
                    fleet: *fleet,
                    image,
                    gates,
                    healthy_deadline: healthy_deadline.duration(),
                };
                Ok(Output::Batch(executor.run(attempt, &batch).await?))
            }
        }
    }
}

/// Runs the worker until the process's shutdown.
///
/// # Errors
/// See [`WorkerError`]; after a successful start there is none.
pub async fn run(config: WorkerConfig, process: &Process) -> Result<(), WorkerError> {
    let name = WorkerName::new(config.name.as_str()).map_err(|err| WorkerError::Name {
        name: config.name.clone(),
        err,
    })?;
    let Process {
        clock,
        tasks,
        metrics,
        health,
    } = process.clone();
    let part = health.part("session");
    let lock = DirLock::acquire(
        config.data_dir.as_std_path(),
        &format!("worker {name}"),
        &*clock,
    )?;
    let identity = identity(&config, &clock, &metrics)?;
    let token = match &identity {
        Some(_) => None,
        None => Some(read_token(&config.token_file)?),
    };
    let port = Port::bind(config.listen)?;
    let store = ArtifactStore::open(&config.store_dir)?;
    let work_folder = emptied(&config, "work")?;
    // What a killed worker leaves half-made lies in its own folder, and its next start empties it.
    // Refused only when another worker of this process came first, which is so in tests alone.
    let _ = tempfile::env::override_temp_dir(emptied(&config, "tmp")?.as_std_path());
    let idmap = IdMap::detect()?;
    let launcher = Launcher::new(config.helper.as_std_path(), idmap)
        .allow_host_network(config.bake.allow_host_network);
    let shelf = Shelf::new(config.bake.layer_cache.bytes(), &metrics);
    let layers = Arc::new(Layers::open(
        config.folder("layers"),
        store.clone(),
        tasks.clone(),
        idmap.host_base(),
        shelf.clone(),
    )?);
    let disks = Arc::new(Disks::open(config.folder("disks"), store.clone(), shelf)?);
    let git = Arc::new(Git::new(
        config.source.clone(),
        config.folder("git"),
        store.clone(),
        tasks.clone(),
        clock.clone(),
    )?);
    let provider = provider(&config, &clock)?;
    let outbox = Arc::new(Outbox::default());
    let contact = Arc::new(Contact::new(clock.clone(), config.lease_margin.duration()));
    let channel = watch::Sender::new(None);
    let dialer = match &identity {
        Some(identity) => Dialer::farm(identity.clone()),
        None => Dialer::plain(),
    };
    if let Some(identity) = identity {
        let members = renew::Members::new(&config.coordinators, dialer.clone(), clock.clone());
        let keeper = tls::keep(identity, members, tasks.cancelled());
        tasks.spawn("certificates", TaskKind::SERVICE, keeper);
    }
    let kitchen = Kitchen {
        launcher,
        proxy: Proxy::new(policy(&config)?, tasks.clone(), clock.clone()),
        caches: Arc::new(StepCaches::open(
            config.folder("step-caches"),
            config.bake.step_caches.bytes(),
            idmap.host_base(),
        )?),
        clock: clock.clone(),
        failure_lines: usize::try_from(config.bake.failure_lines).unwrap_or(usize::MAX),
    };
    let engine = Engine {
        worker: name,
        config: config.bake.clone(),
        base_folder: folder(&config, "base")?,
        download_folder: folder(&config, "downloads")?,
        work_folder: work_folder.clone(),
        store: store.clone(),
        layers: layers.clone(),
        disks: disks.clone(),
        finder: Arc::new(Members {
            channel: channel.subscribe(),
            token: token.clone(),
            clock: clock.clone(),
        }),
        kitchen,
        clock: clock.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        here: Here::default(),
    };
    let parts = Parts {
        sources: Sources {
            git,
            store: store.clone(),
            tasks: tasks.clone(),
            clock: clock.clone(),
            policy_file: config.source.policy_file.clone(),
        },
        engine,
        tester: Tester {
            store: store.clone(),
            disks,
            work_folder,
            tasks: tasks.clone(),
        },
        executor: provider.clone().map(|provider| Executor {
            provider,
            clock: clock.clone(),
        }),
        store: store.clone(),
        tasks: tasks.clone(),
    };
    let runner = Runner::new(
        runner::Options {
            slots: config.slots,
            clock: clock.clone(),
            tasks: tasks.clone(),
            metrics: metrics.clone(),
            store,
            contact: contact.clone(),
            outbox: outbox.clone(),
        },
        Arc::new(parts),
    );
    let observer = Observer::new(observe::Options {
        provider,
        clock: clock.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        prometheus: config.prometheus.clone(),
    });
    let address = port.address();
    let serving = Serving {
        limits: config.limits,
        clock: clock.clone(),
        tasks: tasks.clone(),
        metrics: metrics.clone(),
    };
    port.serve(health::routes(metrics, health), &serving)
        .map_err(WorkerError::Serve)?;
    let at = config.folder("address");
    std::fs::write(&at, format!("{address}\n"))
        .map_err(|err| WorkerError::Folder { path: at, err })?;
    info!(worker_id = config.name, incarnation = lock.incarnation(), %address, "Worker runs.");
    let session = Session {
        introduction: introduction(&config, lock.incarnation()),
        coordinators: config.coordinators.clone(),
        token,
        dialer,
        clock,
        runner,
        outbox,
        contact,
        observer,
        layers: Some(layers),
        channel,
        health: part,
    };
    session.run(tasks.cancelled()).await;
    Ok(())
}

/// The worker's certificate, where the farm wants one.
fn identity(
    config: &WorkerConfig,
    clock: &SharedClock,
    metrics: &Metrics,
) -> Result<Option<Identity>, WorkerError> {
    let Some(own) = &config.tls else {
        return Ok(None);
    };
    let options = tls::Options {
        folder: own.dir.clone().into_std_path_buf(),
        farm: None,
        role: Role::Worker,
        name: Some(config.name.clone()),
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    Ok(Some(Identity::open(options)?))
}

fn introduction(config: &WorkerConfig, incarnation: u64) -> Introduction {
    let local = config.local_cloud.as_ref().map(|_| "local".to_owned());
    let mut capabilities = config.capabilities.clone();
    if local.is_none() {
        // It would be given batches that it cannot carry out.
        capabilities.retain(|capability| capability != "batch");
    }
    Introduction {
        name: config.name.clone(),
        incarnation,
        region: config.region.clone().unwrap_or_default(),
        arch: native_architecture().to_owned(),
        capabilities,
        slots: config.slots,
        providers: local.into_iter().collect(),
    }
}

fn provider(
    config: &WorkerConfig,
    clock: &SharedClock,
) -> Result<Option<Arc<dyn Provider>>, WorkerError> {
    let Some(cloud) = &config.local_cloud else {
        return Ok(None);
    };
    let token = read_token(&cloud.token_file)?;
    Ok(Some(Arc::new(LocalProvider::new(
        cloud.address,
        token,
        clock.clone(),
    )?)))
}

fn policy(config: &WorkerConfig) -> Result<Policy, WorkerError> {
    let rule = |field: &'static str, reason: String| WorkerError::Rule { field, reason };
    let mut policy = Policy::default();
    for text in &config.bake.proxy_allow {
        let destination: Destination = text
            .parse()
            .map_err(|err| rule("proxy_allow", format!("{err}")))?;
        policy.allow.push(destination);
    }
    for address in config.farm_addresses() {
        let block: Block = address
            .ip()
            .to_string()
            .parse()
            .map_err(|err| rule("proxy_deny", format!("{err}")))?;
        policy.deny.push(block);
    }
    Ok(policy)
}

fn folder(config: &WorkerConfig, name: &str) -> Result<Utf8PathBuf, WorkerError> {
    use std::os::unix::fs::PermissionsExt;
    let path = config.folder(name);
    let open = || {
        std::fs::create_dir_all(&path)?;
        // The mapped root of sandboxes passes through it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711))
    };
    open().map_err(|err| WorkerError::Folder {
        path: path.clone(),
        err,
    })?;
    Ok(path)
}

/// A folder that holds work in progress only: what a dead worker left is removed.
fn emptied(config: &WorkerConfig, name: &str) -> Result<Utf8PathBuf, WorkerError> {
    let path = config.folder(name);
    match std::fs::remove_dir_all(&path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            return Err(WorkerError::Folder { path, err });
        }
        _ => {}
    }
    folder(config, name)
}
