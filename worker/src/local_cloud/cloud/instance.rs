//! One instance in memory: its record, its driver and health check, and what they reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::TaskKind;

use super::set::Set;
use super::{CloudError, Drained, Shared};
use crate::local_cloud::backend::{Backend, Health};
use crate::local_cloud::balancer;
use crate::local_cloud::driver::{Driver, Goal, Identity, Report};
use crate::local_cloud::health::{self, Verdict};
use crate::local_cloud::record::{InstanceRecord, OperationKind};
use crate::local_cloud::runtime::BootMode;
use crate::local_cloud::spec::SetSpec;
use crate::local_cloud::view::{InstanceView, Phase};

/// Verdicts waiting to be taken over; a check waits beyond it.
const VERDICTS: usize = 4;

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) record: InstanceRecord,
    pub(super) backend: Arc<Backend>,
    goals: watch::Sender<Goal>,
    service_port: u16,
    direct: Option<SocketAddr>,
    phase: Phase,
    reason: String,
    unhealthy: String,
    mode: Option<BootMode>,
    starts: u32,
    revision: u64,
    /// Which drain is on, so that the end of an earlier one is not taken for its end.
    drain: u64,
    drained: bool,
    drain_stop: CancellationToken,
    /// Ends the health check and the direct address, when the instance is deleted.
    stop: CancellationToken,
}

impl Instance {
    /// Makes a new instance durable and starts it.
    pub(super) async fn create(
        shared: &Shared,
        set: &Set,
        mut record: InstanceRecord,
    ) -> Result<Instance, CloudError> {
        let direct = bind_direct(None).await;
        record.direct_port = direct
            .as_ref()
            .and_then(|d| d.local_addr().ok())
            .map(|a| a.port());
        let saved = record.clone();
        shared.save(move |s| s.save_instance(&saved)).await?;
        Ok(Instance::launch(shared, set, record, direct))
    }

    /// Starts an instance from its durable record.
    pub(super) async fn start(shared: &Shared, set: &Set, mut record: InstanceRecord) -> Instance {
        let direct = bind_direct(record.direct_port).await;
        record.direct_port = direct
            .as_ref()
            .and_then(|d| d.local_addr().ok())
            .map(|a| a.port());
        record.deleting |= set.record.deleting;
        Instance::launch(shared, set, record, direct)
    }

    fn launch(
        shared: &Shared,
        set: &Set,
        record: InstanceRecord,
        direct: Option<TcpListener>,
    ) -> Instance {
        let stop = shared.stop.child_token();
        let backend = Backend::new(&record.id, record.draining);
        if let Ok(slot) = &set.slot {
            slot.pool.add(Arc::clone(&backend));
        }
        let service_port = set.record.spec.service_port;
        let goals = watch::Sender::new(goal(&record, service_port));
        let identity = Identity {
            set: record.set.clone(),
            id: record.id.clone(),
            number: record.number,
        };
        let driver = Driver {
            identity,
            runtime: Arc::clone(&shared.runtime),
            backend: Arc::clone(&backend),
            clock: shared.clock.clone(),
            goals: goals.subscribe(),
            reports: shared.reports.clone(),
            stop: shared.stop.clone(),
        };
        // Waited for on shutdown: it stops the instance's processes and removes its mounts.
        shared
            .tasks
            .spawn("instance", TaskKind::REQUEST, driver.run());
        spawn_check(shared, &record.set, &backend, set, &stop);
        let direct_address = direct.and_then(|listener| {
            let address = listener.local_addr().ok();
            let serve = balancer::run_direct(
                listener,
                Arc::clone(&backend),
                shared.clock.clone(),
                shared.tasks.clone(),
                stop.clone(),
            );
            shared
                .tasks
                .spawn("direct address", TaskKind::BACKGROUND, serve);
            address
        });
        let mut instance = Instance {
            phase: if record.deleting {
                Phase::Deleting
            } else {
                Phase::Creating
            },
            record,
            backend,
            goals,
            service_port,
            direct: direct_address,
            reason: String::new(),
            unhealthy: String::new(),
            mode: None,
            starts: 0,
            revision: 1,
            drain: 0,
            drained: false,
            drain_stop: CancellationToken::new(),
            stop,
        };
        if instance.record.draining {
            instance.begin_drain(shared, set.record.spec.drain_timeout);
        }
        instance
    }

    /// Takes over a changed record that is durable, and sets what follows from it in motion.
    pub(super) fn adopt(&mut self, shared: &Shared, record: InstanceRecord, set: &SetSpec) {
        self.service_port = set.service_port;
        let was = std::mem::replace(&mut self.record, record);
        self.revision += 1;
        if self.record.deleting {
            self.begin_delete();
            return;
        }
        if self.record.draining != was.draining {
            if self.record.draining {
                self.begin_drain(shared, set.drain_timeout);
            } else {
                self.end_drain();
            }
        }
        if self.record.boot != was.boot {
            // Running | Stopped | Failed => Reimaging | Restarting
            self.phase = match self.record.history.back().map(|h| h.kind) {
                Some(OperationKind::Reimage) => Phase::Reimaging,
                Some(OperationKind::Restart) => Phase::Restarting,
                Some(OperationKind::Create) | None => Phase::Creating,
            };
            self.reason.clear();
            self.goals
                .send_replace(goal(&self.record, self.service_port));
        }
    }

