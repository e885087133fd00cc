//! `oast watch` and `oast cancel`: for whatever the id names.

use std::time::Duration;

use anyhow::bail;
use oast_daemon::exit::Exit;
use oast_model::units::TimeSpan;
use oast_proto::v1;

use super::follow::{Ended, Event, Follower};
use super::story::Story;
use super::{block_on, changes, rollout, run};
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Output, note};
use crate::shape;

/// Follow a run or a rollout until it ends
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// A run (r-42) or a rollout (ro-42) [default: the newest run]
    #[arg(conflicts_with = "all")]
    id: Option<String>,
    /// Follow every change of runs, rollouts and fleets until Ctrl-C
    #[arg(long)]
    all: bool,
    /// Begin behind this position, as an earlier watch or a list said it [default: now]
    #[arg(long, value_name = "SEQ", requires = "all", default_value_t = 0)]
    from: u64,
    /// Only these: run, rollout, fleet; may be repeated
    #[arg(long = "kind", value_name = "KIND", requires = "all")]
    kinds: Vec<String>,
    /// Only runs of this pipeline and their rollouts
    #[arg(long, value_name = "NAME", requires = "all", default_value = "")]
    pipeline: String,
    /// Only this fleet and its rollouts
    #[arg(long, value_name = "NAME", requires = "all", default_value = "")]
    fleet: String,
    /// End with 1 when what was followed fails
    #[arg(long)]
    exit_status: bool,
    /// Follow for at most this long, such as 10m
    #[arg(long, value_name = "TIME")]
    timeout: Option<TimeSpan>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// End a run, or a rollout (which then goes back)
