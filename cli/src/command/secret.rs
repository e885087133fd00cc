//! `oast secret`: values that steps use and nobody reads back.
//!
//! A value comes from standard input only: what stands on a command line is in the history of the
//! shell and in the list of processes. On a terminal it is read without being shown.

use std::io::{self, IsTerminal, Read, Write};

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_model::names::SecretName;
use oast_proto::v1;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::block_on;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Output, ago, note, table};
use crate::shape;

/// Largest value; the farm has a limit of its own below this.
const VALUE_MAX: u64 = 1 << 20;

/// Keep secrets for steps and repositories
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
    /// Set a secret to what is read from standard input, without the last line break
    Set {
        /// The secret
        name: SecretName,
    },
    /// List the names, versions and ages of a team's secrets
    List,
}

/// Sets or lists.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    match &args.command {
        Command::Set { name } => block_on(set(connect, output, name)),
        Command::List => block_on(list(connect, output)),
    }
}

async fn set(connect: &Connect, output: Output, name: &SecretName) -> anyhow::Result<Exit> {
    let team = team(connect)?;
    // Whether a farm is known, before anybody types a secret for nothing.
    let client = connect.client()?;
    let value = if io::stdin().is_terminal() {
        typed(&format!("Value of {name} for team {team} (not shown): "))?
    } else {
        piped()?
    };
    if value.expose().is_empty() {
        return Err(Fail::usage("the value is empty")
            .hint(format!(
                "pipe it in, such as `pass show {name} | oast secret set {name}`"
            ))
            .into());
    }
    let request_id = random::request_id();
    let secret = client
        .call(|member| {
            let request = v1::SetSecretRequest {
                request_id: request_id.clone(),
                team: team.clone(),
                name: name.to_string(),
                value: value.expose().clone().into(),
            };
            async move { member.resources().set_secret(request).await }
        })
        .await?;
    let secret = shape::Secret::from(secret);
    output.one(&secret.name, &secret, || {
        format!(
            "secret {} of team {} is at version {}\n",
            secret.name, secret.team, secret.version
        )
    })?;
    Ok(Exit::Ok)
}

fn team(connect: &Connect) -> anyhow::Result<String> {
    connect.team()?.ok_or_else(|| {
        Fail::usage("say whose secret it is")
            .hint("--team TEAM, or OAST_TEAM")
            .into()
    })
}

fn piped() -> anyhow::Result<Secret<Vec<u8>>> {
    let mut value = Vec::new();
    io::stdin()
        .lock()
        .take(VALUE_MAX + 1)
        .read_to_end(&mut value)?;
    if value.len() as u64 > VALUE_MAX {
        return Err(Fail::usage(format!("a secret has at most {VALUE_MAX} bytes")).into());
    }
    Ok(Secret::new(without_line_break(value)))
}

fn without_line_break(mut value: Vec<u8>) -> Vec<u8> {
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    value
}

fn typed(question: &str) -> anyhow::Result<Secret<Vec<u8>>> {
    let mut err = io::stderr().lock();
    write!(err, "{question}")?;
    err.flush()?;
    let quiet = Quiet::new()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    drop(quiet);
    note("");
    Ok(Secret::new(without_line_break(line.into_bytes())))
}

/// A terminal that does not show what is typed, until dropped.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Quiet> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        // Flush: what was typed before the question is no answer to it.
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing any more.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Lists a team's secrets.
pub async fn list(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let team = team(connect)?;
    let client = connect.client()?;
    let found = client
        .call(|member| {
            let team = team.clone();
            async move {
                member
                    .resources()
                    .list_secrets(v1::ListSecretsRequest { team })
                    .await
            }
        })
        .await?;
    let secrets: Vec<_> = found.secrets.into_iter().map(shape::Secret::from).collect();
    let empty = format!("Team {team} has no secrets: `oast secret set NAME` keeps one.");
    output.list(
        &secrets,
        |secret| &secret.name,
        &empty,
        |secrets| {
            let rows = secrets.iter().map(|secret| {
                [
                    secret.name.clone(),
                    secret.version.to_string(),
                    ago(secret.set_at_ms),
                    secret.set_by.clone(),
                ]
            });
            table(["SECRET", "VERSION", "SET", "BY"], rows)
        },
    )?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_line_break_goes() {
        for (given, kept) in [
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("a", "a"),
            ("\n", ""),
        ] {
            assert_eq!(without_line_break(given.into()), kept.as_bytes());
        }
    }
}
