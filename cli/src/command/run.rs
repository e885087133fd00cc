//! `oast run`: the files here, or a branch of a repository, through a pipeline; and the runs there are.
//!
//! A run of local files is checked before anything leaves this machine: the pipeline first, then
//! what Git knows of the tree. What is uploaded is what Git tracks, as it is now, and new files
//! that are not ignored.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_model::pipeline::{self, PIPELINE_PATH, Pipeline};
use oast_model::priority::Priority;
use oast_model::units::TimeSpan;
use oast_proto::v1;

use super::watch::{follow_run, run_id};
use super::{block_on, story};
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{
    Output, ago, count, facts, note, now_ms, phase, plain, short, span, table, took,
};
use crate::shape;

mod tree;
mod upload;

/// Runs in one list.
const PAGE: u32 = 50;

/// Run a pipeline on the files here, or on a branch of a repository of the farm
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND"
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    start: Start,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Start {
    /// Folder whose files are run
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Pipeline file in that folder
    #[arg(short, long, value_name = "FILE", default_value = PIPELINE_PATH)]
    file: String,
    /// Value of an input; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    vars: Vec<(String, String)>,
    /// Run the newest seen commit of a repository of the farm instead of the files here
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    repository: Option<String>,
    /// Branch of that repository
    #[arg(
        long,
        value_name = "NAME",
        requires = "repository",
        default_value = "main"
    )]
    branch: String,
    /// How urgent it is: interactive, normal or batch [default: as the pipeline says]
    #[arg(long, value_name = "HOW")]
    priority: Option<Priority>,
    /// Print the run's id and do not wait for it
    #[arg(long)]
    detach: bool,
    /// Follow the run for at most this long, such as 10m; the run itself goes on
    #[arg(long, value_name = "TIME")]
    timeout: Option<TimeSpan>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List runs, newest first
    List(Box<ListArgs>),
    /// Show a run: its tasks, steps and attempts
    Show {
        /// The run, such as r-42
        #[arg(value_name = "RUN")]
        id: String,
    },
    /// Follow a run until it ends
    Watch {
        /// The run, such as r-42 [default: the newest]
        #[arg(value_name = "RUN")]
        id: Option<String>,
        /// End with 1 when the run fails
        #[arg(long)]
        exit_status: bool,
        /// Follow for at most this long, such as 10m
        #[arg(long, value_name = "TIME")]
        timeout: Option<TimeSpan>,
    },
    /// End a run
    Cancel {
        /// The run, such as r-42
        #[arg(value_name = "RUN")]
        id: String,
        /// Why, for those who look later
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Which runs are listed.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only runs that have not ended
    #[arg(long)]
    open: bool,
    /// Only runs of this pipeline
    #[arg(long, value_name = "NAME", default_value = "")]
    pipeline: String,
    /// Only runs of this repository
    #[arg(long, value_name = "NAME", default_value = "")]
    repository: String,
    /// Only runs of this branch
    #[arg(long, value_name = "NAME", default_value = "")]
    branch: String,
    /// Only runs of this commit, by at least 7 digits
    #[arg(long, value_name = "ID", default_value = "")]
    commit: String,
    /// Only runs in this phase, such as failed; may be repeated
    #[arg(long = "phase", value_name = "PHASE")]
    phases: Vec<String>,
    /// Only runs started since: 2h (ago) or 2026-11-23T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// Only runs started before: 2h (ago) or 2026-11-23T06:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Most runs that are shown
    #[arg(long, value_name = "N", default_value_t = PAGE)]
    limit: u32,
}

impl Default for ListArgs {
    fn default() -> ListArgs {
        ListArgs {
            open: false,
            pipeline: String::new(),
            repository: String::new(),
            branch: String::new(),
            commit: String::new(),
            phases: Vec::new(),
            since: None,
            until: None,
            limit: PAGE,
        }
    }
}

