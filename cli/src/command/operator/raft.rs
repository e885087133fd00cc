//! `oast operator raft`: the members of the farm, who of them votes and who leads.

use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_proto::v1;

use crate::context::Connect;
use crate::output::{DECLINED, Output, confirm, facts, note, table};
use crate::shape;

/// What to do with the group.
#[derive(Debug, clap::Subcommand)]
pub enum Raft {
    /// List the members, which of them leads and how far each is
    #[command(visible_alias = "list")]
    ListPeers,
    /// Show what one member knows of itself and the group
    Status,
    /// Let new members follow; start them with `join` in their configuration
    AddLearner {
        /// Where the other members reach it, host:port
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<String>,
    },
    /// Give a learner a vote; refused while it lags
    Promote {
        /// The member's id
        #[arg(value_name = "ID")]
        member: u64,
        /// A voter that leaves in the same change
        #[arg(long, value_name = "ID")]
        replace: Option<u64>,
        /// The disk of the member that leaves is gone: take it out although the leader lacks history
        #[arg(long, requires = "replace")]
        disk_lost: bool,
    },
    /// Take a member out for good: its id is never used again
    RemovePeer {
        /// The member's id
        #[arg(value_name = "ID")]
        member: u64,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Its disk is gone: take it out although the leader lacks history
        #[arg(long)]
        disk_lost: bool,
    },
    /// Let another member lead
    TransferLeader {
        /// The member's id [default: the leader chooses]
        #[arg(value_name = "ID")]
        member: Option<u64>,
    },
}

/// Does it.
pub async fn run(connect: &Connect, output: Output, raft: &Raft) -> anyhow::Result<Exit> {
    match raft {
        Raft::ListPeers => list(connect, output).await,
        Raft::Status => status(connect, output).await,
        Raft::AddLearner { addresses } => add(connect, output, addresses).await,
        Raft::Promote {
            member,
            replace,
            disk_lost,
        } => promote(connect, output, *member, *replace, *disk_lost).await,
        Raft::RemovePeer {
            member,
            yes,
            disk_lost,
        } => remove(connect, output, *member, *yes, *disk_lost).await,
        Raft::TransferLeader { member } => transfer(connect, output, *member).await,
    }
}

async fn list(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::ListPeersRequest { from_leader: true };
    let found = client
        .call(|member| async move { member.operator().list_peers(request).await })
        .await?;
    let found = shape::ListPeersResponse::from(found);
    output.one(&found.leader.to_string(), &found, || {
        let leader = match found.leader {
            0 => "nobody leads".to_owned(),
            leader => format!("member {leader} leads"),
        };
        format!("{}\nterm {}: {leader}\n", peers(&found.peers), found.term)
    })?;
    Ok(Exit::Ok)
}

fn peers(peers: &[shape::Peer]) -> String {
    let rows = peers.iter().map(|peer| {
        let votes = match (peer.voter, peer.joined) {
            (true, _) => "voter",
            (false, true) => "learner",
            (false, false) => "not joined",
        };
        [
            peer.id.to_string(),
            peer.address.clone(),
            peer.role.clone(),
            votes.to_owned(),
            number(peer.matched),
            match (peer.snapshot, peer.matched) {
                (true, _) => "snapshot".to_owned(),
                (false, 0) => "-".to_owned(),
                (false, _) => peer.lag.to_string(),
            },
            if peer.answers { "yes" } else { "no" }.to_owned(),
            peer.clock_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms:+}ms")),
        ]
    });
    table(
        [
            "MEMBER", "ADDRESS", "ROLE", "VOTES", "MATCHED", "LAG", "ANSWERS", "CLOCK",
        ],
        rows,
    )
}

/// 0 is "not known here".
fn number(number: u64) -> String {
    match number {
        0 => "-".to_owned(),
        number => number.to_string(),
    }
}

fn ids(members: &[u64]) -> String {
    let members: Vec<String> = members.iter().map(u64::to_string).collect();
    members.join(", ")
}

