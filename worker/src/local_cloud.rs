//! `oast local-cloud`: a small cloud on one machine, shaped as scale sets are on Azure.
//!
//! Sets of instances behind a TCP load balancer, with etags, draining, long operations and durable
//! state, over a gRPC control API. It is a process of its own so that a worker can die without its
//! instances. It decides nothing about rollouts and repairs nothing: that is the farm's business.
//!
//! ```text
//! provider/local --gRPC--> api -> cloud (owner) -> driver per instance -> runtime (namespaces)
//!                                   |  '-- store (one synced file per record)
//! clients ------TCP------> balancer -> backend -> the instance's network namespace
//!                                        ^ health
//! ```
//!
//! Instances are children of this process: when it dies the kernel ends them, and its next start
//! brings them back from the durable state.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use oast_daemon::config::{Problems, Validate};
use oast_daemon::health as pages;
use oast_daemon::isolate::IdMapError;
use oast_daemon::lock::{DirLock, LockError};
use oast_daemon::metrics::Metric;
use oast_daemon::secret::Secret;
use oast_daemon::serve::{BindError, Limits, Port, Serving};
use oast_daemon::task::{TaskHandle, TaskKind};
use oast_proto::localcloud::v1::local_cloud_server::LocalCloudServer;
use tonic::service::Routes;

pub mod api;
pub mod backend;
pub mod balancer;
pub mod cloud;
pub mod driver;
pub mod health;
pub mod instance;
pub mod layers;
pub mod record;
pub mod runtime;
pub mod spec;
pub mod store;
pub mod units;
pub mod view;

use crate::Process;
use crate::sandbox::{IdMap, Launcher};
use cloud::{Cloud, CloudError, Handle};
use instance::{Options, Sandboxes};
use layers::StoreLayers;
use runtime::{BootError, Runtime};
use store::{Store, StoreError};
use view::{InstanceView, Phase};

/// Port of the control API when none is configured.
const PORT: u16 = 7474;
/// Shortest token that is accepted as a secret.
const TOKEN_MIN: usize = 16;

/// Configuration of `oast local-cloud`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalCloudConfig {
    /// Where the control API, `/metrics` and `/healthz` answer. Loopback only; port 0 picks one,
    /// which is then found in `DATA_DIR/address`. Default 127.0.0.1:7474.
    pub listen: SocketAddr,
    /// Durable state, upper folders of instances and unpacked layers. Locked. No default.
    pub data_dir: Utf8PathBuf,
    /// The farm's artifact store, from which layers are unpacked. No default.
    pub store_dir: Utf8PathBuf,
    /// File with the bearer token of the control API, at least 16 characters. No default.
    pub token_file: Utf8PathBuf,
    /// How images are booted. Default `auto`.
    pub boot: BootPolicy,
    /// Names this cloud's control groups on the machine: letters, digits and dashes. Empty takes
    /// a name that is derived from `data_dir`. Default empty.
    pub farm: String,
    /// Bounds of the port.
    pub limits: Limits,
}

/// How images are booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootPolicy {
    /// The image's own init where the host allows it, else its enabled units.
    #[default]
    Auto,
    /// The image's own init; a host that does not allow it is an error.
    Init,
    /// The enabled application units, read and started by the local cloud.
    Units,
}

impl Default for LocalCloudConfig {
    fn default() -> LocalCloudConfig {
        LocalCloudConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            data_dir: Utf8PathBuf::new(),
            store_dir: Utf8PathBuf::new(),
            token_file: Utf8PathBuf::new(),
            boot: BootPolicy::default(),
            farm: String::new(),
            limits: Limits::default(),
        }
    }
}

