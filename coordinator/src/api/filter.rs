//! What lists and watches are restricted to.

use std::collections::BTreeSet;

use oast_model::ledger::{Rollout, RolloutPhase, Run, RunPhase};
use oast_model::names::{FleetName, TeamName};
use oast_model::task::{Ending, Origin};
use oast_model::time::Timestamp;
use oast_proto::v1;
use serde::Serialize;
use tonic::Status;

use super::runs::optional_name;
use super::{convert, status};
use crate::archive::{By, RolloutSummary, RunSummary};

/// Fewest digits of a commit that is asked for.
const COMMIT_MIN: usize = 7;
/// Longest text that is compared.
const TEXT_MAX: usize = 255;

const RUN_PHASES: [RunPhase; 10] = [
    RunPhase::Source,
    RunPhase::Baking,
    RunPhase::Testing,
    RunPhase::Publishing,
    RunPhase::RollingOut,
    RunPhase::Ended(Ending::Succeeded),
    RunPhase::Ended(Ending::Failed),
    RunPhase::Ended(Ending::Errored),
    RunPhase::Ended(Ending::Cancelled),
    RunPhase::Ended(Ending::Skipped),
];

const ROLLOUT_PHASES: [RolloutPhase; 8] = [
    RolloutPhase::Planned,
    RolloutPhase::Canary,
    RolloutPhase::Rolling,
    RolloutPhase::Paused,
    RolloutPhase::RollingBack,
    RolloutPhase::Succeeded,
    RolloutPhase::RolledBack,
    RolloutPhase::Failed,
];

/// Which runs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RunFilter {
    pub(super) team: Option<TeamName>,
    pub(super) open: bool,
    pipeline: String,
    repository: String,
    branch: String,
    commit: String,
    phases: BTreeSet<String>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

impl RunFilter {
    pub(super) fn read(asked: &v1::ListRunsRequest) -> Result<RunFilter, Status> {
        let hex = asked.commit.bytes().all(|b| b.is_ascii_hexdigit());
        let short = !asked.commit.is_empty() && asked.commit.len() < COMMIT_MIN;
        if !hex || short {
            let message = format!("at least {COMMIT_MIN} hex digits");
            return Err(status::invalid("commit", message));
        }
        let known = RUN_PHASES.map(convert::run_phase);
        Ok(RunFilter {
            team: optional_name("team", &asked.team)?,
            open: asked.open,
            pipeline: text("pipeline", &asked.pipeline)?,
            repository: text("repository", &asked.repository)?,
            branch: text("branch", &asked.branch)?,
            commit: text("commit", &asked.commit.to_ascii_lowercase())?,
            phases: phases(&asked.phases, &known)?,
            since: time(asked.since_ms),
            until: time(asked.until_ms),
        })
    }

    /// Whether a finished run can be meant at all.
    pub(super) fn may_have_ended(&self) -> bool {
        let ended = |phase: &RunPhase| matches!(phase, RunPhase::Ended(_));
        let wanted = |phase: &RunPhase| self.phases.contains(convert::run_phase(*phase));
        !self.open && (self.phases.is_empty() || RUN_PHASES.iter().filter(|p| ended(p)).any(wanted))
    }

    /// The most selective thing that is named.
    pub(super) fn by(&self) -> By {
        let rare = RUN_PHASES.iter().find(|phase| {
            let one = self.phases.len() == 1 && self.phases.contains(convert::run_phase(**phase));
            one && **phase != RunPhase::Ended(Ending::Succeeded)
        });
        if !self.commit.is_empty() {
            By::Commit(self.commit.clone())
        } else if let Some(RunPhase::Ended(ending)) = rare {
            By::Phase(format!("{ending:?}"))
        } else if !self.branch.is_empty() {
            By::Branch(self.branch.clone())
        } else if !self.pipeline.is_empty() {
            By::Pipeline(self.pipeline.clone())
        } else if !self.repository.is_empty() {
            By::Repository(self.repository.clone())
        } else if let Some(team) = &self.team {
            By::Team(team.to_string())
        } else {
            By::All
        }
    }

