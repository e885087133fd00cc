//! Wire types to the cloud's own and back. Zero on the wire means "the default" where the
//! contract says so.

use std::time::Duration;

use oast_proto::localcloud::v1 as wire;

use crate::local_cloud::backend::Health;
use crate::local_cloud::record::{HistoryEntry, OperationKind};
use crate::local_cloud::runtime::BootMode;
use crate::local_cloud::spec::{HealthCheck, Image, Invalid, SetSpec};
use crate::local_cloud::view::{InstanceView, Phase, SetView};

pub(super) fn image(image: wire::Image) -> Image {
    Image {
        name: image.name,
        version: image.version,
        layers: image.layers,
        base_layers: image.base_layers.max(1) as usize,
    }
}

fn wire_image(image: &Image) -> wire::Image {
    wire::Image {
        name: image.name.clone(),
        version: image.version.clone(),
        layers: image.layers.clone(),
        base_layers: u32::try_from(image.base_layers).unwrap_or(u32::MAX),
    }
}

pub(super) fn set_spec(spec: Option<wire::ScaleSetSpec>) -> Result<SetSpec, Invalid> {
    let spec = spec.ok_or_else(|| Invalid::new("spec", "is needed"))?;
    let listen = spec.listen.parse().map_err(|_| {
        Invalid::new(
            "listen",
            format!("{:?} is not an address like 127.0.0.1:8080", spec.listen),
        )
    })?;
    let service_port = u16::try_from(spec.service_port)
        .map_err(|_| Invalid::new("service_port", "must be 1 to 65535"))?;
    let mut set = SetSpec::new(&spec.name, &spec.fleet, listen, service_port);
    if let Some(check) = spec.health {
        set.health = health_check(check)?;
    }
    set.drain_timeout = duration(spec.drain_timeout_ms, set.drain_timeout);
    set.model = spec.model.map(image);
    set.tags = spec.tags.into_iter().collect();
    Ok(set)
}

fn health_check(check: wire::HealthCheck) -> Result<HealthCheck, Invalid> {
    let default = HealthCheck::default();
    let status = match check.status {
        0 => default.status,
        status => u16::try_from(status)
            .map_err(|_| Invalid::new("health.status", "must be 100 to 599"))?,
    };
    let or = |n: u32, default: u32| if n == 0 { default } else { n };
    Ok(HealthCheck {
        path: check.path,
        status,
        interval: duration(check.interval_ms, default.interval),
        timeout: duration(check.timeout_ms, default.timeout),
        healthy_after: or(check.healthy_after, default.healthy_after),
        unhealthy_after: or(check.unhealthy_after, default.unhealthy_after),
    })
}

fn duration(ms: u32, default: Duration) -> Duration {
    if ms == 0 {
        default
    } else {
        Duration::from_millis(u64::from(ms))
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn set(view: &SetView) -> wire::ScaleSet {
    let spec = &view.spec;
    wire::ScaleSet {
        spec: Some(wire::ScaleSetSpec {
            name: spec.name.clone(),
            fleet: spec.fleet.clone(),
            listen: spec.listen.to_string(),
            service_port: u32::from(spec.service_port),
            health: Some(wire::HealthCheck {
                path: spec.health.path.clone(),
                status: u32::from(spec.health.status),
                interval_ms: millis(spec.health.interval),
                timeout_ms: millis(spec.health.timeout),
                healthy_after: spec.health.healthy_after,
                unhealthy_after: spec.health.unhealthy_after,
            }),
            drain_timeout_ms: millis(spec.drain_timeout),
            model: spec.model.as_ref().map(wire_image),
            tags: spec.tags.clone().into_iter().collect(),
        }),
        etag: view.etag.to_string(),
        address: view.address.map(|a| a.to_string()).unwrap_or_default(),
        listen_error: view.listen_error.clone(),
        counts: Some(wire::BalancerCounts {
            accepted: view.counts.accepted,
            refused: view.counts.refused,
            redialled: view.counts.redialled,
            cut: view.counts.cut,
            broken: view.counts.broken,
        }),
    }
}

pub(super) fn state(view: &SetView) -> wire::SetState {
    wire::SetState {
        set: Some(set(view)),
        instances: view.instances.iter().map(instance).collect(),
    }
}

pub(super) fn instance(view: &InstanceView) -> wire::Instance {
    let record = &view.record;
    wire::Instance {
        set: record.set.clone(),
        id: record.id.clone(),
        etag: record.etag.to_string(),
        revision: view.revision,
        image: Some(wire_image(&record.image)),
        phase: phase(view.phase).into(),
        health: health(view.health).into(),
        reason: view.reason.clone(),
        draining: record.draining,
        drained: view.drained,
        connections: view.connections,
        direct_address: view.direct.map(|a| a.to_string()).unwrap_or_default(),
        boot_mode: boot_mode(view.mode).into(),
        replaced_count: record.replaced_count,
        history: record.history.iter().map(history).collect(),
        starts: view.starts,
    }
}

fn history(entry: &HistoryEntry) -> wire::HistoryEntry {
    let kind = match entry.kind {
        OperationKind::Create => wire::OperationKind::Create,
        OperationKind::Reimage => wire::OperationKind::Reimage,
        OperationKind::Restart => wire::OperationKind::Restart,
    };
    wire::HistoryEntry {
        kind: kind.into(),
        image_version: entry.image_version.clone(),
        at_ms: entry.at_ms,
        operation_id: entry.operation_id.clone(),
        caller_token: entry.caller_token.clone(),
        gap_ms: entry.gap_ms,
    }
}

fn phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Creating => wire::Phase::Creating,
        Phase::Running => wire::Phase::Running,
        Phase::Reimaging => wire::Phase::Reimaging,
        Phase::Restarting => wire::Phase::Restarting,
        Phase::Stopped => wire::Phase::Stopped,
        Phase::Failed => wire::Phase::Failed,
        Phase::Deleting => wire::Phase::Deleting,
    }
}

fn health(health: Health) -> wire::Health {
    match health {
        Health::Initializing => wire::Health::Initializing,
        Health::Healthy => wire::Health::Healthy,
        Health::Unhealthy => wire::Health::Unhealthy,
    }
}

fn boot_mode(mode: Option<BootMode>) -> wire::BootMode {
    match mode {
        Some(BootMode::Init) => wire::BootMode::Init,
        Some(BootMode::Units) => wire::BootMode::Units,
        None => wire::BootMode::Unspecified,
    }
}
