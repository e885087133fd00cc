//! Virtual machines: what they are made of, their power, and what goes with them.
//!
//! ```text
//! PUT      size -> quota -> image -> disks -> interfaces, all judged at once; then a disk and
//!          inline interfaces are there already while the machine is still `Creating`: a creation
//!          that fails leaves them behind, as Azure's does
//! DELETE   with it goes what has deleteOption Delete; the rest is set free
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Act, Kind, Rules, State, Tick, begin_act, capacity, tick_at};
use crate::http::{Method, Reply};
use crate::json;
use crate::operations::Operation;
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::time::Moment;
use crate::world::{Call, World};

pub(super) mod parts;
mod sub;
pub(super) mod view;

pub(super) use sub::{Commands, Extensions};

/// Between the notice and the eviction.
const NOTICE_MS: u64 = 30_000;

/// What a machine's power is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Being made or started.
    Starting,
    /// It runs.
    Running,
    /// Stopped, and paid for.
    Stopped,
    /// Stopped, its cores given back.
    Deallocated,
}

impl Power {
    /// As in `PowerState/running`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Power::Starting => "starting",
            Power::Running => "running",
            Power::Stopped => "stopped",
            Power::Deallocated => "deallocated",
        }
    }
}

/// What the service knows about a machine.
#[derive(Clone, Debug)]
pub struct Vm {
    /// A GUID.
    pub id: String,
    /// Its power.
    pub power: Power,
    /// It was generalised and cannot run any more.
    pub generalized: bool,
    /// When the present power state began.
    pub since: Moment,
    /// When it will be evicted.
    pub eviction: Option<(String, Moment)>,
    /// Boots since it was made; a reimage counts.
    pub boots: u64,
}

pub(super) fn vm(resource: &Resource) -> Option<&Vm> {
    match &resource.state {
        State::Machine(vm) => Some(vm),
        _ => None,
    }
}

pub(super) fn vm_mut<'w>(world: &'w mut World, key: &str) -> Option<&'w mut Vm> {
    match &mut world.store.get_mut(key)?.state {
        State::Machine(vm) => Some(vm),
        _ => None,
    }
}

/// Whether a resource is a machine that was generalised.
pub(super) fn is_generalized(resource: &Resource) -> bool {
    vm(resource).is_some_and(|vm| vm.generalized)
}

/// The storage profile of an image that is made from a machine.
pub(super) fn as_image(resource: &Resource) -> Value {
    let os = "properties.storageProfile.osDisk";
    let disk = json::text(&resource.body, &format!("{os}.managedDisk.id"));
    let system = json::text(&resource.body, &format!("{os}.osType")).unwrap_or("Linux");
    let mut profile = json!({"osDisk": {"osType": system, "osState": "Generalized"}});
    if let Some(disk) = disk {
        profile["osDisk"]["managedDisk"] = json!({"id": disk});
    }
    profile
}

/// Size and priority of the machine, if the resource is one that uses cores.
pub(super) fn cores_of(resource: &Resource) -> Vec<(String, bool)> {
    if let State::Instance(instance) = &resource.state {
        return instance.cores().into_iter().collect();
    }
    let uses = vm(resource).is_some_and(|vm| vm.power != Power::Deallocated);
    let size = json::text(&resource.body, "properties.hardwareProfile.vmSize");
    match size {
        Some(size) if uses => vec![(size.to_owned(), is_spot(&resource.body))],
        _ => Vec::new(),
    }
}

fn is_spot(body: &Value) -> bool {
    matches!(
        json::text(body, "properties.priority"),
        Some("Spot" | "Low")
    )
}

pub(super) struct Machines;

