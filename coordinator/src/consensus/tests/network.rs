//! The ledger over real gRPC on loopback: three servers, three sets of links.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oast_daemon::clock::{SharedClock, SystemClock, timeout};
use oast_daemon::task::{TaskKind, Tasks};
use oast_model::ledger::{Answer, Command, Request};
use oast_model::principal::Principal;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::group::PATIENCE;
use crate::consensus::driver::{self, Running, Setup};
use crate::consensus::halt::Halt;
use crate::consensus::handle::Handle;
use crate::consensus::ledger::LedgerMachine;
use crate::consensus::machine::View as _;
use crate::consensus::open::{Membership, StoreOptions};
use crate::consensus::options::Options;
use crate::consensus::replica::{ProposeError, Role};
use crate::consensus::transport::grpc::{LinkOptions, Links, PeerServer};

struct Node {
    handle: Handle<LedgerMachine>,
    links: Arc<Links>,
    running: Running,
    stop: CancellationToken,
}

struct Farm {
    nodes: BTreeMap<u64, Node>,
    addresses: BTreeMap<u64, String>,
    options: Options,
    directory: tempfile::TempDir,
    clock: SharedClock,
}

impl Farm {
    async fn new(options: Options) -> Farm {
        let mut listeners = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for member in 1..=3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.insert(member, listener.local_addr().unwrap().to_string());
            listeners.insert(member, listener);
        }
        let mut farm = Farm {
            nodes: BTreeMap::new(),
            addresses,
            options,
            directory: tempfile::tempdir().unwrap(),
            clock: SystemClock::shared(),
        };
        for (member, listener) in listeners {
            farm.start(member, listener);
        }
        farm
    }

    fn start(&mut self, member: u64, listener: tokio::net::TcpListener) {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(self.clock.clone(), stop.clone());
        let open = driver::open::<LedgerMachine>(Setup {
            directory: self.directory.path().join(member.to_string()),
            membership: Membership {
                cluster: "test".to_owned(),
                member,
                initial: self.addresses.clone(),
                ..Membership::default()
            },
            options: self.options.clone(),
            stores: StoreOptions::default(),
            clock: self.clock.clone(),
            halt: Halt::report(move |reason| panic!("member {member} stopped: {reason}")),
        })
        .unwrap();
        let handle = open.handle();
        let links = Links::start(&handle, LinkOptions::default(), &tasks, &self.clock);
        let server = tonic::transport::Server::builder()
            .add_service(PeerServer::service(handle.clone()))
            .serve_with_incoming_shutdown(
                TcpListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        // Drains, so that its connections end like those of a process that ends.
        tasks.spawn("peer-server", TaskKind::SERVICE, server);
        let running = open.start(links.clone()).unwrap();
        self.nodes.insert(
            member,
            Node {
                handle,
                links,
                running,
                stop,
            },
        );
    }

    async fn restart(&mut self, member: u64) {
        let address = self.addresses[&member].clone();
        let node = self.nodes.remove(&member).unwrap();
        node.stop.cancel();
        node.handle.stop();
        drop((node.handle, node.links));
        tokio::task::block_in_place(|| node.running.join());
        let listener = loop {
            match tokio::net::TcpListener::bind(&address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        self.start(member, listener);
    }

    async fn leader(&self) -> u64 {
        let waits = self.nodes.iter().map(|(member, node)| {
            let mut status = node.handle.status();
            Box::pin(async move {
                let leads = status.wait_for(|status| status.role == Role::Leader);
                timeout(&SystemClock, PATIENCE, leads)
                    .await
                    .unwrap()
                    .unwrap();
                *member
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}

fn request(id: &str, command: Command) -> Request {
    Request {
        principal: Principal::farm(),
        request_id: Some(id.to_owned()),
        command,
    }
}

fn init() -> Request {
    let command = Command::InitFarm {
        name: "test".to_owned(),
        admin: "a".to_owned(),
        worker: "w".to_owned(),
    };
    request("init", command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_replicated_over_grpc_and_a_follower_carries_writes() {
    let mut farm = Farm::new(Options {
        tick: Duration::from_millis(20),
        ..Options::default()
    })
    .await;
    let leader = farm.leader().await;
    let follower = leader % 3 + 1;
    let node = &farm.nodes[&follower];
    let carried = node
        .links
        .propose_at::<LedgerMachine>(node.handle.letterhead(leader), &init())
        .await;
    let first = carried.unwrap().answer;
    assert_eq!(first.result, Ok(Answer::Done));

    // The same request again, at the leader itself: one effect, the same answer.
    let again = farm.nodes[&leader]
        .handle
        .propose(&init())
        .await
        .unwrap()
        .answer;
    assert_eq!(again.result, first.result);
    assert!(again.seq > first.seq);

    // Carried to a member that does not lead.
    let other = (1..=3)
        .find(|member| ![leader, follower].contains(member))
        .unwrap();
    let lost = node
        .links
        .propose_at::<LedgerMachine>(node.handle.letterhead(other), &init())
        .await;
    assert_eq!(
        lost.unwrap_err(),
        ProposeError::NotLeader {
            leader: Some(leader)
        }
    );

    farm.restart(leader).await;
    farm.leader().await;
    let mut digests = Vec::new();
    for node in farm.nodes.values() {
        let read = timeout(&SystemClock, PATIENCE, node.handle.read_barrier())
            .await
            .unwrap();
        read.unwrap();
        let view = node.handle.view();
        assert_eq!(view.view.farm().name, "test");
        digests.push(view.view.digest());
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_the_ledger_travels_over_grpc() {
    let mut farm = Farm::new(Options {
        tick: Duration::from_millis(20),
        snapshot_entries: 20,
        trailing_entries: 2,
        max_entry_commands: 1,
        ..Options::default()
    })
    .await;
    let leader = farm.leader().await;
    let behind = leader % 3 + 1;
    farm.nodes[&leader].handle.propose(&init()).await.unwrap();
    let node = farm.nodes.remove(&behind).unwrap();
    node.stop.cancel();
    node.handle.stop();
    drop((node.handle, node.links));
    tokio::task::block_in_place(|| node.running.join());
    for number in 0..60 {
        let command = Command::CreateToken {
            hash: format!("hash-{number}"),
            name: format!("name-{number}"),
            role: oast_model::principal::Role::Viewer,
            team: None,
        };
        let applied = farm.nodes[&leader]
            .handle
            .propose(&request(&format!("token-{number}"), command))
            .await
            .unwrap();
        assert_eq!(applied.answer.result, Ok(Answer::Done));
    }
    let mut status = farm.nodes[&leader].handle.status();
    let compacted = status.wait_for(|status| status.first > 30);
    timeout(&SystemClock, PATIENCE, compacted)
        .await
        .unwrap()
        .unwrap();
    let address = farm.addresses[&behind].clone();
    let listener = loop {
        match tokio::net::TcpListener::bind(&address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    farm.start(behind, listener);
    let node = &farm.nodes[&behind];
    loop {
        let read = timeout(&SystemClock, PATIENCE, node.handle.read_barrier())
            .await
            .unwrap();
        if read.is_ok() {
            break;
        }
    }
    assert_eq!(node.handle.view().view.tokens().len(), 62);
    let counters: BTreeMap<_, _> = node.handle.counters().read().into_iter().collect();
    assert_eq!(counters["snapshots_installed"], 1);
    assert_eq!(
        node.handle.view().view.digest(),
        farm.nodes[&leader].handle.view().view.digest()
    );
}
