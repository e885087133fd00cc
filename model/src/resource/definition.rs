//! Checked resources, as the ledger stores them.
//!
//! The same promise as for pipelines: fields have names, new ones a default.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::names::{
    ChannelName, FleetName, ImageName, RegionName, RepositoryName, SetName, TeamName,
};
use crate::pipeline::SecretRef;
use crate::units::TimeSpan;

/// Any record that `oast apply` makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// A fleet of instances.
    Fleet(Fleet),
    /// A repository that is watched.
    Repository(Repository),
    /// A team.
    Team(Team),
}

/// What sort of record a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// A fleet of instances.
    Fleet,
    /// A repository that is watched.
    Repository,
    /// A team.
    Team,
}

impl ResourceKind {
    /// As it stands behind `kind:`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fleet => "Fleet",
            Self::Repository => "Repository",
            Self::Team => "Team",
        }
    }
}

impl Resource {
    /// What sort of record this is.
    pub const fn kind(&self) -> ResourceKind {
        match self {
            Self::Fleet(_) => ResourceKind::Fleet,
            Self::Repository(_) => ResourceKind::Repository,
            Self::Team(_) => ResourceKind::Team,
        }
    }

    /// Its name, unique in its kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Fleet(fleet) => fleet.name.as_str(),
            Self::Repository(repository) => repository.name.as_str(),
            Self::Team(team) => team.name.as_str(),
        }
    }

    /// The team that owns it; a team owns itself.
    pub const fn team(&self) -> &TeamName {
        match self {
            Self::Fleet(fleet) => &fleet.team,
            Self::Repository(repository) => &repository.team,
            Self::Team(team) => &team.name,
        }
    }
}

/// Scale sets behind one address that follow one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Its name.
    pub name: FleetName,
    /// Its owner.
    pub team: TeamName,
    /// Who runs the instances.
    pub provider: Provider,
    /// The scale sets, names unique in the fleet.
    pub sets: Vec<ScaleSet>,
    /// The load balancer's address.
    pub listen: SocketAddr,
    /// What an instance serves.
    pub serve: Serve,
    /// How an instance's health is found out.
    pub health: Health,
    /// How an instance is taken out of service.
    pub drain: Drain,
    /// What the fleet follows.
    pub channel: ChannelRef,
}

/// Who runs the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// `oast local-cloud` on this machine.
    Local,
}

impl Provider {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
        }
    }
}

/// A number of equal instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSet {
    /// Unique in the fleet.
    pub name: SetName,
    /// Where it is; none for the local provider's only place.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// How many instances.
    pub count: u32,
}

/// What an instance serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serve {
    /// The port on which an instance answers the balancer.
    pub port: u16,
}

/// How an instance's health is found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The page that is asked for.
    pub http: HealthHttp,
    /// Time between two questions.
    pub interval: TimeSpan,
    /// How long one answer may take; less than the interval is not required.
    pub timeout: TimeSpan,
    /// Good answers in a row that make an instance healthy.
    pub healthy_after: u32,
    /// Bad answers in a row that make it unhealthy.
    pub unhealthy_after: u32,
}

/// The page that a health check asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthHttp {
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// The status that is good.
    pub status: u16,
}

/// How an instance is taken out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// How long open connections may go on.
    pub timeout: TimeSpan,
}

/// What a fleet follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRef {
    /// The image.
    pub image: ImageName,
    /// Its channel.
    pub channel: ChannelName,
}

/// A Git repository that the farm watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Its name.
    pub name: RepositoryName,
    /// Its owner; a pipeline in it may name no other team.
    pub team: TeamName,
    /// Where it is fetched from.
    pub url: String,
    /// Globs of the branches that are watched; empty means every branch.
    #[serde(default)]
    pub branches: Vec<String>,
    /// The pipeline file in it.
    pub path: String,
    /// Time between two looks; none means that only webhooks and pushes tell.
    #[serde(default)]
    pub poll: Option<TimeSpan>,
    /// What signs webhook deliveries.
    #[serde(default)]
    pub webhook_secret: Option<SecretRef>,
    /// What the fetch is allowed by.
    #[serde(default)]
    pub credentials: Option<SecretRef>,
}

/// The tenant boundary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its name.
    pub name: TeamName,
    /// What people are told.
    #[serde(default)]
    pub description: Option<String>,
    /// Who may do what in it.
    #[serde(default)]
    pub members: Vec<TeamMember>,
    /// Its part of the farm beside the other teams'. At least 1.
    #[serde(default = "usual_weight", skip_serializing_if = "is_usual_weight")]
    pub weight: u32,
    /// How many slots it may hold; none: as many as are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// How long its finished work is kept; none: as long as the farm keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

impl Team {
    /// A team with nothing declared.
    pub const fn new(name: TeamName) -> Team {
        Team {
            name,
            description: None,
            members: Vec::new(),
            weight: usual_weight(),
            quota: None,
            retention: None,
        }
    }
}

/// The weight of a team that declares none.
const fn usual_weight() -> u32 {
    1
}

const fn is_usual_weight(weight: &u32) -> bool {
    *weight == usual_weight()
}

/// How many slots a team may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Its own.
    pub slots: u32,
    /// What it may hold besides while others leave it free.
    #[serde(default)]
    pub borrow: u32,
}

impl Quota {
    /// The most that it may hold.
    pub const fn limit(self) -> u32 {
        self.slots.saturating_add(self.borrow)
    }
}

/// How long finished runs and rollouts are kept: until one of the two is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many.
    pub runs: u32,
    /// For so many days.
    pub days: u32,
}

/// A person or machine account in a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamMember {
    /// The account.
    pub user: String,
    /// What it may do.
    pub role: Role,
}

/// What an account may do in a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look.
    Viewer,
    /// Look, run, roll out, roll back.
    Operator,
    /// Everything, resources and secrets included.
    Admin,
}

impl Role {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}
