//! Following everything at once, from any position, through any member.
//!
//! ```text
//! position -> epoch and floor ok? -> loop { changes after it in the newest view -> messages }
//!                 | no                    | nothing for a while: how far we are
//!            OUT_OF_RANGE                 | fell behind the floor: OUT_OF_RANGE
//! ```
//!
//! The buffer is the feed in the view, the same for all watches; a slow client costs nothing but
//! the few messages that wait for it, and loses its place when it falls behind the feed.

use std::collections::BTreeSet;
use std::time::Duration;

use oast_model::ids::{RunId, Seq};
use oast_model::ledger::{RolloutRecord, RunRecord};
use oast_model::names::{FleetName, TeamName};
use oast_model::principal::Verb;
use oast_model::task::Origin;
use oast_proto::v1;
use oast_proto::v1::change::What as Said;
use oast_proto::v1::changes_server::Changes;
use prost::Message as _;
use tonic::{Code, Response, Status};

use super::auth::{self, Caller, caller};
use super::runs::optional_name;
use super::{Answers, Api, Sender, convert, filter, status};
use crate::archive::RunSummary;
use crate::farm::FarmView;
use crate::feed::{Change, State, What};

/// Most watches of one member.
pub(super) const WATCHES_MAX: usize = 1024;
/// Silence after which a watch says how far the member is.
const PROGRESS: Duration = Duration::from_secs(5);
/// Changes after which a message ends with the command that it is at.
const MESSAGE_CHANGES: usize = 256;
/// Bytes after which it does.
const MESSAGE_BYTES: usize = 512 << 10;
/// Commands that one look goes through.
const LOOK_MAX: usize = 10_000;

/// What is wanted of the changes.
#[derive(Debug)]
struct Filter {
    team: Option<TeamName>,
    kinds: BTreeSet<String>,
    pipeline: String,
    repository: String,
    branch: String,
    fleet: Option<FleetName>,
    run: Option<RunId>,
}

#[tonic::async_trait]
impl Changes for Api {
    type WatchStream = Answers<v1::WatchResponse>;

    async fn watch(
        &self,
        request: tonic::Request<v1::WatchRequest>,
    ) -> Result<Response<Answers<v1::WatchResponse>>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        let filter = Filter::read(asked.filter.unwrap_or_default())?;
        if let Some(team) = &filter.team {
            caller.may(Verb::View, Some(team))?;
        }
        let slots = self.watches.clone();
        let slot = slots.try_acquire_owned().map_err(|_| {
            let message = format!("{WATCHES_MAX} watches are open on this member: end some");
            status::error(Code::ResourceExhausted, "OVERLOADED", message)
        })?;
        // Linearizable, so that a position from any member is known here.
        let view = self.farm.read().await?;
        let from = match asked.from_seq {
            0 => view.seq(),
            raw => Seq::from_u64(raw),
        };
        reachable(&view, from)?;
        let api = self.clone();
        Ok(Response::new(self.stream(
            "watch",
            move |sender| async move {
                let _slot = slot;
                api.follow(from, &filter, &caller, &sender).await
            },
        )))
    }
}

/// Whether every change after `from` is in this view's feed.
fn reachable(view: &FarmView, from: Seq) -> Result<(), Status> {
    let (newest, oldest) = (view.seq(), view.feed().floor());
    let facts = || {
        [
            ("oldest_seq", oldest.as_u64().to_string()),
            ("newest_seq", newest.as_u64().to_string()),
            ("epoch", newest.epoch().to_string()),
        ]
    };
    let (reason, message) = if from.epoch() != newest.epoch() {
        let message = format!(
            "position {from} is of epoch {}, the farm was restored and is in epoch {}: list again and watch from there",
            from.epoch(),
            newest.epoch()
        );
        ("ANOTHER_EPOCH", message)
    } else if from > newest {
        let message =
            format!("position {from} was never reached, the newest is {newest}: list again");
        ("FUTURE", message)
    } else if from < oldest {
        let message = format!(
            "changes up to {oldest} are compacted on this member: ask another one, or list again and watch from {newest}"
        );
        ("COMPACTED", message)
    } else {
        return Ok(());
    };
    Err(status::explained(
        Code::OutOfRange,
        reason,
        message,
        facts(),
    ))
}

