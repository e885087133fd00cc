//! Submitting runs: one, a batch, or a stream of them.
//!
//! ```text
//! stream -> read what is there -> check each -> one flush -> the log
//!   ^ only while there is room                                  |
//!   '------------ answers in the order of completion <----------'
//! ```
//!
//! Who submits is known once per stream, the team is checked for each submission, here and again
//! in the ledger. A submission that is wrong is answered by itself and harms no other.

use std::collections::BTreeSet;

use futures_util::FutureExt as _;
use oast_model::digest::Digest;
use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Command, Ledger, Request, RetryProblem, RetryRun, SubmitRun};
use oast_model::names::{RepositoryName, TeamName};
use oast_model::pipeline::rules::Rule;
use oast_model::principal::Verb;
use oast_model::priority::Priority;
use oast_model::task::Origin;
use oast_proto::{fault, v1};
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::auth::{self, Caller};
use super::runs::{optional_name, other_answer, parse, request_id};
use super::{Answers, Api, Sender, convert, status};
use crate::farm::many::Writes;
use crate::farm::{WriteError, Written};

/// Pipeline file when none is named.
const PIPELINE_PATH: &str = "oast.yaml";
/// Most submissions in one message.
const SUBMISSIONS_MAX: usize = 1000;
/// Submissions of one stream that may be undecided.
const WINDOW: usize = 4096;
/// Bytes of them.
const WINDOW_BYTES: usize = 8 << 20;
/// Submissions after which what was read is proposed before more is read.
const READ_MAX: usize = 512;
/// Undecided submissions of one stream with what one look reads on top.
const UNDECIDED_MAX: usize = WINDOW + READ_MAX + SUBMISSIONS_MAX;
/// Most answers in one message.
const RESULTS_MAX: usize = 512;
/// Trees that a stream remembers as stored.
const TREES_MAX: usize = 1024;
/// Most inputs of a run.
const INPUTS_MAX: usize = 256;
/// Most bytes of a run's inputs, names and values: they stay in the state.
const INPUTS_BYTES: usize = 64 << 10;
/// Longest branch in bytes.
const BRANCH_MAX: usize = 255;
/// Longest commit id: SHA-256 in hex.
const COMMIT_MAX: usize = 64;

/// Trees that are known to be stored, so that a stream asks the disk once for each.
#[derive(Debug, Default)]
pub(super) struct Trees(BTreeSet<Digest>);

impl Trees {
    fn has(&mut self, api: &Api, tree: Digest) -> bool {
        if self.0.contains(&tree) {
            return true;
        }
        let has = api.artifacts.has(tree);
        if has {
            if self.0.len() >= TREES_MAX {
                self.0.clear();
            }
            self.0.insert(tree);
        }
        has
    }
}

/// Whose answer it is: place in the request and request id.
type Tag = (usize, String);

impl Api {
    /// One submission.
    pub(super) async fn submit_one(
        &self,
        caller: &Caller,
        asked: v1::SubmitRunRequest,
    ) -> Result<v1::Run, Status> {
        let id = request_id(&asked.request_id)?;
        let mut trees = Trees::default();
        let submit = self.checked(caller, asked, &mut trees, false).await?;
        self.begun(caller, id, Command::SubmitRun(submit)).await
    }

    /// A new run with what an ended one had. The history is this member's, so the command carries
    /// what is reused.
    pub(super) async fn retry(
        &self,
        caller: &Caller,
        asked: v1::RetryRunRequest,
    ) -> Result<v1::Run, Status> {
        let id = request_id(&asked.request_id)?;
        let run: RunId = parse("run", &asked.run)?;
        let view = self.farm.read().await?;
        let record = self.find_run(&view, run)?;
        let record = record.filter(|record| caller.sees(&record.run.team));
        let record = record.ok_or_else(|| status::not_found("run", run))?;
        caller.may(Verb::Run, Some(&record.run.team))?;
        let from = Some(asked.from_step.as_str()).filter(|from| !from.is_empty());
        let retry = RetryRun::of(&record, from).map_err(|problem| match problem {
            RetryProblem::NoSteps { .. } | RetryProblem::NoSuchStep { .. } => {
                status::invalid("from_step", problem.to_string())
            }
            RetryProblem::Open { .. } | RetryProblem::Published { .. } => {
                status::error(Code::FailedPrecondition, "WRONG_STATE", problem.to_string())
            }
        })?;
        let command = Command::RetryRun(Box::new(retry));
        self.begun(caller, id, command).await
    }

