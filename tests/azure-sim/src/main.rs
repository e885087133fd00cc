//! `azure-sim`: the simulated cloud as a process, for tests with real clients.
//!
//! It prints one line of JSON when it listens, and runs until it is killed.

use std::net::SocketAddr;
use std::path::PathBuf;

use oast_azure_sim::serve::{Sim, Tls, serve};
use oast_azure_sim::time::Pace;
use oast_azure_sim::world::Settings;

const USAGE: &str = "usage: azure-sim [--http ADDRESS] [--https ADDRESS --ca-folder FOLDER] \
[--scale FACTOR | --stepped] [--seed NUMBER] [--lenient-versions] [--virtual-retry-after] [--anonymous]

  --http 127.0.0.1:0      listen in the clear (the default)
  --https 127.0.0.1:0     listen under TLS; FOLDER gets azure-sim-ca.pem
  --scale 600             virtual milliseconds for each real one (1)
  --stepped               time stands still; POST /__sim/clock moves it
";

struct Options {
    http: SocketAddr,
    https: Option<SocketAddr>,
    folder: Option<PathBuf>,
    settings: Settings,
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut options = Options {
        http: nowhere,
        https: None,
        folder: None,
        settings: Settings::default(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--http" => options.http = read(&value()?)?,
            "--https" => options.https = Some(read(&value()?)?),
            "--ca-folder" => options.folder = Some(PathBuf::from(value()?)),
            "--scale" => options.settings.pace = Pace::Scaled(read::<u64>(&value()?)?.max(1)),
            "--stepped" => options.settings.pace = Pace::Stepped,
            "--seed" => options.settings.seed = read(&value()?)?,
            "--lenient-versions" => options.settings.lenient_versions = true,
            "--virtual-retry-after" => options.settings.virtual_retry_after = true,
            "--anonymous" => options.settings.anonymous = true,
            _ => return Err(format!("what is {arg}?\n{USAGE}")),
        }
    }
    if options.https.is_some() != options.folder.is_some() {
        return Err("--https and --ca-folder go together".to_owned());
    }
    Ok(options)
}

fn read<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("cannot read {text:?}"))
}

#[tokio::main]
#[expect(
    clippy::disallowed_macros,
    reason = "a command line speaks to its user"
)]
async fn main() -> std::process::ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("azure-sim: {why}");
            return std::process::ExitCode::from(2);
        }
    };
    match listen(options).await {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("azure-sim: {error}");
            return std::process::ExitCode::FAILURE;
        }
    }
    std::future::pending().await
}

async fn listen(options: Options) -> std::io::Result<serde_json::Value> {
    let sim = Sim::new(options.settings);
    let http = serve(sim.clone(), options.http, None).await?;
    let mut line = serde_json::json!({"http": format!("http://{http}")});
    if let (Some(address), Some(folder)) = (options.https, options.folder) {
        let tls = Tls::new()?;
        let file = tls.write_authority(&folder)?;
        let https = serve(sim, address, Some(tls)).await?;
        line["https"] = serde_json::json!(format!("https://localhost:{}", https.port()));
        line["ca"] = serde_json::json!(file);
    }
    Ok(line)
}