#[derive(Debug, clap::Args)]
pub struct CancelArgs {
    /// A run (r-42) or a rollout (ro-42)
    id: String,
    /// Why, for those who look later
    #[arg(long, default_value = "")]
    reason: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Follows.
pub fn watch(args: &WatchArgs) -> anyhow::Result<Exit> {
    block_on(async {
        let client = args.connect.client()?;
        if args.all {
            let filter = v1::WatchFilter {
                team: args.connect.said_team().unwrap_or_default(),
                kinds: args.kinds.clone(),
                pipeline: args.pipeline.clone(),
                fleet: args.fleet.clone(),
                ..v1::WatchFilter::default()
            };
            let limit = args.timeout.map(TimeSpan::duration);
            return changes::follow(&client, filter, args.from, args.output, limit).await;
        }
        let id = match &args.id {
            Some(id) => id.clone(),
            None => run::newest(&client, &args.connect).await?,
        };
        let timeout = args.timeout.map(TimeSpan::duration);
        let exit = match Id::read(&id)? {
            Id::Run(id) => follow_run(&client, &id, args.output, timeout, true).await?,
            Id::Rollout(id) => follow_rollout(&client, &id, args.output, timeout).await?,
        };
        Ok(if exit == Exit::Failed && !args.exit_status {
            Exit::Ok
        } else {
            exit
        })
    })
}

/// Cancels.
pub fn cancel(args: &CancelArgs) -> anyhow::Result<Exit> {
    match Id::read(&args.id)? {
        Id::Run(id) => block_on(run::cancel(&args.connect, args.output, &id, &args.reason)),
        Id::Rollout(id) => block_on(rollout::abort(
            &args.connect,
            args.output,
            &id,
            &args.reason,
            args.yes,
        )),
    }
}

/// What an id names.
#[derive(Debug, PartialEq, Eq)]
pub enum Id {
    /// r-42
    Run(String),
    /// ro-42
    Rollout(String),
}

impl Id {
    /// By its letters; a bare number is a run.
    pub fn read(text: &str) -> anyhow::Result<Id> {
        if text.parse::<oast_model::ids::RolloutId>().is_ok() {
            return Ok(Id::Rollout(text.to_owned()));
        }
        run_id(text).map(Id::Run).map_err(|_| {
            Fail::usage(format!(
                "`{text}` is neither a run (r-42) nor a rollout (ro-42)"
            ))
            .hint("`oast run list` shows the runs, `oast rollout list FLEET` the rollouts")
            .into()
        })
    }
}

/// A run's id; `42` is taken for `r-42`.
pub fn run_id(text: &str) -> anyhow::Result<String> {
    let id = if text.starts_with(|c: char| c.is_ascii_digit()) {
        format!("r-{text}")
    } else {
        text.to_owned()
    };
    match id.parse::<oast_model::ids::RunId>() {
        Ok(id) => Ok(id.to_string()),
        Err(err) => Err(Fail::usage(err.to_string())
            .hint("`oast run list` shows the runs")
            .into()),
    }
}

/// Tells a run as it happens and prints its end.
pub async fn follow_run(
    client: &Client,
    id: &str,
    output: Output,
    timeout: Option<Duration>,
    logs: bool,
) -> anyhow::Result<Exit> {
    let mut follower = Follower::new(client);
    follower.run(id);
    if logs && output.is_text() {
        follower.logs(id, true, Vec::new());
    }
    let mut story = if output.is_text() {
        Story::new()
    } else {
        Story::without_logs()
    };
    let mut last: Option<v1::Run> = None;
    let each = output.format == crate::output::Format::Jsonl;
    let ended = follower
        .until_end(timeout, |event, follower| {
            match event {
                Event::Run(run) => {
                    // Not yet, but before the run itself says so, its rollouts are at work.
                    for rollout in run.rollouts.iter().filter(|_| !run.ended) {
                        follower.rollout(rollout);
                    }
                    if each {
                        output.one(&run.id, &shape::Run::from(run.clone()), String::new)?;
                    } else {
                        story.run(&run);
                    }
                    last = Some(run);
                }
                Event::Rollout(rollout) if !each => story.rollout(&rollout),
                Event::Lines(lines) => story.lines(&lines.lines),
                Event::Resumed => story.resumed(),
                Event::Silence => {
                    let phase = last.as_ref().map_or("", |run| run.phase.as_str());
                    note(format!("  (still {phase})"));
                }
                Event::Rollout(_) | Event::Fleet(_) => {}
            }
            Ok(())
        })
        .await?;
    if let Some(exit) = left(ended, "run", id) {
        return Ok(exit);
    }
    let Some(run) = last.filter(|run| run.ended) else {
        bail!("the farm ended the watch of run {id} before the run ended");
    };
    let exit = run::exit_of(&run);
    if !each {
        let text = run::summary(&run);
        output.one(id, &shape::Run::from(run), || text)?;
    }
    Ok(exit)
}

/// Tells a rollout as it happens and prints its end.
pub async fn follow_rollout(
    client: &Client,
    id: &str,
    output: Output,
    timeout: Option<Duration>,
) -> anyhow::Result<Exit> {
    let mut follower = Follower::new(client);
    follower.rollout(id);
    let mut story = Story::new();
    let mut last: Option<v1::Rollout> = None;
    let each = output.format == crate::output::Format::Jsonl;
    let ended = follower
        .until_end(timeout, |event, _| {
            match event {
                Event::Rollout(rollout) => {
                    if each {
                        output.one(
                            &rollout.id,
                            &shape::Rollout::from(rollout.clone()),
                            String::new,
                        )?;
                    } else {
                        story.rollout(&rollout);
                    }
                    last = Some(rollout);
                }
                Event::Resumed => story.resumed(),
                Event::Silence => note("  (still going)"),
                Event::Run(_) | Event::Fleet(_) | Event::Lines(_) => {}
            }
            Ok(())
        })
        .await?;
    if let Some(exit) = left(ended, "rollout", id) {
        return Ok(exit);
    }
    let Some(rollout) = last.filter(|rollout| rollout.ended) else {
        bail!("the farm ended the watch of rollout {id} before the rollout ended");
    };
    let exit = rollout::exit_of(&rollout);
    if !each {
        let text = rollout::detail(&rollout);
        output.one(id, &shape::Rollout::from(rollout), || text)?;
    }
    Ok(exit)
}

/// How to come back to what goes on without us.
fn left(ended: Ended, noun: &str, id: &str) -> Option<Exit> {
    let exit = match ended {
        Ended::Itself => return None,
        Ended::Interrupted => Exit::Interrupted,
        Ended::TimedOut => Exit::TimedOut,
    };
    note(format!(
        "\n{noun} {id} keeps going.  Come back: oast watch {id}   End it: oast cancel {id}"
    ));
    Some(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_known_by_their_letters() {
        assert_eq!(
            Id::read("ro-4").expect("a rollout"),
            Id::Rollout("ro-4".into())
        );
        assert_eq!(Id::read("r-4").expect("a run"), Id::Run("r-4".into()));
        assert_eq!(Id::read("4").expect("a run"), Id::Run("r-4".into()));
        assert!(Id::read("web").is_err());
    }
}