    /// Writes a command that begins a run, and shows it.
    async fn begun(
        &self,
        caller: &Caller,
        id: Option<String>,
        command: Command,
    ) -> Result<v1::Run, Status> {
        let written = self.write(caller, id, command).await?;
        let Answer::Run(run) = written.answer else {
            return Err(other_answer());
        };
        let view = self.farm.see(written.seq).await?;
        let record = self.find_run(&view, run)?;
        let record = record.ok_or_else(|| status::not_found("run", run))?;
        // Why its tasks wait is not asked: that looks at every worker, and the run has only begun.
        Ok(convert::run(&record, None))
    }

    /// A batch: every result in the place of its submission.
    pub(super) async fn submit_batch(
        &self,
        caller: &Caller,
        submissions: Vec<v1::SubmitRunRequest>,
    ) -> Result<Vec<v1::Submitted>, Status> {
        bounded(submissions.len())?;
        let mut results = vec![v1::Submitted::default(); submissions.len()];
        let mut desk = Desk::new(self, caller, submissions.len().max(1));
        for (place, result) in desk.take(submissions).await {
            results[place] = result;
        }
        desk.writes.flush();
        while !desk.writes.is_empty() {
            for ((place, id), outcome) in desk.writes.next().await {
                results[place] = submitted(id, outcome);
            }
        }
        Ok(results)
    }

    /// A stream.
    pub(super) fn submit_stream(
        &self,
        caller: Caller,
        messages: Streaming<v1::SubmitRunsRequest>,
    ) -> Answers<v1::SubmitRunsResponse> {
        let api = self.clone();
        self.stream("submit-runs", move |sender| async move {
            api.submissions(&caller, messages, &sender).await
        })
    }

    async fn submissions(
        &self,
        caller: &Caller,
        mut messages: Streaming<v1::SubmitRunsRequest>,
        sender: &Sender<v1::SubmitRunsResponse>,
    ) -> Result<(), Status> {
        let hash = auth::hash(caller.token.expose());
        let mut desk = Desk::new(self, caller, UNDECIDED_MAX);
        let mut open = true;
        while open || !desk.writes.is_empty() {
            let mut results = Vec::new();
            let room = desk.writes.len() < WINDOW
                && desk.writes.bytes() < WINDOW_BYTES
                && !desk.writes.holds();
            tokio::select! {
                // Answers first: they make room, and there is an end to them.
                biased;
                done = desk.writes.next(), if !desk.writes.is_empty() => {
                    results.extend(done.into_iter().map(|((_, id), outcome)| submitted(id, outcome)));
                }
                message = messages.message(), if open && room => {
                    let Some(message) = message? else {
                        open = false;
                        continue;
                    };
                    bounded(message.submissions.len())?;
                    let mut batch = message.submissions;
                    // What has come already shares the log entry.
                    while open && batch.len() < READ_MAX {
                        match messages.message().now_or_never() {
                            Some(message) => match message? {
                                Some(message) => {
                                    bounded(message.submissions.len())?;
                                    batch.extend(message.submissions);
                                }
                                None => open = false,
                            },
                            None => break,
                        }
                    }
                    if self.farm.view().token(&hash).is_none() {
                        let message = "this token was revoked while the stream was open";
                        return Err(status::unauthenticated(message));
                    }
                    results.extend(desk.take(batch).await.into_iter().map(|(_, result)| result));
                    desk.writes.flush();
                }
            }
            while !results.is_empty() {
                let rest = results.split_off(results.len().min(RESULTS_MAX));
                let message = v1::SubmitRunsResponse { results };
                if sender.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
                results = rest;
            }
        }
        Ok(())
    }

