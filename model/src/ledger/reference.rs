//! What makes runs by itself: branches that move and calendars that come due.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Answer, Context, Effect, Ledger, Rejected, SubmitRun, run};
use crate::ids::RunId;
use crate::names::{PipelineName, RepositoryName, TeamName};
use crate::task::Origin;
use crate::time::Timestamp;

/// What a branch showed when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefState {
    /// Full commit id.
    pub commit: String,
    /// When it was first seen there.
    pub seen_at: Timestamp,
    /// The run it started.
    pub run: Option<RunId>,
}

/// A pipeline with a calendar, as its repository's newest run defined it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronState {
    /// Five-field expressions with their time zones.
    pub crons: Vec<(String, String)>,
    /// What to run.
    pub submit: SubmitRun,
    /// The last time that was fired; at first when it was defined.
    pub fired: Timestamp,
}

/// Starts a run for the first branch that shows a new commit.
pub(super) fn observe(
    ledger: &mut Ledger,
    cx: &Context,
    name: &RepositoryName,
    refs: BTreeMap<String, String>,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let repository = ledger
        .repositories
        .get(name)
        .ok_or_else(|| Rejected::NotFound {
            kind: "repository".into(),
            name: name.to_string(),
        })?
        .spec
        .clone();
    // One run per command, because ids are sequences: the caller asks again until nothing moves.
    let moved = refs.into_iter().find_map(|(branch, commit)| {
        let before = ledger.refs.get(&(name.clone(), branch.clone()));
        let before = before.map(|state| state.commit.clone());
        (before.as_ref() != Some(&commit)).then_some((branch, commit, before))
    });
    let Some((branch, commit, before)) = moved else {
        return Ok(Answer::Unchanged);
    };
    let submit = SubmitRun {
        team: repository.team,
        repository: Some(name.clone()),
        origin: Origin::Git {
            url: repository.url,
            branch: branch.clone(),
            commit: commit.clone(),
            before,
            credentials: repository.credentials,
        },
        path: repository.path,
        cause: format!("push to {branch}"),
        inputs: BTreeMap::new(),
        priority: None,
    };
    let run = run::start(ledger, cx, "farm", submit, effects);
    let state = RefState {
        commit,
        seen_at: cx.now,
        run: Some(run),
    };
    ledger.refs.insert((name.clone(), branch), state);
    Ok(Answer::Run(run))
}

/// Starts the run that a calendar wants.
pub(super) fn fire(
    ledger: &mut Ledger,
    cx: &Context,
    key: (TeamName, PipelineName),
    due: Timestamp,
    effects: &mut Vec<Effect>,
) -> Result<Answer, Rejected> {
    let not_found = || Rejected::NotFound {
        kind: "calendar".into(),
        name: key.1.to_string(),
    };
    let cron = ledger.crons.get_mut(&key).ok_or_else(not_found)?;
    if due <= cron.fired {
        return Ok(Answer::Unchanged);
    }
    cron.fired = due;
    let mut submit = cron.submit.clone();
    submit.cause = format!("calendar, due {due}");
    let run = run::start(ledger, cx, "farm", submit, effects);
    Ok(Answer::Run(run))
}
