//! `cargo xtask bench scale`: a farm of the size that it is built for, on one machine.
//!
//! ```text
//! 200 teams, 2,000 connected workers with one task each, 100,000 open tasks
//!   -> memory of the members
//!   -> the longest wait of a submission while the leader makes a snapshot of it
//!   -> time from a member's start to its first linearizable answer
//! ```
//!
//! What one scheduling decision costs at this size is `cargo xtask bench schedule`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use oast_proto::v1::ListFleetsRequest;
use oast_proto::worker::v1::to_worker::Message as Down;
use oast_tests::api::call;
use oast_tests::http;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::load::steady;
use crate::peer::oast::Oast;
use crate::session::{Player, Session};

/// Tasks that are open: each run has one.
const RUNS: u64 = 100_000;
const WORKERS: usize = 2_000;
/// Sessions of one connection.
const SESSIONS: usize = 100;
/// Between two signs of life of a worker; the farm's default.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Messages of a worker on the way to the farm.
const OUTBOX: usize = 8;
/// Submissions a second while the snapshot is waited for.
const RATE: u32 = 400;
/// A snapshot is made every 10,000 log entries, so by then there was one.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(60);
const SLICE: Duration = Duration::from_secs(1);
const RESTART_WAIT: Duration = Duration::from_secs(60);

/// Runs it and prints what it finds.
///
/// # Errors
/// Something failed under the load.
pub async fn scale(oast: &Path, size: usize) -> Result<()> {
    let farm = Oast::start(oast, false).await?;
    let workers = connect(&farm).await?;
    let began = Instant::now();
    farm.fill(RUNS, size).await?;
    let filled = began.elapsed();
    println!(
        "{RUNS} runs of {} teams in {:.1} s, {} workers connected",
        crate::peer::oast::TEAMS,
        filled.as_secs_f64(),
        workers.len()
    );
    for member in 1..=3 {
        println!(
            "member {member}: {:.0} MiB resident",
            memory(&farm, member)?
        );
    }
    stall(&farm, size).await?;
    for member in 1..=3 {
        let took = restart(&farm, member).await?;
        println!(
            "member {member} restarted after a kill: serves after {:.2} s, {:.0} MiB resident",
            took.as_secs_f64(),
            memory(&farm, member)?
        );
    }
    drop(workers);
    farm.finish().await
}

/// Workers that take one task each and say every two seconds that they live.
async fn connect(farm: &Oast) -> Result<JoinSet<Result<()>>> {
    let mut sessions = JoinSet::new();
    let (ready, mut connected) = mpsc::channel(WORKERS);
    let mut channel = None;
    for number in 0..WORKERS {
        let channel = match (&channel, number % SESSIONS) {
            (Some(channel), 1..) => Channel::clone(channel),
            _ => {
                let address = format!("http://{}", farm.farm().address(farm.leader()));
                let made = Endpoint::from_shared(address)?.connect().await?;
                channel.insert(made).clone()
            }
        };
        let (token, ready) = (farm.farm().token("worker").to_owned(), ready.clone());
        sessions.spawn(session(channel, token, number, ready));
    }
    for _ in 0..WORKERS {
        tokio::select! {
            connected = connected.recv() => connected.context("a worker connects")?,
            Some(ended) = sessions.join_next() => {
                ended??;
                bail!("a worker's session ended");
            }
        }
    }
    Ok(sessions)
}

/// Lives until the leader goes, which the restarts at the end make it do.
async fn session(
    channel: Channel,
    token: String,
    number: usize,
    ready: mpsc::Sender<()>,
) -> Result<()> {
    let player = Player {
        name: format!("scale-{number}"),
        incarnation: 1,
        slots: 1,
        heartbeat: HEARTBEAT,
        outbox: OUTBOX,
    };
    let mut session = Session::begin(channel, &token, player).await?;
    loop {
        if let Some(Down::Welcome(_)) = session.next().await? {
            ready.send(()).await?;
        }
    }
}

/// Submissions at a steady rate until the leader has made a snapshot meanwhile.
async fn stall(farm: &Oast, size: usize) -> Result<()> {
    let before = snapshots(farm)?;
    let began = Instant::now();
    let mut worst = Duration::ZERO;
    let mut all = Vec::new();
    let api = farm.farm().api(farm.leader())?;
    while began.elapsed() < SNAPSHOT_WAIT {
        let slice = steady(RATE, SLICE, |number| {
            Oast::timed(&api, farm.tree(), number, size)
        })
        .await?;
        worst = slice.iter().copied().fold(worst, Duration::max);
        all.extend(slice);
        if snapshots(farm)? > before {
            let figure = crate::load::Figure::of(all, began.elapsed().as_secs_f64());
            println!(
                "a snapshot under {RATE} submissions a second: longest wait {:.0} ms, p50 {:.1} ms, p99 {:.1} ms",
                worst.as_secs_f64() * 1e3,
                figure.permille(500),
                figure.permille(990),
            );
            return Ok(());
        }
    }
    bail!("the leader made no snapshot within {SNAPSHOT_WAIT:?}")
}

/// Kills a member and times its way back to a linearizable answer.
async fn restart(farm: &Oast, member: usize) -> Result<Duration> {
    let name = format!("member-{member}");
    farm.farm().kill(&name).await?;
    let began = Instant::now();
    farm.farm().begin(&name).await?;
    while began.elapsed() < RESTART_WAIT {
        let mut fleets = farm.farm().api(member)?.fleets();
        let asked = fleets.list_fleets(call(ListFleetsRequest::default()));
        if asked.await.is_ok() {
            return Ok(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("{name} did not serve within {RESTART_WAIT:?}")
}

fn memory(farm: &Oast, member: usize) -> Result<f64> {
    Ok(metric(farm, member, "process_resident_memory_bytes ")? / f64::from(1 << 20))
}

fn snapshots(farm: &Oast) -> Result<f64> {
    metric(
        farm,
        farm.leader(),
        "oast_raft_snapshots_total{direction=\"made\",outcome=\"good\"} ",
    )
}

fn metric(farm: &Oast, member: usize, name: &str) -> Result<f64> {
    let address = farm.farm().address(member);
    let answer = http::get(&address, "/metrics")?;
    ensure!(
        answer.status == 200,
        "{address}/metrics says {}",
        answer.status
    );
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name));
    let value = value.with_context(|| format!("{address} has no metric {name}"))?;
    Ok(value.trim().parse()?)
}
