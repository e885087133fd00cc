//! One instance of a scale set.

use serde_json::{Value, json};

use super::super::machine::{self, view};
use super::super::{Act, Kind, Power, Rules, Run, State, Tick, Work, begin_act, tick_at};
use super::{Deed, set};
use crate::http::{Method, Reply};
use crate::json;
use crate::operations::{Operation, Verb};
use crate::problem::Problem;
use crate::store::Resource;
use crate::time::Moment;
use crate::world::{Begin, Call, World};

/// An instance whose extension has just begun to report is initializing for so long.
pub(super) const INITIALIZING_MS: u64 = 30_000;
/// Between the notice and the eviction.
const NOTICE_MS: u64 = 30_000;

/// What the service knows about an instance.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its number in the set.
    pub number: u64,
    /// The revision of the set's profile that it runs.
    pub model: u64,
    power: Power,
    since: Moment,
    vm_id: String,
    /// Of the set when the instance was made or upgraded.
    size: String,
    spot: Option<String>,
    /// The profile has an extension that reports health.
    reports: bool,
    eviction: Option<(String, Moment)>,
}

impl Instance {
    /// The eviction that is announced.
    #[must_use]
    pub fn eviction(&self) -> Option<&(String, Moment)> {
        self.eviction.as_ref()
    }

    /// Size and whether it is a spot machine, while it uses cores.
    #[must_use]
    pub fn cores(&self) -> Option<(String, bool)> {
        let uses = self.power != Power::Deallocated;
        uses.then(|| (self.size.clone(), self.spot.is_some()))
    }
}

pub(super) fn state(resource: &Resource) -> Option<&Instance> {
    match &resource.state {
        State::Instance(instance) => Some(instance),
        _ => None,
    }
}

fn state_mut<'w>(world: &'w mut World, key: &str) -> Option<&'w mut Instance> {
    match &mut world.store.get_mut(key)?.state {
        State::Instance(instance) => Some(instance),
        _ => None,
    }
}

/// What of the set's profile an instance shows as its own.
fn profile(of: &Resource, name: &str) -> Value {
    let path = "properties.virtualMachineProfile.storageProfile";
    let image = json::at(&of.body, &format!("{path}.imageReference"));
    let mut body = json!({"properties": {"storageProfile": {
        "osDisk": {"createOption": "FromImage", "osType": "Linux", "name": format!("{name}_OsDisk_1")},
    }}});
    if let Some(image) = image {
        json::set(
            &mut body,
            "properties.storageProfile.imageReference",
            image.clone(),
        );
    }
    let login = "properties.virtualMachineProfile.osProfile.adminUsername";
    if let Some(login) = json::text(&of.body, login) {
        json::set(&mut body, "properties.osProfile.adminUsername", login);
    }
    json::set(&mut body, "properties.osProfile.computerName", name);
    body
}

/// One more instance of a set, not running yet.
pub(super) fn make(world: &mut World, of: &Resource) {
    let vm_id = world.dice.guid();
    let now = world.now;
    let Some(set) = super::set_mut(world, &of.key()) else {
        return;
    };
    let (number, model) = (set.next, set.model);
    set.next += 1;
    let name = format!("{}_{number}", of.name);
    let spot = "properties.virtualMachineProfile.priority";
    let policy = "properties.virtualMachineProfile.evictionPolicy";
    let spot = (json::text(&of.body, spot) == Some("Spot")).then(|| {
        json::text(&of.body, policy)
            .unwrap_or("Deallocate")
            .to_owned()
    });
    let instance = Instance {
        number,
        model,
        power: Power::Starting,
        since: now,
        vm_id,
        size: json::text(&of.body, "sku.name")
            .unwrap_or_default()
            .to_owned(),
        spot,
        reports: super::has_health(&of.body),
        eviction: None,
    };
    world.store.insert(Resource {
        id: format!("{}/virtualMachines/{number}", of.id),
        kind: Kind::Instance,
        location: of.location.clone(),
        body: profile(of, &name),
        name,
        state: State::Instance(Box::new(instance)),
        provisioning: "Creating",
        etag: 1,
        created: now,
        operation: None,
        visible: now,
        listed: now,
    });
}

/// It runs.
pub(super) fn run(world: &mut World, key: &str) {
    let now = world.now;
    if let Some(instance) = state_mut(world, key) {
        instance.power = Power::Running;
        instance.since = now;
    }
    provisioned(world, key, "Succeeded");
}

/// It could not be made.
pub(super) fn fail(world: &mut World, key: &str) {
    provisioned(world, key, "Failed");
}

/// Marks an instance while and after something is done to it.
pub(super) fn provisioned(world: &mut World, key: &str, state: &'static str) {
    if let Some(found) = world.store.get_mut(key) {
        found.provisioning = state;
        found.etag += 1;
    }
}

