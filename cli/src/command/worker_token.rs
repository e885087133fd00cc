//! `oast operator worker-token`: tokens that let one worker in each.

use oast_daemon::exit::Exit;
use oast_model::units::TimeSpan;
use oast_proto::v1;
use serde::Serialize;

use crate::context::Connect;
use crate::output::{Output, ago, confirm, note, now_ms, span, table};

/// Let workers in.
#[derive(Debug, clap::Subcommand)]
pub enum WorkerToken {
    /// Make a token for one worker and print how it joins, this once
    Create {
        /// Only for the worker of this name [default: any]
        #[arg(long, value_name = "WORKER")]
        name: Option<String>,
        /// How long it can be used, at most 7d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        ttl: TimeSpan,
    },
    /// List tokens: open ones, and who used the others
    List,
    /// Make a token worthless that nobody used
    Revoke {
        /// As the list shows it
        id: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// A token without itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    id: String,
    worker: String,
    created_by: String,
    created_at_ms: u64,
    expires_at_ms: u64,
    used_by: String,
    used_at_ms: u64,
}

impl From<v1::WorkerToken> for Shown {
    fn from(token: v1::WorkerToken) -> Shown {
        Shown {
            id: token.id,
            worker: token.worker,
            created_by: token.created_by,
            created_at_ms: token.created_at_ms,
            expires_at_ms: token.expires_at_ms,
            used_by: token.used_by,
            used_at_ms: token.used_at_ms,
        }
    }
}

impl Shown {
    fn state(&self) -> String {
        let now = now_ms();
        if !self.used_by.is_empty() {
            format!("used by {} {}", self.used_by, ago(self.used_at_ms))
        } else if now >= self.expires_at_ms {
            "over".to_owned()
        } else {
            format!("open for {}", span(self.expires_at_ms - now))
        }
    }
}

/// Makes, lists or revokes.
pub async fn run(command: &WorkerToken, connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    match command {
        WorkerToken::Create { name, ttl } => create(connect, output, name.as_deref(), *ttl).await,
        WorkerToken::List => list(connect, output).await,
        WorkerToken::Revoke { id, yes } => revoke(connect, id, *yes).await,
    }
}

async fn create(
    connect: &Connect,
    output: Output,
    name: Option<&str>,
    ttl: TimeSpan,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::CreateWorkerTokenRequest {
        worker: name.unwrap_or_default().to_owned(),
        ttl_ms: ttl.as_millis(),
    };
    let made = client
        .call(|member| {
            let request = request.clone();
            async move { member.worker_tokens().create_worker_token(request).await }
        })
        .await?;
    let json = serde_json::json!({
        "token": made.token,
        "caHash": made.ca_hash,
        "coordinators": made.addresses,
        "expiresAtMs": made.expires_at_ms,
    });
    output.one(&made.token, &json, || format!("{}\n", made.token))?;
    if output.is_text() {
        let name = name.map_or_else(String::new, |name| format!(" --name {name}"));
        note("It lets one worker in, once, and is not shown again. On the worker's machine:");
        note(format!(
            "  oast worker --config worker.toml{name} --join {} --coordinator {} --ca-hash {}",
            made.token,
            made.addresses.join(","),
            made.ca_hash
        ));
    }
    Ok(Exit::Ok)
}

async fn list(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let found = client
        .call(|member| async move {
            let request = v1::ListWorkerTokensRequest {};
            member.worker_tokens().list_worker_tokens(request).await
        })
        .await?;
    let tokens: Vec<Shown> = found.tokens.into_iter().map(Shown::from).collect();
    let empty = "There is no join token: `oast operator worker-token create` makes one.";
    output.list(
        &tokens,
        |token| &token.id,
        empty,
        |tokens| {
            let rows = tokens.iter().map(|token| {
                let worker = match token.worker.as_str() {
                    "" => "any".to_owned(),
                    worker => worker.to_owned(),
                };
                [
                    token.id.clone(),
                    worker,
                    token.state(),
                    token.created_by.clone(),
                    ago(token.created_at_ms),
                ]
            });
            table(["ID", "FOR", "STATE", "MADE BY", "MADE"], rows)
        },
    )?;
    Ok(Exit::Ok)
}

async fn revoke(connect: &Connect, id: &str, yes: bool) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    if !confirm(&format!("Revoke the join token {id}?"), yes)? {
        return Ok(crate::output::DECLINED);
    }
    client
        .call(|member| {
            let request = v1::RevokeWorkerTokenRequest { id: id.to_owned() };
            async move { member.worker_tokens().revoke_worker_token(request).await }
        })
        .await?;
    note(format!("The join token {id} is worthless from now on."));
    Ok(Exit::Ok)
}
