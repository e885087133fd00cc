//! A farm of one worker, in a process of its own, and a leader that the test plays.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, SegmentKey};
use oast_daemon::clock::SystemClock;
use oast_daemon::health::Health;
use oast_daemon::metrics::Metrics;
use oast_daemon::task::Tasks;
use oast_model::bake::{BakedImage, Layer, Trust};
use oast_model::ids::{RunId, Seq, TaskId, Token};
use oast_model::task::{Assignment, Origin, Outcome, Output, Report, SourceOutput, Work};
use oast_worker::config::ENV;
use oast_worker::{Process, WorkerConfig};
use tokio_util::sync::CancellationToken;

use crate::leader::{self, Leader};

pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// What `oast worker` does.
pub fn worker(config: &Path) -> Result<()> {
    let config: WorkerConfig =
        oast_daemon::config::load(Some(config), &ENV, &oast_daemon::config::process_env)?;
    oast_daemon::telemetry::init(&config.log)?;
    runtime()?.block_on(async {
        let tasks = Tasks::for_process(CancellationToken::new());
        oast_daemon::shutdown::on_signals(&tasks)?;
        let process = Process {
            clock: SystemClock::shared(),
            tasks,
            metrics: Metrics::new(),
            health: Health::default(),
        };
        Ok(oast_worker::run(config, &process).await?)
    })
}

pub fn apt_has(suite: &str) -> bool {
    let places = ["/etc/apt/sources.list", "/etc/apt/sources.list.d"];
    places.iter().any(|place| {
        let here = fs::read_dir(place).map_or_else(
            |_| vec![Path::new(place).to_owned()],
            |list| list.flatten().map(|entry| entry.path()).collect(),
        );
        here.iter()
            .any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(suite)))
    })
}

/// A worker's process; killed with this value.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Farm {
    pub root: Utf8PathBuf,
    pub store: ArtifactStore,
    pub leader: Leader,
    /// More lines of the worker's configuration.
    pub more: String,
    /// And of its part on sources.
    pub source: String,
}

/// Tokens rise over all farms of this test.
static NEXT: AtomicU64 = AtomicU64::new(100);

impl Farm {
    pub async fn new(root: &Utf8Path) -> Result<Farm> {
        Ok(Farm {
            root: root.to_owned(),
            store: ArtifactStore::open(&root.join("store"))?,
            leader: Leader::start(None, 7).await?,
            more: String::new(),
            source: String::new(),
        })
    }

    pub fn start(&self, coordinators: &[std::net::SocketAddr]) -> Result<Running> {
        let root = &self.root;
        let token = root.join("token");
        fs::write(&token, leader::TOKEN)?;
        let coordinators: Vec<String> = coordinators.iter().map(|a| format!("\"{a}\"")).collect();
        let config = root.join("worker.toml");
        fs::write(
            &config,
            format!(
                "name = \"w1\"\ndata_dir = \"{root}/data\"\nstore_dir = \"{root}/store\"\n\
                 coordinators = [{}]\ntoken_file = \"{token}\"\n[source]\nallow_file = true\n{source}\
                 [log]\nfilter = \"warn,oast_worker=debug\"\nfile = \"{root}/worker.log\"\n{more}",
                coordinators.join(", "),
                more = self.more,
                source = self.source,
            ),
        )?;
        let child = Command::new(std::env::current_exe()?)
            .args(["worker", config.as_str()])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Running(child))
    }

    pub fn assignment(&self, work: Work) -> Assignment {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Assignment {
            task: TaskId {
                seq: Seq::from_u64(number),
                ordinal: 0,
            },
            token: Token::from_u64(number),
            attempt: 1,
            run: Some(RunId(Seq::from_u64(1))),
            team: "demo".parse().expect("a name"),
            work,
            secrets: BTreeMap::new(),
        }
    }

    pub async fn source(&self, repository: &Utf8Path, before: Option<&str>) -> Result<Outcome> {
        let commit = git(repository, &["rev-parse", "HEAD"])?;
        let assignment = self.assignment(Work::Source {
            origin: Origin::Git {
                url: format!("file://{repository}"),
                branch: "main".to_owned(),
                commit,
                before: before.map(str::to_owned),
                credentials: None,
            },
            path: "oast.yaml".to_owned(),
            team: "demo".parse().expect("a name"),
            check_triggers: true,
            inputs: BTreeMap::new(),
        });
        self.leader.assign(&assignment).await?;
        self.leader.outcome(assignment.token).await
    }

    pub fn bake(&self, source: &SourceOutput, done: Vec<Layer>) -> Assignment {
        self.assignment(Work::Bake {
            bake: Box::new(source.pipeline.bake.clone()),
            tree: source.tree,
            trust: Trust::Protected,
            done,
            image: "web".to_owned(),
            images: Vec::new(),
        })
    }

    /// Finished steps under a lease: place, whether known before, layer.
    pub fn steps(&self, token: Token) -> Vec<(u16, bool, Layer)> {
        let reports = self.leader.reports().into_iter();
        reports
            .filter(|(_, of, _)| *of == token.as_u64())
            .filter_map(|(_, _, report)| match report {
                Report::StepFinished {
                    step,
                    layer,
                    cached,
                    ..
                } => Some((step, cached, layer)),
                _ => None,
            })
            .collect()
    }

    pub fn log(&self, assignment: &Assignment) -> Result<String> {
        let key = SegmentKey {
            run: "r-1".to_owned(),
            task: assignment.task.to_string(),
            attempt: assignment.token.as_u64(),
        };
        let read = self.store.read_log(&key)?.read(0, 1 << 20)?;
        let lines = read.records.iter();
        Ok(lines
            .map(|record| {
                format!(
                    "{} {}\n",
                    record.step,
                    String::from_utf8_lossy(&record.payload)
                )
            })
            .collect())
    }
}

pub fn git(folder: &Utf8Path, args: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .args([
            "-C",
            folder.as_str(),
            "-c",
            "user.name=Ada",
            "-c",
            "user.email=ada@example.org",
        ])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()?;
    ensure!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// The example's repository.
pub fn repository(at: &Utf8Path) -> Result<()> {
    fs::create_dir_all(at)?;
    git(at, &["init", "--quiet", "--initial-branch=main"])?;
    let example = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/web");
    let copied = Command::new("cp")
        .args(["-a", &format!("{example}/."), at.as_str()])
        .status()?;
    ensure!(copied.success(), "cp");
    commit(at, "the first page")
}

pub fn commit(at: &Utf8Path, message: &str) -> Result<()> {
    git(at, &["add", "-A"])?;
    git(at, &["commit", "--quiet", "-m", message])?;
    Ok(())
}

pub fn succeeded(outcome: Outcome) -> Result<Output> {
    match outcome {
        Outcome::Succeeded(output) => Ok(*output),
        other => bail!("not a success: {other:#?}"),
    }
}

pub fn source_of(outcome: Outcome) -> Result<SourceOutput> {
    match succeeded(outcome)? {
        Output::Source(source) => Ok(*source),
        other => bail!("not a source: {other:?}"),
    }
}

pub fn baked(outcome: Outcome) -> Result<BakedImage> {
    match succeeded(outcome)? {
        Output::Baked(image) => Ok(image),
        other => bail!("not an image: {other:?}"),
    }
}