/// It comes to its set's model.
pub(super) fn upgrade(world: &mut World, key: &str) {
    let now = world.now;
    let Some(of) = parent(world, key) else {
        return;
    };
    let model = set(&of).map_or(0, |set| set.model);
    let Some(found) = world.store.get_mut(key) else {
        return;
    };
    let State::Instance(instance) = &mut found.state else {
        return;
    };
    if instance.model == model {
        return;
    }
    instance.model = model;
    instance.since = now;
    instance.power = Power::Running;
    instance.reports = super::has_health(&of.body);
    let policy = json::at(&found.body, "properties.protectionPolicy").cloned();
    found.body = profile(&of, &found.name);
    if let Some(policy) = policy {
        json::set(&mut found.body, "properties.protectionPolicy", policy);
    }
    found.etag += 1;
}

fn parent(world: &World, key: &str) -> Option<Resource> {
    let (of, _) = key.rsplit_once("/virtualmachines/")?;
    world.store.get(of).cloned()
}

/// Whether it runs an older model than its set has.
pub(super) fn is_behind(world: &World, key: &str) -> bool {
    let model = parent(world, key)
        .as_ref()
        .and_then(set)
        .map(|set| set.model);
    let own = world.store.get(key).and_then(state).map(|one| one.model);
    model != own
}

/// Whether any instance of a set does.
pub(super) fn behind(world: &World, set: &str) -> bool {
    super::members(world, set)
        .iter()
        .any(|one| is_behind(world, one))
}

/// Whether a set may not take it when it shrinks.
pub(super) fn protected(world: &World, key: &str) -> bool {
    let path = "properties.protectionPolicy.protectFromScaleIn";
    let found = world.store.get(key);
    found.is_some_and(|found| json::at(&found.body, path) == Some(&json!(true)))
}

/// An operation on several of them is over.
pub(super) fn free(world: &mut World, keys: &[String], operation: &str) {
    for one in keys {
        if let Some(found) = world.store.get_mut(one)
            && found.operation.as_deref() == Some(operation)
        {
            found.operation = None;
        }
    }
}

/// A deed is done.
pub(super) fn apply(world: &mut World, key: &str, deed: &Deed) {
    let now = world.now;
    match deed {
        Deed::Upgrade => upgrade(world, key),
        Deed::Delete => {
            super::super::remove(world, key);
        }
        Deed::Power(power) => {
            if let Some(instance) = state_mut(world, key) {
                instance.power = *power;
                instance.since = now;
            }
        }
        Deed::Restart => {
            if let Some(instance) = state_mut(world, key) {
                instance.power = Power::Running;
                instance.since = now;
            }
        }
    }
}

/// What the health extension says; nothing without one, or when the machine does not run.
pub(super) fn health(world: &World, resource: &Resource) -> Option<String> {
    let instance = state(resource)?;
    let runs = instance.power == Power::Running && resource.provisioning != "Creating";
    if !instance.reports || !runs {
        return None;
    }
    if world.now.since(instance.since) < INITIALIZING_MS {
        return Some("initializing".to_owned());
    }
    let image = "properties.storageProfile.imageReference.id";
    let image = json::text(&resource.body, image).unwrap_or_default();
    Some(world.guests.health(&resource.id, image))
}

pub(in crate::resources) struct Instances;

impl Rules for Instances {
    fn check(
        &self,
        _world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        // Instances are made by their set; one that is there takes a protection policy.
        let old = old.ok_or_else(|| {
            Problem::not_found(
                Kind::Instance.type_name(),
                &call.target.names.join("/"),
                call.target.group(),
            )
        })?;
        let policy = json::at(body, "properties.protectionPolicy").cloned();
        *body = old.body.clone();
        if let Some(policy) = policy {
            json::set(body, "properties.protectionPolicy", policy);
        }
        Ok(old.state.clone())
    }

