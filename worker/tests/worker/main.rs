//! A whole worker for real, in a process of its own that is killed on the way, under a leader
//! that the test plays. Without a harness, because the test binary is also the worker (`worker
//! CONFIG`) and the helper of its sandboxes (`internal sandbox`).
//!
//! The bakes need packages of Debian 12 from this machine's apt sources; without them, or with
//! `OAST_TEST_OFFLINE` set, that part is skipped, and says so.

#[expect(dead_code, reason = "the batch scenario uses the rest")]
mod leader;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use leader::Leader;
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

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["internal", ..] => oast_worker::sandbox::entry(),
        ["worker", config] => {
            oast_daemon::isolate::enter()?;
            worker(Path::new(config))
        }
        _ => {
            oast_daemon::isolate::enter()?;
            runtime()?.block_on(all())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// What `oast worker` does.
fn worker(config: &Path) -> Result<()> {
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

async fn all() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("oast-worker-").tempdir()?;
    let root = Utf8Path::from_path(folder.path()).context("a UTF-8 path")?;
    // Sandboxes' mapped root passes through it.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root, fs::Permissions::from_mode(0o711))?;
    session_and_sources(root).await?;
    println!("ok: sessions, leases and sources");
    if std::env::var_os("OAST_TEST_OFFLINE").is_some() || !apt_has("bookworm") {
        println!(
            "SKIPPED: bakes of a whole worker need Debian 12 in this machine's apt sources (and OAST_TEST_OFFLINE unset)"
        );
        return Ok(());
    }
    bakes(root).await?;
    println!("ok: bakes, killed and resumed");
    Ok(())
}

fn apt_has(suite: &str) -> bool {
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
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Farm {
    root: Utf8PathBuf,
    store: ArtifactStore,
    leader: Leader,
}

/// Tokens rise over all farms of this test.
static NEXT: AtomicU64 = AtomicU64::new(100);

impl Farm {
    async fn new(root: &Utf8Path) -> Result<Farm> {
        Ok(Farm {
            root: root.to_owned(),
            store: ArtifactStore::open(&root.join("store"))?,
            leader: Leader::start(None, 7).await?,
        })
    }

    fn start(&self, coordinators: &[std::net::SocketAddr]) -> Result<Running> {
        let root = &self.root;
        let token = root.join("token");
        fs::write(&token, leader::TOKEN)?;
        let coordinators: Vec<String> = coordinators.iter().map(|a| format!("\"{a}\"")).collect();
        let config = root.join("worker.toml");
        fs::write(
            &config,
            format!(
                "name = \"w1\"\ndata_dir = \"{root}/data\"\nstore_dir = \"{root}/store\"\n\
                 coordinators = [{}]\ntoken_file = \"{token}\"\n[source]\nallow_file = true\n\
                 [log]\nfilter = \"warn,oast_worker=debug\"\nfile = \"{root}/worker.log\"\n",
                coordinators.join(", ")
            ),
        )?;
        let child = Command::new(std::env::current_exe()?)
            .args(["worker", config.as_str()])
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Running(child))
    }

    fn assignment(&self, work: Work) -> Assignment {
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

    async fn source(&self, repository: &Utf8Path, before: Option<&str>) -> Result<Outcome> {
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

    fn bake(&self, source: &SourceOutput, done: Vec<Layer>) -> Assignment {
        self.assignment(Work::Bake {
            bake: Box::new(source.pipeline.bake.clone()),
            tree: source.tree,
            trust: Trust::Protected,
            done,
            image: "web".to_owned(),
        })
    }

    /// Finished steps under a lease: place, whether known before, layer.
    fn steps(&self, token: Token) -> Vec<(u16, bool, Layer)> {
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

    fn log(&self, assignment: &Assignment) -> Result<String> {
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

fn git(folder: &Utf8Path, args: &[&str]) -> Result<String> {
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
fn repository(at: &Utf8Path) -> Result<()> {
    fs::create_dir_all(at)?;
    git(at, &["init", "--quiet", "--initial-branch=main"])?;
    let example = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/web");
    let copied = Command::new("cp")
        .args(["-a", &format!("{example}/."), at.as_str()])
        .status()?;
    ensure!(copied.success(), "cp");
    commit(at, "the first page")
}

fn commit(at: &Utf8Path, message: &str) -> Result<()> {
    git(at, &["add", "-A"])?;
    git(at, &["commit", "--quiet", "-m", message])?;
    Ok(())
}

fn succeeded(outcome: Outcome) -> Result<Output> {
    match outcome {
        Outcome::Succeeded(output) => Ok(*output),
        other => bail!("not a success: {other:#?}"),
    }
}

fn source_of(outcome: Outcome) -> Result<SourceOutput> {
    match succeeded(outcome)? {
        Output::Source(source) => Ok(*source),
        other => bail!("not a source: {other:?}"),
    }
}

/// The bill of material in the store names every package, and the files that were copied with their right hashes.
fn billed(store: &ArtifactStore, image: &BakedImage, files: usize) -> Result<()> {
    let bills = image.bills.context("the image has no bills of material")?;
    let bill = store.read_blob(bills.cyclonedx, 64 << 20)?;
    let bill: serde_json::Value = serde_json::from_slice(&bill)?;
    let parts = bill["components"].as_array().context("no components")?;
    let of = |kind: &str| parts.iter().filter(|part| part["type"] == kind).count();
    ensure!(of("library") == image.package_count as usize, "{bill}");
    ensure!(of("file") >= files, "{bill}");
    let licensed = parts.iter().filter(|part| part.get("licenses").is_some());
    // Most of Debian's copyright files are machine-readable.
    ensure!(
        licensed.count() * 2 > image.package_count as usize,
        "{bill}"
    );
    ensure!(bill["metadata"]["component"]["hashes"][0]["content"] == image.disk_digest.to_string());
    store.verify(bills.spdx)?;
    Ok(())
}

fn baked(outcome: Outcome) -> Result<BakedImage> {
    match succeeded(outcome)? {
        Output::Baked(image) => Ok(image),
        other => bail!("not an image: {other:?}"),
    }
}

/// Redirects, repeated reports, ended tokens, commits with every kind of mistake.
async fn session_and_sources(root: &Utf8Path) -> Result<()> {
    let root = root.join("session");
    fs::create_dir_all(&root)?;
    let farm = Farm::new(&root).await?;
    let follower = Leader::start(Some(farm.leader.address), 7).await?;
    let _worker = farm.start(&[follower.address])?;
    let leader = &farm.leader;
    leader
        .until("a session by redirect", |leader| {
            leader.hellos().first().map(|hello| hello.name.clone())
        })
        .await?;

    let repository_folder = root.join("web");
    repository(&repository_folder)?;
    let first = git(&repository_folder, &["rev-parse", "HEAD"])?;
    let source = source_of(farm.source(&repository_folder, None).await?)?;
    ensure!(source.subject.as_deref() == Some("the first page"));
    ensure!(source.author.as_deref() == Some("Ada <ada@example.org>"));
    let tree = farm.store.tree(source.tree)?;
    ensure!(tree.get("oast.yaml").is_some());

    // A leader that dies before it answers: the report comes again, under the same number.
    leader.silent(true);
    let assignment = farm.source(&repository_folder, None);
    source_of(assignment.await?)?;
    let (number, token, _) = leader.reports().pop().context("a report")?;
    leader
        .until("the lease to be held until the answer", |leader| {
            leader.held().contains(&token).then_some(())
        })
        .await?;
    leader.hang_up();
    leader.silent(false);
    leader
        .until("a second copy", |leader| {
            (leader.copies().get(&number) == Some(&2)).then_some(())
        })
        .await?;
    let hello = leader.hellos().pop().context("a second session")?;
    ensure!(
        hello.held.contains(&token),
        "{hello:?} does not hold {token}"
    );
    leader
        .until("the lease to be let go", |leader| {
            (!leader.held().contains(&token)).then_some(())
        })
        .await?;

    // Nothing wanted: the change is in no path of the trigger.
    fs::write(repository_folder.join("README.md"), "docs")?;
    commit(&repository_folder, "docs")?;
    let outcome = farm.source(&repository_folder, Some(&first)).await?;
    ensure!(matches!(outcome, Outcome::Skipped { .. }), "{outcome:?}");

    // A broken file: every problem, with its place.
    let file = repository_folder.join("oast.yaml");
    let good = fs::read_to_string(&file)?;
    fs::write(
        &file,
        good.replace("from: debian-12", "from: debian-99\n  colour: red"),
    )?;
    commit(&repository_folder, "broken")?;
    let Outcome::Failed { details, .. } = farm.source(&repository_folder, None).await? else {
        bail!("a broken file was taken");
    };
    ensure!(details.len() >= 2, "{details:?}");
    ensure!(
        details.iter().all(|line| line.starts_with("oast.yaml:")),
        "{details:?}"
    );
    fs::write(&file, good)?;

    // A submodule is refused by name.
    git(
        &repository_folder,
        &[
            "update-index",
            "--add",
            "--cacheinfo",
            &format!("160000,{first},vendor/x"),
        ],
    )?;
    git(
        &repository_folder,
        &["commit", "--quiet", "-m", "submodule"],
    )?;
    let outcome = farm.source(&repository_folder, None).await?;
    let refused = matches!(&outcome, Outcome::Failed { reason, .. } if reason.contains("vendor/x is a submodule"));
    ensure!(refused, "{outcome:?}");

    // A repository that is none.
    let assignment = farm.assignment(Work::Source {
        origin: Origin::Git {
            url: format!("file://{root}/nothing"),
            branch: "main".to_owned(),
            commit: first.clone(),
            before: None,
            credentials: None,
        },
        path: "oast.yaml".to_owned(),
        team: "demo".parse().expect("a name"),
        check_triggers: false,
        inputs: BTreeMap::new(),
    });
    leader.assign(&assignment).await?;
    let outcome = leader.outcome(assignment.token).await?;
    ensure!(
        matches!(&outcome, Outcome::Failed { reason, .. } if reason.contains("url")),
        "{outcome:?}"
    );
    Ok(())
}

/// Cold bake, a second one of a changed page, and one that is killed in its middle.
async fn bakes(root: &Utf8Path) -> Result<()> {
    let root = root.join("bakes");
    fs::create_dir_all(&root)?;
    let farm = Farm::new(&root).await?;
    let worker = farm.start(&[farm.leader.address])?;
    let leader = &farm.leader;
    let repository_folder = root.join("web");
    repository(&repository_folder)?;
    let source = source_of(farm.source(&repository_folder, None).await?)?;

    let began = Instant::now();
    let first = farm.bake(&source, Vec::new());
    leader.assign(&first).await?;
    let outcome = leader.outcome(first.token).await?;
    println!("{}", farm.log(&first)?);
    let image = baked(outcome)?;
    println!("cold bake: {:.1} s", began.elapsed().as_secs_f64());
    ensure!(image.package_count > 50, "{image:?}");
    billed(&farm.store, &image, 1)?;

    let began = Instant::now();
    let tests = farm.assignment(Work::Test {
        tests: source.pipeline.test.clone(),
        image: Box::new(image.clone()),
    });
    leader.assign(&tests).await?;
    let passed = succeeded(leader.outcome(tests.token).await?)?;
    println!(
        "static test: {:.2} s, {passed:?}",
        began.elapsed().as_secs_f64()
    );
    let publish = farm.assignment(Work::Publish {
        region: None,
        image: Box::new(image.clone()),
    });
    leader.assign(&publish).await?;
    ensure!(succeeded(leader.outcome(publish.token).await?)? == Output::Published);

    // The page changes: one layer, and a patched disk.
    let page = repository_folder.join("web/site/index.html");
    let text = fs::read_to_string(&page)?;
    fs::write(&page, format!("{text}<!-- second -->\n"))?;
    commit(&repository_folder, "the second page")?;
    let began = Instant::now();
    let source = source_of(farm.source(&repository_folder, None).await?)?;
    let fetched = began.elapsed();
    let second = farm.bake(&source, Vec::new());
    leader.assign(&second).await?;
    let outcome = leader.outcome(second.token).await?;
    println!("{}", farm.log(&second)?);
    let again = baked(outcome)?;
    billed(&farm.store, &again, 1)?;
    ensure!(again.bills != image.bills, "another disk has another bill");
    println!(
        "second bake: source {:.2} s, all {:.2} s",
        fetched.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    let steps = farm.steps(second.token);
    let made: Vec<u16> = steps
        .iter()
        .filter(|(_, known, _)| !known)
        .map(|(step, ..)| *step)
        .collect();
    ensure!(made == [5], "made {made:?} of {}", steps.len());
    ensure!(
        again.layers.split_last().map(|(_, below)| below.to_vec())
            == image.layers.split_last().map(|(_, below)| below.to_vec())
    );
    let exported = root.join("disk.raw");
    farm.store.materialize(again.disk, &exported)?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs::File::open(&exported)?, &mut hasher)?;
    ensure!(
        again.disk_digest.as_bytes() == hasher.finalize().as_bytes(),
        "the digest of the disk"
    );

    killed_in_the_middle(&farm, &repository_folder, worker).await
}

async fn killed_in_the_middle(
    farm: &Farm,
    repository_folder: &Utf8Path,
    worker: Running,
) -> Result<()> {
    const MARKER: &str = "4242.125";
    let leader = &farm.leader;
    let file = repository_folder.join("oast.yaml");
    let text = fs::read_to_string(&file)?;
    let slow = format!(
        "    - run: echo quick > /srv/quick\n    - env: {{ WHERE: /srv }}\n    - run: \"echo $WHERE; sleep {MARKER}\"\n"
    );
    ensure!(text.contains("\ntest:"), "the example changed");
    fs::write(
        &file,
        text.replacen("\ntest:", &format!("{slow}\ntest:"), 1),
    )?;
    commit(repository_folder, "slow")?;
    let mut source = source_of(farm.source(repository_folder, None).await?)?;
    let third = farm.bake(&source, Vec::new());
    leader.assign(&third).await?;
    leader
        .until("the slow step", |_| {
            // Reports run beside the work: only what was told before the kill is done.
            let told = farm.steps(third.token).len() == 8;
            told.then(|| processes(MARKER).first().copied()).flatten()
        })
        .await
        .or_else(|_| bail!("{}", farm.log(&third)?))?;
    drop(worker);
    let began = Instant::now();
    while !processes(MARKER).is_empty() {
        ensure!(
            began.elapsed().as_secs() < 10,
            "the step outlives its worker"
        );
        std::thread::yield_now();
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        !mounts.contains(farm.root.as_str()),
        "mounts are left: {mounts}"
    );

    let done: Vec<Layer> = farm
        .steps(third.token)
        .into_iter()
        .map(|(_, _, layer)| layer)
        .collect();
    ensure!(
        done.len() == 8,
        "{} steps were finished before the kill",
        done.len()
    );
    // The step is quick now; what was done before is not done again.
    for step in &mut source.pipeline.bake.steps {
        if let oast_model::pipeline::Action::Run(run) = &mut step.action {
            run.command = run.command.replace(MARKER, "0.1");
        }
    }
    let sessions = leader.hellos().len();
    let _worker = farm.start(&[leader.address])?;
    // The dead worker's stream may still look open; what is said into it is lost.
    leader
        .until("the successor's session", |leader| {
            (leader.hellos().len() > sessions).then_some(())
        })
        .await?;
    let fourth = farm.bake(&source, done);
    leader.assign(&fourth).await?;
    let outcome = leader.outcome(fourth.token).await?;
    println!("{}", farm.log(&fourth)?);
    baked(outcome)?;
    let steps: Vec<(u16, bool)> = farm
        .steps(fourth.token)
        .iter()
        .map(|(step, known, _)| (*step, *known))
        .collect();
    ensure!(steps == [(8, false)], "{steps:?}");
    Ok(())
}

/// Processes whose command line has the marker.
fn processes(marker: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    entries
        .flatten()
        .filter_map(number)
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The sleep itself, not the shell whose text names it.
            line == [b"sleep\0", marker.as_bytes(), b"\0"].concat()
        })
        .collect()
}
