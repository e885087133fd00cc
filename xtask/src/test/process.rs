//! One suite's process: output to a file, a time limit, a sign of life each minute.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{shown, succeeds};

/// Between two signs of life, so that a CI system sees that something happens.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// How many lines of a failed suite's output are shown.
const SHOWN_LINES: usize = 80;

/// How a process ended.
pub struct Ended {
    pub succeeded: bool,
    pub seconds: f64,
    pub output: String,
}

/// Runs `command` with all output in `log`; at `limit` its process group is killed.
pub fn run(command: &mut Command, log: &Path, limit: Duration) -> Result<Ended> {
    let name = shown(command);
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let group = child.id();
    let (tell, ended) = channel();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        // The receiver is only gone when the caller has already failed.
        let _ = tell.send(());
        status
    });
    loop {
        match ended.recv_timeout(SIGN_OF_LIFE) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = began.elapsed().as_secs();
                println!(
                    "test:   still running after {seconds} s ({})",
                    log.display()
                );
                if began.elapsed() > limit {
                    println!("test:   limit of {limit:?} reached, killing process group {group}");
                    succeeds(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]))?;
                }
            }
        }
    }
    let status = waiter.join().expect("the waiting thread does not panic")?;
    let bytes = std::fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let output = String::from_utf8_lossy(&bytes).into_owned();
    if !status.success() {
        println!(
            "test: `{name}` ended with {status}; the end of {}:",
            log.display()
        );
        let lines: Vec<&str> = output.lines().collect();
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            println!("    {line}");
        }
    }
    Ok(Ended {
        succeeded: status.success(),
        seconds: began.elapsed().as_secs_f64(),
        output,
    })
}
