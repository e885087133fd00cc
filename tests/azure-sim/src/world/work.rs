//! Beginning and ending operations: what runs beside what, and what becomes of a resource.

use serde_json::Value;

use super::{Call, Due, World};
use crate::faults::Effect;
use crate::operations::{Operation, Status, Verb};
use crate::problem::Problem;
use crate::resources::{self, Work};
use crate::store::Key;

/// What is to begin.
#[derive(Debug)]
pub struct Begin {
    /// The resource that it is at work on.
    pub key: Key,
    /// How it was asked for.
    pub verb: Verb,
    /// What happens at its end.
    pub work: Work,
    /// How long it takes, in virtual milliseconds.
    pub ms: u64,
    /// It shares the resource with others: actions on single instances of a set.
    pub shared: bool,
}

impl World {
    /// Begins an operation on a resource.
    ///
    /// ```text
    /// running \ new     write, delete        act
    /// none              begins               begins
    /// VM, set: any      takes over, the      409 Conflict
    ///                   old is preempted
    /// others: any       409 Conflict         409 Conflict
    /// ```
    ///
    /// # Errors
    /// Another one is at work on the resource.
    pub fn begin(&mut self, call: &Call<'_>, begin: Begin) -> Result<String, Problem> {
        let Begin {
            key,
            verb,
            work,
            mut ms,
            shared,
        } = begin;
        if !shared {
            self.make_room(&key, verb)?;
        }
        let wanted = |effect: &Effect| matches!(effect, Effect::Fail(_) | Effect::Slow(_));
        let mut doom = None;
        for effect in self.faults.strike(call.request, &mut self.dice, wanted) {
            match effect {
                Effect::Fail(problem) => doom = Some(*problem),
                Effect::Slow(more) => ms = ms.saturating_add(more),
                _ => {}
            }
        }
        let id = self.dice.guid();
        let location = self.store.get(&key).map(|r| r.location.clone());
        self.operations.insert(Operation {
            id: id.clone(),
            family: call.kind.family(),
            subscription: call.target.subscription.clone(),
            location: location.unwrap_or_else(|| "westeurope".to_owned()),
            version: call.version.clone(),
            key: key.clone(),
            work,
            verb,
            began: self.now,
            ended: None,
            status: Status::Running,
            doom,
        });
        if !shared && let Some(resource) = self.store.get_mut(&key) {
            resource.operation = Some(id.clone());
        }
        self.schedule(self.now.after(ms), Due::Operation(id.clone()));
        Ok(id)
    }

    /// Whether a new operation may begin; an older one gives way where the type has it so.
    ///
    /// # Errors
    /// It may not.
    pub fn make_room(&mut self, key: &str, verb: Verb) -> Result<(), Problem> {
        let Some(resource) = self.store.get(key) else {
            return Ok(());
        };
        let Some(running) = resource.operation.clone() else {
            return Ok(());
        };
        let deleting = self
            .operations
            .get(&running, self.now)
            .is_some_and(|operation| operation.verb == Verb::Delete);
        if resource.kind.is_network() {
            return Err(Problem::another_operation(&resource.name, &running));
        }
        if !resource.kind.preempts() || verb == Verb::Act || deleting {
            return Err(Problem::conflict());
        }
        self.close(&running, Status::Failed(Problem::preempted()));
        Ok(())
    }

    /// An operation's time has come.
    pub(super) fn end(&mut self, id: &str) {
        let Some(operation) = self.operations.get(id, self.now) else {
            return;
        };
        if !operation.running() {
            return;
        }
        let operation = operation.clone();
        let done: Result<Option<Value>, Problem> = match &operation.doom {
            Some(problem) => {
                resources::failed(self, &operation, problem);
                Err(problem.clone())
            }
            None => resources::finish(self, &operation),
        };
        let (status, provisioning) = match done {
            Ok(output) => (Status::Succeeded(output), "Succeeded"),
            Err(problem) => (Status::Failed(problem), "Failed"),
        };
        let changed = operation.verb != Verb::Act;
        if let Some(resource) = self.store.get_mut(&operation.key)
            && resource.operation.as_deref() == Some(id)
            && changed
        {
            resource.provisioning = provisioning;
            resource.etag += 1;
        }
        self.close(id, status);
    }

    /// Writes down how an operation ended and frees its resource.
    fn close(&mut self, id: &str, status: Status) {
        let now = self.now;
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        operation.status = status;
        operation.ended = Some(now);
        let key = operation.key.clone();
        if let Some(resource) = self.store.get_mut(&key)
            && resource.operation.as_deref() == Some(id)
        {
            resource.operation = None;
        }
    }
}
