//! A whole worker for real, in a process of its own that is killed on the way, under a leader
//! that the test plays. Without a harness, because the test binary is also the worker (`worker
//! CONFIG`) and the helper of its sandboxes (`internal sandbox`).
//!
//! The bakes need packages of Debian 12 from this machine's apt sources; without them, or with
//! `OAST_TEST_OFFLINE` set, that part is skipped, and says so.

mod farm;
#[expect(dead_code, reason = "the batch scenario uses the rest")]
mod leader;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use camino::Utf8Path;
use farm::{
    Farm, Running, apt_has, baked, commit, git, repository, runtime, source_of, succeeded, worker,
};
use leader::Leader;
use oast_artifacts::ArtifactStore;
use oast_model::bake::{BakedImage, Layer};
use oast_model::task::{Origin, Outcome, Output, Work};

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
