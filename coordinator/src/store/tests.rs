//! One suite for every log store and every state store, the in-memory twins included.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfState, Entry, HardState};

use super::identity::Identity;
use super::log::engine::{EngineLog, EngineLogOptions};
use super::log::memory::{MemoryDisk, MemoryLog};
use super::log::{LogMeta, LogPosition, LogStore, LogWrite, validate};
use super::members::Members;
use super::snapshot::{Shelf, SnapshotHeader, records};
use super::state::memory::MemoryRoot;
use super::state::tree::{TreeOptions, TreeRoot};
use super::state::{Changes, HistoryTail, Mark, StateRoot, StateStore, tombstone};

fn meta(truncated: LogPosition, state_dir: &str) -> LogMeta {
    LogMeta {
        identity: Identity {
            cluster: "c".to_owned(),
            member: 1,
            stamp: 7,
        },
        known_stamps: BTreeMap::from([(2, 22)]),
        conf_state: ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        },
        members: Members::founders(&BTreeMap::from([(1, "a:1".to_owned())])),
        conf_index: 1,
        truncated,
        state_dir: state_dir.to_owned(),
    }
}

fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    let entry = |index: u64| Entry {
        index,
        term,
        data: vec![term as u8; 1 + index as usize % 50].into(),
        ..Entry::default()
    };
    indexes.map(entry).collect()
}

fn hard_state(term: u64, commit: u64) -> Option<HardState> {
    Some(HardState {
        term,
        commit,
        ..HardState::default()
    })
}

fn terms(log: &impl LogStore) -> Vec<(u64, u64)> {
    let range = log.first_index()..=log.last_index();
    range
        .map(|index| (index, log.term(index).unwrap().unwrap()))
        .collect()
}

/// `reopen` opens the same log again, after the previous one was dropped.
fn log_conformance<L: LogStore>(mut reopen: impl FnMut() -> L) {
    let origin = LogPosition { index: 1, term: 1 };
    let mut log = reopen();
    assert!(log.meta().is_none() && log.last_index() == 0);
    validate(&log).unwrap();
    let first = LogWrite {
        hard_state: hard_state(1, 1),
        meta: Some(meta(origin, "state-000001")),
        sync: true,
        ..LogWrite::default()
    };
    log.write(first).unwrap();
    let write = |entries, hard_state| LogWrite {
        entries,
        hard_state,
        sync: true,
        ..LogWrite::default()
    };
    log.write(write(entries(2..=10, 1), hard_state(1, 4)))
        .unwrap();
    // A new leader's entries replace the end.
    log.write(write(entries(8..=9, 2), hard_state(2, 5)))
        .unwrap();
    let expected: Vec<_> = (2..=7).map(|i| (i, 1)).chain([(8, 2), (9, 2)]).collect();
    assert_eq!(terms(&log), expected);
    drop(log);

    let mut log = reopen();
    validate(&log).unwrap();
    assert_eq!(terms(&log), expected);
    assert_eq!(log.hard_state(), &hard_state(2, 5).unwrap());
    assert_eq!(log.meta(), Some(&meta(origin, "state-000001")));
    assert_eq!(log.entries(3, 6, u64::MAX).unwrap(), entries(3..=5, 1));
    assert_eq!(
        log.entries(3, 6, 0).unwrap(),
        entries(3..=3, 1),
        "always at least one"
    );
    assert_eq!(log.term(10).unwrap(), None);

    // Compaction keeps the term at the cut.
    let cut = LogPosition { index: 6, term: 1 };
    let compact = LogWrite {
        meta: Some(meta(cut, "state-000001")),
        sync: true,
        ..LogWrite::default()
    };
    log.write(LogWrite {
        hard_state: hard_state(2, 8),
        ..compact
    })
    .unwrap();
    log.purge().unwrap();
    drop(log);
    let mut log = reopen();
    validate(&log).unwrap();
    assert_eq!(terms(&log), [(7, 1), (8, 2), (9, 2)]);
    assert_eq!(log.term(6).unwrap(), Some(1));

    // An installed snapshot replaces the log as a whole, with everything that goes with it.
    let far = LogPosition {
        index: 100,
        term: 5,
    };
    log.write(LogWrite {
        reset: true,
        entries: entries(101..=102, 5),
        hard_state: hard_state(5, 100),
        meta: Some(meta(far, "state-000002")),
        sync: true,
    })
    .unwrap();
    assert_eq!(terms(&log), [(101, 5), (102, 5)]);
    drop(log);
    let log = reopen();
    validate(&log).unwrap();
    assert_eq!(terms(&log), [(101, 5), (102, 5)]);
    assert_eq!(log.meta(), Some(&meta(far, "state-000002")));
    assert_eq!(log.hard_state(), &hard_state(5, 100).unwrap());
}

