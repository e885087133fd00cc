//! How a machine is shown: its body, and its instance view.

use serde_json::{Value, json};

use super::{Power, vm};
use crate::http::Reply;
use crate::json;
use crate::store::Resource;
use crate::world::World;

/// Adds to a machine's body.
pub(super) fn show(world: &World, resource: &Resource, expand: &str, body: &mut Value) {
    let Some(state) = vm(resource) else {
        return;
    };
    json::set(body, "properties.vmId", state.id.clone());
    json::set(body, "properties.timeCreated", resource.created.rfc3339());
    let beneath = world.store.under(&resource.key());
    let extensions: Vec<Value> = beneath
        .filter(|below| below.kind == super::Kind::Extension)
        .map(|extension| super::super::show(world, extension, ""))
        .collect();
    if !extensions.is_empty() {
        body["resources"] = json!(extensions);
    }
    if expand.eq_ignore_ascii_case("instanceView") {
        json::set(body, "properties.instanceView", view(world, resource));
    }
}

/// One line of a list of statuses.
pub(in crate::resources) fn status(code: &str, display: &str, time: &str) -> Value {
    json!({"code": code, "level": "Info", "displayStatus": display, "time": time})
}

/// The state of provisioning and of power.
pub(in crate::resources) fn statuses(
    provisioning: &str,
    power: Power,
    generalized: bool,
    since: &str,
) -> Vec<Value> {
    let code = format!("ProvisioningState/{}", provisioning.to_ascii_lowercase());
    let display = format!("Provisioning {}", provisioning.to_ascii_lowercase());
    let mut statuses = vec![status(&code, &display, since)];
    if generalized {
        statuses.push(json!({
            "code": "OSState/generalized", "level": "Info", "displayStatus": "VM generalized",
        }));
    }
    statuses.push(json!({
        "code": format!("PowerState/{}", power.name()),
        "level": "Info",
        "displayStatus": format!("VM {}", power.name()),
    }));
    statuses
}

/// The instance view.
pub(super) fn view(world: &World, resource: &Resource) -> Value {
    let Some(state) = vm(resource) else {
        return Value::Null;
    };
    let since = state.since.rfc3339();
    let os = json::at(&resource.body, "properties.storageProfile.osDisk");
    let name = os.and_then(|os| json::text(os, "name")).unwrap_or_default();
    let mut view = json!({
        "disks": [{
            "name": name,
            "statuses": [status("ProvisioningState/succeeded", "Provisioning succeeded", &since)],
        }],
        "hyperVGeneration": "V1",
        "statuses": statuses(resource.provisioning, state.power, state.generalized, &since),
    });
    if state.power == Power::Running {
        let computer = json::text(&resource.body, "properties.osProfile.computerName");
        view["computerName"] = json!(computer.unwrap_or(&resource.name));
        view["vmAgent"] = agent(&since);
    }
    let extensions: Vec<Value> = world
        .store
        .of_kind(&resource.key(), super::Kind::Extension)
        .map(|extension| {
            json!({
                "name": extension.name,
                "type": json::text(&extension.body, "properties.type"),
                "typeHandlerVersion": json::text(&extension.body, "properties.typeHandlerVersion"),
                "statuses": [status("ProvisioningState/succeeded", "Provisioning succeeded", &since)],
            })
        })
        .collect();
    if !extensions.is_empty() {
        view["extensions"] = json!(extensions);
    }
    view
}

/// An agent that is ready.
pub(in crate::resources) fn agent(since: &str) -> Value {
    json!({
        "vmAgentVersion": "2.9.1.1",
        "statuses": [{
            "code": "ProvisioningState/succeeded",
            "level": "Info",
            "displayStatus": "Ready",
            "message": "Guest Agent is running",
            "time": since,
        }],
    })
}

/// Where the serial log would be: a link to a blob that nobody wrote.
pub(super) fn diagnostics(world: &mut World, resource: &Resource) -> Reply {
    let blob = world.blobs.create(512, &mut world.dice);
    let until = world.now.after(2 * 3600 * 1000);
    let link = world.blobs.grant(&blob, false, until, "", &mut world.dice);
    let name = &resource.name;
    Reply::json(
        200,
        json!({
            "consoleScreenshotBlobUri": format!("{link}&screenshot={name}"),
            "serialConsoleLogBlobUri": link,
        }),
    )
}
