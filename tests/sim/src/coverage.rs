//! What happened how often: faults, and what the ledger made of each kind of command.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use oast_model::ledger::{Answer, Command, Rejected};

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    faults: BTreeMap<&'static str, u64>,
    transitions: BTreeMap<(&'static str, &'static str), u64>,
}

/// Faults that must have happened for a run of many seeds to mean anything.
pub const FAULTS: &[&str] = &[
    "member killed",
    "member lost power",
    "member lost unsynced writes",
    "member's state damaged",
    "member's disk failed",
    "member's disk slow",
    "member's disk nearly full",
    "member's disk full",
    "leader stepped aside",
    "write refused for lack of room",
    "member upgraded",
    "member paused",
    "member's calendar jumped",
    "member cut off",
    "link cut one way",
    "group split",
    "leadership handed over",
    "election forced",
    "election contested",
    "member added",
    "learner promoted",
    "member removed",
    "member replaced",
    "member kept for its history",
    "member's disk wiped",
    "wiped member refused",
    "removed member stopped",
    "stranger refused",
    "change given up",
    "message lost",
    "message doubled",
    "snapshot made",
    "snapshot failed",
    "snapshot fetched",
    "snapshot fetch failed",
    "history fetched",
    "log compacted",
    "worker killed",
    "worker killed in a call",
    "worker drained",
    "worker paused",
    "worker cut off",
    "worker cut from the cloud",
    "stream broken",
    "lease expired",
    "decision repeated",
    "decision delayed",
    "late report refused",
    "cloud call lost",
    "cloud answer lost",
    "cloud call late",
    "cloud call doubled",
    "cloud call refused by etag",
    "instance crashed",
    "instance repaired",
    "request repeated",
    "request outcome unknown",
];

/// What each kind of command must have been answered.
pub const TRANSITIONS: &[(&str, &str)] = &[
    ("InitFarm", "done"),
    ("InitFarm", "unchanged"),
    ("InitFarm", "wrong state"),
    ("CreateToken", "done"),
    ("CreateToken", "wrong state"),
    ("CreateToken", "denied"),
    ("RevokeToken", "done"),
    ("RevokeToken", "not found"),
    ("RevokeToken", "denied"),
    ("ApplyResource", "revision"),
    ("ApplyResource", "unchanged"),
    ("ApplyResource", "moved"),
    ("ApplyResource", "not found"),
    ("ApplyResource", "forbidden"),
    ("ApplyResource", "denied"),
    ("DeleteResource", "done"),
    ("DeleteResource", "not found"),
    ("DeleteResource", "wrong state"),
    ("DeleteResource", "denied"),
    ("SetSecret", "revision"),
    ("SetSecret", "not found"),
    ("SetSecret", "denied"),
    ("SubmitRun", "run"),
    ("SubmitRun", "not found"),
    ("SubmitRun", "denied"),
    ("CancelRun", "done"),
    ("CancelRun", "not found"),
    ("CancelRun", "wrong state"),
    ("CancelRun", "denied"),
    ("ObserveRefs", "run"),
    ("ObserveRefs", "unchanged"),
    ("ObserveRefs", "not found"),
    ("GrantLease", "lease"),
    ("GrantLease", "wrong state"),
    ("GrantLease", "exhausted"),
    ("GrantLease", "not found"),
    ("ExpireLease", "done"),
    ("ExpireLease", "stale token"),
    ("BeginIncarnation", "done"),
    ("BeginIncarnation", "unchanged"),
    ("Report", "done"),
    ("Report", "stale token"),
    ("Report", "wrong state"),
    ("BeginBatch", "task"),
    ("BeginBatch", "wrong state"),
    ("JudgeBatch", "done"),
    ("JudgeBatch", "wrong state"),
    ("ConcludeRollout", "done"),
    ("ConcludeRollout", "not found"),
    ("BeginRollout", "rollout"),
    ("BeginRollout", "wrong state"),
    ("BeginRollout", "not found"),
    ("BeginRollout", "forbidden"),
    ("BeginRollout", "denied"),
    ("AbortRollout", "done"),
    ("AbortRollout", "unchanged"),
    ("AbortRollout", "not found"),
    ("AbortRollout", "denied"),
    ("FireCron", "run"),
    ("FireCron", "unchanged"),
    ("RetryRun", "run"),
    ("RetryRun", "wrong state"),
    ("RetryRun", "not found"),
    ("PruneHistory", "done"),
    ("PruneHistory", "forbidden"),
    ("CreateJoinToken", "done"),
    ("CreateJoinToken", "wrong state"),
    ("CreateJoinToken", "denied"),
    ("RevokeJoinToken", "done"),
    ("RevokeJoinToken", "not found"),
    ("JoinWorker", "done"),
    ("JoinWorker", "unchanged"),
    ("JoinWorker", "forbidden"),
    ("RaiseVersion", "done"),
    ("RaiseVersion", "unchanged"),
    ("RaiseVersion", "wrong state"),
    ("RaiseVersion", "denied"),
    ("HoldVersion", "done"),
    ("HoldVersion", "unchanged"),
    ("HoldVersion", "denied"),
];

