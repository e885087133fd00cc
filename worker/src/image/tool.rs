//! Runs the e2fsprogs tools on a disk file.
//!
//! debugfs and mke2fs sync the whole image when they close it, some 400 ms for a freshly copied disk, although the disk is
//! only a cache: what must last is put into the artifact store and synced there. The tools have no switch against it, so
//! they run under a seccomp filter that answers their sync calls with success, as `systemd-nspawn --suppress-sync` does.
//! A crash meanwhile leaves a partial file under a temporary name, nothing else.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

use super::FIXED_TIME;

/// Where the tools are when they are not in `PATH`, as for ordinary users on Debian.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// What a tool says is quoted in errors up to here.
const MAX_QUOTED_BYTES: usize = 2000;

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("{tool} was not found; install it (Debian and Ubuntu: apt-get install e2fsprogs)")]
    Missing { tool: &'static str },
    #[error("run {tool}")]
    Run {
        tool: &'static str,
        #[source]
        err: io::Error,
    },
    #[error("{tool} failed: {said}")]
    Failed { tool: &'static str, said: String },
}

/// What a tool printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Output {
    /// Everything it printed, cut to a readable length.
    pub fn said(&self) -> String {
        let mut said = format!("{}\n{}", self.err.trim(), self.out.trim())
            .trim()
            .to_owned();
        if said.len() > MAX_QUOTED_BYTES {
            let end = said.floor_char_boundary(MAX_QUOTED_BYTES);
            said.truncate(end);
            said.push_str(" …");
        }
        said
    }
}

/// Finds a tool.
fn find(tool: &'static str) -> Result<Utf8PathBuf, ToolError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a child's program is looked up where the shell would"
    )]
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .filter(|folder| folder.starts_with('/'))
        .chain(SYSTEM_FOLDERS)
        .map(|folder| Utf8Path::new(folder).join(tool))
        .find(|path| path.is_file())
        .ok_or(ToolError::Missing { tool })
}

/// Runs `tool` to its end, without its syncs, with a clean environment and the fixed time. `input` becomes its stdin.
pub fn run(tool: &'static str, args: &[&str], input: Option<File>) -> Result<Output, ToolError> {
    let mut command = Command::new(find(tool)?);
    command
        .args(args)
        .env_clear()
        .env("E2FSPROGS_FAKE_TIME", FIXED_TIME.to_string())
        // The machine's own defaults must not reach an image.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C.UTF-8")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(input.map_or_else(Stdio::null, Stdio::from));
    // SAFETY: the closure only calls prctl on memory that is prepared before the fork and lives in the closure.
    unsafe {
        let filter = suppress_sync();
        command.pre_exec(move || install(&filter));
    }
    let output = command
        .output()
        .map_err(|err| ToolError::Run { tool, err })?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// What the programs that make and patch file systems say they are: another version may lay out blocks otherwise.
///
/// # Errors
/// They are not installed, or do not run.
pub fn file_system_maker() -> Result<String, ToolError> {
    run("mke2fs", &["-V"], None).map(|output| output.said())
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// A classic BPF program over `struct seccomp_data` (number at 0, architecture at 4).
fn suppress_sync() -> Vec<libc::sock_filter> {
    let calls = [
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_syncfs,
        libc::SYS_sync,
    ];
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let equal = |k, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let answer = |k| step(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    let count = calls.len() as u8;
    // A process of another architecture keeps its syncs: their numbers mean something else there.
    let mut program = vec![load(4), equal(ARCH, 0, count + 1), load(0)];
    for (at, call) in calls.iter().enumerate() {
        let number = u32::try_from(*call).expect("call numbers are small");
        program.push(equal(number, count - at as u8, 0));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    // Error number 0: the call "succeeds" without being made.
    program.push(answer(libc::SECCOMP_RET_ERRNO));
    program
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: plain prctl calls; the kernel copies the program during the call.
    unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        // A kernel without seccomp only makes this slower.
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        );
    }
    Ok(())
}
