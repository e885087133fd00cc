//! The metrics every process has: which build it is, how long it runs, what it holds.
//!
//! Read from /proc at each scrape. A value that cannot be read is left out rather than guessed.

use std::fs;
use std::time::Duration;

use oast_model::time::Timestamp;

use super::{Metric, Metrics};
use crate::clock::SharedClock;
use crate::task::Tasks;

/// What a process is in the farm; bounded, so it may be a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A member of the Raft group.
    Coordinator,
    /// Runs tasks.
    Worker,
    /// The local provider.
    LocalCloud,
}

impl Role {
    /// The label value, as the command that starts it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
            Role::LocalCloud => "local-cloud",
        }
    }
}

/// Clock ticks a second in /proc/PID/stat: fixed at 100 by the kernel's user interface.
const USER_HZ: f64 = 100.0;

impl Metrics {
    /// The registry of a daemon, with the process set.
    #[must_use]
    pub fn for_process(role: Role, version: &str, clock: SharedClock, tasks: &Tasks) -> Metrics {
        let metrics = Metrics::new();
        metrics
            .gauges(Metric::BuildInfo)
            .with(&[version, role.word()])
            .set(1);
        let born = Born {
            wall: clock.wall(),
            monotonic: clock.monotonic(),
        };
        metrics
            .gauge(Metric::ProcessStart)
            .set_f64(Duration::from_millis(born.wall.0).as_secs_f64());

        let uptime = metrics.gauge(Metric::ProcessUptime);
        let live = metrics.gauge(Metric::TasksLive);
        let cpu = metrics.counter(Metric::ProcessCpu);
        let memory = metrics.gauge(Metric::ProcessMemory);
        let fds = metrics.gauge(Metric::ProcessFds);
        if let Some(max) = max_fds() {
            metrics.gauge(Metric::ProcessMaxFds).set(max);
        }
        let tasks = tasks.clone();
        metrics.on_scrape(move || {
            uptime.set_f64((clock.monotonic() - born.monotonic).as_secs_f64());
            live.set(tasks.live().len().try_into().unwrap_or(u64::MAX));
            if let Some(seconds) = cpu_seconds() {
                // The counter follows the kernel's own, which never goes back.
                cpu.0.inc_by((seconds - cpu.get()).max(0.0));
            }
            if let Some(bytes) = resident_bytes() {
                memory.set(bytes);
            }
            if let Some(count) = open_fds() {
                fds.set(count);
            }
        });
        metrics
    }
}

struct Born {
    wall: Timestamp,
    monotonic: Duration,
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field, the command's name, may hold spaces and brackets: start behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let user: f64 = fields.get(11)?.parse().ok()?;
    let system: f64 = fields.get(12)?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn open_fds() -> Option<u64> {
    // Less one for the directory that is open while we count.
    let count = fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1)?;
    u64::try_from(count).ok()
}

fn max_fds() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}
