//! As much of the network as machines need: what they refer to exists, and takes a moment to be ready.
//!
//! A write takes a second or two, in which a second one is told `AnotherOperationInProgress` and a VM
//! that refers to it `ReferencedResourceNotProvisioned`. Addresses, routes and rules are not
//! simulated: a body comes back as it was written.

use serde_json::Value;

use super::{Kind, Rules, State};
use crate::http::Method;
use crate::json;
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::world::{Call, World};

/// No network operation was recorded; this one takes as long as they are said to: seconds.
const WRITE: &str = "PUT /hostGroups/hostgroup640e162b/hosts/hostname640e162b";

pub(super) struct Networks;

impl Rules for Networks {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        if !body.is_object() {
            return Err(Problem::new(
                400,
                "InvalidRequestContent",
                "The request content was invalid and could not be deserialized.",
            ));
        }
        json::remove(body, "id");
        json::remove(body, "name");
        json::remove(body, "etag");
        if old.is_none() && call.kind != Kind::Subnet && json::text(body, "location").is_none() {
            return Err(Problem::new(
                400,
                "LocationRequired",
                "The location property is required for this definition.",
            ));
        }
        if call.kind == Kind::Interface {
            for address in json::list(body, "properties.ipConfigurations") {
                let id = json::text(address, "properties.subnet.id")
                    .ok_or_else(|| Problem::required("ipConfigurations.subnet.id"))?;
                subnet_exists(world, id)?;
            }
        }
        Ok(match old {
            Some(old) => old.state.clone(),
            None => State::Interface(None),
        })
    }

    fn write_takes(&self, _fresh: bool, _method: Method) -> Option<&'static str> {
        Some(WRITE)
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /disks/{}")
    }

    fn removable(&self, _world: &World, resource: &Resource) -> Result<(), Problem> {
        match &resource.state {
            State::Interface(Some(vm)) => Err(Problem::new(
                400,
                "NicInUse",
                format!(
                    "Network Interface {} is used by existing resource {vm}. In order to delete the network interface, it must be dissociated from the resource.",
                    resource.id
                ),
            )),
            _ => Ok(()),
        }
    }

    fn show(&self, _world: &World, resource: &Resource, _expand: &str, body: &mut Value) {
        if let State::Interface(Some(vm)) = &resource.state {
            json::set(body, "properties.virtualMachine.id", vm.clone());
        }
        if resource.kind == Kind::Subnet {
            json::remove(body, "location");
        }
    }
}

/// A subnet is a resource of its own, or a part of its network's body.
pub(super) fn subnet_exists(world: &World, id: &str) -> Result<(), Problem> {
    if world.store.by_id(id).is_some() {
        return Ok(());
    }
    let low = key(id);
    let inside = low.split_once("/subnets/").and_then(|(network, name)| {
        let network = world.store.get(network)?;
        let subnets = json::list(&network.body, "properties.subnets");
        let same = |subnet: &&Value| {
            json::text(subnet, "name").is_some_and(|known| known.eq_ignore_ascii_case(name))
        };
        subnets.iter().find(same)
    });
    inside.map(|_| ()).ok_or_else(|| Problem::bad_reference(id))
}

/// An interface that a VM wants: there, ready, and nobody else's.
pub(super) fn interface_free(world: &World, id: &str, vm: &str) -> Result<(), Problem> {
    let Some(found) = world.store.by_id(id).filter(|r| r.kind == Kind::Interface) else {
        return Err(Problem::bad_reference(id));
    };
    match &found.state {
        State::Interface(Some(owner)) if !owner.eq_ignore_ascii_case(vm) => Err(Problem::new(
            400,
            "NicInUse",
            format!("Network Interface {id} is used by existing resource {owner}."),
        )),
        _ if found.busy() => Err(Problem::not_provisioned(id)),
        _ => Ok(()),
    }
}
