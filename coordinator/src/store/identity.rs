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
    /// Farm that the member belongs to.
    pub cluster: String,
    /// Raft id, never 0.
    pub member: u64,
    /// Made once per directory.
    pub stamp: u64,
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

    /// Refuses a directory of another member or farm.
    ///
    /// # Errors
    /// [`IdentityError::Foreign`].
    pub fn expect(
        &self,
        directory: &Path,
        cluster: &str,
        member: u64,
    ) -> Result<(), IdentityError> {
        if self.cluster == cluster && self.member == member {
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
