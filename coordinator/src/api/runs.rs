//! Runs: start, look, watch, cancel.

use std::collections::BTreeSet;
use std::time::Duration;

use oast_model::digest::Digest;
use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Command, Request, RunRecord, SubmitRun};
use oast_model::names::{RepositoryName, TeamName};
use oast_model::pipeline::rules::Rule;
use oast_model::principal::{Principal, Verb};
use oast_model::task::{Origin, TaskPhase};
use oast_proto::v1;
use oast_proto::v1::runs_client::RunsClient;
use oast_proto::v1::runs_server::Runs;
use tonic::{Code, Response, Status, Streaming};

use super::auth::{Caller, caller};
use super::convert::Scheduler;
use super::forward::pass_on;
use super::{Answers, Api, convert, status};
use crate::farm::{FarmView, Written};

/// Runs in one answer unless asked for fewer or more.
const PAGE: usize = 50;
/// Most runs in one answer.
const PAGE_MAX: usize = 500;
/// How often the reason for waiting is looked at: it changes without the run.
const WAITING_LOOK: Duration = Duration::from_secs(1);
/// Pipeline file when none is named.
const PIPELINE_PATH: &str = "oast.yaml";
/// Longest reason for a cancel in bytes.
const REASON_MAX: usize = 1024;
/// Longest request id in bytes.
const REQUEST_ID_MAX: usize = 128;

#[tonic::async_trait]
impl Runs for Api {
    async fn submit_run(
        &self,
        request: tonic::Request<v1::SubmitRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let submit = self.submission(&caller, asked).await?;
        let written = self
            .write(&caller.principal, id, Command::SubmitRun(submit))
            .await?;
        let Answer::Run(run) = written.answer else {
            return Err(other_answer());
        };
        self.run_now(run, &caller).await.map(Response::new)
    }

    async fn get_run(
        &self,
        request: tonic::Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        let id = parse("run", &request.get_ref().run)?;
        self.run_now(id, &caller).await.map(Response::new)
    }

