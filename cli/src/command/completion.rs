//! `oast completion`: scripts by which shells complete commands and flags.

use std::io::Write;

use clap::Command;
use clap_complete::{Shell, generate};
use oast_daemon::exit::Exit;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(
    after_help = "bash: source <(oast completion bash)\nzsh:  oast completion zsh > \"${fpath[1]}/_oast\"\nfish: oast completion fish > ~/.config/fish/completions/oast.fish"
)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args, mut command: Command) -> anyhow::Result<Exit> {
    // Into memory first: the generator panics where writing fails.
    let mut script = Vec::new();
    generate(args.shell, &mut command, "oast", &mut script);
    let mut out = std::io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(Exit::Ok)
}
