//! `oast worker list`. `oast worker` itself is the daemon.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use oast_daemon::exit::Exit;
use oast_daemon::secret::Secret;
use oast_proto::v1;
use zeroize::Zeroizing;

use crate::context::Connect;
use crate::output::{Output, ago, span, table};
use crate::shape;

/// Runs a worker, or lists the farm's workers
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// How the worker is run.
    #[command(flatten)]
    pub daemon: Daemon,
    /// What to do instead of running one.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of the worker itself; they come before its configuration.
#[derive(Debug, Default, clap::Args)]
pub struct Daemon {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Join a farm with this one-time token first: the token, @FILE, or - for standard input
    #[arg(long, value_name = "TOKEN", requires = "ca_hash")]
    pub join: Option<String>,
    /// Farm's ports of members, host:port, separated by commas
    #[arg(long, value_name = "ADDRS", value_delimiter = ',')]
    pub coordinator: Vec<SocketAddr>,
    /// What the farm's authority is known by: sha256:...
    #[arg(long, value_name = "PIN", requires = "join")]
    pub ca_hash: Option<String>,
    /// The worker's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Folder of caches and work
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Folder of the artifact store
    #[arg(long, value_name = "DIR")]
    pub store_dir: Option<PathBuf>,
    /// Folder of the worker's certificate [default: tls in --data-dir]
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
}

/// Longest token that is read.
const TOKEN_MAX: u64 = 4096;

impl Daemon {
    /// What a flag says in the place of this environment variable.
    pub fn said(&self, variable: &str) -> Option<String> {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        match variable {
            "OAST_WORKER_NAME" => self.name.clone(),
            "OAST_WORKER_DATA_DIR" => path(&self.data_dir),
            "OAST_WORKER_STORE_DIR" => path(&self.store_dir),
            "OAST_WORKER_TLS_DIR" => path(&self.tls_dir).or_else(|| {
                let folder = self.data_dir.as_ref().filter(|_| self.join.is_some())?;
                Some(folder.join("tls").display().to_string())
            }),
            "OAST_WORKER_COORDINATORS" if !self.coordinator.is_empty() => {
                let texts: Vec<String> = self
                    .coordinator
                    .iter()
                    .map(|address| format!("\"{address}\""))
                    .collect();
                Some(format!("[{}]", texts.join(", ")))
            }
            _ => None,
        }
    }

    /// The token, from wherever the flag says it is.
    pub fn token(&self) -> anyhow::Result<Option<Secret<String>>> {
        let Some(said) = &self.join else {
            return Ok(None);
        };
        let mut text = Zeroizing::new(String::new());
        if said == "-" {
            io::stdin()
                .lock()
                .take(TOKEN_MAX)
                .read_to_string(&mut text)?;
        } else if let Some(file) = said.strip_prefix('@') {
            let opened = File::open(file).with_context(|| format!("read the token from {file}"))?;
            opened.take(TOKEN_MAX).read_to_string(&mut text)?;
        } else {
            text.push_str(said);
        }
        match text.trim() {
            "" => bail!("the join token is empty: `oast operator worker-token create` makes one"),
            token => Ok(Some(Secret::new(token.to_owned()))),
        }
    }
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
