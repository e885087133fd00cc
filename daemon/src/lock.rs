//! One process per data directory, and a number that tells its incarnations apart.
//!
//! The lock is an advisory `flock` on `DIR/lock`: the kernel drops it when the process dies, even
//! by SIGKILL, so there is no stale lock to clean up. What the file says is only for people.
//! `DIR/incarnation` holds the last incarnation and rises with every start; the coordinator uses
//! it to end the leases of a predecessor at once. A wiped directory still yields a higher number
//! than before, because the number is never below the wall clock's milliseconds.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::clock::Clock;

/// A held data directory. Dropping it (or dying) lets go.
#[derive(Debug)]
pub struct DirLock {
    /// Holds the flock for as long as it is open.
    _file: File,
    dir: PathBuf,
    incarnation: u64,
}

/// The directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "data directory {} is in use by {holder}; stop that process or choose another directory",
        dir.display()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// Creating, opening or writing failed.
    #[error(
        "cannot {what} {}; see that it can be written and that the disk is whole and not full",
        path.display()
    )]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
}

/// Attaches the operation and the path to an I/O error.
fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LockError + 'a {
    move |err| LockError::Io {
        what,
        path: path.to_owned(),
        err,
    }
}

impl DirLock {
    /// Creates `dir` if needed, locks it for a process that plays `role`, and takes the next
    /// incarnation number.
    ///
    /// # Errors
    /// [`LockError::Held`] names the other process; everything else is an I/O error with its path.
    pub fn acquire(dir: &Path, role: &str, clock: &dyn Clock) -> Result<DirLock, LockError> {
        fs::create_dir_all(dir).map_err(at("create", dir))?;
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held {
                    dir: dir.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(errno) => return Err(at("lock", &path)(errno.into())),
        }
        let wall = clock.wall();
        let about = format!("{role}, process {}, since {wall}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(about.as_bytes()))
            .map_err(at("write", &path))?;
        let incarnation = next_incarnation(dir, wall.as_millis())?;
        Ok(DirLock {
            _file: file,
            dir: dir.to_owned(),
            incarnation,
        })
    }

    /// The locked directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Higher at each start of a process on this directory.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

/// What the holder wrote, or words for "it has not yet".
fn holder(file: &mut File) -> String {
    /// Enough for the line above; the file may be anything if a user put it there.
    const LONGEST: u64 = 256;
    let mut text = String::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(LONGEST).read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), about) if !about.is_empty() => about.to_owned(),
        _ => "another process".to_owned(),
    }
}

/// Reads, raises and durably stores the incarnation number.
fn next_incarnation(dir: &Path, wall_ms: u64) -> Result<u64, LockError> {
    let path = dir.join("incarnation");
    let last: u64 = match fs::read_to_string(&path) {
        // An unreadable number only costs us the memory of it: the clock stands in.
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(err) if err.kind() == io::ErrorKind::NotFound => 0,
        Err(err) => return Err(at("read", &path)(err)),
    };
    let next = wall_ms.max(last.saturating_add(1));
    // Written beside and renamed, so that a crash leaves the old number or the new one.
    let fresh = dir.join("incarnation.new");
    let write = || {
        let mut file = File::create(&fresh)?;
        writeln!(file, "{next}")?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(at("store", &path))?;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use oast_model::time::Timestamp;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn the_second_process_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = ManualClock::default();
        let held = DirLock::acquire(dir.path(), "worker w1", &clock).expect("free");
        let error = DirLock::acquire(dir.path(), "worker w2", &clock).expect_err("held");
        let text = error.to_string();
        let holder = format!(
            "worker w1, process {}, since 2026-01-01T",
            std::process::id()
        );
        assert!(text.contains(&holder), "{text}");
        assert!(text.contains("choose another directory"), "{text}");
        drop(held);
        DirLock::acquire(dir.path(), "worker w2", &clock).expect("free again");
    }

    #[test]
    fn incarnations_rise_even_when_the_clock_goes_back_or_the_directory_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = ManualClock::default();
        let take = || {
            DirLock::acquire(dir.path(), "member", &clock)
                .expect("free")
                .incarnation()
        };
        let first = take();
        clock.set_wall(Timestamp(5));
        let second = take();
        assert_eq!(second, first + 1);

        clock.set_wall(Timestamp(first) + Duration::from_secs(60));
        fs::remove_dir_all(dir.path()).expect("removed");
        assert!(take() > second);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let dir = file.path().join("data");
        let error = DirLock::acquire(&dir, "member", &ManualClock::default()).expect_err("a file");
        assert!(error.to_string().starts_with("cannot create "), "{error}");
        assert!(error.to_string().contains("data"), "{error}");
    }
}
