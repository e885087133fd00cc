//! Who belongs to the group: addresses, data directories, and every id that was ever used.
//!
//! Part of the replicated configuration. It changes only by log entries, at the same index on all
//! members, and is kept beside raft's own configuration in the log's facts and in the header of
//! each snapshot file. So a member needs to know nothing but its own identity and one peer.
//!
//! Ids are counted up and never used again: `next` is above each of them, and whoever is below it
//! and not among the members was removed.

use std::collections::{BTreeMap, VecDeque};

use prost::Message as _;
use raft::eraftpb::ConfState;

/// Operators' calls whose answers are remembered.
const MAX_SETTLED: usize = 64;
/// Longest address of a member in bytes.
pub const MAX_ADDRESS: usize = 256;

/// What the group knows of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberRecord {
    /// Where the others reach it, `host:port`. Empty only in groups made before addresses were
    /// kept.
    pub address: String,
    /// Creation stamp of its data directory; 0 until it has joined or was first heard.
    pub stamp: u64,
}

/// An operator's call that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Of the call.
    pub request_id: String,
    /// Members that it was about, in its order.
    pub members: Vec<u64>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The next id; 0 on a member that has not heard of its group yet.
    pub next: u64,
    /// Voters and learners by id.
    pub known: BTreeMap<u64, MemberRecord>,
    /// Newest calls, oldest first.
    pub settled: VecDeque<Settled>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecordWire {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(uint64, tag = "2")]
    stamp: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SettledWire {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(uint64, repeated, tag = "2")]
    members: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MembersWire {
    #[prost(uint64, tag = "1")]
    next: u64,
    #[prost(btree_map = "uint64, message", tag = "2")]
    known: BTreeMap<u64, RecordWire>,
    #[prost(message, repeated, tag = "3")]
    settled: Vec<SettledWire>,
}

impl Members {
    /// The members that a group begins with.
    #[must_use]
    pub fn founders(addresses: &BTreeMap<u64, String>) -> Self {
        let known = addresses.iter().map(|(id, address)| {
            let record = MemberRecord {
                address: address.clone(),
                stamp: 0,
            };
            (*id, record)
        });
        Members {
            next: addresses.keys().next_back().map_or(0, |last| last + 1),
            known: known.collect(),
            settled: VecDeque::new(),
        }
    }

    /// The voters of a configuration that came without members: one that was restored, or written
    /// before addresses were kept. Where they are is not known.
    #[must_use]
    pub fn of_voters(voters: impl IntoIterator<Item = u64>) -> Self {
        let nowhere = |id| (id, String::new());
        Members::founders(&voters.into_iter().map(nowhere).collect())
    }

    /// Takes the addresses that are not known from a list. Says whether anything changed.
    pub fn place(&mut self, addresses: &BTreeMap<u64, String>) -> bool {
        let mut placed = false;
        for (id, record) in &mut self.known {
            if let Some(address) = addresses.get(id)
                && record.address.is_empty()
            {
                record.address.clone_from(address);
                placed = true;
            }
        }
        placed
    }

    /// What is left when one survivor goes on alone: all other ids are retired.
    #[must_use]
    pub fn survivor(&self, member: u64) -> Self {
        let record = self.known.get(&member).cloned().unwrap_or_default();
        Members {
            next: self.next.max(member + 1),
            known: BTreeMap::from([(member, record)]),
            settled: VecDeque::new(),
        }
    }

    /// Whether this id was used and its member is gone.
    #[must_use]
    pub fn retired(&self, member: u64) -> bool {
        member < self.next && !self.known.contains_key(&member)
    }

    /// Who is reached there.
    #[must_use]
    pub fn at(&self, address: &str) -> Option<u64> {
        let found = self.known.iter().find(|(_, r)| r.address == address);
        found.map(|(id, _)| *id)
    }

    /// The answer to a call that was carried out already.
    #[must_use]
    pub fn settled(&self, request_id: &str) -> Option<&Settled> {
        self.settled
            .iter()
            .rev()
            .find(|settled| settled.request_id == request_id)
    }

