//! Fleets and rollouts: look, watch, steer.
//!
//! What instances do is in the leader's memory only, so calls that show it are passed on to the
//! leader; a watch follows the leader when it changes.

use std::collections::BTreeSet;
use std::time::Duration;

use oast_model::fleet::VersionRef;
use oast_model::ids::RolloutId;
use oast_model::ledger::{Answer, Command, FleetRecord, RolloutRecord};
use oast_model::names::{FleetName, TeamName};
use oast_model::principal::Verb;
use oast_proto::v1;
use oast_proto::v1::fleets_client::FleetsClient;
use oast_proto::v1::fleets_server::Fleets;
use tonic::{Code, Response, Status};

use super::auth::{Caller, caller};
use super::filter::RolloutFilter;
use super::forward::pass_on;
use super::page::Page;
use super::runs::{optional_name, other_answer, parse, reason, request_id};
use super::{Answers, Api, Sender, convert, page, status};
use crate::archive::{RolloutSummary, Wanted};
use crate::farm::{FarmView, Patience};

/// How often a watched fleet's observation is compared; it changes without the ledger.
const OBSERVATION_LOOK: Duration = Duration::from_millis(200);
/// How long a watch goes on without a leader.
const LEADER_PATIENCE: Duration = Duration::from_secs(15);
/// Pause before a watch looks for the leader again.
const LEADER_PAUSE: Duration = Duration::from_millis(200);

#[tonic::async_trait]
impl Fleets for Api {
    async fn list_fleets(
        &self,
        request: tonic::Request<v1::ListFleetsRequest>,
    ) -> Result<Response<v1::ListFleetsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let team = optional_name::<TeamName>("team", &asked.team)?;
        if let Some(team) = &team {
            caller.may(Verb::View, Some(team))?;
        }
        // What instances do is known to the leader; who accepts older answers does without.
        if caller.patience == Patience::Linearizable
            && let Some(leader) = self.elsewhere(&caller)?
        {
            let mut leader = FleetsClient::new(leader);
            return leader.list_fleets(self.pass_on(asked, &caller)?).await;
        }
        let view = self.look(&caller).await?;
        let wanted = |of: &TeamName| team.as_ref().is_none_or(|team| team == of) && caller.sees(of);
        let fleets = view.fleets().iter();
        let fleets = fleets.filter(|(_, fleet)| wanted(&fleet.spec.team));
        let fleets = fleets.map(|(_, fleet)| self.fleet(fleet)).collect();
        Ok(Response::new(v1::ListFleetsResponse { fleets }))
    }

    async fn get_fleet(
        &self,
        request: tonic::Request<v1::GetFleetRequest>,
    ) -> Result<Response<v1::Fleet>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        if caller.patience == Patience::Linearizable
            && let Some(leader) = self.elsewhere(&caller)?
        {
            let mut leader = FleetsClient::new(leader);
            return leader.get_fleet(self.pass_on(asked, &caller)?).await;
        }
        let name: FleetName = parse("fleet", &asked.fleet)?;
        let view = self.look(&caller).await?;
        let fleet = find_fleet(&view, &name, &caller)?;
        Ok(Response::new(self.fleet(fleet)))
    }

    type WatchFleetStream = Answers<v1::Fleet>;

    async fn watch_fleet(
        &self,
        request: tonic::Request<v1::GetFleetRequest>,
    ) -> Result<Response<Answers<v1::Fleet>>, Status> {
        let caller = caller(&request)?;
        let name: FleetName = parse("fleet", &request.get_ref().fleet)?;
        find_fleet(&self.farm.read().await?, &name, &caller)?;
        let api = self.clone();
        Ok(Response::new(
            self.stream("watch-fleet", move |sender| async move {
                api.watch(name, caller, sender).await
            }),
        ))
    }

    async fn get_rollout(
        &self,
        request: tonic::Request<v1::GetRolloutRequest>,
    ) -> Result<Response<v1::Rollout>, Status> {
        let caller = caller(&request)?;
        let id = parse("rollout", &request.get_ref().rollout)?;
        let look = self.look(&caller).await?;
        let record = self.seen_rollout(&look.view, id, &caller)?;
        Ok(Response::new(convert::rollout(&record)))
    }

    async fn list_rollouts(
        &self,
        request: tonic::Request<v1::ListRolloutsRequest>,
    ) -> Result<Response<v1::ListRolloutsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let filter = RolloutFilter::read(&asked)?;
        if let Some(team) = &filter.team {
            caller.may(Verb::View, Some(team))?;
        }
        let size = page::size(asked.page_size, page::PAGE, page::PAGE_MAX);
        let page = Page::read(&("rollouts", &filter), &asked.page_token, size)?;
        let look = self.look(&caller).await?;
        let api = self.clone();
        let listed = self.blocking("list-rollouts", move || {
            api.rollouts_of(&look.view, &filter, &caller, &page)
                .map(|(rollouts, next)| v1::ListRolloutsResponse {
                    rollouts,
                    next_page_token: page.next(next),
                    seq: look.view.seq().as_u64(),
                })
        });
        listed.await?.map(Response::new)
    }

    type WatchRolloutStream = Answers<v1::Rollout>;

    async fn watch_rollout(
        &self,
        request: tonic::Request<v1::WatchRolloutRequest>,
    ) -> Result<Response<Answers<v1::Rollout>>, Status> {
        let caller = caller(&request)?;
        let v1::WatchRolloutRequest { rollout, after_seq } = request.into_inner();
        let id = parse("rollout", &rollout)?;
        self.rollout_record(id, &caller).await?;
        let api = self.clone();
        Ok(Response::new(self.stream(
            "watch-rollout",
            move |sender| async move {
                let mut changes = api.farm.changes();
                let mut sent = after_seq;
                loop {
                    changes.mark_unchanged();
                    let record = api.find_rollout(&api.farm.view(), id)?;
                    let record = record.ok_or_else(|| status::not_found("rollout", id))?;
                    let found = convert::rollout(&record);
                    let ended = found.ended;
                    if found.seq > sent {
                        sent = found.seq;
                        if sender.send(Ok(found)).await.is_err() {
                            return Ok(());
                        }
                    }
                    if ended || changes.changed().await.is_err() {
                        return Ok(());
                    }
                }
            },
        )))
    }

    async fn begin_rollout(
        &self,
        request: tonic::Request<v1::BeginRolloutRequest>,
    ) -> Result<Response<v1::Fleet>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let name: FleetName = parse("fleet", &asked.fleet)?;
        let view = self.farm.read().await?;
        find_fleet(&view, &name, &caller)?;
        let version: Option<VersionRef> = match asked.version.as_str() {
            "" => None,
            text => Some(super::images::find(&view, text, &caller)?.version.clone()),
        };
        let command = Command::BeginRollout {
            fleet: name.clone(),
            version,
        };
        let written = self.write(&caller, id, command).await?;
        if !matches!(
            written.answer,
            Answer::Rollout(_) | Answer::Done | Answer::Unchanged
        ) {
            return Err(other_answer());
        }
        let view = self.farm.read().await?;
        let fleet = find_fleet(&view, &name, &caller)?;
        Ok(Response::new(self.fleet(fleet)))
    }

    async fn abort_rollout(
        &self,
        request: tonic::Request<v1::AbortRolloutRequest>,
    ) -> Result<Response<v1::Rollout>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let id = request_id(&asked.request_id)?;
        let rollout = parse("rollout", &asked.rollout)?;
        let reason = reason(asked.reason)?;
        self.rollout_record(rollout, &caller).await?;
        let command = Command::AbortRollout { rollout, reason };
        self.write(&caller, id, command).await?;
        let record = self.rollout_record(rollout, &caller).await?;
        Ok(Response::new(convert::rollout(&record)))
    }
}

