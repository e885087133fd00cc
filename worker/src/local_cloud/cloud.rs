//! The owner of the local cloud's state: one task that takes every call and every event in turn.
//!
//! ```text
//! api ----call----> .-------.  goal   .--------. boots
//!                   | owner | ------> | driver | ------> runtime
//! health -verdict-> |       | <------ '--------'
//! drain --done----> '-------'  report
//!                       | record saved and synced, then believed, then answered
//!                       v
//!                  watch queue of views
//! ```
//!
//! A call is checked against the record (known operation id, etag, state), the changed record is
//! made durable, and only then does memory change and the caller get the answer. What takes long
//! (boots, draining) happens in tasks of its own that report back. Durable files are written off
//! the async threads, one after the other: the owner waits, since order is what it is for.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::Tasks;

use super::driver::{Identity, Report};
use super::health::Verdict;
use super::record::{Caller, Etag, InstanceRecord, Operations, SetRecord};
use super::runtime::{BootError, Runtime};
use super::spec::{self, Image, Invalid, SetSpec};
use super::store::{Spent, Store, StoreError};
use super::view::{InstanceView, SetView};

mod balance;
mod instance;
mod set;

use balance::Balancers;
use instance::Instance;
use set::Set;

/// Calls and events waiting for the owner; beyond it callers wait.
const QUEUE: usize = 256;

/// Why a call was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// There is no such set or instance.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It existed, and was deleted after this operation was accepted.
    #[error("{0} was deleted after this operation")]
    Gone(String),
    /// Another operation made it.
    #[error("{0} exists already")]
    Exists(String),
    /// Somebody else acted since the caller looked.
    #[error("{what} has etag {current} now; look at it again and decide anew")]
    Etag {
        /// The resource.
        what: String,
        /// Its etag now.
        current: Etag,
    },
    /// The request can never work.
    #[error("invalid request: {0}")]
    Invalid(#[from] Invalid),
    /// A limit is reached.
    #[error("{0}")]
    Quota(String),
    /// It is being deleted.
    #[error("{0} is being deleted")]
    Deleting(String),
    /// The balancer's address cannot be had.
    #[error(transparent)]
    Listen(#[from] super::balancer::BindError),
    /// An address is used in another fleet.
    #[error("{0}")]
    Conflict(String),
    /// The record could not be made durable; nothing was changed.
    #[error("the change could not be made durable, so it was not made")]
    Store(#[from] StoreError),
    /// The image cannot be had.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The cloud is stopping.
    #[error("the local cloud is stopping")]
    Stopping,
}

/// What a caller wants of one instance.
#[derive(Clone, Debug)]
pub enum Action {
    /// Make it; without an image, from the set's model.
    Create(Option<Image>),
    /// Replace its root.
    Reimage(Image),
    /// Boot it anew from the image it has.
    Restart,
    /// Give it no new connections.
    Drain,
    /// Give it connections again.
    Undrain,
    /// Remove it.
    Delete,
}

/// One call about one instance.
#[derive(Clone, Debug)]
pub struct InstanceCall {
    /// Makes a repeat harmless.
    pub operation_id: String,
    /// Kept in the history, never checked.
    pub caller_token: String,
    /// The set.
    pub set: String,
    /// The instance.
    pub id: String,
    /// The etag the caller decided on; empty for any.
    pub if_match: String,
    /// What it wants.
    pub action: Action,
}

type Answer<T> = oneshot::Sender<Result<T, CloudError>>;

enum Event {
    PutSet {
        operation_id: String,
        if_match: String,
        spec: Box<SetSpec>,
        answer: Answer<(SetView, bool)>,
    },
    DeleteSet {
        operation_id: String,
        if_match: String,
        set: String,
        answer: Answer<()>,
    },
    Instance {
        call: Box<InstanceCall>,
        answer: Answer<InstanceView>,
    },
    Sets {
        answer: Answer<Vec<SetView>>,
    },
    Watch {
        set: String,
        answer: Answer<watch::Receiver<Arc<SetView>>>,
    },
}

/// The way to the owner. Clones lead to the same cloud.
#[derive(Clone, Debug)]
pub struct Handle {
    events: mpsc::Sender<Event>,
    runtime: Arc<dyn Runtime>,
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Event")
    }
}

impl Handle {
    /// Makes a set or changes its settings; true when it was made.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn put_set(
        &self,
        operation_id: String,
        if_match: String,
        spec: SetSpec,
    ) -> Result<(SetView, bool), CloudError> {
        let spec = Box::new(spec);
        self.ask(|answer| Event::PutSet {
            operation_id,
            if_match,
            spec,
            answer,
        })
        .await
    }

    /// Deletes a set and its instances; absent is success.
    ///
    /// # Errors
    /// See [`CloudError`].
    pub async fn delete_set(
        &self,
        operation_id: String,
        if_match: String,
        set: String,
    ) -> Result<(), CloudError> {
        self.ask(|answer| Event::DeleteSet {
            operation_id,
            if_match,
            set,
            answer,
        })
        .await
    }

    /// Does one thing to one instance. The answer to a deletion is the instance as it goes.
    ///
    /// # Errors
    /// See [`CloudError`]; deleting what is not there is [`CloudError::NotFound`].
    pub async fn instance(&self, call: InstanceCall) -> Result<InstanceView, CloudError> {
        let call = Box::new(call);
        self.ask(|answer| Event::Instance { call, answer }).await
    }

    /// All sets.
    ///
    /// # Errors
    /// The cloud is stopping.
    pub async fn sets(&self) -> Result<Vec<SetView>, CloudError> {
        self.ask(|answer| Event::Sets { answer }).await
    }

    /// One set.
    ///
    /// # Errors
    /// It does not exist, or the cloud is stopping.
    pub async fn set(&self, name: &str) -> Result<SetView, CloudError> {
        let found = self.sets().await?.into_iter().find(|s| s.spec.name == name);
        found.ok_or_else(|| CloudError::NotFound(format!("set {name}")))
    }

    /// A queue that always holds the newest view of a set and closes when the set is deleted.
    ///
    /// # Errors
    /// It does not exist, or the cloud is stopping.
    pub async fn watch(&self, set: String) -> Result<watch::Receiver<Arc<SetView>>, CloudError> {
        self.ask(|answer| Event::Watch { set, answer }).await
    }

    /// Unpacks an image's layers.
    ///
    /// # Errors
    /// A layer cannot be had.
    pub async fn prefetch(&self, image: &Image) -> Result<(), CloudError> {
        image.validate()?;
        Ok(self.runtime.prefetch(image).await?)
    }

    async fn ask<T>(&self, event: impl FnOnce(Answer<T>) -> Event) -> Result<T, CloudError> {
        let (answer, wait) = oneshot::channel();
        self.events
            .send(event(answer))
            .await
            .map_err(|_| CloudError::Stopping)?;
        wait.await.map_err(|_| CloudError::Stopping)?
    }
}

