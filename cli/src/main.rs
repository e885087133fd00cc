//! `oast`: every daemon and every command of the farm in one binary.
//!
//! Results go to standard output, messages to standard error. Exit codes stand in
//! [`oast_daemon::exit`]; [`fail`] turns every error into one.

mod client;
mod command;
mod context;
mod daemons;
mod fail;
mod init;
mod output;
mod quickstart;
mod reach;
mod schema;
mod shape;
mod validate;
mod version;

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use oast_daemon::exit::{Exit, TABLE};
use oast_daemon::{isolate, preflight};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What `oast` alone prints: the way from nothing to a fleet, and no more.
const GOLDEN_PATH: &str = "\
Oast bakes machine images from Git and rolls them out.

  oast quickstart              a whole farm on this machine, with a story to watch
  oast init                    a first oast.yaml in your repository
  oast run                     your files, baked, tested and rolled out
  oast watch                   the newest run, as it happens
  oast fleet show FLEET        what serves, instance by instance
  oast rollout rollback FLEET  back to the version that was good

Everything else: oast --help
";

/// A build farm that bakes virtual-machine images and rolls them out
#[derive(Debug, Parser)]
#[command(
    name = "oast",
    version,
    max_term_width = 100,
    after_help = exit_codes(),
    disable_help_subcommand = false
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole mission on this machine: push, bake, roll out, survive
    Quickstart(quickstart::QuickstartArgs),
    Init(init::Args),
    Validate(validate::Args),
    Run(command::run::Args),
    Watch(command::watch::WatchArgs),
    Cancel(command::watch::CancelArgs),
    Retry(command::retry::Args),
    Logs(command::logs::Args),
    Image(command::image::Args),
    Fleet(command::fleet::Args),
    Rollout(command::rollout::Args),
    Apply(command::apply::Args),
    Resource(command::resource::Args),
    Secret(command::secret::Args),
    List(command::noun::ListArgs),
    #[command(visible_alias = "get")]
    Show(command::noun::ShowArgs),
    Doctor(command::doctor::Args),
    Whoami(command::whoami::Args),
    Context(command::context::Args),
    Operator(command::operator::Args),
    /// Runs a member of the farm
    Coordinator(DaemonArgs),
    Worker(command::worker::Args),
    /// Runs the local cloud: scale sets of namespaces behind a load balancer
    LocalCloud(DaemonArgs),
    Schema(schema::Args),
    Completion(command::completion::Args),
    Version(version::Args),
    /// Parts of other commands that are processes of their own
    #[command(hide = true, subcommand)]
    Internal(Internal),
}

