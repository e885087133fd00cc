//! Which crate may use which: the arrows of ARCHITECTURE.md, proved from the manifests.

use anyhow::Result;

use super::Problem;
use crate::command::{cargo, output};
use crate::workspace::Workspace;

/// Every crate of ours with what it may use of ours. Arrows point downwards only; coordinator and
/// worker never meet but in proto and model.
const ARROWS: [(&str, &[&str]); 13] = [
    ("oast-model", &[]),
    ("oast-proto", &["oast-model"]),
    ("oast-artifacts", &["oast-model"]),
    ("oast-attest", &[]),
    ("oast-daemon", &["oast-model"]),
    (
        "oast-coordinator",
        &[
            "oast-proto",
            "oast-artifacts",
            "oast-attest",
            "oast-daemon",
            "oast-model",
        ],
    ),
    (
        "oast-worker",
        &[
            "oast-proto",
            "oast-artifacts",
            "oast-attest",
            "oast-daemon",
            "oast-model",
        ],
    ),
    (
        "oast",
        &[
            "oast-coordinator",
            "oast-worker",
            "oast-proto",
            "oast-artifacts",
            "oast-attest",
            "oast-daemon",
            "oast-model",
        ],
    ),
    (
        "oast-tests",
        &[
            "oast-coordinator",
            "oast-worker",
            "oast-proto",
            "oast-artifacts",
            "oast-daemon",
            "oast-model",
        ],
    ),
    (
        "oast-bench",
        &["oast-tests", "oast-proto", "oast-daemon", "oast-model"],
    ),
    (
        "oast-sim",
        &[
            "oast-coordinator",
            "oast-worker",
            "oast-proto",
            "oast-daemon",
            "oast-model",
        ],
    ),
    ("oast-azure-sim", &[]),
    ("xtask", &[]),
];

/// What must not be reachable from a crate by normal dependencies, at any depth.
const UNREACHABLE: [(&str, &[&str], &str); 4] = [
    (
        "oast-model",
        &[
            "async-std",
            "axum",
            "fastrand",
            "getrandom",
            "hyper",
            "libc",
            "mio",
            "notify",
            "oast-artifacts",
            "oast-coordinator",
            "oast-daemon",
            "oast-proto",
            "oast-worker",
            "prometheus",
            "prost",
            "protobuf",
            "raft",
            "raft-engine",
            "rand",
            "rand_chacha",
            "reqwest",
            "rustix",
            "sled",
            "socket2",
            "tempfile",
            "tokio",
            "tonic",
            "tracing",
            "ureq",
            "walkdir",
        ],
        "model decides and touches nothing: no I/O, no clock, no randomness, no runtime",
    ),
    (
        "oast-worker",
        &["raft", "raft-engine", "sled"],
        "a worker knows no Raft and holds no farm state",
    ),
    (
        "oast-artifacts",
        &["tokio", "tonic", "raft", "sled"],
        "the store is plain files, used from any thread",
    ),
    (
        "oast-attest",
        &["tokio", "tonic", "reqwest", "ureq", "tempfile", "jiff"],
        "documents are functions of what they describe: no clock, no files, no network",
    ),
];

/// Checks the arrows between our own crates.
pub fn direct(workspace: &Workspace) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in workspace.members() {
        let place = format!("{}/Cargo.toml", package.name.trim_start_matches("oast-"));
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            problems.push(Problem::new(place, "a new crate: add its arrows to xtask/src/tidy/arrows.rs and a page under docs/decisions/"));
            continue;
        };
        let ours = package.dependencies.iter().filter(|dep| dep.path.is_some());
        // Tests may use what the crate itself may use, and nothing more.
        for dep in ours.filter(|dep| !allowed.contains(&dep.name.as_str())) {
            let kind = dep.kind.as_deref().unwrap_or("normal");
            let what = format!(
                "{} must not use {} ({kind} dependency): arrows point downwards only",
                package.name, dep.name
            );
            problems.push(Problem::new(place.clone(), what));
        }
    }
    problems
}

/// Checks what each crate can reach through others, with the features it is really built with.
pub fn reachable(workspace: &Workspace) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for (package, forbidden, why) in UNREACHABLE {
        let mut tree = cargo();
        tree.args([
            "tree",
            "--locked",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
        ]);
        let text = output(
            tree.args(["--package", package])
                .current_dir(&workspace.root),
        )?;
        let reached: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        for name in forbidden.iter().filter(|name| reached.contains(name)) {
            let place = format!("{}/Cargo.toml", package.trim_start_matches("oast-"));
            let what =
                format!("{package} reaches {name}: {why} (cargo tree -p {package} -i {name})");
            problems.push(Problem::new(place, what));
        }
    }
    Ok(problems)
}
