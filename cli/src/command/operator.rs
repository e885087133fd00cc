//! `oast operator`: the members of the farm, and who may talk to it.

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_proto::v1;

mod recover;
mod snapshot;
mod version;

use super::block_on;
use super::pki::{self, Pki};
use super::worker_token::{self, WorkerToken};
use crate::context::Connect;
use crate::output::{DECLINED, Output, confirm, note};

mod raft;

/// Look after the farm itself
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The members' agreement on the farm's state
    #[command(subcommand)]
    Raft(raft::Raft),
    /// Who may talk to the farm
    #[command(subcommand)]
    Token(Token),
    /// Which workers may join
    #[command(subcommand)]
    WorkerToken(WorkerToken),
    /// The farm's own authority and its certificates
    #[command(subcommand)]
    Pki(Pki),
    /// The farm's whole ledger in a file, and a farm from such a file
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// After the majority of the members was lost for good: go on with one that is left (offline)
    Recover(recover::Args),
    /// What every member supports, and what the farm uses of it
    #[command(subcommand)]
    Version(version::Command),
}

#[derive(Debug, clap::Subcommand)]
enum Token {
    /// Make a token and print it, this once
    Create {
        /// Who holds it
        name: String,
        /// What it allows
        #[arg(long, value_enum, default_value_t = Role::Viewer)]
        role: Role,
        /// Only for this team [default: the whole farm]
        #[arg(long, value_name = "TEAM")]
        for_team: Option<String>,
    },
    /// Make a token worthless
    Revoke {
        /// Who holds it
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// What a token allows.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Role {
    /// Look.
    Viewer,
    /// Run, cancel, roll back.
    Operator,
    /// Everything.
    Admin,
}

/// Lists members, makes and revokes tokens.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        match &args.command {
            Command::Raft(what) => raft::run(connect, output, what).await,
            Command::Token(Token::Create {
                name,
                role,
                for_team,
            }) => create(connect, output, name, *role, for_team.as_deref()).await,
            Command::Token(Token::Revoke { name, yes }) => revoke(connect, name, *yes).await,
            Command::WorkerToken(command) => worker_token::run(command, connect, output).await,
            Command::Pki(command) => pki::run(command, output),
            Command::Snapshot(command) => snapshot::run(command, connect, output).await,
            Command::Recover(args) => recover::run(args, output),
            Command::Version(command) => version::run(*command, connect, output).await,
        }
    })
}

async fn create(
    connect: &Connect,
    output: Output,
    name: &str,
    role: Role,
    team: Option<&str>,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let word = match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    };
    let request = v1::CreateTokenRequest {
        request_id: random::request_id(),
        name: name.to_owned(),
        role: word.to_owned(),
        team: team.unwrap_or_default().to_owned(),
    };
    let made = client
        .call(|member| {
            let request = request.clone();
            async move { member.operator().create_token(request).await }
        })
        .await?;
    let json = serde_json::json!({ "name": name, "role": word, "team": team, "token": made.token });
    // The token is the result in every form.
    output.one(&made.token, &json, || format!("{}\n", made.token))?;
    if output.is_text() {
        note(
            "It is not shown again. Use it as OAST_TOKEN, or keep it: oast context set NAME --addr HOST:PORT",
        );
    }
    Ok(Exit::Ok)
}

async fn revoke(connect: &Connect, name: &str, yes: bool) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    if !confirm(&format!("Revoke the token of {name}?"), yes)? {
        return Ok(DECLINED);
    }
    client
        .call(|member| {
            let name = name.to_owned();
            async move {
                member
                    .operator()
                    .revoke_token(v1::RevokeTokenRequest { name })
                    .await
            }
        })
        .await?;
    note(format!("The token of {name} is worthless from now on."));
    Ok(Exit::Ok)
}
