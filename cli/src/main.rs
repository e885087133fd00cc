//! `oast`: every daemon and every command of the farm in one binary.
//!
//! Results go to standard output, messages to standard error. Exit codes stand in
//! [`oast_daemon::exit`].

mod client;
mod context;
mod daemons;
mod quickstart;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use oast_daemon::exit::Exit;
use oast_daemon::{isolate, preflight};

/// A build farm that bakes virtual-machine images and rolls them out.
#[derive(Debug, Parser)]
#[command(name = "oast", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole mission on this machine: push, bake, roll out, survive.
    Quickstart(quickstart::QuickstartArgs),
    /// Runs a member of the farm.
    Coordinator(DaemonArgs),
    /// Runs a worker.
    Worker(DaemonArgs),
    /// Runs the local cloud: scale sets of namespaces behind a load balancer.
    LocalCloud(DaemonArgs),
    /// Parts of other commands that are processes of their own.
    #[command(hide = true, subcommand)]
    Internal(Internal),
}

#[derive(Debug, clap::Args)]
struct DaemonArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Started by our own code only, before any thread exists.
#[derive(Debug, Subcommand)]
enum Internal {
    FarmInit,
    Sandbox,
    Preflight { request: String },
    FarmRemove { folder: PathBuf },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Nothing can be done about a standard error that is gone.
            let _ = err.print();
            let exit = if err.use_stderr() {
                Exit::Usage
            } else {
                Exit::Ok
            };
            return exit.into();
        }
    };
    let done = match cli.command {
        Command::Quickstart(args) => {
            quickstart::run(&args).map(|good| if good { Exit::Ok } else { Exit::Failed })
        }
        Command::Coordinator(args) => {
            daemons::coordinator(args.config.as_deref()).map(|()| Exit::Ok)
        }
        Command::Worker(args) => daemons::worker(args.config.as_deref()).map(|()| Exit::Ok),
        Command::LocalCloud(args) => {
            daemons::local_cloud(args.config.as_deref()).map(|()| Exit::Ok)
        }
        Command::Internal(Internal::FarmInit) => isolate::entry(),
        Command::Internal(Internal::Sandbox) => oast_worker::sandbox::entry(),
        Command::Internal(Internal::Preflight { .. }) => preflight::entry(),
        Command::Internal(Internal::FarmRemove { folder }) => isolate::remove_entry(&folder),
    };
    match done {
        Ok(exit) => exit.into(),
        Err(err) => {
            anstream::eprintln!("error: {err:#}");
            Exit::Failed.into()
        }
    }
}
