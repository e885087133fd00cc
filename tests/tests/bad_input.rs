//! Mistakes of people and shortages of machines: one clear message that names the place and the way
//! out, the documented exit code, and nothing half-made.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_tests::cli::Cli;
use oast_tests::documents::TEAM;
use oast_tests::farm::Plan;
use oast_tests::git::Copy;
use oast_tests::need;
use oast_tests::ports::Ports;

fn pipeline(bake: &str) -> String {
    format!(
        "apiVersion: oast/v1\nname: web\nteam: demo\nbake:\n{bake}publish: {{ image: web, channel: candidate }}\n"
    )
}

#[test]
fn a_wrong_pipeline_file_is_refused_with_every_place_at_once() -> Result<()> {
    let Some(oast) = need::oast("a_wrong_pipeline_file_is_refused_with_every_place_at_once") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let cli = Cli::new(&oast, folder.path());
    let broken = "apiVersion: oast/v1\nname: [web\nteam: demo\n";
    fs::write(folder.path().join("broken.yaml"), broken)?;
    cli.run(&["validate", "broken.yaml"])?
        .failed(1, &["broken.yaml:"])?;

    let mut unknown = pipeline("  from: debian-12\n  stepz: []\n  steps:\n    - run: \"true\"\n");
    unknown.push_str("on: push\n");
    fs::write(folder.path().join("unknown.yaml"), unknown)?;
    let done = cli.run(&["validate", "unknown.yaml"])?;
    // Both at once, each with its line.
    done.failed(1, &["stepz", "unknown.yaml:6", "`on`", "unknown.yaml:10"])?;
    let done = cli.run(&["validate", "no-such.yaml"])?;
    done.failed(done.code, &["no-such.yaml"])?;
    ensure!([1, 5].contains(&done.code), "{done:?}");
    cli.run(&["validate", "--no-such-flag"])?
        .failed(64, &["--no-such-flag", "Usage"])
}

#[test]
fn without_a_farm_the_commands_say_how_to_name_one() -> Result<()> {
    let Some(oast) = need::oast("without_a_farm_the_commands_say_how_to_name_one") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let cli = Cli::new(&oast, folder.path());
    let done = cli.run(&["list", "runs"])?;
    done.failed(done.code, &["OAST_ADDR"])?;
    ensure!(done.code != 0, "{done:?}");
    let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let cli = cli.env("OAST_ADDR", &nobody).env("OAST_TOKEN", "x");
    cli.run(&["list", "runs"])?
        .failed(3, &["no member of the farm answers"])
}

#[test]
fn quickstart_names_the_port_that_is_taken_and_starts_nothing() -> Result<()> {
    let Some(oast) = need::oast("quickstart_names_the_port_that_is_taken_and_starts_nothing")
    else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let ports = Ports::block()?;
    let taken = TcpListener::bind(ports.at(1))?;
    let base = ports.base().to_string();
    let words = [
        "quickstart",
        "--exit",
        "--data",
        "data",
        "--port-base",
        &base,
    ];
    let done = Cli::new(&oast, folder.path()).run(&words)?;
    done.failed(1, &[&taken.local_addr()?.port().to_string(), "--port-base"])?;
    ensure!(
        !folder.path().join("data/members").exists(),
        "it began all the same"
    );
    Ok(())
}

