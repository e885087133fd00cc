//! Starting a sandbox from a many-threaded process, and holding on to it.
//!
//! [`Launcher::spawn`] starts a monitor (the binary re-executed, see [`super::monitor`]) and returns once the command
//! runs or the failing call is known. Dropping a [`Sandbox`] kills it; so does the launcher's death, through the socket
//! that only it holds.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;

use oast_daemon::isolate::{Fault, IdMap, wire};
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{ChildStderr, ChildStdout, Command};

use super::message::{Exit, FromMonitor, Order, ToMonitor};
use super::spec::{InitMode, Network, Spec};

/// `systemd` powers off on this; other inits are killed after the caller's patience.
const POWER_OFF_OFFSET: i32 = 4;

/// Starts sandboxes: which binary to re-execute, which ids they get, what they may ask for.
#[derive(Debug, Clone)]
pub struct Launcher {
    exe: PathBuf,
    idmap: IdMap,
    host_network: bool,
}

/// A running sandbox.
#[derive(Debug)]
pub struct Sandbox {
    mode: InitMode,
    monitor: tokio::process::Child,
    socket: AsyncFd<OwnedFd>,
    init_pid: i32,
    exit: Option<Exit>,
    /// What the command prints; an image's init prints its console to stdout.
    pub stdout: Option<ChildStdout>,
    pub stderr: Option<ChildStderr>,
    /// The network namespace, for [`super::netns`].
    pub namespace: Option<OwnedFd>,
    /// With [`Network::Proxy`]: the listening socket inside, for [`super::proxy`].
    pub listener: Option<TcpListener>,
}

/// Where output goes.
#[derive(Debug)]
pub enum Output {
    /// To [`Sandbox::stdout`] and [`Sandbox::stderr`].
    Pipes,
    /// Both to one file.
    File(std::fs::File),
}

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub exit: Exit,
    /// The first bytes of each stream, up to the caller's limit.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, Error)]
pub enum SandboxError {
    #[error("this worker does not allow `network: host`; its operator can (allow_host_network)")]
    HostNetwork,
    #[error("start the sandbox helper {exe}")]
    Start { exe: PathBuf, source: io::Error },
    #[error("{0}")]
    Setup(Fault),
    #[error("talk to the sandbox helper")]
    Talk(#[source] io::Error),
    #[error("the sandbox helper ended without a word ({0})")]
    Lost(std::process::ExitStatus),
    #[error("read what the command printed")]
    Output(#[source] io::Error),
}

impl Launcher {
    /// `exe` is our own binary: it must call [`super::entry`] for `internal sandbox`.
    pub fn new(exe: impl Into<PathBuf>, idmap: IdMap) -> Self {
        Self {
            exe: exe.into(),
            idmap,
            host_network: false,
        }
    }

    #[must_use]
    pub fn allow_host_network(mut self, allowed: bool) -> Self {
        self.host_network = allowed;
        self
    }

    pub const fn idmap(&self) -> IdMap {
        self.idmap
    }

    /// Returns when the command has been started, or says which call failed.
    pub async fn spawn(&self, mut spec: Spec, output: Output) -> Result<Sandbox, SandboxError> {
        if spec.network == Network::Host && !self.host_network {
            return Err(SandboxError::HostNetwork);
        }
        if spec.network == Network::Proxy {
            for (key, value) in super::proxy::environment() {
                spec.env.entry(key).or_insert(value);
            }
        }
        let mode = spec.init;
        let talk = SandboxError::Talk;
        let start = |source| SandboxError::Start {
            exe: self.exe.clone(),
            source,
        };
        let (ours, theirs) = wire::pair().map_err(start)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| start(errno.into()))?;
        let order = wire::memory_file(
            "oast-sandbox",
            &Order {
                spec,
                idmap: self.idmap,
            },
        )
        .map_err(start)?;
        wire::send(&ours, &ToMonitor::Begin, &[order.as_fd()]).map_err(start)?;
        let (stdout, stderr) = match output {
            Output::Pipes => (Stdio::piped(), Stdio::piped()),
            Output::File(file) => (
                Stdio::from(file.try_clone().map_err(start)?),
                Stdio::from(file),
            ),
        };
        let mut monitor = Command::new(&self.exe)
            .args(["internal", "sandbox"])
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        // SAFETY: the descriptor is owned by the AsyncFd from here on and never replaced or lent out mutably.
        let socket = unsafe { AsyncFd::register(ours) }.map_err(|refused| talk(refused.into()))?;
        let mut sandbox = Sandbox {
            mode,
            stdout: monitor.stdout.take(),
            stderr: monitor.stderr.take(),
            monitor,
            socket,
            init_pid: 0,
            exit: None,
            namespace: None,
            listener: None,
        };
        sandbox.until_started().await?;
        Ok(sandbox)
    }

    /// Runs a command to its end, keeping at most `keep` bytes of each stream.
    pub async fn run(&self, spec: Spec, keep: usize) -> Result<Finished, SandboxError> {
        let mut sandbox = self.spawn(spec, Output::Pipes).await?;
        let (stdout, stderr) = (sandbox.stdout.take(), sandbox.stderr.take());
        let (stdout, stderr, exit) = tokio::try_join!(
            first_bytes(stdout, keep),
            first_bytes(stderr, keep),
            sandbox.wait()
        )?;
        Ok(Finished {
            exit,
            stdout,
            stderr,
        })
    }
}

impl Sandbox {
    /// Process 1 of the sandbox, as this process's PID namespace sees it.
    pub const fn init_pid(&self) -> i32 {
        self.init_pid
    }

