//! The form of a resource in its file: the JSON Schema for editors, and printing.
//!
//! The comments of these types are what an editor shows, so they are written for
//! the person who fills in the file.

use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

use super::definition::{Fleet, Repository, Resource, Team};
use crate::document::print;
use crate::pipeline::file::{draft07, skip};

/// A record of the farm, made by `oast apply -f FILE`. Several stand in one file, with `---` between them.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Oast resource", extend("allOf" = spec_by_kind()))]
pub struct ResourceFile {
    /// The version of this format.
    #[schemars(extend("const" = "oast/v1"))]
    api_version: String,
    /// What sort of record this is.
    #[schemars(extend("enum" = ["Fleet", "Repository", "Team"]))]
    kind: String,
    /// The record's name: lower-case letters, digits and hyphens.
    #[schemars(regex(pattern = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"))]
    name: String,
    /// What the record says; its keys depend on `kind`.
    spec: Value,
}

/// `if kind is X then spec is X's`, which editors follow better than a choice of whole objects.
fn spec_by_kind() -> Value {
    let rule = |kind: &str, schema: Schema| {
        let mut schema = schema.to_value();
        if let Value::Object(map) = &mut schema {
            map.remove("$schema");
            map.remove("title");
        }
        serde_json::json!({
            "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
            "then": { "properties": { "spec": schema } },
        })
    };
    Value::Array(vec![
        rule("Fleet", inlined::<FleetSpec>()),
        rule("Repository", inlined::<RepositorySpec>()),
        rule("Team", inlined::<TeamSpec>()),
    ])
}

fn inlined<T: JsonSchema>() -> Schema {
    let settings =
        schemars::generate::SchemaSettings::draft07().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>()
}

/// Scale sets of equal instances behind one address, which follow one channel of an image.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FleetSpec {
    /// The team that owns the fleet.
    team: String,
    /// Who runs the instances: `local` is this machine.
    #[schemars(extend("enum" = ["local"]))]
    provider: String,
    /// The scale sets.
    #[schemars(extend("minItems" = 1, "maxItems" = 64))]
    sets: Vec<SetSpec>,
    /// The load balancer's address and port. The local provider listens on loopback only.
    listen: String,
    /// What an instance serves.
    serve: ServeSpec,
    /// How it is found out whether an instance is healthy.
    health: HealthSpec,
    /// How an instance is taken out of service before it is replaced.
    #[serde(skip_serializing_if = "skip")]
    drain: Option<DrainSpec>,
    /// The image and channel whose version the fleet runs.
    channel: ChannelSpec,
}

/// A number of equal instances.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SetSpec {
    /// The set's name, unique in the fleet.
    name: String,
    /// The region, as the provider writes it. Left out for the local provider.
    #[serde(skip_serializing_if = "skip")]
    region: Option<String>,
    /// How many instances.
    #[schemars(range(max = 1000))]
    count: u32,
}

/// What an instance serves.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServeSpec {
    /// The port on which an instance answers the load balancer.
    #[schemars(range(min = 1))]
    port: u16,
}

/// How it is found out whether an instance is healthy.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HealthSpec {
    /// The page that is asked for.
    http: HealthHttpSpec,
    /// Time between two questions. Default: 2s.
    #[serde(skip_serializing_if = "skip")]
    interval: Option<String>,
    /// How long an answer may take. Default: 1s.
    #[serde(skip_serializing_if = "skip")]
    timeout: Option<String>,
    /// Good answers in a row that make an instance healthy. Default: 2.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 100))]
    healthy_after: Option<u32>,
    /// Bad answers in a row that make an instance unhealthy. Default: 3.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 100))]
    unhealthy_after: Option<u32>,
}

/// The page that is asked for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HealthHttpSpec {
    /// The port on the instance.
    #[schemars(range(min = 1))]
    port: u16,
    /// Path and query. Default: `/`.
    #[serde(skip_serializing_if = "skip")]
    path: Option<String>,
    /// The status that is good. Default: 200.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 100, max = 599))]
    status: Option<u16>,
}

/// How an instance is taken out of service before it is replaced.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainSpec {
    /// How long open connections may go on. Default: 30s.
    timeout: String,
}

/// The image and channel whose version the fleet runs.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ChannelSpec {
    /// The image.
    image: String,
    /// Its channel, such as `candidate`.
    channel: String,
}

/// A Git repository that the farm watches.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RepositorySpec {
    /// The team that owns it; its pipelines may name no other.
    team: String,
    /// Where it is fetched from, as `git clone` takes it, without credentials.
    url: String,
    /// Globs of the branches that are watched. Default: all.
    #[serde(skip_serializing_if = "skip")]
    branches: Option<Vec<String>>,
    /// The pipeline file in it. Default: oast.yaml.
    #[serde(skip_serializing_if = "skip")]
    path: Option<String>,
    /// Time between two looks. Left out: only webhooks and pushes to the farm tell of new commits.
    #[serde(skip_serializing_if = "skip")]
    poll: Option<String>,
    /// The secret that signs webhook deliveries.
    #[serde(skip_serializing_if = "skip")]
    webhook_secret: Option<SecretRefSpec>,
    /// The secret with which it is fetched.
    #[serde(skip_serializing_if = "skip")]
    credentials: Option<SecretRefSpec>,
}

