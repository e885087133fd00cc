//! The ledger: the replicated state of the farm, and the only way to change it.
//!
//! `apply` is a pure function of the state, the entry's `now` and the command. Every
//! member makes the same state and the same effects; only the leader acts on effects.
//! What is over leaves the live tables for the history, so that neither a snapshot nor
//! a decision grows with the number of finished runs.
//!
//! One file per family of commands; the tables and the dispatch stand here.

mod access;
mod assignment;
mod batch;
mod command;
mod history;
mod image;
mod index;
mod join;
mod lease;
mod reference;
mod request;
mod resources;
mod retry;
mod rollout;
mod run;
#[cfg(test)]
mod tests;
mod version;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use access::AccessToken;
pub use command::{
    Answer, BeginBatch, Command, Effect, HistoryRecord, Rejected, Request, SubmitRun,
};
pub use history::{Finished, PRUNE_MAX, Pruned, ROLLOUT, RUN};
pub use image::{ImageRecord, ImageVersion};
pub use index::{At, Group, GroupKey, Index, Lane, Place, Turn, Usage};
pub use join::{
    JOIN_CHAIN_MAX, JOIN_MEMORY, JOIN_TOKENS_MAX, JOIN_TTL_MAX, JoinToken, JoinWorker, Joined,
};
pub use lease::Lease;
pub use reference::{CronState, RefState};
pub use request::{REQUEST_MEMORY, REQUESTS_MAX, Remembered, RequestKey};
pub use resources::{FleetRecord, RepositoryRecord, SecretRecord, Target, TeamRecord};
pub use retry::{RetryProblem, RetryRun, RetrySource};
pub use rollout::{
    Batch, BatchKind, BatchPhase, Rollout, RolloutPhase, RolloutRecord, RolloutRequest,
};
pub use run::{Run, RunPhase, RunRecord};
pub use version::{Era, ForeignPosition, VERSION, table_name};

use crate::bake::Layer;
use crate::codec::DecodeError;
use crate::digest::Digest;
use crate::fleet::VersionRef;
use crate::ids::{RolloutId, RunId, Seq, TaskId, Token};
use crate::names::{
    FleetName, ImageName, PipelineName, RepositoryName, SecretName, TeamName, WorkerName,
};
use crate::principal::{Principal, Verb, authorize};
use crate::table::{RecordChange, StateDigest, Table};
use crate::task::Task;
use crate::time::Timestamp;

/// What `apply` may look at besides the state.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The leader's clock when it proposed the entry.
    pub now: Timestamp,
    /// The number of this command.
    pub seq: Seq,
}

/// Single values of the farm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Farm {
    /// Its name; empty before the first command.
    pub name: String,
    /// Number of the last command.
    pub seq: Seq,
    /// Rolling hash of the history.
    pub history: Option<Digest>,
    /// Sequence of the last history record.
    pub history_seq: Seq,
    /// The cluster version; 0 before the first [`Command::RaiseVersion`].
    #[serde(default, skip_serializing_if = "version::is_default")]
    pub version: u32,
    /// Whether an operator holds the version.
    #[serde(default, skip_serializing_if = "version::is_default")]
    pub version_held: bool,
    /// What was issued before the last restore or forced recovery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub eras: Vec<Era>,
    /// Where the present epoch began; zero without a restore.
    #[serde(default, skip_serializing_if = "version::is_default")]
    pub begun: Seq,
}

