//! `cargo xtask test`: the README's test command.
//!
//! ```text
//! what is needed -> install what is missing (Debian, when allowed) -> build once, release profile
//!   -> suites one after another, output kept in target/test-output -> table, totals
//! ```
//!
//! Everything runs in the release profile, so that dependencies are compiled once for the binary
//! and for every suite. With CI=true nothing may be skipped: what is missing is an error, and
//! tests that would skip themselves fail (`OAST_REQUIRE_ALL`).

use std::time::Instant;

use anyhow::{Result, bail};

use crate::command::in_ci;
use crate::workspace::Workspace;

mod apt;
mod counts;
mod judges;
mod needs;
mod process;
mod quickstart;
mod suites;

use counts::Counts;
use needs::Need;
use suites::Suite;

/// One line of the final table.
struct Row {
    name: String,
    seconds: f64,
    counts: Counts,
    note: String,
}

/// Runs the named suites, or all of them; true when nothing failed.
pub fn run(workspace: &Workspace, wanted: &[&str]) -> Result<bool> {
    let all = suites::all(workspace);
    if wanted == ["--list"] {
        for suite in &all {
            println!("{:24} {}", suite.name, suite.about);
        }
        return Ok(true);
    }
    let selected = select(all, wanted)?;
    let began = Instant::now();
    let needed: Vec<&'static Need> = selected
        .iter()
        .flat_map(|suite| suite.needs.iter().copied())
        .collect();
    let missing = needs::provide(&needed)?;
    if in_ci() && !missing.is_empty() {
        bail!(
            "CI skips nothing, but this is missing: {}",
            missing.join(", ")
        );
    }

    let folder = workspace.target.join("test-output");
    std::fs::create_dir_all(&folder)?;
    let mut rows = Vec::new();
    let build = suites::build(workspace, &folder)?;
    let built = build.counts.failed == 0;
    rows.push(build);
    if built {
        for suite in &selected {
            println!("test: {}: {}", suite.name, suite.about);
            let row = suite.run(workspace, &folder)?;
            println!("test: {}: {} ({:.1} s)", row.name, row.counts, row.seconds);
            rows.push(row);
        }
    }
    Ok(report(&rows, began.elapsed().as_secs_f64()))
}

/// Only prepares the machine; true when nothing is missing.
pub fn needs() -> Result<bool> {
    Ok(needs::provide(needs::ALL)?.is_empty())
}

fn select(all: Vec<Suite>, wanted: &[&str]) -> Result<Vec<Suite>> {
    for name in wanted {
        if !all.iter().any(|suite| suite.name == *name) {
            bail!("there is no suite {name}; `cargo xtask test --list` names them");
        }
    }
    let chosen = |suite: &Suite| wanted.is_empty() || wanted.contains(&suite.name.as_str());
    Ok(all.into_iter().filter(chosen).collect())
}

/// Prints the table; the last line is the total in plain words, for whoever reads only that.
fn report(rows: &[Row], seconds: f64) -> bool {
    println!(
        "\n{:24} {:>8} {:>7} {:>7} {:>8}",
        "suite", "seconds", "passed", "failed", "skipped"
    );
    let mut total = Counts::default();
    for row in rows {
        let Counts {
            passed,
            failed,
            skipped,
        } = row.counts;
        let line = format!(
            "{:24} {:>8.1} {passed:>7} {failed:>7} {skipped:>8}",
            row.name, row.seconds
        );
        println!("{line}  {}", row.note);
        total = total + row.counts;
    }
    println!("{:24} {seconds:>8.1}\n", "all");
    let skipped_in_ci = in_ci() && total.skipped > 0;
    if skipped_in_ci {
        println!(
            "{} tests were skipped, which CI does not allow",
            total.skipped
        );
    } else if total.skipped > 0 {
        println!(
            "{} tests were SKIPPED here; see the notes above",
            total.skipped
        );
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    total.failed == 0 && !skipped_in_ci
}