    /// What the ledger is asked, or what is wrong. The state here decides unless it says no or
    /// may be behind in something that matters.
    async fn checked(
        &self,
        caller: &Caller,
        asked: v1::SubmitRunRequest,
        trees: &mut Trees,
        fresh: bool,
    ) -> Result<SubmitRun, Status> {
        let moves = asked.tree.is_empty() && !asked.repository.is_empty();
        if fresh || !moves {
            let found = self.submission(&self.farm.view(), caller, &asked, trees);
            match found {
                Err(status) if !fresh && status.code() == Code::NotFound => {}
                found => return found,
            }
        }
        let view = self.farm.read().await?;
        self.submission(&view, caller, &asked, trees)
    }

    fn submission(
        &self,
        view: &Ledger,
        caller: &Caller,
        asked: &v1::SubmitRunRequest,
        trees: &mut Trees,
    ) -> Result<SubmitRun, Status> {
        let path = match asked.path.as_str() {
            "" => PIPELINE_PATH.to_owned(),
            path => {
                Rule::Source
                    .judge(path)
                    .map_err(|why| status::invalid("path", why))?;
                path.to_owned()
            }
        };
        let repository = optional_name::<RepositoryName>("repository", &asked.repository)?;
        let team = optional_name::<TeamName>("team", &asked.team)?;
        let record = match &repository {
            None => None,
            Some(name) => {
                let record = view.repositories().get(name);
                let record = record.filter(|record| caller.sees(&record.spec.team));
                Some(record.ok_or_else(|| status::not_found("repository", name))?)
            }
        };
        let own = caller.principal.team.clone();
        let team = team
            .or_else(|| record.map(|record| record.spec.team.clone()))
            .or(own)
            .ok_or_else(|| status::invalid("team", "say for which team this runs"))?;
        caller.may(Verb::Run, Some(&team))?;
        if !view.teams().contains(&team) {
            return Err(status::not_found("team", team));
        }
        if let Some(record) = record.filter(|record| record.spec.team != team) {
            let message = format!(
                "repository `{}` belongs to team `{}`",
                record.spec.name, record.spec.team
            );
            return Err(status::invalid("team", message));
        }
        small_enough(asked)?;
        let origin = match (asked.tree.as_str(), record) {
            ("", Some(record)) => {
                let name = record.spec.name.clone();
                let seen = view.refs().get(&(name.clone(), asked.branch.clone()));
                let seen = seen.ok_or_else(|| never_seen(&name, &asked.branch))?;
                Origin::Git {
                    url: record.spec.url.clone(),
                    branch: asked.branch.clone(),
                    commit: seen.commit.clone(),
                    before: None,
                    credentials: record.spec.credentials.clone(),
                }
            }
            ("", None) => {
                let message = "say what to run: a repository and branch, or an uploaded tree";
                return Err(status::invalid("repository", message));
            }
            (tree, _) => {
                let tree: Digest = parse("tree", tree)?;
                if !trees.has(self, tree) {
                    return Err(status::not_found("uploaded tree", tree));
                }
                Origin::Upload {
                    tree,
                    commit: Some(asked.commit.clone()).filter(|commit| !commit.is_empty()),
                    dirty: asked.dirty,
                }
            }
        };
        let priority = optional_name::<Priority>("priority", &asked.priority)?;
        let inputs = asked.inputs.iter();
        Ok(SubmitRun {
            team,
            repository,
            origin,
            path,
            cause: format!("asked by {}", caller.principal.name),
            inputs: inputs.map(|(k, v)| (k.clone(), v.clone())).collect(),
            priority,
        })
    }
}

/// Checks submissions of one caller and keeps them under way.
struct Desk<'a> {
    api: &'a Api,
    caller: &'a Caller,
    trees: Trees,
    writes: Writes<Tag>,
}