#[test]
fn the_engine_log_conforms() {
    let directory = tempfile::tempdir().unwrap();
    let options = EngineLogOptions {
        tail_bytes: 60,
        ..EngineLogOptions::default()
    };
    log_conformance(|| EngineLog::open(directory.path(), &options).unwrap());
}

#[test]
fn the_memory_log_conforms() {
    let disk = MemoryDisk::default();
    log_conformance(|| MemoryLog::open(&disk));
}

#[test]
fn a_commit_index_outside_the_log_is_refused_with_a_reason() {
    let mut log = MemoryLog::open(&MemoryDisk::default());
    log.write(LogWrite {
        hard_state: hard_state(1, 9),
        meta: Some(meta(LogPosition { index: 1, term: 1 }, "s")),
        ..LogWrite::default()
    })
    .unwrap();
    let error = validate(&log).unwrap_err().to_string();
    assert!(
        error.contains("commit index 9 lies outside 1..=1"),
        "{error}"
    );
}

fn mark(index: u64) -> Mark {
    Mark {
        position: LogPosition { index, term: 3 },
        now_ms: index * 10,
    }
}

fn put(key: &str, value: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.into(), Some(value.into()))
}

fn all<S: StateStore>(state: &S) -> Vec<(String, String)> {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    state
        .records()
        .map(|r| r.unwrap())
        .map(|(k, v)| (text(k), text(v)))
        .collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn state_conformance(root: &impl StateRoot) {
    assert!(root.open("state-000001").is_err(), "there is none yet");
    let none = HistoryTail::default();
    let mut state = root
        .create("state-000001", mark(1), none, &mut std::iter::empty())
        .unwrap();
    let first = Changes {
        records: vec![put("a", "1"), put("b", "2"), put("c", "3")],
        history: vec![b"one".to_vec(), b"two".to_vec()],
        ..Changes::default()
    };
    state.write(mark(2), first).unwrap();
    let second = Changes {
        records: vec![put("b", "20"), (b"c".to_vec(), None)],
        history: vec![b"three".to_vec()],
        ..Changes::default()
    };
    state.write(mark(3), second).unwrap();
    state.syncer()().unwrap();
    let tail = none.then(b"one").then(b"two").then(b"three");
    drop(state);

    let state = root.open("state-000001").unwrap();
    assert_eq!(
        (state.mark(), state.history(), state.gap()),
        (mark(3), tail, None)
    );
    assert_eq!(all(&state), pairs(&[("a", "1"), ("b", "20")]));
    let reader = state.history_reader();
    assert_eq!(
        reader.read(2, usize::MAX).unwrap(),
        [b"two".to_vec(), b"three".to_vec()]
    );
    assert_eq!(
        reader.read(1, 1).unwrap(),
        [b"one".to_vec()],
        "always at least one"
    );
    assert!(reader.read(4, 9).unwrap().is_empty());

    // Another one from a snapshot further on: what we have of the history is kept.
    let further = tail.then(b"four").then(b"five");
    let record = (b"z".to_vec(), b"26".to_vec());
    let mut next = root
        .create(
            "state-000002",
            mark(9),
            further,
            &mut std::iter::once(Ok(record)),
        )
        .unwrap();
    root.adopt_history(&mut next, &state).unwrap();
    drop((state, reader));
    root.sweep("state-000002").unwrap();
    assert!(root.open("state-000001").is_err());
    let gap = next.gap().unwrap();
    assert_eq!((gap.after, gap.until), (tail, further));

    // New history comes behind the gap; a wrong filling is refused, the right one closes it.
    next.write(
        mark(10),
        Changes {
            history: vec![b"six".to_vec()],
            ..Changes::default()
        },
    )
    .unwrap();
    assert!(
        next.fill(4, vec![b"four".to_vec(), b"forged".to_vec()])
            .is_err()
    );
    assert!(next.fill(5, vec![b"five".to_vec()]).is_err());
    next.fill(4, vec![b"four".to_vec()]).unwrap();
    next.syncer()().unwrap();
    drop(next);
    let mut next = root.open("state-000002").unwrap();
    next.fill(5, vec![b"five".to_vec()]).unwrap();
    assert_eq!(next.gap(), None);
    assert_eq!(next.history(), further.then(b"six"));
    assert_eq!(next.history_reader().read(1, usize::MAX).unwrap().len(), 6);
    assert_eq!(all(&next), pairs(&[("z", "26")]));

    // What is pruned leaves its hash, also in the round in which it was appended.
    let seventh = Changes {
        history: vec![b"seven".to_vec()],
        pruned: vec![2, 7, 99],
        ..Changes::default()
    };
    next.write(mark(11), seventh).unwrap();
    let end = further.then(b"six").then(b"seven");
    assert_eq!(next.history(), end);
    let kept = next.history_reader().read(1, usize::MAX).unwrap();
    assert_eq!(kept.len(), 7);
    assert_eq!(kept[0], b"one");
    assert_eq!(
        (&kept[1], &kept[6]),
        (&tombstone(b"two"), &tombstone(b"seven"))
    );
    // Somebody else can still check the chain with it.
    let mut other = root
        .create("state-000003", mark(11), end, &mut std::iter::empty())
        .unwrap();
    other.fill(1, kept.clone()).unwrap();
    assert_eq!(other.gap(), None);
    let mut forged = kept;
    forged[1] = tombstone(b"another two");
    let mut third = root
        .create("state-000004", mark(11), end, &mut std::iter::empty())
        .unwrap();
    assert!(third.fill(1, forged).is_err());
}

#[test]
fn the_sled_state_conforms() {
    let directory = tempfile::tempdir().unwrap();
    state_conformance(&TreeRoot::new(
        directory.path().to_owned(),
        TreeOptions::default(),
    ));
}

#[test]
fn the_memory_state_conforms() {
    state_conformance(&MemoryRoot::default());
}

#[test]
fn a_snapshot_file_with_any_damaged_byte_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(directory.path().to_owned()).unwrap();
    let header = |index| SnapshotHeader {
        cluster: "c".to_owned(),
        mark: mark(index),
        conf_state: ConfState {
            voters: vec![1],
            ..ConfState::default()
        },
        members: Members::founders(&BTreeMap::from([(1, "a:1".to_owned())])),
        digest: [3; 32],
        history: HistoryTail::default().then(b"x"),
    };
    let content = vec![(b"k".to_vec(), b"v".to_vec()), (b"l".to_vec(), Vec::new())];
    let older = shelf.write(header(5), content.clone().into_iter()).unwrap();
    let newer = shelf.write(header(6), content.clone().into_iter()).unwrap();
    assert_eq!(shelf.newest(|_| true).unwrap(), Some(newer.clone()));
    let read: Vec<_> = records(&newer).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, content);

    let good = std::fs::read(&newer.path).unwrap();
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        std::fs::write(&newer.path, &bad).unwrap();
        assert_eq!(
            shelf.newest(|_| true).unwrap(),
            Some(older.clone()),
            "byte {place}"
        );
    }
    for length in 0..good.len() {
        std::fs::write(&newer.path, &good[..length]).unwrap();
        assert_eq!(
            shelf.newest(|_| true).unwrap(),
            Some(older.clone()),
            "cut to {length}"
        );
    }
}

#[test]
fn files_that_never_became_current_do_not_push_out_our_own() {
    let directory = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(directory.path().to_owned()).unwrap();
    let write = |index| {
        let header = SnapshotHeader {
            cluster: "c".to_owned(),
            mark: mark(index),
            conf_state: ConfState::default(),
            members: Members::default(),
            digest: [3; 32],
            history: HistoryTail::default(),
        };
        shelf.write(header, std::iter::empty()).unwrap()
    };
    let left = || {
        let mut left: Vec<_> = (0..100)
            .filter(|index| shelf.newest(|p| p.index == *index).unwrap().is_some())
            .collect();
        left.sort_unstable();
        left
    };
    for index in [3, 5, 7, 20, 30, 40] {
        write(index);
    }
    shelf.sweep(mark(7).position).unwrap();
    assert_eq!(left(), [5, 7, 40]);
    shelf.sweep(mark(7).position).unwrap();
    assert_eq!(left(), [5, 7, 40]);
    // It became current: what came before it goes in its turn.
    shelf.sweep(mark(40).position).unwrap();
    assert_eq!(left(), [7, 40]);
    let kept = write(41);
    shelf.keep_only(&kept).unwrap();
    assert_eq!(left(), [41]);
}
