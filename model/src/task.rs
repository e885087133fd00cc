//! What is scheduled and leased, and what comes back.
//!
//! The ledger stores a [`Task`] with its attempts; a worker gets an [`Assignment`],
//! complete in itself, and answers with [`Report`]s under the lease's token.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bake::{BakedImage, Layer, Trust};
use crate::digest::Digest;
use crate::fleet::{DeployImage, GateReading, VersionRef};
use crate::ids::{RolloutId, RunId, TaskId, Token};
use crate::names::{ChannelName, FleetName, InstanceName, RegionName, TeamName, WorkerName};
use crate::pipeline::{Bake, Gate, Pipeline, SecretRef, Test};
use crate::resource;
use crate::time::Timestamp;
use crate::units::TimeSpan;

/// Attempts that may end in an error of ours before the task is given up.
pub const ERRORED_ATTEMPTS_MAX: usize = 5;
/// Attempts of any kind before the task is given up.
pub const ATTEMPTS_MAX: usize = 50;

/// Where a run's files come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A commit of a remote.
    Git {
        /// Where it is fetched from.
        url: String,
        /// Branch on which it was seen.
        branch: String,
        /// Full commit id.
        commit: String,
        /// The commit that the branch showed before, for path filters.
        before: Option<String>,
        /// What the fetch is allowed by.
        credentials: Option<SecretRef>,
    },
    /// A tree that was uploaded.
    Upload {
        /// Address of the tree in the artifact store.
        tree: Digest,
        /// The commit it is based on, when there is one.
        commit: Option<String>,
        /// Whether it has changes that are in no commit.
        dirty: bool,
    },
}

impl Origin {
    /// The commit, when there is one.
    pub fn commit(&self) -> Option<&str> {
        match self {
            Origin::Git { commit, .. } => Some(commit),
            Origin::Upload { commit, .. } => commit.as_deref(),
        }
    }
}

/// Whether a task's effects reach only what its attempt named, or what others share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseClass {
    /// Runs on to its deadline without a quorum.
    Private,
    /// Stops changing things before its lease can end.
    Shared,
}

/// What a task does. Details are taken from its owner when it is assigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Commit to content-addressed tree and pipeline revision.
    Source,
    /// Steps to layers to image.
    Bake,
    /// The image is tried.
    Test,
    /// The image is copied to a region.
    Publish(Option<RegionName>),
    /// Instances are replaced or restarted.
    Batch(BatchOrder),
}

impl TaskKind {
    /// The word for it, also a worker's capability.
    pub const fn as_str(&self) -> &'static str {
        match self {
            TaskKind::Source => "source",
            TaskKind::Bake => "bake",
            TaskKind::Test => "test",
            TaskKind::Publish(_) => "publish",
            TaskKind::Batch(_) => "batch",
        }
    }

    /// Its class of lease.
    pub const fn class(&self) -> LeaseClass {
        match self {
            TaskKind::Batch(_) => LeaseClass::Shared,
            _ => LeaseClass::Private,
        }
    }
}

/// What a batch does to its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchAction {
    /// Brings each instance to this version, creating it when missing.
    Deploy(VersionRef),
    /// Starts each instance again as it is.
    Restart,
}

/// A batch as `BeginBatch` recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOrder {
    /// Whose instances.
    pub fleet: FleetName,
    /// The fleet's generation for which this was decided.
    pub generation: u64,
    /// Every instance by name.
    pub instances: Vec<InstanceName>,
    /// What is done to them.
    pub action: BatchAction,
    /// Place in the rollout; none for a repair.
    pub batch: Option<u32>,
}

/// Who wants a task done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskOwner {
    /// A run.
    Run(RunId),
    /// A rollout.
    Rollout(RolloutId),
    /// A fleet that is repaired.
    Fleet(FleetName),
}

/// Where a task stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskPhase {
    /// Wants a worker, not before the given time.
    Ready {
        /// Earliest start; after an error it lies in the future.
        not_before: Timestamp,
    },
    /// A worker holds its lease.
    Leased {
        /// The lease.
        token: Token,
    },
    /// Over.
    Ended {
        /// How.
        ending: Ending,
    },
}

/// How something ended, as a person reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// As wanted.
    Succeeded,
    /// The recipe, the code or the image is wrong. Not tried again.
    Failed,
    /// We or the machines are at fault.
    Errored,
    /// Somebody ended it.
    Cancelled,
    /// There was nothing to do.
    Skipped,
}

/// One lease of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its fencing token.
    pub token: Token,
    /// Who held it.
    pub worker: WorkerName,
    /// Which start of that worker.
    pub incarnation: u64,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// When and how it ended.
    pub ended: Option<(Timestamp, String)>,
    /// It ended by an error of ours.
    pub errored: bool,
}

/// A bake's step, as the ledger records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What people see.
    pub title: String,
    /// Where it stands.
    pub phase: StepPhase,
}

/// Where a step stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// Not begun, or its attempt ended before it was done.
    Pending,
    /// Being done.
    Running {
        /// Under this lease.
        token: Token,
        /// Since then.
        since: Timestamp,
    },
    /// Durable. Is never begun again.
    Done {
        /// The lease under which it was done.
        token: Token,
        /// Its result.
        layer: Box<Layer>,
        /// An earlier result was taken.
        cached: bool,
        /// How long it took, in milliseconds.
        took_ms: u64,
    },
}

