//! Making and watching processes with namespaces, for single-threaded helpers.
//!
//! Every function here is for a process that was re-executed for the purpose and has one thread: a copy of a
//! many-threaded process may find any lock taken.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::fault::{Fault, Named};

/// Which side of a fork we are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    Parent { child: Pid },
    Child,
}

/// Forks into the given namespaces (`CLONE_NEW*` bits). Only for a process with one thread.
pub fn fork(namespaces: i32) -> Result<Forked, Fault> {
    let flags = libc::c_long::from(namespaces) | libc::c_long::from(libc::SIGCHLD);
    // SAFETY: like fork(2): without CLONE_VM the child has its own copy of the address space, and with one thread no
    // lock can be held by a thread that does not exist there. All pointer arguments are null.
    let answer = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match answer {
        -1 => Err(io::Error::last_os_error()).named("clone"),
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid as i32) {
            Some(child) => Ok(Forked::Parent { child }),
            None => Err(Fault {
                call: "clone".into(),
                path: None,
                errno: 0,
                detail: Some("no pid".into()),
            }),
        },
    }
}

/// Kills this process when its parent does. Cleared by the kernel when ids change, so called after they did.
pub fn die_with_parent() -> Result<(), Fault> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .named("prctl PR_SET_PDEATHSIG")
}

/// Closes every descriptor above stderr at the next exec, whatever flags it came with.
pub fn close_on_exec_from(first: u32) -> Result<(), Fault> {
    // SAFETY: marks descriptors close-on-exec; no memory is touched.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).named("close_range")
    }
}

/// Moves stdin out of the way: returns what it was (closed on exec) and puts `/dev/null` in its place.
pub fn take_stdin() -> Result<OwnedFd, Fault> {
    // SAFETY: descriptor 0 is open (checked by the duplication failing otherwise) and owned by this process.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    let taken = rustix::io::fcntl_dupfd_cloexec(stdin, 10).named("fcntl F_DUPFD_CLOEXEC stdin")?;
    let null = open_null(rustix::fs::OFlags::RDONLY)?;
    put_at(&null, 0)?;
    Ok(taken)
}

/// Makes `fd` be descriptor `number` (0, 1 or 2) as well, kept open over exec.
pub fn put_at(fd: impl AsFd, number: i32) -> Result<(), Fault> {
    // SAFETY: replaces a standard descriptor, which nothing in this process owns as an OwnedFd.
    let answer = unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) };
    if answer == number {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).named("dup2")
    }
}

pub fn open_null(mode: rustix::fs::OFlags) -> Result<OwnedFd, Fault> {
    rustix::fs::open(
        "/dev/null",
        mode | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .at("open", "/dev/null")
}

/// Waits for one child, through interruptions.
pub fn wait_for(child: Pid) -> Result<WaitStatus, Fault> {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).named("waitpid"),
        }
    }
}

/// Blocks all signals and returns a descriptor that reads them.
pub fn signals(signals: &[i32]) -> Result<OwnedFd, Fault> {
    // SAFETY: the set lives on our stack and is initialised by sigemptyset before any use; the returned descriptor is
    // new and ours.
    unsafe {
        let mut set = mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error()).named("sigprocmask");
        }
        let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error()).named("signalfd");
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next signal that arrived, if any.
pub fn next_signal(fd: impl AsFd) -> Option<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the kernel writes a whole signalfd_siginfo or nothing, never more than `size` bytes.
    let got = unsafe { libc::read(fd.as_fd().as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if got == size as isize {
        // SAFETY: the read above filled the whole structure.
        Some(unsafe { info.assume_init() }.ssi_signo as i32)
    } else {
        None
    }
}

/// Gives every signal its default meaning again and unblocks all: what a program expects at its start.
pub fn default_signals() {
    // SAFETY: resets dispositions and the mask of this process; the set is initialised by sigemptyset. Failures
    // (signals that cannot be changed) are expected and harmless.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set = mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Replaces this process; returns only to say why it could not.
pub fn exec(program: &Path, argv: &[String], env: &[(String, String)]) -> Fault {
    match try_exec(program, argv, env) {
        Ok(never) => match never {},
        Err(fault) => fault,
    }
}

fn try_exec(
    program: &Path,
    argv: &[String],
    env: &[(String, String)],
) -> Result<Infallible, Fault> {
    let terminated = |bytes: Vec<u8>| {
        CString::new(bytes)
            .map_err(|_nul| Fault::refused("execve", program, "an argument contains a zero byte"))
    };
    let path = terminated(program.as_os_str().as_bytes().to_vec())?;
    let args = argv
        .iter()
        .map(|arg| terminated(arg.clone().into_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let vars = env
        .iter()
        .map(|(key, value)| terminated(format!("{key}={value}").into()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut arg_pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).collect();
    arg_pointers.push(std::ptr::null());
    let mut var_pointers: Vec<_> = vars.iter().map(|var| var.as_ptr()).collect();
    var_pointers.push(std::ptr::null());
    // SAFETY: all three are valid, zero-terminated and outlive the call, which does not return on success.
    unsafe { libc::execve(path.as_ptr(), arg_pointers.as_ptr(), var_pointers.as_ptr()) };
    Err(io::Error::last_os_error()).at("execve", program)
}

/// Ends this process at once, running no destructors: what a forked helper does.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}
