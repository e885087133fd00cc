//! Members whose disks have too little room.

use std::time::Duration;

use oast_daemon::clock::{Clock as _, SystemClock, timeout};
use oast_model::ledger::Request;
use oast_model::principal::Principal;

use super::{Group, PATIENCE, submit};
use crate::consensus::replica::{ProposeError, Status};
use crate::operations::space::heir;
use crate::store::space::{Gauge, Space};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

impl Group {
    /// A gauge in our hand for each member.
    fn gauges(&self) -> Vec<(u64, Gauge)> {
        let gauge = |member: &u64| {
            let gauge = Gauge::default();
            self.handle(*member).watch_space(gauge.clone());
            (*member, gauge)
        };
        self.members.keys().map(gauge).collect()
    }

    /// Looks again and again: what peers say about themselves changes no status.
    async fn until(&self, member: u64, there: impl Fn(&Status) -> bool) {
        let status = self.handle(member).status();
        let looks = async {
            while !there(&status.borrow()) {
                SystemClock.sleep(LOOK).await;
            }
        };
        let reached = timeout(&SystemClock, PATIENCE, looks).await;
        assert!(reached.is_ok(), "{:?}", status.borrow());
    }
}

/// The farm goes on without a follower whose disk is full, and the follower catches up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_follower_takes_nothing_and_catches_up_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    group.agree().await;
    let gauges = group.gauges();
    let leader = group.leader().await;
    let (full, gauge) = gauges.iter().find(|(member, _)| *member != leader).unwrap();
    gauge.set(Space::Full);
    let had = group.handle(*full).status().borrow().last;
    // More than the log keeps: it comes back by a snapshot.
    group.runs(50).await;
    let status = group.handle(*full).status().borrow().clone();
    // What was on its way when the disk became full may have been taken.
    assert!(status.last <= had + 2, "{had}: {status:?}");
    gauge.set(Space::Room);
    group.agree().await;
}

/// A leader with too little room takes no writes, says so, and knows who can take over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_too_little_room_refuses_writes_and_hands_over_to_one_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    group.agree().await;
    let gauges = group.gauges();
    let leader = group.leader().await;
    let others: Vec<_> = gauges
        .iter()
        .filter(|(member, _)| *member != leader)
        .collect();
    let low = |member: u64| gauges.iter().find(|(id, _)| *id == member).unwrap();
    low(leader).1.set(Space::Low);
    others[0].1.set(Space::Low);
    let request = Request {
        principal: Principal::farm(),
        request_id: None,
        command: submit(),
    };
    let handle = group.handle(leader);
    let before = handle.status().borrow().last;
    let refused = handle.propose(&request).await;
    assert!(matches!(refused, Err(ProposeError::NoSpace)), "{refused:?}");
    assert_eq!(handle.status().borrow().last, before);
    handle.read_barrier().await.unwrap();

    // It hears of the others' room in their next letters.
    let with_room = others[1].0;
    let seen = |status: &Status| heir(status, |member| handle.has_room(member)) == Some(with_room);
    group
        .until(leader, |status| {
            seen(status) && !handle.has_room(others[0].0)
        })
        .await;
    handle.transfer_leadership(with_room);
    group
        .until(leader, |status| status.leader == Some(with_room))
        .await;
    // Members with little room still follow.
    group.runs(3).await;
    group.agree().await;
}
