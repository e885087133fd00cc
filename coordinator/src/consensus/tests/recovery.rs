//! Damaged, foreign and impossible data directories.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use raft::eraftpb::{Entry, HardState};

use super::group::{Group, copy_tree, options};
use super::toy::Command;
use crate::consensus::open::OpenError;
use crate::consensus::options::Options;
use crate::store::log::engine::EngineLog;
use crate::store::log::{LogError, LogMeta, LogStore, LogWrite};

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

/// A log that is put back to an older copy, or whose damaged end was dropped when it was opened:
/// the member would vote without what it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_lost_its_end_is_refused_at_start() {
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
    group.stop(3);
    let keep = group.path(3).with_extension("log");
    copy_tree(&group.path(3).join("raft"), &keep);
    group.start(3);
    for value in 20..40 {
        group.must_apply(Command::Append { list: 1, value }).await;
    }
    group.converge().await;
    group.stop(3);
    std::fs::remove_dir_all(group.path(3).join("raft")).unwrap();
    copy_tree(&keep, &group.path(3).join("raft"));
    let refused = group.try_start(3).unwrap_err();
    assert!(matches!(refused, OpenError::LogCut { .. }), "{refused}");
    group
        .must_apply(Command::Append { list: 1, value: 40 })
        .await;
}

/// What sled holds can be thrown away as long as the log is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_rebuilt() {
    let mut group = Group::of_three(38, options());
    for value in 0..20 {
        group.must_apply(Command::Append { list: 1, value }).await;
    }
    group.converge().await;
    group.stop(3);
    let state = group.path(3).join("state-000001");
    for entry in std::fs::read_dir(&state).unwrap().flatten() {
        if entry.path().is_file() {
            std::fs::write(entry.path(), vec![0x55; 4096]).unwrap();
        }
    }
    group.start(3);
    group.converge().await;
    assert!(group.path(3).join("state-000002").is_dir());
    assert!(!state.exists(), "the damaged one is swept");
}

/// A log whose disk fails when it is told to.
struct Failing {
    log: EngineLog,
    how: Arc<AtomicU8>,
}

const WRITE_FAILS: u8 = 1;
const FSYNC_FAILS: u8 = 2;

impl LogStore for Failing {
    fn meta(&self) -> Option<&LogMeta> {
        self.log.meta()
    }

    fn hard_state(&self) -> &HardState {
        self.log.hard_state()
    }

    fn first_index(&self) -> u64 {
        self.log.first_index()
    }

    fn last_index(&self) -> u64 {
        self.log.last_index()
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, LogError> {
        self.log.entries(low, high, max_bytes)
    }

    fn write(&mut self, write: LogWrite) -> Result<(), LogError> {
        let error = || std::io::Error::from_raw_os_error(5);
        match self.how.load(Ordering::Relaxed) {
            WRITE_FAILS => Err(LogError::Write {
                place: self.place().to_owned(),
                source: raft_engine::Error::Io(error()),
            }),
            // As raft-engine does it.
            FSYNC_FAILS if write.sync => Err::<(), _>(error()).map(Ok).unwrap(),
            _ => self.log.write(write),
        }
    }

    fn purge(&mut self) -> Result<(), LogError> {
        self.log.purge()
    }

    fn place(&self) -> &str {
        self.log.place()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_stops_its_member_with_the_way_out_and_acknowledges_nothing() {
    for how in [WRITE_FAILS, FSYNC_FAILS] {
        let mut group = Group::of_three(36, options());
        group
            .must_apply(Command::Append { list: 1, value: 1 })
            .await;
        let victim = group.leader().await;
        group.stop(victim);
        let fault = Arc::new(AtomicU8::new(0));
        let failing = fault.clone();
        group.start_over(victim, |log| Failing { log, how: failing });
        group.leader().await;
        group.handle(victim).campaign();
        fault.store(how, Ordering::Relaxed);
        group
            .must_apply_but(victim, Command::Append { list: 1, value: 2 })
            .await;
        group
            .wait(victim, "it goes on", |status| status.stopped.is_some())
            .await;
        let halted = group.halted.lock().unwrap().clone();
        assert!(
            halted.iter().all(|(member, _)| *member == victim),
            "{halted:?}"
        );
        for part in ["the raft log", "Check the disk", "start the member again"] {
            assert!(halted[0].1.contains(part), "{halted:?}");
        }
        group.halted.lock().unwrap().clear();
        // The disk is mended; the member goes on with what it had.
        group.stop(victim);
        group.start(victim);
        group.converge().await;
        let mut values = group.handle(victim).view().view.0[&1].clone();
        values.dedup();
        assert_eq!(values, [1, 2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_directory_and_a_damaged_log_are_refused_with_the_way_out() {
    let mut group = Group::of_three(37, options());
    group
        .must_apply(Command::Append { list: 1, value: 1 })
        .await;
    group.stop(1);
    // A file where the folder of snapshots must be: not to be written, also by root.
    let snapshots = group.path(1).join("snapshots");
    std::fs::remove_dir_all(&snapshots).unwrap();
    std::fs::write(&snapshots, b"").unwrap();
    let refused = crate::consensus::chain(&group.try_start(1).unwrap_err());
    assert!(refused.contains("snapshots"), "{refused}");
    std::fs::remove_file(&snapshots).unwrap();

    let segment = std::fs::read_dir(group.path(1).join("raft"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "raftlog"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[..64].fill(0x55);
    std::fs::write(&segment, bytes).unwrap();
    let refused = crate::consensus::chain(&group.try_start(1).unwrap_err());
    assert!(refused.contains("add it again under a new id"), "{refused}");
}