/// The replicated state.
#[derive(Clone, Debug)]
pub struct Ledger {
    farm: Table<u8, Farm>,
    /// Access tokens by hash.
    pub(crate) tokens: Table<String, AccessToken>,
    /// Teams by name.
    pub(crate) teams: Table<TeamName, TeamRecord>,
    /// Repositories by name.
    pub(crate) repositories: Table<RepositoryName, RepositoryRecord>,
    /// What branches showed last.
    pub(crate) refs: Table<(RepositoryName, String), RefState>,
    /// Pipelines with a calendar.
    pub(crate) crons: Table<(TeamName, PipelineName), CronState>,
    /// Fleets by name.
    pub(crate) fleets: Table<FleetName, FleetRecord>,
    /// Secrets by team and name; never their values.
    pub(crate) secrets: Table<(TeamName, SecretName), SecretRecord>,
    /// Open runs.
    pub(crate) runs: Table<RunId, Run>,
    /// Tasks of open runs, open rollouts and repairs.
    pub(crate) tasks: Table<TaskId, Task>,
    /// Live leases.
    pub(crate) leases: Table<Token, Lease>,
    /// Newest incarnation of each worker.
    pub(crate) workers: Table<WorkerName, u64>,
    /// Finished layers by key.
    pub(crate) layers: Table<Digest, Layer>,
    /// Images by name.
    pub(crate) images: Table<ImageName, ImageRecord>,
    /// Image versions.
    pub(crate) versions: Table<VersionRef, ImageVersion>,
    /// Open rollouts.
    pub(crate) rollouts: Table<RolloutId, Rollout>,
    /// Answers by request id.
    pub(crate) requests: Table<RequestKey, Remembered>,
    /// What is kept in the history, by team.
    pub(crate) finished: Table<TeamName, Finished>,
    /// Tokens with which workers join, by hash.
    pub(crate) joins: Table<String, JoinToken>,
    /// Remembered requests by age. Derived from `requests`.
    ages: request::Ages,
    /// What is derived from runs, tasks and leases.
    index: Index,
    /// Numbers of history records that were pruned since the last drain.
    pruned: Vec<u64>,
    digest: StateDigest,
    history: Vec<HistoryRecord>,
}

/// What one command did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its number.
    pub seq: Seq,
    /// The answer, or why it was refused.
    pub result: Result<Answer, Rejected>,
    /// What follows, for the leader.
    pub effects: Vec<Effect>,
}

/// What changed since the last drain.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Live records.
    pub records: Vec<RecordChange>,
    /// Records that went to history.
    pub history: Vec<HistoryRecord>,
    /// Numbers of history records that are no longer kept: what remains of each is its hash.
    pub pruned: Vec<u64>,
}

/// A stored record that this binary cannot read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The key is empty or has an unknown tag.
    #[error(
        "a record of table {tag:?} is stored, which this binary does not know: it was written by a newer one"
    )]
    UnknownTable {
        /// The first byte of its key.
        tag: Option<u8>,
    },
    /// Its bytes do not decode.
    #[error("read a stored record of table {tag}")]
    Record {
        /// The table.
        tag: u8,
        /// Why.
        #[source]
        err: DecodeError,
    },
}

const FARM: u8 = 0;
const FINISHED: u8 = 18;

/// Calls `$body` for each table with the name bound. Order is the order of digests and drains.
macro_rules! each_table {
    ($ledger:expr, $table:ident => $body:expr) => {{
        {
            let $table = $ledger.farm;
            $body
        }
        {
            let $table = $ledger.tokens;
            $body
        }
        {
            let $table = $ledger.teams;
            $body
        }
        {
            let $table = $ledger.repositories;
            $body
        }
        {
            let $table = $ledger.refs;
            $body
        }
        {
            let $table = $ledger.crons;
            $body
        }
        {
            let $table = $ledger.fleets;
            $body
        }
        {
            let $table = $ledger.secrets;
            $body
        }
        {
            let $table = $ledger.runs;
            $body
        }
        {
            let $table = $ledger.tasks;
            $body
        }
        {
            let $table = $ledger.leases;
            $body
        }
        {
            let $table = $ledger.workers;
            $body
        }
        {
            let $table = $ledger.layers;
            $body
        }
        {
            let $table = $ledger.images;
            $body
        }
        {
            let $table = $ledger.versions;
            $body
        }
        {
            let $table = $ledger.rollouts;
            $body
        }
        {
            let $table = $ledger.requests;
            $body
        }
        {
            let $table = $ledger.finished;
            $body
        }
        {
            let $table = $ledger.joins;
            $body
        }
    }};
}

