//! What the replicated core counts and times, as metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::metrics::{Counter, Histogram, Metric, Metrics};

use crate::consensus::counters::{Stopwatch, Timed};
use crate::consensus::replica::Status;
use crate::farm::Farm;

/// A counter of the core, its metric, and the values of its labels.
const COUNTERS: &[(&str, Metric, &[&str])] = &[
    ("proposals_committed", Metric::RaftProposals, &["committed"]),
    ("proposals_refused", Metric::RaftProposals, &["refused"]),
    (
        "proposals_overloaded",
        Metric::RaftProposals,
        &["overloaded"],
    ),
    ("proposals_unknown", Metric::RaftProposals, &["unknown"]),
    ("entries_proposed", Metric::RaftEntries, &["proposed"]),
    ("entries_applied", Metric::RaftEntries, &["applied"]),
    ("messages_sent", Metric::RaftMessages, &["sent"]),
    ("messages_received", Metric::RaftMessages, &["received"]),
    ("messages_dropped", Metric::RaftMessages, &["dropped"]),
    ("batches_refused", Metric::RaftRefused, &[]),
    ("leader_changes", Metric::RaftLeaderChanges, &[]),
    ("elections_won", Metric::RaftElectionsWon, &[]),
    ("snapshots_made", Metric::RaftSnapshots, &["made", "good"]),
    (
        "snapshots_failed",
        Metric::RaftSnapshots,
        &["made", "failed"],
    ),
    (
        "snapshots_installed",
        Metric::RaftSnapshots,
        &["received", "good"],
    ),
    (
        "snapshots_resumed",
        Metric::RaftSnapshots,
        &["received", "resumed"],
    ),
    (
        "snapshot_bytes_sent",
        Metric::RaftSnapshotTransfer,
        &["sent"],
    ),
    (
        "snapshot_bytes_received",
        Metric::RaftSnapshotTransfer,
        &["received"],
    ),
    ("digests_equal", Metric::RaftDigestChecks, &["equal"]),
    (
        "digests_different",
        Metric::RaftDigestChecks,
        &["different"],
    ),
    (
        "digests_undecided",
        Metric::RaftDigestChecks,
        &["undecided"],
    ),
];

struct Timer {
    clock: SharedClock,
    fsync: Histogram,
    apply: Histogram,
    turn: Histogram,
}

impl Stopwatch for Timer {
    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn took(&self, what: Timed, time: Duration) {
        match what {
            Timed::Fsync => self.fsync.observe(time),
            Timed::Apply => self.apply.observe(time),
            Timed::Turn => self.turn.observe(time),
        }
    }
}

/// Registers them.
pub(super) fn publish(metrics: &Metrics, farm: &Farm) {
    let counters = farm.handle().counters();
    counters.install(Box::new(Timer {
        clock: farm.clock().clone(),
        fsync: metrics.histogram(Metric::RaftFsyncSeconds),
        apply: metrics.histogram(Metric::RaftApplySeconds),
        turn: metrics.histogram(Metric::RaftTurnSeconds),
    }));
    let shown: BTreeMap<&str, Counter> = COUNTERS
        .iter()
        .map(|(name, metric, labels)| (*name, metrics.counters(*metric).with(labels)))
        .collect();
    // The core counts from 0; what was shown already is not added again.
    let seen: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    let leader = metrics.gauge(Metric::RaftLeader);
    let members = metrics.gauges(Metric::RaftMembers);
    let lag = metrics.gauges(Metric::RaftPeerLag);
    let answers = metrics.gauges(Metric::RaftPeerAnswers);
    let skew = metrics.gauge(Metric::RaftClockSkew);
    let barred = metrics.gauge(Metric::RaftBarred);
    let snapshot = metrics.gauge(Metric::RaftSnapshotBytes);
    let farm = farm.clone();
    metrics.on_scrape(move || {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in counters.read() {
            if name == "snapshot_bytes" {
                snapshot.set(value);
            }
            let Some(counter) = shown.get(name) else {
                continue;
            };
            let before = seen.insert(name, value).unwrap_or(0);
            counter.add(value.saturating_sub(before));
        }
        drop(seen);
        let status = farm.status().borrow().clone();
        leader.set(status.leader.unwrap_or(0));
        members.with(&["voter"]).set(status.voters.len() as u64);
        members.with(&["learner"]).set(status.learners.len() as u64);
        for (member, behind) in behind(&status) {
            lag.with(&[&member.to_string()]).set(behind);
        }
        for member in status.members.keys().filter(|id| **id != status.member) {
            let answered = status.answered.contains(member);
            answers
                .with(&[&member.to_string()])
                .set(u64::from(answered));
        }
        skew.set_f64(seconds(status.skew_ms.unwrap_or(0)));
        barred.set(u64::from(status.barred));
    });
}

fn behind(status: &Status) -> impl Iterator<Item = (u64, u64)> {
    let peers = status.peers.iter();
    peers.map(|peer| (peer.member, status.last.saturating_sub(peer.matched)))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of skew are far below 2^53"
)]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::counters::Counters;

    #[test]
    fn every_counter_that_is_shown_exists_and_has_its_labels() {
        let counters = Counters::default();
        let names: Vec<&str> = counters.read().into_iter().map(|(name, _)| name).collect();
        for (name, metric, labels) in COUNTERS {
            assert!(names.contains(name), "{name}");
            assert_eq!(metric.spec().labels.len(), labels.len(), "{name}");
        }
    }
}
