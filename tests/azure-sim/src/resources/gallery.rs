//! Galleries, image definitions, and versions that are replicated to their regions.
//!
//! A version's operation takes eleven to thirteen minutes. Its regions become ready one by one on
//! the way; a fault rule makes one of them late, so that the operation succeeds while the region
//! is still replicating and a VM there is told `GalleryImageNotFound`, or makes it fail for good.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Kind, Rules, State, disk, region};
use crate::faults::Effect;
use crate::http::Method;
use crate::json;
use crate::operations::Operation;
use crate::problem::Problem;
use crate::store::Resource;
use crate::time::Moment;
use crate::world::{Call, World};

const WRITE: &str = "PUT /galleries/{}/images/{}/versions/{}";

/// The copy of a version in a region.
#[derive(Clone, Debug)]
pub struct Replica {
    began: Moment,
    ready: Moment,
    failed: bool,
}

/// The copies of a version by region.
#[derive(Clone, Debug, Default)]
pub struct Replicas {
    regions: BTreeMap<String, Replica>,
    size_gib: u64,
}

fn plain(old: Option<&Resource>, body: &Value, fixed: &[&str]) -> Result<State, Problem> {
    let changed = |path: &&&str| {
        let path = format!("properties.{path}");
        old.is_some_and(|old| json::at(&old.body, &path) != json::at(body, &path))
    };
    match fixed.iter().find(changed) {
        Some(path) => Err(Problem::fixed(path)),
        None => Ok(State::Plain),
    }
}

fn nested(world: &World, resource: &Resource, kind: Kind) -> Result<(), Problem> {
    match world.store.of_kind(&resource.key(), kind).next() {
        None => Ok(()),
        Some(_) => Err(Problem::new(
            409,
            "CannotDeleteResource",
            "Can not delete resource before nested resources are deleted.",
        )),
    }
}

pub(super) struct Galleries;

impl Rules for Galleries {
    fn check(
        &self,
        _world: &mut World,
        _call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        plain(old, body, &[])
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /galleries/{}",
            _ => "PUT /galleries/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /galleries/{}")
    }

    fn removable(&self, world: &World, resource: &Resource) -> Result<(), Problem> {
        nested(world, resource, Kind::Definition)
    }

    fn show(&self, _world: &World, resource: &Resource, _expand: &str, body: &mut Value) {
        let subscription = resource.id.split('/').nth(2).unwrap_or_default();
        let unique = format!("{subscription}-{}", resource.name.to_uppercase());
        json::set(body, "properties.identifier.uniqueName", unique);
    }
}

pub(super) struct Definitions;

impl Rules for Definitions {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        if json::at(body, "properties.identifier").is_none() {
            return Err(Problem::required("galleryImage.properties.identifier"));
        }
        json::default(body, "properties.hyperVGeneration", "V1");
        json::default(body, "properties.architecture", "x64");
        let identifier = json::at(body, "properties.identifier");
        let gallery = crate::store::key(&call.target.parent().id());
        let taken = world
            .store
            .of_kind(&gallery, Kind::Definition)
            .any(|other| {
                other.key() != call.key
                    && json::at(&other.body, "properties.identifier") == identifier
            });
        if taken {
            return Err(Problem::new(
                409,
                "Conflict",
                "A gallery image with the same publisher, offer and sku already exists in the gallery.",
            ));
        }
        let fixed = ["osType", "osState", "hyperVGeneration", "identifier"];
        plain(old, body, &fixed)
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /galleries/{}/images/{}",
            _ => "PUT /galleries/{}/images/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /galleries/{}/images/{}")
    }

    fn removable(&self, world: &World, resource: &Resource) -> Result<(), Problem> {
        nested(world, resource, Kind::Version)
    }

    fn show(&self, _world: &World, _resource: &Resource, _expand: &str, _body: &mut Value) {}
}

pub(super) struct Versions;