    fn write_takes(&self, _fresh: bool, _method: Method) -> Option<&'static str> {
        Some("PUT /virtualMachineScaleSets/{}/virtualmachines/{}")
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /virtualMachineScaleSets/{}/virtualmachines/{}")
    }

    fn removed(&self, world: &mut World, resource: &Resource) {
        let Some(of) = parent(world, &resource.key()).map(|of| of.key()) else {
            return;
        };
        if let Some(of) = world.store.get_mut(&of) {
            let capacity = json::number(&of.body, "sku.capacity").unwrap_or_default();
            json::set(&mut of.body, "sku.capacity", capacity.saturating_sub(1));
        }
    }

    fn show(&self, world: &World, resource: &Resource, expand: &str, body: &mut Value) {
        let Some(instance) = state(resource) else {
            return;
        };
        body["instanceId"] = json!(instance.number.to_string());
        body["sku"] = json!({"name": instance.size, "tier": "Standard"});
        let set = [
            (
                "latestModelApplied",
                json!(!is_behind(world, &resource.key())),
            ),
            ("vmId", json!(instance.vm_id)),
            ("hardwareProfile", json!({})),
            ("modelDefinitionApplied", json!("VirtualMachineScaleSet")),
            ("timeCreated", json!(resource.created.rfc3339())),
        ];
        for (name, value) in set {
            json::set(body, &format!("properties.{name}"), value);
        }
        if expand.eq_ignore_ascii_case("instanceView") {
            json::set(
                body,
                "properties.instanceView",
                instance_view(world, resource),
            );
        }
    }

    fn actions(&self) -> &'static [&'static str] {
        &[
            "instanceview",
            "start",
            "poweroff",
            "restart",
            "deallocate",
            "reimage",
            "reimageall",
            "redeploy",
            "runcommand",
            "simulateeviction",
        ]
    }

    fn act(&self, world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        let action = call.action();
        let reads = action == "instanceview";
        let method = call.request.method;
        if reads != (method == Method::Get) || !(reads || method == Method::Post) {
            return Err(Problem::no_method(method.name()));
        }
        let resource = world
            .store
            .get(&call.key)
            .expect("it was found visible")
            .clone();
        let power = state(&resource).map(|one| one.power);
        let (act, row) = match action.as_str() {
            "instanceview" => return Ok(Reply::json(200, instance_view(world, &resource))),
            "simulateeviction" => return evict_soon(world, &resource),
            "runcommand" => return run_command(world, call, &resource, power),
            "start" => (Act::Power(Power::Running), "start"),
            "poweroff" => (Act::Power(Power::Stopped), "poweroff"),
            "deallocate" => (Act::Power(Power::Deallocated), "deallocate"),
            "restart" => (Act::Restart { reimage: false }, "restart"),
            "redeploy" => (Act::Restart { reimage: false }, "redeploy"),
            "reimageall" => (Act::Restart { reimage: true }, "reimageall"),
            _ => (Act::Restart { reimage: true }, "reimage"),
        };
        let row = format!("POST /virtualMachineScaleSets/{{}}/virtualmachines/{{}}/{row}");
        begin_act(world, call, act, &row)
    }

    fn acted(
        &self,
        world: &mut World,
        operation: &Operation,
        act: &Act,
    ) -> Result<Option<Value>, Problem> {
        match act {
            Act::RunCommand(run) => return Ok(Some(run.output())),
            Act::Power(power) => apply(world, &operation.key, &Deed::Power(*power)),
            Act::Restart { .. } => apply(world, &operation.key, &Deed::Restart),
            _ => {}
        }
        Ok(None)
    }

    fn tick(&self, world: &mut World, key: &str, tick: Tick) {
        if !matches!(tick, Tick::Evict) {
            return;
        }
        let now = world.now;
        let Some(instance) = state_mut(world, key) else {
            return;
        };
        if instance.eviction.take().is_none() || instance.power != Power::Running {
            return;
        }
        instance.power = Power::Deallocated;
        instance.since = now;
        if instance.spot.as_deref() == Some("Delete") {
            super::super::remove(world, key);
        }
    }
}

fn instance_view(world: &World, resource: &Resource) -> Value {
    let Some(instance) = state(resource) else {
        return Value::Null;
    };
    let since = instance.since.rfc3339();
    let mut view = json!({
        "platformUpdateDomain": instance.number % 5,
        "platformFaultDomain": instance.number % 5,
        "statuses": view::statuses(resource.provisioning, instance.power, false, &since),
    });
    if instance.power == Power::Running {
        view["vmAgent"] = view::agent(&since);
    }
    if let Some(health) = health(world, resource) {
        let code = format!("HealthState/{health}");
        view["vmHealth"] = json!({"status": {
            "code": code, "level": "Info", "displayStatus": format!("The VM is reporting itself as {health}"), "time": since,
        }});
    }
    view
}

fn run_command(
    world: &mut World,
    call: &Call<'_>,
    resource: &Resource,
    power: Option<Power>,
) -> Result<Reply, Problem> {
    if power != Some(Power::Running) {
        return Err(machine::not_running("runCommand", &resource.name));
    }
    let body = call.body()?;
    let lines = json::list(&body, "script").iter().filter_map(Value::as_str);
    let script = lines.collect::<Vec<_>>().join("\n");
    let row = "POST /virtualMachineScaleSets/{}/virtualmachines/{}/runCommand";
    let usual = world.durations.take(row, &mut world.dice);
    let run: Run = world
        .guests
        .run(&resource.id, &script, world.now, usual, None);
    let begin = Begin {
        key: call.key.clone(),
        verb: Verb::Act,
        ms: run.ends.since(world.now),
        work: Work::Act(Act::RunCommand(Box::new(run))),
        shared: false,
    };
    let id = world.begin(call, begin)?;
    Ok(world.following(call, &id, Reply::empty(202)))
}

fn evict_soon(world: &mut World, resource: &Resource) -> Result<Reply, Problem> {
    let spot = state(resource).is_some_and(|one| one.spot.is_some());
    if !spot {
        return Err(Problem::not_allowed(format!(
            "Operation 'simulateEviction' is not allowed on VM '{}' because it is not an Azure Spot VM.",
            resource.name
        )));
    }
    let at = world.now.after(NOTICE_MS);
    let event = world.dice.guid().to_uppercase();
    if let Some(instance) = state_mut(world, &resource.key()) {
        instance.eviction = Some((event, at));
    }
    tick_at(world, at, &resource.key(), Tick::Evict);
    Ok(Reply::empty(204))
}
