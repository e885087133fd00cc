//! `oast quickstart`: the whole mission on one machine, with one command.
//!
//! Starts real members, workers and the local cloud as processes of one farm namespace that dies
//! with this process, then plays four pushes against them and measures what a user would ask.
//! Nothing here is known to the farm: this is a client with a Git repository.

mod example;
mod ground;
mod load;
mod report;
mod repository;
mod story;
mod ui;
mod witness;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use oast_daemon::clock::{Clock, SystemClock, timeout};
use oast_daemon::isolate::{Farm, FarmEvent, FarmEvents, FarmSpec};
use oast_daemon::lock::DirLock;
use oast_daemon::preflight::{self, Outcome};
use oast_daemon::task::Tasks;
use oast_daemon::{random, shutdown};
use oast_proto::v1::{
    ApplyResourceRequest, CreateTokenRequest, InitFarmRequest, ListPeersRequest, WhoAmIRequest,
};
use tokio_util::sync::CancellationToken;

use self::ground::{Ground, tail};
use self::load::Load;
use self::report::Report;
use self::repository::Repository;
use self::story::{Stage, follow_fleet};
use self::ui::Ui;
use self::witness::{Counter, Observer};
use crate::client::Client;
use crate::context;
use crate::output::note;

/// How long the farm may take to elect a leader and to connect its workers.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the processes may take to end in order.
const GRACE: Duration = Duration::from_secs(5);
/// Disk that a farm with four pushes of the example needs.
const DISK_NEEDED: u64 = 6 << 30;
/// Pause between two looks at a starting farm.
const LOOK: Duration = Duration::from_millis(50);
/// Lines of a process's log that an error shows.
const LOG_LINES: usize = 15;

/// What `oast quickstart` takes.
#[derive(Args, Clone, Debug)]
pub struct QuickstartArgs {
    /// Folder with everything of the farm.
    #[arg(long, value_name = "DIR", default_value = ".oast/quickstart")]
    data: PathBuf,
    /// First of the loopback ports: members, local cloud, workers; the fleet listens 637 above.
    #[arg(long, value_name = "PORT", default_value_t = 7443)]
    port_base: u16,
    /// End after the story, with status 0 if all went as it should and 1 if not.
    #[arg(long)]
    exit: bool,
    /// Remove the data of an earlier quickstart and end.
    #[arg(long)]
    clean: bool,
}

/// Plays the story. Returns whether all went as it should.
pub fn run(args: &QuickstartArgs) -> anyhow::Result<bool> {
    let exe = std::env::current_exe().context("find this program's own file")?;
    if args.clean {
        return clean(args, &exe).map(|()| true);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(SystemClock::shared(), stop.clone());
        shutdown::on_signals(&tasks)?;
        let result = quickstart(args, exe, &tasks).await;
        stop.cancel();
        let ended = tasks.finish(GRACE).await;
        let good = result?;
        ended?;
        Ok(good)
    })
}

/// Removes what belongs to mapped users too, which only the farm's own root can.
fn clean(args: &QuickstartArgs, exe: &std::path::Path) -> anyhow::Result<()> {
    if !args.data.exists() {
        note(format!("There is nothing at {}.", args.data.display()));
        return Ok(());
    }
    let root = args.data.canonicalize()?;
    let _lock = DirLock::acquire(&root, "quickstart", &SystemClock)?;
    let status = std::process::Command::new(exe)
        .args(["internal", "farm-remove"])
        .arg(&root)
        .status()
        .context("start this program again")?;
    if !status.success() {
        bail!("{} could not be removed completely", root.display());
    }
    note(format!("Removed {}.", root.display()));
    Ok(())
}

