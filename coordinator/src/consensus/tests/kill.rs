//! A whole group in a child process that is killed with SIGKILL again and again.
//!
//! The child is this test binary, run for one ignored test that never ends by itself. It prints
//! every acknowledged value; the parent kills it at an arbitrary moment and starts it again over
//! the same directories. At the end everything that was printed must be there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};

use super::group::{Group, options};
use super::toy::Command;
use crate::consensus::options::Options;

const DIRECTORY: &str = "OAST_TEST_KILL_DIRECTORY";
const ROUNDS: usize = 6;
/// Lines after which the child is killed, so that every round made progress; varied, so that the
/// kill meets different moments.
const LINES: [usize; ROUNDS] = [40, 7, 93, 61, 18, 150];

fn eager() -> Options {
    Options {
        snapshot_entries: 50,
        trailing_entries: 10,
        max_entry_commands: 4,
        ..options()
    }
}

/// The child's side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by acknowledged_commands_survive_sigkill in a process of its own"]
async fn child_of_the_kill_test() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the parent has no other way to tell"
    )]
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let group = Group::of_three_in(PathBuf::from(directory), 41, eager());
    let mut out = std::io::stdout();
    // Values are increasing over all lives of the child.
    let leader = group.handle(group.leader().await);
    leader.read_barrier().await.unwrap();
    let next = leader
        .view()
        .view
        .0
        .get(&1)
        .and_then(|values| values.last())
        .map_or(0, |v| v + 1);
    for value in next.. {
        group.must_apply(Command::Append { list: 1, value }).await;
        if value % 9 == 0 {
            group.must_apply(Command::Close { list: 2 }).await;
        }
        writeln!(out, "acknowledged {value}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_commands_survive_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for lines in LINES {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "consensus::tests::kill::child_of_the_kill_test"])
            .args(["--ignored", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = 0;
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        while seen < lines {
            let Some(Ok(line)) = output.next() else {
                panic!("the child ended by itself")
            };
            if let Some((_, value)) = line.split_once("acknowledged ") {
                acknowledged.push(value.parse::<u64>().unwrap());
                seen += 1;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was printed before the kill took effect.
        for line in output.map_while(Result::ok) {
            if let Some((_, value)) = line.split_once("acknowledged ") {
                acknowledged.extend(value.parse::<u64>());
            }
        }
    }
    let group = Group::of_three_in(directory.path().to_owned(), 42, eager());
    group.converge().await;
    for handle in group.handles() {
        handle.read_barrier().await.unwrap();
        let values = handle.view().view.0[&1].clone();
        for value in &acknowledged {
            assert!(
                values.contains(value),
                "member {} lost {value}",
                handle.member()
            );
        }
    }
    assert!(acknowledged.len() >= LINES.iter().sum());
}
