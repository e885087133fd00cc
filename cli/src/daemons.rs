//! `oast coordinator`, `oast worker`, `oast local-cloud`: from a configuration file to a process.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use camino::Utf8PathBuf;
use oast_daemon::clock::{Clock as _, SystemClock};
use oast_daemon::config::{COMMON_ENV, load, process_env};
use oast_daemon::health::Health;
use oast_daemon::metrics::{Metrics, Role};
use oast_daemon::task::Tasks;
use oast_daemon::{isolate, panic, shutdown, telemetry};
use oast_worker::join::Join;
use oast_worker::local_cloud::{self, LocalCloudConfig};
use oast_worker::{Process, WorkerConfig};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::command::worker::Daemon;

/// How long a daemon may take to end in order.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Runs a member of the farm until a signal.
pub fn coordinator(config: Option<&Path>) -> anyhow::Result<()> {
    let config: oast_coordinator::config::CoordinatorConfig =
        load(config, &COMMON_ENV, &process_env)?;
    telemetry::init(&config.log)?;
    daemon(|tasks| async move {
        oast_coordinator::run(config, tasks, SystemClock::shared())
            .await
            .context("run the member")
    })
}

/// Runs a worker until a signal.
pub fn worker(flags: &Daemon) -> anyhow::Result<()> {
    let said = |variable: &str| flags.said(variable).or_else(|| process_env(variable));
    let config: WorkerConfig = load(flags.config.as_deref(), &oast_worker::config::ENV, &said)?;
    let join = join(flags, &config)?;
    // Before any thread: an ordinary user becomes root of a world of its own.
    isolate::enter()?;
    telemetry::init(&config.log)?;
    daemon(|tasks| async move {
        let process = process(Role::Worker, &tasks);
        if let Some(join) = join {
            join.run(&process.clock).await.context("join the farm")?;
            info!(worker_id = config.name, "Joined the farm.");
        }
        oast_worker::run(config, &process)
            .await
            .context("run the worker")
    })
}

/// The join that the flags ask for; none when the worker has joined already, so that the same
/// command line starts it every time.
fn join(flags: &Daemon, config: &WorkerConfig) -> anyhow::Result<Option<Join>> {
    let (Some(token), Some(ca_hash)) = (flags.token()?, flags.ca_hash.clone()) else {
        return Ok(None);
    };
    let Some(tls) = &config.tls else {
        bail!(
            "a worker that joins needs a folder for its certificate: --tls-dir, or [tls] dir in its configuration"
        );
    };
    let folder = tls.dir.clone().into_std_path_buf();
    if Join::is_done(&folder, SystemClock.wall())? {
        return Ok(None);
    }
    Ok(Some(Join {
        token,
        ca_hash,
        coordinators: config.coordinators.clone(),
        worker: config.name.clone(),
        folder,
    }))
}

/// Runs the local cloud until a signal.
pub fn local_cloud(config: Option<&Path>) -> anyhow::Result<()> {
    let config: LocalCloudConfig = load(config, &COMMON_ENV, &process_env)?;
    isolate::enter()?;
    telemetry::init(&telemetry::Log::default())?;
    let exe = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    daemon(|tasks| async move {
        let process = process(Role::LocalCloud, &tasks);
        local_cloud::run(&config, &exe, &process)
            .await
            .context("run the local cloud")
    })
}

fn process(role: Role, tasks: &Tasks) -> Process {
    let clock = SystemClock::shared();
    Process {
        metrics: Metrics::for_process(role, env!("CARGO_PKG_VERSION"), clock.clone(), tasks),
        clock,
        tasks: tasks.clone(),
        health: Health::default(),
    }
}

/// The life of a daemon: tasks, signals, the work, and an orderly end.
fn daemon<F, Fut>(work: F) -> anyhow::Result<()>
where
    F: FnOnce(Tasks) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    panic::abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let tasks = Tasks::for_process(shutdown.clone());
        shutdown::on_signals(&tasks)?;
        let result = work(tasks.clone()).await;
        shutdown.cancel();
        let ended = tasks.finish(SHUTDOWN_DEADLINE).await;
        result?;
        ended?;
        Ok(())
    })
}
