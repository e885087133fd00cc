//! Members come, go and take each other's places while commands are acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use oast_daemon::clock::SystemClock;
use oast_daemon::task::{Job, Tasks};
use tokio_util::sync::CancellationToken;

use super::group::{Group, options, remove, say, stamp_of};
use super::toy::{Command, Lists};
use crate::consensus::change::{Change, ChangeError};
use crate::consensus::handle::Handle;
use crate::consensus::open::OpenError;
use crate::consensus::options::Options;
use crate::consensus::replica::{ProposeError, Role};
use crate::consensus::transport::memory::Weather;

const RAIN: Weather = Weather {
    lost_per_mille: 50,
    late_per_mille: 50,
};

/// Small snapshots, so that a member that joins gets one.
fn eager() -> Options {
    Options {
        snapshot_entries: 50,
        trailing_entries: 10,
        max_entry_commands: 4,
        digest_entries: 20,
        ..options()
    }
}

/// A client that appends values until it is told to stop, and knows which were acknowledged.
struct Writer {
    handles: Arc<Mutex<Vec<Handle<Lists>>>>,
    stop: CancellationToken,
    task: Job<Vec<u64>>,
}

const LIST: u8 = 1;

impl Writer {
    fn start(group: &Group) -> Writer {
        let handles = Arc::new(Mutex::new(group.handles()));
        let stop = CancellationToken::new();
        let tasks = Tasks::new(SystemClock::shared(), CancellationToken::new());
        let (known, stopped) = (handles.clone(), stop.clone());
        let task = tasks.job("writer", async move {
            let mut acknowledged = Vec::new();
            for value in 0.. {
                if stopped.is_cancelled() {
                    break;
                }
                let members = known.lock().unwrap().clone();
                for handle in members {
                    let command = Command::Append { list: LIST, value };
                    match handle.propose(&command).await {
                        Ok(_) => {
                            acknowledged.push(value);
                            break;
                        }
                        Err(ProposeError::Unknown | ProposeError::Stopped) => break,
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            }
            acknowledged
        });
        Writer {
            handles,
            stop,
            task,
        }
    }

    fn meet(&self, group: &Group) {
        *self.handles.lock().unwrap() = group.handles();
    }

    /// Everything that was acknowledged is there, once and in order.
    async fn finish(self, group: &Group) {
        self.stop.cancel();
        let acknowledged = self.task.value().await.unwrap();
        group.network.set_weather(Weather::default());
        group.converge().await;
        for handle in group.handles() {
            let view = handle.view();
            let found = view.view.0.get(&LIST).cloned().unwrap_or_default();
            let unique: BTreeSet<u64> = found.iter().copied().collect();
            assert_eq!(unique.len(), found.len(), "a value is there twice");
            let lost = acknowledged.iter().find(|value| !unique.contains(value));
            assert_eq!(lost, None, "on member {}", handle.member());
        }
        say(&format!("{} values acknowledged", acknowledged.len()));
        assert!(!acknowledged.is_empty());
    }
}

fn voters(group: &Group, member: u64) -> Vec<u64> {
    let mut voters = group.handle(member).status().borrow().voters.clone();
    voters.sort_unstable();
    voters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_to_five_and_shrinks_to_three_in_bad_weather() {
    for seed in 51..=53 {
        say(&format!("seed {seed}"));
        let mut group = Group::of_three(seed, eager());
        group.leader().await;
        let writer = Writer::start(&group);
        group.network.set_weather(RAIN);
        let fourth = group.grow().await;
        let fifth = group.grow().await;
        writer.meet(&group);
        assert_eq!((fourth, fifth), (4, 5), "ids are counted up");
        group.promote(fourth, None).await.unwrap();
        group.promote(fifth, None).await.unwrap();
        group
            .wait(fifth, "it does not vote", |status| {
                status.voters.len() == 5 && status.outgoing.is_empty()
            })
            .await;
        for round in 0..2 {
            // The leader itself first, then somebody else.
            let leader = group.leader().await;
            let victim = match round {
                0 => leader,
                _ => voters(&group, leader)
                    .into_iter()
                    .find(|id| *id != leader)
                    .unwrap(),
            };
            group.remove(victim).await.unwrap();
            group
                .wait(victim, "a removed member goes on", |status| {
                    status.stopped.is_some()
                })
                .await;
            let mut halted = group.halted.lock().unwrap();
            let reasons: Vec<_> = halted.drain(..).collect();
            drop(halted);
            assert!(
                reasons.iter().all(|(member, _)| *member == victim),
                "{reasons:?}"
            );
            assert!(
                reasons[0].1.contains("it was removed from the group"),
                "{reasons:?}"
            );
            group.stop(victim);
            writer.meet(&group);
        }
        let leader = group.leader().await;
        assert_eq!(voters(&group, leader).len(), 3);
        writer.finish(&group).await;
        let removed: Vec<u64> = (1..=5)
            .filter(|id| !voters(&group, leader).contains(id))
            .collect();
        let refused = group.remove(removed[0]).await;
        // The call's answer is remembered; another call is told the truth.
        assert_eq!(refused, Ok(()));
        let again = group.change("another", remove(removed[0])).await;
        assert_eq!(again, Err(ChangeError::Retired { member: removed[0] }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_is_replaced_and_its_id_and_directory_are_of_no_use_any_more() {
    let mut group = Group::of_three(54, eager());
    let leader = group.leader().await;
    let writer = Writer::start(&group);
    let dead = leader % 3 + 1;
    group.stop(dead);
    writer.meet(&group);
    let new = group.grow().await;
    writer.meet(&group);
    // One joint change: the new one votes and the dead one does not, at the same entry.
    group.promote(new, Some(dead)).await.unwrap();
    let status = group
        .wait(new, "it does not vote", |status| {
            status.outgoing.is_empty() && status.voters.contains(&new)
        })
        .await;
    assert!(!status.members.contains_key(&dead));
    writer.finish(&group).await;

    // It comes back with everything it had, and is told to go.
    group.start(dead);
    group
        .wait(dead, "a removed member goes on", |status| {
            status.stopped.is_some()
        })
        .await;
    let halted = group.halted.lock().unwrap().clone();
    assert!(
        halted.iter().all(|(member, _)| *member == dead),
        "{halted:?}"
    );
    assert!(halted[0].1.contains("add the address again"), "{halted:?}");
    group.halted.lock().unwrap().clear();
    group.stop(dead);
    // The group works with the new member alone beside the leader.
    let other = (1..=3).find(|id| ![leader, dead].contains(id)).unwrap();
    group.stop(other);
    group
        .must_apply(Command::Append { list: 2, value: 1 })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_knows_that_it_was_removed_does_not_open() {
    let mut group = Group::of_three(55, options());
    let learner = group.grow().await;
    group
        .wait(learner, "it does not follow", |status| {
            status.learners.contains(&learner)
        })
        .await;
    group.remove(learner).await.unwrap();
    group
        .wait(learner, "it goes on", |status| status.stopped.is_some())
        .await;
    group.halted.lock().unwrap().clear();
    group.stop(learner);
    match group.try_start(learner) {
        Err(OpenError::Removed { member }) => assert_eq!(member, learner),
        Err(other) => panic!("{other}"),
        // It never applied the entry; then the others tell it.
        Ok(()) => {
            group
                .wait(learner, "it goes on", |status| status.stopped.is_some())
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_knows_no_voters_does_not_stand_for_election() {
    let mut group = Group::of_three(59, options());
    // Nobody has announced it, so nobody tells it who votes.
    group.start(4);
    group.handle(4).campaign();
    // Answered after the campaign, by a member that goes on.
    let answer = group.handle(4).change("", Change::Transfer(None)).await;
    assert_eq!(answer, Err(ChangeError::NotLeader { leader: None }));
    assert!(
        group.halted.lock().unwrap().is_empty(),
        "{:?}",
        group.halted
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_lost_its_disk_does_not_come_back_under_its_id() {
    let mut group = Group::of_three(56, options());
    let learner = group.grow().await;
    group.promote(learner, None).await.unwrap();
    group.converge().await;
    group.stop(learner);
    std::fs::remove_dir_all(group.path(learner)).unwrap();
    // The same address asks with another stamp.
    let wiped = Change::Join {
        address: "grow-3:7443".to_owned(),
        stamp: stamp_of(99),
    };
    let refused = group.change("", wiped).await.unwrap_err();
    assert!(
        matches!(refused, ChangeError::AnotherDirectory { member, .. } if member == learner),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_at_a_time_and_none_without_a_majority() {
    let group = Group::of_three(57, options());
    let leader = group.leader().await;
    let handle = group.handle(leader);
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    for other in &others {
        group.network.cut(leader, *other, true);
    }
    let add = |host: &str| Change::AddLearners(vec![format!("{host}:1")]);
    let (first, second) = tokio::join!(
        handle.change("first", add("a")),
        handle.change("second", add("b"))
    );
    assert_eq!(second, Err(ChangeError::Pending));
    assert_eq!(first, Err(ChangeError::Unknown), "nobody confirmed it");
    for other in &others {
        group.network.cut(leader, *other, false);
    }
    // Asked again, it is carried out, once, whether the first entry survived or not.
    let added = group.change("first", add("a")).await.unwrap();
    assert_eq!(added, [4]);
    let leader = group.leader().await;
    let status = group.handle(leader).status().borrow().clone();
    assert_eq!(status.learners, [4]);
    // With one voter silent, another one cannot be removed.
    let silent = others[0];
    for other in (1..=3).filter(|id| *id != silent) {
        group.network.cut(silent, other, true);
    }
    let leader = {
        let rest: Vec<u64> = (1..=3).filter(|id| *id != silent).collect();
        loop {
            let leads = |id: &&u64| group.handle(**id).leading().is_some();
            if let Some(leader) = rest.iter().find(leads) {
                break *leader;
            }
            tokio::time::sleep(group.options.tick).await;
        }
    };
    group
        .wait(leader, "the silent one is heard", |status| {
            !status.answered.contains(&silent)
        })
        .await;
    let healthy = (1..=3).find(|id| ![leader, silent].contains(id)).unwrap();
    let refused = group.handle(leader).change("", remove(healthy)).await;
    assert!(
        matches!(refused, Err(ChangeError::NoQuorum { .. })),
        "{refused:?}"
    );
    let refused = group
        .handle(leader)
        .change("", Change::Transfer(Some(silent)))
        .await;
    assert!(
        matches!(refused, Err(ChangeError::Silent { .. })),
        "{refused:?}"
    );
}

/// One that was stopped for a while does not know that the group went on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_no_majority_confirms_says_nothing_about_the_group() {
    let group = Group::of_three(59, options());
    let add = Change::AddLearners(vec!["a:1".to_owned()]);
    let unknown = Change::Join {
        address: "b:1".to_owned(),
        stamp: stamp_of(99),
    };
    assert_eq!(group.change("first", add.clone()).await, Ok(vec![4]));
    let refused = group.change("", unknown.clone()).await;
    assert!(
        matches!(refused, Err(ChangeError::NotInvited { .. })),
        "{refused:?}"
    );
    let leader = group.leader().await;
    for other in (1..=3).filter(|id| *id != leader) {
        group.network.cut(leader, other, true);
    }
    let handle = group.handle(leader);
    let (refused, repeated) = tokio::join!(handle.change("", unknown), handle.change("first", add));
    for answer in [refused, repeated] {
        assert!(
            matches!(answer, Err(ChangeError::NotLeader { .. })),
            "{answer:?}"
        );
    }
}

/// `docs/decisions`: deadlines are stamped by the leader's calendar, so a wrong one must not lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_wrong_clock_hands_leadership_over_until_it_is_right() {
    let group = Group::of_three(58, options());
    let leader = group.leader().await;
    group
        .must_apply(Command::Append { list: 1, value: 1 })
        .await;
    group.clocks[&leader].store(3_000, Ordering::Relaxed);
    let status = group
        .wait(leader, "it goes on leading", |status| {
            status.barred && status.leader.is_some_and(|other| other != leader)
        })
        .await;
    let skew = status.skew_ms.unwrap();
    assert!((2_000..4_000).contains(&skew), "{skew}");
    // It is not made leader by hand either, and does not stand when nobody leads.
    let next = group.leader().await;
    assert_ne!(next, leader);
    let refused = group
        .handle(next)
        .change("", Change::Transfer(Some(leader)))
        .await;
    assert!(
        matches!(refused, Err(ChangeError::SkewedHeir { .. })),
        "{refused:?}"
    );
    group
        .must_apply(Command::Append { list: 1, value: 2 })
        .await;
    group.clocks[&leader].store(0, Ordering::Relaxed);
    group
        .wait(leader, "it stays barred", |status| !status.barred)
        .await;
    let back = group.change("", Change::Transfer(Some(leader))).await;
    assert_eq!(back, Ok(vec![leader]));
    group
        .wait(leader, "it does not lead", |status| {
            status.role == Role::Leader
        })
        .await;
    group.converge().await;
}
