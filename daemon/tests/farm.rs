//! The farm for real: namespaces and processes of this machine. Without a harness, because the
//! test binary is also the helper that is re-executed (`internal farm-init`).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oast_daemon::isolate::{ChildSpec, Farm, FarmEvent, FarmEvents, FarmSpec};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["internal", "farm-init"] => oast_daemon::isolate::entry(),
        ["internal", "farm-remove", folder] => {
            oast_daemon::isolate::remove_entry(Path::new(folder))
        }
        ["internal", "preflight", _] => oast_daemon::preflight::entry(),
        ["hold", folder] => return runtime()?.block_on(hold(Path::new(folder))),
        _ => {}
    }
    let folder = std::env::temp_dir().join(format!("oast-farm-test-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = runtime()?.block_on(all(&folder));
    fs::remove_dir_all(&folder).context("remove what the tests made")?;
    result
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?)
}

async fn all(folder: &Path) -> Result<()> {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => { $(
            $name(&folder.join(stringify!($name))).await.context(stringify!($name))?;
            say(&format!("ok {}", stringify!($name)));
        )* };
    }
    tests![
        children_start_end_and_restart_under_their_names,
        shutdown_asks_first_and_leaves_nothing,
        killing_any_part_leaves_nothing,
        files_of_the_farm_are_removed_from_outside,
        this_machine_passes_the_preflight,
    ];
    Ok(())
}

async fn start(folder: &Path) -> Result<(Farm, FarmEvents)> {
    fs::create_dir_all(folder)?;
    let farm = format!("test-{}", std::process::id());
    Ok(Farm::start(FarmSpec {
        exe: PathBuf::from("/proc/self/exe"),
        farm,
    })
    .await?)
}

