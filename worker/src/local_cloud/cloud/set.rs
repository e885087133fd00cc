//! One scale set in memory: its record, its share of a balancer, its instances, its watchers.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::balance::{Balancers, Slot};
use super::{CloudError, Instance};
use crate::local_cloud::balancer::Counts;
use crate::local_cloud::record::SetRecord;
use crate::local_cloud::spec::{HealthCheck, SetSpec, id_order};
use crate::local_cloud::view::SetView;

#[derive(Debug)]
pub(super) struct Set {
    pub(super) record: SetRecord,
    pub(super) instances: BTreeMap<String, Instance>,
    pub(super) checks: watch::Sender<HealthCheck>,
    /// The balancer, or why there is none.
    pub(super) slot: Result<Slot, String>,
    views: watch::Sender<Arc<SetView>>,
}

impl Set {
    pub(super) fn new(record: SetRecord, slot: Result<Slot, String>) -> Set {
        let empty = SetView {
            spec: record.spec.clone(),
            etag: record.etag,
            address: None,
            listen_error: String::new(),
            counts: Counts::default(),
            instances: Vec::new(),
        };
        Set {
            checks: watch::Sender::new(record.spec.health.clone()),
            record,
            instances: BTreeMap::new(),
            slot,
            views: watch::Sender::new(Arc::new(empty)),
        }
    }

    /// Takes up a set from its durable record.
    pub(super) async fn load(record: SetRecord, balancers: &mut Balancers) -> Set {
        let slot = listen(&record, balancers).await;
        Set::new(record, slot)
    }

    /// Tries once more to listen; true when that changed something.
    pub(super) async fn retry_listen(&mut self, balancers: &mut Balancers) -> bool {
        if self.slot.is_ok() || self.record.deleting {
            return false;
        }
        let slot = listen(&self.record, balancers).await;
        let changed = match (&slot, &self.slot) {
            (Ok(slot), _) => {
                for instance in self.instances.values() {
                    slot.pool.add(Arc::clone(&instance.backend));
                }
                true
            }
            (Err(new), Err(old)) => new != old,
            (Err(_), Ok(_)) => false,
        };
        self.slot = slot;
        changed
    }

    /// Whether the new settings need another address.
    pub(super) fn must_move(&self, spec: &SetSpec) -> bool {
        let picked = spec.listen.port() == 0
            && self
                .record
                .address
                .is_some_and(|a| a.ip() == spec.listen.ip());
        !(picked || self.record.address == Some(spec.listen))
            || spec.fleet != self.record.spec.fleet
    }

    /// Takes over a changed record and, when given, another share of a balancer.
    pub(super) fn adopt(
        &mut self,
        record: SetRecord,
        slot: Option<Slot>,
        balancers: &mut Balancers,
    ) {
        if let Some(slot) = slot {
            for instance in self.instances.values() {
                slot.pool.add(Arc::clone(&instance.backend));
            }
            self.leave(balancers);
            self.slot = Ok(slot);
        }
        self.checks.send_if_modified(|check| {
            let changed = *check != record.spec.health;
            check.clone_from(&record.spec.health);
            changed
        });
        self.record = record;
    }

    /// Refuses what a set that is going away cannot do.
    pub(super) fn alive(&self) -> Result<(), CloudError> {
        if self.record.deleting {
            return Err(CloudError::Deleting(format!(
                "set {}",
                self.record.spec.name
            )));
        }
        Ok(())
    }

    pub(super) fn close(mut self, balancers: &mut Balancers) {
        self.leave(balancers);
    }

    fn leave(&mut self, balancers: &mut Balancers) {
        let slot = std::mem::replace(&mut self.slot, Err(String::new()));
        if let Ok(slot) = slot {
            for instance in self.instances.values() {
                slot.pool.remove(&instance.backend);
            }
            balancers.give_back(slot);
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<SetView>> {
        // A subscriber must see the state of now, whatever was published last.
        self.publish();
        let mut views = self.views.subscribe();
        views.mark_changed();
        views
    }

    /// Shows the state of now to watchers.
    pub(super) fn publish(&self) {
        self.views.send_replace(Arc::new(self.view()));
    }

    pub(super) fn view(&self) -> SetView {
        let mut instances: Vec<_> = self.instances.values().map(Instance::view).collect();
        instances.sort_by(|a, b| id_order(&a.record.id, &b.record.id));
        let (address, counts, listen_error) = match &self.slot {
            Ok(slot) => (Some(slot.address), slot.pool.counts(), String::new()),
            Err(reason) => (None, Counts::default(), reason.clone()),
        };
        SetView {
            spec: self.record.spec.clone(),
            etag: self.record.etag,
            address,
            listen_error,
            counts,
            instances,
        }
    }
}

async fn listen(record: &SetRecord, balancers: &mut Balancers) -> Result<Slot, String> {
    let address = record.address.unwrap_or(record.spec.listen);
    balancers.take_at(&record.spec, address).await.map_err(|err| {
        tracing::warn!(set = %record.spec.name, %address, %err, "Scale set cannot listen; will try again.");
        err.to_string()
    })
}
