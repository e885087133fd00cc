//! How a data directory that belongs to nobody becomes a member.
//!
//! The group knows its address (`oast operator raft add-learner`) and gives it the id that is kept
//! for it, together with the directory's creation stamp. That is a log entry, so an address can
//! be taken once only, and asking again after a crash gets the same answer.

use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_proto::peer::v1 as wire;
use oast_proto::peer::v1::join_response::Outcome;
use oast_proto::peer::v1::peer_client::PeerClient;

use super::dial::dial;
use super::links::{LinkOptions, limited};
use crate::store::identity::farm_of;

/// Pause before the same members are asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Questions between two lines in the log.
const SAY_EVERY: u32 = 30;
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The group does not take us, and will not without somebody doing something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct JoinError {
    /// As the group says it.
    problem: String,
}

/// Who we are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Our id.
    pub member: u64,
    /// Cluster of the farm that has us.
    pub cluster: String,
}

/// Asks `peers` in turn which member we are to be, until one knows. Endless on purpose: whoever
/// starts a member may do so before its address is added.
///
/// # Errors
/// [`JoinError`].
pub async fn join(
    peers: &[String],
    request: wire::JoinRequest,
    options: &LinkOptions,
    clock: &SharedClock,
) -> Result<Seat, JoinError> {
    let mut asked: u32 = 0;
    loop {
        let mut problem = String::new();
        let mut queue: Vec<String> = peers.to_vec();
        let mut turn = 0;
        while turn < queue.len() {
            let peer = queue[turn].clone();
            turn += 1;
            match ask(&peer, &request, options).await {
                Ok(Answer::Seat(seat)) => return Ok(seat),
                Ok(Answer::Refused(refused)) if refused.retry => {
                    if !refused.leader.is_empty() && !queue.contains(&refused.leader) {
                        queue.push(refused.leader);
                    }
                    if problem.is_empty() {
                        problem = refused.problem;
                    }
                }
                Ok(Answer::Refused(refused)) => {
                    let problem = refused.problem;
                    return Err(JoinError { problem });
                }
                Err(unreachable) => {
                    if problem.is_empty() {
                        problem = unreachable;
                    }
                }
            }
        }
        if asked.is_multiple_of(SAY_EVERY) {
            tracing::warn!(problem, address = %request.address, "This member has not joined yet; it goes on asking.");
        }
        asked += 1;
        clock.sleep(PAUSE).await;
    }
}

enum Answer {
    Seat(Seat),
    Refused(wire::JoinRefused),
}

/// The error says why there is no answer.
async fn ask(
    peer: &str,
    request: &wire::JoinRequest,
    options: &LinkOptions,
) -> Result<Answer, String> {
    let channel = dial(peer, options).map_err(|error| crate::consensus::chain(&error))?;
    let mut client = PeerClient::new(channel);
    let answer = limited(ANSWER, client.join(request.clone())).await;
    let answer = answer.ok_or_else(|| format!("{peer} does not answer"))?;
    let answer = answer.map_err(|status| format!("{peer}: {}", status.message()))?;
    let wire::JoinResponse {
        cluster_id,
        outcome,
    } = answer.into_inner();
    match outcome {
        Some(Outcome::Refused(refused)) => Ok(Answer::Refused(refused)),
        Some(Outcome::Member(member)) if farm_of(&cluster_id) == request.cluster_id => {
            Ok(Answer::Seat(Seat {
                member,
                cluster: cluster_id,
            }))
        }
        _ => Err(format!("{peer} answers nothing that is understood")),
    }
}
