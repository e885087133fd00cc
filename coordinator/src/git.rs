//! Git at the farm's door: repositories that the farm serves itself, and remotes that it watches.
//!
//! A repository resource whose url is `farm:NAME` is served by every member under
//! `/git/NAME.git` from a bare repository in a folder that the members share. A push is seen by
//! looking at the branches afterwards, which is also what the poller does: there is one way from
//! a branch to a run, and a push that was received by a member that died is seen by the next look.

pub mod host;
pub mod poll;
mod process;

use std::collections::BTreeMap;

use oast_daemon::random;
use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Command, Request};
use oast_model::names::RepositoryName;
use oast_model::pipeline::rules::glob_matches;
use oast_model::principal::Principal;
use oast_model::resource::Repository;

use crate::farm::{Farm, WriteError};

/// How the url of a repository that the farm serves begins.
pub const HOSTED: &str = "farm:";
/// Most branches that one look reports.
pub const BRANCHES_MAX: usize = 1_000;

/// The name under which the farm serves this repository, if it does.
pub fn hosted_name(repository: &Repository) -> Option<&str> {
    repository
        .url
        .strip_prefix(HOSTED)
        .filter(|name| oast_model::names::check(name).is_ok())
}

/// Tells the ledger what a repository's branches show. Returns the runs that began.
///
/// # Errors
/// [`WriteError`]; what was not told is seen at the next look.
pub async fn observe(
    farm: &Farm,
    name: &RepositoryName,
    repository: &Repository,
    refs: BTreeMap<String, String>,
) -> Result<Vec<RunId>, WriteError> {
    let watched = |branch: &str| {
        repository.branches.is_empty()
            || repository
                .branches
                .iter()
                .any(|glob| glob_matches(glob, branch))
    };
    let refs: BTreeMap<String, String> = refs
        .into_iter()
        .filter(|(branch, _)| watched(branch))
        .take(BRANCHES_MAX)
        .collect();
    let mut runs = Vec::new();
    loop {
        let view = farm.view();
        let moved = refs.iter().any(|(branch, commit)| {
            let known = view.refs().get(&(name.clone(), branch.clone()));
            known.is_none_or(|known| known.commit != *commit)
        });
        if !moved {
            return Ok(runs);
        }
        let request = Request {
            principal: Principal::farm(),
            request_id: Some(random::request_id()),
            command: Command::ObserveRefs {
                repository: name.clone(),
                refs: refs.clone(),
            },
        };
        match farm.write(&request).await?.answer {
            Answer::Run(run) => runs.push(run),
            _ => return Ok(runs),
        }
    }
}
