//! Everything that can be asked of the ledger, and what it answers.
//!
//! A command is one entry of the log's batch. Its [`Command::kind`] number is part of
//! the stored format: numbers are never reused, and an unknown one stops a member.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::join::JoinWorker;
use super::{Pruned, RetryRun};
use crate::fleet::{GateReading, VersionRef};
use crate::ids::{RolloutId, RunId, Seq, TaskId, Token};
use crate::names::{
    FleetName, InstanceName, PipelineName, RepositoryName, SecretName, TeamName, WorkerName,
};
use crate::principal::{Denied, Principal, Role};
use crate::priority::Priority;
use crate::resource::{Resource, ResourceKind};
use crate::task::{BatchAction, Origin, Report};
use crate::time::Timestamp;

/// A command with who asks and under which id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub principal: Principal,
    /// Makes a retry safe: the same id from the same principal gets the first answer.
    pub request_id: Option<String>,
    /// What is asked.
    pub command: Command,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// First command of a farm: its name and the first administrator's token.
    InitFarm {
        /// Name of the farm.
        name: String,
        /// Hash of the first administrator's token.
        admin: String,
        /// Hash of the token that workers use.
        worker: String,
    },
    /// A new access token.
    CreateToken {
        /// Hash of the token; the token itself is never in the log.
        hash: String,
        /// Who it is for.
        name: String,
        /// What it allows.
        role: Role,
        /// For one team only.
        team: Option<TeamName>,
    },
    /// Ends an access token.
    RevokeToken {
        /// Who it was for.
        name: String,
    },
    /// Creates or changes a resource.
    ApplyResource {
        /// The whole resource as wanted.
        resource: Box<Resource>,
        /// Revision that the change was shown against; 0 for a new one, absent for any.
        expected: Option<u64>,
    },
    /// Removes a resource.
    DeleteResource {
        /// What sort.
        kind: ResourceKind,
        /// Which.
        name: String,
    },
    /// Records that a secret has a new value, which is kept outside of the state.
    SetSecret {
        /// Whose.
        team: TeamName,
        /// Which.
        name: SecretName,
    },
    /// Starts a run.
    SubmitRun(SubmitRun),
    /// Ends a run.
    CancelRun {
        /// Which.
        run: RunId,
        /// Why.
        reason: String,
    },
    /// Tells what a repository's branches show. The first new commit starts a run;
    /// asked again until the answer is [`Answer::Unchanged`].
    ObserveRefs {
        /// Which repository.
        repository: RepositoryName,
        /// Branch to full commit id. Branches that are absent are left alone.
        refs: BTreeMap<String, String>,
    },
    /// Leases a task to a worker.
    GrantLease {
        /// The task.
        task: TaskId,
        /// The worker.
        worker: WorkerName,
        /// Which start of it.
        incarnation: u64,
    },
    /// Ends a lease whose holder was silent too long.
    ExpireLease {
        /// The lease.
        token: Token,
        /// What was measured.
        reason: String,
    },
    /// A worker started anew: leases of its other incarnations end.
    BeginIncarnation {
        /// The worker.
        worker: WorkerName,
        /// The new start.
        incarnation: u64,
    },
    /// A worker's report under a lease.
    Report {
        /// The lease.
        token: Token,
        /// What happened.
        report: Box<Report>,
    },
    /// Begins the next batch of a rollout, or a repair of a fleet.
    BeginBatch(BeginBatch),
    /// The leader's verdict on a batch that soaked.
    JudgeBatch {
        /// The rollout.
        rollout: RolloutId,
        /// Its batch.
        batch: u32,
        /// Whether it may go on.
        open: bool,
        /// In one sentence.
        reason: String,
        /// What was measured.
        readings: Vec<GateReading>,
    },
    /// The leader saw that nothing is left to do, or that nothing can be done.
    ConcludeRollout {
        /// The rollout.
        rollout: RolloutId,
        /// What could not be brought where it should be.
        debt: Vec<String>,
    },
    /// Starts a rollout by hand.
    BeginRollout {
        /// The fleet.
        fleet: FleetName,
        /// To this version; absent for the good one before the present.
        version: Option<VersionRef>,
    },
    /// Sends a rollout back to where it came from.
    AbortRollout {
        /// The rollout.
        rollout: RolloutId,
        /// Why.
        reason: String,
    },
    /// A calendar's time has come.
    FireCron {
        /// The pipeline.
        pipeline: PipelineName,
        /// Its team.
        team: TeamName,
        /// The time that was due.
        due: Timestamp,
    },
    /// A new run with what a finished one had.
    RetryRun(Box<RetryRun>),
    /// Records of finished work that have outlived their policy. Proposed by the leader.
    PruneHistory {
        /// In the order of their numbers.
        records: Vec<Pruned>,
    },
    /// A token with which a worker may join.
    CreateJoinToken {
        /// Hash of the token; the token itself is never in the log.
        hash: String,
        /// The one worker that may use it; absent for any.
        #[serde(default)]
        worker: Option<WorkerName>,
        /// How long it can be used, from the command's time, in milliseconds.
        ttl_ms: u64,
    },
    /// Ends a join token that nobody used.
    RevokeJoinToken {
        /// What lists call it by.
        id: String,
    },
    /// A worker joins with a token. Proposed by the member that it asked.
    JoinWorker(JoinWorker),
    /// Raises the cluster version: from here on commands and behaviours of that version are used.
    /// Proposed by the leader when every member supports it. A member that does not, stops.
    RaiseVersion {
        /// The new version.
        to: u32,
    },
    /// Holds the cluster version where it is, or lets it rise again.
    HoldVersion {
        /// Whether it is held.
        held: bool,
    },
}

