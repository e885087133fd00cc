//! Disks and snapshots, and the links to their bytes.
//!
//! ```text
//! createOption Upload:  ReadyToUpload -beginGetAccess-> ActiveUpload -endGetAccess-> Unattached
//! any other:            Unattached -beginGetAccess-> ActiveSAS -endGetAccess, expiry-> Unattached
//!                       Unattached <-> Attached | Reserved, by the VM that has it
//! ```

use serde_json::{Value, json};

use super::{Act, Kind, Rules, State, Tick, begin_act, tick_at};
use crate::http::{Method, Reply};
use crate::json;
use crate::operations::Operation;
use crate::problem::Problem;
use crate::store::Resource;
use crate::time::Moment;
use crate::world::{Call, World};

const GIB: u64 = 1 << 30;
/// The footer of a fixed VHD.
const FOOTER: u64 = 512;
/// What may be uploaded, footer and all.
const UPLOAD: std::ops::RangeInclusive<u64> = 20_972_032..=35_183_298_347_520;
/// What an image from the marketplace gives.
const DEFAULT_GIB: u64 = 30;

/// Where a disk's bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Nobody has a link.
    None,
    /// It waits for its bytes.
    ReadyToUpload,
    /// They are being uploaded.
    Uploading,
    /// They may be read until then.
    Reading(Moment),
}

/// What the service knows about a disk or snapshot.
#[derive(Clone, Debug)]
pub struct Media {
    /// Without the footer.
    pub bytes: u64,
    /// The blob with its content, if content was ever uploaded.
    pub blob: Option<String>,
    /// The VM that has it.
    pub attached_to: Option<String>,
    /// That VM is deallocated.
    pub reserved: bool,
    access: Access,
    unique_id: String,
    upload_bytes: Option<u64>,
}

impl Media {
    fn state(&self, now: Moment) -> &'static str {
        match self.access {
            Access::ReadyToUpload => "ReadyToUpload",
            Access::Uploading => "ActiveUpload",
            Access::Reading(until) if until > now => "ActiveSAS",
            _ if self.attached_to.is_none() => "Unattached",
            _ if self.reserved => "Reserved",
            _ => "Attached",
        }
    }
}

/// The state of a disk or snapshot.
#[must_use]
pub(super) fn media(resource: &Resource) -> Option<&Media> {
    match &resource.state {
        State::Disk(media) => Some(media),
        _ => None,
    }
}

fn media_mut(resource: &mut Resource) -> Option<&mut Media> {
    match &mut resource.state {
        State::Disk(media) => Some(media),
        _ => None,
    }
}

/// Whether a disk's bytes can be used as a source: its upload is over and is a VHD.
///
/// # Errors
/// What is in the way.
pub(super) fn usable(world: &World, resource: &Resource) -> Result<u64, Problem> {
    let Some(media) = media(resource) else {
        return Err(Problem::parameter(
            "sourceResourceId",
            format!("{} is no disk or snapshot.", resource.id),
        ));
    };
    if matches!(media.access, Access::ReadyToUpload | Access::Uploading) {
        return Err(Problem::not_allowed(format!(
            "Disk '{}' is in state '{}': its upload has to be completed by a call of endGetAccess before it can be used.",
            resource.name,
            media.state(world.now)
        )));
    }
    if let (Some(upload), Some(blob)) = (media.upload_bytes, &media.blob)
        && let Some(wrong) = world.blobs.vhd_fault(blob, upload, &resource.name)
    {
        return Err(Problem::parameter("vhd", wrong));
    }
    Ok(media.bytes)
}

/// The state of a disk that comes with a machine.
pub(super) fn attached(world: &mut World, gib: u64, vm: &str) -> State {
    State::Disk(Box::new(Media {
        bytes: gib * GIB,
        blob: None,
        attached_to: Some(vm.to_owned()),
        reserved: false,
        access: Access::None,
        unique_id: world.dice.guid(),
        upload_bytes: None,
    }))
}

pub(super) struct Disks;

