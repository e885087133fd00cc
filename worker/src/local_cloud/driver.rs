//! Brings one instance to the boot it should be on, and watches over it.
//!
//! Level-triggered: it reads the newest [`Goal`] and converges, so a goal that changes while a
//! boot is being prepared costs one boot and no more. Nothing is repaired here: a boot that ends
//! by itself is reported and stays ended until the farm asks for a restart or a reimage.
//!
//! ```text
//!            new boot          prepared, old one stopped        main process ended
//! (idle) ------------> Preparing ---------------------> Running ------------------> Stopped
//!                          '-- error --> Failed
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::SharedClock;

use super::backend::Backend;
use super::runtime::{BootError, BootMode, BootSpec, Running, Runtime};
use super::spec::Image;

/// What an instance should be.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Which boot.
    pub boot: u64,
    /// Of which image.
    pub image: Image,
    /// On which port it serves.
    pub service_port: u16,
    /// It should not be at all.
    pub deleting: bool,
}

/// What became of the newest goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The boot runs.
    Started {
        /// Which.
        boot: u64,
        /// How.
        mode: BootMode,
        /// Time without a serving root.
        gap: Duration,
    },
    /// The boot's main process ended by itself.
    Stopped {
        /// Which.
        boot: u64,
        /// How it ended.
        reason: String,
    },
    /// The boot could not be started.
    Failed {
        /// Which.
        boot: u64,
        /// Why.
        reason: String,
    },
    /// Nothing is left of the instance.
    Deleted,
}

/// Who the instance is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its set.
    pub set: String,
    /// Its id.
    pub id: String,
    /// Its number in this cloud.
    pub number: u32,
}

/// Drives one instance.
#[derive(Debug)]
pub struct Driver {
    /// Who it is.
    pub identity: Identity,
    /// Runs boots.
    pub runtime: Arc<dyn Runtime>,
    /// Where connections come from.
    pub backend: Arc<Backend>,
    /// Measures gaps.
    pub clock: SharedClock,
    /// What it should be.
    pub goals: watch::Receiver<Goal>,
    /// Where reports go, with the identity.
    pub reports: mpsc::Sender<(Identity, Report)>,
    /// Ends the driver and the boot; the goal stays what it is.
    pub stop: CancellationToken,
}

impl Driver {
    /// Runs until the instance is deleted or `stop`.
    pub async fn run(mut self) {
        let mut running: Option<Box<dyn Running>> = None;
        let mut at = 0;
        loop {
            let goal = self.goals.borrow_and_update().clone();
            if goal.deleting {
                self.halt(running.take()).await;
                self.runtime
                    .forget(&self.identity.set, &self.identity.id)
                    .await;
                self.report(Report::Deleted).await;
                return;
            }
            if goal.boot != at {
                at = goal.boot;
                match self.boot(&goal, &mut running).await {
                    Ok(report) => self.report(report).await,
                    Err(err) => {
                        // The old boot goes too: an instance that says "failed" must not serve.
                        self.halt(running.take()).await;
                        self.report(Report::Failed {
                            boot: at,
                            reason: err.to_string(),
                        })
                        .await;
                    }
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.halt(running.take()).await;
                    return;
                }
                changed = self.goals.changed() => {
                    if changed.is_err() {
                        self.halt(running.take()).await;
                        return;
                    }
                }
                reason = ended(running.as_mut()) => {
                    self.halt(running.take()).await;
                    self.report(Report::Stopped { boot: at, reason }).await;
                }
            }
        }
    }

    async fn boot(
        &self,
        goal: &Goal,
        running: &mut Option<Box<dyn Running>>,
    ) -> Result<Report, BootError> {
        let Identity { set, id, number } = self.identity.clone();
        let spec = BootSpec {
            set,
            id,
            number,
            boot: goal.boot,
            image: goal.image.clone(),
        };
        let prepared = self.runtime.prepare(spec).await?;
        let gap_began = self.clock.monotonic();
        self.halt(running.take()).await;
        let started = prepared.start().await?;
        let report = Report::Started {
            boot: goal.boot,
            mode: started.mode(),
            gap: self.clock.monotonic() - gap_began,
        };
        self.backend
            .attach(started.dial(), goal.service_port, goal.boot);
        *running = Some(started);
        Ok(report)
    }

    async fn halt(&self, running: Option<Box<dyn Running>>) {
        // Connections first, so that none is opened to a boot that is going away.
        self.backend.detach();
        if let Some(running) = running {
            running.stop().await;
        }
    }

    async fn report(&self, report: Report) {
        // A closed queue means that the cloud is stopping.
        let _ = self.reports.send((self.identity.clone(), report)).await;
    }
}

async fn ended(running: Option<&mut Box<dyn Running>>) -> String {
    match running {
        Some(running) => running.ended().await,
        None => std::future::pending().await,
    }
}
