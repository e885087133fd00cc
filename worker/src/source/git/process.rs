//! One git process: its output bounded, its time limited, its children ended with it.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::clock::{SharedClock, timeout};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// How much of what git complains about is kept.
const COMPLAINT_MAX: usize = 8 << 10;

/// Why a git process brought nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    #[error("start {program}; is git installed? (apt install git)")]
    Start {
        program: Utf8PathBuf,
        #[source]
        err: std::io::Error,
    },
    #[error("talk to git")]
    Talk(#[source] std::io::Error),
    #[error("git {verb} took longer than {limit:?}")]
    Late { verb: String, limit: Duration },
    #[error("git {verb} printed more than {limit} bytes")]
    TooMuch { verb: String, limit: usize },
    #[error("git {verb} failed ({status}): {complaint}")]
    Failed {
        verb: String,
        status: std::process::ExitStatus,
        complaint: String,
    },
}

impl ProcessError {
    /// What git itself said.
    pub(super) fn said(&self) -> &str {
        match self {
            ProcessError::Failed { complaint, .. } => complaint,
            _ => "",
        }
    }

    /// A server that gives out only its branches' heads answers with words, not with silence.
    pub(super) fn may_be_refused_commit(&self) -> bool {
        let said = self.said();
        said.contains("not our ref")
            || said.contains("unadvertised object")
            || said.contains("shallow")
            || said.contains("remote ref")
    }
}

/// A command being put together.
#[derive(Debug)]
pub(super) struct Process {
    program: Utf8PathBuf,
    clock: SharedClock,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    /// Kept open for as long as the process may read them.
    files: Vec<OwnedFd>,
}

impl Process {
    pub(super) fn new(program: &Utf8Path, clock: SharedClock) -> Process {
        Process {
            program: program.to_owned(),
            clock,
            args: Vec::new(),
            env: Vec::new(),
            files: Vec::new(),
        }
    }

    pub(super) fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    }

    pub(super) fn env(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
    }

    pub(super) fn keep(&mut self, file: OwnedFd) {
        self.files.push(file);
    }

    /// The first word that is no option, for messages.
    fn verb(&self) -> String {
        let mut words = self.args.iter().map(|arg| arg.to_string_lossy());
        while let Some(word) = words.next() {
            if word == "-c" || word == "--git-dir" {
                words.next();
            } else if !word.starts_with('-') {
                return word.into_owned();
            }
        }
        String::new()
    }

    /// Starts it. `input` becomes its standard input; what it prints goes into the returned pipe.
    pub(super) fn start(mut self, input: &[u8]) -> Result<(Running, std::fs::File), ProcessError> {
        let verb = self.verb();
        let stdin = memory_file(input).map_err(ProcessError::Talk)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| ProcessError::Talk(errno.into()))?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(write))
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(path) = oast_daemon::config::process_env("PATH") {
            command.env("PATH", path);
        }
        let child = command.spawn().map_err(|err| ProcessError::Start {
            program: self.program.clone(),
            err,
        })?;
        // Only the child may keep the pipe's other end open.
        drop(command);
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        let running = Running {
            verb,
            child,
            group,
            _files: std::mem::take(&mut self.files),
            clock: self.clock.clone(),
        };
        Ok((running, std::fs::File::from(read)))
    }

    /// Runs it and returns what it printed.
    pub(super) async fn output(
        self,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ProcessError> {
        let (running, stdout) = self.start(b"")?;
        running.output(stdout, limit, bytes_max).await
    }
}

/// A file in memory that holds `bytes` and is read from its start.
pub(super) fn memory_file(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("oast-git", flags)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// A started process. Dropping it kills it with everything it started.
#[derive(Debug)]
pub(super) struct Running {
    verb: String,
    child: Child,
    group: Option<Pid>,
    _files: Vec<OwnedFd>,
    clock: SharedClock,
}

impl Running {
    async fn output(
        mut self,
        stdout: std::fs::File,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ProcessError> {
        let clock = self.clock.clone();
        let verb = self.verb.clone();
        match timeout(&*clock, limit, self.collect(stdout, bytes_max)).await {
            Ok(done) => done,
            Err(late) => Err(ProcessError::Late {
                verb,
                limit: late.limit,
            }),
        }
    }

    async fn collect(
        &mut self,
        stdout: std::fs::File,
        bytes_max: usize,
    ) -> Result<Vec<u8>, ProcessError> {
        let mut stderr = self
            .child
            .stderr
            .take()
            .expect("stderr was asked to be a pipe");
        let mut stdout =
            tokio::net::unix::pipe::Receiver::from_file(stdout).map_err(ProcessError::Talk)?;
        let mut printed = Vec::new();
        let mut complaint = Vec::new();
        let complaining = async {
            let mut kept = (&mut stderr).take(COMPLAINT_MAX as u64);
            kept.read_to_end(&mut complaint).await?;
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await
        };
        let printing = async {
            let mut some = (&mut stdout).take(bytes_max as u64 + 1);
            some.read_to_end(&mut printed).await
        };
        tokio::try_join!(printing, complaining).map_err(ProcessError::Talk)?;
        if printed.len() > bytes_max {
            return Err(ProcessError::TooMuch {
                verb: self.verb.clone(),
                limit: bytes_max,
            });
        }
        let status = self.child.wait().await.map_err(ProcessError::Talk)?;
        if status.success() {
            return Ok(printed);
        }
        let complaint = String::from_utf8_lossy(&complaint);
        Err(ProcessError::Failed {
            verb: self.verb.clone(),
            status,
            complaint: complaint.split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Helpers such as git-remote-https are in the group. The child is not reaped before this
        // when it still runs, so the number cannot have become somebody else's.
        if let Some(group) = self.group
            && self.child.id().is_some()
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
