//! `oast worker list`. `oast worker` itself is the daemon.

use oast_daemon::exit::Exit;
use oast_proto::v1;

use crate::context::Connect;
use crate::output::{Output, ago, span, table};
use crate::shape;

/// Runs a worker, or lists the farm's workers
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
    /// What to do instead of running one.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Commands about workers.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the workers that are connected
    List {
        /// Which farm.
        #[command(flatten)]
        connect: Connect,
        /// How.
        #[command(flatten)]
        output: Output,
    },
}

/// Lists.
pub fn run(command: &Command) -> anyhow::Result<Exit> {
    let Command::List { connect, output } = command;
    super::block_on(list(connect, *output))
}

/// Lists workers.
pub async fn list(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let mut workers = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListWorkersRequest {
            page_token,
            ..v1::ListWorkersRequest::default()
        };
        let page = client
            .call(|member| {
                let request = request.clone();
                async move { member.operator().list_workers(request).await }
            })
            .await?;
        workers.extend(page.workers.into_iter().map(shape::Worker::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let empty = "No worker is connected: `oast worker --config FILE` runs one.";
    output.list(
        &workers,
        |worker| &worker.name,
        empty,
        |workers| {
            let rows = workers.iter().map(|worker| {
                [
                    worker.name.clone(),
                    worker.region.clone(),
                    worker.arch.clone(),
                    format!("{}/{}", worker.tasks.len(), worker.slots),
                    worker.tasks.join(" "),
                    ago(worker.connected_at_ms),
                    span(worker.silent_ms),
                    worker.version.clone(),
                    worker.capabilities.join(" "),
                ]
            });
            table(
                [
                    "WORKER",
                    "REGION",
                    "ARCH",
                    "BUSY",
                    "TASKS",
                    "CONNECTED",
                    "SILENT",
                    "VERSION",
                    "CAN",
                ],
                rows,
            )
        },
    )?;
    Ok(Exit::Ok)
}