impl Api {
    /// The fleet as this member knows it; instances only on the leader.
    pub(crate) fn fleet(&self, fleet: &FleetRecord) -> v1::Fleet {
        let name = &fleet.spec.name;
        let seen = self.sight.observation(name);
        convert::fleet(fleet, seen.as_ref(), self.sight.note(name))
    }

    /// An open or ended rollout, as of the view or later.
    pub(super) fn find_rollout(
        &self,
        view: &FarmView,
        id: RolloutId,
    ) -> Result<Option<RolloutRecord>, Status> {
        match view.rollout_record(id) {
            Some(record) => Ok(Some(record)),
            None => Ok(self.archive.rollout(id)?),
        }
    }

    async fn rollout_record(
        &self,
        id: RolloutId,
        caller: &Caller,
    ) -> Result<RolloutRecord, Status> {
        let view = self.farm.read().await?;
        self.seen_rollout(&view, id, caller)
    }

    /// A rollout that the caller may see.
    fn seen_rollout(
        &self,
        view: &FarmView,
        id: RolloutId,
        caller: &Caller,
    ) -> Result<RolloutRecord, Status> {
        let record = self.find_rollout(view, id)?;
        let record = record.filter(|record| caller.sees(&record.rollout.team));
        record.ok_or_else(|| status::not_found("rollout", id))
    }