/// What the parts of the owner share.
#[derive(Clone, Debug)]
struct Shared {
    store: Store,
    runtime: Arc<dyn Runtime>,
    clock: SharedClock,
    tasks: Tasks,
    stop: CancellationToken,
    reports: mpsc::Sender<(Identity, Report)>,
    verdicts: mpsc::Sender<(String, Verdict)>,
    drains: mpsc::Sender<Drained>,
}

impl Shared {
    /// Runs one durable write off the async threads.
    async fn save(
        &self,
        write: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), CloudError> {
        let store = self.store.clone();
        let done = self
            .tasks
            .blocking("save record", move || write(&store))
            .await;
        // A panic in the write is a bug that was logged; nothing is known to be durable.
        Ok(done.map_err(|_| CloudError::Stopping)??)
    }
}

/// A drain has come to its end.
#[derive(Debug)]
struct Drained {
    set: String,
    id: String,
    drain: u64,
}

/// The owner.
#[derive(Debug)]
pub struct Cloud {
    shared: Shared,
    sets: BTreeMap<String, Set>,
    balancers: Balancers,
    spent: Spent,
    events: mpsc::Receiver<Event>,
    reports: mpsc::Receiver<(Identity, Report)>,
    verdicts: mpsc::Receiver<(String, Verdict)>,
    drains: mpsc::Receiver<Drained>,
}