/// A time as milliseconds: so long ago, or a point in time.
pub fn time(text: &str) -> Result<u64, String> {
    if let Ok(span) = text.parse::<TimeSpan>() {
        let ms = u64::try_from(span.duration().as_millis()).unwrap_or(u64::MAX);
        return Ok(now_ms().saturating_sub(ms).max(1));
    }
    let point: jiff::Timestamp = text
        .parse()
        .map_err(|_| "write a span such as 2h, or a time such as 2026-11-23T06:00:00Z")?;
    Ok(u64::try_from(point.as_millisecond()).unwrap_or(1).max(1))
}

/// Starts, lists, shows, follows or cancels.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (connect, output) = (&args.connect, args.output);
    block_on(async {
        match &args.command {
            None => start(&args.start, connect, output).await,
            Some(Command::List(wanted)) => list(connect, output, wanted).await,
            Some(Command::Show { id }) => show(connect, output, id).await,
            Some(Command::Watch {
                id,
                exit_status,
                timeout,
            }) => {
                let client = connect.client()?;
                let id = match id {
                    Some(id) => run_id(id)?,
                    None => newest(&client, connect).await?,
                };
                let exit =
                    follow_run(&client, &id, output, timeout.map(TimeSpan::duration), true).await?;
                Ok(if exit == Exit::Failed && !exit_status {
                    Exit::Ok
                } else {
                    exit
                })
            }
            Some(Command::Cancel { id, reason }) => {
                cancel(connect, output, &run_id(id)?, reason).await
            }
        }
    })
}

async fn start(start: &Start, connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let request = match &start.repository {
        Some(repository) => v1::SubmitRunRequest {
            team: connect.said_team().unwrap_or_default(),
            repository: repository.clone(),
            branch: start.branch.clone(),
            path: start.file.clone(),
            ..v1::SubmitRunRequest::default()
        },
        None => match local(start, connect).await? {
            Some(request) => request,
            None => return Ok(Exit::Failed),
        },
    };
    let client = connect.client()?;
    let request = v1::SubmitRunRequest {
        request_id: random::request_id(),
        inputs: start.vars.iter().cloned().collect(),
        priority: start
            .priority
            .map(|how| how.to_string())
            .unwrap_or_default(),
        ..request
    };
    let run = client
        .call(|member| {
            let request = request.clone();
            async move { member.runs().submit_run(request).await }
        })
        .await?;
    if start.detach {
        let id = run.id.clone();
        output.one(&id, &shape::Run::from(run), || format!("{id}\n"))?;
        if output.is_text() {
            note(format!(
                "Follow it: oast watch {id}   Its log: oast logs -f {id}"
            ));
        }
        return Ok(Exit::Ok);
    }
    let limit: Option<Duration> = start.timeout.map(TimeSpan::duration);
    follow_run(&client, &run.id, output, limit, true).await
}

/// Checks and uploads what is here. Nothing when the pipeline is wrong, which was then said.
async fn local(start: &Start, connect: &Connect) -> anyhow::Result<Option<v1::SubmitRunRequest>> {
    let Some(pipeline) = checked(&start.dir.join(&start.file))? else {
        return Ok(None);
    };
    let own = pipeline.team.to_string();
    if let Some(said) = connect.said_team().filter(|said| *said != own) {
        let message = format!("the pipeline belongs to team `{own}`, not to `{said}`");
        return Err(Fail::usage(message)
            .hint(format!(
                "leave --team and OAST_TEAM away, or change `team:` in {}",
                start.file
            ))
            .into());
    }
    inputs_known(&pipeline, &start.vars)?;
    // Before the tree is read: without a farm all of that would be for nothing.
    let client = connect.client()?;
    let tree = tree::gather(&start.dir)?;
    if !tree.files.iter().any(|file| file.path == start.file) {
        let message = format!(
            "{} is ignored by Git, so it would not be uploaded",
            start.file
        );
        return Err(Fail::failed(message)
            .hint("take it out of .gitignore")
            .into());
    }
    if tree.changed > 0 {
        let of = if tree.commit.is_empty() {
            "no commit yet".to_owned()
        } else {
            short(&tree.commit).to_owned()
        };
        note(format!(
            "The tree is dirty: {} beyond {of} go along.",
            count(tree.changed, "change")
        ));
    }
    for module in &tree.submodules {
        note(format!(
            "Submodule {module} is left out: its files belong to another repository."
        ));
    }
    let stored = upload::upload(&client, &tree).await?;
    Ok(Some(v1::SubmitRunRequest {
        team: own,
        tree: stored.tree,
        dirty: tree.changed > 0,
        commit: tree.commit,
        path: start.file.clone(),
        ..v1::SubmitRunRequest::default()
    }))
}

