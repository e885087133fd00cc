//! Room on the disk: a member that has too little stays readable and writes nothing more.
//!
//! *Low*: the member takes no proposals and hands leadership to one that has room; it still follows.
//! *Full*: it follows no further either, so that what is left of the disk suffices to run; what it
//! misses it gets from the others later.
//!
//! A file of its own size is kept aside in the data directory. It is given back when the disk is full
//! at start, because a log that is opened has to write a little, and made again when there is room.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::health::Part;
use oast_daemon::metrics::{Metric, Metrics};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio_util::sync::CancellationToken;

use crate::consensus::replica::Status;
use crate::farm::Farm;
use crate::store::disk::{self, DiskError};
use crate::store::space::{Gauge, Space, critical};

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Name of the file that is kept aside.
const FILE: &str = "reserve";
/// Largest file that is set aside: opening log and state writes about a megabyte.
const SET_ASIDE_MAX: u64 = 16 << 20;

/// The member's disk.
#[derive(Debug)]
pub struct Watch {
    directory: PathBuf,
    reserve: u64,
    gauge: Gauge,
}

impl Watch {
    /// Looks for the first time, before anything else touches the data directory: gives the file
    /// back when the disk is full.
    ///
    /// # Errors
    /// [`DiskError`] when the disk cannot be looked at.
    pub fn begin(directory: &Path, reserve: u64) -> Result<Watch, DiskError> {
        // On a disk that became read-only the lock says what to do about it.
        if !directory.is_dir() {
            fs::create_dir_all(directory).map_err(disk::at("make", directory))?;
        }
        let watch = Watch {
            directory: directory.to_owned(),
            reserve,
            gauge: Gauge::default(),
        };
        let free = watch.free()?;
        watch.gauge.set(Space::Room.after(free, reserve));
        if watch.gauge.space() == Space::Full {
            tracing::warn!(
                free,
                reserve,
                "The disk is full; the reserve is given back."
            );
            disk::remove(&watch.file())?;
        }
        Ok(watch)
    }

    /// Where others see what was found.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Bytes that we may still write.
    fn free(&self) -> Result<u64, DiskError> {
        let found = statvfs(&self.directory)
            .map_err(|errno| disk::at("look for room in", &self.directory)(errno.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Sets the file aside while there is room for it.
    fn set_aside(&self, free: u64) -> Result<(), DiskError> {
        let size = critical(self.reserve).min(SET_ASIDE_MAX);
        let path = self.file();
        let there = fs::metadata(&path).is_ok_and(|found| found.len() == size);
        if there || free < self.reserve + self.reserve / 4 + size {
            return Ok(());
        }
        let made = File::create(&path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, size).map_err(io::Error::from)
        });
        if made.is_err() {
            // A file system without preallocation has no reserve; half a file would only be in the way.
            let _ = fs::remove_file(&path);
        }
        made.map_err(disk::at("set room aside in", &path))
    }

    /// Looks until shutdown.
    pub async fn run(
        self,
        clock: SharedClock,
        part: Part,
        metrics: Metrics,
        stop: CancellationToken,
    ) {
        let free_bytes = metrics.gauge(Metric::DiskFreeBytes);
        let no_space = metrics.gauge(Metric::DiskNoSpace);
        let mut unset = false;
        loop {
            match self.free() {
                Ok(free) => {
                    free_bytes.set(free);
                    let before = self.gauge.space();
                    let space = before.after(free, self.reserve);
                    self.gauge.set(space);
                    no_space.set(u64::from(space != Space::Room));
                    self.tell(before, space, free, &part);
                    if space == Space::Room
                        && let Err(error) = self.set_aside(free)
                        && !std::mem::replace(&mut unset, true)
                    {
                        let error = oast_daemon::telemetry::chain(&error).to_string();
                        tracing::warn!(error, "No room is set aside for a start with a full disk.");
                    }
                }
                Err(error) => {
                    let error = oast_daemon::telemetry::chain(&error).to_string();
                    tracing::warn!(error, "The disk could not be looked at.");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(LOOK) => {}
            }
        }
    }

    fn tell(&self, before: Space, space: Space, free: u64, part: &Part) {
        let reserve = self.reserve;
        match space {
            Space::Room => part.ready(),
            Space::Low => part.not_ready(format!(
                "{free} bytes are free, the reserve is {reserve}: reads only, until there is room"
            )),
            Space::Full => part.not_ready(format!(
                "{free} bytes are free, the reserve is {reserve}: reads of what is here only, until there is room"
            )),
        }
        match (before == space, space) {
            (true, _) => {}
            (false, Space::Room) => {
                tracing::info!(free, reserve, "There is room again; writes are taken.");
            }
            (false, _) => {
                tracing::error!(
                    free,
                    reserve,
                    ?space,
                    "Too little room; no writes are taken."
                );
            }
        }
    }
}

/// Hands leadership to a voter with room while we have too little. Without one we keep it: reads go
/// on, and a change of leader would bring nobody room.
pub async fn step_aside(farm: Farm, stop: CancellationToken) {
    let clock = farm.clock().clone();
    loop {
        if farm.handle().space() != Space::Room {
            let status = farm.status().borrow().clone();
            if let Some(heir) = heir(&status, |member| farm.handle().has_room(member)) {
                tracing::warn!(heir, "Too little room to lead; another member shall.");
                farm.handle().transfer_leadership(heir);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(LOOK) => {}
        }
    }
}

/// The voter that shall lead instead: one with room, and of these the one that has most of the log.
/// Only the leader knows its peers, so anybody else has no heir.
#[must_use]
pub fn heir(status: &Status, has_room: impl Fn(u64) -> bool) -> Option<u64> {
    let ready = status.peers.iter().filter(|peer| {
        let voter = status.voters.contains(&peer.member);
        voter && peer.active && !peer.snapshot && has_room(peer.member)
    });
    ready
        .max_by_key(|peer| peer.matched)
        .map(|peer| peer.member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_set_aside_once_and_given_back_when_the_disk_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::begin(folder.path(), 1 << 20).unwrap();
        let free = watch.free().unwrap();
        watch.set_aside(0).unwrap();
        assert!(!watch.file().exists(), "there was no room for it");
        watch.set_aside(free).unwrap();
        assert_eq!(fs::metadata(watch.file()).unwrap().len(), 1 << 18);
        assert_eq!(watch.gauge().space(), Space::Room);
        // A reserve that no disk has: full from the start.
        let full = Watch::begin(folder.path(), u64::MAX / 2).unwrap();
        assert_eq!(full.gauge().space(), Space::Full);
        assert!(!watch.file().exists());
    }
}
