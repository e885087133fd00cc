//! The harness, and what a healthy or badly connected group must do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use oast_daemon::clock::{Clock, Sleep, SystemClock, timeout};
use oast_daemon::task::Tasks;
use oast_model::time::Timestamp;

use super::toy::{Command, Lists};
use crate::consensus::change::{Change, ChangeError};
use crate::consensus::driver::{self, Running, Setup};
use crate::consensus::halt::Halt;
use crate::consensus::handle::Handle;
use crate::consensus::open::{self, Membership, OpenError, StoreOptions, Stores};
use crate::consensus::options::Options;
use crate::consensus::replica::{ProposeError, Role, Status};
use crate::consensus::transport::memory::{MemoryNetwork, Weather};
use crate::store::log::LogStore;
use crate::store::log::engine::{EngineLog, EngineLogOptions};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Group {
    pub network: Arc<MemoryNetwork<Lists>>,
    pub options: Options,
    pub halted: Arc<Mutex<Vec<(u64, String)>>>,
    /// Added to a member's wall clock, in milliseconds.
    pub clocks: BTreeMap<u64, Arc<AtomicI64>>,
    members: BTreeMap<u64, (Handle<Lists>, Running)>,
    directory: PathBuf,
    /// Removed at the end, unless somebody else owns the directory.
    owned_directory: Option<tempfile::TempDir>,
}

pub fn options() -> Options {
    Options {
        tick: Duration::from_millis(20),
        ..Options::default()
    }
}

impl Group {
    pub fn of_three(seed: u64, options: Options) -> Self {
        let owned = tempfile::tempdir().unwrap();
        let directory = owned.path().to_owned();
        let mut group = Group::of_three_in(directory, seed, options);
        group.owned_directory = Some(owned);
        group
    }

    pub fn of_three_in(directory: PathBuf, seed: u64, options: Options) -> Self {
        let mut group = Group {
            network: MemoryNetwork::new(seed),
            options,
            halted: Arc::default(),
            clocks: BTreeMap::new(),
            members: BTreeMap::new(),
            directory,
            owned_directory: None,
        };
        for member in 1..=3 {
            group.start(member);
        }
        group
    }

    pub fn path(&self, member: u64) -> PathBuf {
        self.directory.join(member.to_string())
    }

    pub fn setup(&mut self, member: u64) -> Setup {
        let halted = self.halted.clone();
        let skew = self.clocks.entry(member).or_default().clone();
        Setup {
            directory: self.path(member),
            membership: if member <= 3 {
                Membership::founder("test", member, [1, 2, 3])
            } else {
                Membership {
                    cluster: "test".to_owned(),
                    member,
                    stamp: Some(stamp_of(member)),
                    ..Membership::default()
                }
            },
            options: self.options.clone(),
            stores: StoreOptions {
                log: EngineLogOptions {
                    segment_bytes: 1 << 20,
                    purge_threshold_bytes: 2 << 20,
                    tail_bytes: 64 << 10,
                },
                ..StoreOptions::default()
            },
            clock: Arc::new(Skewed(skew)),
            halt: Halt::report(move |reason| {
                halted.lock().unwrap().push((member, reason.to_owned()));
            }),
        }
    }

    pub fn start(&mut self, member: u64) {
        self.try_start(member).unwrap();
    }

    pub fn try_start(&mut self, member: u64) -> Result<(), OpenError> {
        let setup = self.setup(member);
        let open = driver::open::<Lists>(setup)?;
        let handle = open.handle();
        self.network.join(handle.clone());
        let running = open.start(self.network.clone()).unwrap();
        self.members.insert(member, (handle, running));
        Ok(())
    }

    /// Starts a member over another log than its own.
    pub fn start_over<L: LogStore>(&mut self, member: u64, wrap: impl FnOnce(EngineLog) -> L) {
        let setup = self.setup(member);
        let stores = open::open_stores(&setup.directory, &setup.membership, &setup.stores).unwrap();
        let stores = Stores {
            log: wrap(stores.log),
            root: stores.root,
            shelf: stores.shelf,
            identity: stores.identity,
        };
        let open = driver::open_with::<Lists, _, _>(setup, stores).unwrap();
        let handle = open.handle();
        self.network.join(handle.clone());
        let running = open.start(self.network.clone()).unwrap();
        self.members.insert(member, (handle, running));
    }

