//! Load: closed loops of clients that ask again as soon as they were answered, and a steady rate
//! that does not wait for answers.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::task::JoinSet;

/// Time before the measured part, in which connections and caches become warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// What was measured of one load.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// Submissions that were acknowledged in the measured time.
    pub done: u64,
    pub seconds: f64,
    /// Time from asking to the answer, sorted.
    latencies: Vec<Duration>,
}

impl Figure {
    /// One figure of latencies that were measured elsewhere.
    #[must_use]
    pub fn of(mut latencies: Vec<Duration>, seconds: f64) -> Figure {
        latencies.sort_unstable();
        Figure {
            done: latencies.len() as u64,
            seconds,
            latencies,
        }
    }

    /// Acknowledged submissions per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are small")]
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// The latency that this part of 1,000 stays below, in milliseconds.
    #[must_use]
    pub fn permille(&self, part: usize) -> f64 {
        let place = self.latencies.len().saturating_sub(1) * part / 1000;
        self.latencies
            .get(place)
            .map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

/// Runs `ask(client, number)` in `clients` loops for `time`. One call counts for `weight`
/// submissions. Numbers are unique in the process.
///
/// # Errors
/// The first call that failed: what a bench measures must not fail.
pub async fn closed<F, Fut>(clients: usize, time: Duration, weight: u64, ask: F) -> Result<Figure>
where
    F: Fn(usize, u64) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let over = Arc::new(AtomicBool::new(false));
    let begin = Instant::now() + WARM_UP;
    let all = Arc::new(Mutex::new(Vec::new()));
    let mut loops = JoinSet::new();
    for client in 0..clients {
        let (ask, over, all) = (ask.clone(), Arc::clone(&over), Arc::clone(&all));
        loops.spawn(async move {
            let mut own = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                ask(client, NUMBER.fetch_add(weight, Ordering::Relaxed)).await?;
                let answered = Instant::now();
                if answered >= begin && !over.load(Ordering::Relaxed) {
                    own.push(answered - asked);
                }
            }
            all.lock().expect("no loop panics with it").append(&mut own);
            anyhow::Ok(())
        });
    }
    let end = begin + time;
    let mut failed = None;
    tokio::select! {
        () = tokio::time::sleep_until(end.into()) => {}
        Some(ended) = loops.join_next() => failed = Some(ended),
    }
    let seconds = begin.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    if let Some(ended) = failed {
        ended?.context("under load")?;
        return Err(anyhow!("a client ended by itself"));
    }
    while let Some(ended) = loops.join_next().await {
        ended?.context("under load")?;
    }
    let latencies = std::mem::take(&mut *all.lock().expect("no loop panics with it"));
    let mut figure = Figure::of(latencies, seconds);
    figure.done *= weight;
    Ok(figure)
}

/// Calls `ask(number)` at a steady rate for `time`, whether or not earlier calls were answered,
/// and gives what each returned.
///
/// # Errors
/// The first call that failed.
pub async fn steady<T, F, Fut>(a_second: u32, time: Duration, ask: F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn(u64) -> Fut,
    Fut: Future<Output = Result<T>> + Send + 'static,
{
    let mut interval = tokio::time::interval(Duration::from_secs(1) / a_second);
    let mut calls = JoinSet::new();
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < time {
        interval.tick().await;
        calls.spawn(ask(number));
        number += 1;
    }
    let mut results = Vec::new();
    while let Some(ended) = calls.join_next().await {
        results.push(ended?.context("at a steady rate")?);
    }
    Ok(results)
}
