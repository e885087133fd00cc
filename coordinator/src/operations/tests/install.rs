//! A received snapshot becomes current although the process dies between any two writes.
//!
//! The child is this test binary, run for one test: it opens a copy of a member that is far
//! behind, gets a snapshot and the history, and is killed at its K-th write. For every K the parent
//! opens what is left, lets it finish, and compares with the leader.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use oast_daemon::clock::{SystemClock, timeout};
use raft::eraftpb::{Message, MessageType, Snapshot};

use super::{Group, PATIENCE};
use crate::consensus::driver;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::View as _;
use crate::consensus::replica::{Note, Status};
use crate::consensus::roster::Letterhead;
use crate::consensus::transport::{FetchError, Transport};
use crate::store::fault;
use crate::store::identity::Identity;
use crate::store::log::LogPosition;
use crate::store::snapshot::{Shelf, SnapshotFile, SnapshotOffer};
use crate::store::state::tree::{TreeOptions, TreeRoot};
use crate::store::state::{HistoryReader, StateRoot as _, StateStore as _};

const DIRECTORY: &str = "OAST_TEST_INSTALL_DIRECTORY";
const POINT: &str = "OAST_TEST_INSTALL_POINT";
/// The member that is behind, and the one that has everything.
const BEHIND: u64 = 2;

/// Answers from the directory of a member that does not run.
struct FromDisk {
    file: SnapshotFile,
    history: Arc<dyn HistoryReader>,
}

impl Transport for FromDisk {
    fn send(&self, _letter: Letterhead, _messages: Vec<Message>) {}

    fn note(&self, _letter: Letterhead, _note: Note) {}

    fn members(&self, _addresses: &BTreeMap<u64, String>) {}

    fn fetch_snapshot(
        &self,
        _letter: Letterhead,
        _offer: &SnapshotOffer,
        offset: u64,
        sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), FetchError> {
        let bytes = std::fs::read(&self.file.path).unwrap();
        for piece in bytes[usize::try_from(offset).unwrap()..].chunks(bytes.len() / 2 + 1) {
            sink(piece).unwrap();
            fault::point("a piece came");
        }
        Ok(())
    }

