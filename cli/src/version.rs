//! `oast version`: which program this is.

use oast_daemon::exit::Exit;

use crate::output::Output;

/// Print the version of this program
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
}

/// Prints the version.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let value = serde_json::json!({
        "version": version,
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    });
    args.output
        .one(version, &value, || format!("oast {version}\n"))?;
    Ok(Exit::Ok)
}