fn checked(path: &Path) -> anyhow::Result<Option<Pipeline>> {
    let file = path.strip_prefix(".").unwrap_or(path).display().to_string();
    let text = match crate::validate::read(path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => {
            return Err(Fail::failed(format!("there is no pipeline file {file}"))
                .hint("`oast init` writes a first one; -f names another file, --dir another folder")
                .into());
        }
        Err(err) => return Err(err).with_context(|| format!("read {file}")),
    };
    let found = pipeline::parse(&file, &text);
    crate::validate::complain(&file, &text, found.problems)?;
    Ok(found.value)
}

fn inputs_known(pipeline: &Pipeline, vars: &[(String, String)]) -> anyhow::Result<()> {
    for (name, _) in vars {
        if !pipeline.inputs.contains_key(name.as_str()) {
            let known: Vec<&str> = pipeline.inputs.keys().map(AsRef::as_ref).collect();
            let hint = match known.as_slice() {
                [] => "the pipeline declares no inputs".to_owned(),
                known => format!("the pipeline declares {}", known.join(", ")),
            };
            return Err(Fail::usage(format!("--var {name}: there is no such input"))
                .hint(hint)
                .into());
        }
    }
    Ok(())
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is missing: write NAME=VALUE".to_owned());
    }
    if pipeline::rules::looks_secret(name) {
        return Err(format!(
            "`{name}` looks like a secret, and inputs are shown to everybody: `oast secret set {name}` keeps one"
        ));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Lists runs.
pub async fn list(connect: &Connect, output: Output, wanted: &ListArgs) -> anyhow::Result<Exit> {
    let (open, limit) = (wanted.open, wanted.limit);
    let client = connect.client()?;
    let mut runs: Vec<shape::Run> = Vec::new();
    let mut token = String::new();
    loop {
        let left = limit.saturating_sub(u32::try_from(runs.len()).unwrap_or(u32::MAX));
        let request = v1::ListRunsRequest {
            team: connect.said_team().unwrap_or_default(),
            page_size: left,
            page_token: token,
            open,
            pipeline: wanted.pipeline.clone(),
            repository: wanted.repository.clone(),
            branch: wanted.branch.clone(),
            commit: wanted.commit.clone(),
            phases: wanted.phases.clone(),
            since_ms: wanted.since.unwrap_or(0),
            until_ms: wanted.until.unwrap_or(0),
        };
        let page = client
            .call(|member| {
                let request = request.clone();
                async move { member.runs().list_runs(request).await }
            })
            .await?;
        runs.extend(page.runs.into_iter().map(shape::Run::from));
        token = page.next_page_token;
        if token.is_empty() || runs.len() >= limit as usize {
            break;
        }
    }
    let filtered = [
        &wanted.pipeline,
        &wanted.repository,
        &wanted.branch,
        &wanted.commit,
    ]
    .iter()
    .any(|text| !text.is_empty())
        || !wanted.phases.is_empty()
        || wanted.since.or(wanted.until).is_some();
    let empty = if filtered {
        "No run is like that."
    } else if open {
        "No run is open."
    } else {
        "There are no runs yet: `oast run` starts one."
    };
    output.list(
        &runs,
        |run| &run.id,
        empty,
        |runs| {
            let rows = runs.iter().map(|run| {
                let dirty = if run.dirty { "+" } else { "" };
                [
                    run.id.clone(),
                    run.phase.replace('_', " "),
                    run.pipeline.clone(),
                    format!("{}{dirty}", short(&run.commit)),
                    run.version.clone(),
                    ago(run.started_at_ms),
                    took(run.started_at_ms, run.ended_at_ms),
                    first_line(if run.reason.is_empty() {
                        &run.subject
                    } else {
                        &run.reason
                    }),
                ]
            });
            table(
                [
                    "RUN", "PHASE", "PIPELINE", "COMMIT", "VERSION", "STARTED", "TOOK", "ABOUT",
                ],
                rows,
            )
        },
    )?;
    if !token.is_empty() && output.is_text() {
        note("There are older runs: --limit N shows more.");
    }
    Ok(Exit::Ok)
}

/// Longest text in the last column of a list.
const ABOUT_MAX: usize = 60;

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= ABOUT_MAX {
        return line.to_owned();
    }
    let cut: String = line.chars().take(ABOUT_MAX).collect();
    format!("{cut}...")
}

