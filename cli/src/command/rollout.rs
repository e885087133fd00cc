//! `oast rollout`: how a fleet moves from a version to another.

use std::fmt::Write as _;

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_model::ids::RolloutId;
use oast_model::units::TimeSpan;
use oast_proto::v1;

use super::block_on;
use super::fleet::get as get_fleet;
use super::run::time;
use super::watch::follow_rollout;
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{
    DECLINED, Output, ago, confirm, count, facts, note, phase, plain, table, took,
};
use crate::shape;

/// Rollouts in one list.
const PAGE: u32 = 50;

/// Look at rollouts, follow, abort, go back
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
    /// List the rollouts of a fleet, newest first
    List {
        /// The fleet
        fleet: String,
        /// Only rollouts in this phase, such as rolled_back; may be repeated
        #[arg(long = "phase", value_name = "PHASE")]
        phases: Vec<String>,
        /// Only rollouts begun since: 2h (ago) or 2026-11-23T06:00:00Z
        #[arg(long, value_name = "TIME", value_parser = time)]
        since: Option<u64>,
        /// Most rollouts that are shown
        #[arg(long, value_name = "N", default_value_t = PAGE)]
        limit: u32,
    },
    /// Show a rollout: its batches and what the gates saw
    #[command(visible_alias = "show")]
    Status {
        /// A fleet (its newest rollout) or a rollout such as ro-42
        #[arg(value_name = "FLEET|ROLLOUT")]
        of: String,
        /// Wait until it ends; 1 when it did not succeed
        #[arg(long)]
        wait: bool,
        /// Wait for at most this long, such as 10m
        #[arg(long, value_name = "TIME", requires = "wait")]
        timeout: Option<TimeSpan>,
    },
    /// Follow a rollout until it ends
    Watch {
        /// A fleet (its newest rollout) or a rollout such as ro-42
        #[arg(value_name = "FLEET|ROLLOUT")]
        of: String,
        /// Follow for at most this long, such as 10m
        #[arg(long, value_name = "TIME")]
        timeout: Option<TimeSpan>,
    },
    /// End a rollout before its time; what it changed goes back
    Abort {
        /// A fleet (its active rollout) or a rollout such as ro-42
        #[arg(value_name = "FLEET|ROLLOUT")]
        of: String,
        /// Why, for those who look later
        #[arg(long, default_value = "")]
        reason: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Bring a fleet back to the good version before, or to any version
    Rollback {
        /// The fleet
        fleet: String,
        /// Version to go to, such as web:3 [default: the good one before]
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Do not wait for the end
        #[arg(long)]
        detach: bool,
    },
}

/// Lists, shows, follows, aborts or goes back.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        match &args.command {
            Command::List {
                fleet,
                phases,
                since,
                limit,
            } => {
                let request = v1::ListRolloutsRequest {
                    fleet: fleet.clone(),
                    phases: phases.clone(),
                    since_ms: since.unwrap_or(0),
                    ..v1::ListRolloutsRequest::default()
                };
                list(connect, output, request, *limit).await
            }
            Command::Status {
                of, wait: false, ..
            } => show(connect, output, of).await,
            Command::Status { of, timeout, .. } | Command::Watch { of, timeout } => {
                let client = connect.client()?;
                let id = resolve(&client, of, false).await?;
                follow_rollout(&client, &id, output, timeout.map(TimeSpan::duration)).await
            }
            Command::Abort { of, reason, yes } => {
                let client = connect.client()?;
                let id = resolve(&client, of, true).await?;
                abort(connect, output, &id, reason, *yes).await
            }
            Command::Rollback {
                fleet,
                to,
                yes,
                detach,
            } => rollback(connect, output, fleet, to.as_deref(), *yes, *detach).await,
        }
    })
}

/// A rollout's id: given, or a fleet's active one, or its last one.
async fn resolve(client: &Client, of: &str, active: bool) -> anyhow::Result<String> {
    if of.parse::<RolloutId>().is_ok() {
        return Ok(of.to_owned());
    }
    let fleet = get_fleet(client, of).await?;
    let found = if fleet.active_rollout.is_empty() && !active {
        fleet.last_rollout
    } else {
        fleet.active_rollout
    };
    if found.is_empty() {
        let what = if active {
            "has no active rollout"
        } else {
            "has had no rollout yet"
        };
        return Err(Fail::new(Exit::NotFound, format!("fleet `{of}` {what}"))
            .hint(format!("`oast fleet show {of}` shows the fleet"))
            .into());
    }
    Ok(found)
}

/// Lists a fleet's rollouts.
pub async fn list(
    connect: &Connect,
    output: Output,
    mut request: v1::ListRolloutsRequest,
    limit: u32,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let fleet = request.fleet.clone();
    let mut rollouts: Vec<shape::Rollout> = Vec::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(rollouts.len()).unwrap_or(u32::MAX));
        request.page_size = left;
        let page = client
            .call(|member| {
                let request = request.clone();
                async move { member.fleets().list_rollouts(request).await }
            })
            .await?;
        rollouts.extend(page.rollouts.into_iter().map(shape::Rollout::from));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() || rollouts.len() >= limit as usize {
            break;
        }
    }
    let empty = format!("Fleet {fleet} has had no rollout yet.");
    output.list(
        &rollouts,
        |rollout| &rollout.id,
        &empty,
        |rollouts| {
            let rows = rollouts.iter().map(|rollout| {
                [
                    rollout.id.clone(),
                    rollout.phase.replace('_', " "),
                    rollout.from.clone(),
                    rollout.to.clone(),
                    rollout.run.clone(),
                    ago(rollout.began_at_ms),
                    took(rollout.began_at_ms, rollout.ended_at_ms),
                    rollout.reason.clone(),
                ]
            });
            table(
                [
                    "ROLLOUT", "PHASE", "FROM", "TO", "RUN", "BEGAN", "TOOK", "REASON",
                ],
                rows,
            )
        },
    )?;
    Ok(Exit::Ok)
}

