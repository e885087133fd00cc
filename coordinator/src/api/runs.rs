//! Runs: start, look, watch, cancel.

use std::collections::BTreeSet;
use std::time::Duration;

use oast_model::ids::{RunId, Seq};
use oast_model::ledger::{Command, Request, RunPhase, RunRecord};
use oast_model::principal::Verb;
use oast_model::task::{Ending, TaskPhase};
use oast_proto::v1;
use oast_proto::v1::runs_client::RunsClient;
use oast_proto::v1::runs_server::Runs;
use tonic::{Code, Response, Status, Streaming};

use super::auth::{Caller, caller};
use super::convert::Scheduler;
use super::filter::RunFilter;
use super::page::Page;
use super::{Answers, Api, convert, page, status};
use crate::archive::{RunSummary, Wanted};
use crate::farm::{FarmView, Patience, Written};

/// How often the reason for waiting is looked at: it changes without the run.
const WAITING_LOOK: Duration = Duration::from_secs(1);
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
        let run = self.submit_one(&caller, request.into_inner()).await?;
        Ok(Response::new(run))
    }

    type SubmitRunsStream = Answers<v1::SubmitRunsResponse>;

    async fn submit_runs(
        &self,
        request: tonic::Request<Streaming<v1::SubmitRunsRequest>>,
    ) -> Result<Response<Answers<v1::SubmitRunsResponse>>, Status> {
        let caller = caller(&request)?;
        let answers = self.submit_stream(caller, request.into_inner());
        Ok(Response::new(answers))
    }

    async fn batch_submit_runs(
        &self,
        request: tonic::Request<v1::SubmitRunsRequest>,
    ) -> Result<Response<v1::SubmitRunsResponse>, Status> {
        let caller = caller(&request)?;
        let submissions = request.into_inner().submissions;
        let results = self.submit_batch(&caller, submissions).await?;
        Ok(Response::new(v1::SubmitRunsResponse { results }))
    }

    async fn get_run(
        &self,
        request: tonic::Request<v1::GetRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        let id = parse("run", &request.get_ref().run)?;
        let look = self.look(&caller).await?;
        let record = self.seen_run(&look.view, id, &caller)?;
        if caller.patience != Patience::Linearizable {
            // Why tasks wait would have to be asked of the leader.
            return Ok(Response::new(self.shown(&look.view, &record)));
        }
        let run = self.explained(&look.view, &record, &caller).await?;
        Ok(Response::new(run))
    }

    async fn list_runs(
        &self,
        request: tonic::Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let filter = RunFilter::read(&asked)?;
        if let Some(team) = &filter.team {
            caller.may(Verb::View, Some(team))?;
        }
        let size = page::size(asked.page_size, page::PAGE, page::PAGE_MAX);
        let page = Page::read(&("runs", &filter), &asked.page_token, size)?;
        let look = self.look(&caller).await?;
        let api = self.clone();
        let listed = self.blocking("list-runs", move || {
            api.runs_of(&look.view, &filter, &caller, &page)
                .map(|(runs, next)| v1::ListRunsResponse {
                    runs,
                    next_page_token: page.next(next),
                    seq: look.view.seq().as_u64(),
                })
        });
        listed.await?.map(Response::new)
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
        match self.write(&caller, id, command).await {
            // The run ended meanwhile or long ago. Cancelled is what was wanted.
            Err(status) if status.code() == Code::NotFound => {
                let (_, record) = self.run_record(run, &caller).await?;
                let phase = record.run.phase;
                if phase != RunPhase::Ended(Ending::Cancelled) {
                    let phase = convert::run_phase(phase);
                    let message = format!("run {run} has ended already: {phase}");
                    let code = Code::FailedPrecondition;
                    return Err(status::error(code, "WRONG_STATE", message));
                }
            }
            Err(status) => return Err(status),
            Ok(_) => {}
        }
        let run = self.run_now(run, &caller).await?;
        if !run.ended {
            // What was remembered under this id is the cancel of another run.
            return Err(other_answer());
        }
        Ok(Response::new(run))
    }

    async fn retry_run(
        &self,
        request: tonic::Request<v1::RetryRunRequest>,
    ) -> Result<Response<v1::Run>, Status> {
        let caller = caller(&request)?;
        let run = self.retry(&caller, request.into_inner()).await?;
        Ok(Response::new(run))
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
        let caller = caller.lasting();
        let api = self.clone();
        Ok(Response::new(self.stream(
            "watch-run",
            move |sender| async move {
                if after_seq > 0 {
                    let view = api.farm.read().await?;
                    view.knows(Seq::from_u64(after_seq))
                        .map_err(|foreign| status::foreign_position(&foreign))?;
                }
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
    /// Writes for a caller, within the call's time. An error names the request.
    pub(super) async fn write(
        &self,
        caller: &Caller,
        request_id: Option<String>,
        command: Command,
    ) -> Result<Written, Status> {
        let request = Request {
            principal: caller.principal.clone(),
            request_id,
            command,
        };
        let written = self.farm.write_by(&request, caller.deadline).await;
        written.map_err(|err| match request.request_id {
            Some(id) => status::about(err.into(), &id, self.farm.handle().member()),
            None => err.into(),
        })
    }

    /// One page of runs, and the position of the next one. Blocks.
    fn runs_of(
        &self,
        view: &FarmView,
        filter: &RunFilter,
        caller: &Caller,
        page: &Page<RunId>,
    ) -> Result<(Vec<v1::Run>, Option<RunId>), Status> {
        let open = view.runs().iter().rev();
        let open = open.filter(|(id, _)| page.last.is_none_or(|last| **id < last));
        // Times never fall from id to id.
        let open = open.take_while(|(_, run)| filter.since.is_none_or(|t| run.started_at >= t));
        let open = open.filter(|(_, run)| caller.sees(&run.team) && filter.wants_run(run));
        // One more than shown tells whether there is a next page.
        let mut ids: BTreeSet<RunId> = open.map(|(id, _)| *id).take(page.size + 1).collect();
        let mut stopped = None;
        if filter.may_have_ended() {
            let wanted = Wanted {
                by: filter.by(),
                before: page.last.map(|id| id.0),
                since: filter.since,
                until: filter.until,
                limit: page.size + 1,
            };
            let found = self.archive.list(&wanted, |run: &RunSummary| {
                caller.sees(&run.team) && filter.wants_summary(run)
            })?;
            ids.extend(found.ids.into_iter().map(RunId));
            stopped = found.stopped.map(RunId);
            // Below that position nobody has looked yet.
            ids.retain(|id| stopped.is_none_or(|stopped| *id >= stopped));
        }
        let mut runs = Vec::new();
        let mut last = None;
        for id in ids.iter().rev().take(page.size) {
            if let Some(mut record) = self.find_run(view, *id)? {
                record.tasks.clear();
                runs.push(convert::run(&record, None));
            }
            last = Some(*id);
        }
        let next = if ids.len() > page.size { last } else { stopped };
        Ok((runs, next))
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
        let record = self.seen_run(&view, id, caller)?;
        Ok((view, record))
    }

    /// A run that the caller may see.
    fn seen_run(&self, view: &FarmView, id: RunId, caller: &Caller) -> Result<RunRecord, Status> {
        let record = self.find_run(view, id)?;
        let record = record.filter(|record| caller.sees(&record.run.team));
        record.ok_or_else(|| status::not_found("run", id))
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

    /// The run with why its tasks wait, if this member leads.
    fn shown(&self, view: &FarmView, record: &RunRecord) -> v1::Run {
        if !waits(record) || self.farm.leading().is_none() {
            return convert::run(record, None);
        }
        let sessions = self.sight.sessions();
        let scheduler = Scheduler {
            ledger: view,
            sessions: &sessions,
            rules: self.sight.rules(),
            now: self.farm.clock().wall(),
        };
        convert::run(record, Some(&scheduler))
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
            Ok(None) => Ok(self.shown(view, record)),
            Ok(Some(leader)) => {
                let asked = v1::GetRunRequest {
                    run: record.run.id.to_string(),
                };
                let mut leader = RunsClient::new(leader);
                match leader.get_run(self.pass_on(asked, caller)?).await {
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
