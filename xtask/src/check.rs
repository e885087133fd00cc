//! `cargo xtask check`: what CI demands before it runs a test.

use std::time::Instant;

use anyhow::Result;

use crate::command::{cargo, output, shown, succeeds};
use crate::tidy;
use crate::workspace::Workspace;

/// The profile people run and tests use, so that build scripts and macros are compiled once.
const CLIPPY: &str = "clippy --release --locked --workspace -- -Dwarnings";

/// The bans are about what a daemon does; a test may read a clock, sleep or print.
const CLIPPY_TESTS: &str = "clippy --release --locked --workspace --all-targets -- -Dwarnings \
    -Aclippy::disallowed_methods -Aclippy::disallowed_macros -Aclippy::disallowed_types";

/// Runs every check, also after one has failed, and says whether all passed.
pub fn run(workspace: &Workspace) -> Result<bool> {
    let steps: [(&str, &dyn Fn() -> Result<bool>); 5] = [
        ("fmt", &|| cargo_step(workspace, "fmt --all --check")),
        ("tidy", &|| tidy::run(workspace)),
        ("clippy", &|| cargo_step(workspace, CLIPPY)),
        ("clippy of tests", &|| cargo_step(workspace, CLIPPY_TESTS)),
        ("advisories", &|| advisories(workspace)),
    ];
    let mut failed = Vec::new();
    for (name, step) in steps {
        let began = Instant::now();
        let result = step();
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(true) => println!("check: {name}: ok ({seconds:.1} s)"),
            Ok(false) => println!("check: {name}: FAILED ({seconds:.1} s)"),
            Err(ref error) => println!("check: {name}: FAILED: {error:#}"),
        }
        if !matches!(result, Ok(true)) {
            failed.push(name);
        }
    }
    match failed.is_empty() {
        true => println!("check: all {} ok", steps.len()),
        false => println!("check: FAILED: {}", failed.join(", ")),
    }
    Ok(failed.is_empty())
}

fn cargo_step(workspace: &Workspace, args: &str) -> Result<bool> {
    let mut command = cargo();
    command
        .args(args.split_whitespace())
        .current_dir(&workspace.root);
    println!("check: {}", shown(&command));
    succeeds(&mut command)
}

/// Known vulnerabilities, where cargo-deny is installed.
///
/// Licences, duplicates and sources are checked by `tidy` from the same deny.toml, so that those
/// rules hold on every machine. The advisory database changes without a commit of ours and has to
/// be downloaded, so its verdict cannot be a property of a commit: absence is said, not failed.
fn advisories(workspace: &Workspace) -> Result<bool> {
    if output(cargo().args(["deny", "--version"])).is_err() {
        println!("check: advisories: cargo-deny is not installed; get it with");
        println!("check:   cargo install --locked cargo-deny && cargo deny check");
        return Ok(true);
    }
    cargo_step(workspace, "deny check")
}
