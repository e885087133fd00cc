//! Groups of members on real stores, in one process, with the real ledger.

mod install;
mod recorded;
mod recovery;
mod room;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oast_daemon::clock::{SystemClock, timeout};
use oast_model::digest::Digest;
use oast_model::ids::{RunId, Seq};
use oast_model::ledger::{Answer, Applied, Command, Request, SubmitRun};
use oast_model::principal::Principal;
use oast_model::resource::{Resource, Team};
use oast_model::task::Origin;

use crate::consensus::driver::{self, Running, Setup};
use crate::consensus::halt::Halt;
use crate::consensus::handle::Handle;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::View as _;
use crate::consensus::open::{Membership, OpenError, StoreOptions};
use crate::consensus::options::Options;
use crate::consensus::replica::{ProposeError, Role};
use crate::consensus::transport::memory::MemoryNetwork;
use crate::operations::save::{Maker, save};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const FARM: &str = "demo";

struct Group {
    network: Arc<MemoryNetwork<LedgerMachine>>,
    members: BTreeMap<u64, (Handle<LedgerMachine>, Running)>,
    initial: BTreeSet<u64>,
    halted: Arc<Mutex<Vec<String>>>,
    farm: String,
    folder: PathBuf,
}

impl Group {
    /// Members in directories named after their ids.
    fn in_folder(folder: &Path, initial: impl IntoIterator<Item = u64>) -> Group {
        Group {
            network: MemoryNetwork::new(1),
            members: BTreeMap::new(),
            initial: initial.into_iter().collect(),
            halted: Arc::default(),
            farm: FARM.to_owned(),
            folder: folder.to_owned(),
        }
    }

    fn started(folder: &Path, initial: impl IntoIterator<Item = u64>) -> Group {
        let mut group = Group::in_folder(folder, initial);
        for member in group.initial.clone() {
            group.start(member).unwrap();
        }
        group
    }

    fn path(&self, member: u64) -> PathBuf {
        self.folder.join(member.to_string())
    }

    fn setup(&self, member: u64) -> Setup {
        let halted = self.halted.clone();
        Setup {
            directory: self.path(member),
            membership: Membership::founder(&self.farm, member, self.initial.clone()),
            options: Options {
                tick: Duration::from_millis(20),
                snapshot_entries: 40,
                trailing_entries: 5,
                ..Options::default()
            },
            stores: StoreOptions::default(),
            clock: SystemClock::shared(),
            halt: Halt::report(move |reason| halted.lock().unwrap().push(reason.to_owned())),
        }
    }

    fn start(&mut self, member: u64) -> Result<(), OpenError> {
        let open = driver::open::<LedgerMachine>(self.setup(member))?;
        let handle = open.handle();
        self.network.join(handle.clone());
        let running = open.start(self.network.clone()).unwrap();
        self.members.insert(member, (handle, running));
        Ok(())
    }

    fn stop(&mut self, member: u64) {
        self.network.leave(member);
        if let Some((handle, running)) = self.members.remove(&member) {
            handle.stop();
            drop(handle);
            running.join();
        }
    }

    fn stop_all(&mut self) {
        for member in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(member);
        }
    }

    fn handle(&self, member: u64) -> Handle<LedgerMachine> {
        self.members[&member].0.clone()
    }

    async fn leader(&self) -> u64 {
        let waits = self.members.iter().map(|(member, (handle, _))| {
            let mut status = handle.status();
            Box::pin(async move {
                let leads = status.wait_for(|status| status.role == Role::Leader);
                let led = timeout(&SystemClock, PATIENCE, leads).await;
                assert!(led.is_ok(), "member {member} does not lead");
                *member
            })
        });
        futures_util::future::select_all(waits).await.0
    }

    /// Proposes to whoever leads until it is acknowledged.
    async fn ask(&self, command: Command) -> Applied {
        let request = Request {
            principal: Principal::farm(),
            request_id: Some(oast_daemon::random::request_id()),
            command,
        };
        loop {
            let leader = self.leader().await;
            match self.handle(leader).propose(&request).await {
                Ok(applied) => return applied.answer,
                Err(ProposeError::Stopped) => panic!("stopped: {:?}", self.halted),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    async fn must(&self, command: Command) -> Applied {
        let applied = self.ask(command).await;
        assert!(applied.result.is_ok(), "{:?}", applied.result);
        applied
    }

    /// Gives the farm its name and a team.
    async fn found(&self) {
        self.must(Command::InitFarm {
            name: FARM.to_owned(),
            admin: "a".to_owned(),
            worker: "w".to_owned(),
        })
        .await;
        let team = Team {
            name: "payments".parse().unwrap(),
            description: None,
            members: Vec::new(),
            weight: 1,
            quota: None,
            retention: None,
        };
        self.must(Command::ApplyResource {
            resource: Box::new(Resource::Team(team)),
            expected: None,
        })
        .await;
    }

    /// Submits runs; every other one is cancelled, which makes it history. Returns all ids.
    async fn runs(&self, count: usize) -> Vec<RunId> {
        let mut ids = Vec::new();
        for number in 0..count {
            let applied = self.must(submit()).await;
            let Ok(Answer::Run(run)) = applied.result else {
                panic!("{applied:?}")
            };
            assert_eq!(run.0, applied.seq);
            if number % 2 == 0 {
                let reason = "enough".to_owned();
                self.must(Command::CancelRun { run, reason }).await;
            }
            ids.push(run);
        }
        ids
    }

    /// The last number that the leader issued.
    async fn seq(&self) -> Seq {
        let leader = self.leader().await;
        self.handle(leader).view().view.seq()
    }

    /// Waits until all members show what was acknowledged, and that they agree.
    async fn agree(&self) -> [u8; 32] {
        let mut digests = Vec::new();
        for (handle, _) in self.members.values() {
            loop {
                let read = timeout(&SystemClock, PATIENCE, handle.read_barrier()).await;
                if read.unwrap().is_ok() {
                    break;
                }
            }
            digests.push(handle.view().view.digest());
        }
        assert!(digests.iter().all(|digest| *digest == digests[0]));
        digests[0]
    }

    /// What `oast operator snapshot save` fetches from a member.
    fn save(&self, member: u64, file: &Path) {
        let handle = self.handle(member);
        let status = handle.status().borrow().clone();
        let maker = Maker {
            status: &status,
            now_ms: 7,
        };
        let bytes = save(&handle.view(), &*handle.history(), &maker, Vec::new()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.stop_all();
    }
}

fn submit() -> Command {
    Command::SubmitRun(SubmitRun {
        team: "payments".parse().unwrap(),
        repository: None,
        origin: Origin::Upload {
            tree: Digest::of(b"tree"),
            commit: None,
            dirty: false,
        },
        path: "oast.yaml".to_owned(),
        cause: "test".to_owned(),
        inputs: BTreeMap::new(),
        priority: None,
    })
}

/// Every run of the list is open or in the history of this member.
fn assert_runs(handle: &Handle<LedgerMachine>, runs: &[RunId]) {
    let index = tempfile::tempdir().unwrap();
    let archive = crate::archive::Archive::open(handle.clone(), index.path()).unwrap();
    let view = handle.view();
    for (number, run) in runs.iter().enumerate() {
        let open = view.view.runs().contains(run);
        let over = archive.run(*run).unwrap().is_some();
        assert_eq!((open, over), (number % 2 == 1, number % 2 == 0), "{run}");
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
