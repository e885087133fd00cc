//! The farm's versioned resources: teams, repositories, fleets, and the names of secrets.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Effect, Ledger, Rejected};
use crate::fleet::VersionRef;
use crate::ids::{RolloutId, RunId, Seq, TaskId};
use crate::names::{SecretName, TeamName};
use crate::pipeline::Strategy;
use crate::principal::{Principal, Verb};
use crate::resource::{Fleet, Repository, Resource, ResourceKind, Team};
use crate::time::Timestamp;

use super::rollout::{RolloutPhase, RolloutRequest};

/// A team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamRecord {
    /// As declared.
    pub spec: Team,
    /// Counts its changes.
    pub revision: u64,
    /// The command that set the present quota: leases that are older may exceed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_since: Option<Seq>,
}

/// A repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    /// As declared.
    pub spec: Repository,
    /// Counts its changes.
    pub revision: u64,
}

/// What a fleet shall run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The version.
    pub version: VersionRef,
    /// The run that asked for it, if one did.
    pub run: Option<RunId>,
}

/// A fleet and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRecord {
    /// As declared.
    pub spec: Fleet,
    /// Counts its changes.
    pub revision: u64,
    /// Rises with every change of the target: a batch decided for a lower one is refused.
    pub generation: u64,
    /// What it shall run; set by rollout begin and rollback, never by a channel.
    pub target: Option<Target>,
    /// The newest version that all of it ran well.
    pub good: Option<VersionRef>,
    /// The good version before that.
    pub previous_good: Option<VersionRef>,
    /// Versions that were rolled back here.
    pub barred: BTreeSet<VersionRef>,
    /// The open rollout.
    pub active: Option<RolloutId>,
    /// What shall be rolled out when the open rollout has ended.
    pub requested: Option<RolloutRequest>,
    /// Open repairs.
    pub repairs: Vec<TaskId>,
    /// The policy of the newest rollout; also bounds repairs.
    pub strategy: Strategy,
    /// The rollout that ended last, and how.
    pub last: Option<(RolloutId, RolloutPhase)>,
    /// Number of the last command that changed it.
    pub changed: Seq,
}

impl FleetRecord {
    /// How many instances it has when complete.
    pub fn total(&self) -> u32 {
        self.spec.sets.iter().map(|set| set.count).sum()
    }
}

/// That a secret has a value, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    /// Counts its values.
    pub version: u64,
    /// When the newest was set.
    pub set_at: Timestamp,
    /// By whom.
    pub set_by: String,
}

/// Creates or changes a resource.
pub(super) fn apply(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    resource: Resource,
    expected: Option<u64>,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let farm_wide = matches!(resource, Resource::Team(_));
    ledger.allow(who, Verb::Manage, (!farm_wide).then(|| resource.team()))?;
    if !farm_wide && !ledger.teams.contains(resource.team()) {
        return Err(Rejected::NotFound {
            kind: "team".into(),
            name: resource.team().to_string(),
        });
    }
    let name = format!("{} `{}`", resource.kind().as_str(), resource.name());
    let moved = |actual: u64| match expected {
        Some(expected) if expected != actual => Err(Rejected::Moved {
            name: name.clone(),
            expected,
            actual,
        }),
        _ => Ok(()),
    };
    let foreign = |owner: &TeamName| {
        Err(Rejected::Forbidden(format!(
            "{name} belongs to team `{owner}`"
        )))
    };
    effects.push(Effect::ResourcesChanged);
    match resource {
        Resource::Team(spec) => {
            let before = ledger.teams.get(&spec.name);
            moved(before.map_or(0, |before| before.revision))?;
            if before.is_some_and(|before| before.spec == spec) {
                return Ok(Answer::Unchanged);
            }
            let revision = before.map_or(0, |before| before.revision) + 1;
            let quota_since = match before {
                Some(before) if before.spec.quota == spec.quota => before.quota_since,
                _ => spec.quota.map(|_| cx.seq),
            };
            let record = TeamRecord {
                spec,
                revision,
                quota_since,
            };
            ledger.teams.insert(record.spec.name.clone(), record);
            Ok(Answer::Revision(revision))
        }
        Resource::Repository(spec) => {
            let before = ledger.repositories.get(&spec.name);
            moved(before.map_or(0, |before| before.revision))?;
            if let Some(before) = before {
                if before.spec.team != spec.team {
                    return foreign(&before.spec.team);
                }
                if before.spec == spec {
                    return Ok(Answer::Unchanged);
                }
            }
            let revision = before.map_or(0, |before| before.revision) + 1;
            ledger
                .repositories
                .insert(spec.name.clone(), RepositoryRecord { spec, revision });
            Ok(Answer::Revision(revision))
        }
        Resource::Fleet(spec) => apply_fleet(ledger, cx, spec, &moved, &foreign, effects),
    }
}

