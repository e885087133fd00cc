//! Followers that are too far behind, and the history that snapshots leave out.

use super::group::{Group, options};
use super::toy::Command;
use crate::consensus::options::Options;

fn eager() -> Options {
    Options {
        snapshot_entries: 40,
        trailing_entries: 5,
        max_entry_commands: 1,
        ..options()
    }
}

fn lose_state(group: &Group, member: u64) {
    for entry in std::fs::read_dir(group.path(member)).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("state-") {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_far_behind_gets_a_snapshot_and_the_history() {
    let mut group = Group::of_three(21, eager());
    group
        .must_apply(Command::Append { list: 1, value: 0 })
        .await;
    group.must_apply(Command::Close { list: 1 }).await;
    let leader = group.leader().await;
    let behind = leader % 3 + 1;
    group.stop(behind);
    for value in 0..200 {
        group
            .must_apply(Command::Append {
                list: (value % 7) as u8,
                value,
            })
            .await;
        if value % 10 == 0 {
            group
                .must_apply(Command::Close {
                    list: (value % 7) as u8,
                })
                .await;
        }
    }
    group
        .wait(leader, "the log is not compacted", |status| {
            status.first > 100
        })
        .await;
    group.start(behind);
    group.converge().await;
    let status = group
        .wait(behind, "history is missing", |s| s.history_missing == 0)
        .await;
    assert!(status.first > 100, "it came by a snapshot: {status:?}");
    let history = |member| group.handle(member).history().read(1, usize::MAX).unwrap();
    assert_eq!(history(behind), history(leader));
    assert!(history(behind).len() >= 21);

    // The installed state survives a restart.
    group.stop(behind);
    group.start(behind);
    group.converge().await;
    assert_eq!(
        group
            .handle(behind)
            .history()
            .read(1, usize::MAX)
            .unwrap()
            .len(),
        group
            .handle(leader)
            .history()
            .read(1, usize::MAX)
            .unwrap()
            .len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_state_rebuilds_it_from_snapshot_log_and_peers() {
    let mut group = Group::of_three(22, eager());
    for value in 0..120 {
        group
            .must_apply(Command::Append {
                list: (value % 5) as u8,
                value,
            })
            .await;
        if value % 20 == 0 {
            group
                .must_apply(Command::Close {
                    list: (value % 5) as u8,
                })
                .await;
        }
    }
    let leader = group.leader().await;
    let victim = leader % 3 + 1;
    group
        .wait(victim, "no snapshot", |status| status.first > 40)
        .await;
    group.stop(victim);
    lose_state(&group, victim);
    group.start(victim);
    group.converge().await;
    group
        .wait(victim, "history is missing", |status| {
            status.history_missing == 0
        })
        .await;
    assert_eq!(
        group.handle(victim).history().read(1, usize::MAX).unwrap(),
        group.handle(leader).history().read(1, usize::MAX).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_all_lost_their_history_get_it_from_a_learner() {
    let mut group = Group::of_three(23, eager());
    let learner = group.grow().await;
    for value in 0..120 {
        group.must_apply(Command::Append { list: 1, value }).await;
        if value % 20 == 0 {
            group.must_apply(Command::Close { list: 1 }).await;
        }
    }
    group.converge().await;
    for member in [1, 2, 3, learner] {
        group
            .wait(member, "no snapshot, or history is missing", |status| {
                status.snapshot > 40 && status.history_missing == 0
            })
            .await;
    }
    for voter in 1..=3 {
        group.stop(voter);
        lose_state(&group, voter);
    }
    for voter in 1..=3 {
        group.start(voter);
    }
    group.converge().await;
    let history = |member| group.handle(member).history().read(1, usize::MAX).unwrap();
    for voter in 1..=3 {
        group
            .wait(voter, "history is missing", |status| {
                status.history_missing == 0
            })
            .await;
        assert_eq!(history(voter), history(learner));
    }
    assert!(history(learner).len() >= 6);
}
