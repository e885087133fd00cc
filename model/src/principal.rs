//! Who acts, and what they may do. One pure function decides, everywhere.

use serde::{Deserialize, Serialize};

use crate::names::TeamName;
pub use crate::resource::Role;

/// What kind of actor stands behind a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalKind {
    /// A person or a script with an access token.
    User,
    /// A worker's session.
    Worker,
    /// The leader itself: schedules, expires, reconciles.
    Farm,
}

/// Who acts. Stands on every command in the log, so the audit trail needs nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// Name of the token, the worker or `farm`.
    pub name: String,
    /// Person, worker or the farm.
    pub kind: PrincipalKind,
    /// What they are trusted with. Meaningless for workers and the farm.
    pub role: Role,
    /// The one team they act for; absent for the whole farm.
    pub team: Option<TeamName>,
}

impl Principal {
    /// The leader acting on its own.
    pub fn farm() -> Principal {
        Principal {
            name: "farm".into(),
            kind: PrincipalKind::Farm,
            role: Role::Admin,
            team: None,
        }
    }

    /// A worker's session.
    pub fn worker(name: &str) -> Principal {
        Principal {
            name: name.into(),
            kind: PrincipalKind::Worker,
            role: Role::Viewer,
            team: None,
        }
    }
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read runs, images, fleets, workers, logs.
    View,
    /// Start or cancel a run, upload a tree, push to a hosted repository.
    Run,
    /// Abort or roll back a rollout.
    Rollout,
    /// Create, change or delete resources, secrets, tokens.
    Manage,
    /// Report work done under a lease.
    Report,
    /// Decide as the leader: grant, expire, begin, conclude.
    Lead,
}

impl Verb {
    /// As a person reads it.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::View => "view",
            Verb::Run => "start or cancel runs",
            Verb::Rollout => "steer rollouts",
            Verb::Manage => "manage resources",
            Verb::Report => "report work",
            Verb::Lead => "lead",
        }
    }
}

/// A refusal, with the rule that refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("`{principal}` may not {verb}{place}: {rule}")]
pub struct Denied {
    /// Who asked.
    pub principal: String,
    /// For what.
    pub verb: String,
    /// Where, with a leading blank.
    pub place: String,
    /// What would be needed.
    pub rule: String,
}

/// Decides whether `principal` may do `verb` on what belongs to `team`
/// (`None`: on what belongs to the whole farm).
pub fn authorize(principal: &Principal, verb: Verb, team: Option<&TeamName>) -> Result<(), Denied> {
    let denied = |rule: String| {
        Err(Denied {
            principal: principal.name.clone(),
            verb: verb.as_str().into(),
            place: team.map_or_else(String::new, |team| format!(" in team `{team}`")),
            rule,
        })
    };
    let needed = match (principal.kind, verb) {
        (PrincipalKind::Farm, _) => return Ok(()),
        (PrincipalKind::Worker, Verb::Report | Verb::View) => return Ok(()),
        (PrincipalKind::Worker, _) => {
            return denied("a worker's token only reports work".into());
        }
        (PrincipalKind::User, Verb::Report) => {
            return denied("only a worker's token reports work".into());
        }
        (PrincipalKind::User, Verb::Lead) => return denied("only the leader decides this".into()),
        (PrincipalKind::User, Verb::View) => Role::Viewer,
        (PrincipalKind::User, Verb::Run | Verb::Rollout) => Role::Operator,
        (PrincipalKind::User, Verb::Manage) => Role::Admin,
    };
    if principal.role < needed {
        return denied(
            format!(
                "it needs the role {needed:?}, this token has {:?}",
                principal.role
            )
            .to_lowercase(),
        );
    }
    match (&principal.team, team) {
        (Some(own), Some(wanted)) if own == wanted => Ok(()),
        // What belongs to nobody in particular can be read by every team.
        (Some(_), None) if verb == Verb::View => Ok(()),
        (Some(own), _) => denied(format!("this token acts for team `{own}` only")),
        (None, _) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(role: Role, team: Option<&str>) -> Principal {
        Principal {
            name: "ann".into(),
            kind: PrincipalKind::User,
            role,
            team: team.map(|team| TeamName::new(team).expect("a name")),
        }
    }

    #[test]
    fn roles_grow_and_teams_bound_them() {
        let pay = TeamName::new("payments").expect("a name");
        let ads = TeamName::new("ads").expect("a name");
        assert!(authorize(&user(Role::Viewer, None), Verb::View, Some(&pay)).is_ok());
        assert!(authorize(&user(Role::Viewer, None), Verb::Run, Some(&pay)).is_err());
        assert!(
            authorize(
                &user(Role::Operator, Some("payments")),
                Verb::Run,
                Some(&pay)
            )
            .is_ok()
        );
        assert!(
            authorize(
                &user(Role::Operator, Some("payments")),
                Verb::Run,
                Some(&ads)
            )
            .is_err()
        );
        assert!(authorize(&user(Role::Operator, None), Verb::Manage, None).is_err());
        assert!(authorize(&user(Role::Admin, None), Verb::Manage, None).is_ok());
        assert!(authorize(&user(Role::Admin, None), Verb::Lead, None).is_err());
    }

    #[test]
    fn a_workers_token_reports_and_nothing_else() {
        let worker = Principal::worker("w1");
        assert!(authorize(&worker, Verb::Report, None).is_ok());
        assert!(authorize(&worker, Verb::Run, None).is_err());
        assert!(authorize(&user(Role::Admin, None), Verb::Report, None).is_err());
    }
}
