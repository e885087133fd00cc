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