impl Api {
    async fn follow(
        &self,
        from: Seq,
        filter: &Filter,
        caller: &Caller,
        sender: &Sender<v1::WatchResponse>,
    ) -> Result<(), Status> {
        let clock = self.farm.clock().clone();
        let hash = auth::hash(caller.token.expose());
        // A member that follows another one shows no token of the ledger.
        let known = self.farm.view().token(&hash).is_some();
        let mut changes = self.farm.changes();
        let mut at = from;
        let mut said_at = clock.monotonic();
        let mut first = true;
        loop {
            changes.mark_unchanged();
            let view = self.farm.view();
            if known && view.token(&hash).is_none() {
                let message = "this token was revoked while the watch was open";
                return Err(status::unauthenticated(message));
            }
            // A snapshot may have replaced the state by one that is further, never by an older one.
            reachable(&view, at)?;
            let look = self.changes_after(&view, at, filter, caller)?;
            at = look.at;
            let silent = clock.monotonic().saturating_sub(said_at) >= PROGRESS;
            if first || silent || !look.changes.is_empty() {
                let message = v1::WatchResponse {
                    seq: at.as_u64(),
                    changes: look.changes,
                };
                if sender.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
                said_at = clock.monotonic();
                first = false;
            }
            if look.more {
                continue;
            }
            drop(view);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return Err(status::error(Code::Unavailable, "STOPPING", "this member stops"));
                },
                () = clock.sleep(PROGRESS) => {}
            }
        }
    }

    /// Wanted changes after a position, in whole commands.
    fn changes_after(
        &self,
        view: &FarmView,
        after: Seq,
        filter: &Filter,
        caller: &Caller,
    ) -> Result<Looked, Status> {
        let mut looked = Looked {
            at: after,
            changes: Vec::new(),
            more: false,
        };
        let (mut bytes, mut commands) = (0, 0);
        for change in view.feed().after(after) {
            if change.seq != looked.at {
                // The command before is complete.
                if looked.changes.len() >= MESSAGE_CHANGES
                    || bytes >= MESSAGE_BYTES
                    || commands >= LOOK_MAX
                {
                    looked.more = true;
                    return Ok(looked);
                }
                looked.at = change.seq;
                commands += 1;
            }
            if let Some(what) = self.told(view, change, filter, caller)? {
                let change = v1::Change {
                    seq: change.seq.as_u64(),
                    what: Some(what),
                };
                bytes += change.encoded_len();
                looked.changes.push(change);
            }
        }
        // Commands that changed nothing of this are behind us too.
        looked.at = view.seq().max(looked.at);
        Ok(looked)
    }

    /// The change as the caller sees it, if it is wanted.
    fn told(
        &self,
        view: &FarmView,
        change: &Change,
        filter: &Filter,
        caller: &Caller,
    ) -> Result<Option<Said>, Status> {
        // Without a state it stands for the present one, unless a later change does.
        if change.state.is_none() && !view.feed().is_latest(change) {
            return Ok(None);
        }
        match &change.what {
            What::Run(id) if filter.kind("run") && filter.fleet.is_none() => {
                if filter.run.is_some_and(|run| run != *id) {
                    return Ok(None);
                }
                let record = match &change.state {
                    Some(State::Run(run, tasks)) => Some(RunRecord {
                        run: (**run).clone(),
                        tasks: tasks.iter().map(|task| (**task).clone()).collect(),
                    }),
                    _ => self.find_run(view, *id)?,
                };
                let record = record.filter(|record| filter.wants(record, caller));
                Ok(record.map(|record| Said::Run(convert::run(&record, None))))
            }
            What::Rollout(id) if filter.kind("rollout") => {
                let record = match &change.state {
                    Some(State::Rollout(rollout, tasks)) => Some(RolloutRecord {
                        rollout: (**rollout).clone(),
                        tasks: tasks.iter().map(|task| (**task).clone()).collect(),
                    }),
                    _ => self.find_rollout(view, *id)?,
                };
                let Some(record) = record else {
                    return Ok(None);
                };
                let wanted = self.wants_rollout(view, &record, filter, caller)?;
                Ok(wanted.then(|| Said::Rollout(convert::rollout(&record))))
            }
            What::Fleet(name) if filter.kind("fleet") && filter.of_fleets() => {
                if filter.fleet.as_ref().is_some_and(|wanted| wanted != name) {
                    return Ok(None);
                }
                let may = |team: &TeamName| filter.team(team) && caller.sees(team);
                Ok(match &change.state {
                    Some(State::Deleted(team)) => {
                        may(team).then(|| Said::DeletedFleet(name.to_string()))
                    }
                    Some(State::Fleet(fleet)) => may(&fleet.spec.team)
                        .then(|| Said::Fleet(convert::fleet(fleet, None, None))),
                    _ => {
                        let fleet = view.fleets().get(name);
                        let fleet = fleet.filter(|fleet| may(&fleet.spec.team));
                        fleet.map(|fleet| Said::Fleet(convert::fleet(fleet, None, None)))
                    }
                })
            }
            _ => Ok(None),
        }
    }

    fn wants_rollout(
        &self,
        view: &FarmView,
        record: &RolloutRecord,
        filter: &Filter,
        caller: &Caller,
    ) -> Result<bool, Status> {
        let rollout = &record.rollout;
        let own = filter.team(&rollout.team)
            && caller.sees(&rollout.team)
            && filter.run.is_none_or(|run| rollout.run == Some(run))
            && filter
                .fleet
                .as_ref()
                .is_none_or(|fleet| *fleet == rollout.fleet);
        if !own || !filter.of_runs() {
            return Ok(own);
        }
        // The rest is about the run that began it.
        let Some(run) = rollout.run else {
            return Ok(false);
        };
        if let Some(run) = view.runs().get(&run) {
            return Ok(filter.names(&names_of(run)));
        }
        let summary = self.archive.summary::<RunSummary>(run.0)?;
        Ok(summary.is_some_and(|run| filter.names(&[run.pipeline, run.repository, run.branch])))
    }
}