impl Rules for Machines {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        let size = json::text(body, "properties.hardwareProfile.vmSize")
            .ok_or_else(|| Problem::required("vm.properties.hardwareProfile.vmSize"))?
            .to_owned();
        let place = match old {
            Some(old) => old.location.clone(),
            None => super::region(json::text(body, "location").unwrap_or("westeurope")),
        };
        let spot = is_spot(body);
        if spot {
            json::default(body, "properties.evictionPolicy", "Deallocate");
        }
        let Some(old) = old else {
            capacity::admit(world, &call.target.subscription, &place, &size, spot, 1)?;
            parts::check(world, call, &place, body)?;
            return Ok(State::Machine(Box::new(Vm {
                id: world.dice.guid(),
                power: Power::Starting,
                generalized: false,
                since: world.now,
                eviction: None,
                boots: 1,
            })));
        };
        if is_generalized(old) {
            return Err(generalized("update", &old.name));
        }
        let before = json::text(&old.body, "properties.hardwareProfile.vmSize");
        if before != Some(&size) {
            capacity::admit(world, &call.target.subscription, &place, &size, spot, 1)?;
        }
        parts::recheck(world, call, old, body)?;
        Ok(old.state.clone())
    }

    fn stored(&self, world: &mut World, call: &Call<'_>, old: Option<&Resource>) {
        parts::make(world, call, old);
    }

    fn write_takes(&self, fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Put if fresh => "PUT /virtualMachines/{}",
            _ => "PATCH /virtualMachines/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /virtualMachines/{}")
    }

    fn written(&self, world: &mut World, operation: &Operation) -> Result<(), Problem> {
        let now = world.now;
        if let Some(vm) = vm_mut(world, &operation.key)
            && vm.power == Power::Starting
        {
            vm.power = Power::Running;
            vm.since = now;
        }
        Ok(())
    }

    fn removed(&self, world: &mut World, resource: &Resource) {
        parts::release(world, resource);
    }

    fn show(&self, world: &World, resource: &Resource, expand: &str, body: &mut Value) {
        view::show(world, resource, expand, body);
    }

    fn actions(&self) -> &'static [&'static str] {
        &[
            "start",
            "poweroff",
            "deallocate",
            "restart",
            "redeploy",
            "reapply",
            "reimage",
            "generalize",
            "runcommand",
            "simulateeviction",
            "instanceview",
            "retrievebootdiagnosticsdata",
        ]
    }

    fn act(&self, world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        let action = call.action();
        let get = call.request.method == Method::Get;
        if get != (action == "instanceview") || !(get || call.request.method == Method::Post) {
            return Err(Problem::no_method(call.request.method.name()));
        }
        let resource = world
            .store
            .get(&call.key)
            .expect("it was found visible")
            .clone();
        let state = vm(&resource)
            .expect("machines have a machine's state")
            .clone();
        match action.as_str() {
            "instanceview" => return Ok(Reply::json(200, view::view(world, &resource))),
            "retrievebootdiagnosticsdata" => return Ok(view::diagnostics(world, &resource)),
            "generalize" => return generalize(world, &resource, &state),
            "simulateeviction" => return evict_soon(world, &resource),
            _ => {}
        }
        if state.generalized && action != "deallocate" {
            return Err(generalized(&action, &resource.name));
        }
        let moved = |row: &'static str, power: Power| Some((Act::Power(power), row));
        let known = match action.as_str() {
            "start" => {
                let size = json::text(&resource.body, "properties.hardwareProfile.vmSize");
                if state.power == Power::Deallocated {
                    capacity::admit(
                        world,
                        &call.target.subscription,
                        &resource.location,
                        size.unwrap_or_default(),
                        is_spot(&resource.body),
                        1,
                    )?;
                }
                moved("POST /virtualMachines/{}/start", Power::Running)
            }
            "poweroff" => moved("POST /virtualMachines/{}/powerOff", Power::Stopped),
            "deallocate" => moved("POST /virtualMachines/{}/deallocate", Power::Deallocated),
            "restart" => restart(false, "POST /virtualMachines/{}/restart"),
            "redeploy" => restart(false, "POST /virtualMachines/{}/redeploy"),
            // No machine's reimage was recorded, only those of sets.
            "reimage" => restart(
                true,
                "POST /virtualMachineScaleSets/{}/virtualmachines/{}/reimage",
            ),
            "reapply" => moved("POST /virtualMachines/{}/reapply", state.power),
            _ => None,
        };
        if let Some((act, row)) = known {
            let needs_power = matches!(act, Act::Restart { .. });
            if needs_power && state.power != Power::Running {
                return Err(not_running(&action, &resource.name));
            }
            return begin_act(world, call, act, row);
        }
        sub::run_command(world, call, &resource)
    }

    fn acted(
        &self,
        world: &mut World,
        operation: &Operation,
        act: &Act,
    ) -> Result<Option<Value>, Problem> {
        let now = world.now;
        if let Act::RunCommand(run) = act {
            return Ok(Some(run.output()));
        }
        let Some(vm) = vm_mut(world, &operation.key) else {
            return Ok(None);
        };
        match act {
            Act::Power(power) => {
                if *power == Power::Running && vm.power != Power::Running {
                    vm.boots += 1;
                }
                vm.power = *power;
                vm.since = now;
                parts::reserve(world, &operation.key, *power == Power::Deallocated);
            }
            Act::Restart { .. } => {
                vm.boots += 1;
                vm.since = now;
            }
            _ => {}
        }
        Ok(None)
    }

    fn tick(&self, world: &mut World, key: &str, tick: Tick) {
        if matches!(tick, Tick::Evict) {
            evict(world, key);
        }
    }
}