impl Rules for Versions {
    fn check(
        &self,
        world: &mut World,
        call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        let parts: Vec<&str> = call.target.name().split('.').collect();
        let whole = |part: &&str| part.parse::<u32>().is_ok_and(|n| n <= i32::MAX as u32);
        if parts.len() != 3 || !parts.iter().all(whole) {
            return Err(Problem::parameter(
                "galleryImageVersionName",
                format!(
                    "The provided gallery image version name '{}' is invalid: it must follow the pattern Major.Minor.Patch with 32-bit numbers.",
                    call.target.name()
                ),
            ));
        }
        let size_gib = source(world, call, old, body)?;
        let home = match old {
            Some(old) => old.location.clone(),
            None => region(json::text(body, "location").unwrap_or("westeurope")),
        };
        if json::list(body, "properties.publishingProfile.targetRegions").is_empty() {
            let all = json!([{"name": home, "regionalReplicaCount": 1}]);
            json::set(body, "properties.publishingProfile.targetRegions", all);
        }
        let before = match old.map(|old| &old.state) {
            Some(State::Version(replicas)) => (**replicas).clone(),
            _ => Replicas::default(),
        };
        let targets = json::list(body, "properties.publishingProfile.targetRegions");
        let names: Vec<String> = targets
            .iter()
            .map(|target| region(json::text(target, "name").unwrap_or_default()))
            .collect();
        let dropped = before.regions.keys().any(|known| !names.contains(known));
        if dropped && guarded(old) {
            return Err(guard());
        }
        let mut after = Replicas {
            regions: BTreeMap::new(),
            size_gib,
        };
        let fastest = world.durations.recorded(WRITE).min * world.durations.per_mille / 1000;
        let wanted = |effect: &Effect| matches!(effect, Effect::Region { .. });
        let effects = world.faults.strike(call.request, &mut world.dice, wanted);
        for name in names {
            let fresh = Replica {
                began: world.now,
                ready: world.now.after(world.dice.between(fastest / 2, fastest)),
                failed: false,
            };
            let kept = before
                .regions
                .get(&name)
                .filter(|kept| !kept.failed)
                .cloned();
            let mut replica = kept.unwrap_or(fresh);
            for effect in &effects {
                if let Effect::Region {
                    name: about,
                    failed,
                    later_ms,
                } = effect
                    && *about == name
                {
                    replica.failed = *failed;
                    // After the longest operation that was recorded.
                    let longest = world.durations.recorded(WRITE).max;
                    let longest = longest * world.durations.per_mille / 1000;
                    replica.ready = replica.ready.max(world.now.after(longest + later_ms));
                }
            }
            after.regions.insert(name, replica);
        }
        let profile = "properties.publishingProfile";
        json::default(body, &format!("{profile}.replicaCount"), 1);
        json::default(body, &format!("{profile}.excludeFromLatest"), false);
        json::default(
            body,
            &format!("{profile}.storageAccountType"),
            "Standard_LRS",
        );
        json::default(body, &format!("{profile}.replicationMode"), "Full");
        json::default(
            body,
            "properties.safetyProfile.allowDeletionOfReplicatedLocations",
            true,
        );
        Ok(State::Version(Box::new(after)))
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /galleries/{}/images/{}/versions/{}",
            _ => WRITE,
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /galleries/{}/images/{}/versions/{}")
    }

    fn removable(&self, _world: &World, resource: &Resource) -> Result<(), Problem> {
        match guarded(Some(resource)) {
            true => Err(guard()),
            false => Ok(()),
        }
    }

    fn written(&self, world: &mut World, operation: &Operation) -> Result<(), Problem> {
        let Some(resource) = world.store.get(&operation.key) else {
            return Ok(());
        };
        let State::Version(replicas) = &resource.state else {
            return Ok(());
        };
        // Without its home region there is no version; other regions fail on their own.
        match replicas.regions.get(&resource.location) {
            Some(home) if home.failed => Err(Problem::new(
                409,
                "ReplicationJobFailed",
                format!("Replication to region '{}' failed.", resource.location),
            )),
            _ => Ok(()),
        }
    }

    fn show(&self, world: &World, resource: &Resource, expand: &str, body: &mut Value) {
        let State::Version(replicas) = &resource.state else {
            return;
        };
        json::set(
            body,
            "properties.publishingProfile.publishedDate",
            resource.created.rfc3339(),
        );
        json::set(
            body,
            "properties.storageProfile.osDiskImage.sizeInGB",
            replicas.size_gib,
        );
        json::default(
            body,
            "properties.storageProfile.osDiskImage.hostCaching",
            "ReadOnly",
        );
        json::set(
            body,
            "properties.safetyProfile.reportedForPolicyViolation",
            false,
        );
        if !expand.eq_ignore_ascii_case("ReplicationStatus") {
            return;
        }
        let now = world.now;
        let one = |(name, replica): (&String, &Replica)| {
            let (state, progress) = replica.state(now);
            let details = match state {
                "Failed" => "Replication to this region failed.",
                _ => "",
            };
            json!({"region": name, "state": state, "details": details, "progress": progress})
        };
        let summary: Vec<Value> = replicas.regions.iter().map(one).collect();
        let states: Vec<&str> = replicas.regions.values().map(|r| r.state(now).0).collect();
        let all = |wanted: &str| states.iter().all(|state| *state == wanted);
        let aggregated = match () {
            () if states.contains(&"Failed") => "Failed",
            () if all("Completed") => "Completed",
            () => "InProgress",
        };
        let status = json!({"aggregatedState": aggregated, "summary": summary});
        json::set(body, "properties.replicationStatus", status);
    }
}

