//! The cluster version: who supports what, when it rises, and what may be proposed before.
//!
//! Members say in every letter to a peer what they support. The leader raises the version to what
//! *every* member supports, voter or not, once it has heard each of them in this life of its
//! process; a member that is away keeps it where it is. An operator may hold it, because there is
//! no way back (`oast operator version`).

use std::collections::BTreeMap;

use oast_model::ledger::{Command, Ledger, VERSION};
use tokio_util::sync::CancellationToken;

use crate::consensus::replica::Status;
use crate::farm::Farm;

/// How often the leader looks whether the version can rise.
const LOOK: std::time::Duration = std::time::Duration::from_millis(200);

/// What each member of the present configuration supports, as far as it was heard of here.
pub fn members(farm: &Farm) -> BTreeMap<u64, Option<u32>> {
    let status = farm.status().borrow().clone();
    known(&status, &farm.handle().supported_versions())
}

fn known(status: &Status, heard: &BTreeMap<u64, u32>) -> BTreeMap<u64, Option<u32>> {
    let members = status.voters.iter().chain(&status.learners);
    members
        .map(|member| (*member, heard.get(member).copied()))
        .collect()
}

/// The version that all of them support; 0 while one was not heard of.
pub fn reachable(members: &BTreeMap<u64, Option<u32>>) -> u32 {
    let lowest = members.values().map(|supported| supported.unwrap_or(0));
    lowest.min().unwrap_or(0)
}

/// Why a command may not be proposed yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this needs cluster version {needed}, the farm is at {present}: upgrade every member, then see `oast operator version show`"
)]
pub struct TooNew {
    /// Version that the command belongs to.
    pub needed: u32,
    /// Version in force.
    pub present: u32,
}

/// Whether the members that may have to apply it all understand the command. Before the first
/// version was decided, nobody is known to be older than the versions that were `heard` of.
///
/// Workers' reports and streamed submissions are not asked about: their kinds are of version 1.
///
/// # Errors
/// [`TooNew`].
pub fn check(
    ledger: &Ledger,
    heard: impl Fn() -> BTreeMap<u64, u32>,
    command: &Command,
) -> Result<(), TooNew> {
    let needed = command.since();
    if needed <= 1 {
        return Ok(());
    }
    let present = match ledger.farm().version {
        0 => heard().values().copied().min().unwrap_or(VERSION),
        decided => decided,
    };
    if needed <= present {
        return Ok(());
    }
    Err(TooNew { needed, present })
}

/// Keeps the member's side of the bargain: raises the version when it leads, and stops when the
/// farm has gone beyond what it supports.
pub async fn run(farm: Farm, supported: u32, stop: CancellationToken) {
    let clock = farm.clock().clone();
    loop {
        let view = farm.view();
        let version = view.farm().version;
        if version > supported {
            farm.handle().halt(outgrown(version, supported));
            return;
        }
        if farm.leading().is_some() && !view.farm().name.is_empty() && !view.farm().version_held {
            let to = reachable(&members(&farm)).min(supported);
            if to > version {
                match farm.lead(Command::RaiseVersion { to }).await {
                    Ok(_) => tracing::info!(version = to, "The cluster version rises."),
                    Err(error) => tracing::debug!(%error, "The cluster version did not rise yet."),
                }
            }
        }
        drop(view);
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(LOOK) => {}
        }
    }
}

/// What a member says that was left behind.
pub fn outgrown(version: u32, supported: u32) -> String {
    format!(
        "the farm has cluster version {version}, this member supports up to {supported}: start it with a newer binary"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_what_the_oldest_member_supports_and_nobody_is_guessed() {
        let status = Status {
            voters: vec![1, 2],
            learners: vec![3],
            ..Status::default()
        };
        let mut heard = BTreeMap::from([(1, 3), (2, 2), (9, 1)]);
        assert_eq!(reachable(&known(&status, &heard)), 0, "3 was not heard of");
        heard.insert(3, 4);
        assert_eq!(reachable(&known(&status, &heard)), 2, "9 is no member");
    }
}
