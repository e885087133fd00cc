//! `oast operator snapshot save`: live state and history of a running member as one stream.
//!
//! The live state is an immutable view, so nothing waits while it is written. The history only
//! grows, and its end is published with the view: what is newer is left out, what is missing is
//! noticed, and what is pruned meanwhile leaves its hash in the chain.

use std::io::{self, Write};

use crate::consensus::handle::Published;
use crate::consensus::ledger::LedgerView;
use crate::consensus::machine::View;
use crate::consensus::replica::Status;
use crate::store::backup::{BackupHeader, BackupWriter};
use crate::store::state::{HistoryReader, HistoryTail, StateError};

/// Bytes of history read at once.
const HISTORY_BYTES: usize = 1 << 20;

/// A backup cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The farm has no name yet.
    #[error("save a snapshot: the farm is not initialised yet, there is nothing to save")]
    Empty,
    /// Whoever reads it has gone, or the disk is full.
    #[error("write the snapshot")]
    Write(#[source] io::Error),
    /// The store.
    #[error("read the history of finished work")]
    History(#[source] StateError),
    /// The store holds something else than was appended to it.
    #[error(
        "save a snapshot: the history of this member does not fit its state; ask another member, and replace this one"
    )]
    Damaged,
    /// This member installed a snapshot and still fetches the history from its peers.
    #[error(
        "save a snapshot here: this member still fetches history from its peers, it has it up to {reached} of {wanted}; try again later, or ask another member"
    )]
    Incomplete {
        /// Last record that is here.
        reached: u64,
        /// Last record that belongs to the state.
        wanted: u64,
    },
}

/// Who makes a backup, and when.
#[derive(Debug)]
pub struct Maker<'a> {
    /// The member.
    pub status: &'a Status,
    /// Its clock, milliseconds since the epoch.
    pub now_ms: u64,
}

/// Writes everything that `published` and the history up to it hold.
///
/// # Errors
/// [`SaveError`]; what was written so far has no end and is refused by every reader.
pub fn save<W: Write>(
    published: &Published<LedgerView>,
    history: &dyn HistoryReader,
    maker: &Maker<'_>,
    out: W,
) -> Result<W, SaveError> {
    let ledger = &published.view;
    let farm = ledger.farm();
    if farm.name.is_empty() {
        return Err(SaveError::Empty);
    }
    let header = BackupHeader {
        farm: farm.name.clone(),
        cluster: maker.status.cluster.clone(),
        mark: published.mark,
        seq: farm.seq.as_u64(),
        digest: ledger.digest(),
        history: published.history,
        cluster_version: farm.version,
        made_at_ms: maker.now_ms,
        made_by: env!("CARGO_PKG_VERSION").to_owned(),
        member: maker.status.member,
        voters: maker.status.voters.clone(),
    };
    let records = View::records(ledger);
    let mut writer = BackupWriter::begin(out, &header, records).map_err(SaveError::Write)?;
    let wanted = published.history;
    let mut reached = HistoryTail::default();
    while reached.last < wanted.last {
        let records = history
            .read(reached.last + 1, HISTORY_BYTES)
            .map_err(SaveError::History)?;
        if records.is_empty() {
            return Err(SaveError::Incomplete {
                reached: reached.last,
                wanted: wanted.last,
            });
        }
        // What was appended since belongs to a later state.
        let belong = usize::try_from(wanted.last - reached.last).unwrap_or(usize::MAX);
        for record in records.iter().take(belong) {
            reached = reached.then(record);
            writer.history(record).map_err(SaveError::Write)?;
        }
    }
    if reached != wanted {
        return Err(SaveError::Damaged);
    }
    writer.finish().map_err(SaveError::Write)
}
