//! Nothing is left of a quickstart, however it ends: after Ctrl-C, after SIGKILL of itself, and after
//! SIGKILL of each process of the farm in turn, in the middle of a bake; and after SIGKILL of the
//! local cloud whose instances serve. As whoever runs the test, and as root also as an ordinary user.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_tests::ports::Ports;
use oast_tests::traces::Marks;
use oast_tests::wait::{Seen, seen, until_blocking};
use oast_tests::{http, need};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A user that is made for the test when it runs as root, and removed after it.
const USER: &str = "oast-left";
/// From the start until a bake is under way, on a busy machine.
const BAKING: Duration = Duration::from_secs(180);
/// From the start until the fleet serves its first page, on a busy machine.
const SERVING: Duration = Duration::from_secs(400);
/// The fleet's port above the first one, as `oast quickstart --help` says.
const FLEET_PORT_OFFSET: u16 = 637;
/// Until everything has ended; quickstart gives its processes five seconds.
const ENDED: Duration = Duration::from_secs(40);

/// How the farm meets its end.
#[derive(Clone, Copy, Debug)]
enum End {
    /// SIGINT to quickstart.
    Interrupt,
    /// SIGKILL to quickstart.
    Kill,
    /// SIGKILL to the janitor outside of the farm's PID namespace.
    KillJanitor,
    /// SIGKILL to process 1 of the farm's PID namespace.
    KillInit,
    /// SIGKILL to every daemon in turn, then SIGINT to quickstart.
    KillEach,
    /// SIGKILL to the local cloud when its fleet serves, then to quickstart.
    KillServing,
}

const ENDS: [End; 6] = [
    End::Interrupt,
    End::Kill,
    End::KillJanitor,
    End::KillInit,
    End::KillEach,
    End::KillServing,
];