/// Kinds of command by number; a kind that is missing here is counted as "another kind".
const COMMANDS: &[&str] = &[
    "another kind",
    "InitFarm",
    "CreateToken",
    "RevokeToken",
    "ApplyResource",
    "DeleteResource",
    "SetSecret",
    "SubmitRun",
    "CancelRun",
    "ObserveRefs",
    "GrantLease",
    "ExpireLease",
    "BeginIncarnation",
    "Report",
    "BeginBatch",
    "JudgeBatch",
    "ConcludeRollout",
    "BeginRollout",
    "AbortRollout",
    "FireCron",
    "RetryRun",
    "PruneHistory",
    "CreateJoinToken",
    "RevokeJoinToken",
    "JoinWorker",
    "RaiseVersion",
    "HoldVersion",
];

/// The name of a kind of command.
pub fn command_name(command: &Command) -> &'static str {
    let kind = usize::try_from(command.kind()).unwrap_or(0);
    COMMANDS.get(kind).copied().unwrap_or(COMMANDS[0])
}

/// The name of an answer. By shape and not by exhaustive match: a new one is counted as "other".
pub fn answer_name(result: &Result<Answer, Rejected>) -> &'static str {
    let names: [(&str, bool); 14] = [
        ("done", matches!(result, Ok(Answer::Done))),
        ("unchanged", matches!(result, Ok(Answer::Unchanged))),
        ("revision", matches!(result, Ok(Answer::Revision(_)))),
        ("run", matches!(result, Ok(Answer::Run(_)))),
        ("lease", matches!(result, Ok(Answer::Lease(_)))),
        ("rollout", matches!(result, Ok(Answer::Rollout(_)))),
        ("task", matches!(result, Ok(Answer::Task(_)))),
        ("denied", matches!(result, Err(Rejected::Denied(_)))),
        (
            "not found",
            matches!(result, Err(Rejected::NotFound { .. })),
        ),
        (
            "stale token",
            matches!(result, Err(Rejected::StaleToken { .. })),
        ),
        (
            "wrong state",
            matches!(result, Err(Rejected::WrongState(_))),
        ),
        ("moved", matches!(result, Err(Rejected::Moved { .. }))),
        ("forbidden", matches!(result, Err(Rejected::Forbidden(_)))),
        ("exhausted", matches!(result, Err(Rejected::Exhausted(_)))),
    ];
    let found = names.into_iter().find(|(_, is)| *is);
    found.map_or("other", |(name, _)| name)
}

impl Coverage {
    /// A fault happened.
    pub fn fault(&mut self, name: &'static str) {
        debug_assert!(FAULTS.contains(&name), "`{name}` is not in the table");
        *self.faults.entry(name).or_default() += 1;
    }

    /// How often a fault happened.
    pub fn faults(&self, name: &str) -> u64 {
        self.faults.get(name).copied().unwrap_or(0)
    }

    /// A command was applied for the first time anywhere.
    pub fn transition(&mut self, command: &Command, result: &Result<Answer, Rejected>) {
        let key = (command_name(command), answer_name(result));
        *self.transitions.entry(key).or_default() += 1;
    }

    /// Adds what another seed covered.
    pub fn add(&mut self, other: &Coverage) {
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (key, count) in &other.transitions {
            *self.transitions.entry(*key).or_default() += count;
        }
    }

    /// What should have happened and never did.
    pub fn missing(&self) -> Vec<String> {
        let faults = FAULTS
            .iter()
            .filter(|name| !self.faults.contains_key(*name))
            .map(|name| format!("fault: {name}"));
        let transitions = TRANSITIONS
            .iter()
            .filter(|key| !self.transitions.contains_key(*key))
            .map(|(command, answer)| format!("transition: {command} -> {answer}"));
        faults.chain(transitions).collect()
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = String::from("faults and events of the world\n");
        for name in FAULTS {
            let count = self.faults(name);
            let _ = writeln!(text, "  {name:<32} {count:>12}");
        }
        text.push_str("what the ledger made of commands\n");
        let expected = TRANSITIONS.iter().map(|key| (*key, 0));
        let mut all: BTreeMap<(&str, &str), u64> = expected.collect();
        for (key, count) in &self.transitions {
            all.insert(*key, *count);
        }
        for ((command, answer), count) in all {
            let _ = writeln!(text, "  {command:<18} {answer:<13} {count:>12}");
        }
        text
    }
}