impl Cloud {
    /// Loads the durable state, listens, and starts every instance that should run.
    ///
    /// # Errors
    /// A record cannot be read. An address that is taken is no error: the set says so and it is
    /// tried again.
    pub async fn start(
        store: Store,
        runtime: Arc<dyn Runtime>,
        clock: SharedClock,
        tasks: Tasks,
    ) -> Result<(Handle, Cloud), CloudError> {
        let (events_to, events) = mpsc::channel(QUEUE);
        let (reports_to, reports) = mpsc::channel(QUEUE);
        let (verdicts_to, verdicts) = mpsc::channel(QUEUE);
        let (drains_to, drains) = mpsc::channel(QUEUE);
        let shared = Shared {
            store,
            runtime: Arc::clone(&runtime),
            clock,
            stop: tasks.cancelled().child_token(),
            tasks,
            reports: reports_to,
            verdicts: verdicts_to,
            drains: drains_to,
        };
        let store = shared.store.clone();
        let loaded = shared
            .tasks
            .blocking("load records", move || store.load())
            .await;
        let loaded = loaded.map_err(|_| CloudError::Stopping)??;
        let mut cloud = Cloud {
            balancers: Balancers::new(
                shared.clock.clone(),
                shared.tasks.clone(),
                shared.stop.clone(),
            ),
            shared,
            sets: BTreeMap::new(),
            spent: loaded.spent,
            events,
            reports,
            verdicts,
            drains,
        };
        for record in loaded.sets {
            let name = record.spec.name.clone();
            let set = Set::load(record, &mut cloud.balancers).await;
            cloud.sets.insert(name, set);
        }
        for record in loaded.instances {
            let Some(set) = cloud.sets.get_mut(&record.set) else {
                continue;
            };
            let instance = Instance::start(&cloud.shared, set, record).await;
            set.instances.insert(instance.record.id.clone(), instance);
        }
        for set in cloud.sets.values() {
            set.publish();
        }
        cloud.sweep_deleted_sets().await?;
        Ok((
            Handle {
                events: events_to,
                runtime,
            },
            cloud,
        ))
    }