    async fn list_runs(
        &self,
        request: tonic::Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let team = optional_name::<TeamName>("team", &asked.team)?;
        if let Some(team) = &team {
            caller.may(Verb::View, Some(team))?;
        }
        let filter = format!("{}/{}", asked.team, asked.open);
        let before = match asked.page_token.as_str() {
            "" => None,
            token => match token.split_once('@') {
                Some((last, of)) if of == filter => Some(parse::<RunId>("page_token", last)?),
                _ => return Err(status::invalid("page_token", "it belongs to another list")),
            },
        };
        let size = match asked.page_size as usize {
            0 => PAGE,
            size => size.min(PAGE_MAX),
        };
        let wanted = |of: &TeamName| team.as_ref().is_none_or(|team| team == of) && caller.sees(of);
        let view = self.farm.read().await?;
        // One more than shown tells whether there is a next page.
        let mut ids: BTreeSet<RunId> = view
            .runs()
            .iter()
            .rev()
            .filter(|(id, run)| before.is_none_or(|before| **id < before) && wanted(&run.team))
            .map(|(id, _)| *id)
            .take(size + 1)
            .collect();
        if !asked.open {
            ids.extend(self.archive.runs_before(before, size + 1, wanted)?);
        }
        let mut runs = Vec::new();
        for id in ids.iter().rev().take(size) {
            if let Some(mut record) = self.find_run(&view, *id)? {
                record.tasks.clear();
                runs.push(convert::run(&record, None));
            }
        }
        let last = ids.iter().rev().nth(size.saturating_sub(1));
        let next_page_token = match last {
            Some(last) if ids.len() > size => format!("{last}@{filter}"),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListRunsResponse {
            runs,
            next_page_token,
        }))
    }

    async fn cancel_run(
        &self,
        request: tonic::Request<v1::CancelRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let run = parse("run", &asked.run)?;
        let reason = reason(asked.reason)?;
        // Whether it exists is told only to those who may see it.
        self.run_record(run, &caller).await?;
        let command = Command::CancelRun { run, reason };
        self.write(&caller.principal, id, command).await?;
        self.run_now(run, &caller).await.map(Response::new)
    }

    type WatchRunStream = Answers<v1::Run>;

    async fn watch_run(
        &self,
        request: tonic::Request<v1::WatchRunRequest>,
    ) -> Result<Response<Answers<v1::Run>>, Status> {
        let caller = caller(&request)?;
        let v1::WatchRunRequest { run, after_seq } = request.into_inner();
        let id: RunId = parse("run", &run)?;
        // An error of the first look is the call's own.
        self.run_record(id, &caller).await?;
        let api = self.clone();
        Ok(Response::new(self.stream(
            "watch-run",
            move |sender| async move {
                let mut changes = api.farm.changes();
                let mut sent = after_seq;
                // What a resumed watch has seen already is not said again.
                let mut waiting = None;
                loop {
                    changes.mark_unchanged();
                    let (found, queued) = api.run_seen(id, &caller).await?;
                    let why = match queued {
                        true => reasons(&found),
                        false => String::new(),
                    };
                    let ended = found.ended;
                    let other = waiting
                        .replace(why.clone())
                        .is_some_and(|before| before != why);
                    if found.seq > sent || (found.seq == sent && other) {
                        sent = found.seq;
                        if sender.send(Ok(found)).await.is_err() {
                            return Ok(());
                        }
                    }
                    if ended {
                        return Ok(());
                    }
                    tokio::select! {
                        changed = changes.changed() => if changed.is_err() { return Ok(()) },
                        () = api.farm.clock().sleep(WAITING_LOOK), if queued => {}
                    }
                }
            },
        )))
    }

    type TailLogsStream = Answers<v1::LogLines>;

    async fn tail_logs(
        &self,
        request: tonic::Request<v1::TailLogsRequest>,
    ) -> Result<Response<Answers<v1::LogLines>>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id: RunId = parse("run", &asked.run)?;
        self.run_record(id, &caller).await?;
        let tail = self.tail(id, asked)?;
        Ok(Response::new(tail))
    }

    async fn upload_tree(
        &self,
        request: tonic::Request<Streaming<v1::UploadTreeRequest>>,
    ) -> Result<Response<v1::UploadTreeResponse>, Status> {
        let caller = caller(&request)?;
        let team = caller.principal.team.clone();
        caller.may(Verb::Run, team.as_ref())?;
        self.store_upload(request.into_inner())
            .await
            .map(Response::new)
    }
}

impl Api {
    /// Writes for somebody.
    pub(super) async fn write(
        &self,
        principal: &Principal,
        request_id: Option<String>,
        command: Command,
    ) -> Result<Written, Status> {
        let request = Request {
            principal: principal.clone(),
            request_id,
            command,
        };
        Ok(self.farm.write(&request).await?)
    }

