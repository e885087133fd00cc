//! Resource groups. One that is deleted takes all it has with it, when the slowest of it is gone.

use serde_json::Value;

use super::{Rules, State, rules};
use crate::http::{Method, Target};
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::world::{Call, World};

/// What deleting an empty group takes; nothing was recorded.
const EMPTY_MS: u64 = 15_000;

pub(super) struct Groups;

impl Rules for Groups {
    fn check(
        &self,
        _world: &mut World,
        _call: &Call<'_>,
        _old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        if !body.is_object() {
            return Err(Problem::new(
                400,
                "InvalidRequestContent",
                "The request content was invalid and could not be deserialized.",
            ));
        }
        Ok(State::Plain)
    }

    fn write_takes(&self, _fresh: bool, _method: Method) -> Option<&'static str> {
        None
    }

    fn delete_takes(&self) -> Option<&'static str> {
        None
    }

    fn show(&self, _world: &World, _resource: &Resource, _expand: &str, _body: &mut Value) {}
}

/// The group of a path.
///
/// # Errors
/// It is not there.
pub(super) fn must_exist(world: &World, target: &Target) -> Result<(), Problem> {
    match world.store.get(&group_key(target)) {
        Some(_) => Ok(()),
        None => Err(Problem::no_group(target.group())),
    }
}

/// A group that is going takes nothing new.
pub(super) fn must_stay(world: &World, target: &Target) -> Result<(), Problem> {
    let group = world.store.get(&group_key(target));
    match group.is_some_and(|group| group.provisioning == "Deleting") {
        false => Ok(()),
        true => Err(Problem::new(
            409,
            "ResourceGroupBeingDeleted",
            format!(
                "The resource group '{}' is in deprovisioning state and cannot perform this operation.",
                target.group()
            ),
        )),
    }
}

fn group_key(target: &Target) -> String {
    key(&format!(
        "/subscriptions/{}/resourceGroups/{}",
        target.subscription,
        target.group()
    ))
}

/// As long as the slowest of what is in it.
pub(super) fn removal_takes(world: &mut World, key: &str) -> u64 {
    let kinds: Vec<_> = world
        .store
        .under(key)
        .map(|resource| resource.kind)
        .collect();
    let rows = kinds
        .into_iter()
        .filter_map(|kind| rules(kind).delete_takes());
    let slowest = rows
        .map(|row| world.durations.take(row, &mut world.dice))
        .max();
    let empty = EMPTY_MS * world.durations.per_mille / 1000;
    slowest.unwrap_or_default() + empty.max(1)
}
