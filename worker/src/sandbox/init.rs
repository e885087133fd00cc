//! Process 1 of a sandbox: ours, a reaper that starts the command and ends with it, or the image's own.
//!
//! When process 1 ends, the kernel kills everything else in the PID namespace; so a step that leaves daemons behind
//! leaves nothing behind, and a monitor that is gone (its end of the socket closes) takes the step with it.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oast_daemon::isolate::proc::{self, Forked};
use oast_daemon::isolate::{Fault, Named, wire};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Gid, OFlags, Uid};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions};

use super::capability;
use super::message::{Exit, FromInside};
use super::spec::{DEFAULT_PATH, InitMode, LimitOf, Spec};

/// Signals that the launcher may send to the command through us.
const PASSED_ON: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Replaces this process by the image's init. Returns only the reason why it could not.
pub(crate) fn become_command(spec: &Spec) -> Fault {
    proc::default_signals();
    exec(spec)
}

/// Starts the command and reaps until it ends. Returns only when it could not be started.
pub(crate) fn run(spec: &Spec, monitor: BorrowedFd<'_>) -> Fault {
    match start_and_reap(spec, monitor) {
        Ok(exit) => {
            // If the monitor is gone there is nobody left to tell.
            let _ = wire::send(monitor, &FromInside::Ended(exit), &[]);
            proc::exit(0)
        }
        Err(fault) => fault,
    }
}

fn start_and_reap(spec: &Spec, monitor: BorrowedFd<'_>) -> Result<Exit, Fault> {
    let mut watched = PASSED_ON.to_vec();
    watched.push(libc::SIGCHLD);
    let signals = proc::signals(&watched)?;
    // Carries the reason when the command cannot be started; closed by a successful exec.
    let (ours, theirs) = wire::pair().named("socketpair")?;
    let command = match proc::fork(0)? {
        Forked::Parent { child } => child,
        Forked::Child => {
            let fault = command(spec);
            let _ = wire::send(&theirs, &FromInside::Failed(fault), &[]);
            proc::exit(127)
        }
    };
    drop(theirs);
    if let Some((FromInside::Failed(fault), _)) =
        wire::recv(&ours).named("receive from the command's process")?
    {
        return Err(fault);
    }
    wire::send(monitor, &FromInside::Started, &[]).named("send to monitor")?;
    loop {
        let mut fds = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::from_borrowed_fd(monitor, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).named("poll"),
        }
        // The monitor never writes to a running init: anything here is its end.
        if !fds[1].revents().is_empty() {
            proc::exit(1);
        }
        while let Some(signal) = proc::next_signal(&signals) {
            if signal != libc::SIGCHLD {
                if let Some(signal) = Signal::from_named_raw(signal) {
                    // Its whole process group: a shell does not pass signals on to what it waits for.
                    let _ = rustix::process::kill_process_group(command, signal);
                }
                continue;
            }
            if let Some(exit) = reap(command) {
                return Ok(exit);
            }
        }
    }
}

/// Collects every dead child; the command's end if it was among them.
fn reap(command: Pid) -> Option<Exit> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == command {
            ended = Some(match status.terminating_signal() {
                Some(signal) => Exit::Signal(signal),
                None => Exit::Code(status.exit_status().unwrap_or_default()),
            });
        }
    }
    ended
}

/// In the child: the command's own process. Returns only the reason why it could not run.
fn command(spec: &Spec) -> Fault {
    match ready(spec) {
        Ok(()) => exec(spec),
        Err(fault) => fault,
    }
}

fn ready(spec: &Spec) -> Result<(), Fault> {
    rustix::process::setsid().named("setsid")?;
    proc::default_signals();
    proc::put_at(proc::open_null(OFlags::RDONLY)?, 0)?;
    for limit in &spec.rlimits {
        let resource = match limit.resource {
            LimitOf::OpenFiles => Resource::Nofile,
            LimitOf::Processes => Resource::Nproc,
            LimitOf::FileSize => Resource::Fsize,
            LimitOf::CoreSize => Resource::Core,
        };
        // Limits can only be lowered without privileges in the first namespace: ask for what can be had.
        let most = rustix::process::getrlimit(resource)
            .maximum
            .unwrap_or(u64::MAX);
        let value = Some(limit.value.min(most));
        rustix::process::setrlimit(
            resource,
            Rlimit {
                current: value,
                maximum: value,
            },
        )
        .at("setrlimit", format!("{:?}", limit.resource))?;
    }
    rustix::process::chdir(&spec.cwd).at("chdir to the working directory", &spec.cwd)?;
    capability::drop_for(InitMode::Ours)?;
    if (spec.uid, spec.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(spec.uid), Gid::from_raw(spec.gid));
        rustix::thread::set_thread_groups(&[gid]).named("setgroups")?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).named("setresgid")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).named("setresuid")?;
    }
    Ok(())
}

fn exec(spec: &Spec) -> Fault {
    let Some(name) = spec.command.first() else {
        return Fault::refused("execve", "", "the command is empty");
    };
    let program = look_up(
        name,
        spec.env.get("PATH").map_or(DEFAULT_PATH, String::as_str),
    );
    let env: Vec<_> = spec
        .env
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    proc::exec(&program, &spec.command, &env)
}

/// Where `PATH` has the program; the bare name when nowhere, for execve to complain about.
fn look_up(name: &str, path: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    if name.contains('/') {
        return PathBuf::from(name);
    }
    path.split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .unwrap_or_else(|| PathBuf::from(name))
}
