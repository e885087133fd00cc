//! Steps that an operator puts into every pipeline of the farm, or of some teams.
//!
//! ```text
//! base, `before` of each policy, the pipeline's steps, `after` of each policy
//! ```
//!
//! What a pipeline sets for its own steps (`env`, `workdir`, `user`) does not reach a policy's,
//! and a policy sets nothing for the pipeline's: a step of a policy has `policy` set, and the
//! worker gives it a fresh state. A policy has no repository and no secrets, so its steps name none.

use serde::{Deserialize, Serialize};

use super::definition::{Pipeline, Step};
use crate::names::TeamName;

/// Steps for many pipelines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What people see at its steps.
    pub name: String,
    /// Whose pipelines get them; empty means everybody's.
    #[serde(default)]
    pub teams: Vec<TeamName>,
    /// Steps between the base and the pipeline's own.
    #[serde(default)]
    pub before: Vec<Step>,
    /// Steps behind the pipeline's own.
    #[serde(default)]
    pub after: Vec<Step>,
}

impl Policy {
    /// Whether pipelines of this team get its steps.
    pub fn applies_to(&self, team: &TeamName) -> bool {
        self.teams.is_empty() || self.teams.contains(team)
    }
}

/// Puts the policies' steps around the pipeline's own, in the order of the policies.
pub fn inject(pipeline: &mut Pipeline, policies: &[Policy]) {
    let mine: Vec<&Policy> = policies
        .iter()
        .filter(|policy| policy.applies_to(&pipeline.team))
        .collect();
    let before = mine.iter().flat_map(|policy| policy.before.iter().cloned());
    let own = std::mem::take(&mut pipeline.bake.steps);
    let after = mine.iter().flat_map(|policy| policy.after.iter().cloned());
    pipeline.bake.steps = before.chain(own).chain(after).collect();
}
