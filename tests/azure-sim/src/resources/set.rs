//! Scale sets (Uniform): the model, its instances, and what is done to several of them at once.
//!
//! ```text
//! model changed  Manual     instances keep theirs until manualupgrade
//!                Automatic  all of them at the end of the write
//!                Rolling    a rolling upgrade begins at the end of the write (upgrade.rs)
//! capacity       grown: more are made than wanted, and some deleted again (overprovision);
//!                shrunk: the highest numbers that are not protected go
//! ```
//!
//! Numbers of instances are never used twice. Flexible orchestration is not simulated.

use serde_json::{Value, json};

use super::machine::{parts, view};
use super::{Act, Kind, Power, Rules, State, Tick, capacity};
use crate::faults::Effect;
use crate::http::{Method, Reply};
use crate::json;
use crate::operations::{Operation, Verb};
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::world::{Begin, Call, World};

mod instance;
mod upgrade;

pub use instance::Instance;
pub(super) use instance::Instances;
pub use upgrade::Upgrade;

/// What the service knows about a scale set.
#[derive(Clone, Debug)]
pub struct Set {
    unique_id: String,
    /// Raised when the profile of the machines changes.
    model: u64,
    /// The number of the next instance.
    next: u64,
    /// So many of the instances that are being made fail, with this.
    doomed: Option<(u64, Problem)>,
    upgrade: Option<Upgrade>,
}

/// What is done to instances at the end of an operation.
#[derive(Clone, Debug)]
pub enum Deed {
    /// They come to the set's model.
    Upgrade,
    /// They go.
    Delete,
    /// Their power changes.
    Power(Power),
    /// They start anew.
    Restart,
}

fn set(resource: &Resource) -> Option<&Set> {
    match &resource.state {
        State::Set(set) => Some(set),
        _ => None,
    }
}

fn set_mut<'w>(world: &'w mut World, key: &str) -> Option<&'w mut Set> {
    match &mut world.store.get_mut(key)?.state {
        State::Set(set) => Some(set),
        _ => None,
    }
}

/// Keys of a set's instances, the lowest number first.
fn members(world: &World, set: &str) -> Vec<String> {
    let mut found: Vec<(u64, String)> = world
        .store
        .of_kind(set, Kind::Instance)
        .filter_map(|one| Some((instance::state(one)?.number, one.key())))
        .collect();
    found.sort();
    found.into_iter().map(|(_, key)| key).collect()
}

fn has_health(body: &Value) -> bool {
    let profile = "properties.virtualMachineProfile";
    let extensions = json::list(body, &format!("{profile}.extensionProfile.extensions"));
    let probe = json::at(body, &format!("{profile}.networkProfile.healthProbe"));
    let reports = |one: &Value| {
        json::text(one, "properties.type").is_some_and(|kind| kind.starts_with("ApplicationHealth"))
    };
    probe.is_some() || extensions.iter().any(reports)
}

fn mode(body: &Value) -> &str {
    json::text(body, "properties.upgradePolicy.mode").unwrap_or("Manual")
}

pub(super) struct Sets;

