//! What the suites are, and how one is run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::counts::Counts;
use super::judges::{self, Judge};
use super::needs::{E2FSPROGS, GIT, IP, NFT, Need, OVMF, PYTHON, QEMU, QEMU_IMG, UIDMAP};
use super::quickstart::{self, Who};
use super::{Row, process};
use crate::command::{cargo, in_ci, output};
use crate::sim;
use crate::workspace::Workspace;

/// Longest time for compiling everything on two slow cores.
const BUILD_LIMIT: Duration = Duration::from_secs(45 * 60);

/// Longest time for one suite.
const SUITE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The crate whose test targets are suites of their own: they start real processes.
const SCENARIOS: &str = "oast-tests";

/// A named part of the test run.
pub struct Suite {
    pub name: String,
    pub about: &'static str,
    pub needs: &'static [&'static Need],
    kind: Kind,
}

enum Kind {
    /// Test targets, selected by cargo's own flags.
    Tests(Vec<String>),
    /// The test target that asks other people's tools, which are installed for it.
    Judged(&'static Judge),
    /// A test target with a `main` of its own (`harness = false`), which is the process that
    /// namespaces are made from and speaks no runner's protocol.
    OwnMain { target: String },
    /// Documentation examples.
    Doc,
    /// The farm simulated from seeds, or with bugs planted.
    Simulation { bugs: bool },
    /// The whole story with the real binary.
    Quickstart(Who),
}

/// Every suite, in the order they run: cheap and telling ones first.
pub fn all(workspace: &Workspace) -> Vec<Suite> {
    let mut unit = vec!["--lib".to_owned(), "--bins".to_owned()];
    let mut scenarios = Vec::new();
    let mut own_mains = Vec::new();
    for package in workspace.members() {
        let without_harness = without_harness(&package.manifest_path);
        for target in package
            .targets
            .iter()
            .filter(|t| t.kind.iter().any(|k| k == "test"))
        {
            if package.name == SCENARIOS {
                scenarios.push(target.name.clone());
            } else if judges::ALL.iter().any(|judge| judge.target == target.name) {
                // A suite of its own, below.
            } else if without_harness.contains(&target.name) {
                own_mains.push((package.name.clone(), target.name.clone()));
            } else {
                unit.extend(["--test".to_owned(), target.name.clone()]);
            }
        }
    }
    scenarios.sort();
    let mut suites = vec![
        Suite {
            name: "unit".to_owned(),
            about: "unit, property and golden tests of every crate",
            needs: &[&GIT, &UIDMAP, &E2FSPROGS, &QEMU_IMG],
            kind: Kind::Tests(unit),
        },
        Suite {
            name: "judges".to_owned(),
            about: "bills of material and signatures, judged by other people's tools",
            needs: &[&PYTHON],
            kind: Kind::Judged(&judges::ATTEST),
        },
        Suite {
            name: "azure-sim".to_owned(),
            about: "the simulated Azure, judged by Microsoft's own Python client",
            needs: &[&PYTHON],
            kind: Kind::Judged(&judges::AZURE),
        },
        Suite {
            name: "doc".to_owned(),
            about: "examples in the documentation",
            needs: &[],
            kind: Kind::Doc,
        },
        Suite {
            name: "simulation".to_owned(),
            about: "the farm simulated from OAST_SIM_SEEDS seeds (200), half of them from the commit",
            needs: &[&GIT],
            kind: Kind::Simulation { bugs: false },
        },
        Suite {
            name: "simulation-bugs".to_owned(),
            about: "bugs planted into the simulated farm, each of which must be found",
            needs: &[&GIT],
            kind: Kind::Simulation { bugs: true },
        },
    ];
    suites.extend(own_mains.into_iter().map(|(package, target)| Suite {
        name: format!("{package}-{target}"),
        about: "a test with a main of its own: namespaces, real processes, real packages",
        needs: &[&GIT, &UIDMAP, &E2FSPROGS, &QEMU_IMG],
        kind: Kind::OwnMain { target },
    }));
    suites.extend(scenarios.into_iter().map(|name| Suite {
        about: "real processes: members, workers, local cloud",
        needs: &[
            &GIT, &UIDMAP, &E2FSPROGS, &QEMU_IMG, &QEMU, &OVMF, &IP, &NFT,
        ],
        kind: Kind::Tests(vec!["--test".to_owned(), name.clone()]),
        name,
    }));
    for who in [Who::Root, Who::User] {
        suites.push(Suite {
            name: who.suite().to_owned(),
            about: who.about(),
            needs: &[&GIT, &UIDMAP, &E2FSPROGS],
            kind: Kind::Quickstart(who),
        });
    }
    suites
}

/// Compiles everything that any suite needs, in one graph so that features are the same for all.
pub fn build(workspace: &Workspace, folder: &Path) -> Result<Row> {
    println!("test: build: the binary and every test, release profile");
    let mut build = cargo();
    build
        .args(["build", "--release", "--locked", "--workspace"])
        .current_dir(&workspace.root);
    let binary = process::run(&mut build, &folder.join("build.log"), BUILD_LIMIT)?;
    let mut row = Row {
        name: "build".to_owned(),
        seconds: binary.seconds,
        counts: Counts::default(),
        note: String::new(),
    };
    if !binary.succeeded {
        row.counts = Counts::FAILED;
        return Ok(row);
    }
    let mut tests = cargo();
    tests.args(["test", "--release", "--locked", "--workspace", "--no-run"]);
    let log = folder.join("build-tests.log");
    let tests = process::run(tests.current_dir(&workspace.root), &log, BUILD_LIMIT)?;
    row.note = format!(
        "(binary {:.0} s, tests {:.0} s)",
        binary.seconds, tests.seconds
    );
    row.seconds += tests.seconds;
    if !tests.succeeded {
        row.counts = Counts::FAILED;
    }
    Ok(row)
}

impl Suite {
    /// Runs it and counts.
    pub fn run(&self, workspace: &Workspace, folder: &Path) -> Result<Row> {
        let log = folder.join(format!("{}.log", self.name));
        let skips = folder.join(format!("{}.skipped", self.name));
        // A list from an earlier run would be counted again.
        let _ = std::fs::remove_file(&skips);
        let mut command = match &self.kind {
            Kind::Tests(targets) => runner(targets),
            Kind::Judged(judge) => {
                let mut judged = runner(&["--test".to_owned(), judge.target.to_owned()]);
                match judges::provide(workspace, judge) {
                    Ok(bin) => drop(judged.env(judge.variable, bin)),
                    // The tests then say that they are skipped, or fail where nothing may be.
                    Err(error) => println!("test: judges: {error:#}"),
                }
                judged
            }
            Kind::OwnMain { target } => {
                let mut own = cargo();
                // The whole workspace, so that no dependency gets other features than it has.
                own.args([
                    "test",
                    "--release",
                    "--locked",
                    "--workspace",
                    "--test",
                    target,
                ]);
                own
            }
            Kind::Doc => {
                let mut doc = cargo();
                doc.args(["test", "--release", "--locked", "--workspace", "--doc"]);
                doc
            }
            Kind::Simulation { bugs } => sim::in_tests(workspace, *bugs),
            Kind::Quickstart(who) => return quickstart::run(*who, workspace, &log),
        };
        command.current_dir(&workspace.root);
        command
            .env("RUST_BACKTRACE", "1")
            .env("OAST_SKIP_LOG", &skips);
        command.env("OAST_BIN", workspace.target.join("release/oast"));
        if in_ci() {
            command.env("OAST_REQUIRE_ALL", "1");
        }
        let ended = process::run(&mut command, &log, SUITE_LIMIT)?;
        let mut counts = match self.kind {
            Kind::OwnMain { .. } | Kind::Simulation { .. } => {
                Counts::of_own_main(&ended.output, ended.succeeded)
            }
            _ => Counts::read(&ended.output, ended.succeeded),
        };
        let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
        for reason in skipped.lines() {
            println!("test:   SKIPPED: {reason}");
            counts.skipped += 1;
            counts.passed = counts.passed.saturating_sub(1);
        }
        Ok(Row {
            name: self.name.clone(),
            seconds: ended.seconds,
            counts,
            note: String::new(),
        })
    }
}

/// Names of the test targets that a manifest declares with `harness = false`.
fn without_harness(manifest: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    text.split("[[test]]")
        .skip(1)
        .map(|section| section.split("\n[").next().unwrap_or(section))
        .filter(|section| section.lines().any(|line| line.trim() == "harness = false"))
        .filter_map(|section| {
            let line = section
                .lines()
                .find_map(|line| line.trim().strip_prefix("name = "))?;
            Some(line.trim_matches('"').to_owned())
        })
        .collect()
}

/// nextest where it is installed (a process per test, time limits), else cargo's own runner.
fn runner(targets: &[String]) -> Command {
    let nextest = output(cargo().args(["nextest", "--version"])).is_ok();
    let mut command = cargo();
    match nextest {
        true => command.args(["nextest", "run", "--no-fail-fast", "--no-tests=pass"]),
        false => command.args(["test", "--no-fail-fast"]),
    };
    command
        .args(["--release", "--locked", "--workspace"])
        .args(targets);
    command
}