async fn quickstart(args: &QuickstartArgs, exe: PathBuf, tasks: &Tasks) -> anyhow::Result<bool> {
    let ui = Ui::new();
    let clock = SystemClock;
    let begun = clock.monotonic();
    std::fs::create_dir_all(&args.data).with_context(|| format!("make {}", args.data.display()))?;
    let root = args.data.canonicalize()?;
    // Overlay options are separated by commas and colons.
    if root.display().to_string().contains([',', ':', '\\', '"']) {
        bail!(
            "{} holds a character that overlay mounts cannot take: use another --data",
            root.display()
        );
    }
    let _lock = DirLock::acquire(&root, "quickstart", &clock)?;
    let ground = Ground::new(root, exe.clone(), args.port_base);
    ground.check_ports()?;
    let waiting = ui.wait("looking whether this machine can do it");
    let request = preflight::Request {
        data: ground.root().to_owned(),
        free_bytes: DISK_NEEDED,
    };
    let findings = preflight::run(&exe, request).await?;
    drop(waiting);
    for finding in findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Failed)
    {
        ui.say(format!("✖ {}: {}", finding.name, finding.call));
        if let Some(fix) = &finding.fix {
            ui.say(format!("  {}", fix.replace('\n', "\n  ")));
        }
    }
    if !preflight::allows(&findings) {
        bail!("this machine cannot run the farm as it is: `oast doctor` shows every check");
    }
    let counter = Counter::start(tasks)
        .await
        .context("listen for the steps")?;
    ground.prepare(counter.address())?;
    let waiting = ui.wait("starting three members, the local cloud and two workers");
    let (farm, events) = Farm::start(FarmSpec {
        exe,
        farm: ground.farm(),
    })
    .await?;
    story_until_end(&ground, &farm, events, args, tasks, &ui, async {
        let (client, stage) = set_up(&ground, &farm, counter, tasks, &ui).await?;
        drop(waiting);
        let started = clock.monotonic() - begun;
        ui.say(format!(
            "The farm is up after {:.1} s.",
            started.as_secs_f64()
        ));
        context::remember(
            "quickstart",
            client.addresses(),
            &ground.token("you")?,
            Some("demo"),
            None,
        )?;
        let report = tell(&stage, started).await?;
        report.print();
        let good = report.good();
        ui.say(report::next_steps(&ground));
        Ok(good)
    })
    .await
}

/// Runs `story` while the farm lives, stays up afterwards unless told to exit, and ends everything.
async fn story_until_end(
    ground: &Ground,
    farm: &Farm,
    mut events: FarmEvents,
    args: &QuickstartArgs,
    tasks: &Tasks,
    ui: &Ui,
    story: impl Future<Output = anyhow::Result<bool>>,
) -> anyhow::Result<bool> {
    ground.start(farm)?;
    let stopped = tasks.cancelled();
    let mut story = std::pin::pin!(story);
    let mut result: Option<bool> = None;
    let outcome = loop {
        tokio::select! {
            biased;
            () = stopped.cancelled() => break Ok(result.unwrap_or(false)),
            event = events.next() => match event {
                Ok(Some(FarmEvent::NotStarted { name, fault })) => {
                    break Err(anyhow::anyhow!("{name} could not be started: {fault}"));
                }
                Ok(Some(FarmEvent::Ended { name, code: Some(code), .. })) => {
                    let log = ground.log(&name);
                    break Err(anyhow::anyhow!(
                        "{name} ended with status {code}; the end of {}:\n{}",
                        log.display(),
                        tail(&log, LOG_LINES)
                    ));
                }
                Ok(Some(FarmEvent::Ended { name, signal: Some(signal), .. })) if signal != 9 => {
                    let log = ground.log(&name);
                    break Err(anyhow::anyhow!(
                        "{name} was ended by signal {signal}; the end of {}:\n{}",
                        log.display(),
                        tail(&log, LOG_LINES)
                    ));
                }
                // Started, or killed by the story itself.
                Ok(Some(_)) => {}
                Ok(None) => break Err(anyhow::anyhow!("the farm's processes are gone")),
                Err(err) => break Err(err.into()),
            },
            told = &mut story, if result.is_none() => match told {
                Ok(good) if args.exit => break Ok(good),
                Ok(good) => {
                    result = Some(good);
                    ui.say("\nThe farm stays up. Ctrl-C ends it.");
                }
                Err(err) => break Err(err),
            },
        }
    };
    let waiting = ui.wait("ending the farm");
    farm.shutdown(GRACE)?;
    let ended = timeout(&SystemClock, GRACE * 3, events.finish()).await;
    drop(waiting);
    let good = outcome?;
    ended.context("end the farm")??;
    Ok(good)
}

/// From started processes to a farm with a name, tokens, resources and a repository.
async fn set_up(
    ground: &Ground,
    farm: &Farm,
    counter: Counter,
    tasks: &Tasks,
    ui: &Ui,
) -> anyhow::Result<(Client, Stage)> {
    let admin = ground.token("admin")?;
    let client = Client::new(&ground.members(), Some(&admin))?;
    init_farm(ground, &client).await?;
    for document in example::resources(ground.fleet(), REPOSITORY) {
        let request = ApplyResourceRequest {
            request_id: random::request_id(),
            document,
            validate_only: false,
            expected_revision: -1,
        };
        client
            .call(|member| {
                let request = request.clone();
                async move { member.resources().apply_resource(request).await }
            })
            .await
            .context("apply the example's resources")?;
    }
    let you = user_token(ground, &client).await?;
    let remotes = ground
        .members()
        .iter()
        .map(|member| format!("http://{member}/git/web.git"))
        .collect();
    let repository = Repository::open(&ground.repository(), remotes, &you).await?;
    let last = example::version(repository.folder());
    example::write(repository.folder()).context("write the example")?;
    let observer = Observer::start(tasks);
    let fleet = follow_fleet(&client, &observer, tasks);
    let load = Load::start(ground.fleet(), tasks.cancelled(), tasks);
    let stage = Stage {
        farm: farm.clone(),
        client: client.clone(),
        repository,
        fleet,
        load,
        observer,
        counter,
        ui: ui.clone(),
        mark: random::request_id(),
        last,
    };
    Ok((client, stage))
}

