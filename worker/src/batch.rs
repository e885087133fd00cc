//! Carries out one leased batch: instances are replaced or restarted, and judged before they
//! take traffic.
//!
//! ```text
//! sets ensured, image prefetched
//!   each instance, side by side:  look -> [drain -> reimage | create | restart] -> healthy
//!                                      -> gates asked directly -> undrain -> serving
//! ```
//!
//! Nothing is chosen here: the leader named the instances and the version. What is observed
//! decides what is still to do, and every change has an operation id made of the task and the
//! instance, so a second attempt under a higher token goes on where the first one stopped and
//! replaces nothing twice. Before each change the lease is asked ([`Lease::permit`]); without
//! contact to the leader the batch holds still.
//!
//! [`Lease::permit`]: crate::lease::Lease::permit

mod instance;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt};
use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::telemetry::chain;
use oast_model::fleet::DeployImage;
use oast_model::pipeline::Gate;
use oast_model::resource::Fleet;
use oast_model::task::{BatchOrder, BatchOutput};
use tokio::sync::watch;
use tracing::debug;

use crate::fleet::{cloud_set, image_ref, place, set_spec};
use crate::provider::{ErrorKind, FleetObservation, ImageRef, Provider, ProviderError};
use crate::runner::{Attempt, Halt};
use instance::Replacement;

/// Time one call may take before its outcome counts as unknown.
const CALL_MAX: Duration = Duration::from_secs(15);
/// First pause after an error that passes by itself; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How often a call is repeated after such errors.
const RETRIES_MAX: u32 = 30;

/// What a batch is, as it was assigned.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What is done to which instances.
    pub order: BatchOrder,
    /// Their fleet.
    pub fleet: Fleet,
    /// The version; none for a restart.
    pub image: Option<DeployImage>,
    /// Conditions to take traffic.
    pub gates: Vec<Gate>,
    /// Time to become healthy.
    pub healthy_deadline: Duration,
}

/// Carries out batches on a provider.
#[derive(Clone, Debug)]
pub struct Executor {
    /// The cloud.
    pub provider: Arc<dyn Provider>,
    /// For deadlines.
    pub clock: SharedClock,
}

/// Why a change was not made.
#[derive(Debug)]
enum Refused {
    /// The cloud is not as we saw it, or its answer was lost: look again.
    Look(String),
    /// It will never be made.
    Never(String),
    /// The lease has ended.
    Halt(Halt),
}

impl From<Halt> for Refused {
    fn from(halt: Halt) -> Refused {
        Refused::Halt(halt)
    }
}

/// What the futures of one batch share.
struct Work<'a> {
    executor: &'a Executor,
    attempt: &'a Attempt,
    batch: &'a Batch,
    image: Option<ImageRef>,
    seen: watch::Receiver<Option<FleetObservation>>,
}

impl Executor {
    /// Carries out the batch. Dropping the future stops it between or within changes; each change
    /// is then made or not, and the next attempt sees which.
    pub async fn run(&self, attempt: &Attempt, batch: &Batch) -> Result<BatchOutput, Halt> {
        let (tell, seen) = watch::channel(None);
        let work = Work {
            executor: self,
            attempt,
            batch,
            image: batch.image.as_ref().map(image_ref),
            seen,
        };
        tokio::select! {
            output = work.run() => output,
            never = self.feed(batch, tell) => match never {},
        }
    }

    /// Keeps the newest observation.
    async fn feed(
        &self,
        batch: &Batch,
        tell: watch::Sender<Option<FleetObservation>>,
    ) -> std::convert::Infallible {
        let fleet = batch.fleet.name.as_str();
        loop {
            let mut stream = self.provider.watch(fleet);
            while let Some(item) = stream.next().await {
                match item {
                    Ok(now) => drop(tell.send_replace(Some(now))),
                    Err(err) => {
                        debug!(fleet, error = %chain(&err), "The provider does not answer; it is asked again.");
                    }
                }
            }
            self.clock.sleep(RETRY_MIN).await;
        }
    }
}