    /// Waits until the command has ended and nothing of the sandbox is left. May be called again after being cancelled.
    pub async fn wait(&mut self) -> Result<Exit, SandboxError> {
        while self.exit.is_none() {
            match self.hear().await? {
                Some((FromMonitor::Ended(exit), _)) => self.exit = Some(exit),
                Some((FromMonitor::Failed(fault), _)) => return Err(self.failed(fault).await),
                Some((FromMonitor::Started { .. }, _)) => {}
                None => return Err(self.lost().await),
            }
        }
        self.monitor.wait().await.map_err(SandboxError::Talk)?;
        match self.exit {
            Some(exit) => Ok(exit),
            None => Err(self.lost().await),
        }
    }

    /// Kills everything inside at once. [`Sandbox::wait`] then returns soon.
    pub fn kill(&self) {
        self.tell(&ToMonitor::Kill);
    }

    /// Sends a signal to the command (through our init) or to the image's init.
    pub fn signal(&self, signal: i32) {
        self.tell(&ToMonitor::Signal(signal));
    }

    /// Asks for an orderly end: SIGTERM for a command, power-off for an image's init.
    pub fn stop(&self) {
        self.signal(match self.mode {
            InitMode::Ours => libc::SIGTERM,
            InitMode::Own => libc::SIGRTMIN() + POWER_OFF_OFFSET,
        });
    }

    fn tell(&self, message: &ToMonitor) {
        // A monitor that is gone has already done what is asked for here.
        let _ = wire::send(self.socket.get_ref(), message, &[]);
    }

    async fn until_started(&mut self) -> Result<(), SandboxError> {
        match self.hear().await? {
            Some((FromMonitor::Started { init_pid }, fds)) => {
                self.init_pid = init_pid;
                let mut fds = fds.into_iter();
                self.namespace = fds.next();
                self.listener = fds.next().map(TcpListener::from);
                Ok(())
            }
            Some((FromMonitor::Failed(fault), _)) => Err(self.failed(fault).await),
            // Our init says that it started before it says that the command ended; an image's init says neither.
            Some((FromMonitor::Ended(exit), _)) => {
                self.exit = Some(exit);
                Ok(())
            }
            None => Err(self.lost().await),
        }
    }

    async fn hear(&self) -> Result<Option<(FromMonitor, Vec<OwnedFd>)>, SandboxError> {
        loop {
            let mut guard = self.socket.readable().await.map_err(SandboxError::Talk)?;
            match guard.try_io(|socket| wire::recv(socket.get_ref())) {
                Ok(message) => return message.map_err(SandboxError::Talk),
                Err(_would_block) => {}
            }
        }
    }

    /// After the monitor has cleaned up, so that whoever gets the error finds nothing left.
    async fn failed(&mut self, fault: Fault) -> SandboxError {
        match self.monitor.wait().await {
            Ok(_) => SandboxError::Setup(fault),
            Err(source) => SandboxError::Talk(source),
        }
    }

    async fn lost(&mut self) -> SandboxError {
        match self.monitor.wait().await {
            Ok(status) => SandboxError::Lost(status),
            Err(source) => SandboxError::Talk(source),
        }
    }
}

/// Reads to the end, keeps the start.
async fn first_bytes(
    stream: Option<impl AsyncRead + Unpin>,
    keep: usize,
) -> Result<Vec<u8>, SandboxError> {
    let Some(mut stream) = stream else {
        return Ok(Vec::new());
    };
    let mut kept = Vec::new();
    (&mut stream)
        .take(keep as u64)
        .read_to_end(&mut kept)
        .await
        .map_err(SandboxError::Output)?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink())
        .await
        .map_err(SandboxError::Output)?;
    Ok(kept)
}