fn restart(reimage: bool, row: &'static str) -> Option<(Act, &'static str)> {
    Some((Act::Restart { reimage }, row))
}

pub(super) fn generalized(action: &str, name: &str) -> Problem {
    Problem::not_allowed(format!(
        "Operation '{action}' is not allowed on VM '{name}' since the VM is generalized."
    ))
}

pub(super) fn not_running(action: &str, name: &str) -> Problem {
    Problem::not_allowed(format!(
        "Cannot perform operation '{action}' on VM '{name}' because the VM is not running."
    ))
}

fn generalize(world: &mut World, resource: &Resource, state: &Vm) -> Result<Reply, Problem> {
    if state.power == Power::Running || state.power == Power::Starting {
        return Err(Problem::not_allowed(format!(
            "Please power off the VM '{}' before setting it to generalized.",
            resource.name
        )));
    }
    if let Some(vm) = vm_mut(world, &resource.key()) {
        vm.generalized = true;
    }
    Ok(Reply::empty(200))
}

fn evict_soon(world: &mut World, resource: &Resource) -> Result<Reply, Problem> {
    if !is_spot(&resource.body) {
        return Err(Problem::not_allowed(format!(
            "Operation 'simulateEviction' is not allowed on VM '{}' because it is not an Azure Spot VM.",
            resource.name
        )));
    }
    let at = world.now.after(NOTICE_MS);
    let event = world.dice.guid().to_uppercase();
    if let Some(vm) = vm_mut(world, &resource.key()) {
        vm.eviction = Some((event, at));
    }
    tick_at(world, at, &resource.key(), Tick::Evict);
    Ok(Reply::empty(204))
}

/// The notice is over: the machine stops or goes, as its policy says.
fn evict(world: &mut World, key: &str) {
    let now = world.now;
    let Some(vm) = vm_mut(world, key) else {
        return;
    };
    if vm.eviction.take().is_none() || vm.power != Power::Running {
        return;
    }
    vm.power = Power::Deallocated;
    vm.since = now;
    let policy = world.store.get(key).and_then(|resource| {
        json::text(&resource.body, "properties.evictionPolicy").map(str::to_owned)
    });
    if policy.as_deref() == Some("Delete") {
        super::remove(world, key);
    } else {
        parts::reserve(world, key, true);
    }
}

/// Scheduled Events as the metadata service gives them, for one machine or for all.
#[must_use]
pub fn events(world: &World, only: Option<&str>) -> Value {
    let mut listed: BTreeMap<String, Value> = BTreeMap::new();
    for resource in world.store.all() {
        let about = only.is_none_or(|only| key(only) == resource.key());
        let eviction = match &resource.state {
            State::Machine(vm) => vm.eviction.as_ref(),
            State::Instance(instance) => instance.eviction(),
            _ => None,
        };
        let Some((event, at)) = eviction.filter(|_| about) else {
            continue;
        };
        listed.insert(event.clone(), preempt(event, &resource.name, *at));
    }
    json!({
        "DocumentIncarnation": listed.len(),
        "Events": listed.into_values().collect::<Vec<_>>(),
    })
}

/// One eviction.
pub(super) fn preempt(event: &str, name: &str, at: Moment) -> Value {
    json!({
        "EventId": event,
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": [name],
        "EventStatus": "Scheduled",
        "NotBefore": at.rfc1123(),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    })
}

/// The kinds of what a machine is made of and may delete with itself.
pub(super) const PARTS: [Kind; 2] = [Kind::Disk, Kind::Interface];
