//! Provider types to the local cloud's wire types and back.

use std::time::Duration;

use oast_proto::localcloud::v1 as wire;

use crate::provider::{
    FleetObservation, Health, ImageRef, InstanceObservation, Phase, SetObservation, SetSpec,
};

pub(super) fn wire_image(image: &ImageRef) -> wire::Image {
    wire::Image {
        name: image.name.clone(),
        version: image.version.clone(),
        layers: image.layers.clone(),
        base_layers: u32::try_from(image.base_layers.max(1)).unwrap_or(u32::MAX),
    }
}

fn millis(duration: Duration) -> u32 {
    // At least 1: zero means "the default" on the wire.
    u32::try_from(duration.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}

pub(super) fn wire_spec(spec: &SetSpec) -> wire::ScaleSetSpec {
    wire::ScaleSetSpec {
        name: spec.name.clone(),
        fleet: spec.fleet.clone(),
        listen: spec.listen.to_string(),
        service_port: u32::from(spec.service_port),
        health: Some(wire::HealthCheck {
            path: spec.health.path.clone(),
            status: u32::from(spec.health.status),
            interval_ms: millis(spec.health.interval),
            timeout_ms: millis(spec.health.timeout),
            healthy_after: spec.health.healthy_after.max(1),
            unhealthy_after: spec.health.unhealthy_after.max(1),
        }),
        drain_timeout_ms: millis(spec.drain_timeout),
        model: spec.model.as_ref().map(wire_image),
        tags: spec.tags.clone().into_iter().collect(),
    }
}

pub(super) fn observation<'a>(
    states: impl IntoIterator<Item = &'a wire::SetState>,
) -> FleetObservation {
    FleetObservation {
        sets: states.into_iter().map(set_observation).collect(),
    }
}

pub(super) fn set_observation(state: &wire::SetState) -> SetObservation {
    let set = state.set.clone().unwrap_or_default();
    let spec = set.spec.unwrap_or_default();
    SetObservation {
        name: spec.name,
        etag: set.etag,
        address: set.address.parse().ok(),
        model: spec.model.as_ref().map(image),
        problem: Some(set.listen_error).filter(|p| !p.is_empty()),
        instances: state.instances.iter().map(instance).collect(),
    }
}

fn image(image: &wire::Image) -> ImageRef {
    ImageRef {
        name: image.name.clone(),
        version: image.version.clone(),
        layers: image.layers.clone(),
        base_layers: image.base_layers as usize,
    }
}

pub(super) fn instance(i: &wire::Instance) -> InstanceObservation {
    let phase = match i.phase() {
        wire::Phase::Running => Phase::Running,
        wire::Phase::Stopped => Phase::Stopped,
        wire::Phase::Failed => Phase::Failed,
        wire::Phase::Deleting => Phase::Deleting,
        wire::Phase::Creating
        | wire::Phase::Reimaging
        | wire::Phase::Restarting
        | wire::Phase::Unspecified => Phase::Creating,
    };
    let health = match i.health() {
        wire::Health::Healthy => Health::Healthy,
        wire::Health::Unhealthy => Health::Unhealthy,
        wire::Health::Initializing | wire::Health::Unspecified => Health::Initializing,
    };
    let mode = match i.boot_mode() {
        wire::BootMode::Init => "own init",
        wire::BootMode::Units => "enabled units",
        wire::BootMode::Unspecified => "",
    };
    let absent = wire::Image::default();
    InstanceObservation {
        set: i.set.clone(),
        id: i.id.clone(),
        etag: i.etag.clone(),
        image: image(i.image.as_ref().unwrap_or(&absent)),
        phase,
        health,
        note: if i.reason.is_empty() {
            mode.to_owned()
        } else {
            i.reason.clone()
        },
        draining: i.draining,
        drained: i.drained,
        connections: i.connections,
        direct: i.direct_address.parse().ok(),
        replaced: i.replaced_count,
    }
}
