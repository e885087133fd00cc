//! What a machine is made of: its disks and interfaces, before, while and after it is there.

use serde_json::{Value, json};

use super::super::{Kind, State, disk, gallery, network};
use super::vm;
use crate::json;
use crate::problem::Problem;
use crate::store::{Resource, key};
use crate::world::{Call, World};

const OS: &str = "properties.storageProfile.osDisk";
const DATA: &str = "properties.storageProfile.dataDisks";
const INTERFACES: &str = "properties.networkProfile.networkInterfaces";
const INLINE: &str = "properties.networkProfile.networkInterfaceConfigurations";

/// Checks everything that a new machine refers to, and fills in defaults.
pub(super) fn check(
    world: &mut World,
    call: &Call<'_>,
    place: &str,
    body: &mut Value,
) -> Result<(), Problem> {
    let attached = json::text(body, &format!("{OS}.createOption")) == Some("Attach");
    if json::at(body, "properties.storageProfile").is_none() {
        return Err(Problem::required("storageProfile"));
    }
    if attached {
        let id = json::text(body, &format!("{OS}.managedDisk.id"))
            .ok_or_else(|| Problem::required("osDisk.managedDisk.id"))?;
        attachable(world, id, &call.target.id())?;
    } else {
        image(world, body, place)?;
        let specialized = json::text(body, "properties.storageProfile.imageReference.id")
            .and_then(|id| world.store.by_id(id))
            .is_some_and(|image| is_specialized(world, image));
        let login = json::text(body, "properties.osProfile.adminUsername");
        if login.is_none() && !specialized {
            return Err(Problem::required("osProfile"));
        }
        json::default(body, &format!("{OS}.createOption"), "FromImage");
    }
    json::default(body, &format!("{OS}.osType"), "Linux");
    json::default(body, &format!("{OS}.caching"), "ReadWrite");
    json::default(body, &format!("{OS}.deleteOption"), "Detach");
    json::default(
        body,
        &format!("{OS}.managedDisk.storageAccountType"),
        "Standard_LRS",
    );
    data_disks(world, call, body)?;
    let named = json::list(body, INTERFACES);
    let inline = json::list(body, INLINE);
    if named.is_empty() && inline.is_empty() {
        return Err(Problem::parameter(
            "networkProfile",
            "The VM must have at least one network interface: required parameter 'networkProfile' is missing (null).",
        ));
    }
    for interface in named {
        let id =
            json::text(interface, "id").ok_or_else(|| Problem::required("networkInterface.id"))?;
        network::interface_free(world, id, &call.target.id())?;
    }
    for interface in inline {
        for address in json::list(interface, "properties.ipConfigurations") {
            let id = json::text(address, "properties.subnet.id")
                .ok_or_else(|| Problem::required("ipConfiguration.subnet.id"))?;
            network::subnet_exists(world, id)?;
        }
    }
    Ok(())
}

/// The image of a machine or of a set's machines.
pub(in crate::resources) fn image(world: &World, body: &Value, place: &str) -> Result<(), Problem> {
    let reference = json::at(body, "properties.storageProfile.imageReference")
        .ok_or_else(|| Problem::required("imageReference"))?;
    if let Some(id) = json::text(reference, "id") {
        return gallery::image_usable(world, id, place);
    }
    for part in ["publisher", "offer", "sku", "version"] {
        if json::text(reference, part).is_none() {
            return Err(Problem::required(&format!("imageReference.{part}")));
        }
    }
    Ok(())
}

fn is_specialized(world: &World, image: &Resource) -> bool {
    let definition = match image.kind {
        Kind::Version => image
            .key()
            .rsplit_once("/versions/")
            .map(|(of, _)| of.to_owned()),
        _ => Some(image.key()),
    };
    let definition = definition.and_then(|key| world.store.get(&key));
    definition.and_then(|of| json::text(&of.body, "properties.osState")) == Some("Specialized")
}

/// A disk that a machine wants must be there, full and nobody's.
fn attachable(world: &World, id: &str, vm: &str) -> Result<(), Problem> {
    let Some(found) = world
        .store
        .by_id(id)
        .filter(|found| found.kind == Kind::Disk)
    else {
        return Err(
            Problem::new(404, "NotFound", format!("Disk '{id}' was not found."))
                .about("dataDisk.managedDisk.id"),
        );
    };
    disk::usable(world, found)?;
    let owner = disk::media(found).and_then(|media| media.attached_to.clone());
    match owner {
        Some(owner) if !owner.eq_ignore_ascii_case(vm) => Err(Problem::new(
            409,
            "ConflictingUserInput",
            format!("Disk '{id}' cannot be attached as the disk is already owned by VM '{owner}'."),
        )),
        _ => Ok(()),
    }
}

