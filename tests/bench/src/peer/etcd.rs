//! Three etcd servers of the machine's package.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tonic::transport::Channel;

use super::channels;
use crate::claim::{Claimer, stamp};
use crate::load::{Figure, closed, steady};

/// Messages of etcd's API.
#[allow(
    missing_debug_implementations,
    clippy::all,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated"
)]
pub mod wire {
    tonic::include_proto!("etcdserverpb");
}

use wire::kv_client::KvClient;
use wire::maintenance_client::MaintenanceClient;

/// How long the three may take to elect a leader.
const START: Duration = Duration::from_secs(30);
/// Puts in one transaction: etcd's own limit with default settings.
pub const TXN: u64 = 128;

/// The cluster; its processes end with this value.
#[derive(Debug)]
pub struct Etcd {
    children: Vec<Child>,
    leader: String,
    _folder: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Etcd {
    /// Starts three servers.
    ///
    /// # Errors
    /// They do not start or elect nobody.
    pub async fn start() -> Result<Etcd> {
        let folder = tempfile::Builder::new()
            .prefix("oast-bench-etcd-")
            .tempdir()?;
        // Held until all are chosen, so that they differ.
        let held: Vec<TcpListener> = (0..6)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()?;
        let places: Vec<String> = held
            .iter()
            .map(|port| Ok(port.local_addr()?.to_string()))
            .collect::<Result<_>>()?;
        drop(held);
        let (clients, peers) = places.split_at(3);
        let urls = |scheme, places: &[String]| -> Vec<String> {
            let urls = places.iter().map(|place| format!("{scheme}://{place}"));
            urls.collect()
        };
        // As ours: TLS between members, the bench's own connections plain.
        let (clients, peers) = (urls("http", clients), urls("https", peers));
        let cluster: Vec<String> = (0..3).map(|n| format!("m{n}={}", peers[n])).collect();
        let mut children = Vec::new();
        for number in 0..3 {
            let log = fs::File::create(folder.path().join(format!("m{number}.log")))?;
            let child = Command::new("etcd")
                .args(["--name", &format!("m{number}"), "--log-level", "error"])
                .arg("--data-dir")
                .arg(folder.path().join(format!("m{number}")))
                .args(["--listen-client-urls", &clients[number]])
                .args(["--advertise-client-urls", &clients[number]])
                .args(["--listen-peer-urls", &peers[number]])
                .args(["--initial-advertise-peer-urls", &peers[number]])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-state", "new", "--peer-auto-tls"])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("start etcd")?;
            children.push(child);
        }
        let mut etcd = Etcd {
            children,
            leader: String::new(),
            _folder: folder,
        };
        etcd.leader = leader(&clients).await?;
        Ok(etcd)
    }

    fn kv(&self, clients: usize) -> Result<Vec<KvClient<Channel>>> {
        Ok(channels(&self.leader, clients)?
            .into_iter()
            .map(KvClient::new)
            .collect())
    }

    /// Single puts.
    ///
    /// # Errors
    /// One failed.
    pub async fn puts(&self, clients: usize, time: Duration, value: usize) -> Result<Figure> {
        let kv = self.kv(clients)?;
        closed(clients, time, 1, move |client, number| {
            let mut kv = kv[client % kv.len()].clone();
            async move {
                kv.put(put(number, value)).await?;
                Ok(())
            }
        })
        .await
    }

    /// Transactions of [`TXN`] puts.
    ///
    /// # Errors
    /// One failed.
    pub async fn transactions(
        &self,
        clients: usize,
        time: Duration,
        value: usize,
    ) -> Result<Figure> {
        use wire::request_op::Request::RequestPut;
        let kv = self.kv(clients)?;
        closed(clients, time, TXN, move |client, number| {
            let mut kv = kv[client % kv.len()].clone();
            async move {
                let success = (number..number + TXN)
                    .map(|number| wire::RequestOp {
                        request: Some(RequestPut(put(number, value))),
                    })
                    .collect();
                let compare = Vec::new();
                kv.txn(wire::TxnRequest { compare, success }).await?;
                Ok(())
            }
        })
        .await
    }

    /// From a put of one process to another's claim, which its watch led it to.
    ///
    /// # Errors
    /// A call failed or a claim is missing.
    pub async fn starts(&self, a_second: u32, time: Duration, size: usize) -> Result<Figure> {
        let claimer = Claimer::start(&["claimer", &self.leader], "").await?;
        let kv = self.kv(super::CONNECTIONS)?;
        let round = oast_daemon::random::request_id();
        let asked = steady(a_second, time, |number| {
            let mut kv = kv[usize::try_from(number).unwrap_or(0) % kv.len()].clone();
            let name = format!("{round}-{number}");
            let key = format!("queue/{name}");
            let value = vec![b'x'; size.saturating_sub(key.len())].into();
            async move {
                let at = stamp();
                kv.put(wire::PutRequest {
                    key: key.into(),
                    value,
                })
                .await?;
                Ok((name, at))
            }
        })
        .await?;
        claimer
            .figure(asked.into_iter().collect(), time.as_secs_f64())
            .await
    }
}

fn put(number: u64, size: usize) -> wire::PutRequest {
    let key = format!("runs/{number:016x}");
    let value = vec![b'x'; size.saturating_sub(key.len())];
    wire::PutRequest {
        key: key.into(),
        value: value.into(),
    }
}

async fn leader(clients: &[String]) -> Result<String> {
    let began = Instant::now();
    while began.elapsed() < START {
        for client in clients {
            let Ok(channel) = tonic::transport::Endpoint::from_shared(client.clone())?
                .connect()
                .await
            else {
                continue;
            };
            let status = MaintenanceClient::new(channel)
                .status(wire::StatusRequest {})
                .await;
            let Ok(status) = status else { continue };
            let status = status.into_inner();
            let own = status.header.map(|header| header.member_id);
            if status.leader != 0 && own == Some(status.leader) {
                return Ok(client.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("etcd elected no leader within {START:?}")
}
