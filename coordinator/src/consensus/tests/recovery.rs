//! Damaged, foreign and impossible data directories.

use super::group::{Group, copy_tree, options};
use super::toy::Command;
use crate::consensus::open::OpenError;
use crate::consensus::options::Options;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_command_stops_the_member_loudly() {
    let group = Group::of_three(31, options());
    let leader = group.leader().await;
    let _ = group.handle(leader).propose(&Command::FromTheFuture).await;
    group
        .wait(leader, "it goes on", |status| status.stopped.is_some())
        .await;
    let halted = group.halted.lock().unwrap().clone();
    assert!(
        halted
            .iter()
            .any(|(_, reason)| reason.contains("kind 77") && reason.contains("upgrade")),
        "{halted:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_member_is_refused_under_its_old_id() {
    let mut group = Group::of_three(32, options());
    group
        .must_apply(Command::Append { list: 1, value: 1 })
        .await;
    group.converge().await;
    let leader = group.leader().await;
    let wiped = leader % 3 + 1;
    group.stop(wiped);
    std::fs::remove_dir_all(group.path(wiped)).unwrap();
    group.start(wiped);
    group
        .wait(wiped, "it takes part", |status| status.stopped.is_some())
        .await;
    let halted = group.halted.lock().unwrap().clone();
    assert!(
        halted.iter().all(|(member, _)| *member == wiped),
        "{halted:?}"
    );
    assert!(
        halted[0].1.contains("add it again under a new id"),
        "{halted:?}"
    );
    group.halted.lock().unwrap().clear();
    group.stop(wiped);
    group
        .must_apply(Command::Append { list: 1, value: 2 })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_log_is_refused_at_start() {
    let mut group = Group::of_three(33, options());
    group
        .must_apply(Command::Append { list: 1, value: 1 })
        .await;
    group.stop(2);
    std::fs::remove_dir_all(group.path(2).join("raft")).unwrap();
    let refused = group.try_start(2).unwrap_err();
    assert!(matches!(refused, OpenError::LogLost { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_members_directory_is_refused_at_start() {
    let mut group = Group::of_three(34, options());
    group.leader().await;
    group.stop(1);
    group.stop(2);
    std::fs::remove_dir_all(group.path(1)).unwrap();
    copy_tree(&group.path(2), &group.path(1));
    let refused = group.try_start(1).unwrap_err();
    assert!(matches!(refused, OpenError::Identity(_)), "{refused}");
}

/// Power loss can take the end of the log's commit record while sled already has more: the state
/// is ahead. Here the log is put back to an older copy as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_ahead_of_the_log_is_rebuilt() {
    let mut group = Group::of_three(
        35,
        Options {
            snapshot_entries: 1_000_000,
            ..options()
        },
    );
    for value in 0..20 {
        group.must_apply(Command::Append { list: 1, value }).await;
    }
    group.converge().await;
    // Member 3 is alone with its past: the others keep the truth, so nothing acknowledged depends on it.
    group.stop(3);
    let keep = group.path(3).with_extension("log");
    copy_tree(&group.path(3).join("raft"), &keep);
    group.start(3);
    for value in 20..40 {
        group.must_apply(Command::Append { list: 1, value }).await;
    }
    group.converge().await;
    for member in 1..=3 {
        group.stop(member);
    }
    std::fs::remove_dir_all(group.path(3).join("raft")).unwrap();
    copy_tree(&keep, &group.path(3).join("raft"));
    for member in 1..=3 {
        group.start(member);
    }
    group.converge().await;
    let states = std::fs::read_dir(group.path(3)).unwrap().flatten();
    let names: Vec<_> = states
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.contains(&"state-000002".to_owned()), "{names:?}");
    assert!(!names.contains(&"state-000001".to_owned()), "{names:?}");
}
