//! `cargo xtask bench coordinator` and `scale` (see [`scale`]). The first: three members beside three etcd servers and PostgreSQL with
//! two synchronous standbys, on one machine, in one run, interleaved.
//!
//! Every system is durable before it acknowledges, speaks TLS between its members (PostgreSQL aside), is driven through its leader over loopback and
//! holds the same bytes a submission. A cell is measured in several rounds; in each round one
//! system after the other has the machine for itself. Figures are medians over the rounds, ratios
//! medians of the rounds' own ratios, so that what disturbs a round disturbs both sides of it.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a bench reads clocks, starts processes and prints"
)]

mod claim;
mod load;
mod peer;
mod scale;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use load::Figure;
use peer::etcd::Etcd;
use peer::oast::Oast;
use peer::postgres::Postgres;

/// Encoded bytes of a submission.
const SIZE: usize = 512;
/// Streams side by side in the last comparison.
const STREAMS: usize = 16;
/// Submissions a second while starts are timed.
const STARTS: u32 = 500;
const USAGE: &str = "usage: oast-bench coordinator [--only starts|unary|streamed] [--oast FILE] [--seconds N] [--rounds N] [--clients N,N..]";

struct Options {
    /// The one measurement that is wanted.
    only: Option<Part>,
    oast: PathBuf,
    time: Duration,
    rounds: usize,
    clients: Vec<usize>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Starts,
    Unary,
    Streamed,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker", address] => return claim::worker(address).await,
        ["claimer", address] => return claim::claimer(address).await,
        _ => {}
    }
    if args.first().is_some_and(|what| what == "scale") {
        return scale::scale(&options(args)?.oast, SIZE).await;
    }
    let options = options(args)?;
    if options.wants(Part::Starts) {
        starts(&options).await?;
    }
    if options.wants(Part::Unary) || options.wants(Part::Streamed) {
        submissions(&options).await?;
    }
    Ok(())
}

/// Enqueue to running at a steady rate, in farms that hold nothing else.
async fn starts(options: &Options) -> Result<()> {
    let oast = Oast::start(&options.oast, false).await?;
    let etcd = etcd().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(oast.starts(STARTS, options.time, SIZE).await?);
        if let Some(etcd) = &etcd {
            theirs.push(etcd.starts(STARTS, options.time, SIZE).await?);
        }
    }
    println!("submission to running at {STARTS}/s (etcd: put, watch, claim)");
    println!("  oast p50, p99 ms: {}", shown(&ours));
    println!("  etcd p50, p99 ms: {}\n", shown(&theirs));
    drop(etcd);
    oast.finish().await
}

async fn etcd() -> Result<Option<Etcd>> {
    if oast_tests::need::program("etcd") {
        return Etcd::start().await.map(Some);
    }
    println!("MISSING: etcd (Debian: apt-get install etcd-server); no ratios to it");
    Ok(None)
}

/// Acknowledged submissions per second.
async fn submissions(options: &Options) -> Result<()> {
    let oast = Oast::start(&options.oast, true).await?;
    let etcd = etcd().await?;
    let postgres = if oast_tests::need::program("pgbench") && oast_tests::need::program("initdb") {
        Some(Postgres::start()?)
    } else {
        println!(
            "MISSING: PostgreSQL's initdb and pgbench (Debian: apt-get install postgresql postgresql-contrib, and its bin folder in PATH); no ratios to it"
        );
        None
    };
    println!(
        "{} bytes a submission, {} rounds of {:?} a cell; medians; latencies in ms\n",
        SIZE, options.rounds, options.time
    );
    if options.wants(Part::Unary) {
        println!(
            "{:>7} {:>22} {:>22} {:>14} {:>10} {:>10}",
            "clients", "oast/s (p50, p99)", "etcd/s (p50, p99)", "postgres/s", "to etcd", "to pg"
        );
        for clients in &options.clients {
            cell(options, *clients, &oast, etcd.as_ref(), postgres.as_ref()).await?;
        }
    }
    if options.wants(Part::Streamed) {
        streamed(options, &oast, etcd.as_ref()).await?;
    }
    drop((etcd, postgres));
    oast.finish().await
}

async fn streamed(options: &Options, oast: &Oast, etcd: Option<&Etcd>) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(oast.streamed(STREAMS, options.time, SIZE).await?);
        if let Some(etcd) = etcd {
            theirs.push(etcd.transactions(STREAMS, options.time, SIZE).await?);
        }
    }
    println!(
        "\n{STREAMS} streams with {} submissions a message: {:.0}/s; etcd, as many transactions of {} puts: {:.0}/s; ratio {:.2}",
        peer::etcd::TXN,
        median(&rates(&ours)),
        peer::etcd::TXN,
        median(&rates(&theirs)),
        median(&ratios(&rates(&ours), &rates(&theirs))),
    );
    Ok(())
}

async fn cell(
    options: &Options,
    clients: usize,
    oast: &Oast,
    etcd: Option<&Etcd>,
    postgres: Option<&Postgres>,
) -> Result<()> {
    let (mut ours, mut theirs, mut pg) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        ours.push(oast.unary(clients, options.time, SIZE).await?);
        if let Some(etcd) = etcd {
            theirs.push(etcd.puts(clients, options.time, SIZE).await?);
        }
        if let Some(postgres) = postgres {
            pg.push(postgres.inserts(clients, options.time, SIZE).await?.0);
        }
    }
    let (our_rates, their_rates) = (rates(&ours), rates(&theirs));
    println!(
        "{clients:>7} {:>22} {:>22} {:>14.0} {:>10.2} {:>10.2}",
        shown(&ours),
        shown(&theirs),
        median(&pg),
        median(&ratios(&our_rates, &their_rates)),
        median(&ratios(&our_rates, &pg)),
    );
    Ok(())
}

fn rates(figures: &[Figure]) -> Vec<f64> {
    figures.iter().map(Figure::rate).collect()
}

fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(a, b)| a / b).collect()
}

fn shown(figures: &[Figure]) -> String {
    let of = |value: fn(&Figure) -> f64| median(&figures.iter().map(value).collect::<Vec<_>>());
    format!(
        "{:.0} ({:.2}, {:.2})",
        of(Figure::rate),
        of(|figure| figure.permille(500)),
        of(|figure| figure.permille(990)),
    )
}

/// NaN of none.
fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn options(args: Vec<String>) -> Result<Options> {
    let mut args = args.into_iter();
    let what = args.next();
    let known = matches!(what.as_deref(), Some("coordinator" | "scale"));
    ensure!(known, USAGE);
    let mut options = Options {
        only: None,
        oast: PathBuf::new(),
        time: Duration::from_secs(5),
        rounds: 3,
        clients: vec![1, 16, 128, 1000],
    };
    while let Some(name) = args.next() {
        let value = args.next().context(USAGE)?;
        match name.as_str() {
            "--only" => {
                options.only = Some(match value.as_str() {
                    "starts" => Part::Starts,
                    "unary" => Part::Unary,
                    "streamed" => Part::Streamed,
                    _ => bail!(USAGE),
                });
            }
            "--oast" => options.oast = value.into(),
            "--seconds" => options.time = Duration::from_secs(value.parse()?),
            "--rounds" => options.rounds = value.parse()?,
            "--clients" => {
                options.clients = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            _ => bail!(USAGE),
        }
    }
    if options.oast.as_os_str().is_empty() {
        options.oast = std::env::current_exe()?.with_file_name("oast");
    }
    ensure!(
        options.oast.exists(),
        "{} is not there: build it with `cargo build --release`",
        options.oast.display()
    );
    Ok(options)
}
