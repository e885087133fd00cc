//! Work with files that must not hold up the driver: making a snapshot, fetching one, history.
//!
//! All of it may fail without harm; the replica asks again.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::consensus::chain;
use crate::consensus::counters::{Counters, count};
use crate::consensus::machine::{Machine, View};
use crate::consensus::open;
use crate::consensus::replica::{Prepared, SnapshotJob};
use crate::consensus::roster::Letterhead;
use crate::consensus::transport::{FetchError, Transport};
use crate::store::disk;
use crate::store::snapshot::{Shelf, SnapshotFile, SnapshotHeader, SnapshotOffer};
use crate::store::state::{HistoryGap, StateRoot, StateStore};

/// Attempts to go on with an interrupted transfer before the offer is given up; it comes again.
const MAX_ATTEMPTS: u32 = 5;
/// History asked for at once, in bytes.
const HISTORY_BYTES: usize = 1 << 20;

fn part_name(offer: &SnapshotOffer) -> String {
    let SnapshotOffer {
        position, checksum, ..
    } = offer;
    let sum: String = checksum[..4].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{sum}.part", position.index, position.term)
}

/// `None` when it failed.
pub(super) type Fetched<M, S> = Option<Prepared<M, S>>;

pub(super) struct Fetcher<R> {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) letter: Letterhead,
    pub(super) root: Arc<R>,
    pub(super) shelf: Shelf,
    pub(super) incoming: PathBuf,
    pub(super) stopping: CancellationToken,
    pub(super) counters: Arc<Counters>,
}

impl<R: StateRoot> Fetcher<R> {
    /// Fetches, verifies and loads an offered snapshot.
    pub(super) fn fetch<M: Machine>(
        &self,
        offer: &SnapshotOffer,
        state_dir: &str,
    ) -> Fetched<M, R::Store> {
        self.sweep(offer);
        let from = self.letter.to;
        let log_index = offer.position.index;
        match self.try_fetch(offer, state_dir) {
            Ok(prepared) => {
                tracing::info!(from, log_index, bytes = offer.length, "Fetched a snapshot.");
                Some(prepared)
            }
            Err(problem) => {
                tracing::warn!(
                    from,
                    log_index,
                    problem,
                    "A snapshot was not fetched; it will be offered again."
                );
                None
            }
        }
    }

    fn try_fetch<M: Machine>(
        &self,
        offer: &SnapshotOffer,
        state_dir: &str,
    ) -> Result<Prepared<M, R::Store>, String> {
        let path = self.incoming.join(part_name(offer));
        let mut attempts = 0;
        loop {
            let length = self.transfer(offer, &path)?;
            if length >= offer.length {
                break;
            }
            attempts += 1;
            if attempts >= MAX_ATTEMPTS || self.stopping.is_cancelled() {
                return Err(format!("only {length} of {} bytes came", offer.length));
            }
        }
        let file = self.shelf.adopt(&path, offer).map_err(|error| {
            // The bytes are wrong, so going on from them cannot help.
            let _ = disk::remove(&path);
            chain(&error)
        })?;
        prepare(self.root.as_ref(), &self.letter.cluster, file, state_dir)
    }

    /// Removes what came of other snapshots: nobody will ask for the rest.
    fn sweep(&self, offer: &SnapshotOffer) {
        let keep = part_name(offer);
        let listing = std::fs::read_dir(&self.incoming).into_iter().flatten();
        for entry in listing.flatten().filter(|e| e.file_name() != *keep) {
            if let Err(error) = disk::remove(&entry.path()) {
                tracing::warn!(error = chain(&error), "A partial snapshot stays for now.");
            }
        }
    }

    /// Appends what is missing; returns the length afterwards.
    fn transfer(&self, offer: &SnapshotOffer, path: &Path) -> Result<u64, String> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|source| chain(&disk::at("open", path)(source)))?;
        let mut length = file
            .metadata()
            .map_err(|source| chain(&disk::at("look at", path)(source)))?
            .len();
        if length > 0 {
            count(&self.counters.snapshots_resumed, 1);
            tracing::info!(
                from = self.letter.to,
                length,
                "A snapshot transfer goes on where it was cut."
            );
        }
        let fetched =
            self.transport
                .fetch_snapshot(self.letter.clone(), offer, length, &mut |piece| {
                    if self.stopping.is_cancelled() {
                        return Err(std::io::Error::other("this member is stopping"));
                    }
                    if length + piece.len() as u64 > offer.length {
                        return Err(std::io::Error::other("more came than was announced"));
                    }
                    file.write_all(piece)?;
                    length += piece.len() as u64;
                    count(&self.counters.snapshot_bytes_received, piece.len() as u64);
                    Ok(())
                });
        // Also after a cut: what counts as received must be there after a power loss.
        file.sync_all()
            .map_err(|e| chain(&disk::at("sync", path)(e)))?;
        match fetched {
            Ok(()) => {}
            Err(FetchError::Gone { .. }) => {
                return Err("the peer does not have it any more".to_owned());
            }
            Err(error) => tracing::debug!(%error, "A transfer was interrupted."),
        }
        Ok(length)
    }
}

/// Loads a verified snapshot file of a peer, so that it can become current.
///
/// # Errors
/// Why this file is of no use here.
pub fn prepare<M: Machine, R: StateRoot>(
    root: &R,
    cluster: &str,
    file: SnapshotFile,
    state_dir: &str,
) -> Result<Prepared<M, R::Store>, String> {
    if file.header.cluster != cluster {
        return Err(format!("it belongs to farm {}", file.header.cluster));
    }
    let state = open::restore(root, state_dir, &file).map_err(|error| chain(&error))?;
    let machine = M::load(&mut state.records().map(|r| r.map_err(|error| chain(&error))))
        .map_err(|error| chain(&error))?;
    if machine.view().digest() != file.header.digest {
        return Err("the loaded state does not have the digest that the file names".to_owned());
    }
    Ok(Prepared {
        file,
        state_dir: state_dir.to_owned(),
        state,
        machine,
    })
}

/// Writes and verifies a snapshot file, then makes the state durable, so that the log may be
/// compacted.
pub fn make_snapshot<V: View>(shelf: &Shelf, job: SnapshotJob<V>) -> Option<SnapshotFile> {
    let SnapshotJob { header, view, sync } = job;
    let header = SnapshotHeader {
        digest: view.digest(),
        ..header
    };
    let log_index = header.mark.position.index;
    let made = shelf
        .write(header, view.records())
        .map_err(|error| chain(&error))
        .and_then(|file| sync().map(|()| file).map_err(|error| chain(&error)));
    match made {
        Ok(file) => {
            tracing::info!(log_index, bytes = file.length, "Made a snapshot.");
            Some(file)
        }
        Err(problem) => {
            tracing::error!(
                log_index,
                problem,
                "A snapshot could not be made; the log keeps growing until one can."
            );
            None
        }
    }
}

/// Asks a peer for the beginning of a gap. Empty when it could not give any.
pub(super) fn history(
    transport: &dyn Transport,
    letter: Letterhead,
    gap: HistoryGap,
) -> Vec<Vec<u8>> {
    let first = gap.after.last + 1;
    match transport.fetch_history(letter, first, HISTORY_BYTES) {
        Ok(mut records) => {
            let missing = gap.until.last - gap.after.last;
            records.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
            records
        }
        Err(error) => {
            tracing::warn!(%error, first, "No history from this peer; another one is asked.");
            Vec::new()
        }
    }
}