/// All tables by reference, so that one macro serves shared and exclusive access.
struct Tables<'a> {
    farm: &'a mut Table<u8, Farm>,
    tokens: &'a mut Table<String, AccessToken>,
    teams: &'a mut Table<TeamName, TeamRecord>,
    repositories: &'a mut Table<RepositoryName, RepositoryRecord>,
    refs: &'a mut Table<(RepositoryName, String), RefState>,
    crons: &'a mut Table<(TeamName, PipelineName), CronState>,
    fleets: &'a mut Table<FleetName, FleetRecord>,
    secrets: &'a mut Table<(TeamName, SecretName), SecretRecord>,
    runs: &'a mut Table<RunId, Run>,
    tasks: &'a mut Table<TaskId, Task>,
    leases: &'a mut Table<Token, Lease>,
    workers: &'a mut Table<WorkerName, u64>,
    layers: &'a mut Table<Digest, Layer>,
    images: &'a mut Table<ImageName, ImageRecord>,
    versions: &'a mut Table<VersionRef, ImageVersion>,
    rollouts: &'a mut Table<RolloutId, Rollout>,
    requests: &'a mut Table<RequestKey, Remembered>,
    finished: &'a mut Table<TeamName, Finished>,
    joins: &'a mut Table<String, JoinToken>,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger::new()
    }
}

impl Ledger {
    /// The state before the first command.
    pub fn new() -> Ledger {
        let mut farm = Table::new(FARM);
        farm.insert(0, Farm::default());
        Ledger {
            farm,
            tokens: Table::new(1),
            teams: Table::new(2),
            repositories: Table::new(3),
            refs: Table::new(4),
            crons: Table::new(5),
            fleets: Table::followed(6),
            secrets: Table::new(7),
            runs: Table::followed(8),
            tasks: Table::followed(9),
            leases: Table::followed(10),
            workers: Table::new(11),
            layers: Table::new(12),
            images: Table::new(13),
            versions: Table::followed(14),
            rollouts: Table::new(15),
            requests: Table::new(16),
            finished: Table::new(FINISHED),
            joins: Table::new(17),
            ages: request::Ages::default(),
            index: Index::default(),
            digest: StateDigest::default(),
            history: Vec::new(),
            pruned: Vec::new(),
        }
    }

    /// Applies one committed command. Deterministic; never fails, may refuse.
    pub fn apply(&mut self, now: Timestamp, request: Request) -> Applied {
        let farm = self
            .farm
            .get_mut(&0)
            .expect("the farm's own record always exists");
        farm.seq = farm.seq.next();
        let cx = Context { now, seq: farm.seq };
        self.forget_old_requests(cx.now);
        let mut effects = Vec::new();
        let asked = request::Asked::of(&request);
        let before = asked
            .as_ref()
            .and_then(|asked| self.remembered(asked, cx.now));
        let result = before.unwrap_or_else(|| {
            let result = self.dispatch(&cx, &request.principal, request.command, &mut effects);
            if let Some(asked) = asked {
                self.remember(&cx, asked, &result);
            }
            result
        });
        self.reindex(cx.now);
        Applied {
            seq: cx.seq,
            result,
            effects,
        }
    }

    /// Brings the index up to date with what a command changed.
    fn reindex(&mut self, now: Timestamp) {
        let mut touched = index::Touched {
            tasks: self.tasks.take_touched(),
            leases: self.leases.take_touched(),
            runs: self.runs.take_touched(),
            versions: self.versions.take_touched(),
        };
        for fleet in self.fleets.take_touched() {
            touched.tasks.extend(self.tasks_of_fleet(&fleet));
        }
        let mut index = std::mem::take(&mut self.index);
        index.follow(self, touched, now);
        self.index = index;
    }