#[test]
fn a_full_disk_is_found_before_anything_starts() -> Result<()> {
    let test = "a_full_disk_is_found_before_anything_starts";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    if !need::have(need::root(), "root, to mount a small file system", test) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let ports = Ports::block()?;
    // The mount is seen by this shell alone and goes with it.
    let script = "mount -t tmpfs -o size=8m,mode=755 oast-small \"$1\" && shift && exec \"$@\"";
    let output = within(&["unshare", "--mount", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .arg(&oast)
        .args([
            "quickstart",
            "--exit",
            "--port-base",
            &ports.base().to_string(),
            "--data",
        ])
        .arg(folder.path().join("data"))
        .output()?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("disk") && said.contains("--data"), "{said}");
    Ok(())
}

#[test]
fn without_user_namespaces_the_fix_is_named() -> Result<()> {
    let test = "without_user_namespaces_the_fix_is_named";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    if !need::have(need::root(), "root, to limit namespaces", test) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let ports = Ports::block()?;
    // The limit holds in the namespace in which it is set and below it.
    let script = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let output = within(&[
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
    ])
    .arg(&oast)
    .args([
        "quickstart",
        "--exit",
        "--port-base",
        &ports.base().to_string(),
        "--data",
    ])
    .arg(folder.path().join("data"))
    .output()?;
    let said = said(&output);
    ensure!(output.status.code() == Some(1), "{said}");
    ensure!(said.contains("max_user_namespaces"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_refuses_what_is_wrong_and_goes_on() -> Result<()> {
    let test = "a_farm_refuses_what_is_wrong_and_goes_on";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    // A mirror that nobody answers at; the machine's own configuration is out of reach.
    let gone = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let keyring = tempfile::NamedTempFile::new()?;
    let extra = format!(
        "[bake]\napt_root = \"/nonexistent\"\n[[bake.mirrors]]\nurl = \"http://{gone}/debian\"\nkeyrings = [{:?}]\n",
        keyring.path()
    );
    let farm = Plan::new(&oast)
        .members(1)
        .worker(&["source", "bake"])
        .worker_extra(&extra)
        .start()
        .await?;
    farm.apply(TEAM).await?;
    let cli = farm.cli().limit(Duration::from_secs(120));

    // A folder that is no repository.
    let plain = tempfile::tempdir()?;
    fs::write(
        plain.path().join("oast.yaml"),
        pipeline("  from: debian-12\n  steps:\n    - run: \"true\"\n"),
    )?;
    let done = cli.clone().at(plain.path()).run(&["run"])?;
    farm.explain(done.failed(done.code, &["repository"]))?;
    ensure!(done.code != 0, "{done:?}");
    ensure!(
        cli.good(&["list", "runs", "-o", "json"])?
            .trim_start()
            .starts_with('[')
    );

    // A pipeline file that is wrong never becomes a run.
    let copy = Copy::new()?;
    copy.commit(
        "wrong",
        &[("oast.yaml", "apiVersion: oast/v1\nname: web\nsteps: []\n")],
    )?;
    let done = cli.clone().at(copy.folder()).run(&["run"])?;
    farm.explain(done.failed(1, &["oast.yaml"]))?;

    // A mirror that does not answer: the run ends and names it.
    let good = pipeline("  from: debian-12\n  steps:\n    - run: \"true\"\n");
    copy.commit("unreachable", &[("oast.yaml", &good)])?;
    let done = cli.clone().at(copy.folder()).run(&["run"])?;
    farm.explain(done.failed(1, &[&gone.to_string()]))?;
    no_half_made(farm.folder())?;
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bake_that_cannot_go_on_names_its_step_and_leaves_nothing() -> Result<()> {
    let test = "a_bake_that_cannot_go_on_names_its_step_and_leaves_nothing";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast)
        .members(1)
        .worker(&["source", "bake", "test", "publish"])
        .start()
        .await?;
    farm.apply(TEAM).await?;
    let cli = farm.cli().limit(Duration::from_secs(300));
    let copy = Copy::new()?;

    // What is to be copied is not in the commit.
    let missing = "  from: debian-12\n  steps:\n    - copy: { from: web/sight, to: /srv }\n";
    copy.commit("missing", &[("oast.yaml", &pipeline(missing))])?;
    let done = cli.clone().at(copy.folder()).run(&["run"])?;
    farm.explain(done.failed(
        1,
        &["bake.steps[0]", "web/sight", "the commit does not have"],
    ))?;
    no_half_made(farm.folder())?;

    // A command fails: its words, its status and what it said.
    let failing = "  from: debian-12\n  steps:\n    - run: echo the oven is cold >&2; exit 7\n";
    copy.commit("failing", &[("oast.yaml", &pipeline(failing))])?;
    let done = cli.clone().at(copy.folder()).run(&["run"])?;
    farm.explain(done.failed(1, &["the oven is cold", "exit code 7"]))?;
    no_half_made(farm.folder())?;

    let images = cli.good(&["list", "images", "-o", "json"])?;
    ensure!(!images.contains("\"web:1\""), "{images}");
    farm.finish().await
}

fn no_half_made(folder: &Path) -> Result<()> {
    let work = folder.join("worker-1/work");
    let left = fs::read_dir(&work).with_context(|| format!("look into {}", work.display()))?;
    let left: Vec<_> = left.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "half-made: {left:?}");
    Ok(())
}

fn within(words: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").args(words);
    command
}

fn said(output: &std::process::Output) -> String {
    let text = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&text).into_owned()
}