    /// Proposes to whoever leads, except to one that may stop meanwhile.
    pub async fn must_apply_but(&self, failing: u64, command: Command) {
        let others: Vec<_> = self
            .handles()
            .into_iter()
            .filter(|handle| handle.member() != failing)
            .collect();
        loop {
            for handle in &others {
                if handle.propose(&command).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(self.options.tick).await;
        }
    }

    /// Changes the group at whoever leads, again and again while it says that this helps.
    pub async fn change(&self, request_id: &str, change: Change) -> Result<Vec<u64>, ChangeError> {
        loop {
            let leader = self.leader().await;
            match self.handle(leader).change(request_id, change.clone()).await {
                Ok(changed) => return Ok(changed.members),
                Err(
                    ChangeError::NotLeader { .. }
                    | ChangeError::HandingOver { .. }
                    | ChangeError::Pending
                    | ChangeError::Unknown
                    | ChangeError::History { .. }
                    | ChangeError::Lags { .. }
                    | ChangeError::Silent { .. },
                ) => tokio::time::sleep(self.options.tick).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// A member that was not there before joins as a learner.
    pub async fn grow(&mut self) -> u64 {
        let call = format!("grow-{}", self.clocks.len());
        let address = format!("{call}:7443");
        let added = self
            .change(&call, Change::AddLearners(vec![address.clone()]))
            .await;
        let member = added.unwrap()[0];
        let stamp = stamp_of(member);
        let joined = self.change("", Change::Join { address, stamp }).await;
        assert_eq!(joined.unwrap(), [member]);
        self.start(member);
        member
    }

    pub async fn promote(&self, member: u64, replaces: Option<u64>) -> Result<(), ChangeError> {
        let call = format!("promote-{member}");
        let promote = Change::Promote {
            member,
            replaces,
            disk_lost: false,
        };
        self.change(&call, promote).await.map(drop)
    }

    pub async fn remove(&self, member: u64) -> Result<(), ChangeError> {
        let call = format!("remove-{member}");
        self.change(&call, remove(member)).await.map(drop)
    }

    pub fn stop(&mut self, member: u64) {
        self.network.leave(member);
        if let Some((handle, running)) = self.members.remove(&member) {
            handle.stop();
            drop(handle);
            running.join();
        }
    }

    pub fn handle(&self, member: u64) -> Handle<Lists> {
        self.members[&member].0.clone()
    }

    pub fn handles(&self) -> Vec<Handle<Lists>> {
        self.members
            .values()
            .map(|(handle, _)| handle.clone())
            .collect()
    }

    pub async fn wait(&self, member: u64, what: &str, done: impl FnMut(&Status) -> bool) -> Status {
        let mut status = self.handle(member).status();
        let waited = timeout(&SystemClock, PATIENCE, status.wait_for(done)).await;
        if let Ok(status) = waited {
            return status.unwrap().clone();
        }
        let all: Vec<_> = self
            .handles()
            .iter()
            .map(|h| h.status().borrow().clone())
            .collect();
        panic!(
            "{what}: waited for member {member}, all are at {all:#?}, {:?}",
            self.halted
        );
    }

    /// Waits until some running member leads with the full state.
    pub async fn leader(&self) -> u64 {
        let waits = self.members.keys().map(|member| {
            Box::pin(async move {
                self.wait(*member, "no leader", |status| status.role == Role::Leader)
                    .await;
                *member
            })
        });
        futures_util::future::select_all(waits).await.0
    }

    /// Proposes to whoever leads until it is acknowledged.
    pub async fn must_apply(&self, command: Command) {
        loop {
            let leader = self.leader().await;
            match self.handle(leader).propose(&command).await {
                Ok(_) => return,
                Err(ProposeError::Stopped) => panic!("member {leader} stopped"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Waits until all running members have applied the same, then compares their states.
    pub async fn converge(&self) {
        self.must_apply(Command::Append {
            list: 255,
            value: 0,
        })
        .await;
        let target = self.handle(self.leader().await).status().borrow().applied;
        for member in self.members.keys() {
            self.wait(*member, "does not catch up", |status| {
                status.applied >= target
            })
            .await;
        }
        let views: Vec<_> = self.handles().iter().map(|handle| handle.view()).collect();
        for view in &views {
            if view.mark == views[0].mark {
                assert_eq!(digest(view), digest(&views[0]), "at {:?}", view.mark);
            }
        }
        assert!(self.halted.lock().unwrap().is_empty(), "{:?}", self.halted);
    }
}

/// A member leaves whose disk is good.
pub fn remove(member: u64) -> Change {
    Change::Remove {
        member,
        disk_lost: false,
    }
}

/// Creation stamp of a member that joins.
pub fn stamp_of(member: u64) -> u64 {
    7_000 + member
}

/// The system's clock, with a calendar that is off.
#[derive(Debug)]
struct Skewed(Arc<AtomicI64>);

impl Clock for Skewed {
    fn wall(&self) -> Timestamp {
        let off = self.0.load(Ordering::Relaxed);
        Timestamp::from_millis(SystemClock.wall().as_millis().saturating_add_signed(off))
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }

    fn sleep(&self, d: Duration) -> Sleep {
        SystemClock.sleep(d)
    }
}

type PublishedLists = crate::consensus::handle::Published<super::toy::ListsView>;

pub fn digest(published: &PublishedLists) -> [u8; 32] {
    crate::consensus::machine::View::digest(&published.view)
}

impl Drop for Group {
    fn drop(&mut self) {
        let members: Vec<u64> = self.members.keys().copied().collect();
        for member in members {
            self.stop(member);
        }
    }
}

/// Seeds and measured times belong into a test's output.
#[expect(clippy::disallowed_macros, reason = "the test harness captures it")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

pub fn copy_tree(from: &Path, to: &Path) {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_answered_and_visible_on_every_member() {
    let group = Group::of_three(1, options());
    let leader = group.leader().await;
    let applied = group
        .handle(leader)
        .propose(&Command::Append { list: 7, value: 42 })
        .await
        .unwrap();
    assert_eq!(applied.answer, 1);
    assert_eq!(
        group.handle(leader).view().view.0[&7],
        [42],
        "the view is published before the answer"
    );
    for handle in group.handles() {
        handle.read_barrier().await.unwrap();
        assert_eq!(handle.view().view.0[&7], [42]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_refuses_commands_and_names_the_leader() {
    let group = Group::of_three(2, options());
    let leader = group.leader().await;
    let follower = (1..=3).find(|member| *member != leader).unwrap();
    group
        .wait(follower, "no leader known", |status| {
            status.leader == Some(leader)
        })
        .await;
    let refused = group
        .handle(follower)
        .propose(&Command::Close { list: 1 })
        .await;
    assert_eq!(
        refused,
        Err(ProposeError::NotLeader {
            leader: Some(leader)
        })
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commands_share_few_entries() {
    let group = Group::of_three(3, options());
    let leader = group.handle(group.leader().await);
    let proposals = (0..2_000).map(|value| {
        let leader = leader.clone();
        async move {
            leader
                .propose(&Command::Append { list: 1, value })
                .await
                .unwrap()
                .answer
        }
    });
    let mut lengths = futures_util::future::join_all(proposals).await;
    lengths.sort_unstable();
    assert_eq!(lengths, (1..=2_000).collect::<Vec<_>>());
    let counters: BTreeMap<_, _> = leader.counters().read().into_iter().collect();
    assert!(counters["entries_proposed"] < 1_000, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let group = Group::of_three(4, options());
    let leader = group.leader().await;
    let heir = leader % 3 + 1;
    group.handle(leader).transfer_leadership(heir);
    group
        .wait(heir, "the heir does not lead", |status| {
            status.role == Role::Leader
        })
        .await;
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_majority_serves_no_read_and_acknowledges_nothing() {
    let group = Group::of_three(
        5,
        Options {
            read_timeout_ticks: 30,
            ..options()
        },
    );
    let leader = group.leader().await;
    for other in (1..=3).filter(|member| *member != leader) {
        group.network.cut(leader, other, true);
    }
    let handle = group.handle(leader);
    let command = Command::Append { list: 9, value: 9 };
    let (read, proposed) = tokio::join!(handle.read_barrier(), handle.propose(&command));
    assert!(read.is_err());
    // Accepted before it noticed, or refused after it stepped down; never acknowledged.
    assert!(matches!(
        proposed,
        Err(ProposeError::Unknown | ProposeError::NotLeader { .. })
    ));
    let others = (1..=3).filter(|member| *member != leader);
    for other in others.clone() {
        group.network.cut(leader, other, false);
    }
    group.converge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_is_there_within_a_second_and_a_half_at_default_timing() {
    let mut group = Group::of_three(6, Options::default());
    let leader = group.leader().await;
    group
        .must_apply(Command::Append { list: 1, value: 1 })
        .await;
    // Silence from one moment to the next, as after SIGKILL: nobody says goodbye.
    let rest: Vec<u64> = (1..=3).filter(|member| *member != leader).collect();
    for other in &rest {
        group.network.cut(leader, *other, true);
    }
    let began = SystemClock.monotonic();
    let (a, b) = (rest[0], rest[1]);
    let leads = |status: &Status| status.role == Role::Leader;
    tokio::select! {
        _ = group.wait(a, "no new leader", leads) => {}
        _ = group.wait(b, "no new leader", leads) => {}
    }
    let took = SystemClock.monotonic() - began;
    say(&format!("failover took {took:?}"));
    assert!(took < Duration::from_millis(1_500), "{took:?}");
    group.stop(leader);
}

/// Commands from several clients while messages get lost, come late, and members restart in turn:
/// what was acknowledged is there, once, and the members agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_in_bad_weather_with_restarts() {
    let tasks = Tasks::new(
        SystemClock::shared(),
        tokio_util::sync::CancellationToken::new(),
    );
    for seed in [11, 12] {
        say(&format!("seed {seed}"));
        let options = Options {
            snapshot_entries: 150,
            trailing_entries: 20,
            seed,
            ..options()
        };
        let mut group = Group::of_three(seed, options);
        group.leader().await;
        group.network.set_weather(Weather {
            lost_per_mille: 40,
            late_per_mille: 60,
        });
        let handles = Arc::new(Mutex::new(group.handles()));
        let stop = tokio_util::sync::CancellationToken::new();
        let clients: Vec<_> = (0..4_u8)
            .map(|client| {
                let (handles, stop) = (handles.clone(), stop.clone());
                tasks.job("client", async move {
                    let mut acknowledged = Vec::new();
                    for value in 0.. {
                        if stop.is_cancelled() {
                            break;
                        }
                        let known = handles.lock().unwrap().clone();
                        for handle in known {
                            let command = Command::Append {
                                list: client,
                                value,
                            };
                            match handle.propose(&command).await {
                                Ok(_) => {
                                    acknowledged.push(value);
                                    break;
                                }
                                // May be applied: never propose this value again.
                                Err(ProposeError::Unknown | ProposeError::Stopped) => break,
                                Err(_) => tokio::task::yield_now().await,
                            }
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        for round in 0..6_u64 {
            let leader = group.leader().await;
            let victim = if round % 2 == 0 {
                leader
            } else {
                round % 3 + 1
            };
            group.stop(victim);
            *handles.lock().unwrap() = group.handles();
            group
                .must_apply(Command::Append {
                    list: 100,
                    value: round,
                })
                .await;
            group.start(victim);
            *handles.lock().unwrap() = group.handles();
            group
                .must_apply(Command::Append {
                    list: 101,
                    value: round,
                })
                .await;
        }
        stop.cancel();
        group.network.set_weather(Weather::default());
        group.converge().await;
        let view = group.handle(group.leader().await).view();
        let mut total = 0;
        for (client, task) in (0..).zip(clients) {
            let acknowledged = task.value().await.unwrap();
            let found = view.view.0.get(&client).cloned().unwrap_or_default();
            let mut sorted = found.clone();
            sorted.dedup();
            assert_eq!(
                sorted, found,
                "client {client}: a value is there twice in a row"
            );
            assert!(
                found.is_sorted(),
                "client {client}: one command overtook another"
            );
            for value in &acknowledged {
                assert!(
                    found.binary_search(value).is_ok(),
                    "client {client} lost {value}"
                );
            }
            total += acknowledged.len();
        }
        say(&format!("{total} commands acknowledged"));
        assert!(total > 0, "the clients got nothing through");
    }
}