/// What one look brought.
struct Looked {
    /// Everything up to here was looked at.
    at: Seq,
    changes: Vec<v1::Change>,
    more: bool,
}

/// Pipeline, repository, branch.
fn names_of(run: &oast_model::ledger::Run) -> [String; 3] {
    let branch = match &run.origin {
        Origin::Git { branch, .. } => branch.clone(),
        Origin::Upload { .. } => String::new(),
    };
    let pipeline = run.pipeline.as_ref();
    [
        pipeline.map_or_else(String::new, |pipeline| pipeline.name.to_string()),
        run.repository
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        branch,
    ]
}

impl Filter {
    fn read(asked: v1::WatchFilter) -> Result<Filter, Status> {
        let known = ["run", "rollout", "fleet"];
        if let Some(wrong) = asked
            .kinds
            .iter()
            .find(|kind| !known.contains(&kind.as_str()))
        {
            let message = format!("`{wrong}` is none of {}", known.join(", "));
            return Err(status::invalid("filter.kinds", message));
        }
        Ok(Filter {
            team: optional_name("filter.team", &asked.team)?,
            kinds: asked.kinds.into_iter().collect(),
            pipeline: filter::text("filter.pipeline", &asked.pipeline)?,
            repository: filter::text("filter.repository", &asked.repository)?,
            branch: filter::text("filter.branch", &asked.branch)?,
            fleet: optional_name("filter.fleet", &asked.fleet)?,
            run: optional_name("filter.run", &asked.run)?,
        })
    }

    fn kind(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.contains(kind)
    }

    fn team(&self, team: &TeamName) -> bool {
        self.team.as_ref().is_none_or(|wanted| wanted == team)
    }

    /// It says something about runs' own names.
    fn of_runs(&self) -> bool {
        !(self.pipeline.is_empty() && self.repository.is_empty() && self.branch.is_empty())
    }

    /// Fleets themselves can be meant.
    fn of_fleets(&self) -> bool {
        !self.of_runs() && self.run.is_none()
    }

    fn names(&self, of: &[String; 3]) -> bool {
        let wanted = [&self.pipeline, &self.repository, &self.branch];
        let pairs = wanted.into_iter().zip(of);
        pairs
            .into_iter()
            .all(|(wanted, is)| wanted.is_empty() || wanted == is)
    }

    fn wants(&self, record: &RunRecord, caller: &Caller) -> bool {
        self.team(&record.run.team)
            && caller.sees(&record.run.team)
            && self.names(&names_of(&record.run))
    }
}