impl Work<'_> {
    async fn run(self) -> Result<BatchOutput, Halt> {
        self.ensure_sets().await?;
        if let Some(image) = &self.image {
            self.attempt
                .log
                .engine(0, format!("bring {}:{} near", image.name, image.version));
            let provider = &self.executor.provider;
            // Not a change of anything shared, so it needs no permit.
            if let Err(err) = provider.prefetch(image).await {
                return Err(match err.kind {
                    ErrorKind::Permanent | ErrorKind::NotFound => {
                        Halt::failed(chain(&err).to_string())
                    }
                    _ => Halt::error(&err),
                });
            }
        }
        let mut doing = Vec::new();
        for name in &self.batch.order.instances {
            let Some(place) = place(&self.batch.fleet, name) else {
                return Err(Halt::failed(format!(
                    "fleet {} has no set for instance {name}",
                    self.batch.fleet.name
                )));
            };
            doing.push(Replacement::new(&self, name, place).run().boxed());
        }
        let done = join_all(doing).await;
        let mut output = BatchOutput {
            instances: Vec::new(),
            readings: Vec::new(),
        };
        for result in done {
            let (instance, readings) = result?;
            output.instances.push(instance);
            output.readings.extend(readings);
        }
        Ok(output)
    }

    async fn ensure_sets(&self) -> Result<(), Halt> {
        let fleet = &self.batch.fleet;
        let mut seen = self.seen.clone();
        let deadline = self.batch.healthy_deadline;
        let first = timeout(
            &*self.executor.clock,
            deadline,
            seen.wait_for(Option::is_some),
        );
        let first = match first.await {
            Ok(Ok(seen)) => seen.clone().unwrap_or_default(),
            _ => {
                return Err(Halt::errored(format!(
                    "the provider of fleet {} does not answer",
                    fleet.name
                )));
            }
        };
        for set in &fleet.sets {
            let name = cloud_set(fleet, set);
            let known = first.sets.iter().find(|known| known.name == name);
            let spec = set_spec(fleet, set, known.and_then(|known| known.model.clone()));
            let operation = format!("{}.{name}.ensure", self.attempt.task);
            let ensured = self
                .call(|| self.executor.provider.ensure_set(&operation, &spec))
                .await;
            match ensured {
                Ok(set) => {
                    if let Some(problem) = set.problem {
                        return Err(Halt::failed(format!("set {name}: {problem}")));
                    }
                }
                Err(Refused::Look(reason)) => return Err(Halt::errored(reason)),
                Err(Refused::Never(reason)) => return Err(Halt::failed(reason)),
                Err(Refused::Halt(halt)) => return Err(halt),
            }
        }
        Ok(())
    }

    /// Makes a change: only with a permit, again after errors that pass by themselves.
    async fn call<'f, T>(
        &self,
        call: impl Fn() -> BoxFuture<'f, Result<T, ProviderError>>,
    ) -> Result<T, Refused> {
        let clock = &self.executor.clock;
        let mut wait = RETRY_MIN;
        let mut tries = 0;
        loop {
            let left = self.attempt.lease.permit().await.map_err(Halt::from)?;
            let error = match timeout(&**clock, left.min(CALL_MAX), call()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => error,
                Err(late) => return Err(Refused::Look(late.to_string())),
            };
            let reason = chain(&error).to_string();
            tries += 1;
            let pause = match error.kind {
                ErrorKind::Conflict { .. } | ErrorKind::NotFound => {
                    return Err(Refused::Look(reason));
                }
                ErrorKind::Quota | ErrorKind::Denied | ErrorKind::Permanent => {
                    return Err(Refused::Never(reason));
                }
                _ if tries > RETRIES_MAX => return Err(Halt::errored(reason).into()),
                ErrorKind::Throttled { retry_after } => retry_after,
                ErrorKind::Transient => wait,
            };
            debug!(%reason, "A call to the provider is repeated.");
            clock.sleep(pause).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }
}

#[cfg(test)]
mod tests;
