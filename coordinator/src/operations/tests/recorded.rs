//! Files that an earlier build wrote: log entries, a backup, a snapshot file.
//!
//! `model/src/ledger/tests/recorded.rs` proves that commands keep their meaning; this proves that the
//! files around them stay readable: the envelope of a log entry, and the two kinds of file that hold a
//! whole ledger. `coordinator/testdata/ledger/`:
//!
//! ```text
//! entries-N.bin   { u32 length | envelope }*      a farm's life, several commands an entry
//! farm-N.oast     backup after three quarters of the entries
//! snap-N.oast     a member's snapshot file at the same place
//! end-N.txt       digest after the last entry
//! ```

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft::eraftpb::ConfState;

use super::Group;
use crate::consensus::entry;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::{EncodedCommand, Machine as _, Position, View as _};
use crate::operations::inspect::inspect;
use crate::store::backup::{BackupHeader, BackupReader, BackupWriter};
use crate::store::log::LogPosition;
use crate::store::members::Members;
use crate::store::snapshot::{self, Shelf, SnapshotHeader};
use crate::store::state::{Changes, HistoryTail, Mark, tombstone};

/// Recordings, oldest first; old ones stay.
const RECORDINGS: [u32; 1] = [1];
/// Commands of one entry in a recording.
const COMMANDS: usize = 3;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/ledger")
        .join(name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn entries(recording: u32) -> Vec<Bytes> {
    let bytes = Bytes::from(std::fs::read(path(&format!("entries-{recording}.bin"))).unwrap());
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        entries.push(bytes.slice(at + 4..at + 4 + length));
        at += 4 + length;
    }
    entries
}

/// Applies one entry as a member does.
fn apply(machine: &mut LedgerMachine, index: u64, data: Bytes) -> Changes {
    let envelope = entry::decode(index, data).unwrap();
    for (ordinal, logged) in (0..).zip(envelope.commands) {
        let command = LedgerMachine::decode(logged.kind, &logged.body).unwrap();
        let at = Position {
            index,
            term: 1,
            ordinal,
            now_ms: envelope.now_ms,
        };
        let _ = machine.apply(at, command);
    }
    machine.take_changes()
}

