//! Changes of the group: what can be asked for, when it is refused, and what a committed one does.
//!
//! ```text
//! asked:     Change --plan(ground)--> refused, done already, or an entry for the log   (leader only)
//! committed: GroupChange --judge(members, configuration)--> carried out or passed over (all members)
//! ```
//!
//! [`plan`] looks at what only the leader knows: who answered lately and how far everybody is.
//! [`judge`] may look at replicated facts alone, so that all members come to the same verdict; it
//! matters when the world changed between proposal and commit, and it is what makes an id unique
//! for good. Both are functions of values: no clock, no raft, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use oast_proto::peer::v1 as wire;
use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

use crate::store::members::{MAX_ADDRESS, Members};

pub(crate) use wire::group_change::Change as Wire;

/// What an operator, or a member that joins, asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New members at these addresses, which follow and do not vote.
    AddLearners(Vec<String>),
    /// A learner gets a vote.
    Promote {
        /// Who.
        member: u64,
        /// A voter that leaves in the same change.
        replaces: Option<u64>,
        /// The disk of who leaves is gone: nothing can be had from it any more.
        disk_lost: bool,
    },
    /// A member leaves for good.
    Remove {
        /// Who.
        member: u64,
        /// Its disk is gone: nothing can be had from it any more.
        disk_lost: bool,
    },
    /// The data directory with this stamp is the member that was added at this address.
    Join {
        /// Its own address.
        address: String,
        /// Its creation stamp.
        stamp: u64,
    },
    /// What the leader heard from a member about itself.
    Bind {
        /// Who.
        member: u64,
        /// Creation stamp of its data directory.
        stamp: u64,
        /// Its own address.
        address: String,
    },
    /// Another member is to lead; the leader chooses when none is named.
    Transfer(Option<u64>),
}

impl Change {
    /// Whether somebody leaves by it.
    pub(crate) fn takes_out(&self) -> bool {
        match self {
            Change::Remove { .. } => true,
            Change::Promote { replaces, .. } => replaces.is_some(),
            _ => false,
        }
    }
}

/// A change that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The members it was about, in the order in which they were named.
    pub members: Vec<u64>,
}

