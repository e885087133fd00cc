//! The envelope of a log entry: many commands under one position and one time.

use bytes::Bytes;
use oast_proto::peer::v1::{LogEntry, LoggedCommand};
use prost::Message as _;

use super::machine::EncodedCommand;

/// Version of an entry with commands.
const COMMANDS: u32 = 1;
/// Version of an entry without commands, whose context is a change of the group.
const NOTE: u32 = 2;
/// The highest version that is read.
pub const ENVELOPE_VERSION: u32 = NOTE;

/// An entry that this binary cannot read; the member stops.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not an envelope at all.
    #[error("read log entry {index}: it is damaged")]
    Damaged {
        /// Log index.
        index: u64,
        /// Cause.
        #[source]
        source: prost::DecodeError,
    },
    /// Written by a newer binary.
    #[error(
        "read log entry {index}: its envelope has version {version}, this binary reads {ENVELOPE_VERSION}; upgrade it"
    )]
    Newer {
        /// Log index.
        index: u64,
        /// Version found.
        version: u32,
    },
}

/// Encodes commands that are to be applied together.
pub(crate) fn encode(now_ms: u64, commands: Vec<EncodedCommand>) -> Vec<u8> {
    LogEntry {
        version: COMMANDS,
        now_ms,
        commands: commands
            .into_iter()
            .map(|command| LoggedCommand {
                kind: command.kind,
                body: command.body,
            })
            .collect(),
    }
    .encode_to_vec()
}

/// Encodes an entry that carries nothing but its context.
pub(crate) fn note(now_ms: u64) -> Vec<u8> {
    LogEntry {
        version: NOTE,
        now_ms,
        commands: Vec::new(),
    }
    .encode_to_vec()
}

/// Decodes the entry at `index`.
///
/// # Errors
/// [`EnvelopeError`].
pub fn decode(index: u64, data: Bytes) -> Result<LogEntry, EnvelopeError> {
    let entry =
        LogEntry::decode(data).map_err(|source| EnvelopeError::Damaged { index, source })?;
    if entry.version > ENVELOPE_VERSION {
        return Err(EnvelopeError::Newer {
            index,
            version: entry.version,
        });
    }
    Ok(entry)
}
