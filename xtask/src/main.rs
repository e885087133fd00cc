//! `cargo xtask`: the repository's own checks and its test run.
//!
//! - `check`: what CI demands of the text: format, clippy, tidy, dependencies.
//! - `test`: the README's test command: prepares the machine, runs every suite, counts.
//! - `record`: the recorded log and files anew, for a change of what is replicated.
//! - `fuzz`: the fuzz targets for a while, with the stable toolchain.
//! - `needs`: only the machine's preparation of `test`.
//! - `bench`: measurements that have a bar.
//! - `sim`: the simulation of the farm, seeds and planted bugs (see `sim.rs`).
//! - `tidy`: the rules of this code base that no other tool knows (see `tidy.rs`).
//!
//! Light on purpose: it is compiled before anything else can be checked.

#![allow(
    clippy::disallowed_macros,
    reason = "this program's output is its purpose"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "it runs before and outside the daemons' plumbing"
)]

use std::process::ExitCode;

mod bench;
mod check;
mod command;
mod fuzz;
mod record;
mod sim;
mod test;
mod tidy;
mod workspace;

const USAGE: &str = "usage: cargo xtask COMMAND

  check            format, clippy, tidy and dependency rules
  test [SUITE..]   every test suite, or the named ones; --list names them
  record           write the recorded log and files anew (CONTRIBUTING says when)
  fuzz [SECONDS] [TARGET..]
                   each fuzz target, 60 s unless said otherwise
  needs            only install what the suites need
  bench coordinator [--seconds N] [--rounds N] [--clients N,N..]
                   three members beside three etcd servers and PostgreSQL with two standbys
  bench scale      100,000 open tasks and 2,000 workers: memory, snapshot, restart
  bench schedule   what a scheduling decision costs; --quick leaves the long history out
  tidy             only the repository's own rules
  sim [OPTION..]   the farm simulated from many seeds; --seeds N, --from SEED, --seed S for one
                   (with --trace), --bugs for the table of planted bugs

CI=true makes everything that would be skipped an error.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = workspace::Workspace::find().and_then(|workspace| match words.as_slice() {
        ["check"] => check::run(&workspace),
        ["test", suites @ ..] => test::run(&workspace, suites),
        ["record"] => record::run(&workspace),
        ["fuzz", args @ ..] => fuzz::run(&workspace, args),
        ["needs"] => test::needs(),
        ["bench", "coordinator", args @ ..] => bench::coordinator(&workspace, args),
        ["bench", "scale"] => bench::scale(&workspace, &[]),
        ["bench", "schedule", args @ ..] => bench::schedule(&workspace, args),
        ["tidy"] => tidy::run(&workspace),
        ["sim", args @ ..] => sim::run(&workspace, args),
        _ => {
            eprintln!("{USAGE}");
            Ok(false)
        }
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