/// The example's repository, hosted by the farm itself.
const REPOSITORY: &str = "apiVersion: oast/v1\nkind: Repository\nname: web\nspec:\n  team: demo\n  url: farm:web\n  branches: [main]\n";

async fn init_farm(ground: &Ground, client: &Client) -> anyhow::Result<()> {
    let hash = |name: &str| -> anyhow::Result<String> {
        let token = ground.token(name)?;
        Ok(oast_model::digest::Digest::of(token.expose().as_bytes()).to_string())
    };
    let request = InitFarmRequest {
        name: "quickstart".into(),
        bootstrap: ground.token("peer")?.expose().clone(),
        admin_hash: hash("admin")?,
        worker_hash: hash("worker")?,
    };
    let clock = SystemClock;
    let end = clock.monotonic() + START_DEADLINE;
    loop {
        let mut operator = client.member().operator();
        let asked = operator.init_farm(request.clone());
        let error = match timeout(&clock, Duration::from_secs(2), asked).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) if crate::client::may_be_tried_again(&status) => status.to_string(),
            Ok(Err(status)) => return Err(status).context("give the farm its name"),
            Err(late) => late.to_string(),
        };
        if clock.monotonic() > end {
            bail!("the farm did not come up within {START_DEADLINE:?}: {error}");
        }
        client.turn();
        clock.sleep(LOOK).await;
    }
}

/// The token that the next commands use: made by the farm, kept beside the others.
async fn user_token(
    ground: &Ground,
    client: &Client,
) -> anyhow::Result<oast_daemon::secret::Secret<String>> {
    let kept = ground.token("you")?;
    let known = Client::new(client.addresses(), Some(&kept))?;
    let asked = known
        .call(|member| async move { member.operator().who_am_i(WhoAmIRequest {}).await })
        .await;
    if asked.is_ok() {
        return Ok(kept);
    }
    let request = CreateTokenRequest {
        request_id: random::request_id(),
        name: format!("you-{:06x}", random::number() & 0xff_ffff),
        role: "admin".into(),
        team: String::new(),
    };
    let made = client
        .call(|member| {
            let request = request.clone();
            async move { member.operator().create_token(request).await }
        })
        .await
        .context("make a token for you")?;
    ground.keep_token("you", &made.token)?;
    ground.token("you")
}

/// The four pushes and what came of them.
async fn tell(stage: &Stage, started: Duration) -> anyhow::Result<Report> {
    let version = |push: u32| (stage.last + push).to_string();
    let first = stage.first(&version(1)).await?;
    // Until the first page there was nothing to answer.
    let serving = stage.load.counts();
    let second = stage.second(&version(2)).await?;
    let after_second = stage.load.counts();
    let third = stage.third(&version(3)).await?;
    let after_third = stage.load.counts();
    let replaced = replacements(stage);
    let (fourth, losses) = stage.fourth(&version(4)).await?;
    let after_fourth = stage.load.counts();
    // The farm is whole again: every member votes.
    let _ = stage
        .client
        .call(|member| async move {
            member
                .operator()
                .list_peers(ListPeersRequest::default())
                .await
        })
        .await;
    let replaced_again = replacements(stage);
    Ok(Report {
        started,
        second_requests: after_second.since(&serving),
        third_requests: after_third.since(&after_second),
        fourth_requests: after_fourth.since(&after_third),
        bad_instances: stage.observer.with(&version(3)),
        boot_notes: boot_notes(stage),
        step_counts: stage.counter.counts(),
        replaced: replaced
            .into_iter()
            .map(|(name, before)| {
                let after = replaced_again.get(&name).copied().unwrap_or(before);
                (name, after - before)
            })
            .collect(),
        first,
        second,
        third,
        fourth,
        losses,
    })
}

fn replacements(stage: &Stage) -> std::collections::BTreeMap<String, u32> {
    let fleet = stage.fleet.borrow();
    fleet
        .instances
        .iter()
        .map(|instance| (instance.name.clone(), instance.replaced))
        .collect()
}

/// How the instances were started, each way once.
fn boot_notes(stage: &Stage) -> Vec<String> {
    let fleet = stage.fleet.borrow();
    let notes: std::collections::BTreeSet<String> = fleet
        .instances
        .iter()
        .map(|instance| instance.note.clone())
        .collect();
    notes.into_iter().collect()
}
