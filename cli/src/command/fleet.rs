//! `oast fleet`: what serves, instance by instance.

use std::io::IsTerminal;

use oast_daemon::exit::Exit;
use oast_proto::v1;

use super::block_on;
use super::follow::{Ended, Event, Follower};
use crate::client::Client;
use crate::context::Connect;
use crate::output::{Format, Output, facts, note, table};
use crate::shape;

/// Look at fleets and their instances
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
    /// List fleets
    List,
    /// Show a fleet with a line for each instance
    Show {
        /// The fleet
        fleet: String,
        /// Show it again whenever it changes
        #[arg(short, long)]
        watch: bool,
    },
}

/// Lists or shows.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        match &args.command {
            Command::List => list(connect, output).await,
            Command::Show {
                fleet,
                watch: false,
            } => show(connect, output, fleet).await,
            Command::Show { fleet, watch: true } => watch(connect, output, fleet).await,
        }
    })
}

/// Lists fleets.
pub async fn list(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::ListFleetsRequest {
        team: connect.said_team().unwrap_or_default(),
    };
    let found = client
        .call(|member| {
            let request = request.clone();
            async move { member.fleets().list_fleets(request).await }
        })
        .await?;
    let fleets: Vec<_> = found.fleets.into_iter().map(shape::Fleet::from).collect();
    let empty = "There are no fleets yet: `oast apply -f FILE` makes one.";
    output.list(
        &fleets,
        |fleet| &fleet.name,
        empty,
        |fleets| {
            let rows = fleets.iter().map(|fleet| {
                [
                    fleet.name.clone(),
                    fleet.team.clone(),
                    fleet.provider.clone(),
                    health(fleet),
                    dash(&fleet.target),
                    if fleet.active_rollout.is_empty() {
                        fleet.last_phase.replace('_', " ")
                    } else {
                        format!(
                            "{} {}",
                            fleet.active_rollout,
                            fleet.last_phase.replace('_', " ")
                        )
                    },
                    fleet.listen.clone(),
                    fleet.note.clone(),
                ]
            });
            table(
                [
                    "FLEET", "TEAM", "PROVIDER", "HEALTHY", "TARGET", "ROLLOUT", "ADDRESS", "NOTE",
                ],
                rows,
            )
        },
    )?;
    Ok(Exit::Ok)
}

/// Shows a fleet.
pub async fn show(connect: &Connect, output: Output, name: &str) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let fleet = shape::Fleet::from(get(&client, name).await?);
    output.one(name, &fleet, || detail(&fleet))?;
    Ok(Exit::Ok)
}

/// Asks for a fleet.
pub async fn get(client: &Client, name: &str) -> Result<v1::Fleet, tonic::Status> {
    client
        .call(|member| {
            let fleet = name.to_owned();
            async move {
                member
                    .fleets()
                    .get_fleet(v1::GetFleetRequest { fleet })
                    .await
            }
        })
        .await
}

async fn watch(connect: &Connect, output: Output, name: &str) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let mut follower = Follower::new(&client);
    follower.fleet(name);
    let mut last = String::new();
    let redraw = output.is_text() && std::io::stdout().is_terminal();
    // Several values make no JSON document: a line each.
    let each = Output {
        format: if output.format == Format::Json {
            Format::Jsonl
        } else {
            output.format
        },
    };
    let ended = follower
        .until_end(None, |event, _| {
            match event {
                Event::Fleet(fleet) => {
                    let fleet = shape::Fleet::from(fleet);
                    let mut text = detail(&fleet);
                    if text == last && output.is_text() {
                        return Ok(());
                    }
                    last.clone_from(&text);
                    text.insert_str(0, if redraw { "\u{1b}[H\u{1b}[2J" } else { "" });
                    text.push('\n');
                    each.one(name, &fleet, || text)?;
                }
                Event::Resumed => note("(going on with another member)"),
                Event::Run(_) | Event::Rollout(_) | Event::Lines(_) | Event::Silence => {}
            }
            Ok(())
        })
        .await?;
    Ok(if ended == Ended::Interrupted {
        Exit::Interrupted
    } else {
        Exit::Ok
    })
}

fn health(fleet: &shape::Fleet) -> String {
    if !fleet.observed {
        return format!("?/{}", fleet.total);
    }
    let healthy = fleet
        .instances
        .iter()
        .filter(|instance| instance.healthy)
        .count();
    format!("{healthy}/{}", fleet.total)
}

fn dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}

fn detail(fleet: &shape::Fleet) -> String {
    let rollout = match (fleet.active_rollout.as_str(), fleet.last_rollout.as_str()) {
        ("", "") => String::new(),
        ("", last) => format!("{last} ({})", fleet.last_phase.replace('_', " ")),
        (active, _) => format!("{active} is active"),
    };
    let mut text = facts(&[
        ("Fleet", fleet.name.clone()),
        ("Team", fleet.team.clone()),
        ("Provider", fleet.provider.clone()),
        ("Address", fleet.listen.clone()),
        ("Healthy", health(fleet)),
        ("Target", dash(&fleet.target)),
        ("Good", fleet.good.clone()),
        ("Good before", fleet.previous_good.clone()),
        ("Barred", fleet.barred.join(", ")),
        ("Rollout", rollout),
        ("Note", fleet.note.clone()),
    ]);
    text.push('\n');
    if !fleet.observed {
        text.push_str("Nobody watches its instances at the moment: is a worker with its provider connected?\n");
        return text;
    }
    let rows = fleet.instances.iter().map(|instance| {
        let health = match (instance.healthy, instance.in_rotation) {
            (true, true) => "healthy",
            (true, false) => "healthy, drained",
            (false, true) => "unhealthy",
            (false, false) => "unhealthy, drained",
        };
        [
            instance.name.clone(),
            dash(&instance.version),
            instance.state.clone(),
            health.to_owned(),
            dash(&instance.direct),
            instance.replaced.to_string(),
            instance.note.clone(),
        ]
    });
    text.push_str(&table(
        [
            "INSTANCE", "VERSION", "STATE", "HEALTH", "ADDRESS", "REPLACED", "NOTE",
        ],
        rows,
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_shown_with_a_line_for_each_instance() {
        let instance = |name: &str, healthy| v1::Instance {
            name: name.into(),
            version: "web:2".into(),
            state: "running".into(),
            healthy,
            in_rotation: healthy,
            direct: "127.0.0.1:9000".into(),
            ..Default::default()
        };
        let fleet = v1::Fleet {
            name: "web-prod".into(),
            target: "web:2".into(),
            total: 2,
            observed: true,
            instances: vec![instance("web-prod-0", true), instance("web-prod-1", false)],
            ..Default::default()
        };
        assert_eq!(
            detail(&fleet.into()),
            "\
Fleet    web-prod
Healthy  1/2
Target   web:2

INSTANCE    VERSION  STATE    HEALTH              ADDRESS         REPLACED  NOTE
web-prod-0  web:2    running  healthy             127.0.0.1:9000  0
web-prod-1  web:2    running  unhealthy, drained  127.0.0.1:9000  0
"
        );
    }
}