/// Shows a run.
pub async fn show(connect: &Connect, output: Output, id: &str) -> anyhow::Result<Exit> {
    let id = run_id(id)?;
    let client = connect.client()?;
    let run = get(&client, &id).await?;
    let text = detail(&run);
    output.one(&id, &shape::Run::from(run), || text)?;
    Ok(Exit::Ok)
}

/// Asks for a run.
pub async fn get(client: &Client, id: &str) -> Result<v1::Run, tonic::Status> {
    client
        .call(|member| {
            let run = id.to_owned();
            async move { member.runs().get_run(v1::GetRunRequest { run }).await }
        })
        .await
}

/// The newest run that can be seen, which is said.
pub async fn newest(client: &Client, connect: &Connect) -> anyhow::Result<String> {
    let request = v1::ListRunsRequest {
        team: connect.said_team().unwrap_or_default(),
        page_size: 1,
        ..v1::ListRunsRequest::default()
    };
    let page = client
        .call(|member| {
            let request = request.clone();
            async move { member.runs().list_runs(request).await }
        })
        .await?;
    match page.runs.into_iter().next() {
        Some(run) => {
            note(format!("The newest run is {}.", run.id));
            Ok(run.id)
        }
        None => Err(Fail::new(Exit::NotFound, "there are no runs yet")
            .hint("`oast run` starts one")
            .into()),
    }
}

/// Cancels a run.
pub async fn cancel(
    connect: &Connect,
    output: Output,
    id: &str,
    reason: &str,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let before = get(&client, id).await?;
    if before.ended {
        let message = format!("run {id} has ended already: {}", before.phase);
        return Err(Fail::failed(message)
            .hint(format!("`oast run show {id}` says how"))
            .into());
    }
    let request = v1::CancelRunRequest {
        request_id: random::request_id(),
        run: id.to_owned(),
        reason: reason.to_owned(),
    };
    let run = client
        .call(|member| {
            let request = request.clone();
            async move { member.runs().cancel_run(request).await }
        })
        .await?;
    let text = format!("run {id} is {}\n", run.phase.replace('_', " "));
    output.one(id, &shape::Run::from(run), || text)?;
    Ok(Exit::Ok)
}

/// 0 when the run did what it should.
pub fn exit_of(run: &v1::Run) -> Exit {
    match run.phase.as_str() {
        "succeeded" | "skipped" => Exit::Ok,
        _ => Exit::Failed,
    }
}

/// A run that has ended, in a few lines.
pub fn summary(run: &v1::Run) -> String {
    facts(&[
        ("Run", run.id.clone()),
        ("Result", run.phase.replace('_', " ")),
        ("Reason", run.reason.clone()),
        ("Version", run.version.clone()),
        ("Rollouts", run.rollouts.join(", ")),
        ("Took", took(run.started_at_ms, run.ended_at_ms)),
    ])
}

