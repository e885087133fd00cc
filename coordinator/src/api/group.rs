//! The group as the operator's calls show and change it.

use std::time::Duration;

use oast_daemon::clock::timeout;
use oast_proto::v1;
use tonic::{Code, Status};

use super::auth::Caller;
use super::{Api, status};
use crate::consensus::change::{Change, ChangeError, is_address};
use crate::consensus::replica::{self, Role};

/// Addresses in one call.
const ADDRESSES_MAX: usize = 16;
/// Longest request id in bytes: it is kept in the configuration.
const REQUEST_ID_MAX: usize = 128;
/// How long another member may take to lead.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Refuses what is no list of addresses, before anybody else is asked.
pub(super) fn check_addresses(addresses: &[String]) -> Result<(), Status> {
    if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
        let message = format!("name 1 to {ADDRESSES_MAX} addresses");
        return Err(status::invalid("addresses", message));
    }
    for address in addresses {
        if !is_address(address) {
            let message = format!("`{address}` is no host:port");
            return Err(status::invalid("addresses", message));
        }
    }
    Ok(())
}

impl Api {
    /// Changes the group as its leader; returns the members that it was about.
    pub(super) async fn change_group(
        &self,
        caller: &Caller,
        request_id: &str,
        change: Change,
    ) -> Result<Vec<u64>, Status> {
        if request_id.is_empty() || request_id.len() > REQUEST_ID_MAX {
            let message = format!("1 to {REQUEST_ID_MAX} characters are needed");
            return Err(status::invalid("request_id", message));
        }
        tracing::info!(principal = %caller.principal.name, request_id, ?change, "An administrator changes the group.");
        let changed = self.farm.handle().change(request_id, change).await?;
        Ok(changed.members)
    }

    /// Hands leadership over and waits until somebody else has it.
    pub(super) async fn hand_over(
        &self,
        caller: &Caller,
        request_id: &str,
        to: Option<u64>,
    ) -> Result<u64, Status> {
        let own = self.farm.handle().member();
        // Each attempt is one of its own: what was true of the last leader is not of the next.
        let asked = Change::Transfer(to);
        tracing::info!(principal = %caller.principal.name, request_id, ?to, "An administrator hands leadership over.");
        let heir = self.farm.handle().change("", asked).await?;
        if heir.members == [own] {
            return Ok(own);
        }
        let mut seen = self.farm.status();
        let others = seen.wait_for(|status| status.leader.is_some_and(|leader| leader != own));
        match timeout(&**self.farm.clock(), HAND_OVER, others).await {
            Ok(Ok(status)) => Ok(status.leader.unwrap_or(0)),
            _ => {
                let message = format!(
                    "member {} did not take over in time; this member still leads: try again",
                    heir.members.first().copied().unwrap_or(0)
                );
                Err(status::error(Code::Unavailable, "HANDING_OVER", message))
            }
        }
    }
}