    async fn submission(
        &self,
        caller: &Caller,
        asked: v1::SubmitRunRequest,
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
        let view = self.farm.read().await?;
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
        if let Some(record) = record.filter(|record| record.spec.team != team) {
            let message = format!(
                "repository `{}` belongs to team `{}`",
                record.spec.name, record.spec.team
            );
            return Err(status::invalid("team", message));
        }
        let origin = match (asked.tree.as_str(), record) {
            ("", Some(record)) => {
                let name = record.spec.name.clone();
                let seen = view.refs().get(&(name.clone(), asked.branch.clone()));
                let seen = seen.ok_or_else(|| never_seen(&name, &asked.branch))?;
                Origin::Git {
                    url: record.spec.url.clone(),
                    branch: asked.branch,
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
                if !self.artifacts.has(tree) {
                    return Err(status::not_found("uploaded tree", tree));
                }
                Origin::Upload {
                    tree,
                    commit: Some(asked.commit).filter(|commit| !commit.is_empty()),
                    dirty: asked.dirty,
                }
            }
        };
        Ok(SubmitRun {
            team,
            repository,
            origin,
            path,
            cause: format!("asked by {}", caller.principal.name),
            inputs: asked.inputs.into_iter().collect(),
            priority: None,
        })
    }

    /// An open or ended run, as of the view or later.
    pub(crate) fn find_run(&self, view: &FarmView, id: RunId) -> Result<Option<RunRecord>, Status> {
        match view.run_record(id) {
            Some(record) => Ok(Some(record)),
            None => Ok(self.archive.run(id)?),
        }
    }

    /// The newest of a run that the caller may see.
    async fn run_record(
        &self,
        id: RunId,
        caller: &Caller,
    ) -> Result<(FarmView, RunRecord), Status> {
        let view = self.farm.read().await?;
        let record = self.find_run(&view, id)?;
        match record.filter(|record| caller.sees(&record.run.team)) {
            Some(record) => Ok((view, record)),
            None => Err(status::not_found("run", id)),
        }
    }

    /// The run for an answer, with why its tasks wait.
    async fn run_now(&self, id: RunId, caller: &Caller) -> Result<v1::Run, Status> {
        let (view, record) = self.run_record(id, caller).await?;
        self.explained(&view, &record, caller).await
    }

    /// The run in this member's newest view, and whether a task of it waits.
    async fn run_seen(&self, id: RunId, caller: &Caller) -> Result<(v1::Run, bool), Status> {
        let view = self.farm.view();
        let record = self.find_run(&view, id)?;
        let record = record.ok_or_else(|| status::not_found("run", id))?;
        let queued = waits(&record);
        Ok((self.explained(&view, &record, caller).await?, queued))
    }

    /// Why a task waits is known to the leader alone. Without one the run is shown all the same.
    async fn explained(
        &self,
        view: &FarmView,
        record: &RunRecord,
        caller: &Caller,
    ) -> Result<v1::Run, Status> {
        if !waits(record) {
            return Ok(convert::run(record, None));
        }
        match self.elsewhere(caller) {
            Ok(None) => {
                let sessions = self.sight.sessions();
                let scheduler = Scheduler {
                    ledger: view,
                    sessions: &sessions,
                    rules: self.sight.rules(),
                    now: self.farm.clock().wall(),
                };
                Ok(convert::run(record, Some(&scheduler)))
            }
            Ok(Some(leader)) => {
                let asked = v1::GetRunRequest {
                    run: record.run.id.to_string(),
                };
                let mut leader = RunsClient::new(leader);
                match leader.get_run(pass_on(asked, caller)?).await {
                    Ok(answer) => Ok(answer.into_inner()),
                    Err(_) => Ok(convert::run(record, None)),
                }
            }
            Err(_) => Ok(convert::run(record, None)),
        }
    }
}

fn waits(record: &RunRecord) -> bool {
    let ready = |phase: &TaskPhase| matches!(phase, TaskPhase::Ready { .. });
    record.tasks.iter().any(|task| ready(&task.phase))
}

/// Only text that stays the same while nothing happens.
fn reasons(run: &v1::Run) -> String {
    let waiting = run.tasks.iter().map(|task| task.waiting.as_str());
    waiting.collect::<Vec<_>>().join("\n")
}

fn never_seen(repository: &RepositoryName, branch: &str) -> Status {
    let message = format!(
        "branch `{branch}` of repository `{repository}` was never seen: push to it or wait for the next look"
    );
    status::error(Code::FailedPrecondition, "BRANCH_NOT_SEEN", message)
}

/// The ledger answered something that this command never answers.
pub(super) fn other_answer() -> Status {
    let message = "this request id was used for something else before: choose another";
    status::error(Code::FailedPrecondition, "REQUEST_ID_REUSED", message)
}

/// A field that must hold something.
pub(super) fn parse<T>(field: &str, text: &str) -> Result<T, Status>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|why: T::Err| status::invalid(field, why.to_string()))
}

/// A field that may be empty.
pub(super) fn optional_name<T>(field: &str, text: &str) -> Result<Option<T>, Status>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    match text {
        "" => Ok(None),
        text => parse(field, text).map(Some),
    }
}

/// The request id, if the caller sent one.
pub(super) fn request_id(text: &str) -> Result<Option<String>, Status> {
    if text.len() > REQUEST_ID_MAX || text.chars().any(char::is_control) {
        let message = format!("a request id has at most {REQUEST_ID_MAX} plain characters");
        return Err(status::invalid("request_id", message));
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

/// A person's reason, bounded because it stays in the state.
pub(super) fn reason(text: String) -> Result<String, Status> {
    if text.len() > REASON_MAX {
        let message = format!("a reason has at most {REASON_MAX} bytes");
        return Err(status::invalid("reason", message));
    }
    Ok(text)
}
