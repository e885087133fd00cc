//! What a member shows on `/metrics`, read from its state when it is asked.

use std::sync::Arc;
use std::time::Duration;

use oast_daemon::metrics::{Metric, Metrics};
use oast_model::ledger::Ledger;
use oast_model::priority::Band;
use oast_model::task::TaskPhase;
use oast_model::time::Timestamp;

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
        queue.set(view.index().waiting() as u64);
        oldest.set_f64(oldest_wait(&view, farm.clock().wall()).as_secs_f64());
    });
}

/// How long the first task of any lane has waited. Lanes are few where tasks are many.
fn oldest_wait(ledger: &Ledger, now: Timestamp) -> Duration {
    let index = ledger.index();
    let lanes = Band::ALL.into_iter().flat_map(|band| index.lanes(band));
    let first = lanes.filter_map(|(_, turns)| turns.get_min());
    let waits = first.filter_map(|turn| match ledger.tasks().get(&turn.task)?.phase {
        TaskPhase::Ready { not_before } => Some(now.since(not_before)),
        _ => None,
    });
    waits.max().unwrap_or_default()
}
