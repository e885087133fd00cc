//! Carrying messages and files between members.
//!
//! Sending never blocks and may lose: raft repeats what matters. Files are fetched by the member
//! that wants them, in pieces, from an offset, so that a broken transfer goes on where it stopped.
//!
//! [`grpc`] is the real one; [`memory`] connects members of one process and loses, delays and
//! reorders on request.

use std::collections::BTreeMap;

use raft::eraftpb::Message;

use super::replica::Note;
use super::roster::Letterhead;
use crate::store::snapshot::SnapshotOffer;

pub mod grpc;
pub mod memory;

/// A piece could not be fetched from a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The peer cannot be reached or broke off; what was received so far is good.
    #[error("fetch from member {member}: {problem}")]
    Interrupted {
        /// Peer.
        member: u64,
        /// What happened.
        problem: String,
    },
    /// The peer does not have it any more.
    #[error("fetch from member {member}: it does not have this any more")]
    Gone {
        /// Peer.
        member: u64,
    },
}

/// Delivers to peers.
pub trait Transport: Send + Sync + 'static {
    /// Hands messages for one peer over. Never blocks; what does not fit is lost and counted.
    fn send(&self, letter: Letterhead, messages: Vec<Message>);

    /// Hands a note for one peer over. Never blocks and may lose it.
    fn note(&self, letter: Letterhead, note: Note);

    /// Who the members are from now on, and where: `host:port` by id, this member among them.
    fn members(&self, addresses: &BTreeMap<u64, String>);

    /// Reads a piece of a snapshot file from a peer. Blocks; called on a thread of its own. An
    /// empty piece is the end.
    ///
    /// # Errors
    /// [`FetchError`].
    fn fetch_snapshot(
        &self,
        letter: Letterhead,
        offer: &SnapshotOffer,
        offset: u64,
        sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), FetchError>;

    /// Reads history records from a peer, beginning at `first`. Blocks.
    ///
    /// # Errors
    /// [`FetchError`].
    fn fetch_history(
        &self,
        letter: Letterhead,
        first: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, FetchError>;
}
