//! What a member shows on `/metrics`, read from its state when it is asked.

use std::sync::Arc;

use oast_daemon::metrics::{Metric, Metrics};
use oast_model::task::TaskPhase;

use crate::consensus::replica::Role;
use crate::farm::Farm;
use crate::leader::Leader;

mod group;

/// Registers the member's gauges.
pub fn publish(metrics: &Metrics, farm: &Farm, leader: &Arc<Leader>) {
    group::publish(metrics, farm);
    let term = metrics.gauge(Metric::RaftTerm);
    let leads = metrics.gauge(Metric::RaftIsLeader);
    let commit = metrics.gauge(Metric::RaftCommitIndex);
    let applied = metrics.gauge(Metric::RaftAppliedIndex);
    let last = metrics.gauge(Metric::RaftLastIndex);
    let queue = metrics.gauge(Metric::QueueDepth);
    let oldest = metrics.gauge(Metric::QueueOldestWait);
    let workers = metrics.gauges(Metric::Workers);
    let (farm, leader) = (farm.clone(), Arc::clone(leader));
    metrics.on_scrape(move || {
        let status = farm.status().borrow().clone();
        term.set(status.term);
        leads.set(u64::from(status.role == Role::Leader));
        commit.set(status.commit);
        applied.set(status.applied);
        last.set(status.last);
        let view = farm.view();
        workers.with(&["connected"]).set(leader.connected() as u64);
        let now = farm.clock().wall();
        let mut waits: Vec<_> = view
            .tasks()
            .iter()
            .filter_map(|(_, task)| match task.phase {
                TaskPhase::Ready { not_before } => Some(now.since(not_before)),
                _ => None,
            })
            .collect();
        waits.sort_unstable();
        queue.set(waits.len() as u64);
        oldest.set_f64(waits.last().copied().unwrap_or_default().as_secs_f64());
    });
}