/// Why a change was refused, or what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Ask the leader.
    #[error("change the group: this member does not lead; ask the leader")]
    NotLeader {
        /// Who leads, as far as known.
        leader: Option<u64>,
    },
    /// The leader hands leadership over first.
    #[error(
        "change the group: member {to} takes over leadership first, because the leader itself is to leave; ask again"
    )]
    HandingOver {
        /// Who is to lead.
        to: u64,
    },
    /// One at a time.
    #[error(
        "change the group: an earlier change is not finished; wait until `oast operator raft status` shows none under way"
    )]
    Pending,
    /// Too much waits for a majority.
    #[error("change the group: too much waits for a majority; try again later")]
    Overloaded,
    /// No such member.
    #[error(
        "change member {member}: the group has no such member; its members are {}",
        list(members)
    )]
    NoSuchMember {
        /// Who was named.
        member: u64,
        /// Who there is.
        members: Vec<u64>,
    },
    /// The id was used before.
    #[error(
        "change member {member}: it was removed, and an id is never used again; add its address with `oast operator raft add-learner` and start it with an empty data directory"
    )]
    Retired {
        /// Who was named.
        member: u64,
    },
    /// Not an address.
    #[error(
        "add a member at `{address}`: write the address where the others reach it as host:port"
    )]
    Address {
        /// As given.
        address: String,
    },
    /// Somebody is there.
    #[error(
        "add a member at {address}: member {member} has this address; remove that member first if it is dead"
    )]
    AddressTaken {
        /// As given.
        address: String,
        /// Who has it.
        member: u64,
    },
    /// The new voters could not decide anything.
    #[error(
        "change the group: the voters would be {}, of which only {} answered lately, and {needed} are needed to decide anything; start the others first, or remove those that are dead first",
        list(voters),
        list(answered)
    )]
    NoQuorum {
        /// Voters after the change.
        voters: Vec<u64>,
        /// Those of them that answered lately.
        answered: Vec<u64>,
        /// Majority.
        needed: usize,
    },
    /// Nobody would be left.
    #[error(
        "remove member {member}: it is the last voter; a group without voters decides nothing. Promote another member first"
    )]
    LastVoter {
        /// Who was named.
        member: u64,
    },
    /// It may be the only one that has a part of the history.
    #[error(
        "take member {member} out: the leader does not have all of the history of finished work yet, and member {member} may be the only one that has the rest; wait until `oast operator raft status` of the leader shows no missing history, or let a member lead that has it. If the disk of member {member} is gone, say so with `--disk-lost`"
    )]
    History {
        /// Who was named.
        member: u64,
    },
    /// It would slow the group down as a voter.
    #[error(
        "promote member {member}: it is {lag} entries behind the leader, {allowed} are allowed; wait until `oast operator raft list-peers` shows it closer"
    )]
    Lags {
        /// Who was named.
        member: u64,
        /// Entries behind.
        lag: u64,
        /// Entries allowed.
        allowed: u64,
    },
    /// It does not answer.
    #[error(
        "{what} member {member}: it has not answered lately; start it, and see that the members reach it at {address}"
    )]
    Silent {
        /// What was asked for, as a verb.
        what: &'static str,
        /// Who was named.
        member: u64,
        /// Where it should be.
        address: String,
    },
    /// Only voters lead and are replaced.
    #[error(
        "{what} member {member}: it is a learner and has no vote; promote it first with `oast operator raft promote {member}`"
    )]
    Learner {
        /// What was asked for, as a verb.
        what: &'static str,
        /// Who was named.
        member: u64,
    },
    /// Nobody can take over.
    #[error("hand leadership over: no other voter answered lately; start another voter first")]
    NoHeir,
    /// Its clock is wrong.
    #[error(
        "hand leadership to member {member}: its clock is {offset_ms} ms away from the others'; set it right first"
    )]
    SkewedHeir {
        /// Who was named.
        member: u64,
        /// Its clock minus that of most members.
        offset_ms: i64,
    },
    /// Nobody added this address.
    #[error(
        "join the group at {address}: no member was added there; run `oast operator raft add-learner {address}` first"
    )]
    NotInvited {
        /// The joining member's.
        address: String,
    },
    /// The address belongs to another data directory.
    #[error(
        "join the group at {address}: member {member} joined from there with another data directory, which must not be replaced by an empty one. Restore it; or run `oast operator raft remove-peer {member}` and then `oast operator raft add-learner {address}`"
    )]
    AnotherDirectory {
        /// The joining member's.
        address: String,
        /// Who joined from there.
        member: u64,
    },
    /// The world changed between proposal and commit.
    #[error(
        "change the group: it no longer fitted when its turn came ({problem}); look at `oast operator raft list-peers`"
    )]
    PassedOver {
        /// What did not fit.
        problem: String,
    },
    /// It may come into force or not.
    #[error(
        "change the group: no majority confirmed it in time, it may still come into force; look at `oast operator raft status`, or ask again with the same request id"
    )]
    Unknown,
    /// This member is ending.
    #[error("change the group: this member is stopping")]
    Stopped,
}

fn list(members: &[u64]) -> String {
    if members.is_empty() {
        return "none".to_owned();
    }
    let members: Vec<String> = members.iter().map(u64::to_string).collect();
    members.join(", ")
}

/// What the leader knows when it is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ground<'a> {
    pub(crate) us: u64,
    pub(crate) members: &'a Members,
    pub(crate) conf: &'a ConfState,
    /// Members heard within the last moments, us among them.
    pub(crate) answered: BTreeSet<u64>,
    /// Highest index on each peer's disk.
    pub(crate) matched: BTreeMap<u64, u64>,
    /// Clocks that are too far from the others', by how much.
    pub(crate) skewed: BTreeMap<u64, i64>,
    pub(crate) last: u64,
    /// Entries that a learner may be behind to be promoted.
    pub(crate) promote_lag: u64,
    /// Our disk has all of the history.
    pub(crate) whole: bool,
}

/// What is to be done about a [`Change`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plan {
    /// Nothing: it is so already.
    Done(Changed),
    /// Propose this configuration; its context is a [`wire::GroupChange`].
    Configure(ConfChangeV2, Changed),
    /// Propose an entry with this context.
    Note(Vec<u8>, Changed),
    /// Hand leadership over: it was asked for...
    HandOver(u64),
    /// ...or must come first.
    HandOverFirst(u64),
}