#[derive(Debug, clap::Args)]
struct DaemonArgs {
    /// Configuration file (TOML)
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
    match run(cli) {
        Ok(exit) => exit.into(),
        Err(err) => fail::report(&err).into(),
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let Some(command) = cli.command else {
        let mut out = anstream::stdout().lock();
        out.write_all(GOLDEN_PATH.as_bytes())?;
        return Ok(Exit::Ok);
    };
    match command {
        Command::Quickstart(args) => {
            quickstart::run(&args).map(|good| if good { Exit::Ok } else { Exit::Failed })
        }
        Command::Init(args) => init::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Run(args) => command::run::run(&args),
        Command::Watch(args) => command::watch::watch(&args),
        Command::Cancel(args) => command::watch::cancel(&args),
        Command::Retry(args) => command::retry::run(&args),
        Command::Logs(args) => command::logs::run(&args),
        Command::Image(args) => command::image::run(&args),
        Command::Fleet(args) => command::fleet::run(&args),
        Command::Rollout(args) => command::rollout::run(&args),
        Command::Apply(args) => command::apply::run(&args),
        Command::Resource(args) => command::resource::run(&args),
        Command::Secret(args) => command::secret::run(&args),
        Command::List(args) => command::noun::list(&args),
        Command::Show(args) => command::noun::show(&args),
        Command::Doctor(args) => command::doctor::run(&args),
        Command::Whoami(args) => command::whoami::run(&args),
        Command::Context(args) => command::context::run(&args),
        Command::Operator(args) => command::operator::run(&args),
        Command::Coordinator(args) => {
            daemons::coordinator(args.config.as_deref()).map(|()| Exit::Ok)
        }
        Command::Worker(args) => match &args.command {
            None => daemons::worker(&args.daemon).map(|()| Exit::Ok),
            Some(command) => command::worker::run(command),
        },
        Command::LocalCloud(args) => {
            daemons::local_cloud(args.config.as_deref()).map(|()| Exit::Ok)
        }
        Command::Schema(args) => schema::run(&args),
        Command::Completion(args) => command::completion::run(&args, Cli::command()),
        Command::Version(args) => version::run(&args),
        Command::Internal(Internal::FarmInit) => isolate::entry(),
        Command::Internal(Internal::Sandbox) => oast_worker::sandbox::entry(),
        Command::Internal(Internal::Preflight { .. }) => preflight::entry(),
        Command::Internal(Internal::FarmRemove { folder }) => isolate::remove_entry(&folder),
    }
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (exit, meaning) in TABLE {
        let _ = writeln!(text, "  {:<4} {meaning}", exit.code());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_readme_and_quickstart_say_can_be_typed() {
        for line in [
            "oast",
            "oast run",
            "oast run --var a=1 --var b=2 --detach -o json",
            "oast run --repository web --branch main",
            "oast run list -o name",
            "oast run list --context other --open",
            "oast run show r-1 -o json",
            "oast run watch r-1 --exit-status",
            "oast run cancel r-1 --reason because",
            "oast run --priority batch",
            "oast watch",
            "oast watch ro-1 --timeout 10m",
            "oast cancel r-1",
            "oast retry r-1 --from 2 --detach",
            "oast run list --stale=5s --phase failed --since 2h --branch main",
            "oast run list --stale",
            "oast watch --all --from 5 --kind run --pipeline web -o jsonl",
            "oast logs -f r-1 --step 3 --tail 20 --timestamps",
            "oast image list",
            "oast image show web@stable --packages",
            "oast image sbom web --format spdx",
            "oast image provenance web:3 --key",
            "oast image verify web@stable --key farm.pem -o json",
            "oast image verify --key farm.pem --provenance web.json --disk web.vhd --spdx web.spdx",
            "oast image export web:3 --format vhd -o web.vhd --force",
            "oast image diff web:1 web:2 --detailed-exitcode -o json",
            "oast image diff ./old.vhd disk.raw",
            "oast image diff web:1 web --packages",
            "oast image lint --azure web@stable",
            "oast image lint --azure ./web.vhd -o json",
            "oast fleet show web -w",
            "oast rollout list web",
            "oast rollout status web --wait --timeout 1m",
            "oast rollout abort ro-1 --reason because --yes",
            "oast rollout rollback web --to web:1 --yes",
            "oast apply -f farm.yaml --dry-run",
            "oast resource list",
            "oast resource delete fleet web --yes",
            "oast secret set db --team demo",
            "oast list workers",
            "oast get run r-1",
            "oast get runs",
            "oast show fleet web",
            "oast worker list -o json",
            "oast worker --config w.toml",
            "oast worker --config w.toml --name w1 --join t --coordinator 10.0.0.1:7444,10.0.0.2:7444 --ca-hash sha256:00",
            "oast operator raft list-peers",
            "oast operator pki init --dir pki --name acme",
            "oast operator pki issue member m1 --host m1.example --host 10.0.0.1 --life 30d",
            "oast operator pki show pki/ca.pem -o json",
            "oast operator worker-token create --name w1 --ttl 1h",
            "oast operator worker-token list",
            "oast operator worker-token revoke 0123456789ab --yes",
            "oast context set acme --addr https://m1.example:7443 --ca pki/ca.pem",
            "oast run list --ca pki/ca.pem --addr https://m1.example:7443",
            "oast operator token create ci --role operator --for-team demo",
            "oast operator snapshot save farm.oast",
            "oast operator snapshot inspect farm.oast -o json",
            "oast operator snapshot restore farm.oast --data-dir d --member 2 --members 1,2,3 --cluster-id demo.28123456.9f3a11c2",
            "oast operator recover --data-dir d --i-accept-that-acknowledged-writes-may-be-lost",
            "oast operator version show -o json",
            "oast context use quickstart",
            "oast doctor -o json",
            "oast init",
            "oast version -o json",
            "oast completion bash",
        ] {
            if let Err(err) = parse(line) {
                panic!("`{line}`: {err}");
            }
        }
    }

    #[test]
    fn mistakes_are_usage_errors_with_a_suggestion() {
        let err = parse("oast rollot list web").expect_err("a typing mistake");
        assert!(err.to_string().contains("rollout"), "{err}");
        for line in [
            "oast run --branch x",
            "oast logs r-1 --step 0",
            "oast run --timeout 10",
            "oast image export web",
            "oast image lint web",
            "oast image diff web",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
