//! The monitor: one small process per sandbox, between the launcher and the process inside.
//!
//! It is the binary itself, re-executed, so that it has one thread and none of the launcher's memory. It may do what
//! the sandbox may not (write the id map, reach the caller's folders, make the control group), and it is what holds
//! the sandbox's life: when the launcher's end of its socket closes it kills the sandbox; when it is killed
//! itself, the kernel kills process 1 inside (PDEATHSIG, from a process that has one thread and so cannot lose it early).
//!
//! ```text
//! launcher (worker, local cloud) --socket--> monitor --socket--> process 1 inside --fork--> command
//! ```

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oast_daemon::isolate::proc::{self, Forked};
use oast_daemon::isolate::{Fault, Named, cgroup, wire};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::pty::OpenptFlags;

use super::inside;
use super::message::{Exit, FromInside, FromMonitor, Order, ToInside, ToMonitor};
use super::spec::InitMode;
use super::stage;

/// What fits into a pipe that poll calls writable.
const CONSOLE_PIECE: usize = 4096;

/// The whole life of a monitor: `oast internal sandbox`. Call it before any thread exists.
pub fn entry() -> ! {
    let code = match serve() {
        Ok(()) => 0,
        Err(fault) => {
            // Nobody can be told in a better way: the socket itself is what failed.
            let _ = writeln!(std::io::stderr(), "oast sandbox: {fault}");
            1
        }
    };
    proc::exit(code)
}

fn serve() -> Result<(), Fault> {
    let launcher = proc::take_stdin()?;
    proc::close_on_exec_from(3)?;
    // Away from the launcher's terminal: Ctrl-C is for the launcher to interpret. A group leader has nothing to leave.
    let _ = rustix::process::setsid();
    let Some((ToMonitor::Begin, mut fds)) = wire::recv(&launcher).named("receive the order")?
    else {
        return Ok(());
    };
    let order: Order = match fds.pop() {
        Some(file) => wire::read_memory_file(file).named("read the order")?,
        None => return Err(Fault::refused("receive the order", "", "no memory file")),
    };
    let last = match sandbox(&order, &launcher) {
        Ok(exit) => FromMonitor::Ended(exit),
        Err(fault) => FromMonitor::Failed(fault),
    };
    match wire::send(&launcher, &last, &[]) {
        // The launcher died, or dropped the sandbox without waiting.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.named("send to launcher"),
    }
}

/// Makes the sandbox, watches it and cleans up after it, however it ends.
fn sandbox(order: &Order, launcher: &OwnedFd) -> Result<Exit, Fault> {
    stage::own_mounts()?;
    let (inside, theirs) = wire::pair().named("socketpair")?;
    let child = match proc::fork(libc::CLONE_NEWUSER | libc::CLONE_NEWPID)? {
        Forked::Parent { child } => child,
        Forked::Child => {
            drop(inside);
            inside::run(&order.spec, theirs)
        }
    };
    drop(theirs);
    let group = order.spec.cgroup.as_ref();
    let result = prepare(order, child, &inside).and_then(|()| {
        Watch::new(order.spec.init, launcher.as_fd(), inside, child)?.until_it_ends()
    });
    // Harmless when it is dead already; it is not reaped before, so the number is still its own.
    let _ = rustix::process::kill_process(child, Signal::KILL);
    let status = proc::wait_for(child);
    if let Some(group) = group {
        cgroup::remove(group)?;
    }
    let exit = result?;
    let status = status?;
    Ok(exit.unwrap_or_else(|| match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or_default()),
    }))
}

/// What only we may do for the child, then its starting signal.
fn prepare(order: &Order, child: Pid, inside: &OwnedFd) -> Result<(), Fault> {
    let pid = child.as_raw_nonzero().get();
    order.idmap.write(pid)?;
    let path = format!("/proc/{pid}/ns/user");
    let namespace = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at("open", &path)?;
    if let Some(group) = &order.spec.cgroup {
        cgroup::make(group, order.idmap, pid)?;
    }
    let stage = stage::stage(&order.spec, order.idmap, namespace.as_fd())?;
    wire::send(inside, &ToInside::Go { stage }, &[]).named("send to the sandbox")
}

struct Watch<'a> {
    launcher: BorrowedFd<'a>,
    /// Gone once the image's init has replaced our process, or the process died.
    inside: Option<OwnedFd>,
    child: Pid,
    mode: InitMode,
    alive: OwnedFd,
    console: Option<OwnedFd>,
    /// Keeps the console's terminal open.
    other_end: Option<OwnedFd>,
    /// Our stdout takes no more for now, so the console waits.
    stdout_full: bool,
    /// The network namespace and the proxy's socket, until they are handed on.
    network: Vec<OwnedFd>,
    ended: Option<Exit>,
}

/// What there is to do next.
struct Ready {
    launcher: bool,
    inside: bool,
    console: bool,
    dead: bool,
}