fn loaded(records: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> LedgerMachine {
    LedgerMachine::load(&mut records.map(Ok)).unwrap()
}

/// Where the recording's files were taken: there is history already.
fn place(entries: usize) -> usize {
    entries / 4 * 3
}

/// What a member that goes on from there ends with.
fn end(recording: u32, mut machine: LedgerMachine, from: usize) -> String {
    for (index, data) in (0..).zip(entries(recording)).skip(from) {
        apply(&mut machine, index, data);
    }
    hex(&machine.view().digest())
}

#[test]
fn recorded_entries_and_files_lead_to_the_same_state() {
    for recording in RECORDINGS {
        let expected = std::fs::read_to_string(path(&format!("end-{recording}.txt"))).unwrap();
        let expected = expected.trim();
        let place = place(entries(recording).len());
        let none = LedgerMachine::load(&mut std::iter::empty()).unwrap();
        assert_eq!(end(recording, none, 0), expected);

        let backup = path(&format!("farm-{recording}.oast"));
        let contents = inspect(&backup).unwrap();
        assert!(contents.history.last > 0);
        let bytes = std::fs::read(&backup).unwrap();
        let mut reader = BackupReader::new(&bytes[..]).unwrap();
        let records = std::iter::from_fn(|| reader.record().unwrap());
        assert_eq!(end(recording, loaded(records), place), expected);

        // A shelf takes no file but under its own name.
        let folder = tempfile::tempdir().unwrap();
        let name = format!("snap-{place:020}-{:010}.oast", 1);
        std::fs::copy(
            path(&format!("snap-{recording}.oast")),
            folder.path().join(name),
        )
        .unwrap();
        let shelf = Shelf::open(folder.path().to_owned()).unwrap();
        let file = shelf.newest(|_| true).unwrap().unwrap();
        assert_eq!(file.header.digest, contents.header.digest);
        assert_eq!(file.header.history, contents.history);
        let records = snapshot::records(&file).unwrap().map(Result::unwrap);
        assert_eq!(end(recording, loaded(records), place), expected);
    }
}

/// The commands that `model` recorded.
fn model_log() -> Vec<(u64, EncodedCommand)> {
    let recording = RECORDINGS[RECORDINGS.len() - 1];
    let file = format!("../model/testdata/ledger/log-{recording}.bin");
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let (mut log, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let now = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (kind, length) = (number(at + 8), number(at + 12) as usize);
        let body = bytes[at + 16..at + 16 + length].to_vec().into();
        log.push((now, EncodedCommand { kind, body }));
        at += 16 + length;
    }
    log
}

/// The files of a recording.
struct Recording {
    entries: Vec<u8>,
    farm: Vec<u8>,
    snap: Vec<u8>,
    end: String,
}

fn record(log: &[(u64, EncodedCommand)]) -> Recording {
    let batches: Vec<_> = log.chunks(COMMANDS).collect();
    let mut machine = LedgerMachine::load(&mut std::iter::empty()).unwrap();
    let (mut entries, mut history) = (Vec::new(), Vec::new());
    let (mut farm, mut snap) = (Vec::new(), Vec::new());
    for (index, batch) in (0..).zip(&batches) {
        if index == place(batches.len()) as u64 {
            farm = backup(index, &machine, &history);
            snap = snapshot_file(index, &machine, &history);
        }
        // Commands of one entry share the time of the last.
        let now = batch.last().map_or(0, |(now, _)| *now);
        let commands = batch.iter().map(|(_, command)| command.clone()).collect();
        let data = entry::encode(now, commands);
        entries.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        entries.extend(&data);
        let changes = apply(&mut machine, index, data.into());
        history.extend(changes.history);
        for number in changes.pruned {
            let record = &mut history[usize::try_from(number).unwrap() - 1];
            *record = tombstone(record);
        }
    }
    let end = hex(&machine.view().digest());
    Recording {
        entries,
        farm,
        snap,
        end,
    }
}

fn mark(index: u64) -> Mark {
    Mark {
        position: LogPosition { index, term: 1 },
        now_ms: 0,
    }
}

fn tail(history: &[Vec<u8>]) -> HistoryTail {
    history
        .iter()
        .fold(HistoryTail::default(), |tail, record| tail.then(record))
}

fn backup(index: u64, machine: &LedgerMachine, history: &[Vec<u8>]) -> Vec<u8> {
    let view = machine.view();
    let header = BackupHeader {
        farm: view.farm().name.clone(),
        cluster: view.farm().name.clone(),
        mark: mark(index),
        seq: view.seq().as_u64(),
        digest: view.digest(),
        history: tail(history),
        cluster_version: view.farm().version,
        made_at_ms: 0,
        made_by: "0.1.0".to_owned(),
        member: 1,
        voters: vec![1, 2, 3],
    };
    let mut writer = BackupWriter::begin(Vec::new(), &header, view.records()).unwrap();
    for record in history {
        writer.history(record).unwrap();
    }
    writer.finish().unwrap()
}

fn snapshot_file(index: u64, machine: &LedgerMachine, history: &[Vec<u8>]) -> Vec<u8> {
    let view = machine.view();
    let header = SnapshotHeader {
        cluster: view.farm().name.clone(),
        mark: mark(index),
        conf_state: ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        },
        members: Members::of_voters([1, 2, 3]),
        digest: view.digest(),
        history: tail(history),
    };
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::open(folder.path().to_owned()).unwrap();
    let file = shelf.write(header, view.records()).unwrap();
    std::fs::read(file.path).unwrap()
}

/// With `OAST_RECORD=1`, as `cargo xtask record` sets it after `model`'s recording, this replaces
/// the newest one.
#[test]
fn the_same_log_is_recorded_in_the_same_files() {
    let log = model_log();
    let (recorded, again) = (record(&log), record(&log));
    assert_eq!(recorded.end, again.end);
    assert!(recorded.entries == again.entries);
    assert!(recorded.farm == again.farm && recorded.snap == again.snap);
    if std::env::var_os("OAST_RECORD").is_some() {
        let number = RECORDINGS[RECORDINGS.len() - 1];
        let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
        write(&format!("entries-{number}.bin"), &recorded.entries);
        write(&format!("farm-{number}.oast"), &recorded.farm);
        write(&format!("snap-{number}.oast"), &recorded.snap);
        let end = format!("{}\n", recorded.end);
        write(&format!("end-{number}.txt"), end.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_backup_becomes_a_farm() {
    let folder = tempfile::tempdir().unwrap();
    let plan = crate::operations::restore::Plan {
        file: path("farm-1.oast"),
        directory: folder.path().join("1"),
        member: 1,
        members: [1].into(),
        cluster: None,
    };
    crate::operations::restore::restore(&plan, &oast_daemon::clock::SystemClock).unwrap();
    let mut group = Group::in_folder(folder.path(), [1]);
    group.farm = inspect(&plan.file).unwrap().header.farm;
    group.start(1).unwrap();
    group.leader().await;
    assert!(group.seq().await.epoch() > 0);
}