impl Ground<'_> {
    fn voters(&self) -> BTreeSet<u64> {
        self.conf.voters.iter().copied().collect()
    }

    fn address(&self, member: u64) -> String {
        let record = self.members.known.get(&member);
        record.map(|r| r.address.clone()).unwrap_or_default()
    }

    fn expect(&self, member: u64) -> Result<(), ChangeError> {
        let known = self.conf.voters.contains(&member) || self.conf.learners.contains(&member);
        if known {
            return Ok(());
        }
        if self.members.retired(member) && member != 0 {
            return Err(ChangeError::Retired { member });
        }
        let members = self.members.known.keys().copied().collect();
        Err(ChangeError::NoSuchMember { member, members })
    }

    /// The voters after a change must be able to decide with who is there now.
    fn quorum(&self, voters: &BTreeSet<u64>) -> Result<(), ChangeError> {
        let needed = voters.len() / 2 + 1;
        let answered: Vec<u64> = voters.intersection(&self.answered).copied().collect();
        if answered.len() >= needed {
            return Ok(());
        }
        Err(ChangeError::NoQuorum {
            voters: voters.iter().copied().collect(),
            answered,
            needed,
        })
    }

    /// Whoever leaves takes nothing along that only it has. What others say of themselves may be old by
    /// the time the change is carried out; what we have stays.
    fn history(&self, member: u64, disk_lost: bool) -> Result<(), ChangeError> {
        match self.whole || disk_lost {
            true => Ok(()),
            false => Err(ChangeError::History { member }),
        }
    }

    /// The voter that is furthest of those that may lead, but not us.
    pub(crate) fn heir(&self) -> Option<u64> {
        let fit = self.conf.voters.iter().filter(|member| {
            **member != self.us
                && self.answered.contains(member)
                && !self.skewed.contains_key(member)
        });
        fit.copied()
            .max_by_key(|member| (self.matched.get(member), u64::MAX - member))
    }
}

fn single(kind: ConfChangeType, member: u64) -> ConfChangeSingle {
    ConfChangeSingle {
        node_id: member,
        change_type: kind,
        ..ConfChangeSingle::default()
    }
}

/// Voters change by joint consensus, always: one way to go, one way to test.
fn configure(changes: Vec<ConfChangeSingle>, voters: bool, context: Vec<u8>) -> ConfChangeV2 {
    ConfChangeV2 {
        transition: if voters {
            ConfChangeTransition::Implicit
        } else {
            ConfChangeTransition::Auto
        },
        changes: changes.into(),
        context: context.into(),
        ..ConfChangeV2::default()
    }
}

/// Bytes of a [`wire::GroupChange`].
pub(crate) fn context(request_id: &str, change: Wire) -> Vec<u8> {
    wire::GroupChange {
        request_id: request_id.to_owned(),
        change: Some(change),
    }
    .encode_to_vec()
}

/// What to do about a change; the refusals say the way out.
pub(crate) fn plan(
    change: &Change,
    request_id: &str,
    ground: &Ground<'_>,
) -> Result<Plan, ChangeError> {
    if !request_id.is_empty()
        && let Some(settled) = ground.members.settled(request_id)
    {
        return Ok(Plan::Done(Changed {
            members: settled.members.clone(),
        }));
    }
    match change {
        Change::AddLearners(addresses) => add(addresses, request_id, ground),
        Change::Promote {
            member,
            replaces,
            disk_lost,
        } => {
            let replaces = replaces.map(|old| (old, *disk_lost));
            promote(*member, replaces, request_id, ground)
        }
        Change::Remove { member, disk_lost } => remove(*member, *disk_lost, request_id, ground),
        Change::Join { address, stamp } => join(address, *stamp, ground),
        Change::Bind {
            member,
            stamp,
            address,
        } => {
            ground.expect(*member)?;
            let address = address.clone();
            if !address.is_empty() && !is_address(&address) {
                return Err(ChangeError::Address { address });
            }
            match ground.members.at(&address) {
                Some(other) if other != *member && !address.is_empty() => {
                    Err(ChangeError::AddressTaken {
                        address,
                        member: other,
                    })
                }
                _ => Ok(bind(*member, *stamp, &address)),
            }
        }
        Change::Transfer(to) => transfer(*to, ground),
    }
}

