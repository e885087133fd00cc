//! Managed images, made from a generalised VM or from a disk.

use serde_json::Value;

use super::{Rules, State, disk, machine};
use crate::http::Method;
use crate::json;
use crate::problem::Problem;
use crate::store::Resource;
use crate::world::{Call, World};

pub(super) struct Images;

impl Rules for Images {
    fn check(
        &self,
        world: &mut World,
        _call: &Call<'_>,
        old: Option<&Resource>,
        body: &mut Value,
    ) -> Result<State, Problem> {
        json::default(body, "properties.hyperVGeneration", "V1");
        if let Some(old) = old {
            for path in [
                "properties.sourceVirtualMachine",
                "properties.storageProfile",
            ] {
                if json::at(body, path) != json::at(&old.body, path) {
                    return Err(Problem::fixed(path));
                }
            }
            return Ok(State::Plain);
        }
        if let Some(id) = json::text(body, "properties.sourceVirtualMachine.id") {
            let vm = world
                .store
                .by_id(id)
                .ok_or_else(|| Problem::bad_reference(id))?;
            if !machine::is_generalized(vm) {
                return Err(Problem::new(
                    400,
                    "InvalidParameter",
                    format!(
                        "The VM '{}' is not generalized. Generalize it before capturing an image of it.",
                        vm.name
                    ),
                ));
            }
            let profile = machine::as_image(vm);
            json::set(body, "properties.storageProfile", profile);
            return Ok(State::Plain);
        }
        let os = "properties.storageProfile.osDisk";
        let source = ["managedDisk.id", "snapshot.id"]
            .iter()
            .find_map(|path| json::text(body, &format!("{os}.{path}")));
        if let Some(id) = source {
            let from = world
                .store
                .by_id(id)
                .ok_or_else(|| Problem::bad_reference(id))?;
            let bytes = disk::usable(world, from)?;
            json::default(body, &format!("{os}.diskSizeGB"), bytes.div_ceil(1 << 30));
        } else if json::text(body, &format!("{os}.blobUri")).is_none() {
            return Err(Problem::required("image.properties.storageProfile"));
        }
        Ok(State::Plain)
    }

    fn write_takes(&self, _fresh: bool, method: Method) -> Option<&'static str> {
        Some(match method {
            Method::Patch => "PATCH /images/{}",
            _ => "PUT /images/{}",
        })
    }

    fn delete_takes(&self) -> Option<&'static str> {
        Some("DELETE /images/{}")
    }

    fn show(&self, _world: &World, _resource: &Resource, _expand: &str, _body: &mut Value) {}
}
