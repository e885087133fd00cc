//! The JSON that `-o json` prints: the API's messages, field by field, in camel case.
//!
//! Written by hand so that neither the generator of the wire code nor a renamed field can change
//! what scripts read. Fields are only ever added.

use std::collections::{BTreeMap, HashMap};

use oast_proto::v1;
use serde::Serialize;

/// Made from a part of a message.
trait From_<T> {
    fn from_(part: T) -> Self;
}

macro_rules! same {
    ($($kind:ty),*) => {
        $(impl From_<$kind> for $kind {
            fn from_(part: $kind) -> $kind {
                part
            }
        })*
    };
}

same!(String, u64, u32, i32, i64, bool);

impl<T, U: From_<T>> From_<Vec<T>> for Vec<U> {
    fn from_(part: Vec<T>) -> Vec<U> {
        part.into_iter().map(U::from_).collect()
    }
}

impl<T, U: From_<T>> From_<Option<T>> for Option<U> {
    fn from_(part: Option<T>) -> Option<U> {
        part.map(U::from_)
    }
}

impl From_<HashMap<String, u32>> for BTreeMap<String, u32> {
    fn from_(part: HashMap<String, u32>) -> BTreeMap<String, u32> {
        part.into_iter().collect()
    }
}

macro_rules! shapes {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {
        $(
            #[doc = concat!("The JSON of `oast.v1.", stringify!($name), "`.")]
            #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
            #[serde(rename_all = "camelCase")]
            pub struct $name {
                $(pub $field: $kind,)*
            }

            impl From_<v1::$name> for $name {
                fn from_(message: v1::$name) -> $name {
                    $name { $($field: From_::from_(message.$field),)* }
                }
            }

            impl From<v1::$name> for $name {
                fn from(message: v1::$name) -> $name {
                    From_::from_(message)
                }
            }
        )*
    };
}

shapes! {
    Run {
        id: String, seq: u64, team: String, pipeline: String, repository: String, branch: String,
        commit: String, subject: String, author: String, dirty: bool, cause: String,
        started_by: String, started_at_ms: u64, ended_at_ms: u64, phase: String, ended: bool,
        reason: String, details: Vec<String>, tasks: Vec<Task>, version: String,
        rollouts: Vec<String>, priority: String, retry_of: String,
    }
    Task {
        id: String, kind: String, name: String, phase: String, waiting: String, reason: String,
        created_at_ms: u64, ended_at_ms: u64, attempts: Vec<Attempt>, steps: Vec<Step>,
    }
    Attempt { token: u64, worker: String, granted_at_ms: u64, ended_at_ms: u64, ended: String }
    Step {
        title: String, phase: String, cached: bool, took_ms: u64, since_ms: u64, token: u64,
        layer: String,
    }
    Image {
        name: String, team: String, channels: BTreeMap<String, u32>, versions: Vec<ImageVersion>,
        version_count: u32,
    }
    ImageVersion {
        version: String, team: String, base: String, arch: String, digest: String, disk_size: u64,
        layers: Vec<String>, package_count: u32, run: String, commit: String, published_at_ms: u64,
        regions: Vec<String>, channels: Vec<String>, packages: Vec<Package>,
        bills: bool, provenance: bool,
    }
    Package { name: String, version: String, arch: String }
    Fleet {
        name: String, team: String, provider: String, listen: String, seq: u64, generation: u64,
        total: u32, target: String, good: String, previous_good: String, barred: Vec<String>,
        active_rollout: String, last_rollout: String, last_phase: String, observed: bool,
        instances: Vec<Instance>, note: String,
    }
    Instance {
        name: String, version: String, state: String, healthy: bool, in_rotation: bool,
        direct: String, replaced: u32, note: String,
    }
    Rollout {
        id: String, fleet: String, team: String, run: String, from: String, to: String,
        phase: String, ended: bool, reason: String, debt: Vec<String>, batches: Vec<Batch>,
        requested_by: String, began_at_ms: u64, ended_at_ms: u64, seq: u64, generation: u64,
    }
    Batch {
        kind: String, instances: Vec<String>, version: String, phase: String, reason: String,
        began_at_ms: u64, readings: Vec<GateReading>, attempts: Vec<Attempt>,
    }
    GateReading { gate: u32, instance: String, outcome: String, measured: String }
    Worker {
        name: String, region: String, arch: String, version: String, slots: u32,
        tasks: Vec<String>, capabilities: Vec<String>, connected_at_ms: u64, silent_ms: u64,
    }
    Peer {
        id: u64, address: String, role: String, voter: bool, matched: u64, applied: u64, lag: u64,
        answers: bool, clock_ms: Option<i64>, joined: bool, snapshot: bool,
    }
    RaftStatus {
        member: u64, farm: String, role: String, leader: u64, term: u64, first: u64, last: u64,
        commit: u64, applied: u64, snapshot: u64, history_missing: u64, voters: Vec<u64>,
        learners: Vec<u64>, outgoing: Vec<u64>, changing: bool, skew_ms: Option<i64>,
        barred: bool, compared: u64, peers: Vec<Peer>,
    }
    FarmVersion { version: u32, held: bool, next: u32, members: Vec<MemberVersion> }
    MemberVersion { member: u64, supported: u32 }
    ListPeersResponse { peers: Vec<Peer>, term: u64, leader: u64 }
    Resource { kind: String, name: String, team: String, revision: u64, document: String }
    ApplyResourceResponse {
        kind: String, name: String, revision: u64, created: bool, changes: Vec<FieldChange>,
    }
    FieldChange { path: String, before: String, after: String }
    Secret { team: String, name: String, version: u64, set_at_ms: u64, set_by: String }
    Identity { name: String, role: String, team: String, farm: String, version: String }
}