/// A secret of the team, by name. Its value is set by `oast secret set NAME` and never written here.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecretRefSpec {
    /// The secret's name.
    secret: String,
}

/// A team: the owner of pipelines, images and fleets.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TeamSpec {
    /// What people are told about it.
    #[serde(skip_serializing_if = "skip")]
    description: Option<String>,
    /// Who may do what in it.
    #[serde(skip_serializing_if = "skip")]
    members: Option<Vec<MemberSpec>>,
    /// The team's part of the farm beside the other teams': one of weight 3 gets three times what one
    /// of weight 1 gets, while both want more than there is. Default: 1.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 1000))]
    weight: Option<u32>,
    /// How many slots the team may hold at once. Default: as many as are free.
    #[serde(skip_serializing_if = "skip")]
    quota: Option<QuotaSpec>,
    /// How long its finished runs are kept. Default: as long as the farm keeps them.
    #[serde(skip_serializing_if = "skip")]
    retention: Option<RetentionSpec>,
}

/// How many slots a team may hold at once. Rollbacks and repairs are beyond it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct QuotaSpec {
    /// Its own slots.
    #[schemars(range(min = 0, max = 1_000_000))]
    slots: u32,
    /// What it may hold besides while others leave it free. Default: 0.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 0, max = 1_000_000))]
    borrow: Option<u32>,
}

/// How long finished runs are kept: until one of the two is exceeded. What an image version or a
/// fleet still refers to is kept longer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RetentionSpec {
    /// The newest so many. Default: 10000.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 10_000_000))]
    runs: Option<u32>,
    /// For so many days. Default: 90.
    #[serde(skip_serializing_if = "skip")]
    #[schemars(range(min = 1, max = 3650))]
    days: Option<u32>,
}

/// A person or machine account in the team.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MemberSpec {
    /// The account's name or mail address.
    user: String,
    /// viewer looks; operator also runs and rolls out; admin may change everything.
    #[schemars(extend("enum" = ["viewer", "operator", "admin"]))]
    role: String,
}

/// The JSON Schema of a resource document.
pub fn schema() -> Value {
    draft07::<ResourceFile>("resource")
}

/// The resource in the form of its file, every default written out.
pub fn to_value(resource: &Resource) -> Value {
    let spec = match resource {
        Resource::Fleet(fleet) => serde_json::to_value(fleet_spec(fleet)),
        Resource::Repository(repository) => serde_json::to_value(repository_spec(repository)),
        Resource::Team(team) => serde_json::to_value(team_spec(team)),
    };
    let spec = spec.expect("texts, numbers and lists are always JSON");
    serde_json::json!({
        "apiVersion": "oast/v1",
        "kind": resource.kind().as_str(),
        "name": resource.name(),
        "spec": spec,
    })
}

/// The resource as a YAML document.
pub fn to_yaml(resource: &Resource) -> String {
    print::yaml(&to_value(resource))
}

fn fleet_spec(fleet: &Fleet) -> FleetSpec {
    FleetSpec {
        team: fleet.team.to_string(),
        provider: fleet.provider.as_str().to_owned(),
        sets: fleet
            .sets
            .iter()
            .map(|set| SetSpec {
                name: set.name.to_string(),
                region: set.region.as_ref().map(ToString::to_string),
                count: set.count,
            })
            .collect(),
        listen: fleet.listen.to_string(),
        serve: ServeSpec {
            port: fleet.serve.port,
        },
        health: HealthSpec {
            http: HealthHttpSpec {
                port: fleet.health.http.port,
                path: Some(fleet.health.http.path.clone()),
                status: Some(fleet.health.http.status),
            },
            interval: Some(fleet.health.interval.to_string()),
            timeout: Some(fleet.health.timeout.to_string()),
            healthy_after: Some(fleet.health.healthy_after),
            unhealthy_after: Some(fleet.health.unhealthy_after),
        },
        drain: Some(DrainSpec {
            timeout: fleet.drain.timeout.to_string(),
        }),
        channel: ChannelSpec {
            image: fleet.channel.image.to_string(),
            channel: fleet.channel.channel.to_string(),
        },
    }
}

fn repository_spec(repository: &Repository) -> RepositorySpec {
    let secret = |reference: &crate::pipeline::SecretRef| SecretRefSpec {
        secret: reference.secret.to_string(),
    };
    RepositorySpec {
        team: repository.team.to_string(),
        url: repository.url.clone(),
        branches: Some(repository.branches.clone()).filter(|list| !list.is_empty()),
        path: Some(repository.path.clone()),
        poll: repository.poll.map(|poll| poll.to_string()),
        webhook_secret: repository.webhook_secret.as_ref().map(secret),
        credentials: repository.credentials.as_ref().map(secret),
    }
}

fn team_spec(team: &Team) -> TeamSpec {
    let members: Vec<MemberSpec> = team
        .members
        .iter()
        .map(|member| MemberSpec {
            user: member.user.clone(),
            role: member.role.as_str().to_owned(),
        })
        .collect();
    TeamSpec {
        description: team.description.clone(),
        members: Some(members).filter(|list| !list.is_empty()),
        weight: Some(team.weight),
        quota: team.quota.map(|quota| QuotaSpec {
            slots: quota.slots,
            borrow: Some(quota.borrow),
        }),
        retention: team.retention.map(|kept| RetentionSpec {
            runs: Some(kept.runs),
            days: Some(kept.days),
        }),
    }
}