impl Rules for Disks {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        json::default(body, "sku.name", "Standard_LRS");
        check(world, call, old, body)
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /disks/{}",
            _ => "PUT /disks/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /disks/{}")
    }

    fn removable(&self, world: &World, resource: &Resource) -> Result<(), Problem> {
        removable(world, resource)
    }

    fn removed(&self, world: &mut World, resource: &Resource) {
        removed(world, resource);
    }

    fn show(&self, world: &World, resource: &Resource, _expand: &str, body: &mut Value) {
        show(world, resource, body);
        let Some(media) = media(resource) else {
            return;
        };
        json::default(body, "properties.diskIOPSReadWrite", 500);
        json::default(body, "properties.diskMBpsReadWrite", 60);
        if let Some(vm) = &media.attached_to {
            body["managedBy"] = json!(vm);
        }
    }

    fn actions(&self) -> &'static [&'static str] {
        &["begingetaccess", "endgetaccess"]
    }

    fn act(&self, world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        act(world, call, "disks")
    }

    fn acted(
        &self,
        world: &mut World,
        operation: &Operation,
        act: &Act,
    ) -> Result<Option<Value>, Problem> {
        Ok(acted(world, &operation.key, act))
    }

    fn tick(&self, world: &mut World, key: &str, tick: Tick) {
        access_ends(world, key, &tick);
    }
}

pub(super) struct Snapshots;

impl Rules for Snapshots {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        json::default(body, "sku.name", "Standard_LRS");
        json::default(body, "properties.incremental", false);
        check(world, call, old, body)
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /snapshots/{}",
            _ => "PUT /snapshots/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /snapshots/{}")
    }

    fn removable(&self, world: &World, resource: &Resource) -> Result<(), Problem> {
        removable(world, resource)
    }

    fn removed(&self, world: &mut World, resource: &Resource) {
        removed(world, resource);
    }

    fn show(&self, world: &World, resource: &Resource, _expand: &str, body: &mut Value) {
        show(world, resource, body);
    }

    fn actions(&self) -> &'static [&'static str] {
        &["begingetaccess", "endgetaccess"]
    }

    fn act(&self, world: &mut World, call: &Call<'_>) -> Result<Reply, Problem> {
        act(world, call, "snapshots")
    }

    fn acted(
        &self,
        world: &mut World,
        operation: &Operation,
        act: &Act,
    ) -> Result<Option<Value>, Problem> {
        Ok(acted(world, &operation.key, act))
    }

    fn tick(&self, world: &mut World, key: &str, tick: Tick) {
        access_ends(world, key, &tick);
    }
}

/// A new or changed disk or snapshot.
fn check(
    world: &mut World,
    call: &Call<'_>,
    old: Option<&Resource>,
    body: &mut Value,
) -> Result<State, Problem> {
    if let Some(old) = old {
        return changed(old, body);
    }
    let option = json::text(body, "properties.creationData.createOption").unwrap_or_default();
    let wanted = json::number(body, "properties.diskSizeGB").map(|gib| gib * GIB);
    let mut media = Media {
        bytes: wanted.unwrap_or_default(),
        blob: None,
        attached_to: None,
        reserved: false,
        access: Access::None,
        unique_id: String::new(),
        upload_bytes: None,
    };
    match option {
        "Empty" if call.kind == Kind::Disk => {
            if wanted.is_none() {
                return Err(Problem::required("disk.diskSizeGB"));
            }
        }
        "Upload" => {
            let size = json::number(body, "properties.creationData.uploadSizeBytes")
                .ok_or_else(|| Problem::required("creationData.uploadSizeBytes"))?;
            if !UPLOAD.contains(&size) || size % 512 != 0 {
                return Err(Problem::parameter(
                    "creationData.uploadSizeBytes",
                    format!(
                        "The value '{size}' of parameter creationData.uploadSizeBytes is invalid: it must be a multiple of 512 from {} to {}.",
                        UPLOAD.start(),
                        UPLOAD.end()
                    ),
                ));
            }
            media.bytes = size - FOOTER;
            media.upload_bytes = Some(size);
            media.access = Access::ReadyToUpload;
            media.blob = Some(world.blobs.create(size, &mut world.dice));
        }
        "Copy" | "CopyStart" => {
            let source = json::text(body, "properties.creationData.sourceResourceId")
                .ok_or_else(|| Problem::required("creationData.sourceResourceId"))?;
            copy(world, source, wanted, &mut media)?;
        }
        "FromImage" => {
            let named = ["imageReference", "galleryImageReference"]
                .iter()
                .any(|key| json::at(body, &format!("properties.creationData.{key}")).is_some());
            if !named {
                return Err(Problem::required("creationData.imageReference"));
            }
            media.bytes = media.bytes.max(DEFAULT_GIB * GIB);
        }
        "Import" => {
            for key in ["sourceUri", "storageAccountId"] {
                if json::text(body, &format!("properties.creationData.{key}")).is_none() {
                    return Err(Problem::required(&format!("creationData.{key}")));
                }
            }
            media.bytes = media.bytes.max(GIB);
        }
        other => {
            return Err(Problem::parameter(
                "creationData.createOption",
                format!(
                    "The value '{other}' of parameter creationData.createOption is not supported here."
                ),
            ));
        }
    }
    media.unique_id = world.dice.guid();
    json::set(body, "properties.diskSizeGB", media.bytes.div_ceil(GIB));
    Ok(State::Disk(Box::new(media)))
}

