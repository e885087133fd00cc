//! From a submission to a worker that may begin: the processes that stamp the second moment.
//!
//! Both sides write one line for each piece of work to stdout, `KEY NANOSECONDS`, by the clock
//! that all processes of a machine share; the bench joins them with the moments of asking.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use oast_model::codec;
use oast_model::task::{Assignment, Outcome, Report};
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::from_worker::Message as Up;
use oast_proto::worker::v1::to_worker::Message as Down;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::load::Figure;
use crate::peer::etcd::wire as etcd;
use crate::session::{Player, Session};

/// Tasks that the bench's worker holds side by side; the farm's own limit for one worker.
const SLOTS: u32 = 256;
/// Messages on the way to the farm.
const OUTBOX: usize = 1024;
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// How long the last pieces of work may take to be claimed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nanoseconds of the machine's wall clock, which all its processes share.
#[must_use]
pub fn stamp() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}

/// A process that claims work.
#[derive(Debug)]
pub struct Claimer {
    child: Child,
    stamps: Arc<Mutex<HashMap<String, u128>>>,
}

impl Claimer {
    /// Starts this binary in another role and waits until it is connected.
    ///
    /// # Errors
    /// It ended before.
    pub async fn start(args: &[&str], token: &str) -> Result<Claimer> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            // Not in argv, where the whole machine could read it.
            .env("OAST_BENCH_TOKEN", token)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines();
        match lines.next_line().await? {
            Some(line) if line == "ready" => {}
            other => bail!("{args:?} said {other:?}"),
        }
        let stamps = Arc::new(Mutex::new(HashMap::new()));
        let known = Arc::clone(&stamps);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some((key, at)) = line.split_once(' ')
                    && let Ok(at) = at.parse()
                {
                    let mut known = known.lock().expect("nobody panics with it");
                    known.entry(key.to_owned()).or_insert(at);
                }
            }
        });
        Ok(Claimer { child, stamps })
    }

    /// Waits for all that was asked and gives the times between.
    ///
    /// # Errors
    /// Something was never claimed.
    pub async fn figure(mut self, asked: HashMap<String, u128>, seconds: f64) -> Result<Figure> {
        let began = Instant::now();
        loop {
            let missing = {
                let stamps = self.stamps.lock().expect("nobody panics with it");
                asked
                    .keys()
                    .filter(|key| !stamps.contains_key(*key))
                    .count()
            };
            if missing == 0 {
                break;
            }
            if began.elapsed() > PATIENCE {
                bail!("{missing} of {} were never claimed", asked.len());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child.kill().await?;
        let stamps = self.stamps.lock().expect("nobody panics with it");
        let latencies = asked
            .iter()
            .filter_map(|(key, at)| {
                let nanos = stamps.get(key)?.saturating_sub(*at);
                Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
            })
            .collect();
        Ok(Figure::of(latencies, seconds))
    }
}

/// `oast-bench worker ADDRESS`: a worker of the farm that takes source tasks, says when it got
/// each, and ends it at once.
///
/// # Errors
/// The session broke.
pub async fn worker(address: &str) -> Result<()> {
    let token = std::env::var("OAST_BENCH_TOKEN")?;
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let player = Player {
        name: "bench".into(),
        incarnation: u64::try_from(stamp())?,
        slots: SLOTS,
        heartbeat: HEARTBEAT,
        outbox: OUTBOX,
    };
    let mut session = Session::begin(channel, &token, player).await?;
    let mut stdout = std::io::stdout().lock();
    let mut numbers = 0;
    loop {
        match session.next().await? {
            Some(Down::Welcome(_)) => {
                writeln!(stdout, "ready")?;
                stdout.flush()?;
            }
            Some(Down::Redirect(to)) => bail!("{address} does not lead, but {}", to.leader),
            Some(Down::Assignments(assignments)) => {
                let at = stamp();
                for begin in assignments.begin {
                    let assignment: Assignment = codec::decode(&begin.spec)?;
                    if let Some(run) = assignment.run {
                        writeln!(stdout, "{run} {at}")?;
                    }
                    numbers += 1;
                    let outcome = Outcome::Skipped {
                        reason: "the bench asked only for its start".into(),
                    };
                    let report = wire::Report {
                        number: numbers,
                        token: begin.token,
                        body: codec::encode(&Report::Finished(outcome)).into(),
                    };
                    session.say(Up::Report(report)).await?;
                }
                stdout.flush()?;
            }
            _ => {}
        }
    }
}

/// `oast-bench claimer ADDRESS`: watches etcd's queue and claims each key by a transaction.
///
/// # Errors
/// etcd did not answer.
pub async fn claimer(address: &str) -> Result<()> {
    use etcd::request_op::Request::RequestPut;
    use etcd::watch_request::RequestUnion::CreateRequest;
    let channel = Endpoint::from_shared(address.to_owned())?
        .tcp_nodelay(true)
        .connect()
        .await?;
    let (ask, asked) = mpsc::channel(1);
    ask.send(etcd::WatchRequest {
        request_union: Some(CreateRequest(etcd::WatchCreateRequest {
            key: "queue/".into(),
            range_end: "queue0".into(),
        })),
    })
    .await?;
    let mut watch = etcd::watch_client::WatchClient::new(channel.clone())
        .watch(ReceiverStream::new(asked))
        .await?
        .into_inner();
    let kv = etcd::kv_client::KvClient::new(channel);
    while let Some(answer) = watch.message().await? {
        if answer.created {
            print("ready\n")?;
        }
        for event in answer.events {
            let Some(pair) = event.kv else { continue };
            let mut kv = kv.clone();
            tokio::spawn(async move {
                let name = String::from_utf8_lossy(&pair.key).replace("queue/", "");
                let claim = format!("claim/{name}");
                let claimed = kv
                    .txn(etcd::TxnRequest {
                        compare: vec![etcd::Compare {
                            key: claim.clone().into(),
                            ..etcd::Compare::default()
                        }],
                        success: vec![etcd::RequestOp {
                            request: Some(RequestPut(etcd::PutRequest {
                                key: claim.into(),
                                value: "bench".into(),
                            })),
                        }],
                    })
                    .await;
                if claimed.is_ok_and(|answer| answer.into_inner().succeeded) {
                    // The bench is gone when nobody reads it.
                    let _ = print(&format!("{name} {}\n", stamp()));
                }
            });
        }
    }
    Ok(())
}

fn print(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