/// Whether the text is a host and a port.
#[must_use]
pub fn is_address(text: &str) -> bool {
    text.len() <= MAX_ADDRESS
        && text.rsplit_once(':').is_some_and(|(host, port)| {
            let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '@' | '?' | '#');
            !host.is_empty()
                && host.chars().all(plain)
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

fn add(addresses: &[String], request_id: &str, ground: &Ground<'_>) -> Result<Plan, ChangeError> {
    let mut new = Vec::new();
    for (member, address) in (ground.members.next..).zip(addresses) {
        let address = address.clone();
        if !is_address(&address) {
            return Err(ChangeError::Address { address });
        }
        let twice = new
            .iter()
            .find(|other: &&wire::NewMember| other.address == address);
        let there = ground
            .members
            .at(&address)
            .or_else(|| twice.map(|m| m.member));
        if let Some(member) = there {
            return Err(ChangeError::AddressTaken { address, member });
        }
        new.push(wire::NewMember { member, address });
    }
    let members: Vec<u64> = new.iter().map(|member| member.member).collect();
    let changes = members
        .iter()
        .map(|member| single(ConfChangeType::AddLearnerNode, *member));
    let context = context(
        request_id,
        Wire::AddLearners(wire::AddLearners { members: new }),
    );
    Ok(Plan::Configure(
        configure(changes.collect(), false, context),
        Changed { members },
    ))
}

fn promote(
    member: u64,
    replaces: Option<(u64, bool)>,
    request_id: &str,
    ground: &Ground<'_>,
) -> Result<Plan, ChangeError> {
    let mut voters = ground.voters();
    let mut members = vec![member];
    if voters.contains(&member) && replaces.is_none() {
        return Ok(Plan::Done(Changed { members }));
    }
    ground.expect(member)?;
    if !ground.answered.contains(&member) {
        return Err(ChangeError::Silent {
            what: "promote",
            member,
            address: ground.address(member),
        });
    }
    let matched = ground.matched.get(&member).copied().unwrap_or(0);
    let lag = match member == ground.us {
        true => 0,
        false => ground.last.saturating_sub(matched),
    };
    if lag > ground.promote_lag {
        return Err(ChangeError::Lags {
            member,
            lag,
            allowed: ground.promote_lag,
        });
    }
    voters.insert(member);
    let mut changes = vec![single(ConfChangeType::AddNode, member)];
    if let Some((old, disk_lost)) = replaces {
        ground.expect(old)?;
        if !voters.remove(&old) {
            return Err(ChangeError::Learner {
                what: "replace",
                member: old,
            });
        }
        if old == ground.us {
            let to = ground.heir().ok_or(ChangeError::NoHeir)?;
            return Ok(Plan::HandOverFirst(to));
        }
        ground.history(old, disk_lost)?;
        changes.push(single(ConfChangeType::RemoveNode, old));
        members.push(old);
    }
    ground.quorum(&voters)?;
    let context = context(
        request_id,
        Wire::Promote(wire::PromoteMember {
            member,
            replaces: replaces.map_or(0, |(old, _)| old),
        }),
    );
    Ok(Plan::Configure(
        configure(changes, true, context),
        Changed { members },
    ))
}

fn remove(
    member: u64,
    disk_lost: bool,
    request_id: &str,
    ground: &Ground<'_>,
) -> Result<Plan, ChangeError> {
    ground.expect(member)?;
    let mut voters = ground.voters();
    let votes = voters.remove(&member);
    if votes {
        if voters.is_empty() {
            return Err(ChangeError::LastVoter { member });
        }
        ground.quorum(&voters)?;
        if member == ground.us {
            let to = ground.heir().ok_or(ChangeError::NoHeir)?;
            return Ok(Plan::HandOverFirst(to));
        }
    }
    ground.history(member, disk_lost)?;
    let context = context(request_id, Wire::Remove(wire::RemoveMember { member }));
    let changes = vec![single(ConfChangeType::RemoveNode, member)];
    let members = vec![member];
    Ok(Plan::Configure(
        configure(changes, votes, context),
        Changed { members },
    ))
}

fn bind(member: u64, stamp: u64, address: &str) -> Plan {
    let context = context(
        "",
        Wire::Bind(wire::BindMember {
            member,
            stamp,
            address: address.to_owned(),
        }),
    );
    let members = vec![member];
    Plan::Note(context, Changed { members })
}

fn join(address: &str, stamp: u64, ground: &Ground<'_>) -> Result<Plan, ChangeError> {
    // A member that joined already may have another address by now.
    let known = ground.members.known.iter();
    let mut ours = known.filter(|(_, record)| record.stamp == stamp && stamp != 0);
    if let Some((member, _)) = ours.next() {
        let members = vec![*member];
        return Ok(Plan::Done(Changed { members }));
    }
    let Some(member) = ground.members.at(address) else {
        let address = address.to_owned();
        return Err(ChangeError::NotInvited { address });
    };
    let bound = ground.members.known.get(&member).map_or(0, |r| r.stamp);
    if bound != 0 || !ground.conf.learners.contains(&member) {
        let address = address.to_owned();
        return Err(ChangeError::AnotherDirectory { address, member });
    }
    Ok(bind(member, stamp, address))
}

fn transfer(to: Option<u64>, ground: &Ground<'_>) -> Result<Plan, ChangeError> {
    const WHAT: &str = "hand leadership to";
    let Some(member) = to else {
        return ground.heir().map(Plan::HandOver).ok_or(ChangeError::NoHeir);
    };
    if member == ground.us {
        let members = vec![member];
        return Ok(Plan::Done(Changed { members }));
    }
    ground.expect(member)?;
    if !ground.conf.voters.contains(&member) {
        return Err(ChangeError::Learner { what: WHAT, member });
    }
    if !ground.answered.contains(&member) {
        return Err(ChangeError::Silent {
            what: WHAT,
            member,
            address: ground.address(member),
        });
    }
    if let Some(offset_ms) = ground.skewed.get(&member).copied() {
        return Err(ChangeError::SkewedHeir { member, offset_ms });
    }
    Ok(Plan::HandOver(member))
}

/// What a committed entry says about the group.
///
/// # Errors
/// The bytes are not one, or one of a newer binary.
pub(crate) fn read(context: &[u8]) -> Result<wire::GroupChange, String> {
    let read = wire::GroupChange::decode(context).map_err(|error| error.to_string())?;
    match read.change {
        Some(_) => Ok(read),
        None => Err("it holds nothing that this binary knows; upgrade it".to_owned()),
    }
}

/// Whether a committed change still fits; if so, what the members are afterwards. Who leaves is
/// still among them: [`Members::keep`] takes them out once the configuration has let them go.
///
/// # Errors
/// Why all members pass over it.
pub(crate) fn judge(
    change: &wire::GroupChange,
    members: &Members,
    conf: &ConfState,
) -> Result<Members, String> {
    if !change.request_id.is_empty() && members.settled(&change.request_id).is_some() {
        return Err("it was carried out already".to_owned());
    }
    let mut after = members.clone();
    let there = |member: &u64| conf.voters.contains(member) || conf.learners.contains(member);
    let about = match &change.change {
        None | Some(Wire::Verdict(_)) => Vec::new(),
        Some(Wire::AddLearners(add)) => {
            for new in &add.members {
                if new.member < after.next {
                    return Err(format!("id {} was used before", new.member));
                }
                if after.at(&new.address).is_some() {
                    return Err(format!("{} is taken", new.address));
                }
                after.add(new.member, new.address.clone());
            }
            add.members.iter().map(|new| new.member).collect()
        }
        Some(Wire::Promote(promote)) => {
            if !there(&promote.member) {
                return Err(format!("there is no member {}", promote.member));
            }
            let mut about = vec![promote.member];
            if promote.replaces != 0 {
                if !conf.voters.contains(&promote.replaces) {
                    return Err(format!("member {} has no vote", promote.replaces));
                }
                about.push(promote.replaces);
            }
            about
        }
        Some(Wire::Remove(remove)) => {
            if !there(&remove.member) {
                return Err(format!("there is no member {}", remove.member));
            }
            if conf.voters == [remove.member] {
                return Err(format!("member {} is the last voter", remove.member));
            }
            vec![remove.member]
        }
        Some(Wire::Bind(bind)) => {
            let taken = after.at(&bind.address).filter(|who| *who != bind.member);
            let Some(record) = after.known.get_mut(&bind.member) else {
                return Err(format!("there is no member {}", bind.member));
            };
            if record.stamp != 0 && record.stamp != bind.stamp {
                return Err(format!("member {} has another data directory", bind.member));
            }
            record.stamp = bind.stamp;
            match taken {
                Some(who) => return Err(format!("{} is member {who}'s", bind.address)),
                None if !bind.address.is_empty() => record.address.clone_from(&bind.address),
                None => {}
            }
            vec![bind.member]
        }
    };
    after.settle(change.request_id.clone(), about);
    Ok(after)
}

#[cfg(test)]
mod tests;
