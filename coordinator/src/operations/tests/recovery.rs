//! Going on with one member after the majority was lost.

use std::path::{Path, PathBuf};

use oast_daemon::clock::{SystemClock, timeout};
use oast_daemon::lock::DirLock;
use oast_model::ledger::{Command, Request};
use oast_model::principal::Principal;

use super::{Group, PATIENCE, assert_runs};
use crate::consensus::machine::View as _;
use crate::consensus::replica::ProposeError;
use crate::operations::inspect::inspect;
use crate::operations::recover::{RecoverError, Recovered, look, recover};
use crate::store::identity::Identity;

/// Another test that starts a process holds our lock until that process has begun its program.
fn when_free(directory: &Path) -> Result<Recovered, RecoverError> {
    loop {
        match recover(directory, &SystemClock) {
            Err(RecoverError::Lock(_)) => std::thread::yield_now(),
            done => return done,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_of_three_goes_on_with_higher_numbers_and_refuses_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    // Enough for snapshots and a truncated log.
    let runs = group.runs(50).await;
    group.agree().await;
    let kept = group.seq().await;
    group.stop_all();

    let found = look(&group.path(2), &SystemClock).unwrap();
    assert_eq!((found.member, found.cluster.as_str()), (2, "demo"));
    assert_eq!(found.voters, [1, 2, 3].into());
    let done = when_free(&group.path(2)).unwrap();
    assert_eq!((done.kept, done.history_lost), (kept, 0));
    assert!(done.begun > kept);

    group.start(2).unwrap();
    let first = group.must(super::submit()).await;
    assert_eq!(first.seq, done.begun.next());
    assert_runs(&group.handle(2), &runs);
    let status = group.handle(2).status().borrow().clone();
    assert_eq!(status.voters, [2]);
    assert_eq!(status.cluster, done.cluster.to_string());
    let left: Vec<_> = status.members.iter().collect();
    assert!(matches!(left[..], [(2, record)] if record.address == "member-2:7443"));

    // The lost ones are found again: together they would be a majority of the old cluster.
    group.start(1).unwrap();
    group.start(3).unwrap();
    let old = group.handle(1);
    let other = group.handle(3);
    let mut applied = group.handle(2).status();
    group.must(super::submit()).await;
    timeout(
        &SystemClock,
        PATIENCE,
        applied.wait_for(|status| status.voters == [2] && status.leader == Some(2)),
    )
    .await
    .unwrap()
    .unwrap();
    for handle in [old, other] {
        assert_ne!(handle.status().borrow().leader, Some(2));
        assert_eq!(handle.status().borrow().cluster, "demo");
        assert_eq!(handle.view().view.seq().epoch(), 0);
    }
}

/// The survivor led and has what it could not tell anybody: it may have been acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_survivors_log_holds_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    group.agree().await;
    let leader = group.leader().await;
    for other in (1..=3).filter(|member| *member != leader) {
        group.network.cut(leader, other, true);
    }
    let request = Request {
        principal: Principal::farm(),
        request_id: None,
        command: super::submit(),
    };
    let proposed = group.handle(leader).propose(&request).await;
    assert!(
        matches!(proposed, Err(ProposeError::Unknown)),
        "{proposed:?}"
    );
    assert_eq!(group.handle(leader).view().view.runs().len(), 0);
    group.stop_all();

    let found = look(&group.path(leader), &SystemClock).unwrap();
    assert!(found.last.index > found.commit, "{found:?}");
    when_free(&group.path(leader)).unwrap();
    group.start(leader).unwrap();
    group.leader().await;
    assert_eq!(group.handle(leader).view().view.runs().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_was_killed_is_finished_by_the_next_start_or_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    let runs = group.runs(10).await;
    group.agree().await;
    group.stop_all();
    let before = Identity::read(&group.path(3)).unwrap().unwrap();

    // Killed between the log and the identity file.
    let done = when_free(&group.path(3)).unwrap();
    before.write(&group.path(3)).unwrap();
    group.start(3).unwrap();
    group.must(Command::HoldVersion { held: true }).await;
    assert_runs(&group.handle(3), &runs);
    group.stop(3);
    let file = Identity::read(&group.path(3)).unwrap().unwrap();
    assert_eq!(file.cluster, done.cluster.to_string());

    // Once more, from what it is now: again another cluster with higher numbers.
    before.write(&group.path(3)).unwrap();
    let again = when_free(&group.path(3)).unwrap();
    assert!(again.begun > done.begun && again.cluster != done.cluster);
    group.start(3).unwrap();
    group.must(super::submit()).await;
    assert!(group.handle(3).view().view.farm().version_held);
    assert_eq!(group.handle(3).view().view.farm().eras.len(), 2);
}

fn state_of(member: &Path) -> PathBuf {
    let entries = std::fs::read_dir(member).unwrap().flatten();
    let mut states =
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("state-"));
    states.next().unwrap().path()
}

/// All members lost power at once, and the other machines never came back: the survivor's state is not
/// believed (0017), and its history is taken over from there because it proves itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_of_a_power_loss_goes_on_with_everything_that_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    let runs = group.runs(30).await;
    group.agree().await;
    group.stop_all();
    let old = state_of(&group.path(1));
    std::fs::write(old.join("life"), "open another-boot").unwrap();

    let done = when_free(&group.path(1)).unwrap();
    assert_eq!(done.history_lost, 0);
    group.start(1).unwrap();
    assert_ne!(state_of(&group.path(1)), old);
    group.must(super::submit()).await;
    assert_runs(&group.handle(1), &runs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_is_rebuilt_before_it_is_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    group.runs(30).await;
    let digest = group.agree().await;
    group.stop_all();
    std::fs::remove_dir_all(state_of(&group.path(1))).unwrap();

    let done = when_free(&group.path(1)).unwrap();
    // Nobody is left to ask for what the snapshot file left out.
    assert!(done.history_lost > 0, "{done:?}");
    group.start(1).unwrap();
    group.leader().await;
    let view = group.handle(1).view();
    assert_eq!(view.view.runs().len(), 15);
    assert_ne!(view.view.digest(), digest, "the epoch is part of the state");
    // What is left can be saved, and is whole by itself.
    group.runs(3).await;
    let file = folder.path().join("farm.oast");
    group.save(1, &file);
    let left = inspect(&file).unwrap().history.last;
    assert_eq!(left, 15 - done.history_lost + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recovery_refuses_a_running_member_and_a_directory_of_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = folder.path().join("nobody");
    assert!(matches!(
        recover(&nobody, &SystemClock),
        Err(RecoverError::NoMember { .. })
    ));
    assert!(!nobody.exists());

    let mut group = Group::started(folder.path(), [1]);
    group.leader().await;
    group.stop_all();
    let lock = DirLock::acquire(&group.path(1), "coordinator", &SystemClock).unwrap();
    for refused in [
        look(&group.path(1), &SystemClock).map(drop),
        recover(&group.path(1), &SystemClock).map(drop),
    ] {
        assert!(matches!(refused, Err(RecoverError::Lock(_))), "{refused:?}");
    }
    drop(lock);
    assert!(matches!(
        when_free(&group.path(1)),
        Err(RecoverError::Empty { .. })
    ));
}