    /// Addresses by id.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<u64, String> {
        let known = self.known.iter().filter(|(_, r)| !r.address.is_empty());
        known.map(|(id, r)| (*id, r.address.clone())).collect()
    }

    /// A member that was not there before. The id must be new.
    pub fn add(&mut self, member: u64, address: String) {
        assert!(member >= self.next, "member id {member} was used before");
        self.next = member + 1;
        self.known
            .insert(member, MemberRecord { address, stamp: 0 });
    }

    /// Takes everybody out for good who is in no part of the configuration. While voters change,
    /// those of before still are: their votes count, so they must be reached.
    pub fn keep(&mut self, conf: &ConfState) {
        self.known.retain(|member, _| {
            conf.voters.contains(member)
                || conf.learners.contains(member)
                || conf.voters_outgoing.contains(member)
                || conf.learners_next.contains(member)
        });
    }

    /// Remembers a call's answer.
    pub fn settle(&mut self, request_id: String, members: Vec<u64>) {
        if request_id.is_empty() {
            return;
        }
        self.settled.push_back(Settled {
            request_id,
            members,
        });
        while self.settled.len() > MAX_SETTLED {
            self.settled.pop_front();
        }
    }

    /// Bytes for the log's facts and for a snapshot's header.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let known = self.known.iter().map(|(id, record)| {
            let wire = RecordWire {
                address: record.address.clone(),
                stamp: record.stamp,
            };
            (*id, wire)
        });
        let settled = self.settled.iter().map(|settled| SettledWire {
            request_id: settled.request_id.clone(),
            members: settled.members.clone(),
        });
        MembersWire {
            next: self.next,
            known: known.collect(),
            settled: settled.collect(),
        }
        .encode_to_vec()
    }

    /// Reads what [`Members::encode`] wrote.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let wire = MembersWire::decode(bytes)
            .map_err(|error| format!("its list of members cannot be read ({error})"))?;
        let known = wire.known.into_iter().map(|(id, record)| {
            let record = MemberRecord {
                address: record.address,
                stamp: record.stamp,
            };
            (id, record)
        });
        let settled = wire.settled.into_iter().map(|settled| Settled {
            request_id: settled.request_id,
            members: settled.members,
        });
        Ok(Members {
            next: wire.next,
            known: known.collect(),
            settled: settled.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_retired_for_good_and_survives_encoding() {
        let founders = BTreeMap::from([(1, "a:1".to_owned()), (3, "c:1".to_owned())]);
        let mut members = Members::founders(&founders);
        assert_eq!((members.next, members.retired(2)), (4, true));
        members.add(4, "d:1".to_owned());
        let mut conf = ConfState {
            voters: vec![1, 4],
            voters_outgoing: vec![1, 3],
            ..ConfState::default()
        };
        members.keep(&conf);
        assert!(
            !members.retired(3),
            "its vote counts until the change is over"
        );
        conf.voters_outgoing.clear();
        members.keep(&conf);
        members.settle("call".to_owned(), vec![4]);
        let read = Members::decode(&members.encode()).unwrap();
        assert_eq!(read, members);
        assert!(read.retired(3) && !read.retired(4) && !read.retired(5));
        assert_eq!(read.at("d:1"), Some(4));
        assert_eq!(read.settled("call").unwrap().members, [4]);
    }

    #[test]
    fn a_survivor_keeps_its_address_and_retires_everybody_else() {
        let addresses = [(1, "a:1"), (2, "b:1"), (3, "c:1")].map(|(id, at)| (id, at.to_owned()));
        let members = Members::founders(&BTreeMap::from(addresses)).survivor(2);
        assert_eq!((members.next, members.at("b:1")), (4, Some(2)));
        assert!(members.retired(1) && members.retired(3) && !members.retired(2));
        // Where nothing was known of members at all.
        assert_eq!(Members::default().survivor(2).next, 3);
    }

    #[test]
    fn voters_without_addresses_get_them_from_the_list_and_keep_those_they_have() {
        let list = [(1, "a:1"), (2, "b:1"), (9, "z:1")].map(|(id, at)| (id, at.to_owned()));
        let mut members = Members::of_voters([1, 2]);
        assert!(members.place(&BTreeMap::from(list)));
        assert_eq!((members.next, members.at("a:1")), (3, Some(1)));
        assert_eq!(
            members.at("z:1"),
            None,
            "it has no part in the configuration"
        );
        assert!(!members.place(&BTreeMap::from([(1, "other:1".to_owned())])));
        assert_eq!(members.at("a:1"), Some(1));
    }

    #[test]
    #[should_panic(expected = "member id 1 was used before")]
    fn an_id_cannot_be_used_twice() {
        let mut members = Members::founders(&BTreeMap::from([(1, String::new())]));
        members.add(1, String::new());
    }

    #[test]
    fn only_the_newest_answers_are_remembered() {
        let mut members = Members::default();
        for number in 0..MAX_SETTLED + 1 {
            members.settle(format!("call-{number}"), Vec::new());
        }
        assert!(members.settled("call-0").is_none());
        assert!(members.settled("call-1").is_some());
        assert_eq!(members.settled.len(), MAX_SETTLED);
    }
}