impl Validate for LocalCloudConfig {
    fn validate(&self, problems: &mut Problems) {
        let paths = [
            ("data_dir", &self.data_dir),
            ("store_dir", &self.store_dir),
            ("token_file", &self.token_file),
        ];
        for (field, path) in paths {
            problems.require(path.is_absolute(), field, "must be an absolute path");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        problems.require(
            self.farm.chars().all(plain),
            "farm",
            "must be letters, digits and dashes",
        );
        self.limits.validate(problems);
    }
}

impl LocalCloudConfig {
    /// The name of this cloud's control groups (`oast-NAME`), for whoever sweeps after it.
    #[must_use]
    pub fn farm_name(&self) -> String {
        if !self.farm.is_empty() {
            return self.farm.clone();
        }
        let hash = blake3::hash(self.data_dir.as_str().as_bytes()).to_hex();
        format!("cloud-{}", &hash[..12])
    }
}

/// Why the local cloud did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be had.
    #[error("lock the data directory")]
    Lock(#[from] LockError),
    /// The token cannot be read.
    #[error("read the token from {path}")]
    Token {
        /// The file.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
    /// The token is not one.
    #[error("the token in {path} has fewer than {TOKEN_MIN} characters")]
    ShortToken {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The port cannot be had.
    #[error("listen for the control API")]
    Bind(#[from] BindError),
    /// The durable state cannot be used.
    #[error("open the durable state")]
    Store(#[from] StoreError),
    /// The state cannot be taken up.
    #[error("take up the durable state")]
    Cloud(#[from] CloudError),
    /// Instances cannot have ids of their own.
    #[error("find ids for instances")]
    Ids(#[from] IdMapError),
    /// The artifact store cannot be used.
    #[error("open the artifact store")]
    Artifacts(#[from] oast_artifacts::StoreError),
    /// Instances cannot be run here.
    #[error("get ready to run instances")]
    Runtime(#[from] BootError),
    /// The operating system refused.
    #[error("{doing}")]
    System {
        /// What was tried.
        doing: String,
        /// Why not.
        #[source]
        err: std::io::Error,
    },
}

/// A local cloud that serves.
#[derive(Debug)]
pub struct Running {
    /// Where the control API answers.
    pub address: SocketAddr,
    /// The way to its owner, for tests and for tools in the same process.
    pub handle: Handle,
    owner: TaskHandle,
    _lock: DirLock,
}

impl Running {
    /// Waits until the cloud and all of its instances have ended after shutdown.
    pub async fn ended(self) {
        self.owner.join().await;
    }
}

/// Runs the local cloud with real instances, until the process's shutdown. `exe` is our own binary,
/// which sandboxes re-execute.
///
/// # Errors
/// See [`StartError`].
pub async fn run(
    config: &LocalCloudConfig,
    exe: &Utf8Path,
    process: &Process,
) -> Result<(), StartError> {
    let instances = || {
        let idmap = IdMap::detect()?;
        let store = oast_artifacts::ArtifactStore::open_read_only(&config.store_dir)?;
        let cache = config.data_dir.join("layers");
        let layers = StoreLayers::open(store, &cache, idmap.host_base()).map_err(|err| {
            let doing = format!("open the layer cache {cache}");
            StartError::System { doing, err }
        })?;
        let runtime = Sandboxes::new(Options {
            launcher: Launcher::new(exe.as_std_path(), idmap),
            layers: Arc::new(layers),
            folder: config.data_dir.join("instances"),
            farm: config.farm_name(),
            boot: config.boot,
            clock: process.clock.clone(),
            tasks: process.tasks.clone(),
        })?;
        Ok(Arc::new(runtime) as Arc<dyn Runtime>)
    };
    start(config, instances, process).await?.ended().await;
    Ok(())
}

/// Starts the local cloud. `runtime` is made once the data directory is locked, because making it
/// sweeps what an earlier process left there.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: &LocalCloudConfig,
    runtime: impl FnOnce() -> Result<Arc<dyn Runtime>, StartError>,
    process: &Process,
) -> Result<Running, StartError> {
    let part = process.health.part("local cloud");
    part.not_ready("taking up the durable state");
    let lock = DirLock::acquire(
        config.data_dir.as_std_path(),
        "local cloud",
        &*process.clock,
    )?;
    let token = read_token(config)?;
    // The port first: a second cloud on the same port should not start instances.
    let port = Port::bind(config.listen)?;
    let store = Store::open(&config.data_dir)?;
    let (handle, cloud) = Cloud::start(
        store,
        runtime()?,
        process.clock.clone(),
        process.tasks.clone(),
    )
    .await?;
    let owner = process
        .tasks
        .spawn("local cloud", TaskKind::SERVICE, cloud.run());
    let service = LocalCloudServer::with_interceptor(
        api::Api::new(handle.clone(), process.clock.clone()),
        api::Bearer::new(token),
    );
    count(&handle, process);
    let router = Routes::new(service)
        .prepare()
        .into_axum_router()
        .merge(pages::routes(
            process.metrics.clone(),
            process.health.clone(),
        ));
    let address = port.address();
    let system = |doing: &str| {
        let doing = doing.to_owned();
        move |err| StartError::System { doing, err }
    };
    let serving = Serving {
        limits: config.limits,
        clock: process.clock.clone(),
        tasks: process.tasks.clone(),
        metrics: process.metrics.clone(),
    };
    port.serve(router, &serving)
        .map_err(system("serve the control API"))?;
    let at = config.data_dir.join("address");
    std::fs::write(&at, format!("{address}\n")).map_err(system(&format!("write {at}")))?;
    part.ready();
    tracing::info!(%address, data_dir = %config.data_dir, "Local cloud serves.");
    Ok(Running {
        address,
        handle,
        owner,
        _lock: lock,
    })
}

fn read_token(config: &LocalCloudConfig) -> Result<Secret<String>, StartError> {
    let path = &config.token_file;
    let text = std::fs::read_to_string(path).map_err(|err| StartError::Token {
        path: path.clone(),
        err,
    })?;
    let token = text.trim();
    if token.len() < TOKEN_MIN {
        return Err(StartError::ShortToken { path: path.clone() });
    }
    Ok(Secret::new(token.to_owned()))
}

/// Words of the `state` label, each counted at every look so that none keeps an old number.
const STATES: [&str; 6] = [
    "creating",
    "healthy",
    "unhealthy",
    "draining",
    "stopped",
    "failed",
];

fn state_of(instance: &InstanceView) -> &'static str {
    match instance.phase {
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
        Phase::Creating | Phase::Reimaging | Phase::Restarting => "creating",
        _ if instance.record.draining || instance.phase == Phase::Deleting => "draining",
        _ if instance.health == backend::Health::Healthy => "healthy",
        _ => "unhealthy",
    }
}

/// Time between looks for the metrics; a scrape shows values at most this old.
const COUNT_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

fn count(handle: &Handle, process: &Process) {
    let instances = process.metrics.gauges(Metric::CloudInstances);
    let connections = process.metrics.counters(Metric::CloudConnections);
    let (handle, clock) = (handle.clone(), process.clock.clone());
    process
        .tasks
        .spawn("count local cloud", TaskKind::BACKGROUND, async move {
            let mut before = std::collections::BTreeMap::new();
            while let Ok(sets) = handle.sets().await {
                for state in STATES {
                    let all = sets.iter().flat_map(|s| &s.instances);
                    let n = all.filter(|i| state_of(i) == state).count();
                    instances.with(&[state]).set(n as u64);
                }
                // Sets of one fleet may share a balancer, whose counts must enter once.
                let mut now = std::collections::BTreeMap::new();
                for set in &sets {
                    now.insert(set.address, set.counts);
                }
                for (address, counts) in &now {
                    let old = before.get(address).copied().unwrap_or_default();
                    let balancer::Counts {
                        accepted,
                        refused,
                        redialled,
                        cut,
                        broken,
                    } = counts.since(&old);
                    let outcomes = [
                        ("accepted", accepted),
                        ("refused", refused),
                        ("redialled", redialled),
                        ("cut", cut),
                        ("broken", broken),
                    ];
                    for (outcome, n) in outcomes {
                        connections.with(&[outcome]).add(n);
                    }
                }
                before = now;
                clock.sleep(COUNT_EVERY).await;
            }
        });
}

#[cfg(test)]
pub(crate) mod tests;