async fn status(connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::GetRaftStatusRequest {};
    let found = client
        .call(|member| async move { member.operator().get_raft_status(request).await })
        .await?;
    let found = shape::RaftStatus::from(found);
    output.one(&found.role, &found, || {
        let clock = match found.skew_ms {
            None => "not measured: too few members answer".to_owned(),
            Some(ms) if found.barred => {
                format!("{ms:+}ms: too far from the others', so this member does not lead")
            }
            Some(ms) => format!("{ms:+}ms from most voters'"),
        };
        let facts = facts(&[
            ("Member", found.member.to_string()),
            ("Farm", found.farm.clone()),
            ("Role", found.role.clone()),
            (
                "Leader",
                match found.leader {
                    0 => "nobody".to_owned(),
                    leader => leader.to_string(),
                },
            ),
            ("Term", found.term.to_string()),
            ("Voters", ids(&found.voters)),
            ("Learners", ids(&found.learners)),
            (
                "Change",
                match (found.changing, found.outgoing.is_empty()) {
                    (false, _) => "none under way".to_owned(),
                    (true, true) => "under way".to_owned(),
                    (true, false) => format!("under way from voters {}", ids(&found.outgoing)),
                },
            ),
            ("Log", format!("{} to {}", found.first, found.last)),
            ("Committed", found.commit.to_string()),
            ("Applied", found.applied.to_string()),
            ("Snapshot", number(found.snapshot)),
            ("Compared", number(found.compared)),
            (
                "History",
                match found.history_missing {
                    0 => String::new(),
                    missing => format!("{missing} records are still fetched"),
                },
            ),
            ("Clock", clock),
        ]);
        format!("{facts}\n{}", peers(&found.peers))
    })?;
    Ok(Exit::Ok)
}

async fn add(connect: &Connect, output: Output, addresses: &[String]) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::AddLearnersRequest {
        request_id: random::request_id(),
        addresses: addresses.to_vec(),
    };
    let made = client
        .call(|member| {
            let request = request.clone();
            async move { member.operator().add_learners(request).await }
        })
        .await?;
    let json: Vec<_> = made
        .members
        .iter()
        .zip(addresses)
        .map(|(id, address)| serde_json::json!({ "id": id, "address": address }))
        .collect();
    output.one(&ids(&made.members), &json, || {
        let lines = made.members.iter().zip(addresses);
        lines
            .map(|(id, address)| format!("member {id} at {address}\n"))
            .collect()
    })?;
    if output.is_text() {
        note(
            "Start it with `join` and this address in its configuration, then: oast operator raft promote ID",
        );
    }
    Ok(Exit::Ok)
}

async fn promote(
    connect: &Connect,
    output: Output,
    member: u64,
    replace: Option<u64>,
    disk_lost: bool,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::PromoteMemberRequest {
        request_id: random::request_id(),
        member,
        replaces: replace.unwrap_or(0),
        disk_lost,
    };
    client
        .call(|peer| {
            let request = request.clone();
            async move { peer.operator().promote_member(request).await }
        })
        .await?;
    let json = serde_json::json!({ "member": member, "replaced": replace });
    output.one(&member.to_string(), &json, || match replace {
        None => format!("member {member} votes\n"),
        Some(old) => format!("member {member} votes in the place of member {old}\n"),
    })?;
    Ok(Exit::Ok)
}

async fn remove(
    connect: &Connect,
    output: Output,
    member: u64,
    yes: bool,
    disk_lost: bool,
) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    if !confirm(&format!("Remove member {member} for good?"), yes)? {
        return Ok(DECLINED);
    }
    let request = v1::RemoveMemberRequest {
        request_id: random::request_id(),
        member,
        disk_lost,
    };
    client
        .call(|peer| {
            let request = request.clone();
            async move { peer.operator().remove_member(request).await }
        })
        .await?;
    let json = serde_json::json!({ "removed": member });
    output.one(&member.to_string(), &json, || {
        format!("member {member} is no member any more\n")
    })?;
    Ok(Exit::Ok)
}

async fn transfer(connect: &Connect, output: Output, member: Option<u64>) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let request = v1::TransferLeadershipRequest {
        request_id: random::request_id(),
        member: member.unwrap_or(0),
    };
    let done = client
        .call(|peer| {
            let request = request.clone();
            async move { peer.operator().transfer_leadership(request).await }
        })
        .await?;
    let json = serde_json::json!({ "leader": done.leader });
    output.one(&done.leader.to_string(), &json, || {
        format!("member {} leads\n", done.leader)
    })?;
    Ok(Exit::Ok)
}
