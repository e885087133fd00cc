//! From a commit (or an upload) to a tree in the artifact store and a checked pipeline.
//!
//! Later tasks of the run need neither Git nor its credentials. What is wrong with the file is
//! the author's and *fails* the run with every diagnostic; a remote that does not answer is ours
//! and is tried again.

pub mod git;
mod pipeline;
mod policy;

pub(crate) use pipeline::normal as normal_path;

use std::sync::Arc;

use camino::Utf8PathBuf;
use oast_artifacts::{ArtifactStore, Digest, Tree};
use oast_daemon::clock::SharedClock;
use oast_daemon::task::Tasks;
use oast_model::names::TeamName;
use oast_model::pipeline::policy::inject;
use oast_model::task::{Origin, SourceOutput};
use std::collections::BTreeMap;

use crate::runner::{Attempt, Halt};
use git::{Commit, Git};

/// Does source tasks.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Fetches commits.
    pub git: Arc<Git>,
    /// Where trees go.
    pub store: ArtifactStore,
    /// For blocking work.
    pub tasks: Tasks,
    /// For deadlines.
    pub clock: SharedClock,
    /// The operator's policies.
    pub policy_file: Option<Utf8PathBuf>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where the files are.
    pub origin: Origin,
    /// The pipeline file in them.
    pub path: String,
    /// The team that the pipeline must name.
    pub team: TeamName,
    /// Whether the triggers must want this push.
    pub check_triggers: bool,
    /// Values given to the run.
    pub inputs: BTreeMap<String, String>,
}

impl Sources {
    /// Does one source task.
    pub async fn run(&self, attempt: &Attempt, request: Request) -> Result<SourceOutput, Halt> {
        let (tree, commit) = match &request.origin {
            Origin::Git { .. } => {
                let commit = self.git.commit(attempt, &request.origin).await?;
                (commit.tree, Some(commit))
            }
            Origin::Upload { tree, dirty, .. } => {
                let dirty = if *dirty {
                    " with changes in no commit"
                } else {
                    ""
                };
                attempt
                    .log
                    .engine(0, format!("uploaded tree {}{dirty}", tree.short()));
                (*tree, None)
            }
        };
        let store = self.store.clone();
        let list = self
            .tasks
            .blocking("read-tree", move || store.tree(tree))
            .await?
            .map_err(|err| Halt::error(&err))?;
        let pipeline = self.pipeline(attempt, &request, &list, commit.as_ref())?;
        attempt.log.engine(
            0,
            format!(
                "tree {}: {} files, {} bytes; pipeline {} of team {}",
                tree.short(),
                list.entries().len(),
                list.total_bytes(),
                pipeline.name,
                pipeline.team
            ),
        );
        Ok(output(tree, pipeline, commit))
    }

    fn pipeline(
        &self,
        attempt: &Attempt,
        request: &Request,
        tree: &Tree,
        commit: Option<&Commit>,
    ) -> Result<oast_model::pipeline::Pipeline, Halt> {
        let text = pipeline::read(&self.store, tree, &request.path)?;
        let checked = pipeline::check(&request.path, &text, &request.team, |warning| {
            attempt.log.engine(0, warning);
        })?;
        if request.check_triggers
            && let Origin::Git { branch, .. } = &request.origin
        {
            let changed = commit.and_then(|commit| commit.changed.as_deref());
            pipeline::wanted(&checked, branch, changed)?;
        }
        pipeline::present(&checked, tree, &request.path)?;
        let mut filled = pipeline::fill(&checked, &request.inputs, &request.path)?;
        if let Some(file) = &self.policy_file {
            let policies = policy::read(file)?;
            inject(&mut filled, &policies);
            let names = policies
                .iter()
                .filter(|policy| policy.applies_to(&filled.team));
            for policy in names {
                let text = format!("policy {} adds its steps", policy.name);
                attempt.log.engine(0, text);
            }
        }
        Ok(filled)
    }
}

fn output(
    tree: Digest,
    pipeline: oast_model::pipeline::Pipeline,
    commit: Option<Commit>,
) -> SourceOutput {
    let (subject, author) = commit.map_or((None, None), |commit| {
        (Some(commit.subject), Some(commit.author))
    });
    SourceOutput {
        tree,
        pipeline,
        subject,
        author,
    }
}