    /// Takes calls and events until the process stops.
    pub async fn run(mut self) {
        let mut retry_listen = self.shared.clock.sleep(balance::RETRY);
        loop {
            let stop = self.shared.stop.clone();
            tokio::select! {
                // Stop first; then what is known, so that an answer is as fresh as it can be.
                biased;
                () = stop.cancelled() => break,
                Some((identity, report)) = self.reports.recv() => self.on_report(&identity, report).await,
                Some((set, verdict)) = self.verdicts.recv() => self.on_verdict(&set, verdict),
                Some(drained) = self.drains.recv() => self.on_drained(&drained),
                event = self.events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => break,
                },
                () = &mut retry_listen => {
                    self.retry_listen().await;
                    retry_listen = self.shared.clock.sleep(balance::RETRY);
                }
            }
        }
        // Drivers stop their instances on the same token; the register waits for them.
        self.shared.stop.cancel();
    }

    async fn on_event(&mut self, event: Event) {
        // A caller that has gone away does not undo what was accepted.
        match event {
            Event::PutSet {
                operation_id,
                if_match,
                spec,
                answer,
            } => {
                let _ = answer.send(self.put_set(&operation_id, &if_match, *spec).await);
            }
            Event::DeleteSet {
                operation_id,
                if_match,
                set,
                answer,
            } => {
                let _ = answer.send(self.delete_set(&operation_id, &if_match, &set).await);
            }
            Event::Instance { call, answer } => {
                let _ = answer.send(self.instance(*call).await);
            }
            Event::Sets { answer } => {
                let _ = answer.send(Ok(self.sets.values().map(Set::view).collect()));
            }
            Event::Watch { set, answer } => {
                let found = self.sets.get(&set).map(Set::subscribe);
                let _ =
                    answer.send(found.ok_or_else(|| CloudError::NotFound(format!("set {set}"))));
            }
        }
    }

    async fn put_set(
        &mut self,
        operation_id: &str,
        if_match: &str,
        spec: SetSpec,
    ) -> Result<(SetView, bool), CloudError> {
        operation(operation_id)?;
        spec.validate()?;
        let what = format!("set {}", spec.name);
        let Some(set) = self.sets.get_mut(&spec.name) else {
            if self.spent.seen(operation_id) {
                return Err(CloudError::Gone(what));
            }
            if !if_match.is_empty() {
                return Err(CloudError::NotFound(what));
            }
            let slot = self.balancers.take(&spec).await?;
            let mut record = SetRecord {
                etag: Etag(1),
                address: Some(slot.address),
                operations: Operations::default(),
                deleting: false,
                spec,
            };
            record.operations.accept(operation_id);
            let saved = record.clone();
            if let Err(err) = self.shared.save(move |s| s.save_set(&saved)).await {
                self.balancers.give_back(slot);
                return Err(err);
            }
            let name = record.spec.name.clone();
            let set = Set::new(record, Ok(slot));
            let view = set.view();
            set.publish();
            tracing::info!(set = %name, address = ?view.address, "Scale set made.");
            self.sets.insert(name, set);
            return Ok((view, true));
        };
        if set.record.operations.seen(operation_id) {
            return Ok((set.view(), false));
        }
        set.alive()?;
        etag(&what, set.record.etag, if_match)?;
        let slot = if set.must_move(&spec) {
            Some(self.balancers.take(&spec).await?)
        } else {
            None
        };
        let mut record = SetRecord {
            spec,
            ..set.record.clone()
        };
        record.etag = record.etag.next();
        record.operations.accept(operation_id);
        if let Some(slot) = &slot {
            record.address = Some(slot.address);
        }
        let saved = record.clone();
        if let Err(err) = self.shared.save(move |s| s.save_set(&saved)).await {
            if let Some(slot) = slot {
                self.balancers.give_back(slot);
            }
            return Err(err);
        }
        set.adopt(record, slot, &mut self.balancers);
        set.publish();
        Ok((set.view(), false))
    }

    async fn delete_set(
        &mut self,
        operation_id: &str,
        if_match: &str,
        name: &str,
    ) -> Result<(), CloudError> {
        operation(operation_id)?;
        let Some(set) = self.sets.get_mut(name) else {
            return Ok(());
        };
        if set.record.operations.seen(operation_id) || set.record.deleting {
            return Ok(());
        }
        etag(&format!("set {name}"), set.record.etag, if_match)?;
        let mut record = SetRecord {
            deleting: true,
            ..set.record.clone()
        };
        record.etag = record.etag.next();
        record.operations.accept(operation_id);
        let saved = record.clone();
        self.shared.save(move |s| s.save_set(&saved)).await?;
        set.record = record;
        for instance in set.instances.values_mut() {
            // Follows from the set's record, so it needs no record of its own.
            instance.begin_delete();
        }
        set.publish();
        tracing::info!(set = name, "Scale set is being deleted.");
        self.sweep_deleted_sets().await
    }

    async fn instance(&mut self, call: InstanceCall) -> Result<InstanceView, CloudError> {
        operation(&call.operation_id)?;
        let what = format!("instance {} of set {}", call.id, call.set);
        let Some(set) = self.sets.get_mut(&call.set) else {
            return Err(CloudError::NotFound(format!("set {}", call.set)));
        };
        let Some(instance) = set.instances.get_mut(&call.id) else {
            return match call.action {
                _ if self.spent.seen(&call.operation_id) => Err(CloudError::Gone(what)),
                Action::Create(ref image) => {
                    set.alive()?;
                    spec::name("id", &call.id, spec::INSTANCE_ID_MAX)?;
                    let image = image
                        .clone()
                        .or_else(|| set.record.spec.model.clone())
                        .ok_or_else(|| {
                            Invalid::new("image", "is needed, because the set has no model")
                        })?;
                    image.validate()?;
                    if set.instances.len() >= spec::INSTANCES_MAX {
                        let max = spec::INSTANCES_MAX;
                        return Err(CloudError::Quota(format!(
                            "set {} has {max} instances",
                            call.set
                        )));
                    }
                    // The number is used up even if the record fails to become durable.
                    let number = self.spent.next_number;
                    self.spent.next_number += 1;
                    let spent = self.spent.clone();
                    self.shared.save(move |s| s.save_spent(&spent)).await?;
                    let caller = self.caller(&call);
                    let Some(set) = self.sets.get_mut(&call.set) else {
                        return Err(CloudError::NotFound(what));
                    };
                    let record = InstanceRecord::new(&call.set, &call.id, number, image, &caller);
                    let instance = Instance::create(&self.shared, set, record).await?;
                    tracing::info!(set = %call.set, instance = %call.id, image_version = %instance.record.image.version, "Instance is being created.");
                    let view = instance.view();
                    set.instances.insert(call.id, instance);
                    set.publish();
                    Ok(view)
                }
                _ => Err(CloudError::NotFound(what)),
            };
        };
        if instance.record.operations.seen(&call.operation_id) {
            return Ok(instance.view());
        }
        if matches!(call.action, Action::Create(_)) {
            return Err(CloudError::Exists(what));
        }
        if instance.record.deleting {
            return match call.action {
                Action::Delete => Ok(instance.view()),
                _ => Err(CloudError::Deleting(what)),
            };
        }
        etag(&what, instance.record.etag, &call.if_match)?;
        let now_ms = self.shared.clock.wall().as_millis();
        let caller = Caller {
            operation_id: call.operation_id,
            token: call.caller_token,
            now_ms,
        };
        let mut record = instance.record.clone();
        match call.action {
            Action::Create(_) => unreachable!("answered above"),
            Action::Reimage(image) => {
                image.validate()?;
                record.reimage(image, &caller);
            }
            Action::Restart => record.restart(&caller),
            Action::Drain => record.set_draining(true, &caller.operation_id),
            Action::Undrain => record.set_draining(false, &caller.operation_id),
            Action::Delete => record.delete(&caller.operation_id),
        }
        let saved = record.clone();
        self.shared.save(move |s| s.save_instance(&saved)).await?;
        instance.adopt(&self.shared, record, &set.record.spec);
        let view = instance.view();
        tracing::info!(set = %call.set, instance = %call.id, operation_id = %caller.operation_id, phase = ?view.phase, image_version = %view.record.image.version, draining = view.record.draining, "Operation accepted.");
        set.publish();
        Ok(view)
    }

    fn caller(&self, call: &InstanceCall) -> Caller {
        Caller {
            operation_id: call.operation_id.clone(),
            token: call.caller_token.clone(),
            now_ms: self.shared.clock.wall().as_millis(),
        }
    }

    async fn on_report(&mut self, identity: &Identity, report: Report) {
        let Some(set) = self.sets.get_mut(&identity.set) else {
            return;
        };
        let Some(instance) = set.instances.get_mut(&identity.id) else {
            return;
        };
        if report == Report::Deleted {
            if let Err(err) = self.remove_instance(identity).await {
                // The record says "deleting", so the next start of the cloud goes on with it.
                tracing::error!(set = %identity.set, instance = %identity.id, %err, "Record of a deleted instance could not be removed.");
            }
            return;
        }
        if instance.on_report(report) {
            let saved = instance.record.clone();
            if let Err(err) = self.shared.save(move |s| s.save_instance(&saved)).await {
                // Only the measured gap is lost; the operation itself is durable.
                tracing::warn!(set = %identity.set, instance = %identity.id, %err, "Measured gap could not be recorded.");
            }
        }
        if let Some(set) = self.sets.get(&identity.set) {
            set.publish();
        }
    }

    async fn remove_instance(&mut self, identity: &Identity) -> Result<(), CloudError> {
        let Some(set) = self.sets.get_mut(&identity.set) else {
            return Ok(());
        };
        let Some(instance) = set.instances.remove(&identity.id) else {
            return Ok(());
        };
        instance.close();
        // Remembered before it is forgotten: a repeat in between must not make it again.
        self.spent.add(instance.record.operations.iter());
        let (spent, who) = (self.spent.clone(), identity.clone());
        self.shared
            .save(move |s| {
                s.save_spent(&spent)?;
                s.remove_instance(&who.set, &who.id)
            })
            .await?;
        tracing::info!(set = %identity.set, instance = %identity.id, "Instance deleted.");
        if let Some(set) = self.sets.get(&identity.set) {
            set.publish();
        }
        self.sweep_deleted_sets().await
    }

    /// Removes sets that are being deleted and have no instance left.
    async fn sweep_deleted_sets(&mut self) -> Result<(), CloudError> {
        let empty = |s: &&Set| s.record.deleting && s.instances.is_empty();
        let names: Vec<String> = self
            .sets
            .values()
            .filter(empty)
            .map(|s| s.record.spec.name.clone())
            .collect();
        for name in names {
            let Some(set) = self.sets.remove(&name) else {
                continue;
            };
            self.spent.add(set.record.operations.iter());
            let spent = self.spent.clone();
            let removed = name.clone();
            set.close(&mut self.balancers);
            self.shared
                .save(move |s| {
                    s.save_spent(&spent)?;
                    s.remove_set(&removed)
                })
                .await?;
            tracing::info!(set = %name, "Scale set deleted.");
        }
        Ok(())
    }

    fn on_verdict(&mut self, set: &str, verdict: Verdict) {
        let Some(set) = self.sets.get_mut(set) else {
            return;
        };
        if let Some(instance) = set.instances.get_mut(&verdict.id) {
            instance.on_verdict(verdict);
            set.publish();
        }
    }

    fn on_drained(&mut self, drained: &Drained) {
        let Some(set) = self.sets.get_mut(&drained.set) else {
            return;
        };
        if let Some(instance) = set.instances.get_mut(&drained.id) {
            instance.on_drained(drained.drain);
            set.publish();
        }
    }

    async fn retry_listen(&mut self) {
        for set in self.sets.values_mut() {
            if set.retry_listen(&mut self.balancers).await {
                set.publish();
            }
        }
    }
}

fn operation(operation_id: &str) -> Result<(), Invalid> {
    /// Longest operation id; each is kept in records.
    const OPERATION_ID_MAX: usize = 128;
    if operation_id.is_empty() || operation_id.len() > OPERATION_ID_MAX {
        return Err(Invalid::new("operation_id", "must be 1 to 128 characters"));
    }
    Ok(())
}

fn etag(what: &str, current: Etag, if_match: &str) -> Result<(), CloudError> {
    if current.matches(if_match) {
        return Ok(());
    }
    Err(CloudError::Etag {
        what: what.to_owned(),
        current,
    })
}