impl<'a> Desk<'a> {
    fn new(api: &'a Api, caller: &'a Caller, most: usize) -> Desk<'a> {
        Desk {
            api,
            caller,
            trees: Trees::default(),
            writes: Writes::new(api.farm.clone(), most),
        }
    }

    /// Takes what is right along; what is wrong is answered at once, by place.
    async fn take(&mut self, batch: Vec<v1::SubmitRunRequest>) -> Vec<(usize, v1::Submitted)> {
        let moves = |asked: &v1::SubmitRunRequest| asked.tree.is_empty();
        // One question to the leader for all branches of the batch.
        let fresh = match batch.iter().any(moves) {
            true => self.api.farm.read().await.map(drop),
            false => Ok(()),
        };
        let mut wrong = Vec::new();
        for (place, asked) in batch.into_iter().enumerate() {
            let id = asked.request_id.clone();
            let checked = match fresh {
                Err(err) if moves(&asked) => Err(err.into()),
                _ => self.one(asked).await,
            };
            match checked {
                Ok(request) => self.writes.push((place, id), &request),
                Err(status) => wrong.push((place, refused(id, &status))),
            }
        }
        wrong
    }

    /// The state here is new enough for this submission, or is asked again by itself.
    async fn one(&mut self, asked: v1::SubmitRunRequest) -> Result<Request, Status> {
        let fresh = asked.tree.is_empty();
        let id = request_id(&asked.request_id)?;
        if id.is_none() {
            let message = "each submission of many needs an id of its own";
            return Err(status::invalid("request_id", message));
        }
        let submit = self
            .api
            .checked(self.caller, asked, &mut self.trees, fresh)
            .await?;
        Ok(Request {
            principal: self.caller.principal.clone(),
            request_id: id,
            command: Command::SubmitRun(submit),
        })
    }
}

fn submitted(request_id: String, outcome: Result<Written, WriteError>) -> v1::Submitted {
    match outcome {
        Ok(Written {
            seq,
            answer: Answer::Run(run),
        }) => v1::Submitted {
            request_id,
            run: run.to_string(),
            seq: seq.as_u64(),
            error: None,
        },
        Ok(_) => refused(request_id, &other_answer()),
        Err(err) => refused(request_id, &err.into()),
    }
}

fn refused(request_id: String, status: &Status) -> v1::Submitted {
    let field = status.get_details_bad_request().and_then(|bad| {
        let first = bad.field_violations.into_iter().next()?;
        Some(first.field)
    });
    let after = fault::retry_after(status).unwrap_or_default();
    v1::Submitted {
        request_id,
        error: Some(v1::SubmitError {
            code: status.code().into(),
            reason: fault::reason(status).unwrap_or_default(),
            message: status.message().to_owned(),
            field: field.unwrap_or_default(),
            retry_after_ms: u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
        }),
        ..v1::Submitted::default()
    }
}

fn bounded(count: usize) -> Result<(), Status> {
    if count > SUBMISSIONS_MAX {
        let message = format!("at most {SUBMISSIONS_MAX} at once, this has {count}");
        return Err(status::invalid("submissions", message));
    }
    Ok(())
}

fn small_enough(asked: &v1::SubmitRunRequest) -> Result<(), Status> {
    if asked.branch.len() > BRANCH_MAX || asked.branch.chars().any(char::is_control) {
        let message = format!("a branch has at most {BRANCH_MAX} bytes, all of them printable");
        return Err(status::invalid("branch", message));
    }
    let hex = asked.commit.bytes().all(|b| b.is_ascii_hexdigit());
    if asked.commit.len() > COMMIT_MAX || !hex {
        let message = format!("a commit has at most {COMMIT_MAX} hex digits");
        return Err(status::invalid("commit", message));
    }
    let bytes: usize = asked.inputs.iter().map(|(k, v)| k.len() + v.len()).sum();
    if asked.inputs.len() > INPUTS_MAX || bytes > INPUTS_BYTES {
        let message = format!(
            "at most {INPUTS_MAX} inputs with {INPUTS_BYTES} bytes together, these are {} with {bytes}",
            asked.inputs.len()
        );
        return Err(status::invalid("inputs", message));
    }
    Ok(())
}

fn never_seen(repository: &RepositoryName, branch: &str) -> Status {
    let message = format!(
        "branch `{branch}` of repository `{repository}` was never seen: push to it or wait for the next look"
    );
    status::error(Code::FailedPrecondition, "BRANCH_NOT_SEEN", message)
}