    /// Open tasks whose class depends on how a fleet is declared.
    fn tasks_of_fleet(&self, name: &FleetName) -> Vec<TaskId> {
        let Some(fleet) = self.fleets.get(name) else {
            return Vec::new();
        };
        let batch = fleet
            .active
            .and_then(|id| self.rollouts.get(&id))
            .and_then(Rollout::open_batch)
            .map(|batch| batch.task);
        batch.into_iter().chain(fleet.repairs.clone()).collect()
    }

    /// Rebuilds what is derived, after the last [`Ledger::load`].
    pub fn finish_loading(&mut self) {
        self.ages = request::Ages::of(&self.requests);
        let watermark = Index::watermark_of(self);
        self.index = Index::of(self, watermark);
    }

    fn dispatch(
        &mut self,
        cx: &Context,
        who: &Principal,
        command: Command,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, Rejected> {
        if self.farm().name.is_empty() && !matches!(command, Command::InitFarm { .. }) {
            return Err(Rejected::WrongState(
                "the farm is not initialised yet".into(),
            ));
        }
        match command {
            Command::InitFarm {
                name,
                admin,
                worker,
            } => {
                self.lead(who)?;
                access::init(self, cx, name, admin, worker)
            }
            Command::CreateToken {
                hash,
                name,
                role,
                team,
            } => access::create(
                self,
                cx,
                who,
                hash,
                AccessToken::user(name, role, team, cx.now),
            ),
            Command::RevokeToken { name } => access::revoke(self, who, &name),
            Command::ApplyResource { resource, expected } => {
                resources::apply(self, cx, who, *resource, expected, effects)
            }
            Command::DeleteResource { kind, name } => {
                resources::delete(self, who, kind, &name, effects)
            }
            Command::SetSecret { team, name } => resources::set_secret(self, cx, who, team, name),
            Command::SubmitRun(submit) => run::submit(self, cx, who, submit, effects),
            Command::RetryRun(retry) => retry::retry(self, cx, who, *retry, effects),
            Command::PruneHistory { records } => {
                self.lead(who)?;
                history::prune(self, records)
            }
            Command::CancelRun { run, reason } => run::cancel(self, cx, who, run, reason, effects),
            Command::ObserveRefs { repository, refs } => {
                self.lead(who)?;
                reference::observe(self, cx, &repository, refs, effects)
            }
            Command::FireCron {
                pipeline,
                team,
                due,
            } => {
                self.lead(who)?;
                reference::fire(self, cx, (team, pipeline), due, effects)
            }
            Command::GrantLease {
                task,
                worker,
                incarnation,
            } => {
                self.lead(who)?;
                lease::grant(self, cx, task, worker, incarnation, effects)
            }
            Command::ExpireLease { token, reason } => {
                self.lead(who)?;
                lease::expire(self, cx, token, &reason, effects)
            }
            Command::BeginIncarnation {
                worker,
                incarnation,
            } => {
                self.lead(who)?;
                lease::begin_incarnation(self, cx, worker, incarnation, effects)
            }
            Command::Report { token, report } => {
                self.allow(who, Verb::Report, None)?;
                lease::report(self, cx, who, token, *report, effects)
            }
            Command::BeginBatch(begin) => {
                self.lead(who)?;
                batch::begin_batch(self, cx, begin, effects)
            }
            Command::JudgeBatch {
                rollout,
                batch,
                open,
                reason,
                readings,
            } => {
                self.lead(who)?;
                let verdict = batch::Verdict {
                    open,
                    reason,
                    readings,
                };
                batch::judge(self, cx, rollout, batch, verdict, effects)
            }
            Command::ConcludeRollout { rollout, debt } => {
                self.lead(who)?;
                rollout::conclude(self, cx, rollout, debt, effects)
            }
            Command::BeginRollout { fleet, version } => {
                rollout::begin_by_hand(self, cx, who, &fleet, version, effects)
            }
            Command::AbortRollout { rollout, reason } => {
                rollout::abort(self, cx, who, rollout, reason, effects)
            }
            Command::CreateJoinToken {
                hash,
                worker,
                ttl_ms,
            } => {
                let ttl = std::time::Duration::from_millis(ttl_ms);
                join::create(self, cx, who, hash, worker, ttl)
            }
            Command::RevokeJoinToken { id } => join::revoke(self, who, &id),
            Command::JoinWorker(asked) => {
                self.lead(who)?;
                join::join(self, cx, asked)
            }
            Command::RaiseVersion { to } => {
                self.lead(who)?;
                version::raise(self, to)
            }
            Command::HoldVersion { held } => version::hold(self, who, held),
        }
    }

    fn allow(&self, who: &Principal, verb: Verb, team: Option<&TeamName>) -> Result<(), Rejected> {
        authorize(who, verb, team).map_err(Rejected::Denied)
    }

    fn farm_mut(&mut self) -> &mut Farm {
        self.farm
            .get_mut(&0)
            .expect("the farm's own record always exists")
    }

    fn lead(&self, who: &Principal) -> Result<(), Rejected> {
        self.allow(who, Verb::Lead, None)
    }

    /// Takes what changed since the last call, encoded, and brings the digest up to date.
    pub fn drain(&mut self) -> Changes {
        let mut digest = self.digest;
        let mut records = Vec::new();
        let tables = self.tables();
        each_table!(tables, table => table.drain(&mut digest, &mut records));
        self.digest = digest;
        Changes {
            records,
            history: std::mem::take(&mut self.history),
            pruned: std::mem::take(&mut self.pruned),
        }
    }

    /// Digest of the live state and, through the farm's record, of the history.
    pub fn digest(&self) -> StateDigest {
        self.digest
    }

    /// Puts back a record that a store or a snapshot kept; [`Ledger::finish_loading`] follows the last.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        let tag = key.first().copied();
        let mut digest = self.digest;
        let tables = self.tables();
        let mut known = None;
        each_table!(tables, table => if Some(table.tag()) == tag {
            known = Some(table.load(&mut digest, key, value));
        });
        self.digest = digest;
        match (known, tag) {
            (Some(loaded), Some(tag)) => {
                loaded.map_err(|err| LoadError::Record { tag, err })?;
            }
            _ => return Err(LoadError::UnknownTable { tag }),
        }
        Ok(())
    }