impl Rules for Sets {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        if json::text(body, "properties.orchestrationMode") == Some("Flexible") {
            return Err(Problem::bad_request(
                "This simulator has no scale sets with orchestrationMode 'Flexible'.",
            ));
        }
        let place = match old {
            Some(old) => old.location.clone(),
            None => super::region(json::text(body, "location").unwrap_or("westeurope")),
        };
        let size = json::text(body, "sku.name")
            .ok_or_else(|| Problem::required("sku.name"))?
            .to_owned();
        let wanted =
            json::number(body, "sku.capacity").ok_or_else(|| Problem::required("sku.capacity"))?;
        json::default(body, "sku.tier", "Standard");
        json::default(body, "properties.orchestrationMode", "Uniform");
        json::default(body, "properties.overprovision", true);
        json::default(body, "properties.singlePlacementGroup", true);
        let profile = json::at(body, "properties.virtualMachineProfile")
            .cloned()
            .ok_or_else(|| Problem::required("virtualMachineProfile"))?;
        let upgrade = json::text(body, "properties.upgradePolicy.mode");
        if upgrade.is_none() {
            return Err(Problem::required("upgradePolicy.mode"));
        }
        if upgrade == Some("Rolling") && !has_health(body) {
            return Err(Problem::bad_request(
                "Rolling Upgrade mode is not supported for this Virtual Machine Scale Set because a health probe or health extension was not specified.",
            ));
        }
        let image = "properties.virtualMachineProfile.storageProfile.imageReference";
        let before = old.and_then(|old| json::at(&old.body, image));
        if before.is_none() || before != json::at(body, image) {
            parts::image(world, &json!({"properties": profile}), &place)?;
        }
        let have = members(world, &call.key).len() as u64;
        let more = wanted.saturating_sub(have);
        let spot = json::text(&profile, "priority") == Some("Spot");
        if more > 0 {
            let subscription = &call.target.subscription;
            capacity::admit(world, subscription, &place, &size, spot, more)?;
        }
        let wanted = |effect: &Effect| matches!(effect, Effect::Instances { .. });
        let doomed = world
            .faults
            .strike(call.request, &mut world.dice, wanted)
            .pop();
        let doomed = match doomed {
            Some(Effect::Instances { count, problem }) => Some((count, *problem)),
            _ => None,
        };
        let path = "properties.virtualMachineProfile";
        let state = match old.and_then(set) {
            None => Set {
                unique_id: world.dice.guid(),
                model: 1,
                next: 0,
                doomed,
                upgrade: None,
            },
            Some(before) => {
                let changed = old.and_then(|old| json::at(&old.body, path)) != Some(&profile);
                Set {
                    model: before.model + u64::from(changed),
                    doomed,
                    ..before.clone()
                }
            }
        };
        Ok(State::Set(Box::new(state)))
    }

    fn stored(&self, world: &mut World, call: &Call<'_>, _old: Option<&Resource>) {
        let Some(resource) = world.store.get(&call.key).cloned() else {
            return;
        };
        let wanted = json::number(&resource.body, "sku.capacity").unwrap_or_default();
        let have = members(world, &call.key).len() as u64;
        let mut more = wanted.saturating_sub(have);
        if more > 1 && json::at(&resource.body, "properties.overprovision") == Some(&json!(true)) {
            more += more.div_ceil(5);
        }
        for _ in 0..more {
            instance::make(world, &resource);
        }
    }

    fn write_takes(&self, _fresh: bool, _method: Method) -> Option<&'static str> {
        Some("PATCH /virtualMachineScaleSets/{}")
    }

    fn write_ms(&self, world: &mut World, call: &Call<'_>) -> Option<u64> {
        let resource = world.store.get(&call.key)?;
        let wanted = json::number(&resource.body, "sku.capacity").unwrap_or_default();
        let behind = mode(&resource.body) == "Automatic" && instance::behind(world, &call.key);
        let resized = members(world, &call.key).len() as u64 != wanted;
        let fresh = resource.provisioning == "Creating";
        let row = "PUT /virtualMachineScaleSets/{}";
        (fresh || resized || behind).then(|| world.durations.take(row, &mut world.dice))
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /virtualMachineScaleSets/{}")
    }

    fn written(&self, world: &mut World, operation: &Operation) -> Result<(), Problem> {
        let key = &operation.key;
        let Some(resource) = world.store.get(key).cloned() else {
            return Ok(());
        };
        let failures = settle(world, key, &resource);
        match mode(&resource.body) {
            "Automatic" => {
                for one in members(world, key) {
                    instance::upgrade(world, &one);
                }
            }
            "Rolling" if instance::behind(world, key) => upgrade::begin(world, key),
            _ => {}
        }
        if failures.is_empty() {
            return Ok(());
        }
        let mut problem = Problem::new(
            409,
            "ResourceOperationFailure",
            "The resource operation completed with terminal provisioning state 'Failed'.",
        );
        problem.details = failures;
        Err(problem)
    }

    fn failed(&self, world: &mut World, operation: &Operation, _problem: &Problem) {
        if let crate::resources::Work::Act(Act::Instances { keys, .. }) = &operation.work {
            instance::free(world, keys, &operation.id);
        }
    }

    fn show(&self, world: &World, resource: &Resource, _expand: &str, body: &mut Value) {
        let Some(state) = set(resource) else {
            return;
        };
        json::set(body, "properties.uniqueId", state.unique_id.clone());
        json::set(body, "properties.timeCreated", resource.created.rfc3339());
        // What instances were deleted one by one is not in the capacity any more.
        let there = members(world, &resource.key()).len();
        if resource.operation.is_none() {
            json::set(body, "sku.capacity", there);
        }
    }

    fn actions(&self) -> &'static [&'static str] {
        &[
            "instanceview",
            "manualupgrade",
            "delete",
            "start",
            "poweroff",
            "restart",
            "deallocate",
            "reimage",
            "reimageall",
            "redeploy",
        ]
    }

    fn act(&self, world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        let action = call.action();
        let reads = matches!(action.as_str(), "instanceview" | "latest");
        let method = call.request.method;
        if reads != (method == Method::Get) || !(reads || method == Method::Post) {
            return Err(Problem::no_method(method.name()));
        }
        match action.as_str() {
            "instanceview" => return Ok(summary(world, call)),
            "latest" => return upgrade::latest(world, call),
            "cancel" => return upgrade::cancel(world, call),
            _ => {}
        }
        let body = call.body()?;
        let ids: Vec<&str> = json::list(&body, "instanceIds")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        if ids.is_empty() && matches!(action.as_str(), "delete" | "manualupgrade") {
            return Err(Problem::required("instanceIds"));
        }
        let keys = match ids.is_empty() || ids.contains(&"*") {
            true => members(world, &call.key),
            false => ids
                .iter()
                .map(|id| key(&format!("{}/virtualMachines/{id}", call.key)))
                .collect(),
        };
        for (nth, one) in keys.iter().enumerate() {
            match world.store.get(one) {
                None => {
                    let id = ids.get(nth).copied().unwrap_or_default();
                    return Err(Problem::parameter(
                        "instanceIds",
                        format!(
                            "The provided instanceId {id} is not an active Virtual Machine Scale Set VM instanceId."
                        ),
                    ));
                }
                Some(found) if found.busy() => return Err(Problem::conflict()),
                Some(_) => {}
            }
        }
        let upgrading = keys.iter().any(|one| instance::is_behind(world, one));
        let (deed, row) = match action.as_str() {
            "delete" => (Deed::Delete, "delete"),
            "manualupgrade" if upgrading => (Deed::Upgrade, "reimage"),
            "manualupgrade" => (Deed::Upgrade, "manualupgrade"),
            "start" => (Deed::Power(Power::Running), "start"),
            "poweroff" => (Deed::Power(Power::Stopped), "poweroff"),
            "deallocate" => (Deed::Power(Power::Deallocated), "deallocate"),
            "restart" => (Deed::Restart, "restart"),
            "redeploy" => (Deed::Restart, "redeploy"),
            "reimageall" => (Deed::Restart, "reimageall"),
            _ => (Deed::Restart, "reimage"),
        };
        let row = format!("POST /virtualMachineScaleSets/{{}}/{row}");
        let charge = keys.len().max(1);
        let reply = begin(world, call, keys, deed, &row)?;
        Ok(reply.with("x-ms-request-charge", charge.to_string()))
    }

    fn acted(
        &self,
        world: &mut World,
        operation: &Operation,
        act: &Act,
    ) -> Result<Option<Value>, Problem> {
        if let Act::Instances { keys, deed } = act {
            instance::free(world, keys, &operation.id);
            for one in keys {
                instance::apply(world, one, deed);
            }
        }
        Ok(None)
    }

    fn tick(&self, world: &mut World, key: &str, tick: Tick) {
        if let Tick::Upgrade(generation) = tick {
            upgrade::step(world, key, generation);
        }
    }
}