    fn fetch_history(
        &self,
        _letter: Letterhead,
        first: u64,
        _max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, FetchError> {
        Ok(self.history.read(first, 16 << 10).unwrap())
    }
}

/// The leader's directory, as the other side of the transfer.
struct Source {
    transport: Arc<FromDisk>,
    letter: Letterhead,
    offer: Message,
    digest: [u8; 32],
    position: LogPosition,
    history: u64,
}

/// `folder/leader` names the member that has everything.
fn source(folder: &Path) -> Source {
    let leader: u64 = std::fs::read_to_string(folder.join("leader"))
        .unwrap()
        .parse()
        .unwrap();
    let directory = folder.join(leader.to_string());
    let identity = Identity::read(&directory).unwrap().unwrap();
    let shelf = Shelf::open(directory.join("snapshots")).unwrap();
    let file = shelf.newest(|_| true).unwrap().unwrap();
    let name = state_dir(&directory);
    let state = TreeRoot::new(directory, TreeOptions::default())
        .open(&name)
        .unwrap();
    let position = file.header.mark.position;
    let mut snapshot = Snapshot::default();
    snapshot.set_data(file.offer().encode().into());
    snapshot.mut_metadata().index = position.index;
    snapshot.mut_metadata().term = position.term;
    snapshot
        .mut_metadata()
        .set_conf_state(file.header.conf_state.clone());
    let mut offer = Message::default();
    offer.set_msg_type(MessageType::MsgSnapshot);
    (offer.from, offer.to, offer.term) = (leader, BEHIND, position.term);
    offer.set_snapshot(snapshot);
    let letter = Letterhead {
        cluster: identity.cluster,
        from: leader,
        stamp: identity.stamp,
        to: BEHIND,
        known: [].into(),
        address: String::new(),
        supported_version: 1,
        low_on_space: false,
    };
    Source {
        digest: file.header.digest,
        history: file.header.history.last,
        transport: Arc::new(FromDisk {
            file,
            history: state.history_reader(),
        }),
        letter,
        offer,
        position,
    }
}

fn state_dir(directory: &Path) -> String {
    let names = std::fs::read_dir(directory).unwrap().flatten();
    names
        .map(|entry| entry.file_name().into_string().unwrap())
        .find(|name| name.starts_with("state-"))
        .unwrap()
}

/// Opens the member in `directory` and gives it the snapshot until it has it, with all history.
async fn install(directory: &Path, source: &Source) -> Result<(), String> {
    let group = Group::in_folder(directory.parent().unwrap(), [1, 2, 3]);
    let mut setup = group.setup(BEHIND);
    setup.directory = directory.to_owned();
    let open = driver::open::<LedgerMachine>(setup).map_err(|error| error.to_string())?;
    let handle = open.handle();
    let running = open.start(source.transport.clone()).unwrap();
    let mut status = handle.status();
    let applied = status.borrow().applied;
    assert!(
        applied == source.position.index || applied < source.position.index / 2,
        "neither the old state nor the new one: {applied}"
    );
    let there =
        |status: &Status| status.applied >= source.position.index && status.history_missing == 0;
    let done = async {
        while !there(&status.borrow_and_update()) {
            // The leader offers again until it is answered.
            handle
                .receive(&source.letter, vec![source.offer.clone()])
                .unwrap();
            tokio::select! {
                changed = status.changed() => changed.unwrap(),
                () = oast_daemon::clock::Clock::sleep(&SystemClock, driver_pause()) => {}
            }
        }
    };
    timeout(&SystemClock, PATIENCE, done)
        .await
        .map_err(|_| format!("{:?}", handle.status().borrow()))?;
    assert_eq!(handle.view().view.digest(), source.digest);
    assert_eq!(
        handle.history().read(1, usize::MAX).unwrap().len() as u64,
        source.history
    );
    handle.stop();
    drop(handle);
    running.join();
    Ok(())
}

fn driver_pause() -> std::time::Duration {
    std::time::Duration::from_millis(50)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the parent has no other way to tell"
)]
fn told(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// The child's side; in any other process there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_of_the_install_test() {
    let Some(directory) = told(DIRECTORY) else {
        return;
    };
    let source = source(directory.parent().unwrap());
    let point = told(POINT).unwrap().to_string_lossy().parse().unwrap();
    fault::arm(point);
    install(&directory, &source).await.unwrap();
    use std::io::Write as _;
    writeln!(std::io::stdout(), "\npassed {}", fault::passed()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_writes_of_an_install_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::started(folder.path(), [1, 2, 3]);
    group.found().await;
    group.runs(4).await;
    group.agree().await;
    group.stop(BEHIND);
    group.runs(60).await;
    // A snapshot that the one behind has no entry of.
    let leader = group.leader().await;
    let mut status = group.handle(leader).status();
    timeout(
        &SystemClock,
        PATIENCE,
        status.wait_for(|status| status.first > 60),
    )
    .await
    .unwrap()
    .unwrap();
    group.stop_all();
    drop(group);
    std::fs::write(folder.path().join("leader"), leader.to_string()).unwrap();

    let copy = folder.path().join("copy");
    let mut deaths = Vec::new();
    for point in 1.. {
        let _ = std::fs::remove_dir_all(&copy);
        super::copy_tree(&folder.path().join(BEHIND.to_string()), &copy);
        let child = Process::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "operations::tests::install::child_of_the_install_test",
            ])
            .arg("--nocapture")
            .env(DIRECTORY, &copy)
            .env(POINT, point.to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        let out = String::from_utf8_lossy(&child.stdout).into_owned();
        if child.status.success() {
            assert!(out.contains("passed "), "the child did nothing: {out}");
            break;
        }
        let died = said.lines().find_map(|line| line.strip_prefix("dies at: "));
        let died = died.unwrap_or_else(|| panic!("point {point}: {said}{out}"));
        deaths.push(died.to_owned());
        let source = source(folder.path());
        if let Err(problem) = install(&copy, &source).await {
            panic!("killed at point {point} ({died}): {problem}");
        }
    }
    for step in [
        "a piece came",
        "a snapshot file is verified",
        "a snapshot file is on the shelf",
        "records were written",
        "the mark is missing",
        "a state is not synced",
        "a state is made",
        "the log is to be written",
        "the log was written",
        "history was filled",
    ] {
        assert!(
            deaths.iter().any(|death| death == step),
            "{step}: {deaths:?}"
        );
    }
}
