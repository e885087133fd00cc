//! `oast coordinator`, `oast worker`, `oast local-cloud`: from a configuration file to a process.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use oast_daemon::clock::SystemClock;
use oast_daemon::config::{COMMON_ENV, load, process_env};
use oast_daemon::health::Health;
use oast_daemon::metrics::{Metrics, Role};
use oast_daemon::task::Tasks;
use oast_daemon::{isolate, panic, shutdown, telemetry};
use oast_worker::Process;
use oast_worker::local_cloud::{self, LocalCloudConfig};
use tokio_util::sync::CancellationToken;

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
pub fn worker(config: Option<&Path>) -> anyhow::Result<()> {
    let config: oast_worker::config::WorkerConfig =
        load(config, &oast_worker::config::ENV, &process_env)?;
    // Before any thread: an ordinary user becomes root of a world of its own.
    isolate::enter()?;
    telemetry::init(&config.log)?;
    daemon(|tasks| async move {
        let process = process(Role::Worker, &tasks);
        oast_worker::run(config, &process)
            .await
            .context("run the worker")
    })
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
