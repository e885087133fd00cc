//! Who may talk to this member.
//!
//! Members tell each other the creation stamps of their data directories. A member whose id is
//! known under another stamp lost its disk: it would vote again and forget what it acknowledged, so
//! it is refused. Stamps spread with every batch, so that one member that met another is enough for
//! the rest to know. What is learned is stored beside the log before it counts.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::store::identity::Identity;
use crate::store::members::Members;

/// Stamps that a member takes before it knows its group.
const MAX_TOLD: usize = 256;
use crate::store::space::{Gauge, Space};

/// The covering letter of a batch of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letterhead {
    /// Farm.
    pub cluster: String,
    /// Sender's raft id.
    pub from: u64,
    /// Sender's creation stamp.
    pub stamp: u64,
    /// Receiver's raft id.
    pub to: u64,
    /// Stamps that the sender knows, the receiver's among them if they have met.
    pub known: BTreeMap<u64, u64>,
    /// Where the sender wants to be reached; empty: as the group knows it.
    pub address: String,
    /// Highest cluster version that the sender supports.
    pub supported_version: u32,
    /// The sender has too little room on its disk to lead.
    pub low_on_space: bool,
}

/// Why a batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// Another farm.
    #[error(
        "accept member {from}: it belongs to farm {found}, this is farm {ours}; check the members' addresses"
    )]
    Cluster {
        /// Sender.
        from: u64,
        /// Its farm.
        found: String,
        /// Ours.
        ours: String,
    },
    /// Sent to another member.
    #[error(
        "accept a batch of member {from}: it is for member {to}, this is member {ours}; check the members' addresses"
    )]
    Address {
        /// Sender.
        from: u64,
        /// Receiver in the letterhead.
        to: u64,
        /// Us.
        ours: u64,
    },
    /// The sender lost its disk.
    #[error(
        "accept member {from}: its data directory is not the one this farm knows. It must not come back under its old id; remove it and add it again under a new one"
    )]
    Remade {
        /// Sender.
        from: u64,
    },
    /// The sender is no member any more.
    #[error("accept member {from}: it was removed from the group")]
    Removed {
        /// Sender.
        from: u64,
    },
    /// The sender knows us under another stamp: we lost our disk.
    #[error(
        "go on as member {ours}: this data directory was made anew, but the farm knows an older one. Restore it, or remove this member and add it again under a new id"
    )]
    WeAreRemade {
        /// Us.
        ours: u64,
    },
}

impl Stranger {
    /// A word for the wire, by which the sender tells what to do.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Stranger::Cluster { .. } => "cluster",
            Stranger::Address { .. } => "address",
            Stranger::Remade { .. } => "remade",
            Stranger::Removed { .. } => "removed",
            Stranger::WeAreRemade { .. } => "unsure",
        }
    }
}

/// What a letterhead that is accepted says beside its batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Stamps that were not known here.
    pub stamps: BTreeMap<u64, u64>,
    /// The group does not know the sender, its stamp, or its address.
    pub introduce: bool,
}

/// Known members.
#[derive(Debug)]
pub struct Roster {
    identity: Identity,
    /// Where we want to be reached.
    address: String,
    known: Mutex<BTreeMap<u64, u64>>,
    members: Mutex<Members>,
    supported_version: u32,
    space: OnceLock<Gauge>,
    /// What each peer said last in this life of our process.
    said: Mutex<BTreeMap<u64, Said>>,
}

/// What a member says about itself in every letter.
#[derive(Clone, Copy, Debug)]
struct Said {
    supported_version: u32,
    low_on_space: bool,
}

impl Roster {
    /// Starts from what is stored beside the log.
    #[must_use]
    pub fn new(
        identity: Identity,
        known: BTreeMap<u64, u64>,
        address: String,
        supported_version: u32,
    ) -> Self {
        let ours = Said {
            supported_version,
            low_on_space: false,
        };
        let said = BTreeMap::from([(identity.member, ours)]);
        Roster {
            identity,
            address,
            known: Mutex::new(known),
            members: Mutex::default(),
            supported_version,
            space: OnceLock::new(),
            said: Mutex::new(said),
        }
    }

