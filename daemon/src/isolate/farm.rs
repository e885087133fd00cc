//! Quickstart's farm: every daemon in one PID namespace that dies with the command.
//!
//! ```text
//! oast quickstart ==socket== outer (farm-init) --fork NEWPID--> init --> members, workers, local cloud
//! ```
//!
//! The **outer** process enters the farm namespace, starts **init** as process 1 of a new PID
//! namespace and stays outside of it as the janitor: when the socket's other end closes (quickstart
//! ended in whatever way) or init ends, it kills init, so the kernel kills and unmounts everything,
//! and then removes the farm's control groups, which no namespace takes along. Init reaps, starts
//! and signals named children on command; a killed outer takes init along (PDEATHSIG).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::clock::{Clock, SystemClock};

use super::cgroup;
use super::enter::{Entered, enter, private_mounts};
use super::fault::{Fault, Named};
use super::proc::{self, Forked};
use super::wire;

/// What a farm is started with.
#[derive(Debug, Clone)]
pub struct FarmSpec {
    /// Our own binary, re-executed as `internal farm-init`.
    pub exe: PathBuf,
    /// Names the control groups; letters, digits, `-`, `_` and `.`.
    pub farm: String,
}

/// One daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildSpec {
    /// Unique among the live ones.
    pub name: String,
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Gets stdout and stderr, appended.
    pub log: PathBuf,
}

/// What init tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FarmEvent {
    Started {
        name: String,
        pid: i32,
    },
    /// The call that failed; the child does not run.
    NotStarted {
        name: String,
        fault: Fault,
    },
    Ended {
        name: String,
        pid: i32,
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// The farm itself could not be made.
    Failed(Fault),
    /// Init is up; `root` says whether it is real root.
    Ready {
        root: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Begin { farm: String },
    Spawn(ChildSpec),
    Kill { name: String, signal: i32 },
    Restart { name: String },
    Shutdown { grace_ms: u64 },
}

/// A running farm. The farm ends when the last clone and its [`FarmEvents`] are dropped.
#[derive(Debug, Clone)]
pub struct Farm {
    socket: Arc<AsyncFd<OwnedFd>>,
}

/// The other half of a [`Farm`]: what happens to its children.
#[derive(Debug)]
pub struct FarmEvents {
    socket: Arc<AsyncFd<OwnedFd>>,
    outer: tokio::process::Child,
}

#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    #[error("start the farm's init {exe}")]
    Start {
        exe: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Setup(Fault),
    #[error("talk to the farm's init")]
    Talk(#[source] io::Error),
    #[error("the farm's init has ended")]
    Gone,
}

impl Farm {
    /// Returns when init is up. `AlreadyRoot` farms run as real root.
    ///
    /// # Errors
    /// The failing call.
    pub async fn start(spec: FarmSpec) -> Result<(Self, FarmEvents), FarmError> {
        let start = |source| FarmError::Start {
            exe: spec.exe.clone(),
            source,
        };
        let (ours, theirs) = wire::pair().map_err(start)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| start(errno.into()))?;
        let begin = Order::Begin {
            farm: spec.farm.clone(),
        };
        wire::send(&ours, &begin, &[]).map_err(start)?;
        let outer = tokio::process::Command::new(&spec.exe)
            .args(["internal", "farm-init"])
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(false)
            .spawn()
            .map_err(start)?;
        // SAFETY: the descriptor is owned by the AsyncFd from here on and never replaced.
        let socket = unsafe { AsyncFd::register(ours) }
            .map_err(|refused| FarmError::Talk(refused.into()))?;
        let socket = Arc::new(socket);
        let mut events = FarmEvents {
            socket: socket.clone(),
            outer,
        };
        match events.next().await? {
            Some(FarmEvent::Ready { .. }) => Ok((Self { socket }, events)),
            Some(FarmEvent::Failed(fault)) => Err(FarmError::Setup(fault)),
            Some(_) | None => Err(FarmError::Gone),
        }
    }

    /// Starts a child; how that went comes as an event.
    ///
    /// # Errors
    /// Init is gone.
    pub fn spawn(&self, child: ChildSpec) -> Result<(), FarmError> {
        self.tell(&Order::Spawn(child))
    }

    /// Sends a signal to a child; unknown names are ignored (it may just have ended).
    ///
    /// # Errors
    /// Init is gone.
    pub fn kill(&self, name: &str, signal: i32) -> Result<(), FarmError> {
        self.tell(&Order::Kill {
            name: name.into(),
            signal,
        })
    }

    /// Kills a child and starts it again with the same arguments; a dead one is just started.
    ///
    /// # Errors
    /// Init is gone.
    pub fn restart(&self, name: &str) -> Result<(), FarmError> {
        self.tell(&Order::Restart { name: name.into() })
    }

    /// Asks every child to end, then ends everything. [`FarmEvents::finish`] waits for it.
    ///
    /// # Errors
    /// Init is gone.
    pub fn shutdown(&self, grace: Duration) -> Result<(), FarmError> {
        self.tell(&Order::Shutdown {
            grace_ms: grace.as_millis() as u64,
        })
    }

    fn tell(&self, order: &Order) -> Result<(), FarmError> {
        wire::send(self.socket.get_ref(), order, &[]).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => FarmError::Gone,
            _ => FarmError::Talk(error),
        })
    }
}