    /// An empty ledger to load records into: even the farm's own record comes from the store.
    pub fn for_loading() -> Ledger {
        let mut ledger = Ledger::new();
        ledger.farm = Table::new(FARM);
        ledger
    }

    /// Whether the farm's own record was among those loaded; nothing works without it.
    pub fn has_farm(&self) -> bool {
        self.farm.contains(&0)
    }

    /// Every live record, encoded. The ledger must have been drained.
    pub fn records(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.farm
            .records()
            .chain(self.tokens.records())
            .chain(self.teams.records())
            .chain(self.repositories.records())
            .chain(self.refs.records())
            .chain(self.crons.records())
            .chain(self.fleets.records())
            .chain(self.secrets.records())
            .chain(self.runs.records())
            .chain(self.tasks.records())
            .chain(self.leases.records())
            .chain(self.workers.records())
            .chain(self.layers.records())
            .chain(self.images.records())
            .chain(self.versions.records())
            .chain(self.rollouts.records())
            .chain(self.requests.records())
            .chain(self.finished.records())
            .chain(self.joins.records())
    }

    fn tables(&mut self) -> Tables<'_> {
        Tables {
            farm: &mut self.farm,
            tokens: &mut self.tokens,
            teams: &mut self.teams,
            repositories: &mut self.repositories,
            refs: &mut self.refs,
            crons: &mut self.crons,
            fleets: &mut self.fleets,
            secrets: &mut self.secrets,
            runs: &mut self.runs,
            tasks: &mut self.tasks,
            leases: &mut self.leases,
            workers: &mut self.workers,
            layers: &mut self.layers,
            images: &mut self.images,
            versions: &mut self.versions,
            rollouts: &mut self.rollouts,
            requests: &mut self.requests,
            finished: &mut self.finished,
            joins: &mut self.joins,
        }
    }
}

