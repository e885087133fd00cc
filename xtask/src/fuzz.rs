//! `cargo xtask fuzz [SECONDS] [TARGET..]`: every fuzz target for a while, with the stable toolchain.
//!
//! `cargo fuzz` wants a nightly for its sanitizers. What they find is wrong memory, and the decoders
//! have no unsafe code; a panic, an endless loop or a memory that grows without bounds is found by libFuzzer
//! alone, which needs only coverage, and that the stable compiler can be asked for. What each target begins
//! with comes from the test that runs everywhere (`coordinator/tests/decoders.rs`).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{cargo, shown, succeeds};
use crate::workspace::Workspace;

/// Each target, unless said otherwise.
const SECONDS: u64 = 60;
/// Longest input: a decoder that takes a short one takes a long one the same way.
const LENGTH: u32 = 64 << 10;
/// Memory that no input of that length justifies, in MiB.
const MEMORY_MIB: u32 = 1024;
/// Coverage as libFuzzer reads it.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions -Copt-level=1";

/// Builds them, runs them one after another, and says which found something.
pub fn run(workspace: &Workspace, args: &[&str]) -> Result<bool> {
    let (seconds, wanted) = match args {
        [first, rest @ ..] if first.parse::<u64>().is_ok() => (first.parse()?, rest),
        names => (SECONDS, names),
    };
    let folder = workspace.root.join("fuzz");
    let all = targets(&folder.join("fuzz_targets"))?;
    for name in wanted {
        ensure!(
            all.iter().any(|known| known == name),
            "no target {name}: {all:?}"
        );
    }
    let target = workspace.target.join("fuzz");
    if !begin(workspace, &folder)? || !build(&folder, &target)? {
        return Ok(false);
    }
    let platform = platform();
    let mut found = Vec::new();
    for name in all
        .iter()
        .filter(|name| wanted.is_empty() || wanted.contains(&name.as_str()))
    {
        let mut command = Command::new(target.join(&platform).join("debug").join(name));
        command
            .arg(folder.join("corpus").join(name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={LENGTH}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!(
                "-artifact_prefix={}/artifacts/{name}-",
                folder.display()
            ))
            .args(["-timeout=5", "-print_final_stats=1", "-verbosity=0"])
            .current_dir(&folder);
        println!("fuzz: {name}: {seconds} s");
        if !succeeds(&mut command)? {
            found.push(name);
        }
    }
    match found.is_empty() {
        true => println!("fuzz: nothing was found"),
        false => println!("fuzz: {found:?} FAILED; the inputs are in fuzz/artifacts"),
    }
    Ok(found.is_empty())
}

fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list the fuzz targets")? {
        let path = entry?.path();
        names.extend(
            path.file_stem()
                .map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort();
    Ok(names)
}

/// Named, so that build scripts, which run at once, are not instrumented.
fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// Writes what each target begins with.
fn begin(workspace: &Workspace, folder: &Path) -> Result<bool> {
    fs::create_dir_all(folder.join("artifacts"))?;
    // The farm's own versions, not newer ones.
    fs::copy(workspace.root.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    let mut command = cargo();
    command
        .args([
            "test",
            "--locked",
            "-p",
            "oast-coordinator",
            "--test",
            "decoders",
        ])
        .arg("good_bytes_are_taken_whole")
        .env("OAST_CORPUS", folder.join("corpus"))
        .current_dir(&workspace.root);
    println!("fuzz: {}", shown(&command));
    succeeds(&mut command)
}

fn build(folder: &Path, target: &Path) -> Result<bool> {
    let mut command = cargo();
    command
        .args(["build", "--bins", "--target", &platform(), "--target-dir"])
        .arg(target)
        .env("RUSTFLAGS", COVERAGE)
        .current_dir(folder);
    println!("fuzz: {}", shown(&command));
    succeeds(&mut command)
}
