//! States that drift apart, and snapshots that come in pieces.

use std::collections::BTreeMap;

use super::group::{Group, options};
use super::toy::Command;
use crate::consensus::options::Options;
use crate::consensus::replica::Role;
use crate::store::state::tree::{TreeOptions, TreeRoot};
use crate::store::state::{Changes, StateRoot as _, StateStore as _};

fn compared_often() -> Options {
    Options {
        digest_entries: 10,
        max_entry_commands: 1,
        ..options()
    }
}

/// Changes what one member has on its disk, as a fault of memory or a bug would.
fn corrupt(group: &Group, member: u64) {
    let path = group.path(member);
    let name = std::fs::read_dir(&path)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.starts_with("state-"))
        .unwrap();
    let root = TreeRoot::new(path, TreeOptions::default());
    let mut state = root.open(&name).unwrap();
    let mark = state.mark();
    let wrong = Changes {
        records: vec![(vec![1], Some(99_u64.to_be_bytes().to_vec()))],
        ..Changes::default()
    };
    state.write(mark, wrong).unwrap();
    state.syncer()().unwrap();
}

async fn write(group: &Group, values: std::ops::Range<u64>) {
    for value in values {
        group.must_apply(Command::Append { list: 1, value }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_states_are_found_equal() {
    let group = Group::of_three(61, compared_often());
    // Many at once: the members' rounds end at different entries.
    let commands: Vec<Command> = (0..400)
        .map(|value| Command::Append { list: 1, value })
        .collect();
    let mut burst = commands.into_iter();
    loop {
        let part: Vec<Command> = burst.by_ref().take(100).collect();
        if part.is_empty() {
            break;
        }
        let writes = part.into_iter().map(|command| group.must_apply(command));
        futures_util::future::join_all(writes).await;
    }
    for member in 1..=3 {
        group
            .wait(member, "nothing is compared", |status| {
                status.compared >= 10
            })
            .await;
        let counters: BTreeMap<_, _> = group.handle(member).counters().read().into_iter().collect();
        assert!(counters["digests_equal"] >= 1, "{counters:?}");
        assert_eq!(counters["digests_different"], 0);
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_state_differs_stops_and_the_others_go_on() {
    let mut group = Group::of_three(62, compared_often());
    write(&group, 0..5).await;
    group.converge().await;
    let odd = group.leader().await % 3 + 1;
    group.stop(odd);
    corrupt(&group, odd);
    group.start(odd);
    write(&group, 5..40).await;
    group
        .wait(odd, "it goes on", |status| status.stopped.is_some())
        .await;
    let halted = group.halted.lock().unwrap().clone();
    assert_eq!(halted.len(), 1, "{halted:?}");
    assert_eq!(halted[0].0, odd);
    for part in ["not that of most voters", "add it again under a new id"] {
        assert!(halted[0].1.contains(part), "{halted:?}");
    }
    let counters: BTreeMap<_, _> = group.handle(odd).counters().read().into_iter().collect();
    assert_eq!(counters["digests_different"], 1);
    group.halted.lock().unwrap().clear();
    group.stop(odd);
    write(&group, 40..45).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_the_odd_one_out_stops_itself() {
    let mut group = Group::of_three(63, compared_often());
    write(&group, 0..5).await;
    group.converge().await;
    let odd = group.leader().await;
    group.stop(odd);
    corrupt(&group, odd);
    group.start(odd);
    group
        .wait(odd, "it knows no leader", |status| status.leader.is_some())
        .await;
    let leader = group.leader().await;
    group.handle(leader).transfer_leadership(odd);
    group
        .wait(odd, "it does not lead", |status| {
            status.role == Role::Leader
        })
        .await;
    write(&group, 5..12).await;
    // Notes travel once a second of ticks; until then it acknowledges what it always would.
    group
        .wait(odd, "it goes on", |status| status.stopped.is_some())
        .await;
    let halted = group.halted.lock().unwrap().clone();
    assert!(
        halted.iter().all(|(member, _)| *member == odd),
        "{halted:?}"
    );
    group.halted.lock().unwrap().clear();
    group.stop(odd);
    write(&group, 40..45).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_transfer_goes_on_where_it_was_cut_also_after_a_restart() {
    let mut group = Group::of_three(
        64,
        Options {
            snapshot_entries: 60,
            trailing_entries: 5,
            max_entry_commands: 1,
            snapshot_retry_ticks: 5,
            ..options()
        },
    );
    let leader = group.leader().await;
    let behind = leader % 3 + 1;
    group.stop(behind);
    write(&group, 0..100).await;
    group
        .wait(leader, "the log is not compacted", |status| {
            status.first > 40
        })
        .await;
    // Each connection lasts for 50 bytes; five of them make one attempt.
    group.network.cut_files_after(Some(50));
    group.start(behind);
    let received = |group: &Group| {
        let counters: BTreeMap<_, _> = group.handle(behind).counters().read().into_iter().collect();
        counters["snapshot_bytes_received"]
    };
    while received(&group) < 300 {
        tokio::time::sleep(group.options.tick).await;
    }
    group.stop(behind);
    let part = std::fs::read_dir(group.path(behind).join("incoming"))
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().ends_with(".part"))
        .expect("what came is kept");
    let kept = part.metadata().unwrap().len();
    assert!(kept >= 300, "{kept}");
    group.network.cut_files_after(Some(200));
    group.start(behind);
    // Commands are acknowledged while the transfer goes on, piece by piece.
    let mut value = 100;
    while group.handle(behind).status().borrow().first <= 40 {
        write(&group, value..value + 1).await;
        value += 1;
        if value > 110 {
            tokio::time::sleep(group.options.tick).await;
            value = 110;
        }
    }
    let total = group.handle(behind).counters().read();
    let total: BTreeMap<_, _> = total.into_iter().collect();
    assert_eq!(total["snapshots_installed"], 1, "{total:?}");
    assert!(total["snapshots_resumed"] >= 1, "{total:?}");
    group.network.cut_files_after(None);
    group.converge().await;
}
