//! Which addresses the cloud listens on. Sets of one fleet that name the same address share one
//! balancer, so a fleet of several sets has one front.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::{TaskKind, Tasks};

use super::CloudError;
use crate::local_cloud::balancer::{self, Pool};
use crate::local_cloud::spec::SetSpec;

/// Time between attempts to get an address that was taken when the cloud started.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// A set's share of a balancer. Must be given back.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) address: SocketAddr,
    pub(super) pool: Arc<Pool>,
}

#[derive(Debug)]
struct Balancer {
    fleet: String,
    pool: Arc<Pool>,
    users: usize,
    stop: CancellationToken,
}

/// The balancers by address.
#[derive(Debug)]
pub(super) struct Balancers {
    clock: SharedClock,
    tasks: Tasks,
    stop: CancellationToken,
    by_address: BTreeMap<SocketAddr, Balancer>,
}

impl Balancers {
    pub(super) fn new(clock: SharedClock, tasks: Tasks, stop: CancellationToken) -> Balancers {
        Balancers {
            clock,
            tasks,
            stop,
            by_address: BTreeMap::new(),
        }
    }

    /// Joins the balancer on the set's address or starts one there.
    pub(super) async fn take(&mut self, spec: &SetSpec) -> Result<Slot, CloudError> {
        self.take_at(spec, spec.listen).await
    }

    /// The same, at an address that was picked for the set earlier.
    pub(super) async fn take_at(
        &mut self,
        spec: &SetSpec,
        address: SocketAddr,
    ) -> Result<Slot, CloudError> {
        if let Some(balancer) = self.by_address.get_mut(&address) {
            if balancer.fleet != spec.fleet {
                return Err(CloudError::Conflict(format!(
                    "{address} is the address of fleet {}; give set {} another `listen` address",
                    balancer.fleet, spec.name
                )));
            }
            balancer.users += 1;
            return Ok(Slot {
                address,
                pool: Arc::clone(&balancer.pool),
            });
        }
        let listener = balancer::bind(address).await?;
        let address = listener.local_addr().unwrap_or(address);
        let pool = Arc::new(Pool::new(self.clock.clone()));
        let stop = self.stop.child_token();
        let serve = balancer::run(
            listener,
            Arc::clone(&pool),
            self.tasks.clone(),
            stop.clone(),
        );
        self.tasks.spawn("balancer", TaskKind::BACKGROUND, serve);
        let fleet = spec.fleet.clone();
        let entry = Balancer {
            fleet,
            pool: Arc::clone(&pool),
            users: 1,
            stop,
        };
        self.by_address.insert(address, entry);
        Ok(Slot { address, pool })
    }

    /// Ends one set's share; the last one stops the balancer.
    pub(super) fn give_back(&mut self, slot: Slot) {
        let Some(balancer) = self.by_address.get_mut(&slot.address) else {
            return;
        };
        balancer.users -= 1;
        if balancer.users == 0 {
            balancer.stop.cancel();
            self.by_address.remove(&slot.address);
        }
    }
}
