//! Which farm, which member and which incarnation a data directory belongs to.
//!
//! A member that lost its disk has also lost its vote and what it acknowledged. If it came back
//! under its old id the group could elect a leader without an entry that was acknowledged. So each
//! directory gets a random *stamp* when it is made, members tell each other their stamps, and a
//! known id under another stamp is refused (see `consensus::roster`).

use std::path::Path;

use super::disk::{self, DiskError};

/// Name of the file inside the data directory.
const FILE: &str = "identity";
/// First line of the file.
const FORMAT: &str = "oast-member 1";

/// Identity of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster that the member belongs to: the farm's name, and after a restore or a forced
    /// recovery what [`ClusterId`] adds to it.
    pub cluster: String,
    /// Raft id, never 0.
    pub member: u64,
    /// Made once per directory.
    pub stamp: u64,
}

/// Id of a cluster that was restored or recovered by force: members of what the farm was before
/// are refused by it, and refuse it.
///
/// Written as `farm.epoch.nonce`; the first cluster of a farm has the farm's name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterId {
    /// The farm's name, which has no dots.
    pub farm: String,
    /// The epoch that its numbers begin with.
    pub epoch: u64,
    /// Tells two restores of the same second apart.
    pub nonce: u32,
}

/// A text that is no id of a restored cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no cluster id; one looks like demo.28123456.9f3a11c2")]
pub struct ParseClusterIdError(String);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{:08x}", self.farm, self.epoch, self.nonce)
    }
}

impl std::str::FromStr for ClusterId {
    type Err = ParseClusterIdError;

    fn from_str(text: &str) -> Result<Self, ParseClusterIdError> {
        let mut parts = text.split('.');
        let (farm, epoch, nonce) = (parts.next(), parts.next(), parts.next());
        let parsed = || {
            Some(ClusterId {
                farm: farm.filter(|farm| !farm.is_empty())?.to_owned(),
                epoch: epoch?.parse().ok()?,
                nonce: u32::from_str_radix(nonce?, 16).ok()?,
            })
        };
        parsed()
            .filter(|id| parts.next().is_none() && id.to_string() == text)
            .ok_or_else(|| ParseClusterIdError(text.to_owned()))
    }
}

/// The farm that a cluster belongs to.
#[must_use]
pub fn farm_of(cluster: &str) -> &str {
    cluster.split('.').next().unwrap_or(cluster)
}

/// Failed to establish the identity of a data directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("use the member's identity file")]
    Disk(#[source] DiskError),
    /// The file is not ours or was edited.
    #[error(
        "read {place}: {problem}; restore the file, or remove this member and add it again under a new id"
    )]
    Damaged {
        /// Path.
        place: String,
        /// What does not fit.
        problem: String,
    },
    /// The directory belongs to somebody else.
    #[error(
        "use {place} for member {wanted_member} of farm {wanted_cluster}: it belongs to member {found_member} of farm {found_cluster}; give each member its own data directory"
    )]
    Foreign {
        /// Path.
        place: String,
        /// Configured member.
        wanted_member: u64,
        /// Configured farm.
        wanted_cluster: String,
        /// Member in the file.
        found_member: u64,
        /// Farm in the file.
        found_cluster: String,
    },
}

impl Identity {
    /// Reads the identity in `directory`.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] or [`IdentityError::Disk`].
    pub fn read(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let path = directory.join(FILE);
        let Some(text) = disk::read_text(&path).map_err(IdentityError::Disk)? else {
            return Ok(None);
        };
        let damaged = |problem: &str| IdentityError::Damaged {
            place: path.display().to_string(),
            problem: problem.to_owned(),
        };
        let mut lines = text.lines();
        if lines.next() != Some(FORMAT) {
            return Err(damaged("it does not start with the expected line"));
        }
        let mut field = |name: &str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .ok_or_else(|| damaged(&format!("the line `{name}` is missing")))
        };
        let cluster = field("cluster")?;
        let member = field("member")?;
        let stamp = field("stamp")?;
        Ok(Some(Identity {
            cluster,
            member: member
                .parse()
                .map_err(|_| damaged("the member id is not a number"))?,
            stamp: u64::from_str_radix(&stamp, 16)
                .map_err(|_| damaged("the stamp is not hexadecimal"))?,
        }))
    }

    /// Writes the identity durably into `directory`.
    ///
    /// # Errors
    /// [`IdentityError::Disk`].
    pub fn write(&self, directory: &Path) -> Result<(), IdentityError> {
        let text = format!(
            "{FORMAT}\ncluster {}\nmember {}\nstamp {:016x}\n",
            self.cluster, self.member, self.stamp
        );
        disk::replace(&directory.join(FILE), text.as_bytes()).map_err(IdentityError::Disk)
    }

    /// Refuses a directory of another member or farm. A bare farm name stands for whichever
    /// cluster of that farm the directory belongs to.
    ///
    /// # Errors
    /// [`IdentityError::Foreign`].
    pub fn expect(
        &self,
        directory: &Path,
        cluster: &str,
        member: u64,
    ) -> Result<(), IdentityError> {
        let ours = self.cluster == cluster || farm_of(&self.cluster) == cluster;
        if ours && self.member == member {
            return Ok(());
        }
        Err(IdentityError::Foreign {
            place: directory.display().to_string(),
            wanted_member: member,
            wanted_cluster: cluster.to_owned(),
            found_member: self.member,
            found_cluster: self.cluster.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_a_restored_cluster_belongs_to_its_farm() {
        let id: ClusterId = "demo.28123456.0f3a11c2".parse().unwrap();
        assert_eq!((id.epoch, id.nonce), (28_123_456, 0x0f3a_11c2));
        assert_eq!(id.to_string(), "demo.28123456.0f3a11c2");
        let identity = Identity {
            cluster: id.to_string(),
            member: 1,
            stamp: 7,
        };
        let place = Path::new("/d");
        for good in ["demo", "demo.28123456.0f3a11c2"] {
            identity.expect(place, good, 1).unwrap();
        }
        for bad in ["dem", "other", "demo.28123456.0f3a11c3"] {
            assert!(identity.expect(place, bad, 1).is_err(), "{bad}");
        }
        assert!(identity.expect(place, "demo", 2).is_err());
        for bad in [
            "demo",
            "demo.1",
            "demo.x.1",
            "demo.1.2",
            ".1.0f3a11c2",
            "demo.1.0f3a11c2.x",
        ] {
            assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
        }
    }
}