fn shell(folder: &Path, name: &str, script: &str) -> ChildSpec {
    ChildSpec {
        name: name.into(),
        argv: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        env: [(
            "PATH".to_owned(),
            "/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        )]
        .into(),
        log: folder.join(format!("{name}.log")),
    }
}

async fn next(events: &mut FarmEvents) -> Result<FarmEvent> {
    let event = tokio::time::timeout(Duration::from_secs(20), events.next()).await??;
    event.context("the farm ended")
}

async fn children_start_end_and_restart_under_their_names(folder: &Path) -> Result<()> {
    let (farm, mut events) = start(folder).await?;
    farm.spawn(shell(folder, "a", "echo hello; id -u; exit 3"))?;
    let FarmEvent::Started { name, pid } = next(&mut events).await? else {
        bail!("not started")
    };
    ensure!(name == "a" && pid > 1);
    let ended = next(&mut events).await?;
    ensure!(
        matches!(ended, FarmEvent::Ended { code: Some(3), .. }),
        "{ended:?}"
    );
    ensure!(fs::read_to_string(folder.join("a.log"))? == "hello\n0\n");

    farm.spawn(shell(folder, "b", "echo up; exec sleep 1000"))?;
    let FarmEvent::Started { pid: first, .. } = next(&mut events).await? else {
        bail!("not started")
    };
    farm.spawn(shell(folder, "b", "true"))?;
    ensure!(
        matches!(next(&mut events).await?, FarmEvent::NotStarted { .. }),
        "two of one name"
    );
    farm.restart("b")?;
    ensure!(matches!(
        next(&mut events).await?,
        FarmEvent::Ended {
            signal: Some(9),
            ..
        }
    ));
    let FarmEvent::Started { pid: second, .. } = next(&mut events).await? else {
        bail!("not again")
    };
    ensure!(first != second);
    farm.kill("b", libc::SIGTERM)?;
    ensure!(matches!(
        next(&mut events).await?,
        FarmEvent::Ended {
            signal: Some(15),
            ..
        }
    ));

    let mut missing = shell(folder, "c", "");
    missing.argv = vec!["/no/such/program".into()];
    farm.spawn(missing)?;
    let FarmEvent::NotStarted { fault, .. } = next(&mut events).await? else {
        bail!("it started")
    };
    ensure!(
        fault.to_string().contains("execve /no/such/program"),
        "{fault}"
    );
    farm.shutdown(Duration::from_secs(5))?;
    events.finish().await?;
    Ok(())
}

async fn shutdown_asks_first_and_leaves_nothing(folder: &Path) -> Result<()> {
    let (farm, mut events) = start(folder).await?;
    let marker = marker("polite");
    let script = format!(
        "trap 'echo bye; exit 0' TERM; setsid sleep {marker} & while :; do sleep {marker} & wait $!; done"
    );
    farm.spawn(shell(folder, "polite", &script))?;
    farm.spawn(shell(
        folder,
        "deaf",
        &format!("trap '' TERM; echo deaf; sleep {marker}"),
    ))?;
    next(&mut events).await?;
    next(&mut events).await?;
    until(
        || Ok(fs::read_to_string(folder.join("deaf.log"))? == "deaf\n" && running(&marker)? >= 3),
    )
    .await?;
    farm.shutdown(Duration::from_millis(500))?;
    let ended = next(&mut events).await?;
    ensure!(
        matches!(&ended, FarmEvent::Ended { name, code: Some(0), .. } if name == "polite"),
        "{ended:?}"
    );
    events.finish().await?;
    ensure!(fs::read_to_string(folder.join("polite.log"))? == "bye\n");
    ensure!(running(&marker)? == 0, "{} are left", running(&marker)?);
    Ok(())
}

/// Kills the command, then the outer process, then init, each in its own farm.
async fn killing_any_part_leaves_nothing(folder: &Path) -> Result<()> {
    for part in ["command", "outer", "init"] {
        let folder = folder.join(part);
        fs::create_dir_all(&folder)?;
        let mut command = tokio::process::Command::new("/proc/self/exe")
            .arg("hold")
            .arg(&folder)
            .spawn()?;
        let marker = marker(&folder.to_string_lossy());
        until(|| Ok(running(&marker)? >= 3))
            .await
            .with_context(|| format!("{part}: not started"))?;
        let command_pid = command.id().context("a pid")? as i32;
        let outer = child_of(command_pid)?.context("no outer process")?;
        let init = child_of(outer)?.context("no init")?;
        let victim = match part {
            "command" => command_pid,
            "outer" => outer,
            _ => init,
        };
        // SAFETY: plain numbers.
        unsafe { libc::kill(victim, libc::SIGKILL) };
        until(|| Ok(running(&marker)? == 0))
            .await
            .with_context(|| format!("{part}: processes are left"))?;
        if part != "command" {
            let ended = tokio::time::timeout(Duration::from_secs(20), command.wait()).await??;
            ensure!(ended.success(), "{part}: the command did not see the end");
        } else {
            command.wait().await?;
        }
        until(|| Ok(!alive(outer) && !alive(init)))
            .await
            .with_context(|| format!("{part}: the farm is left"))?;
    }
    Ok(())
}

async fn hold(folder: &Path) -> Result<()> {
    let (farm, mut events) = start(folder).await?;
    let marker = marker(&folder.to_string_lossy());
    farm.spawn(shell(
        folder,
        "a",
        &format!("setsid sleep {marker} & sleep {marker} & exec sleep {marker}"),
    ))?;
    while events.next().await?.is_some() {}
    Ok(())
}

async fn files_of_the_farm_are_removed_from_outside(folder: &Path) -> Result<()> {
    let (farm, mut events) = start(folder).await?;
    let data = folder.join("data");
    let shown = data.display();
    farm.spawn(shell(folder, "own", &format!("mkdir -p {shown}/deep && touch {shown}/deep/f && chown -R 33:33 {shown} && chmod 700 {shown}")))?;
    next(&mut events).await?;
    let ended = next(&mut events).await?;
    ensure!(
        matches!(ended, FarmEvent::Ended { code: Some(0), .. }),
        "{ended:?}"
    );
    drop((farm, events));
    let removed = tokio::process::Command::new("/proc/self/exe")
        .args(["internal", "farm-remove"])
        .arg(&data)
        .status()
        .await?;
    ensure!(removed.success() && !data.exists());
    Ok(())
}

async fn this_machine_passes_the_preflight(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let request = oast_daemon::preflight::Request {
        data: folder.into(),
        free_bytes: 1 << 20,
    };
    let findings = oast_daemon::preflight::run(Path::new("/proc/self/exe"), request).await?;
    for finding in &findings {
        ensure!(
            finding.outcome != oast_daemon::preflight::Outcome::Failed,
            "{finding:?}"
        );
    }
    ensure!(
        findings.iter().any(|finding| finding.name == "root"),
        "{findings:?}"
    );
    ensure!(
        fs::read_dir(folder)?.next().is_none(),
        "the preflight left something"
    );
    Ok(())
}

#[expect(
    clippy::disallowed_macros,
    reason = "a test without a harness reports by itself"
)]
fn say(text: &str) {
    println!("{text}");
}

/// A sleeping time that only one farm uses, so that its processes can be counted.
fn marker(what: &str) -> String {
    let sum = what.bytes().fold(7_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    format!("{}.{}", 200_000 + sum % 100_000, sum % 1000)
}

fn running(marker: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        count +=
            usize::from(words.next() == Some(b"sleep") && words.next() == Some(marker.as_bytes()));
    }
    Ok(count)
}

fn child_of(parent: i32) -> Result<Option<i32>> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if fields.split(' ').nth(1) == Some(&parent.to_string()) {
            return Ok(path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok()));
        }
    }
    Ok(None)
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn until(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..500 {
        if done()? {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!("not within 5 s")
}