impl FarmEvents {
    /// The next event; `None` when the farm has ended. Cancel-safe.
    ///
    /// # Errors
    /// The socket failed.
    pub async fn next(&mut self) -> Result<Option<FarmEvent>, FarmError> {
        loop {
            let mut guard = self.socket.readable().await.map_err(FarmError::Talk)?;
            match guard.try_io(|socket| wire::recv(socket.get_ref())) {
                Ok(message) => {
                    return Ok(message.map_err(FarmError::Talk)?.map(|(event, _)| event));
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Waits until nothing of the farm is left, control groups included.
    ///
    /// # Errors
    /// The outer process could not be waited for.
    pub async fn finish(mut self) -> Result<(), FarmError> {
        while self.next().await?.is_some() {}
        self.outer.wait().await.map(drop).map_err(FarmError::Talk)
    }
}

/// The whole life of `oast internal farm-init`. Call it before any thread exists.
pub fn entry() -> ! {
    let code = match outer() {
        Ok(()) => 0,
        Err(fault) => {
            use std::io::Write;
            let _ = writeln!(io::stderr(), "oast farm: {fault}");
            1
        }
    };
    proc::exit(code)
}

fn outer() -> Result<(), Fault> {
    let socket = proc::take_stdin()?;
    proc::close_on_exec_from(3)?;
    let _ = rustix::process::setsid();
    let Some((Order::Begin { farm }, _)) = wire::recv(&socket).named("receive the order")? else {
        return Ok(());
    };
    match make(&farm, &socket) {
        Ok(init) => {
            let watched = watch(init, &socket);
            // Harmless when it is dead already; it has not been reaped yet.
            let _ = rustix::process::kill_process(init, Signal::KILL);
            proc::wait_for(init)?;
            let swept = cgroup::sweep(&farm);
            // Without root there are none, and perhaps no hierarchy to look into.
            let swept = if rustix::process::geteuid().is_root() {
                swept
            } else {
                Ok(())
            };
            watched.and(swept)
        }
        Err(fault) => {
            let _ = wire::send(&socket, &FarmEvent::Failed(fault), &[]);
            Ok(())
        }
    }
}

/// Makes the namespaces and starts init.
fn make(farm: &str, socket: &OwnedFd) -> Result<Pid, Fault> {
    let entered = enter()?;
    if entered == Entered::AlreadyRoot {
        // Left by a farm of the same name whose janitor was killed, too.
        cgroup::sweep(farm)?;
    }
    // For init to notice that we died before it could ask the kernel to tell.
    let (life, its_life) = wire::pair().named("socketpair")?;
    // Its own mounts too: its /proc must not hide ours, which the janitor needs.
    match proc::fork(libc::CLONE_NEWPID | libc::CLONE_NEWNS)? {
        Forked::Parent { child } => {
            // Lives as long as this process does.
            std::mem::forget(life);
            Ok(child)
        }
        Forked::Child => {
            drop(life);
            let root = entered == Entered::AlreadyRoot;
            if let Err(fault) = init(root, socket, &its_life) {
                let _ = wire::send(socket, &FarmEvent::Failed(fault), &[]);
            }
            proc::exit(1)
        }
    }
}

/// Returns when init is dead or quickstart is gone.
fn watch(init: Pid, socket: &OwnedFd) -> Result<(), Fault> {
    let alive = rustix::process::pidfd_open(init, PidfdFlags::empty()).named("pidfd_open")?;
    loop {
        // No events asked for: init reads the messages, we only want to hear of the hang-up.
        let mut fds = [
            PollFd::new(&alive, PollFlags::IN),
            PollFd::new(socket, PollFlags::empty()),
        ];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).named("poll"),
        }
    }
}

struct Init<'a> {
    socket: &'a OwnedFd,
    /// Every child that was ever asked for, by name.
    known: BTreeMap<String, Known>,
    /// Monotonic milliseconds at which the patience ends.
    ends_at: Option<u64>,
}

struct Known {
    spec: ChildSpec,
    pid: Option<Pid>,
    start_again: bool,
}

/// Process 1 of the farm.
fn init(root: bool, socket: &OwnedFd, life: &OwnedFd) -> Result<(), Fault> {
    proc::die_with_parent()?;
    private_mounts()?;
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None).at("mount proc", "/proc")?;
    let signals = proc::signals(&[libc::SIGCHLD])?;
    wire::send(socket, &FarmEvent::Ready { root }, &[]).named("send to quickstart")?;
    let mut init = Init {
        socket,
        known: BTreeMap::new(),
        ends_at: None,
    };
    loop {
        let patience = init.ends_at.map(|at| {
            let left = at.saturating_sub(monotonic_ms());
            Timespec {
                tv_sec: (left / 1000) as i64,
                tv_nsec: (left % 1000 * 1_000_000) as i64,
            }
        });
        let mut fds = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(life, PollFlags::IN),
        ];
        match poll(&mut fds, patience.as_ref()) {
            Ok(0) => proc::exit(0),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).named("poll"),
        }
        let [signalled, ordered, orphaned] = fds.map(|fd| !fd.revents().is_empty());
        if orphaned {
            proc::exit(1);
        }
        if signalled {
            while proc::next_signal(&signals).is_some() {}
            init.reap();
        }
        if ordered {
            match wire::recv(socket).named("receive from quickstart")? {
                Some((order, _)) => init.obey(order),
                // The kernel kills everything else in this namespace with us.
                None => proc::exit(0),
            }
        }
        if init.ends_at.is_some() && init.known.values().all(|known| known.pid.is_none()) {
            proc::exit(0);
        }
    }
}