fn data_disks(world: &World, call: &Call<'_>, body: &mut Value) -> Result<(), Problem> {
    let mut luns = Vec::new();
    for one in json::list(body, DATA) {
        let lun = json::number(one, "lun").unwrap_or_default();
        if luns.contains(&lun) {
            return Err(Problem::parameter(
                "dataDisks",
                format!("A data disk with LUN {lun} is specified more than once."),
            ));
        }
        luns.push(lun);
        match json::text(one, "createOption") {
            Some("Attach") => {
                let id = json::text(one, "managedDisk.id")
                    .ok_or_else(|| Problem::required("dataDisk.managedDisk.id"))?;
                attachable(world, id, &call.target.id())?;
            }
            Some("Empty") if json::number(one, "diskSizeGB").is_none() => {
                return Err(Problem::required("dataDisk.diskSizeGB"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A change: what a machine was made from stays, disks come and go.
pub(super) fn recheck(
    world: &World,
    call: &Call<'_>,
    old: &Resource,
    body: &mut Value,
) -> Result<(), Problem> {
    let image = "properties.storageProfile.imageReference";
    if json::at(body, image) != json::at(&old.body, image) {
        return Err(Problem::fixed("imageReference"));
    }
    // A PUT that says nothing about them leaves the parts that were made.
    for path in [OS, INTERFACES, "properties.osProfile"] {
        if let Some(before) = json::at(&old.body, path).cloned() {
            let mut merged = before;
            match json::at(body, path) {
                Some(Value::Array(said)) if said.is_empty() => {}
                Some(said) => json::merge(&mut merged, said),
                None => {}
            }
            json::set(body, path, merged);
        }
    }
    json::remove(body, INLINE);
    data_disks(world, call, body)
}

/// Makes what a machine brings with it, and takes what it refers to.
pub(super) fn make(world: &mut World, call: &Call<'_>, old: Option<&Resource>) {
    let Some(resource) = world.store.get(&call.key).cloned() else {
        return;
    };
    let mut body = resource.body.clone();
    if old.is_none() {
        os_disk(world, &resource, &mut body);
        interfaces(world, &resource, &mut body);
    }
    let mut disks: Vec<Value> = json::list(&body, DATA).to_vec();
    for one in &mut disks {
        let lun = json::number(one, "lun").unwrap_or_default();
        if json::text(one, "managedDisk.id").is_none() {
            let name = json::text(one, "name").map_or_else(
                || format!("{}_lun_{lun}_{}", resource.name, part_name(world)),
                str::to_owned,
            );
            let gib = json::number(one, "diskSizeGB").unwrap_or(4);
            let id = new_disk(world, &resource, &name, gib, "Empty");
            json::set(one, "name", name);
            json::set(one, "managedDisk.id", id);
        }
        json::default(one, "deleteOption", "Detach");
    }
    if !disks.is_empty() || old.is_some() {
        json::set(&mut body, DATA, disks);
    }
    let now_attached = attached(&body);
    for id in &now_attached {
        own(world, id, Some(&resource.id));
    }
    // What is not named any more is set free.
    for id in old.map(|old| attached(&old.body)).unwrap_or_default() {
        if !now_attached.iter().any(|kept| key(kept) == key(&id)) {
            own(world, &id, None);
        }
    }
    if let Some(stored) = world.store.get_mut(&call.key) {
        stored.body = body;
    }
}

fn part_name(world: &mut World) -> String {
    world.dice.guid().replace('-', "")
}

fn os_disk(world: &mut World, machine: &Resource, body: &mut Value) {
    if json::text(body, &format!("{OS}.managedDisk.id")).is_some() {
        return;
    }
    let name = json::text(body, &format!("{OS}.name")).map_or_else(
        || format!("{}_OsDisk_1_{}", machine.name, part_name(world)),
        str::to_owned,
    );
    let gib = json::number(body, &format!("{OS}.diskSizeGB")).unwrap_or(30);
    let id = new_disk(world, machine, &name, gib, "FromImage");
    json::set(body, &format!("{OS}.name"), name);
    json::set(body, &format!("{OS}.managedDisk.id"), id);
    json::set(body, &format!("{OS}.diskSizeGB"), gib);
}

/// A disk that comes with a machine.
fn new_disk(world: &mut World, machine: &Resource, name: &str, gib: u64, option: &str) -> String {
    let id = beside(machine, "Microsoft.Compute/disks", name);
    let mut made = json!({
        "sku": {"name": "Standard_LRS"},
        "properties": {"creationData": {"createOption": option}, "diskSizeGB": gib},
    });
    if option == "FromImage" {
        let image = json::text(&machine.body, "properties.storageProfile.imageReference.id");
        let image = image.unwrap_or("/Subscriptions/simulated/Providers/Microsoft.Compute/Locations/any/Publishers/any/ArtifactTypes/VMImage/Offers/any/Skus/any/Versions/any");
        json::set(
            &mut made,
            "properties.creationData.imageReference.id",
            image,
        );
        json::set(&mut made, "properties.osType", "Linux");
    }
    let state = disk::attached(world, gib, &machine.id);
    insert_part(world, machine, Kind::Disk, &id, name, made, state);
    id
}

fn interfaces(world: &mut World, machine: &Resource, body: &mut Value) {
    let mut named: Vec<Value> = json::list(body, INTERFACES).to_vec();
    let first = named.is_empty();
    for (nth, inline) in json::list(body, INLINE).to_vec().iter().enumerate() {
        let name = json::text(inline, "name").unwrap_or("nic").to_owned();
        let id = beside(machine, "Microsoft.Network/networkInterfaces", &name);
        let made = json!({"properties": {
            "ipConfigurations": json::at(inline, "properties.ipConfigurations"),
        }});
        let state = State::Interface(Some(machine.id.clone()));
        insert_part(world, machine, Kind::Interface, &id, &name, made, state);
        let option = json::text(inline, "properties.deleteOption").unwrap_or("Detach");
        named.push(json!({
            "id": id,
            "properties": {"primary": first && nth == 0, "deleteOption": option},
        }));
    }
    json::set(body, INTERFACES, named);
    json::remove(body, INLINE);
}

fn beside(machine: &Resource, kind: &str, name: &str) -> String {
    let (group, _) = machine
        .id
        .split_once("/providers/")
        .unwrap_or((&machine.id, ""));
    format!("{group}/providers/{kind}/{name}")
}

fn insert_part(
    world: &mut World,
    machine: &Resource,
    kind: Kind,
    id: &str,
    name: &str,
    body: Value,
    state: State,
) {
    world.store.insert(Resource {
        id: id.to_owned(),
        kind,
        name: name.to_owned(),
        location: machine.location.clone(),
        body,
        state,
        provisioning: "Succeeded",
        etag: 1,
        created: world.now,
        operation: None,
        visible: world.now,
        listed: world.now,
    });
}

/// Ids of everything that a machine's body refers to and has for itself.
fn attached(body: &Value) -> Vec<String> {
    let os = json::text(body, &format!("{OS}.managedDisk.id"));
    let data = json::list(body, DATA)
        .iter()
        .filter_map(|one| json::text(one, "managedDisk.id"));
    let interfaces = json::list(body, INTERFACES)
        .iter()
        .filter_map(|one| json::text(one, "id"));
    os.into_iter()
        .chain(data)
        .chain(interfaces)
        .map(str::to_owned)
        .collect()
}

fn own(world: &mut World, id: &str, owner: Option<&str>) {
    let Some(resource) = world.store.get_mut(&key(id)) else {
        return;
    };
    let owner = owner.map(str::to_owned);
    match &mut resource.state {
        State::Disk(media) => media.attached_to = owner,
        State::Interface(user) => *user = owner,
        _ => {}
    }
}

/// The disks of a deallocated machine are reserved.
pub(super) fn reserve(world: &mut World, machine: &str, reserved: bool) {
    let body = world.store.get(machine).map(|found| found.body.clone());
    for id in body.map(|body| attached(&body)).unwrap_or_default() {
        if let Some(resource) = world.store.get_mut(&key(&id))
            && let State::Disk(media) = &mut resource.state
        {
            media.reserved = reserved;
        }
    }
}

/// A machine has gone: its parts go with it or are set free.
pub(super) fn release(world: &mut World, machine: &Resource) {
    if vm(machine).is_none() {
        return;
    }
    let body = &machine.body;
    let mut doomed: Vec<String> = Vec::new();
    if json::text(body, &format!("{OS}.deleteOption")) == Some("Delete") {
        doomed.extend(json::text(body, &format!("{OS}.managedDisk.id")).map(str::to_owned));
    }
    for one in json::list(body, DATA) {
        if json::text(one, "deleteOption") == Some("Delete") {
            doomed.extend(json::text(one, "managedDisk.id").map(str::to_owned));
        }
    }
    for one in json::list(body, INTERFACES) {
        if json::text(one, "properties.deleteOption") == Some("Delete") {
            doomed.extend(json::text(one, "id").map(str::to_owned));
        }
    }
    for id in attached(body) {
        own(world, &id, None);
    }
    for id in doomed {
        let part = world.store.get(&key(&id)).map(|part| part.kind);
        if part.is_some_and(|kind| super::PARTS.contains(&kind)) {
            super::super::remove(world, &key(&id));
        }
    }
}