/// Begins a deed on instances; each of them is busy until its end.
fn begin(
    world: &mut World,
    call: &Call<'_>,
    keys: Vec<String>,
    deed: Deed,
    row: &str,
) -> Result<Reply, Problem> {
    let ms = world.durations.take(row, &mut world.dice);
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Act,
        work: super::Work::Act(Act::Instances {
            keys: keys.clone(),
            deed,
        }),
        ms,
        shared: true,
    };
    let id = world.begin(call, begin)?;
    for one in &keys {
        if let Some(found) = world.store.get_mut(one) {
            found.operation = Some(id.clone());
        }
    }
    Ok(world.following(call, &id, Reply::empty(202)))
}

/// The end of a write: what was being made runs or has failed, and there are as many as wanted.
fn settle(world: &mut World, key: &str, resource: &Resource) -> Vec<Value> {
    let wanted = json::number(&resource.body, "sku.capacity").unwrap_or_default();
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let mut there = members(world, key);
    let fresh: Vec<String> = there
        .iter()
        .filter(|one| {
            world
                .store
                .get(one)
                .is_some_and(|r| r.provisioning == "Creating")
        })
        .cloned()
        .collect();
    let mut spare = there.len().saturating_sub(wanted);
    // Of what was made too much any may go, so that numbers have gaps.
    let mut kept = fresh.clone();
    while spare > 0 && !kept.is_empty() {
        let last = kept.len() as u64 - 1;
        let nth = usize::try_from(world.dice.between(0, last)).expect("an index");
        world.store.remove(&kept.remove(nth));
        spare -= 1;
    }
    there = members(world, key);
    for one in there.iter().rev() {
        if spare > 0 && !instance::protected(world, one) {
            world.store.remove(one);
            spare -= 1;
        }
    }
    let doomed = set_mut(world, key).and_then(|set| set.doomed.take());
    let (count, problem) = match doomed {
        Some((count, problem)) => (count, Some(problem)),
        None => (0, None),
    };
    let mut failures = Vec::new();
    for (nth, one) in kept.iter().enumerate() {
        match &problem {
            Some(problem) if (nth as u64) < count => {
                instance::fail(world, one);
                let number = one.rsplit('/').next().unwrap_or_default();
                let mut detail = problem.inner();
                detail["target"] = json!(number);
                failures.push(detail);
            }
            _ => instance::run(world, one),
        }
    }
    failures
}

/// The set's instance view: how many are in which state.
fn summary(world: &World, call: &Call<'_>) -> Reply {
    let mut counts: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
    for one in members(world, &call.key) {
        if let Some(found) = world.store.get(&one) {
            let code = format!(
                "ProvisioningState/{}",
                found.provisioning.to_ascii_lowercase()
            );
            *counts.entry(code).or_default() += 1;
        }
    }
    let codes: Vec<Value> = counts
        .into_iter()
        .map(|(code, count)| json!({"code": code, "count": count}))
        .collect();
    let resource = world.store.get(&call.key).expect("it was found visible");
    let since = resource.created.rfc3339();
    let state = resource.provisioning.to_ascii_lowercase();
    let code = format!("ProvisioningState/{state}");
    let status = view::status(&code, &format!("Provisioning {state}"), &since);
    let body = json!({"virtualMachine": {"statusesSummary": codes}, "statuses": [status]});
    Reply::json(200, body)
}