impl From<ChangeError> for Status {
    fn from(err: ChangeError) -> Status {
        let (code, reason) = match &err {
            ChangeError::NotLeader { .. } => (Code::Unavailable, "NO_LEADER"),
            ChangeError::HandingOver { .. } => (Code::Unavailable, "HANDING_OVER"),
            ChangeError::Pending => (Code::FailedPrecondition, "CHANGE_PENDING"),
            ChangeError::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            ChangeError::NoSuchMember { .. } => (Code::NotFound, "NOT_FOUND"),
            ChangeError::Retired { .. } => (Code::FailedPrecondition, "MEMBER_RETIRED"),
            ChangeError::Address { .. } => (Code::InvalidArgument, "INVALID"),
            ChangeError::AddressTaken { .. } => (Code::AlreadyExists, "ADDRESS_TAKEN"),
            ChangeError::NoQuorum { .. } => (Code::FailedPrecondition, "NO_QUORUM"),
            ChangeError::LastVoter { .. } => (Code::FailedPrecondition, "NO_QUORUM"),
            ChangeError::History { .. } => (Code::FailedPrecondition, "NOT_READY"),
            ChangeError::Lags { .. } => (Code::FailedPrecondition, "NOT_READY"),
            ChangeError::Silent { .. } => (Code::FailedPrecondition, "NOT_READY"),
            ChangeError::Learner { .. } => (Code::FailedPrecondition, "NOT_READY"),
            ChangeError::NoHeir => (Code::FailedPrecondition, "NO_QUORUM"),
            ChangeError::SkewedHeir { .. } => (Code::FailedPrecondition, "NOT_READY"),
            ChangeError::NotInvited { .. } => (Code::FailedPrecondition, "NOT_INVITED"),
            ChangeError::AnotherDirectory { .. } => (Code::FailedPrecondition, "NOT_INVITED"),
            ChangeError::PassedOver { .. } => (Code::Aborted, "PASSED_OVER"),
            ChangeError::Unknown => (Code::Unknown, "OUTCOME_UNKNOWN"),
            ChangeError::Stopped => (Code::Unavailable, "STOPPING"),
        };
        status::error(code, reason, err.to_string())
    }
}

/// Everybody in the group as this member sees it.
pub(super) fn peers(status: &replica::Status) -> Vec<v1::Peer> {
    let mut ids: Vec<u64> = [&status.voters, &status.learners, &status.outgoing]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| peer(id, status)).collect()
}

fn peer(id: u64, status: &replica::Status) -> v1::Peer {
    let own = id == status.member;
    let voter = status.voters.contains(&id);
    let answers = status.answered.contains(&id);
    let role = if status.leader == Some(id) {
        "leader"
    } else if status.learners.contains(&id) {
        "learner"
    } else if !voter {
        "leaving"
    } else if own && status.role == Role::Candidate {
        "candidate"
    } else if own || status.leader.is_some() {
        "follower"
    } else {
        "unknown"
    };
    let record = status.members.get(&id);
    let leads = matches!(status.role, Role::Leader | Role::Elected);
    let progress = status.peers.iter().find(|peer| peer.member == id);
    let matched = match own {
        true => status.last,
        false => progress.map_or(0, |peer| peer.matched),
    };
    v1::Peer {
        id,
        address: record.map(|r| r.address.clone()).unwrap_or_default(),
        role: role.to_owned(),
        voter,
        matched,
        applied: if own { status.applied } else { 0 },
        lag: match leads {
            true => status.last.saturating_sub(matched),
            false => 0,
        },
        answers,
        clock_ms: match own {
            true => Some(0),
            false => status.clocks.get(&id).copied(),
        },
        joined: own || record.is_some_and(|record| record.stamp != 0),
        snapshot: progress.is_some_and(|peer| peer.snapshot),
    }
}

/// Raft keeps ids in no order.
fn sorted(ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

/// What this member knows of itself and the group.
pub(super) fn status(status: &replica::Status) -> v1::RaftStatus {
    let learner = status.learners.contains(&status.member);
    let role = match status.role {
        Role::Leader => "leader",
        Role::Elected => "elected",
        Role::Candidate => "candidate",
        Role::Follower if learner => "learner",
        Role::Follower => "follower",
    };
    v1::RaftStatus {
        member: status.member,
        farm: status.cluster.clone(),
        role: role.to_owned(),
        leader: status.leader.unwrap_or(0),
        term: status.term,
        first: status.first,
        last: status.last,
        commit: status.commit,
        applied: status.applied,
        snapshot: status.snapshot,
        history_missing: status.history_missing,
        voters: sorted(&status.voters),
        learners: sorted(&status.learners),
        outgoing: sorted(&status.outgoing),
        changing: status.changing,
        skew_ms: status.skew_ms,
        barred: status.barred,
        compared: status.compared,
        peers: peers(status),
    }
}