impl Init<'_> {
    fn obey(&mut self, order: Order) {
        match order {
            Order::Begin { .. } => {}
            Order::Spawn(spec) => {
                if self
                    .known
                    .get(&spec.name)
                    .is_some_and(|known| known.pid.is_some())
                {
                    let fault = Fault::refused("start", &spec.name, "it is running already");
                    return self.tell(&FarmEvent::NotStarted {
                        name: spec.name,
                        fault,
                    });
                }
                self.start(spec);
            }
            Order::Kill { name, signal } => {
                if let Some(pid) = self.known.get(&name).and_then(|known| known.pid) {
                    // SAFETY: plain numbers; the child is only reaped by us, so the number is its own.
                    unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
                }
            }
            Order::Restart { name } => match self.known.get_mut(&name) {
                Some(Known {
                    pid: Some(pid),
                    start_again,
                    ..
                }) => {
                    *start_again = true;
                    let _ = rustix::process::kill_process(*pid, Signal::KILL);
                }
                Some(Known { spec, .. }) => {
                    let spec = spec.clone();
                    self.start(spec);
                }
                None => {}
            },
            Order::Shutdown { grace_ms } => {
                self.ends_at = Some(monotonic_ms() + grace_ms);
                for known in self.known.values() {
                    if let Some(pid) = known.pid {
                        let _ = rustix::process::kill_process(pid, Signal::TERM);
                    }
                }
            }
        }
    }

    fn start(&mut self, spec: ChildSpec) {
        let name = spec.name.clone();
        let started = start(&spec);
        let pid = started.as_ref().ok().copied();
        self.known.insert(
            name.clone(),
            Known {
                spec,
                pid,
                start_again: false,
            },
        );
        self.tell(&match started {
            Ok(pid) => FarmEvent::Started {
                name,
                pid: pid.as_raw_nonzero().get(),
            },
            Err(fault) => FarmEvent::NotStarted { name, fault },
        });
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            // Others are orphans of our children, which nobody asks about.
            let Some((name, known)) = self
                .known
                .iter_mut()
                .find(|(_, known)| known.pid == Some(pid))
            else {
                continue;
            };
            known.pid = None;
            let again = std::mem::take(&mut known.start_again).then(|| known.spec.clone());
            let event = FarmEvent::Ended {
                name: name.clone(),
                pid: pid.as_raw_nonzero().get(),
                code: status.exit_status(),
                signal: status.terminating_signal(),
            };
            self.tell(&event);
            if let Some(spec) = again
                && self.ends_at.is_none()
            {
                self.start(spec);
            }
        }
    }

    fn tell(&self, event: &FarmEvent) {
        // A quickstart that is gone is noticed by the next poll.
        let _ = wire::send(self.socket, event, &[]);
    }
}

/// Forks and executes one child; a failing exec is reported, not left to a mysterious exit code.
fn start(spec: &ChildSpec) -> Result<Pid, Fault> {
    let program = spec
        .argv
        .first()
        .ok_or_else(|| Fault::refused("start", &spec.name, "no command"))?;
    if let Some(folder) = spec.log.parent() {
        fs::create_dir_all(folder).at("mkdir", folder)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .open(&spec.log)
        .at("open log", &spec.log)?;
    let (ours, theirs) = wire::pair().named("socketpair")?;
    match proc::fork(0)? {
        Forked::Parent { child } => {
            drop(theirs);
            match wire::recv::<Fault>(&ours).named("receive from the child")? {
                None => Ok(child),
                Some((fault, _)) => {
                    proc::wait_for(child)?;
                    Err(fault)
                }
            }
        }
        Forked::Child => {
            let fault = match streams(&log) {
                Ok(()) => {
                    proc::default_signals();
                    let env: Vec<_> = spec.env.clone().into_iter().collect();
                    proc::exec(Path::new(program), &spec.argv, &env)
                }
                Err(fault) => fault,
            };
            let _ = wire::send(&theirs, &fault, &[]);
            proc::exit(127)
        }
    }
}

fn streams(log: &fs::File) -> Result<(), Fault> {
    rustix::process::setsid().named("setsid")?;
    proc::put_at(proc::open_null(OFlags::RDONLY)?, 0)?;
    proc::put_at(log.as_fd(), 1)?;
    proc::put_at(log.as_fd(), 2)
}

fn monotonic_ms() -> u64 {
    SystemClock.monotonic().as_millis() as u64
}