    /// Any => Deleting
    pub(super) fn begin_delete(&mut self) {
        self.record.deleting = true;
        self.revision += 1;
        self.phase = Phase::Deleting;
        self.backend.set_draining(true);
        self.goals
            .send_replace(goal(&self.record, self.service_port));
    }

    /// Ends what served it, once its driver has removed everything.
    pub(super) fn close(&self) {
        self.drain_stop.cancel();
        self.stop.cancel();
    }

    fn begin_drain(&mut self, shared: &Shared, timeout: Duration) {
        self.drain += 1;
        self.drained = false;
        self.drain_stop = self.stop.child_token();
        self.backend.set_draining(true);
        let drained = Drained {
            set: self.record.set.clone(),
            id: self.record.id.clone(),
            drain: self.drain,
        };
        let wait = wait_drained(Arc::clone(&self.backend), shared.clock.clone(), timeout);
        let (tell, stop) = (shared.drains.clone(), self.drain_stop.clone());
        shared
            .tasks
            .spawn("drain", TaskKind::BACKGROUND, async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = wait => {
                        let _ = tell.send(drained).await;
                    }
                }
            });
    }

    fn end_drain(&mut self) {
        self.drain += 1;
        self.drained = false;
        self.drain_stop.cancel();
        self.backend.set_draining(false);
    }

    pub(super) fn on_drained(&mut self, drain: u64) {
        if drain == self.drain && self.record.draining {
            self.drained = true;
            self.revision += 1;
        }
    }

    pub(super) fn on_verdict(&mut self, verdict: Verdict) {
        if self.backend.boot() == Some(verdict.boot) {
            self.unhealthy = verdict.reason;
            self.revision += 1;
        }
    }

    /// Takes over what the driver saw; true when the record changed by it.
    pub(super) fn on_report(&mut self, report: Report) -> bool {
        let boot = match &report {
            Report::Started { boot, .. }
            | Report::Stopped { boot, .. }
            | Report::Failed { boot, .. } => *boot,
            Report::Deleted => return false,
        };
        if boot != self.record.boot || self.record.deleting {
            // News of a boot that nobody wants any more.
            return false;
        }
        self.revision += 1;
        let (set, id) = (&self.record.set, &self.record.id);
        match report {
            Report::Started { mode, gap, .. } => {
                tracing::info!(%set, instance = %id, image_version = %self.record.image.version, ?mode, gap_ms = gap.as_millis(), "Instance runs.");
                self.phase = Phase::Running;
                self.mode = Some(mode);
                self.starts += 1;
                let gap_ms = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX).max(1);
                self.record.note_gap(boot, gap_ms)
            }
            Report::Stopped { reason, .. } => {
                tracing::warn!(%set, instance = %id, %reason, "Instance stopped by itself.");
                self.phase = Phase::Stopped;
                self.reason = reason;
                false
            }
            Report::Failed { reason, .. } => {
                tracing::warn!(%set, instance = %id, %reason, "Instance could not be started.");
                self.phase = Phase::Failed;
                self.reason = reason;
                false
            }
            Report::Deleted => false,
        }
    }

    pub(super) fn view(&self) -> InstanceView {
        let health = match self.phase {
            Phase::Stopped | Phase::Failed => Health::Unhealthy,
            _ => self.backend.health(),
        };
        let reason = match (self.reason.is_empty(), health) {
            (false, _) => self.reason.clone(),
            (true, Health::Unhealthy) => self.unhealthy.clone(),
            (true, _) => String::new(),
        };
        InstanceView {
            record: self.record.clone(),
            revision: self.revision,
            phase: self.phase,
            health,
            reason,
            drained: self.drained,
            connections: self.backend.active(),
            direct: self.direct,
            mode: self.mode,
            starts: self.starts,
        }
    }
}

fn goal(record: &InstanceRecord, service_port: u16) -> Goal {
    Goal {
        boot: record.boot,
        image: record.image.clone(),
        service_port,
        deleting: record.deleting,
    }
}

/// Listens on the port it had, or on any other when that is taken by now.
async fn bind_direct(port: Option<u16>) -> Option<TcpListener> {
    for port in port.into_iter().chain([0]) {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => return Some(listener),
            Err(err) => {
                tracing::warn!(port, %err, "Direct address of an instance is taken; another is used.");
            }
        }
    }
    None
}

fn spawn_check(
    shared: &Shared,
    set_name: &str,
    backend: &Arc<Backend>,
    set: &Set,
    stop: &CancellationToken,
) {
    let (tell, mut verdicts) = mpsc::channel(VERDICTS);
    let check = health::run(
        Arc::clone(backend),
        set.checks.subscribe(),
        tell,
        shared.clock.clone(),
        stop.clone(),
    );
    shared
        .tasks
        .spawn("health check", TaskKind::BACKGROUND, check);
    let (to, name) = (shared.verdicts.clone(), set_name.to_owned());
    shared
        .tasks
        .spawn("verdicts", TaskKind::BACKGROUND, async move {
            while let Some(verdict) = verdicts.recv().await {
                if to.send((name.clone(), verdict)).await.is_err() {
                    return;
                }
            }
        });
}

/// Ends when no connection is left: by itself, or because the time-out cut the rest.
async fn wait_drained(backend: Arc<Backend>, clock: SharedClock, timeout: Duration) {
    tokio::select! {
        biased;
        () = backend.idle() => return,
        () = clock.sleep(timeout) => {}
    }
    tracing::info!(instance = %backend.id, connections = backend.active(), "Drain time-out; the connections left are closed.");
    backend.cut();
    backend.idle().await;
}