impl<'a> Watch<'a> {
    fn new(
        mode: InitMode,
        launcher: BorrowedFd<'a>,
        inside: OwnedFd,
        child: Pid,
    ) -> Result<Self, Fault> {
        Ok(Self {
            launcher,
            inside: Some(inside),
            child,
            mode,
            alive: rustix::process::pidfd_open(child, PidfdFlags::empty()).named("pidfd_open")?,
            console: None,
            other_end: None,
            stdout_full: false,
            network: Vec::new(),
            ended: None,
        })
    }

    /// The command's end as our init reported it; `None` when only the process's own status tells.
    fn until_it_ends(mut self) -> Result<Option<Exit>, Fault> {
        loop {
            let ready = self.wait()?;
            if ready.launcher {
                self.hear_launcher()?;
            }
            // Before death, so that the last words are heard.
            if ready.inside {
                self.hear_inside()?;
            }
            if ready.console {
                self.copy_console();
            }
            if ready.dead && !ready.inside && !ready.console {
                return Ok(self.ended);
            }
        }
    }

    fn wait(&self) -> Result<Ready, Fault> {
        // SAFETY: nothing in this process closes descriptor 1.
        let stdout = unsafe { BorrowedFd::borrow_raw(1) };
        // A negative number would make poll skip an entry; rustix has none, so absent ones repeat the first.
        let console = match &self.console {
            Some(_) if self.stdout_full => PollFd::from_borrowed_fd(stdout, PollFlags::OUT),
            Some(console) => PollFd::new(console, PollFlags::IN),
            None => PollFd::from_borrowed_fd(self.launcher, PollFlags::empty()),
        };
        let inside = match &self.inside {
            Some(inside) => PollFd::new(inside, PollFlags::IN),
            None => PollFd::from_borrowed_fd(self.launcher, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(self.launcher, PollFlags::IN),
            PollFd::new(&self.alive, PollFlags::IN),
            inside,
            console,
        ];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).named("poll"),
            }
        }
        let [launcher, dead, inside, console] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            launcher,
            dead,
            inside: self.inside.is_some() && inside,
            console: self.console.is_some() && console,
        })
    }

    fn hear_launcher(&mut self) -> Result<(), Fault> {
        let signal = match wire::recv(self.launcher).named("receive from launcher")? {
            Some((ToMonitor::Signal(signal), _)) => signal,
            Some((ToMonitor::Begin, _)) => return Ok(()),
            // Asked to, or the launcher is gone: either way the sandbox ends now.
            Some((ToMonitor::Kill, _)) | None => libc::SIGKILL,
        };
        // SAFETY: plain numbers; the child is not reaped while this watch lives, so the number is its own. rustix has
        // no type for real-time signals, which systemd takes its orders by.
        unsafe { libc::kill(self.child.as_raw_nonzero().get(), signal) };
        Ok(())
    }

    fn hear_inside(&mut self) -> Result<(), Fault> {
        let Some(inside) = &self.inside else {
            return Ok(());
        };
        match wire::recv::<FromInside>(inside).named("receive from the sandbox")? {
            Some((FromInside::Network, fds)) => self.network = fds,
            Some((FromInside::Console, mut fds)) => {
                self.console = fds.pop();
                // An init closes its standard streams and opens the console anew for each line. Without
                // this descriptor the terminal would be hung up in between, for good.
                self.other_end = self.console.as_ref().and_then(|console| {
                    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
                    rustix::pty::ioctl_tiocgptpeer(console, flags).ok()
                });
            }
            Some((FromInside::Started, _)) => self.report_start()?,
            Some((FromInside::Ended(exit), _)) => self.ended = Some(exit),
            Some((FromInside::Failed(fault), _)) => return Err(fault),
            None => {
                self.inside = None;
                // The image's init has closed our socket by replacing us. A death looks the same; the launcher hears
                // of that next.
                if self.mode == InitMode::Own {
                    self.report_start()?;
                }
            }
        }
        Ok(())
    }

    fn report_start(&mut self) -> Result<(), Fault> {
        let network = std::mem::take(&mut self.network);
        let message = FromMonitor::Started {
            init_pid: self.child.as_raw_nonzero().get(),
        };
        let fds: Vec<_> = network.iter().map(AsFd::as_fd).collect();
        match wire::send(self.launcher, &message, &fds) {
            // It is gone; the next round of the loop sees that.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.named("send to launcher"),
        }
    }

    /// Copies one piece, never blocking: a launcher that does not read its pipe must still be able to kill us.
    fn copy_console(&mut self) {
        let Some(console) = &self.console else { return };
        // SAFETY: nothing in this process closes descriptor 1.
        let stdout = unsafe { BorrowedFd::borrow_raw(1) };
        let mut room = [PollFd::from_borrowed_fd(stdout, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        self.stdout_full = !poll(&mut room, Some(&now)).is_ok_and(|ready| ready > 0);
        if self.stdout_full {
            return;
        }
        let mut piece = [0; CONSOLE_PIECE];
        match rustix::io::read(console, &mut piece) {
            Ok(0) | Err(rustix::io::Errno::IO) => self.console = None,
            // A reader that went away does not stop the instance: what it prints is lost from here on.
            Ok(length) => drop(rustix::io::write(stdout, &piece[..length])),
            Err(_) => {}
        }
    }
}
