//! The whole story with the real binary: as root, and as an ordinary user.
//!
//! The ordinary user is the caller, or, when the caller is root, a user made for this run and
//! removed after it. The binary is copied to where that user can read it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::counts::Counts;
use super::{Row, process};
use crate::command::{in_ci, output, succeeds};
use crate::workspace::Workspace;

/// Longest time for the story, cold package cache included.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The user that is made for the run.
const USER: &str = "oast-ci";

/// Whose privileges quickstart runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Root,
    User,
}

impl Who {
    pub fn suite(self) -> &'static str {
        match self {
            Who::Root => "quickstart-root",
            Who::User => "quickstart-user",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Who::Root => "oast quickstart --exit as root",
            Who::User => "oast quickstart --exit as an ordinary user",
        }
    }
}

/// Runs the story once; counted as one test.
pub fn run(who: Who, workspace: &Workspace, log: &Path) -> Result<Row> {
    let name = who.suite().to_owned();
    let we_are_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let stage = match (who, we_are_root) {
        (Who::Root, true) | (Who::User, false) => Stage::own()?,
        (Who::User, true) => Stage::of_new_user()?,
        (Who::Root, false) if sudo() => Stage::own()?,
        (Who::Root, false) => {
            let note = "needs root or sudo without a password".to_owned();
            let counts = if in_ci() {
                Counts::FAILED
            } else {
                Counts::SKIPPED
            };
            return Ok(Row {
                name,
                seconds: 0.0,
                counts,
                note,
            });
        }
    };
    let binary = stage.folder.join("oast");
    std::fs::copy(workspace.target.join("release/oast"), &binary).context("cannot copy oast")?;
    stage.hand_over()?;

    let mut words = Vec::new();
    match (who, we_are_root) {
        (Who::User, true) => words.extend(["runuser", "-u", USER, "--"]),
        (Who::Root, false) => words.extend(["sudo", "-n"]),
        _ => {}
    }
    let home = format!("HOME={}", stage.folder.display());
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    words.extend(["env", "-i", &home, path, "LANG=C.UTF-8"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    // A mirror behind a proxy is part of the machine, not of the caller's taste.
    for proxy in ["http_proxy", "https_proxy", "no_proxy"] {
        if let Ok(value) = std::env::var(proxy) {
            command.arg(format!("{proxy}={value}"));
        }
    }
    command
        .arg(&binary)
        .args(["quickstart", "--exit"])
        .current_dir(&stage.folder);
    let ended = process::run(&mut command, log, LIMIT)?;
    let left = leftovers(&stage.folder);
    for what in &left {
        println!("test: left behind: {what}");
    }
    if ended.succeeded {
        print_end(&ended.output);
    }
    let good = ended.succeeded && left.is_empty();
    let counts = if good { Counts::PASSED } else { Counts::FAILED };
    Ok(Row {
        name,
        seconds: ended.seconds,
        counts,
        note: String::new(),
    })
}

/// Processes and mounts that outlived the story: its promise is that there are none.
fn leftovers(folder: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let here = folder.to_string_lossy();
    let mounts = mounts.lines().filter(|line| line.contains(&*here));
    let mut left: Vec<String> = mounts.map(|line| format!("mount {line}")).collect();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let program = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if program.starts_with(folder) {
            left.push(format!("process {}", entry.file_name().display()));
        }
    }
    left
}

/// The story ends with its table of measurements, which belongs into CI's output.
fn print_end(output: &str) {
    const LINES: usize = 40;
    let lines: Vec<&str> = output.lines().collect();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        println!("    {line}");
    }
}

fn sudo() -> bool {
    output(Command::new("sudo").args(["-n", "true"])).is_ok()
}

/// A folder to run in, and a user to remove afterwards.
struct Stage {
    folder: PathBuf,
    user: bool,
}

impl Stage {
    fn own() -> Result<Stage> {
        let folder = std::env::temp_dir().join(format!("oast-quickstart-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Stage {
            folder,
            user: false,
        })
    }

    fn of_new_user() -> Result<Stage> {
        if output(Command::new("id").args(["-u", USER])).is_err() {
            let mut add = Command::new("useradd");
            add.args(["--create-home", "--shell", "/bin/sh", USER]);
            if !succeeds(&mut add)? {
                bail!("cannot create the user {USER}");
            }
        }
        let entry = output(Command::new("getent").args(["passwd", USER]))?;
        let home = entry
            .split(':')
            .nth(5)
            .context("getent printed no home folder")?;
        let stage = Stage {
            folder: PathBuf::from(home),
            user: true,
        };
        give_id_range()?;
        Ok(stage)
    }

    fn hand_over(&self) -> Result<()> {
        if self.user {
            let owner = format!("{USER}:{USER}");
            let mut chown = Command::new("chown");
            if !succeeds(chown.args(["-R", &owner]).arg(&self.folder))? {
                bail!("cannot hand {} to {USER}", self.folder.display());
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Best effort: what cannot be removed is said, and the verdict stays the suite's own.
        if self.user {
            if !matches!(
                succeeds(Command::new("userdel").args(["-r", USER])),
                Ok(true)
            ) {
                println!("test: the user {USER} could not be removed");
            }
        } else if std::fs::remove_dir_all(&self.folder).is_err() {
            println!("test: {} could not be removed", self.folder.display());
        }
    }
}

/// Makes sure the user has 65,536 subordinate ids; useradd gives them on most systems.
fn give_id_range() -> Result<()> {
    for (file, flag) in [
        ("/etc/subuid", "--add-subuids"),
        ("/etc/subgid", "--add-subgids"),
    ] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if text
            .lines()
            .any(|line| line.starts_with(&format!("{USER}:")))
        {
            continue;
        }
        let end = |line: &str| {
            let mut fields = line.split(':').skip(1).map(str::parse::<u64>);
            Some(fields.next()?.ok()? + fields.next()?.ok()?)
        };
        let first = text.lines().filter_map(end).max().unwrap_or(0).max(100_000);
        let range = format!("{first}-{}", first + 65_535);
        if !succeeds(Command::new("usermod").args([flag, &range, USER]))? {
            bail!("cannot give {USER} a range in {file}");
        }
    }
    Ok(())
}