#[test]
fn nothing_is_left_however_a_farm_ends() -> Result<()> {
    let test = "nothing_is_left_however_a_farm_ends";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    for end in ENDS {
        one(&oast, None, end).with_context(|| format!("{end:?}"))?;
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_an_ordinary_users_farm() -> Result<()> {
    let test = "nothing_is_left_of_an_ordinary_users_farm";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    if !need::root() {
        // The other test is this one then.
        return Ok(());
    }
    if !need::have(
        need::program("newuidmap"),
        "newuidmap (package uidmap)",
        test,
    ) {
        return Ok(());
    }
    let user = User::make()?;
    for end in ENDS {
        one(&oast, Some(&user), end).with_context(|| format!("{end:?} as {USER}"))?;
    }
    Ok(())
}

fn one(oast: &Path, user: Option<&User>, end: End) -> Result<()> {
    let stage = Stage::new(oast, user)?;
    let before = stage.marks.look();
    ensure!(before.is_empty(), "something is there already: {before:?}");
    let mut quickstart = stage.start()?;
    let reached = stage.end(&mut quickstart, end);
    // Whatever happened, the next case must find a quiet machine.
    if reached.is_err() {
        let _ = quickstart.kill();
        let _ = quickstart.wait();
    }
    reached.with_context(|| stage.output())?;
    let gone = until_blocking("nothing is left", ENDED, || {
        let left = stage.marks.look();
        Ok(seen(left.is_empty().then_some(()), format!("{left:#?}")))
    });
    gone.with_context(|| stage.output())?;
    stage.clean()
}

/// A folder with a copy of the binary that nothing else runs.
struct Stage {
    folder: TempDir,
    oast: PathBuf,
    data: PathBuf,
    user: bool,
    ports: Ports,
    marks: Marks,
}

impl Stage {
    fn new(oast: &Path, user: Option<&User>) -> Result<Stage> {
        let folder = tempfile::Builder::new()
            .prefix("oast-test-left-")
            .tempdir()?;
        let copy = folder.path().join("oast");
        fs::copy(oast, &copy)?;
        let (data, temporary) = (folder.path().join("data"), folder.path().join("tmp"));
        fs::create_dir(&data)?;
        fs::create_dir(&temporary)?;
        if user.is_some() {
            let done = Command::new("chown")
                .args(["-R", USER])
                .arg(folder.path())
                .status()?;
            ensure!(done.success(), "chown failed");
        }
        // As quickstart names its groups.
        let digest = oast_model::digest::Digest::of(data.display().to_string().as_bytes());
        let marks = Marks {
            folder: data.clone(),
            oast: copy.clone(),
            temporary,
            group: format!("oast-quickstart-{}", digest.short()),
        };
        Ok(Stage {
            oast: copy,
            data,
            user: user.is_some(),
            ports: Ports::block()?,
            marks,
            folder,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.oast);
        if self.user {
            use std::os::unix::process::CommandExt as _;
            let (uid, gid) = ids().unwrap_or_default();
            // Groups are dropped by the standard library when root changes the user.
            command.uid(uid).gid(gid);
        }
        let kept = ["PATH", "http_proxy", "https_proxy", "no_proxy"];
        let kept = kept
            .into_iter()
            .filter_map(|key| Some((key, std::env::var(key).ok()?)));
        command
            .env_clear()
            .envs(kept)
            .env("HOME", self.folder.path())
            .env("TMPDIR", &self.marks.temporary)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn start(&self) -> Result<Child> {
        let log = fs::File::create(self.folder.path().join("output"))?;
        self.command()
            .args(["quickstart", "--data"])
            .arg(&self.data)
            .args(["--port-base", &self.ports.base().to_string()])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start quickstart")
    }

    /// What it said, for errors.
    fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    /// Waits for the moment, ends the farm, and waits until quickstart itself has ended.
    fn end(&self, quickstart: &mut Child, end: End) -> Result<()> {
        match end {
            End::KillServing => self.serves(quickstart)?,
            _ => self.bakes(quickstart)?,
        }
        let pid = Pid::from_child(quickstart);
        match end {
            End::Interrupt => kill_process(pid, Signal::INT)?,
            End::Kill => kill_process(pid, Signal::KILL)?,
            End::KillJanitor => kill_process(self.inits(pid)?.0, Signal::KILL)?,
            End::KillInit => kill_process(self.inits(pid)?.1, Signal::KILL)?,
            End::KillEach => {
                let daemons = self.daemons();
                ensure!(daemons.len() >= 6, "daemons: {daemons:?}");
                for daemon in daemons {
                    // One may have ended because of the one before.
                    let _ = kill_process(daemon, Signal::KILL);
                }
                kill_process(pid, Signal::INT)?;
            }
            End::KillServing => {
                let cloud = self.processes("local-cloud");
                ensure!(!cloud.is_empty(), "no local cloud runs");
                for process in cloud {
                    kill_process(process, Signal::KILL)?;
                }
                kill_process(pid, Signal::KILL)?;
            }
        }
        until_blocking("the end of quickstart", ENDED, || {
            Ok(seen(quickstart.try_wait()?.map(drop), "it still runs"))
        })
    }

    fn serves(&self, quickstart: &mut Child) -> Result<()> {
        let address = format!("127.0.0.1:{}", self.ports.base() + FLEET_PORT_OFFSET);
        until_blocking("the fleet serves", SERVING, || {
            if let Some(status) = quickstart.try_wait()? {
                return Ok(Seen::Never(format!("quickstart ended with {status}")));
            }
            let served = http::get(&address, "/").is_ok_and(|answer| answer.status == 200);
            Ok(seen(served.then_some(()), "no page"))
        })
    }

    fn bakes(&self, quickstart: &mut Child) -> Result<()> {
        until_blocking("a bake is under way", BAKING, || {
            if let Some(status) = quickstart.try_wait()? {
                return Ok(Seen::Never(format!("quickstart ended with {status}")));
            }
            let works = ["workers/1/work", "workers/2/work"];
            let begun = works.iter().any(|work| {
                fs::read_dir(self.data.join(work)).is_ok_and(|mut inside| inside.next().is_some())
            });
            Ok(seen(begun.then_some(()), "nothing is being baked"))
        })
    }

    /// The janitor and process 1 below it.
    fn inits(&self, quickstart: Pid) -> Result<(Pid, Pid)> {
        let of = |parent: Pid| {
            let all = self.processes("farm-init").into_iter();
            let mut children = all.filter(|pid| parent_of(*pid) == Some(parent));
            children.next().context("no farm-init")
        };
        let janitor = of(quickstart)?;
        Ok((janitor, of(janitor)?))
    }

    fn daemons(&self) -> Vec<Pid> {
        self.processes("--config")
    }

    /// Processes of our binary with that word among their arguments.
    fn processes(&self, word: &str) -> Vec<Pid> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            let ours = arguments.contains(&self.oast.display().to_string());
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|_| ours && arguments.contains(word)) {
                found.insert(number);
            }
        }
        found.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// The data is removed by the command for it, files of mapped users too.
    fn clean(self) -> Result<()> {
        let cleaned = self
            .command()
            .args(["quickstart", "--clean", "--data"])
            .arg(&self.data)
            .output()?;
        let said = String::from_utf8_lossy(&cleaned.stderr).into_owned();
        ensure!(
            cleaned.status.success() && !self.data.exists(),
            "not cleaned: {said}"
        );
        Ok(())
    }
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?;
    Pid::from_raw(parent.parse().ok()?)
}

/// The user's ids.
fn ids() -> Option<(u32, u32)> {
    let entry = Command::new("getent")
        .args(["passwd", USER])
        .output()
        .ok()?;
    let entry = String::from_utf8(entry.stdout).ok()?;
    let mut fields = entry.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The ordinary user, there while this lives.
struct User;

impl User {
    fn make() -> Result<User> {
        if ids().is_none() {
            let made = Command::new("useradd")
                .args(["--create-home", USER])
                .status()?;
            ensure!(made.success(), "useradd failed");
        }
        let user = User;
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            let mark = format!("{USER}:");
            ensure!(
                text.lines().any(|line| line.starts_with(&mark)),
                "{file} has no range for {USER}"
            );
        }
        Ok(user)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Best effort: a user that stays is used again.
        let _ = Command::new("userdel").args(["--remove", USER]).output();
    }
}