/// Starts a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitRun {
    /// Whose run it is.
    pub team: TeamName,
    /// The repository that it came from, when the farm knows one.
    pub repository: Option<RepositoryName>,
    /// Where the files are.
    pub origin: Origin,
    /// The pipeline file in them.
    pub path: String,
    /// Why it was started, in a few words.
    pub cause: String,
    /// Values for the pipeline's inputs.
    pub inputs: BTreeMap<String, String>,
    /// How urgent it is; absent: as the pipeline says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// A batch as the planner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginBatch {
    /// The fleet.
    pub fleet: FleetName,
    /// The fleet's generation that the planner saw.
    pub generation: u64,
    /// The rollout; none for a repair.
    pub rollout: Option<RolloutId>,
    /// Every instance by name.
    pub instances: Vec<InstanceName>,
    /// What is done to them.
    pub action: BatchAction,
    /// Instances of the fleet that the leader sees out of service now, the batch's own included.
    pub unavailable: Vec<InstanceName>,
}

impl Command {
    /// The number of this kind in the stored format.
    pub const fn kind(&self) -> u32 {
        match self {
            Command::InitFarm { .. } => 1,
            Command::CreateToken { .. } => 2,
            Command::RevokeToken { .. } => 3,
            Command::ApplyResource { .. } => 4,
            Command::DeleteResource { .. } => 5,
            Command::SetSecret { .. } => 6,
            Command::SubmitRun(_) => 7,
            Command::CancelRun { .. } => 8,
            Command::ObserveRefs { .. } => 9,
            Command::GrantLease { .. } => 10,
            Command::ExpireLease { .. } => 11,
            Command::BeginIncarnation { .. } => 12,
            Command::Report { .. } => 13,
            Command::BeginBatch(_) => 14,
            Command::JudgeBatch { .. } => 15,
            Command::ConcludeRollout { .. } => 16,
            Command::BeginRollout { .. } => 17,
            Command::AbortRollout { .. } => 18,
            Command::FireCron { .. } => 19,
            Command::RetryRun(_) => 20,
            Command::PruneHistory { .. } => 21,
            Command::CreateJoinToken { .. } => 22,
            Command::RevokeJoinToken { .. } => 23,
            Command::JoinWorker(_) => 24,
            Command::RaiseVersion { .. } => 25,
            Command::HoldVersion { .. } => 26,
        }
    }

    /// The team that it is about, where it is about one and anybody may send it for that team.
    pub(super) fn team(&self) -> Option<&TeamName> {
        match self {
            Command::SubmitRun(submit) => Some(&submit.team),
            Command::RetryRun(retry) => Some(&retry.submit.team),
            Command::SetSecret { team, .. } => Some(team),
            _ => None,
        }
    }

    /// The highest kind that this binary knows.
    pub const LAST_KIND: u32 = 26;
}

/// What the ledger answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// Nothing had to be done.
    Unchanged,
    /// The resource has this revision now.
    Revision(u64),
    /// The run that was started, or that the same request started before.
    Run(RunId),
    /// The lease that was granted.
    Lease(Token),
    /// The rollout that was begun, or that waits for the one before.
    Rollout(Option<RolloutId>),
    /// The task that was made.
    Task(TaskId),
}

/// Why the ledger refuses. A normal answer: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejected {
    /// The principal may not do this.
    #[error(transparent)]
    Denied(Denied),
    /// What it names is not there.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// What sort of thing.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The lease is over: the work now belongs to nobody or to a higher token.
    #[error("lease {token} is over")]
    StaleToken {
        /// The lease.
        token: Token,
    },
    /// It is not in a state that allows this.
    #[error("{0}")]
    WrongState(String),
    /// The resource moved since the change was shown.
    #[error(
        "{name} has revision {actual} now, the change was made against {expected}: look at it again"
    )]
    Moved {
        /// Which.
        name: String,
        /// Revision that was shown.
        expected: u64,
        /// Revision that is.
        actual: u64,
    },
    /// A rule of the farm forbids it.
    #[error("{0}")]
    Forbidden(String),
    /// A limit is reached.
    #[error("{0}")]
    Exhausted(String),
}

/// What follows from a command; only the leader acts on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// There may be something to schedule.
    TasksChanged,
    /// A lease began.
    LeaseGranted {
        /// The lease.
        token: Token,
    },
    /// A lease ended by a command other than its holder's report.
    LeaseEnded {
        /// The lease.
        token: Token,
        /// Who held it.
        worker: WorkerName,
        /// Which start of it.
        incarnation: u64,
    },
    /// A run changed.
    RunChanged(RunId),
    /// A rollout changed.
    RolloutChanged(RolloutId),
    /// A fleet changed.
    FleetChanged(FleetName),
    /// Repositories, fleets or calendars changed.
    ResourcesChanged,
}

/// Something that is over and never changes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRecord {
    /// When it went to history.
    pub seq: Seq,
    /// `r` for a run, `o` for a rollout.
    pub kind: u8,
    /// The sequence in its id.
    pub id: Seq,
    /// Encoded [`super::RunRecord`] or [`super::RolloutRecord`].
    pub bytes: Vec<u8>,
}
