//! What is replicated: a deterministic state machine behind one trait.
//!
//! Every member applies the same commands in the same order to the same state, so `apply` may look
//! at nothing but its arguments: no clock, no randomness, no configuration, no hash-map order. It
//! never fails; "no" is an answer.

use bytes::Bytes;

pub use crate::store::state::{Changes, Record};

/// Where a command stands in the log, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Index of the log entry.
    pub index: u64,
    /// Term of the log entry.
    pub term: u64,
    /// Which command of the entry, from 0.
    pub ordinal: u32,
    /// Leader's time, milliseconds since the epoch; never lower than for an earlier command.
    pub now_ms: u64,
}

/// A command as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedCommand {
    /// Kind and version of the body.
    pub kind: u32,
    /// The body.
    pub body: Bytes,
}

/// A command that this binary does not understand. The member stops: skipping it would let the
/// members' states drift apart for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "understand a command of kind {kind}: {problem}; this binary is older than the leader's, upgrade it"
)]
pub struct Undecodable {
    /// Kind in the log.
    pub kind: u32,
    /// What the decoder said.
    pub problem: String,
}

/// Records that do not make a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("load the state: {problem}")]
pub struct LoadError {
    /// What does not fit.
    pub problem: String,
}

/// An immutable view of the state at one position. Cheap to make and to share.
pub trait View: Send + Sync + 'static {
    /// All live records, each key once. Called on another thread to write a snapshot file.
    fn records(&self) -> Box<dyn Iterator<Item = Record> + '_>;
    /// Digest of the live state at the last [`Machine::take_changes`]; equal on all members at the
    /// same position. Cheap: it is asked for on the driver's thread.
    fn digest(&self) -> [u8; 32];
}

/// A replicated state machine.
pub trait Machine: Send + Sized + 'static {
    /// What is proposed.
    type Command: Send + 'static;
    /// What the proposer gets back once the command is applied.
    type Answer: Send + 'static;
    /// See [`View`].
    type View: View;

    /// Turns a command into what stands in the log.
    fn encode(command: &Self::Command) -> EncodedCommand;

    /// Turns what stands in the log into a command.
    ///
    /// # Errors
    /// [`Undecodable`]; the member stops.
    fn decode(kind: u32, body: &Bytes) -> Result<Self::Command, Undecodable>;

    /// Applies one committed command.
    fn apply(&mut self, at: Position, command: Self::Command) -> Self::Answer;

    /// Takes what changed since the last call, with the digest of the live state after it.
    fn take_changes(&mut self) -> Changes;

    /// The state as it is now.
    fn view(&self) -> Self::View;

    /// Makes a machine from the records of a view; no records make the first state.
    ///
    /// # Errors
    /// [`LoadError`], also for an error among the records.
    fn load(records: &mut dyn Iterator<Item = Result<Record, String>>) -> Result<Self, LoadError>;
}