fn copy(
    world: &World,
    source: &str,
    wanted: Option<u64>,
    media: &mut Media,
) -> Result<(), Problem> {
    let Some(from) = world.store.by_id(source) else {
        return Err(Problem::new(
            404,
            "ResourceNotFound",
            format!("The source resource '{source}' was not found."),
        ));
    };
    let bytes = usable(world, from)?;
    if wanted.is_some_and(|wanted| wanted < bytes) {
        return Err(smaller());
    }
    media.bytes = wanted.unwrap_or(bytes);
    if let State::Disk(source) = &from.state {
        media.blob.clone_from(&source.blob);
        media.upload_bytes = source.upload_bytes;
    }
    Ok(())
}

/// What a disk was made from stays; its size only grows.
fn changed(old: &Resource, body: &mut Value) -> Result<State, Problem> {
    let before = json::at(&old.body, "properties.creationData");
    let option = |data: Option<&Value>| data.and_then(|d| d.get("createOption")).cloned();
    if option(json::at(body, "properties.creationData")) != option(before) {
        return Err(Problem::fixed("creationData.createOption"));
    }
    let mut state = old.state.clone();
    if let State::Disk(media) = &mut state {
        let wanted = json::number(body, "properties.diskSizeGB").map(|gib| gib * GIB);
        if wanted.is_some_and(|wanted| wanted < media.bytes) {
            return Err(smaller());
        }
        media.bytes = wanted.unwrap_or(media.bytes);
        json::set(body, "properties.diskSizeGB", media.bytes.div_ceil(GIB));
    }
    Ok(state)
}

fn smaller() -> Problem {
    Problem::parameter(
        "disk.diskSizeGB",
        "The new disk size is smaller than the size of the source: a disk cannot be shrunk.",
    )
}

fn removable(world: &World, resource: &Resource) -> Result<(), Problem> {
    let Some(media) = media(resource) else {
        return Ok(());
    };
    if let Some(vm) = &media.attached_to {
        return Err(Problem::not_allowed(format!(
            "Disk {} is attached to VM {vm}.",
            resource.name
        )));
    }
    match media.state(world.now) {
        state @ ("ActiveSAS" | "ActiveUpload") => Err(Problem::not_allowed(format!(
            "Disk {} has an active shared access signature (state {state}): end it by a call of endGetAccess first.",
            resource.name
        ))),
        _ => Ok(()),
    }
}

/// The bytes go with the last disk or snapshot that has them.
fn removed(world: &mut World, resource: &Resource) {
    let Some(blob) = media(resource).and_then(|media| media.blob.clone()) else {
        return;
    };
    let shared = world
        .store
        .all()
        .filter_map(media)
        .any(|other| other.blob.as_ref() == Some(&blob));
    if !shared {
        world.blobs.remove(&blob);
    }
}

fn show(world: &World, resource: &Resource, body: &mut Value) {
    let Some(media) = media(resource) else {
        return;
    };
    let sku = json::text(body, "sku.name").unwrap_or_default();
    let tier = sku.split('_').next().unwrap_or_default().to_owned();
    json::set(body, "sku.tier", tier);
    let set = [
        ("timeCreated", json!(resource.created.rfc3339())),
        ("uniqueId", json!(media.unique_id)),
        ("diskSizeBytes", json!(media.bytes)),
        ("diskState", json!(media.state(world.now))),
    ];
    for (name, value) in set {
        json::set(body, &format!("properties.{name}"), value);
    }
    let default = [
        ("encryption.type", "EncryptionAtRestWithPlatformKey"),
        ("networkAccessPolicy", "AllowAll"),
        ("publicNetworkAccess", "Enabled"),
    ];
    for (name, value) in default {
        json::default(body, &format!("properties.{name}"), value);
    }
}