    pub(super) fn wants_run(&self, run: &Run) -> bool {
        let branch = match &run.origin {
            Origin::Git { branch, .. } => branch.as_str(),
            Origin::Upload { .. } => "",
        };
        let pipeline = run.pipeline.as_ref();
        self.wants(&Facts {
            team: &run.team,
            pipeline: pipeline.map_or("", |pipeline| pipeline.name.as_ref()),
            repository: run.repository.as_ref().map_or("", |name| name.as_str()),
            branch,
            commit: run.origin.commit().unwrap_or_default(),
            phase: run.phase,
            began: run.started_at,
        })
    }

    pub(super) fn wants_summary(&self, run: &RunSummary) -> bool {
        self.wants(&Facts {
            team: &run.team,
            pipeline: &run.pipeline,
            repository: &run.repository,
            branch: &run.branch,
            commit: &run.commit,
            phase: run.phase(),
            began: run.began,
        })
    }

    fn wants(&self, run: &Facts<'_>) -> bool {
        let same = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        self.team.as_ref().is_none_or(|team| team == run.team)
            && same(&self.pipeline, run.pipeline)
            && same(&self.repository, run.repository)
            && same(&self.branch, run.branch)
            && run.commit.starts_with(&self.commit)
            && (self.phases.is_empty() || self.phases.contains(convert::run_phase(run.phase)))
            && self.since.is_none_or(|since| run.began >= since)
            && self.until.is_none_or(|until| run.began < until)
    }
}

struct Facts<'a> {
    team: &'a TeamName,
    pipeline: &'a str,
    repository: &'a str,
    branch: &'a str,
    commit: &'a str,
    phase: RunPhase,
    began: Timestamp,
}

/// Which rollouts.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RolloutFilter {
    pub(super) team: Option<TeamName>,
    fleet: Option<FleetName>,
    phases: BTreeSet<String>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

impl RolloutFilter {
    pub(super) fn read(asked: &v1::ListRolloutsRequest) -> Result<RolloutFilter, Status> {
        let known = ROLLOUT_PHASES.map(convert::rollout_phase);
        Ok(RolloutFilter {
            team: optional_name("team", &asked.team)?,
            fleet: optional_name("fleet", &asked.fleet)?,
            phases: phases(&asked.phases, &known)?,
            since: time(asked.since_ms),
            until: time(asked.until_ms),
        })
    }

    pub(super) fn by(&self) -> By {
        if let Some(fleet) = &self.fleet {
            By::Fleet(fleet.to_string())
        } else if let Some(team) = &self.team {
            By::Team(team.to_string())
        } else {
            By::All
        }
    }

    pub(super) fn wants_rollout(&self, rollout: &Rollout) -> bool {
        self.wants(
            &rollout.team,
            &rollout.fleet,
            rollout.phase,
            rollout.began_at,
        )
    }

    pub(super) fn wants_summary(&self, rollout: &RolloutSummary) -> bool {
        self.wants(&rollout.team, &rollout.fleet, rollout.phase, rollout.began)
    }

    fn wants(
        &self,
        team: &TeamName,
        fleet: &FleetName,
        phase: RolloutPhase,
        began: Timestamp,
    ) -> bool {
        self.team.as_ref().is_none_or(|wanted| wanted == team)
            && self.fleet.as_ref().is_none_or(|wanted| wanted == fleet)
            && (self.phases.is_empty() || self.phases.contains(convert::rollout_phase(phase)))
            && self.since.is_none_or(|since| began >= since)
            && self.until.is_none_or(|until| began < until)
    }
}

fn time(ms: u64) -> Option<Timestamp> {
    (ms > 0).then(|| Timestamp::from_millis(ms))
}

/// A text to compare with.
pub(super) fn text(field: &str, text: &str) -> Result<String, Status> {
    if text.len() > TEXT_MAX {
        let message = format!("at most {TEXT_MAX} bytes");
        return Err(status::invalid(field, message));
    }
    Ok(text.to_owned())
}

fn phases(asked: &[String], known: &[&str]) -> Result<BTreeSet<String>, Status> {
    if let Some(wrong) = asked.iter().find(|phase| !known.contains(&phase.as_str())) {
        let message = format!("`{wrong}` is none of {}", known.join(", "));
        return Err(status::invalid("phases", message));
    }
    Ok(asked.iter().cloned().collect())
}
