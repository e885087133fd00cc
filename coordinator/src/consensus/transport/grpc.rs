//! Members over gRPC: `oast.peer.v1`.
//!
//! One [`Links`] per process keeps one outgoing stream per peer, [`server::PeerServer`] takes the
//! others' streams. Without TLS a peer is known by its farm and its creation stamp only, so the
//! port must not be reachable from outside until it has TLS.

use std::collections::BTreeMap;

use oast_proto::peer::v1 as wire;
use protobuf::Message as _;
use raft::eraftpb::Message;

use crate::consensus::machine::{EncodedCommand, Machine};
use crate::consensus::replica::{Applied, Note, ProposeError};
use crate::consensus::roster::Letterhead;
use crate::store::log::LogPosition;

mod dial;
mod join;
mod links;
mod server;

pub use dial::AddressError;
pub use join::{JoinError, join};
pub use links::{LinkOptions, Links};
pub use server::PeerServer;

/// Key in the trailers of a refused stream: [`Stranger::code`](crate::consensus::roster::Stranger).
const REFUSAL: &str = "oast-refusal";

/// Largest message taken from a peer: one command at its limit and what raft wraps around it.
const MAX_MESSAGE: usize = 32 << 20;

/// Most commands in one request of [`propose_many_request`].
pub const PROPOSE_MANY_MAX: usize = 1024;

/// How a machine's answers travel between members.
pub trait Wire: Machine {
    /// Bytes of an answer.
    fn encode_answer(answer: &Self::Answer) -> Vec<u8>;
    /// Reads what [`Wire::encode_answer`] wrote.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    fn decode_answer(bytes: &[u8]) -> Result<Self::Answer, String>;
}

fn letter_to_wire(letter: Letterhead) -> wire::Letterhead {
    wire::Letterhead {
        cluster_id: letter.cluster,
        from: letter.from,
        to: letter.to,
        stamp: letter.stamp,
        known_stamps: letter.known.into_iter().collect(),
        address: letter.address,
        supported_version: letter.supported_version,
        low_on_space: letter.low_on_space,
    }
}

fn letter_from_wire(letter: Option<wire::Letterhead>) -> Letterhead {
    // An absent letterhead belongs to no farm and is refused like any other stranger.
    let letter = letter.unwrap_or_default();
    Letterhead {
        cluster: letter.cluster_id,
        from: letter.from,
        stamp: letter.stamp,
        to: letter.to,
        known: letter.known_stamps.into_iter().collect::<BTreeMap<_, _>>(),
        address: letter.address,
        supported_version: letter.supported_version.max(1),
        low_on_space: letter.low_on_space,
    }
}

fn note_to_wire(note: Note) -> wire::Note {
    let (digest_index, digest) = note.digest.unwrap_or_default();
    wire::Note {
        wall_ms: note.wall_ms,
        echo_ms: note.echo_ms,
        echo_received_ms: note.echo_received_ms,
        digest_index,
        digest: if digest_index == 0 {
            bytes::Bytes::new()
        } else {
            digest.to_vec().into()
        },
    }
}

fn note_from_wire(note: &wire::Note) -> Note {
    let digest = note.digest.as_ref().try_into().ok();
    Note {
        wall_ms: note.wall_ms,
        echo_ms: note.echo_ms,
        echo_received_ms: note.echo_received_ms,
        digest: digest.map(|digest| (note.digest_index, digest)),
    }
}

pub(crate) fn message_from_wire(bytes: &[u8]) -> Option<Message> {
    let mut message = Message::default();
    message.merge_from_bytes(bytes).ok()?;
    Some(message)
}

fn outcome_to_wire<M: Wire>(
    outcome: Result<Applied<M::Answer>, ProposeError>,
) -> wire::ProposeResponse {
    use wire::propose_refused::Reason;
    use wire::propose_response::Outcome;

    let refused = |reason: Reason| wire::ProposeRefused {
        reason: reason.into(),
        ..wire::ProposeRefused::default()
    };
    let outcome = match outcome {
        Ok(applied) => Outcome::Applied(wire::ProposeApplied {
            index: applied.position.index,
            term: applied.position.term,
            ordinal: applied.ordinal,
            answer: M::encode_answer(&applied.answer).into(),
        }),
        Err(error) => Outcome::Refused(match error {
            ProposeError::NotLeader { leader } => wire::ProposeRefused {
                leader: leader.unwrap_or(0),
                ..refused(Reason::NotLeader)
            },
            ProposeError::TooLarge { bytes, limit } => wire::ProposeRefused {
                bytes: bytes as u64,
                limit: limit as u64,
                ..refused(Reason::TooLarge)
            },
            ProposeError::Unknown => refused(Reason::Unknown),
            ProposeError::Overloaded => refused(Reason::Overloaded),
            ProposeError::Stopped => refused(Reason::Stopped),
            ProposeError::NoSpace => refused(Reason::NoSpace),
        }),
    };
    wire::ProposeResponse {
        outcome: Some(outcome),
    }
}

/// The request that carries a command to the member that is thought to lead.
#[must_use]
pub fn propose_request<M: Wire>(letter: Letterhead, command: &M::Command) -> wire::ProposeRequest {
    let encoded = M::encode(command);
    wire::ProposeRequest {
        letter: Some(letter_to_wire(letter)),
        command: Some(wire::LoggedCommand {
            kind: encoded.kind,
            body: encoded.body,
        }),
    }
}

/// The same for many commands, at most [`PROPOSE_MANY_MAX`].
#[must_use]
pub fn propose_many_request(
    letter: Letterhead,
    commands: impl IntoIterator<Item = EncodedCommand>,
) -> wire::ProposeManyRequest {
    let commands = commands.into_iter().map(|command| wire::LoggedCommand {
        kind: command.kind,
        body: command.body,
    });
    wire::ProposeManyRequest {
        letter: Some(letter_to_wire(letter)),
        commands: commands.collect(),
    }
}

/// Reads the answer to a [`propose_request`].
///
/// # Errors
/// [`ProposeError`]; what cannot be understood leaves the outcome open.
pub fn propose_outcome<M: Wire>(
    response: wire::ProposeResponse,
) -> Result<Applied<M::Answer>, ProposeError> {
    use wire::propose_refused::Reason;
    use wire::propose_response::Outcome;

    match response.outcome {
        Some(Outcome::Applied(applied)) => {
            let answer = M::decode_answer(&applied.answer).map_err(|problem| {
                tracing::warn!(problem, "The leader's answer cannot be read.");
                ProposeError::Unknown
            })?;
            Ok(Applied {
                position: LogPosition {
                    index: applied.index,
                    term: applied.term,
                },
                ordinal: applied.ordinal,
                answer,
            })
        }
        Some(Outcome::Refused(refused)) => Err(match refused.reason() {
            Reason::NotLeader => ProposeError::NotLeader {
                leader: Some(refused.leader).filter(|leader| *leader != 0),
            },
            // Members of before said so of changes of the group; no command gets it.
            Reason::Overloaded | Reason::ChangePending => ProposeError::Overloaded,
            Reason::TooLarge => ProposeError::TooLarge {
                bytes: usize::try_from(refused.bytes).unwrap_or(usize::MAX),
                limit: usize::try_from(refused.limit).unwrap_or(usize::MAX),
            },
            Reason::NoSpace => ProposeError::NoSpace,
            // The peer stopped, we did not.
            Reason::Stopped | Reason::Unknown | Reason::Unspecified => ProposeError::Unknown,
        }),
        None => Err(ProposeError::Unknown),
    }
}