/// The first answer to a write is short: it has neither id nor type.
#[must_use]
pub(super) fn stub(body: &Value) -> Value {
    let mut stub = body.clone();
    for key in ["id", "type", "managedBy"] {
        json::remove(&mut stub, key);
    }
    for key in ["timeCreated", "uniqueId", "diskSizeBytes", "diskState"] {
        json::remove(&mut stub, &format!("properties.{key}"));
    }
    json::set(&mut stub, "properties.provisioningState", "Updating");
    json::set(&mut stub, "properties.isArmResource", true);
    stub
}

fn act(world: &mut World, call: &Call<'_>, types: &str) -> Result<Reply, Problem> {
    if call.request.method != Method::Post {
        return Err(Problem::no_method(call.request.method.name()));
    }
    let resource = world.store.get(&call.key).expect("it was found visible");
    let media = media(resource).expect("disks and snapshots have media");
    let state = media.state(world.now);
    if call.action() == "endgetaccess" {
        let row = format!("POST /{types}/{{}}/endGetAccess");
        return begin_act(world, call, Act::RevokeAccess, &row);
    }
    let body = call.body()?;
    let seconds = json::number(&body, "durationInSeconds")
        .ok_or_else(|| Problem::required("durationInSeconds"))?;
    let write = match json::text(&body, "access") {
        Some("Read") => false,
        Some("Write") => true,
        _ => return Err(Problem::required("access")),
    };
    let refusal = match state {
        "ReadyToUpload" if write => None,
        "ReadyToUpload" | "ActiveUpload" => {
            Some("only write access is given to a disk that waits for its upload")
        }
        _ if write => Some("write access is given only to a disk made with createOption Upload"),
        "Attached" => Some("it is attached to a running VM"),
        _ => None,
    };
    if let Some(why) = refusal {
        return Err(Problem::not_allowed(format!(
            "Access to '{}' in state '{state}' cannot be granted: {why}.",
            resource.name
        )));
    }
    let act = Act::GrantAccess {
        write,
        seconds,
        base: call.request.base.clone(),
    };
    begin_act(
        world,
        call,
        act,
        &format!("POST /{types}/{{}}/beginGetAccess"),
    )
}

fn acted(world: &mut World, key: &str, act: &Act) -> Option<Value> {
    let now = world.now;
    let (blob, bytes) = {
        let media = media(world.store.get(key)?)?;
        (media.blob.clone(), media.bytes)
    };
    match act {
        Act::GrantAccess {
            write,
            seconds,
            base,
        } => {
            // What was never uploaded reads as zeros, and gets a blob to be read from.
            let blob = match blob {
                Some(blob) => blob,
                None => world.blobs.create(bytes + FOOTER, &mut world.dice),
            };
            let until = now.after(seconds * 1000);
            let sas = world
                .blobs
                .grant(&blob, *write, until, base, &mut world.dice);
            let media = media_mut(world.store.get_mut(key)?)?;
            media.blob = Some(blob);
            media.access = match write {
                true => Access::Uploading,
                false => Access::Reading(until),
            };
            if !write {
                tick_at(world, until, key, Tick::AccessEnds);
            }
            Some(json!({"accessSAS": sas}))
        }
        Act::RevokeAccess => {
            let media = media_mut(world.store.get_mut(key)?)?;
            // Without an upload a disk still waits for one.
            if media.access != Access::ReadyToUpload {
                media.access = Access::None;
            }
            if let Some(blob) = blob {
                world.blobs.revoke(&blob);
            }
            None
        }
        _ => None,
    }
}

fn access_ends(world: &mut World, key: &str, tick: &Tick) {
    if !matches!(tick, Tick::AccessEnds) {
        return;
    }
    let now = world.now;
    if let Some(media) = world.store.get_mut(key).and_then(media_mut)
        && matches!(media.access, Access::Reading(until) if until <= now)
    {
        media.access = Access::None;
    }
}
