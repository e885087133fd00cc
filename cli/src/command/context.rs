//! `oast context`: the farms that the command line knows.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;

use oast_daemon::exit::Exit;
use oast_daemon::secret::Secret;
use serde::Serialize;

use crate::context::{Known, authority, known, path, remember, select};
use crate::fail::Fail;
use crate::output::{Output, facts, note, table};

/// Choose which farm the commands talk to
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the known farms
    List,
    /// Use another farm from now on
    Use {
        /// Its name here
        name: String,
    },
    /// Show a farm's addresses and team
    Show {
        /// Its name here [default: the current one]
        name: Option<String>,
    },
    /// Keep a farm under a name; its token is read from standard input
    Set {
        /// Its name here
        name: String,
        /// Members, host:port or https://host:port, separated by commas
        #[arg(long, value_name = "ADDRS", value_delimiter = ',', required = true)]
        addr: Vec<String>,
        /// File with the authority of the farm's certificates, ca.pem of a member; it is copied
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// Team to act for
        #[arg(long, value_name = "TEAM")]
        team: Option<String>,
    },
}

/// A context without its token.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    name: String,
    current: bool,
    addresses: Vec<String>,
    team: Option<String>,
    has_token: bool,
    has_ca: bool,
}

impl From<Known> for Shown {
    fn from(known: Known) -> Shown {
        Shown {
            name: known.name,
            current: known.current,
            addresses: known.addresses,
            team: known.team,
            has_token: known.has_token,
            has_ca: known.has_ca,
        }
    }
}

/// Longest token that is read.
const TOKEN_MAX: u64 = 4096;

/// Lists, chooses, shows or keeps.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.command {
        Command::List => {
            let all: Vec<Shown> = known()?.into_iter().map(Shown::from).collect();
            let empty =
                "No farm is known: `oast quickstart` starts one, `oast context set` keeps one.";
            args.output.list(
                &all,
                |shown| &shown.name,
                empty,
                |all| {
                    let rows = all.iter().map(|shown| {
                        [
                            if shown.current { "*" } else { "" }.to_owned(),
                            shown.name.clone(),
                            shown.addresses.join(","),
                            shown.team.clone().unwrap_or_default(),
                        ]
                    });
                    table(["", "NAME", "MEMBERS", "TEAM"], rows)
                },
            )?;
        }
        Command::Use { name } => {
            if !select(name)? {
                return Err(unknown(name));
            }
            note(format!("Commands talk to {name} from now on."));
        }
        Command::Show { name } => {
            let all = known()?;
            let wanted = |known: &Known| {
                name.as_ref()
                    .map_or(known.current, |name| known.name == *name)
            };
            let Some(found) = all.into_iter().find(wanted) else {
                return Err(match name {
                    Some(name) => unknown(name),
                    None => Fail::new(Exit::NotFound, "no context is chosen")
                        .hint("`oast context list` shows the known ones, `oast context use NAME` chooses")
                        .into(),
                });
            };
            let shown = Shown::from(found);
            let file = path()?.display().to_string();
            args.output.one(&shown.name, &shown, || {
                facts(&[
                    ("Name", shown.name.clone()),
                    ("Members", shown.addresses.join(", ")),
                    ("Team", shown.team.clone().unwrap_or_default()),
                    (
                        "Token",
                        if shown.has_token { "kept" } else { "none" }.to_owned(),
                    ),
                    (
                        "Authority",
                        if shown.has_ca { "kept" } else { "" }.to_owned(),
                    ),
                    ("File", file),
                ])
            })?;
        }
        Command::Set {
            name,
            addr,
            ca,
            team,
        } => {
            // Before anything is typed.
            let ca = ca.as_deref().map(authority).transpose()?;
            if io::stdin().is_terminal() {
                note("Type or paste the token, then Enter and Ctrl-D:");
            }
            let mut token = String::new();
            io::stdin()
                .lock()
                .take(TOKEN_MAX)
                .read_to_string(&mut token)?;
            let token = token.trim();
            if token.is_empty() {
                return Err(Fail::usage("no token came on standard input")
                    .hint("an administrator makes one: oast operator token create NAME --role operator")
                    .into());
            }
            let token = Secret::new(token.to_owned());
            remember(name, addr, &token, team.as_deref(), ca)?;
            note(format!("Commands talk to {name} from now on."));
        }
    }
    Ok(Exit::Ok)
}

fn unknown(name: &str) -> anyhow::Error {
    Fail::new(Exit::NotFound, format!("there is no context `{name}`"))
        .hint("`oast context list` shows the known ones")
        .into()
}