impl Replica {
    fn state(&self, now: Moment) -> (&'static str, u64) {
        if self.failed && self.ready <= now {
            ("Failed", 0)
        } else if self.ready <= now {
            ("Completed", 100)
        } else {
            let whole = self.ready.since(self.began).max(1);
            ("Replicating", (now.since(self.began) * 100 / whole).min(99))
        }
    }
}

fn guarded(resource: Option<&Resource>) -> bool {
    let path = "properties.safetyProfile.allowDeletionOfReplicatedLocations";
    resource.is_some_and(|resource| json::at(&resource.body, path) == Some(&json!(false)))
}

fn guard() -> Problem {
    Problem::not_allowed(
        "Deletion of replicated locations is not allowed for this gallery image version: set safetyProfile.allowDeletionOfReplicatedLocations to true first.",
    )
}

/// Checks what a version is made from; returns its size in GiB.
fn source(
    world: &World,
    call: &Call<'_>,
    old: Option<&Resource>,
    body: &Value,
) -> Result<u64, Problem> {
    let profile = "properties.storageProfile";
    let given = |path: &str| json::text(body, &format!("{profile}.{path}"));
    let id = given("source.id")
        .or_else(|| given("source.virtualMachineId"))
        .or_else(|| given("osDiskImage.source.id"))
        .ok_or_else(|| Problem::required("galleryArtifactSource"))?;
    if let Some(old) = old {
        let before = json::at(&old.body, &format!("{profile}.source"));
        if before != json::at(body, &format!("{profile}.source")) {
            return Err(Problem::fixed(
                "galleryImageVersion.properties.storageProfile.source",
            ));
        }
        return Ok(match &old.state {
            State::Version(replicas) => replicas.size_gib,
            _ => 0,
        });
    }
    let Some(from) = world.store.by_id(id) else {
        return Err(Problem::new(
            404,
            "NotFound",
            format!("The source '{id}' of the gallery image version was not found."),
        ));
    };
    let definition = world.store.by_id(&call.target.parent().id());
    let state = definition.and_then(|d| json::text(&d.body, "properties.osState"));
    match from.kind {
        Kind::Disk | Kind::Snapshot => {
            disk::usable(world, from).map(|bytes| bytes.div_ceil(1 << 30))
        }
        Kind::Machine if state == Some("Generalized") && !super::machine::is_generalized(from) => {
            Err(Problem::not_allowed(format!(
                "The VM '{}' is not generalized: a version of a generalized image definition needs a generalized source.",
                from.name
            )))
        }
        Kind::Image | Kind::Machine | Kind::Version => Ok(30),
        _ => Err(Problem::parameter(
            "galleryArtifactSource",
            format!(
                "The source '{id}' is neither an image, a version, a VM, a disk nor a snapshot."
            ),
        )),
    }
}

/// Whether an image can be used in a region: a version, a definition (its latest) or an image.
///
/// # Errors
/// It is not there, or not there yet.
pub(super) fn image_usable(world: &World, id: &str, place: &str) -> Result<(), Problem> {
    let missing = || {
        Problem::new(
            404,
            "GalleryImageNotFound",
            format!(
                "The gallery image {id} is not available in {place} region. Please contact image owner to replicate to this region, or change your requested region."
            ),
        )
        .about("imageReference")
    };
    let there = |version: &Resource| match &version.state {
        State::Version(replicas) => replicas
            .regions
            .get(place)
            .is_some_and(|replica| replica.state(world.now).0 == "Completed"),
        _ => false,
    };
    let gallery = id.to_ascii_lowercase().contains("/galleries/");
    let Some(resource) = world.store.by_id(id) else {
        return Err(match gallery {
            true => missing(),
            false => Problem::new(
                404,
                "NotFound",
                format!("The Image '{id}' cannot be found in '{place}' region."),
            )
            .about("imageReference"),
        });
    };
    let usable = match resource.kind {
        Kind::Version => there(resource),
        Kind::Definition => world
            .store
            .of_kind(&resource.key(), Kind::Version)
            .any(|version| {
                let path = "properties.publishingProfile.excludeFromLatest";
                there(version) && json::at(&version.body, path) != Some(&json!(true))
            }),
        Kind::Image => resource.provisioning == "Succeeded" && resource.location == place,
        _ => false,
    };
    match usable {
        true => Ok(()),
        false => Err(missing()),
    }
}
