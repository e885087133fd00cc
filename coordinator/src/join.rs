//! Who this process is to be in the group: a founder, a member from before, or one that joins.

use std::path::Path;

use oast_daemon::clock::SharedClock;
use oast_daemon::random;
use oast_proto::peer::v1::JoinRequest;

use crate::config::CoordinatorConfig;
use crate::consensus::open::Membership;
use crate::consensus::transport::grpc::{self, JoinError, LinkOptions};
use crate::store::disk::{self, DiskError};
use crate::store::identity::{Identity, IdentityError};

/// Holds the creation stamp of a directory that has no identity yet. It is made durable before the
/// group is asked, so that a crash in between asks for the same id again.
const STAMP: &str = "joining";

/// It cannot be told who we are.
#[derive(Debug, thiserror::Error)]
pub enum WhoError {
    /// The identity file.
    #[error(transparent)]
    Identity(IdentityError),
    /// The data folder.
    #[error("prepare the data directory")]
    Disk(#[source] DiskError),
    /// The group does not take us.
    #[error(transparent)]
    Join(JoinError),
}

/// Where the others are to reach us.
pub fn own_address(config: &CoordinatorConfig) -> String {
    let listed = config.peers.get(&config.member.to_string()).cloned();
    config.advertise.clone().or(listed).unwrap_or_else(|| {
        let farm = config.tls.as_ref().map(|tls| tls.listen);
        farm.unwrap_or(config.listen).to_string()
    })
}

/// Who we are; asks the group if it has to.
///
/// # Errors
/// [`WhoError`], each saying what to do.
pub async fn membership(
    config: &CoordinatorConfig,
    options: &LinkOptions,
    clock: &SharedClock,
) -> Result<Membership, WhoError> {
    let address = own_address(config);
    let founder = Membership {
        cluster: config.farm.clone(),
        member: config.member,
        initial: config.peers_by_id(),
        address: address.clone(),
        stamp: None,
    };
    if config.join.is_empty() {
        return Ok(founder);
    }
    let directory = &config.data_dir;
    if let Some(identity) = Identity::read(directory).map_err(WhoError::Identity)? {
        return Ok(Membership {
            member: identity.member,
            ..founder
        });
    }
    let stamp = stamp(directory).map_err(WhoError::Disk)?;
    tracing::info!(address, farm = %config.farm, "Asks the group which member to be.");
    let request = JoinRequest {
        cluster_id: config.farm.clone(),
        address,
        stamp,
    };
    let seat = grpc::join(&config.join, request, options, clock)
        .await
        .map_err(WhoError::Join)?;
    tracing::info!(member = seat.member, cluster = %seat.cluster, "Joins the group as a learner.");
    Ok(Membership {
        member: seat.member,
        cluster: seat.cluster,
        stamp: Some(stamp),
        ..founder
    })
}

fn stamp(directory: &Path) -> Result<u64, DiskError> {
    let path = directory.join(STAMP);
    let kept = disk::read_text(&path)?;
    // One that is torn was never shown to anybody.
    let kept = kept.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    if let Some(stamp) = kept.filter(|stamp| *stamp != 0) {
        return Ok(stamp);
    }
    let stamp = random::number().max(1);
    disk::replace(&path, format!("{stamp:016x}\n").as_bytes())?;
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_asks_with_the_same_stamp_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let first = stamp(directory.path()).unwrap();
        assert_ne!(first, 0);
        assert_eq!(stamp(directory.path()).unwrap(), first);
        // Torn by a crash while it was written, so nobody has seen it.
        std::fs::write(directory.path().join(STAMP), "zz").unwrap();
        assert_ne!(stamp(directory.path()).unwrap(), 0);
    }
}