/// Shows a rollout.
pub async fn show(connect: &Connect, output: Output, of: &str) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let id = resolve(&client, of, false).await?;
    let rollout = get(&client, &id).await?;
    let text = detail(&rollout);
    output.one(&id, &shape::Rollout::from(rollout), || text)?;
    Ok(Exit::Ok)
}

async fn get(client: &Client, id: &str) -> Result<v1::Rollout, tonic::Status> {
    client
        .call(|member| {
            let rollout = id.to_owned();
            async move {
                member
                    .fleets()
                    .get_rollout(v1::GetRolloutRequest { rollout })
                    .await
            }
        })
        .await
}

/// Aborts a rollout.
pub async fn abort(
    connect: &Connect,
    output: Output,
    id: &str,
    reason: &str,
    yes: bool,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let before = get(&client, id).await?;
    if before.ended {
        let message = format!(
            "rollout {id} has ended already: {}",
            before.phase.replace('_', " ")
        );
        return Err(Fail::failed(message)
            .hint(format!(
                "`oast rollout rollback {}` brings the fleet to another version",
                before.fleet
            ))
            .into());
    }
    let back = if before.from.is_empty() {
        "nothing"
    } else {
        before.from.as_str()
    };
    let question = format!(
        "Abort rollout {id}: fleet {} goes from {} back to {back}?",
        before.fleet, before.to
    );
    if !confirm(&question, yes)? {
        return Ok(DECLINED);
    }
    let request = v1::AbortRolloutRequest {
        request_id: random::request_id(),
        rollout: id.to_owned(),
        reason: reason.to_owned(),
    };
    let rollout = client
        .call(|member| {
            let request = request.clone();
            async move { member.fleets().abort_rollout(request).await }
        })
        .await?;
    let text = format!("rollout {id} is {}\n", rollout.phase.replace('_', " "));
    output.one(id, &shape::Rollout::from(rollout), || text)?;
    if output.is_text() {
        note(format!("Follow it: oast watch {id}"));
    }
    Ok(Exit::Ok)
}

async fn rollback(
    connect: &Connect,
    output: Output,
    name: &str,
    to: Option<&str>,
    yes: bool,
    detach: bool,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let fleet = get_fleet(&client, name).await?;
    let version = match to {
        Some(version) => version.to_owned(),
        None if fleet.previous_good.is_empty() => {
            return Err(Fail::failed(format!(
                "fleet `{name}` has no good version before {}",
                fleet.good
            ))
            .hint("--to names a version: `oast image list` shows them")
            .into());
        }
        None => fleet.previous_good.clone(),
    };
    let now = if fleet.target.is_empty() {
        "nothing"
    } else {
        fleet.target.as_str()
    };
    let question = format!(
        "Bring {} of fleet {name} from {now} to {version}?",
        count(fleet.total as usize, "instance")
    );
    if !confirm(&question, yes)? {
        return Ok(DECLINED);
    }
    let request = v1::BeginRolloutRequest {
        request_id: random::request_id(),
        fleet: name.to_owned(),
        version,
    };
    let fleet = client
        .call(|member| {
            let request = request.clone();
            async move { member.fleets().begin_rollout(request).await }
        })
        .await?;
    let id = if fleet.active_rollout.is_empty() {
        fleet.last_rollout.clone()
    } else {
        fleet.active_rollout.clone()
    };
    if detach || id.is_empty() {
        let text = format!("{id}\n");
        output.one(&id, &shape::Fleet::from(fleet), || text)?;
        return Ok(Exit::Ok);
    }
    follow_rollout(&client, &id, output, None).await
}

/// 0 when the fleet is where the rollout was to bring it.
pub fn exit_of(rollout: &v1::Rollout) -> Exit {
    if rollout.phase == "succeeded" {
        Exit::Ok
    } else {
        Exit::Failed
    }
}

/// Everything about a rollout, for people.
pub fn detail(rollout: &v1::Rollout) -> String {
    let mut text = facts(&[
        ("Rollout", rollout.id.clone()),
        ("Fleet", rollout.fleet.clone()),
        ("Phase", rollout.phase.replace('_', " ")),
        ("Reason", rollout.reason.clone()),
        ("From", rollout.from.clone()),
        ("To", rollout.to.clone()),
        ("Run", rollout.run.clone()),
        ("Asked by", rollout.requested_by.clone()),
        ("Began", ago(rollout.began_at_ms)),
        ("Took", took(rollout.began_at_ms, rollout.ended_at_ms)),
        ("Clean-up", rollout.debt.join("; ")),
    ]);
    for batch in &rollout.batches {
        let _ = writeln!(
            text,
            "\n{} {} to {}: {}",
            phase(&batch.phase),
            plain(&batch.kind),
            batch.version,
            plain(&batch.instances.join(", "))
        );
        if !batch.reason.is_empty() {
            let _ = writeln!(text, "  reason: {}", plain(&batch.reason));
        }
        for reading in &batch.readings {
            let _ = writeln!(
                text,
                "  gate {} {} on {}: {}",
                reading.gate + 1,
                reading.outcome,
                plain(&reading.instance),
                plain(&reading.measured)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_that_went_back_is_a_failure() {
        let exit = |phase: &str| {
            exit_of(&v1::Rollout {
                phase: phase.into(),
                ..Default::default()
            })
        };
        assert_eq!(exit("succeeded"), Exit::Ok);
        assert_eq!(exit("rolled_back"), Exit::Failed);
        assert_eq!(exit("failed"), Exit::Failed);
    }
}