    /// One page of rollouts, and the position of the next one. Blocks.
    fn rollouts_of(
        &self,
        view: &FarmView,
        filter: &RolloutFilter,
        caller: &Caller,
        page: &Page<RolloutId>,
    ) -> Result<(Vec<v1::Rollout>, Option<RolloutId>), Status> {
        let open = view.rollouts().iter().rev();
        let open = open.filter(|(id, _)| page.last.is_none_or(|last| **id < last));
        let open = open.filter(|(_, open)| caller.sees(&open.team) && filter.wants_rollout(open));
        let mut ids: BTreeSet<RolloutId> = open.map(|(id, _)| *id).take(page.size + 1).collect();
        let wanted = Wanted {
            by: filter.by(),
            before: page.last.map(|id| id.0),
            since: filter.since,
            until: filter.until,
            limit: page.size + 1,
        };
        let found = self.archive.list(&wanted, |ended: &RolloutSummary| {
            caller.sees(&ended.team) && filter.wants_summary(ended)
        })?;
        ids.extend(found.ids.into_iter().map(RolloutId));
        let stopped = found.stopped.map(RolloutId);
        // Below that position nobody has looked yet.
        ids.retain(|id| stopped.is_none_or(|stopped| *id >= stopped));
        let mut rollouts = Vec::new();
        let mut last = None;
        for id in ids.iter().rev().take(page.size) {
            if let Some(record) = self.find_rollout(view, *id)? {
                rollouts.push(convert::rollout(&record));
            }
            last = Some(*id);
        }
        let next = if ids.len() > page.size { last } else { stopped };
        Ok((rollouts, next))
    }

    /// Watches here while this member leads, else through the leader.
    async fn watch(
        &self,
        name: FleetName,
        caller: Caller,
        sender: Sender<v1::Fleet>,
    ) -> Result<(), Status> {
        let clock = self.farm.clock().clone();
        let mut lost_at = None;
        let mut sent = None;
        loop {
            let led = match self.elsewhere(&caller) {
                Ok(None) => self.watch_here(&name, &sender, &mut sent).await,
                Ok(Some(leader)) => {
                    self.watch_there(leader, &name, &caller, &sender, &mut sent)
                        .await
                }
                Err(status) => Err(status),
            };
            match led {
                Ok(Watched::Over) => return Ok(()),
                // The leader changed after it had answered: the patience begins anew.
                Ok(Watched::Led) => lost_at = None,
                Err(status) if status.code() == Code::Unavailable && caller.hops == 0 => {
                    let now = clock.monotonic();
                    let since = *lost_at.get_or_insert(now);
                    if now.saturating_sub(since) >= LEADER_PATIENCE {
                        return Err(status);
                    }
                }
                Err(status) => return Err(status),
            }
            clock.sleep(LEADER_PAUSE).await;
        }
    }

    async fn watch_here(
        &self,
        name: &FleetName,
        sender: &Sender<v1::Fleet>,
        sent: &mut Option<v1::Fleet>,
    ) -> Result<Watched, Status> {
        let mut changes = self.farm.changes();
        while self.farm.leading().is_some() {
            changes.mark_unchanged();
            let view = self.farm.view();
            let record = view.fleets().get(name);
            let record = record.ok_or_else(|| status::not_found("fleet", name))?;
            let fleet = self.fleet(record);
            if sent.as_ref() != Some(&fleet) {
                *sent = Some(fleet.clone());
                if sender.send(Ok(fleet)).await.is_err() {
                    return Ok(Watched::Over);
                }
            }
            drop(view);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Ok(Watched::Over) },
                () = self.farm.clock().sleep(OBSERVATION_LOOK) => {}
            }
        }
        Ok(Watched::Led)
    }

    async fn watch_there(
        &self,
        leader: tonic::transport::Channel,
        name: &FleetName,
        caller: &Caller,
        sender: &Sender<v1::Fleet>,
        sent: &mut Option<v1::Fleet>,
    ) -> Result<Watched, Status> {
        let asked = v1::GetFleetRequest {
            fleet: name.to_string(),
        };
        let answer = FleetsClient::new(leader)
            .watch_fleet(pass_on(asked, caller)?)
            .await;
        let mut fleets = answer?.into_inner();
        let mut any = false;
        loop {
            match fleets.message().await {
                Ok(Some(fleet)) => {
                    any = true;
                    if sent.as_ref() == Some(&fleet) {
                        continue;
                    }
                    *sent = Some(fleet.clone());
                    if sender.send(Ok(fleet)).await.is_err() {
                        return Ok(Watched::Over);
                    }
                }
                // It stopped leading, or it stopped.
                Ok(None) => return Ok(Watched::Led),
                Err(_) if any => return Ok(Watched::Led),
                Err(status) => return Err(status),
            }
        }
    }
}

/// How a stretch of a watch ended.
enum Watched {
    /// The client has gone or the member stops.
    Over,
    /// Under this leader.
    Led,
}

fn find_fleet<'v>(
    view: &'v FarmView,
    name: &FleetName,
    caller: &Caller,
) -> Result<&'v FleetRecord, Status> {
    let fleet = view.fleets().get(name);
    let fleet = fleet.filter(|fleet| caller.sees(&fleet.spec.team));
    fleet.ok_or_else(|| status::not_found("fleet", name))
}