/// Something to be done once, whoever does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its identity.
    pub id: TaskId,
    /// Who wants it.
    pub owner: TaskOwner,
    /// Whose share of the farm it uses.
    pub team: TeamName,
    /// What it does.
    pub kind: TaskKind,
    /// Where it stands.
    pub phase: TaskPhase,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Higher goes first.
    pub priority: u8,
    /// Each lease it had, oldest first.
    pub attempts: Vec<Attempt>,
    /// A bake's steps, the base first.
    pub steps: Vec<Step>,
    /// Why it ended as it did.
    pub reason: Option<String>,
}

impl Task {
    /// The live lease.
    pub fn token(&self) -> Option<Token> {
        match self.phase {
            TaskPhase::Leased { token } => Some(token),
            _ => None,
        }
    }

    /// Over.
    pub fn ended(&self) -> bool {
        matches!(self.phase, TaskPhase::Ended { .. })
    }

    /// The finished steps, in order.
    pub fn finished_layers(&self) -> impl Iterator<Item = &Layer> {
        self.steps.iter().map_while(|step| match &step.phase {
            StepPhase::Done { layer, .. } => Some(&**layer),
            _ => None,
        })
    }
}

/// A task with everything its worker needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// The lease.
    pub token: Token,
    /// Counts from 1.
    pub attempt: u32,
    /// The run it belongs to, for logs; batches log under their rollout's run.
    pub run: Option<RunId>,
    /// Whose it is.
    pub team: TeamName,
    /// What to do.
    pub work: Work,
    /// Values of the secrets that the work names. Never in the ledger; added by the
    /// leader when it sends the assignment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// What an assignment asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Fetch, store, read the pipeline file.
    Source {
        /// Where the files are.
        origin: Origin,
        /// The pipeline file in them.
        path: String,
        /// The team that the pipeline must name.
        team: TeamName,
        /// Check the pipeline's triggers against this push; none for other causes.
        check_triggers: bool,
        /// Values given to the run.
        inputs: BTreeMap<String, String>,
    },
    /// Make the image.
    Bake {
        /// The recipe, inputs already filled in.
        bake: Box<Bake>,
        /// The source tree.
        tree: Digest,
        /// Whose work the layers may feed.
        trust: Trust,
        /// Layers of the steps that are done.
        done: Vec<Layer>,
        /// Name for messages: the image that will be published.
        image: String,
        /// Images that the recipe names, as their channels are now. One that is not there is
        /// missing here, too.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        images: Vec<NamedImage>,
    },
    /// Try the image.
    Test {
        /// What it must pass.
        tests: Vec<Test>,
        /// The image.
        image: Box<BakedImage>,
    },
    /// Make the image usable in a region.
    Publish {
        /// The region; none where it was baked.
        region: Option<RegionName>,
        /// The image.
        image: Box<BakedImage>,
    },
    /// Replace or restart instances.
    Batch {
        /// The order.
        order: BatchOrder,
        /// The fleet as declared.
        fleet: Box<resource::Fleet>,
        /// The version to deploy; none for a restart.
        image: Option<DeployImage>,
        /// Gates that must open before an instance takes traffic.
        gates: Vec<Gate>,
        /// How long an instance may take to become healthy.
        healthy_deadline: TimeSpan,
    },
}

/// An image that a recipe names by its channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedImage {
    /// Which version that is now.
    pub version: VersionRef,
    /// The channel.
    pub channel: ChannelName,
    /// Its content.
    pub image: BakedImage,
}

/// What a worker tells about its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// A step begins.
    StepStarted {
        /// Place of the step.
        step: u16,
    },
    /// A step's chunks and manifest are durable.
    StepFinished {
        /// Place of the step.
        step: u16,
        /// Its result.
        layer: Layer,
        /// An earlier result was taken.
        cached: bool,
        /// How long it took, in milliseconds.
        took_ms: u64,
    },
    /// The attempt is over.
    Finished(Outcome),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As wanted.
    Succeeded(Box<Output>),
    /// The recipe, the code or the image is wrong.
    Failed {
        /// In one sentence.
        reason: String,
        /// One line each: diagnostics, last output lines.
        details: Vec<String>,
    },
    /// We or the machines are at fault; tried again.
    Errored {
        /// In one sentence.
        reason: String,
    },
    /// There is nothing to do.
    Skipped {
        /// In one sentence.
        reason: String,
    },
    /// The worker gives the task back, without fault (it drains).
    Released,
}

/// What a task produced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "it is always behind the box of `Outcome::Succeeded`"
)]
pub enum Output {
    /// Of a source task.
    Source(Box<SourceOutput>),
    /// Of a bake.
    Baked(BakedImage),
    /// Of a test: one line for each check that passed.
    Tested(Vec<String>),
    /// Of a publish.
    Published,
    /// Of a batch.
    Batch(BatchOutput),
}

/// What a source task found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOutput {
    /// The tree in the artifact store.
    pub tree: Digest,
    /// The checked pipeline, inputs filled in.
    pub pipeline: Pipeline,
    /// First line of the commit message.
    pub subject: Option<String>,
    /// Who wrote the commit.
    pub author: Option<String>,
}

/// What a batch did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOutput {
    /// Every instance of the batch with what it runs now and whether it is good.
    pub instances: Vec<BatchInstance>,
    /// The gates as read before the instances took traffic.
    pub readings: Vec<GateReading>,
}

/// One instance after a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchInstance {
    /// Its name.
    pub name: InstanceName,
    /// What it ran before the batch touched it, as far as it is known.
    pub before: Option<VersionRef>,
    /// Healthy, gates open, in rotation.
    pub good: bool,
    /// Why not.
    pub note: String,
}
