//! A fleet as the model names it, and as a provider does.
//!
//! The model calls an instance `web-3`: the third of set `web`, unique in its fleet. A provider
//! knows sets that are unique in the whole cloud, each with ids of its own. This is the one place
//! where the two are translated; a cloud's name is computed from the fleet, never taken apart.

use oast_model::fleet::{DeployImage, InstanceState, InstanceView, Observation, VersionRef};
use oast_model::names::{ImageName, InstanceName, NAME_MAX};
use oast_model::resource::{Fleet, ScaleSet};

use crate::provider::{
    FleetObservation, Health, HealthCheck, ImageRef, InstanceObservation, Phase, SetSpec,
};

/// Where an instance is in its cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cloud's name of the set.
    pub set: String,
    /// The id in the set.
    pub id: String,
}

/// The cloud's name of a fleet's set.
pub fn cloud_set(fleet: &Fleet, set: &ScaleSet) -> String {
    let name = format!("{}--{}", fleet.name, set.name);
    if name.len() <= NAME_MAX {
        return name;
    }
    // Two long names: the hash keeps them apart where the cut does not.
    let hash = blake3::hash(name.as_bytes()).to_hex();
    let cut = name[..NAME_MAX - 17].trim_end_matches('-');
    format!("{cut}-{}", &hash[..16])
}

/// Where the instance of that name is; none when the fleet declares no such set.
pub fn place(fleet: &Fleet, name: &InstanceName) -> Option<Place> {
    let (set, id) = name.as_str().rsplit_once('-')?;
    id.parse::<u32>().ok()?;
    let set = fleet.sets.iter().find(|known| known.name.as_str() == set)?;
    Some(Place {
        set: cloud_set(fleet, set),
        id: id.to_owned(),
    })
}

/// A set as its provider shall have it. `model` is left as the cloud has it: what scale-out may
/// use is decided by whoever judges a version good, not by a batch.
pub fn set_spec(fleet: &Fleet, set: &ScaleSet, model: Option<ImageRef>) -> SetSpec {
    let health = &fleet.health;
    SetSpec {
        name: cloud_set(fleet, set),
        fleet: fleet.name.to_string(),
        listen: fleet.listen,
        service_port: fleet.serve.port,
        health: HealthCheck {
            path: health.http.path.clone(),
            status: health.http.status,
            interval: health.interval.duration(),
            timeout: health.timeout.duration(),
            healthy_after: health.healthy_after,
            unhealthy_after: health.unhealthy_after,
        },
        drain_timeout: fleet.drain.timeout.duration(),
        model,
        tags: [("team".to_owned(), fleet.team.to_string())].into(),
    }
}

/// A version as a provider needs it.
pub fn image_ref(image: &DeployImage) -> ImageRef {
    ImageRef {
        name: image.version.image.to_string(),
        version: image.version.number.to_string(),
        layers: image.layers.iter().map(ToString::to_string).collect(),
        base_layers: 1.min(image.layers.len()),
    }
}

/// The version that an instance runs, if it is one of ours.
pub fn version_of(image: &ImageRef) -> Option<VersionRef> {
    Some(VersionRef {
        image: ImageName::new(image.name.as_str()).ok()?,
        number: image.version.parse().ok()?,
    })
}

/// What a provider shows, in the model's words. Sets and ids that the fleet does not declare are
/// left out.
pub fn observation(fleet: &Fleet, seen: &FleetObservation) -> Observation {
    let mut instances = Vec::new();
    for set in &fleet.sets {
        let cloud_name = cloud_set(fleet, set);
        let Some(found) = seen.sets.iter().find(|found| found.name == cloud_name) else {
            continue;
        };
        for instance in &found.instances {
            if let Ok(name) = InstanceName::new(format!("{}-{}", set.name, instance.id)) {
                instances.push(view(name, instance));
            }
        }
    }
    instances.sort_by(|a, b| a.name.cmp(&b.name));
    Observation {
        instances,
        ..Observation::default()
    }
}

fn view(name: InstanceName, seen: &InstanceObservation) -> InstanceView {
    InstanceView {
        name,
        version: version_of(&seen.image),
        state: match seen.phase {
            // What goes away is on its way to being made anew.
            Phase::Creating | Phase::Deleting => InstanceState::Creating,
            Phase::Running => InstanceState::Running,
            Phase::Stopped => InstanceState::Stopped,
            Phase::Failed => InstanceState::Failed,
        },
        healthy: seen.health == Health::Healthy,
        in_rotation: seen.is_serving(),
        direct: seen.direct,
        replaced: seen.replaced,
        note: seen.note.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fleet of two sets, as a test wants one.
    pub(crate) fn fleet(listen: std::net::SocketAddr, port: u16) -> Fleet {
        let text = format!(
            r#"{{"name":"web-prod","team":"shop","provider":"local",
            "sets":[{{"name":"web","count":3}},{{"name":"web-2","count":1}}],
            "listen":"{listen}","serve":{{"port":{port}}},
            "health":{{"http":{{"port":{port},"path":"/","status":200}},
                "interval":"10ms","timeout":"500ms","healthy_after":1,"unhealthy_after":2}},
            "drain":{{"timeout":"500ms"}},
            "channel":{{"image":"web","channel":"candidate"}}}}"#
        );
        serde_json::from_str(&text).expect("a fleet")
    }

    #[test]
    fn instances_are_found_by_the_longest_set_name() {
        let fleet = fleet("127.0.0.1:1".parse().expect("an address"), 80);
        let at = |name: &str| place(&fleet, &InstanceName::new(name).expect("a name"));
        let web = |set: &str, id: &str| {
            Some(Place {
                set: format!("web-prod--{set}"),
                id: id.to_owned(),
            })
        };
        assert_eq!(at("web-0"), web("web", "0"));
        assert_eq!(at("web-2-0"), web("web-2", "0"));
        assert_eq!(at("api-0"), None);
        assert_eq!(at("web-x"), None);
    }

    #[test]
    fn long_names_stay_names_and_apart() {
        let mut fleet = fleet("127.0.0.1:1".parse().expect("an address"), 80);
        fleet.name = "f".repeat(60).parse().expect("a name");
        let names: Vec<String> = fleet
            .sets
            .iter()
            .map(|set| cloud_set(&fleet, set))
            .collect();
        assert_ne!(names[0], names[1]);
        assert!(
            names
                .iter()
                .all(|name| oast_model::names::check(name).is_ok())
        );
    }
}
