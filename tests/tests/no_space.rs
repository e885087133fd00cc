//! A member on a disk that is full: it stays readable, loses nothing, starts again, and comes back
//! by itself.
//!
//! The disk is a small tmpfs in a mount namespace that a sleeping process holds, so it outlives the
//! member and goes with the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use oast_daemon::random;
use oast_model::digest::Digest;
use oast_proto::v1::{InitFarmRequest, ListRunsRequest, SubmitRunRequest};
use oast_tests::api::{Api, call};
use oast_tests::documents::{PIPELINE, TEAM};
use oast_tests::farm::START;
use oast_tests::ports::Ports;
use oast_tests::wait::{Seen, seen, until, until_blocking};
use oast_tests::{http, need};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Size of the disk in MiB: twice the log's first file and some state.
const DISK_MIB: u32 = 96;
const TOKEN: &str = "an-administrators-token";
const PEER: &str = "what members show each other";

/// A member whose data lies on a disk of its own.
struct Small {
    oast: PathBuf,
    folder: tempfile::TempDir,
    ports: Ports,
    /// Sleeps in the namespace.
    holder: Child,
    member: Option<Child>,
}

impl Drop for Small {
    fn drop(&mut self) {
        for child in [self.member.as_mut(), Some(&mut self.holder)]
            .into_iter()
            .flatten()
        {
            // It may be dead already, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Small {
    fn new(oast: &Path) -> Result<Small> {
        let folder = tempfile::Builder::new().prefix("oast-test-").tempdir()?;
        let ports = Ports::block()?;
        let disk = folder.path().join("disk");
        fs::create_dir(&disk)?;
        fs::create_dir(folder.path().join("store"))?;
        fs::write(folder.path().join("peer"), PEER)?;
        let place = |name: &str| folder.path().join(name).display().to_string();
        let address = ports.at(0);
        let config = format!(
            "farm = \"test\"\nmember = 1\nlisten = \"{address}\"\ndata_dir = \"{}\"\nstore_dir = \"{}\"\npeer_token_file = \"{}\"\ndisk_reserve = \"32MiB\"\n[peers]\n1 = \"{address}\"\n",
            disk.join("member").display(),
            place("store"),
            place("peer"),
        );
        fs::write(folder.path().join("member.toml"), config)?;
        let script = format!(
            "mount -t tmpfs -o size={DISK_MIB}m tmpfs {} && touch {} && exec sleep infinity",
            disk.display(),
            place("mounted"),
        );
        let holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .context("start unshare")?;
        let small = Small {
            oast: oast.to_owned(),
            folder,
            ports,
            holder,
            member: None,
        };
        let mounted = small.folder.path().join("mounted");
        until_blocking("the disk", START, || {
            Ok(seen(mounted.exists().then_some(()), "no disk yet"))
        })?;
        Ok(small)
    }

    /// A command in the namespace.
    fn inside(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--mount", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    fn shell(&self, script: &str) -> Result<()> {
        // Who enters a mount namespace stands at its root.
        let script = format!("cd {} || exit 1; {script}", self.folder.path().display());
        let status = self
            .inside(Path::new("sh"))
            .args(["-c", &script])
            .stderr(Stdio::null())
            .status()?;
        // A disk that gets full ends `head` with an error: that is what it is for.
        ensure!(status.code().is_some(), "`{script}`: {status}");
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn start(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))?;
        let child = self
            .inside(&self.oast)
            .args(["coordinator", "--config"])
            .arg(self.folder.path().join("member.toml"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.member = Some(child);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut child = self.member.take().context("a member")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn dead(&mut self) -> Result<bool> {
        let child = self.member.as_mut().context("a member")?;
        Ok(child.try_wait()?.is_some())
    }

    fn api(&self) -> Result<Api> {
        Api::new(&self.ports.at(0).to_string(), Some(TOKEN))
    }

    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            anyhow::anyhow!("{error:#}\n{end}")
        })
    }

    async fn until_runs(&self) -> Result<Vec<String>> {
        let runs = until("a list of runs", START, async || {
            let runs = run_ids(&self.api()?).await?;
            Ok(Seen::This(runs))
        });
        self.explain(runs.await)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_full_disk_stays_readable_and_comes_back_by_itself() -> Result<()> {
    let test = "a_member_with_a_full_disk_stays_readable_and_comes_back_by_itself";
    let tools = need::root() && need::program("unshare") && need::program("nsenter");
    if !need::have(tools, "root, unshare and nsenter", test) {
        return Ok(());
    }
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let mut small = Small::new(&oast)?;
    small.start()?;
    init(&small).await?;
    let api = small.api()?;
    let apply = oast_proto::v1::ApplyResourceRequest {
        request_id: "team".into(),
        document: TEAM.into(),
        validate_only: false,
        expected_revision: -1,
    };
    api.resources().apply_resource(call(apply)).await?;
    let tree = api.upload(&[("oast.yaml", PIPELINE)]).await?;
    let mut acknowledged = BTreeMap::new();
    for number in 0..5 {
        let id = format!("first-{number}");
        let run = submit(&api, &id, &tree).await?;
        acknowledged.insert(run, id);
    }
    until_blocking("the room that is set aside", START, || {
        // Seen from outside of the namespace nothing is there: look inside.
        small.shell("test -f disk/member/reserve && touch reserved")?;
        let there = small.folder.path().join("reserved").exists();
        Ok(seen(there.then_some(()), "no reserve"))
    })?;

    // Little room: reads go on, writes are refused with a reason.
    small.shell(
        "head -c $(( $(df --output=avail -B1 disk | tail -1) - 16777216 )) /dev/zero > disk/fill",
    )?;
    refused(&small, &tree).await?;
    let address = small.ports.at(0).to_string();
    let health = http::get(&address, "/healthz")?;
    ensure!(
        health.status == 200 && health.body.contains("disk: not ready"),
        "{health:?}"
    );
    let metrics = http::get(&address, "/metrics")?.body;
    ensure!(metrics.contains("oast_disk_no_space 1"), "{metrics}");
    // Writes that came before the member looked at its disk may be there as well.
    let runs = small.until_runs().await?;
    for run in acknowledged.keys() {
        ensure!(runs.contains(run), "{run} is lost: {runs:?}");
    }

    // Room again: nobody has to do anything.
    small.shell("rm disk/fill")?;
    acknowledged.insert(accepted(&small, "second", &tree).await?, "second".into());

    // The disk is filled under load, from one moment to the next. Whether the member notices before or
    // after a write fails: what it acknowledged is there.
    let mut load = Vec::new();
    for client in 0..4 {
        let (api, tree) = (small.api()?, tree.clone());
        load.push(async move {
            let mut done = BTreeMap::new();
            for number in 0.. {
                let id = format!("load-{client}-{number}");
                match submit(&api, &id, &tree).await {
                    Ok(run) => done.insert(run, id),
                    Err(_) => break,
                };
            }
            done
        });
    }
    let fill = async {
        // Once the load runs.
        let before = run_ids(&small.api()?).await?.len();
        until("the load", START, async || {
            let runs = run_ids(&small.api()?).await?.len();
            Ok(seen((runs > before + 20).then_some(()), runs))
        })
        .await?;
        small.shell("cat /dev/zero > disk/fill")
    };
    let mut load = load.into_iter();
    let (a, b, c, d) = (load.next(), load.next(), load.next(), load.next());
    let (Some(a), Some(b), Some(c), Some(d)) = (a, b, c, d) else {
        anyhow::bail!("four clients")
    };
    let (a, b, c, d, filled) = tokio::join!(a, b, c, d, fill);
    filled?;
    for done in [a, b, c, d] {
        acknowledged.extend(done);
    }

    // It starts with the full disk, shows everything, and takes nothing.
    let fell = small.dead()?;
    if !fell {
        small.kill()?;
    }
    small.start()?;
    let runs = small.until_runs().await?;
    for run in acknowledged.keys() {
        ensure!(runs.contains(run), "{run} is lost (fell: {fell})");
    }
    refused(&small, &tree).await?;
    ensure!(!small.dead()?, "{}", small.log());
    small.shell("rm disk/fill")?;
    accepted(&small, "third", &tree).await?;
    // The same requests are the same runs.
    for (run, id) in acknowledged.iter().take(30) {
        ensure!(submit(&small.api()?, id, &tree).await? == *run, "{id}");
    }
    Ok(())
}

async fn init(small: &Small) -> Result<()> {
    let request = InitFarmRequest {
        name: "test".into(),
        bootstrap: PEER.to_owned(),
        admin_hash: Digest::of(TOKEN.as_bytes()).to_string(),
        worker_hash: Digest::of(random::token().expose().as_bytes()).to_string(),
    };
    let begun = until("the farm takes its name", START, async || {
        small
            .api()?
            .operator()
            .init_farm(call(request.clone()))
            .await?;
        Ok(Seen::This(()))
    });
    small.explain(begun.await)
}

async fn submit(api: &Api, request_id: &str, tree: &str) -> Result<String, Status> {
    let request = SubmitRunRequest {
        request_id: request_id.to_owned(),
        team: "demo".into(),
        tree: tree.to_owned(),
        ..SubmitRunRequest::default()
    };
    let run = api.runs().submit_run(call(request)).await?;
    Ok(run.into_inner().id)
}

/// Waits until a write is refused for want of room.
async fn refused(small: &Small, tree: &str) -> Result<()> {
    let mut number = 0;
    let refused = until("a refusal", START, async || {
        number += 1;
        let id = format!("refused-{}-{number}", random::request_id());
        let answer = submit(&small.api()?, &id, tree).await;
        let no_space = answer.as_ref().is_err_and(|status| {
            let reason = status.get_details_error_info().map(|info| info.reason);
            status.code() == Code::ResourceExhausted && reason.as_deref() == Some("NO_SPACE")
        });
        Ok(seen(no_space.then_some(()), format!("{answer:?}")))
    });
    small.explain(refused.await)
}

/// Waits until a write is accepted.
async fn accepted(small: &Small, id: &str, tree: &str) -> Result<String> {
    let run = until("a write", START, async || {
        let answer = submit(&small.api()?, id, tree).await;
        Ok(seen(answer.as_ref().ok().cloned(), format!("{answer:?}")))
    });
    small.explain(run.await)
}

async fn run_ids(api: &Api) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRunsRequest {
            page_size: 500,
            page_token,
            ..ListRunsRequest::default()
        };
        let list = api.runs().list_runs(call(request)).await?.into_inner();
        ids.extend(list.runs.into_iter().map(|run| run.id));
        if list.next_page_token.is_empty() {
            return Ok(ids);
        }
        page_token = list.next_page_token;
    }
}
