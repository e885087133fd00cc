//! Saving, inspecting and restoring.

use std::path::Path;
use std::time::Duration;

use oast_daemon::clock::ManualClock;
use oast_model::ids::{EPOCH_ORIGIN, RunId};
use oast_model::ledger::{Command, ForeignPosition, Pruned, RUN};

use super::{Group, assert_runs};
use crate::archive::Archive;
use crate::operations::inspect::inspect;
use crate::operations::recover::recover;
use crate::operations::restore::{Plan, RestoreError, Restored, restore};
use crate::store::identity::ClusterId;

fn plan(file: &Path, directory: &Path, member: u64, members: &[u64]) -> Plan {
    Plan {
        file: file.to_owned(),
        directory: directory.to_owned(),
        member,
        members: members.iter().copied().collect(),
        cluster: None,
    }
}

fn clock(seconds: u64) -> ManualClock {
    ManualClock::at(EPOCH_ORIGIN + Duration::from_secs(seconds))
}

fn restored(plan: &Plan, seconds: u64) -> Restored {
    restore(plan, &clock(seconds)).unwrap()
}

/// The farm works on after the snapshot was taken and is lost. It is restored, works, is lost, and
/// is restored from the same file again: nowhere is a number issued that was issued before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_after_a_restore_exceed_every_number_ever_issued() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.oast");
    let mut group = Group::started(&folder.path().join("first"), [1]);
    group.found().await;
    let runs = group.runs(60).await;
    group.save(1, &file);
    let kept = group.seq().await;
    let lost = group.runs(9).await;
    let mut highest = group.seq().await;
    group.stop_all();

    let contents = inspect(&file).unwrap();
    assert_eq!(contents.header.seq, kept.as_u64());
    assert_eq!(contents.history.last, 30);
    assert_eq!(contents.tables["runs"], 30);
    for (again, seconds) in [("second", 5_000), ("third", 5_060)] {
        let place = folder.path().join(again);
        let made = restored(&plan(&file, &place.join("1"), 1, &[1]), seconds);
        assert_eq!(made.kept, kept);
        assert!(made.begun > highest, "{} after {highest}", made.begun);
        let group = Group::started(&place, [1]);
        let first = group.must(super::submit()).await;
        assert_eq!(first.seq, made.begun.next());
        let more = group.runs(20).await;
        assert_runs(&group.handle(1), &runs);
        assert_runs(&group.handle(1), &more);
        let handle = group.handle(1);
        let ledger = &handle.view().view;
        // A watch that began on what survived goes on; one that saw what was lost is told so.
        assert_eq!(ledger.knows(runs[59].0), Ok(()));
        let foreign = ledger.knows(lost[0].0).unwrap_err();
        assert!(
            matches!(foreign, ForeignPosition::AnotherEpoch { kept: k, .. } if k == kept),
            "{foreign:?}"
        );
        assert!(!ledger.runs().contains(&lost[1]));
        highest = group.seq().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_restored_from_one_file_are_one_group() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.oast");
    let mut old = Group::started(&folder.path().join("old"), [1]);
    old.found().await;
    let runs = old.runs(10).await;
    old.save(1, &file);
    old.stop_all();

    let place = folder.path().join("new");
    std::fs::create_dir(&place).unwrap();
    let mut cluster = None;
    for member in 1..=3 {
        let directory = place.join(member.to_string());
        if member == 2 {
            std::fs::create_dir(&directory).unwrap();
        }
        let plan = Plan {
            cluster: cluster.clone(),
            ..plan(&file, &directory, member, &[1, 2, 3])
        };
        // Their clocks do not matter: the first one's epoch counts.
        cluster = Some(restored(&plan, 9_000 - member).cluster);
    }
    // As with `join` in its configuration: it cannot know where the others are.
    let refused = Group::in_folder(&place, []).start(1).unwrap_err();
    assert!(refused.to_string().contains("`peers`"), "{refused}");
    let group = Group::started(&place, [1, 2, 3]);
    let mut all = runs.clone();
    all.extend(group.runs(4).await);
    group.agree().await;
    for member in 1..=3 {
        assert_runs(&group.handle(member), &all);
        let status = group.handle(member).status().borrow().clone();
        assert_eq!(
            Some(status.cluster),
            cluster.as_ref().map(ToString::to_string)
        );
        let places = status.members.values().map(|record| &record.address);
        let places: Vec<_> = places.collect();
        assert_eq!(places, ["member-1:7443", "member-2:7443", "member-3:7443"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_refuses_what_it_cannot_do_right_and_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.oast");
    let mut group = Group::started(&folder.path().join("old"), [1]);
    group.found().await;
    group.runs(4).await;
    group.save(1, &file);
    group.stop_all();
    let place = folder.path().join("new");
    let whole = std::fs::read(&file).unwrap();
    let refusal = |plan: &Plan| {
        let error = restore(plan, &clock(9)).unwrap_err();
        assert!(!place.join(".restore").exists());
        error
    };
    let good = plan(&file, &place, 1, &[1]);

    let not_empty = Plan {
        directory: folder.path().join("old"),
        ..good.clone()
    };
    assert!(matches!(refusal(&not_empty), RestoreError::NotEmpty { .. }));
    let outsider = plan(&file, &place, 4, &[1, 2, 3]);
    assert!(matches!(refusal(&outsider), RestoreError::Members { .. }));
    for cluster in [
        "other.99.00000001",
        "demo.0.00000001",
        "demo.4294967296.00000001",
    ] {
        let id: ClusterId = cluster.parse().unwrap();
        let foreign = Plan {
            cluster: Some(id),
            ..good.clone()
        };
        let error = refusal(&foreign);
        assert!(matches!(error, RestoreError::Cluster { .. }), "{error}");
    }
    // Every tenth byte, and every tenth length.
    for place in (0..whole.len()).step_by(10) {
        let mut bad = whole.clone();
        bad[place] ^= 0x40;
        std::fs::write(&file, &bad).unwrap();
        refusal(&good);
        std::fs::write(&file, &whole[..place]).unwrap();
        refusal(&good);
    }
    assert!(!place.exists());
    // What a new file system has, and what a killed restore left, is in nobody's way.
    std::fs::create_dir_all(place.join("lost+found")).unwrap();
    std::fs::create_dir_all(place.join(".restore/raft")).unwrap();
    std::fs::write(&file, &whole).unwrap();
    restored(&good, 9);
    assert!(!place.join(".restore").exists());
    assert!(matches!(refusal(&good), RestoreError::NotEmpty { .. }));
}

/// Everything that a file claims about itself is checked against its content, also with a
/// checksum that fits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_a_good_checksum_and_foreign_content_is_refused() {
    use crate::store::backup::{BackupReader, BackupWriter};

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.oast");
    let mut group = Group::started(&folder.path().join("old"), [1]);
    group.found().await;
    group.runs(4).await;
    group.save(1, &file);
    group.stop_all();
    let whole = std::fs::read(&file).unwrap();
    let mut reader = BackupReader::new(&whole[..]).unwrap();
    let header = reader.header().clone();
    let mut records = Vec::new();
    while let Some(record) = reader.record().unwrap() {
        records.push(record);
    }
    let mut history = Vec::new();
    while let Some(record) = reader.history().unwrap() {
        history.push(record);
    }
    assert_eq!(history.len(), 2);
    let write = |header: &_, records: &[(Vec<u8>, Vec<u8>)], history: &[Vec<u8>]| {
        let mut writer = BackupWriter::begin(Vec::new(), header, records.iter().cloned()).unwrap();
        for record in history {
            writer.history(record).unwrap();
        }
        std::fs::write(&file, writer.finish().unwrap()).unwrap();
        inspect(&file).map_err(|error| error.to_string())
    };
    write(&header, &records, &history).unwrap();

    let error = write(&header, &records[1..], &history).unwrap_err();
    assert!(
        error.contains("digest") || error.contains("load"),
        "{error}"
    );
    let error = write(&header, &records, &history[..1]).unwrap_err();
    assert!(error.contains("its history is not the one"), "{error}");
    let mut other = header.clone();
    other.seq += 1;
    let error = write(&other, &records, &history).unwrap_err();
    assert!(error.contains("its description is not"), "{error}");
    let mut newer = header.clone();
    newer.cluster_version = 1_000;
    let error = write(&newer, &records, &history).unwrap_err();
    assert!(error.contains("use a newer `oast`"), "{error}");
}

/// Submissions go on while a member's snapshot is taken; the file is a state that existed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_from_any_member_while_the_farm_works() {
    let folder = tempfile::tempdir().unwrap();
    let group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    let before = group.runs(6).await;
    group.agree().await;
    let saves = async {
        for member in 1..=3 {
            let file = folder.path().join(format!("from-{member}"));
            group.save(member, &file);
            let contents = inspect(&file).unwrap();
            let last = before.last().map(|run| run.0.as_u64());
            assert!(Some(contents.header.seq) >= last);
            assert!(contents.history.last >= 3);
            tokio::task::yield_now().await;
        }
    };
    let ((), more) = tokio::join!(saves, group.runs(20));
    assert_eq!(more.len(), 20);
}

/// What is left of a pruned record is its hash: the history stays provable in a file, in the farm that
/// is made of it, and in one that is recovered although the pruning was only in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_history_is_saved_restored_and_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.oast");
    let mut group = Group::started(&folder.path().join("old"), [1]);
    group.found().await;
    let runs = group.runs(6).await;
    let prune = |number: u64, run: RunId| Command::PruneHistory {
        records: vec![Pruned {
            number,
            kind: RUN,
            id: run.0,
            team: "payments".parse().unwrap(),
        }],
    };
    group.must(prune(1, runs[0])).await;
    group.save(1, &file);
    assert_eq!(inspect(&file).unwrap().history.last, 3);
    group.must(prune(3, runs[4])).await;
    group.stop_all();

    let gone = |group: &Group, wanted: &[usize]| {
        let index = tempfile::tempdir().unwrap();
        let archive = Archive::open(group.handle(1), index.path()).unwrap();
        let gone: Vec<usize> = (0..runs.len())
            .step_by(2)
            .filter(|place| archive.run(runs[*place]).unwrap().is_none())
            .collect();
        assert_eq!(gone, wanted);
    };
    restored(&plan(&file, &folder.path().join("new/1"), 1, &[1]), 9);
    let new = Group::started(&folder.path().join("new"), [1]);
    new.leader().await;
    gone(&new, &[0]);
    recover(&group.path(1), &clock(9)).unwrap();
    group.start(1).unwrap();
    group.leader().await;
    gone(&group, &[0, 4]);
    for group in [new, group] {
        group.save(1, &file);
        assert_eq!(inspect(&file).unwrap().history.last, 3);
    }
}