/// Everything about a run, for people.
fn detail(run: &v1::Run) -> String {
    let dirty = if run.dirty { " with changes" } else { "" };
    let source = match (run.repository.as_str(), run.branch.as_str()) {
        ("", _) => String::new(),
        (repository, "") => repository.to_owned(),
        (repository, branch) => format!("{repository} ({branch})"),
    };
    let mut text = facts(&[
        ("Run", run.id.clone()),
        ("Phase", run.phase.replace('_', " ")),
        ("Reason", run.reason.clone()),
        ("Team", run.team.clone()),
        ("Pipeline", run.pipeline.clone()),
        ("Repository", source),
        ("Commit", format!("{}{dirty}", run.commit)),
        ("Subject", run.subject.clone()),
        ("Author", run.author.clone()),
        ("Cause", run.cause.clone()),
        ("Priority", run.priority.clone()),
        (
            "Started",
            format!("{} by {}", ago(run.started_at_ms), run.started_by),
        ),
        ("Took", took(run.started_at_ms, run.ended_at_ms)),
        ("Version", run.version.clone()),
        ("Rollouts", run.rollouts.join(", ")),
    ]);
    for line in &run.details {
        let _ = writeln!(text, "  {}", plain(line).replace('\n', "\n  "));
    }
    for task in &run.tasks {
        let _ = write!(text, "\n{} {}", phase(&task.phase), story::named(task));
        if let Some(attempt) = task.attempts.last() {
            let _ = write!(text, " on {}", plain(&attempt.worker));
        }
        let since = if task.phase == "waiting" {
            String::new()
        } else {
            took(task.created_at_ms, task.ended_at_ms)
        };
        let _ = writeln!(text, " {since}");
        for (label, why) in [("waits", &task.waiting), ("reason", &task.reason)] {
            if !why.is_empty() {
                let _ = writeln!(text, "  {label}: {}", plain(why));
            }
        }
        // One attempt is the rule and already said.
        if task.attempts.len() > 1 {
            for attempt in &task.attempts {
                let ended = if attempt.ended.is_empty() {
                    "running"
                } else {
                    attempt.ended.as_str()
                };
                let _ = writeln!(
                    text,
                    "  attempt {} on {}: {}",
                    attempt.token,
                    plain(&attempt.worker),
                    plain(ended)
                );
            }
        }
        for (place, step) in task.steps.iter().enumerate() {
            let note = match (step.phase.as_str(), step.cached) {
                ("done", true) => "(cached)".to_owned(),
                ("done", false) => span(step.took_ms),
                _ => String::new(),
            };
            let line = format!(
                "  {:>2} {}  {} {note}",
                place + 1,
                phase(&step.phase),
                plain(&step.title)
            );
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name_and_no_secret() {
        assert_eq!(variable("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(variable("a").is_err());
        assert!(variable("=a").is_err());
        assert!(
            variable("db_password=hunter2")
                .expect_err("a secret")
                .contains("oast secret set")
        );
    }

    #[test]
    fn only_a_run_that_did_what_it_should_ends_with_0() {
        let exit = |phase: &str| {
            exit_of(&v1::Run {
                phase: phase.into(),
                ..Default::default()
            })
        };
        assert_eq!(exit("succeeded"), Exit::Ok);
        assert_eq!(exit("skipped"), Exit::Ok);
        for phase in ["failed", "errored", "cancelled"] {
            assert_eq!(exit(phase), Exit::Failed);
        }
    }

    #[test]
    fn a_run_is_shown_with_its_steps_and_second_attempts() {
        let attempt = |token, worker: &str, ended: &str| v1::Attempt {
            token,
            worker: worker.into(),
            ended: ended.into(),
            ..Default::default()
        };
        let run = v1::Run {
            id: "r-7".into(),
            phase: "failed".into(),
            reason: "step 2 failed".into(),
            team: "demo".into(),
            started_at_ms: 1_000,
            ended_at_ms: 5_500,
            started_by: "you".into(),
            tasks: vec![v1::Task {
                kind: "bake".into(),
                phase: "failed".into(),
                created_at_ms: 1_000,
                ended_at_ms: 5_000,
                attempts: vec![attempt(9, "w1", "lost"), attempt(12, "w2", "failed")],
                steps: vec![
                    v1::Step {
                        title: "base".into(),
                        phase: "done".into(),
                        cached: true,
                        ..Default::default()
                    },
                    v1::Step {
                        title: "run: false".into(),
                        phase: "pending".into(),
                        ..Default::default()
                    },
                ],
                ..Default::default()
            }],
            ..Default::default()
        };
        let text = plain(&detail(&run));
        for line in [
            "Reason   step 2 failed",
            "Took     4.5s",
            "failed bake on w2 4.0s",
            "  attempt 9 on w1: lost",
            "base (cached)",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