    /// What the group knows of its members changed.
    pub fn set_members(&self, members: Members) {
        *self.members() = members;
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<u64, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest cluster version that each member supports, as it said last; members that were
    /// not heard of since we started are absent.
    #[must_use]
    pub fn supported(&self) -> BTreeMap<u64, u32> {
        let said = self.said();
        said.iter()
            .map(|(member, said)| (*member, said.supported_version))
            .collect()
    }

    /// Whether this peer said last that it has room on its disk.
    #[must_use]
    pub fn has_room(&self, member: u64) -> bool {
        self.said()
            .get(&member)
            .is_some_and(|said| !said.low_on_space)
    }

    /// From now on our letters say what this gauge shows.
    pub(crate) fn watch_space(&self, gauge: Gauge) {
        // One gauge for the life of the process.
        let _ = self.space.set(gauge);
    }

    /// How much room we have ourselves.
    pub(crate) fn space(&self) -> Space {
        self.space.get().map(Gauge::space).unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our own identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The letterhead for a batch to `to`.
    #[must_use]
    pub fn letterhead(&self, to: u64) -> Letterhead {
        let members = self.members();
        let bound = members.known.iter().filter(|(_, r)| r.stamp != 0);
        let bound: BTreeMap<u64, u64> = bound.map(|(id, r)| (*id, r.stamp)).collect();
        drop(members);
        let mut known = self.known().clone();
        known.extend(bound);
        Letterhead {
            cluster: self.identity.cluster.clone(),
            from: self.identity.member,
            stamp: self.identity.stamp,
            to,
            known,
            address: self.address.clone(),
            supported_version: self.supported_version,
            low_on_space: self.space() != Space::Room,
        }
    }

    /// Checks a batch's letterhead and returns what is new to us. Stamps count only after
    /// [`Roster::learn`], which the driver calls when they are stored.
    ///
    /// # Errors
    /// [`Stranger`].
    pub fn admit(&self, letter: &Letterhead) -> Result<News, Stranger> {
        let us = &self.identity;
        if letter.cluster != us.cluster {
            return Err(Stranger::Cluster {
                from: letter.from,
                found: letter.cluster.clone(),
                ours: us.cluster.clone(),
            });
        }
        if letter.to != us.member {
            return Err(Stranger::Address {
                from: letter.from,
                to: letter.to,
                ours: us.member,
            });
        }
        if letter
            .known
            .get(&us.member)
            .is_some_and(|stamp| *stamp != us.stamp)
        {
            return Err(Stranger::WeAreRemade { ours: us.member });
        }
        let members = self.members();
        // One that we have not heard of yet is no stranger: we may be behind.
        if members.retired(letter.from) {
            return Err(Stranger::Removed { from: letter.from });
        }
        let known = self.known();
        let bound = members.known.get(&letter.from);
        let stamp = bound.map(|record| record.stamp).filter(|stamp| *stamp != 0);
        if stamp
            .or_else(|| known.get(&letter.from).copied())
            .is_some_and(|stamp| stamp != letter.stamp)
        {
            return Err(Stranger::Remade { from: letter.from });
        }
        let said = Said {
            supported_version: letter.supported_version,
            low_on_space: letter.low_on_space,
        };
        if letter.from != us.member {
            self.said().insert(letter.from, said);
        }
        let speaks = !letter.address.is_empty();
        let introduce = match bound {
            Some(record) => record.stamp == 0 || speaks && letter.address != record.address,
            None => speaks,
        };
        let told = letter.known.iter().chain([(&letter.from, &letter.stamp)]);
        // One that joins knows nobody yet and takes what it is told, but not without end.
        let sensible = |member: u64| match members.next {
            0 => known.len() + letter.known.len() <= MAX_TOLD,
            next => member < next || member == letter.from,
        };
        let stamps = told
            .filter(|(member, _)| **member != us.member && !known.contains_key(*member))
            .filter(|(member, _)| sensible(**member))
            .map(|(member, stamp)| (*member, *stamp))
            .collect();
        Ok(News { stamps, introduce })
    }

    /// Takes over stamps that are stored now.
    pub fn learn(&self, stamps: &BTreeMap<u64, u64>) {
        let mut known = self.known();
        for (member, stamp) in stamps {
            known.entry(*member).or_insert(*stamp);
        }
    }
}