fn apply_fleet(
    ledger: &mut Ledger,
    cx: &Context,
    spec: Fleet,
    moved: &dyn Fn(u64) -> Result<(), Rejected>,
    foreign: &dyn Fn(&TeamName) -> Result<Answer, Rejected>,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let taken = ledger.fleets.iter().find(|(name, fleet)| {
        **name != spec.name
            && fleet.spec.provider == spec.provider
            && fleet.spec.listen == spec.listen
    });
    if let Some((name, _)) = taken {
        return Err(Rejected::Forbidden(format!(
            "fleet `{name}` listens on {} already: choose another address",
            spec.listen
        )));
    }
    let name = spec.name.clone();
    let revision = match ledger.fleets.get_mut(&name) {
        None => {
            moved(0)?;
            let record = FleetRecord {
                spec,
                revision: 1,
                generation: 0,
                target: None,
                good: None,
                previous_good: None,
                barred: BTreeSet::new(),
                active: None,
                requested: None,
                repairs: Vec::new(),
                strategy: Strategy::default(),
                last: None,
                changed: cx.seq,
            };
            ledger.fleets.insert(name.clone(), record);
            1
        }
        Some(before) => {
            moved(before.revision)?;
            if before.spec.team != spec.team {
                return foreign(&before.spec.team.clone());
            }
            if before.spec == spec {
                return Ok(Answer::Unchanged);
            }
            before.spec = spec;
            before.revision += 1;
            // A batch that was planned for the old shape is refused.
            before.generation += 1;
            before.changed = cx.seq;
            before.revision
        }
    };
    effects.push(Effect::FleetChanged(name));
    Ok(Answer::Revision(revision))
}

/// Removes a resource that nothing uses.
pub(super) fn delete(
    ledger: &mut Ledger,
    who: &Principal,
    kind: ResourceKind,
    name: &str,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: kind.as_str().to_lowercase(),
        name: name.to_owned(),
    };
    match kind {
        ResourceKind::Team => {
            ledger.allow(who, Verb::Manage, None)?;
            let team = TeamName::new(name).map_err(|_| not_found())?;
            let used = ledger
                .fleets
                .iter()
                .any(|(_, fleet)| fleet.spec.team == team)
                || ledger.repositories.iter().any(|(_, r)| r.spec.team == team)
                || ledger.index.runs_of(&team) > 0;
            if used {
                return Err(Rejected::WrongState(format!(
                    "team `{team}` still has fleets, repositories or runs"
                )));
            }
            ledger.teams.remove(&team).ok_or_else(not_found)?;
        }
        ResourceKind::Repository => {
            let key = name.parse().map_err(|_| not_found())?;
            let team = ledger
                .repositories
                .get(&key)
                .ok_or_else(not_found)?
                .spec
                .team
                .clone();
            ledger.allow(who, Verb::Manage, Some(&team))?;
            ledger.repositories.remove(&key);
            let refs: Vec<_> = ledger
                .refs
                .keys()
                .filter(|(r, _)| *r == key)
                .cloned()
                .collect();
            for branch in refs {
                ledger.refs.remove(&branch);
            }
        }
        ResourceKind::Fleet => {
            let key = name.parse().map_err(|_| not_found())?;
            let fleet = ledger.fleets.get(&key).ok_or_else(not_found)?;
            ledger.allow(who, Verb::Manage, Some(&fleet.spec.team))?;
            if fleet.total() > 0 || fleet.active.is_some() || !fleet.repairs.is_empty() {
                return Err(Rejected::WrongState(format!(
                    "fleet `{name}` still has instances: set the count of its sets to 0 first"
                )));
            }
            ledger.fleets.remove(&key);
        }
    }
    effects.push(Effect::ResourcesChanged);
    Ok(Answer::Done)
}

/// Records that a secret's value was stored.
pub(super) fn set_secret(
    ledger: &mut Ledger,
    cx: &Context,
    who: &Principal,
    team: TeamName,
    name: SecretName,
) -> Result<Answer, Rejected> {
    ledger.allow(who, Verb::Manage, Some(&team))?;
    if !ledger.teams.contains(&team) {
        return Err(Rejected::NotFound {
            kind: "team".into(),
            name: team.to_string(),
        });
    }
    let key = (team, name);
    let version = ledger.secrets.get(&key).map_or(0, |before| before.version) + 1;
    let record = SecretRecord {
        version,
        set_at: cx.now,
        set_by: who.name.clone(),
    };
    ledger.secrets.insert(key, record);
    Ok(Answer::Revision(version))
}