/// What readers see.
impl Ledger {
    /// Single values of the farm.
    pub fn farm(&self) -> &Farm {
        self.farm
            .get(&0)
            .expect("the farm's own record always exists")
    }

    /// Number of the last applied command.
    pub fn seq(&self) -> Seq {
        self.farm().seq
    }

    /// Who holds the token with this hash.
    pub fn token(&self, hash: &str) -> Option<&AccessToken> {
        self.tokens.get(&hash.to_owned())
    }

    /// Access tokens with their hashes.
    pub fn tokens(&self) -> &Table<String, AccessToken> {
        &self.tokens
    }

    /// The join token with this hash.
    pub fn join_token(&self, hash: &str) -> Option<&JoinToken> {
        self.joins.get(hash)
    }

    /// Join tokens by hash.
    pub fn join_tokens(&self) -> &Table<String, JoinToken> {
        &self.joins
    }

    /// Teams.
    pub fn teams(&self) -> &Table<TeamName, TeamRecord> {
        &self.teams
    }

    /// Repositories.
    pub fn repositories(&self) -> &Table<RepositoryName, RepositoryRecord> {
        &self.repositories
    }

    /// What branches showed last.
    pub fn refs(&self) -> &Table<(RepositoryName, String), RefState> {
        &self.refs
    }

    /// Pipelines with a calendar.
    pub fn crons(&self) -> &Table<(TeamName, PipelineName), CronState> {
        &self.crons
    }

    /// Fleets.
    pub fn fleets(&self) -> &Table<FleetName, FleetRecord> {
        &self.fleets
    }

    /// Secrets, without values.
    pub fn secrets(&self) -> &Table<(TeamName, SecretName), SecretRecord> {
        &self.secrets
    }

    /// Open runs.
    pub fn runs(&self) -> &Table<RunId, Run> {
        &self.runs
    }

    /// Tasks of what is open.
    pub fn tasks(&self) -> &Table<TaskId, Task> {
        &self.tasks
    }

    /// Live leases.
    pub fn leases(&self) -> &Table<Token, Lease> {
        &self.leases
    }

    /// What is derived from runs, tasks and leases.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Whether everything that is derived is what the tables say. Looks at all of them: an
    /// invariant for tests and simulations.
    pub fn index_holds(&self) -> bool {
        let live = self.index.settled();
        live == Index::of(self, live.watermark()) && self.ages == request::Ages::of(&self.requests)
    }

    /// What is kept in the history, by team.
    pub fn finished(&self) -> &Table<TeamName, Finished> {
        &self.finished
    }

    /// Finished layers by key.
    pub fn layers(&self) -> &Table<Digest, Layer> {
        &self.layers
    }

    /// Images.
    pub fn images(&self) -> &Table<ImageName, ImageRecord> {
        &self.images
    }

    /// Image versions.
    pub fn versions(&self) -> &Table<VersionRef, ImageVersion> {
        &self.versions
    }

    /// Open rollouts.
    pub fn rollouts(&self) -> &Table<RolloutId, Rollout> {
        &self.rollouts
    }

    /// An open run with its tasks.
    pub fn run_record(&self, id: RunId) -> Option<RunRecord> {
        let run = self.runs.get(&id)?.clone();
        let tasks = run
            .tasks
            .iter()
            .filter_map(|task| self.tasks.get(task).cloned())
            .collect();
        Some(RunRecord { run, tasks })
    }

    /// An open rollout with its tasks.
    pub fn rollout_record(&self, id: RolloutId) -> Option<RolloutRecord> {
        let rollout = self.rollouts.get(&id)?.clone();
        let tasks = rollout
            .batches
            .iter()
            .filter_map(|batch| self.tasks.get(&batch.task).cloned())
            .collect();
        Some(RolloutRecord { rollout, tasks })
    }
}

/// A cheap, immutable copy of the state for readers.
pub type View = Arc<Ledger>;

/// Inputs as strings, resolved when the source is read.
pub type Inputs = BTreeMap<String, String>;
