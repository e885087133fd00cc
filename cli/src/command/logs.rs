//! `oast logs`: what a run's steps wrote.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::Write;

use oast_daemon::exit::Exit;
use oast_model::time::Timestamp;
use oast_proto::v1;

use super::follow::{Ended, Event, Follower};
use super::story::{named, text};
use super::watch::run_id;
use super::{block_on, run};
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Format, Output, note};
use crate::shape;

/// Print the log of a run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run, such as r-42 [default: the newest]
    #[arg(value_name = "RUN")]
    id: Option<String>,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
    /// Only this step of the bake, counted from 1 as `oast run show` does
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    step: Option<i32>,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// With the time of each line
    #[arg(long)]
    timestamps: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Prints the log.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    block_on(print(args))
}

async fn print(args: &Args) -> anyhow::Result<Exit> {
    if args.output.format == Format::Name {
        return Err(Fail::usage("a log has no names")
            .hint("-o text or -o jsonl")
            .into());
    }
    let client = args.connect.client()?;
    let id = match &args.id {
        Some(id) => run_id(id)?,
        None => run::newest(&client, &args.connect).await?,
    };
    let mut printer = Printer {
        args,
        tasks: BTreeMap::new(),
        bakes: BTreeSet::new(),
        any: false,
    };
    printer.learn(&run::get(&client, &id).await?);
    let mut after = Vec::new();
    if let Some(most) = args.tail {
        let (lines, positions) = match last_lines(&client, &id, &printer, most).await? {
            Some(found) => found,
            None => return Ok(Exit::Interrupted),
        };
        after = positions;
        printer.print(&lines)?;
    }
    if args.tail.is_none() || args.follow {
        let mut follower = Follower::new(&client);
        follower.logs(&id, args.follow, after);
        if args.follow {
            follower.run(&id);
        }
        let ended = follower
            .until_end(None, |event, _| {
                match event {
                    Event::Run(run) => printer.learn(&run),
                    Event::Lines(lines) => printer.print(&lines.lines)?,
                    Event::Resumed => note("(going on with another member)"),
                    Event::Rollout(_) | Event::Fleet(_) | Event::Silence => {}
                }
                Ok(())
            })
            .await?;
        if ended == Ended::Interrupted {
            return Ok(Exit::Interrupted);
        }
    }
    if !printer.any {
        note("The log has no such line yet.");
    }
    Ok(Exit::Ok)
}

/// The last lines, and where the log goes on. The farm sends a log from its start, so the end is
/// found here. Nothing after Ctrl-C.
async fn last_lines(
    client: &Client,
    id: &str,
    printer: &Printer<'_>,
    most: usize,
) -> anyhow::Result<Option<(VecDeque<v1::LogLine>, Vec<v1::LogPosition>)>> {
    let mut kept = VecDeque::new();
    let mut positions = BTreeMap::new();
    let mut follower = Follower::new(client);
    follower.logs(id, false, Vec::new());
    let ended = follower
        .until_end(None, |event, _| {
            if let Event::Lines(lines) = event {
                for line in lines.lines.into_iter().filter(|line| printer.wanted(line)) {
                    kept.push_back(line);
                    if kept.len() > most {
                        kept.pop_front();
                    }
                }
                for position in lines.positions {
                    positions.insert((position.task.clone(), position.token), position);
                }
            }
            Ok(())
        })
        .await?;
    let positions = positions.into_values().collect();
    Ok((ended == Ended::Itself).then_some((kept, positions)))
}

struct Printer<'a> {
    args: &'a Args,
    /// Names of tasks by id.
    tasks: BTreeMap<String, String>,
    /// Ids of the tasks whose steps `--step` counts.
    bakes: BTreeSet<String>,
    any: bool,
}

impl Printer<'_> {
    fn wanted(&self, line: &v1::LogLine) -> bool {
        let Some(step) = self.args.step else {
            return true;
        };
        line.step == step - 1 && self.bakes.contains(&line.task)
    }

    fn learn(&mut self, run: &v1::Run) {
        let bakes = run.tasks.iter().filter(|task| task.kind == "bake");
        self.bakes.extend(bakes.map(|task| task.id.clone()));
        self.tasks
            .extend(run.tasks.iter().map(|task| (task.id.clone(), named(task))));
    }

    fn print<'l>(
        &mut self,
        lines: impl IntoIterator<Item = &'l v1::LogLine>,
    ) -> anyhow::Result<()> {
        let mut out = anstream::stdout().lock();
        for line in lines {
            if !self.wanted(line) {
                continue;
            }
            self.any = true;
            if self.args.output.is_text() {
                writeln!(out, "{}", self.text(line))?;
            } else {
                writeln!(
                    out,
                    "{}",
                    serde_json::to_string(&shape::LogLine::from(line))?
                )?;
            }
        }
        Ok(out.flush()?)
    }

    fn text(&self, line: &v1::LogLine) -> String {
        let mut out = String::new();
        if self.args.timestamps {
            let _ = write!(out, "{} ", Timestamp::from_millis(line.at_ms));
        }
        // Who speaks, unless one step was asked for.
        if self.args.step.is_none() {
            let task = self.tasks.get(&line.task).map_or("rollout", String::as_str);
            let step = if line.step < 0 {
                String::new()
            } else {
                format!("[{}]", line.step + 1)
            };
            let _ = write!(out, "\u{1b}[2m{task}{step} |\u{1b}[0m ");
        }
        out.push_str(&text(line));
        out.push_str("\u{1b}[0m");
        out
    }
}