/// The JSON of one change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Number of the command.
    pub seq: u64,
    /// What changed, as it was then.
    #[serde(flatten)]
    pub what: What,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    /// A run.
    Run(Run),
    /// A rollout.
    Rollout(Rollout),
    /// A fleet, without its instances.
    Fleet(Fleet),
    /// The name of a fleet that was deleted.
    DeletedFleet(String),
}

impl Change {
    /// Nothing for a kind of change that this binary does not know.
    pub fn read(change: v1::Change) -> Option<Change> {
        let what = match change.what? {
            v1::change::What::Run(run) => What::Run(run.into()),
            v1::change::What::Rollout(rollout) => What::Rollout(rollout.into()),
            v1::change::What::Fleet(fleet) => What::Fleet(fleet.into()),
            v1::change::What::DeletedFleet(name) => What::DeletedFleet(name),
        };
        Some(Change {
            seq: change.seq,
            what,
        })
    }
}

/// The JSON of one line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When it was written.
    pub at_ms: u64,
    /// The task's id.
    pub task: String,
    /// Place of the step, from 0; null for the task itself.
    pub step: Option<i32>,
    /// out, err or farm.
    pub stream: String,
    /// The line; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl From<&v1::LogLine> for LogLine {
    fn from(line: &v1::LogLine) -> LogLine {
        LogLine {
            at_ms: line.at_ms,
            task: line.task.clone(),
            step: (line.step >= 0).then_some(line.step),
            stream: line.stream.clone(),
            text: String::from_utf8_lossy(&line.text).into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_the_documented_shape() {
        let run = v1::Run {
            id: "r-7".into(),
            seq: 9,
            team: "demo".into(),
            phase: "baking".into(),
            tasks: vec![v1::Task {
                id: "t-8-0".into(),
                kind: "bake".into(),
                steps: vec![v1::Step {
                    title: "run: true".into(),
                    phase: "pending".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let json = serde_json::to_string(&Run::from(run)).expect("json");
        assert_eq!(
            json,
            r#"{"id":"r-7","seq":9,"team":"demo","pipeline":"","repository":"","branch":"","commit":"","subject":"","author":"","dirty":false,"cause":"","startedBy":"","startedAtMs":0,"endedAtMs":0,"phase":"baking","ended":false,"reason":"","details":[],"tasks":[{"id":"t-8-0","kind":"bake","name":"","phase":"","waiting":"","reason":"","createdAtMs":0,"endedAtMs":0,"attempts":[],"steps":[{"title":"run: true","phase":"pending","cached":false,"tookMs":0,"sinceMs":0,"token":0,"layer":""}]}],"version":"","rollouts":[],"priority":"","retryOf":""}"#
        );
    }

    #[test]
    fn a_fleet_has_the_documented_shape() {
        let fleet = v1::Fleet {
            name: "web".into(),
            instances: vec![v1::Instance {
                name: "web-0".into(),
                healthy: true,
                ..Default::default()
            }],
            ..Default::default()
        };
        let json = serde_json::to_string(&Fleet::from(fleet)).expect("json");
        assert_eq!(
            json,
            r#"{"name":"web","team":"","provider":"","listen":"","seq":0,"generation":0,"total":0,"target":"","good":"","previousGood":"","barred":[],"activeRollout":"","lastRollout":"","lastPhase":"","observed":false,"instances":[{"name":"web-0","version":"","state":"","healthy":true,"inRotation":false,"direct":"","replaced":0,"note":""}],"note":""}"#
        );
    }

    #[test]
    fn a_line_of_a_task_has_no_step() {
        let line = v1::LogLine {
            step: -1,
            text: b"a\xff".to_vec().into(),
            ..Default::default()
        };
        let line = LogLine::from(&line);
        assert_eq!((line.step, line.text.as_str()), (None, "a\u{fffd}"));
    }
}
