//! `cargo xtask bench`: measurements with a bar, each printed by one command.

use anyhow::Result;

use crate::command::{cargo, shown, succeeds};
use crate::workspace::Workspace;

/// What a scheduling decision costs at the size that the farm is built for.
pub fn schedule(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    let mut command = cargo();
    command
        .args([
            "bench",
            "--locked",
            "-p",
            "oast-model",
            "--bench",
            "schedule",
        ])
        .args(if args.is_empty() { &[] } else { &["--"][..] })
        .args(args)
        .current_dir(&workspace.root);
    println!("bench: {}", shown(&command));
    succeeds(&mut command)
}

/// Three members beside the systems people know, in one run.
pub fn coordinator(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    farm(workspace, "coordinator", args)
}

/// A farm of the size that it is built for: memory, restart, snapshot.
pub fn scale(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    farm(workspace, "scale", args)
}

/// The whole workspace is built, so that features are those of every other release build.
fn farm(workspace: &Workspace, what: &str, args: &[&str]) -> Result<bool> {
    let mut build = cargo();
    build
        .args(["build", "--release", "--locked", "--workspace"])
        .args(["--bin", "oast", "--bin", "oast-bench"])
        .current_dir(&workspace.root);
    println!("bench: {}", shown(&build));
    if !succeeds(&mut build)? {
        return Ok(false);
    }
    let mut bench = std::process::Command::new(workspace.target.join("release/oast-bench"));
    succeeds(bench.arg(what).args(args))
}
