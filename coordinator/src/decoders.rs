//! Every way in for bytes that this process did not write itself, as plain functions.
//!
//! For the fuzz targets in `fuzz/` and the mutation test in `tests/decoders.rs`: whatever the bytes
//! are, these return, without a panic and without taking more memory than the bytes justify. What
//! they read is of no interest there, so most only say whether it could be read.

use bytes::Bytes;
use oast_proto::peer::v1 as wire;
use prost::Message as _;

use crate::consensus::entry;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::Machine as _;
use crate::consensus::transport::grpc::{Wire as _, message_from_wire};
use crate::store::backup::{BackupError, BackupReader};
use crate::store::identity::ClusterId;
use crate::store::log::LogMeta;
use crate::store::snapshot::{self, SnapshotOffer};

/// A name and the function behind it.
pub type Decoder = (&'static str, fn(&[u8]) -> bool);

/// All of them, by the names of their fuzz targets.
pub const ALL: [Decoder; 8] = [
    ("log_entry", log_entry),
    ("command", command),
    ("answer", answer),
    ("backup", backup),
    ("snapshot_file", snapshot_file),
    ("peer_batch", peer_batch),
    ("offer", offer),
    ("log_meta", log_meta),
];

/// A log entry with all its commands, as a member applies it.
pub fn log_entry(bytes: &[u8]) -> bool {
    match entry::decode(1, Bytes::copy_from_slice(bytes)) {
        Ok(entry) => entry
            .commands
            .iter()
            .all(|logged| LedgerMachine::decode(logged.kind, &logged.body).is_ok()),
        Err(_) => false,
    }
}

/// The body of a command that a peer carries to the leader; the first byte is its kind.
pub fn command(bytes: &[u8]) -> bool {
    let Some((kind, body)) = bytes.split_first() else {
        return false;
    };
    LedgerMachine::decode(u32::from(*kind), &Bytes::copy_from_slice(body)).is_ok()
}

/// The leader's answer to a carried command.
pub fn answer(bytes: &[u8]) -> bool {
    LedgerMachine::decode_answer(bytes).is_ok()
}

/// A backup, read to its end.
pub fn backup(bytes: &[u8]) -> bool {
    let read = || -> Result<(), BackupError> {
        let mut reader = BackupReader::new(bytes)?;
        while reader.record()?.is_some() {}
        while reader.history()?.is_some() {}
        reader.finish().map(drop)
    };
    read().is_ok()
}

/// A snapshot file of a peer, read to its end.
pub fn snapshot_file(bytes: &[u8]) -> bool {
    snapshot::check(bytes, bytes.len() as u64).is_ok()
}

/// A batch of raft messages from a peer.
pub fn peer_batch(bytes: &[u8]) -> bool {
    match wire::RaftBatch::decode(bytes) {
        Ok(batch) => batch
            .messages
            .iter()
            .all(|message| message_from_wire(message).is_some()),
        Err(_) => false,
    }
}

/// What a snapshot message carries instead of the file.
pub fn offer(bytes: &[u8]) -> bool {
    SnapshotOffer::decode(bytes).is_some()
}

/// What stands beside the log, and a cluster id in a configuration.
pub fn log_meta(bytes: &[u8]) -> bool {
    let id = std::str::from_utf8(bytes).map(str::parse::<ClusterId>);
    LogMeta::decode(bytes).is_ok() || matches!(id, Ok(Ok(_)))
}
