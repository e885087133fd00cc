//! Whether this machine lets a farm run, found out by doing what a farm does.
//!
//! A helper process (`oast internal preflight`) goes through the real sequence on the real data
//! folder: namespaces, the 65,536-id map through `newuidmap`, `/proc`, an overlay, a change of
//! owner, `pivot_root`, a network namespace, a PID namespace. It stops at the first call that
//! fails; [`fix`] maps that call to one thing to do. Everything is undone, by its own death at the
//! latest. Used by `oast doctor` and before quickstart starts anything.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::isolate::Fault;

mod fix;
mod probe;

pub use probe::entry;

/// Findings of one preflight are a few lines; more would be a mistake of ours.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The farm's data folder, which exists.
    pub data: PathBuf,
    /// Disk that must be free there.
    pub free_bytes: u64,
}

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    /// The farm runs, with less.
    Limited,
    Failed,
    /// Not reached, because an earlier one failed.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// `root`, `namespaces`, `id map`, `overlay`, ...
    pub name: String,
    pub outcome: Outcome,
    /// What was found, or the failing call with its path.
    pub call: String,
    pub errno: i32,
    /// The one thing to do; may have several lines.
    pub fix: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error("run the preflight helper {exe}")]
    Run {
        exe: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the preflight helper gave no readable answer")]
    Answer(#[source] serde_json::Error),
}

impl Finding {
    pub(crate) fn passed(name: &str, what: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            outcome: Outcome::Passed,
            call: what.into(),
            errno: 0,
            fix: None,
        }
    }

    pub(crate) fn limited(name: &str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        let fix = Some(fix.into());
        Self {
            name: name.into(),
            outcome: Outcome::Limited,
            call: what.into(),
            errno: 0,
            fix,
        }
    }

    pub(crate) fn failed(name: &str, fault: &Fault, fix: String) -> Self {
        let call = fault.to_string();
        Self {
            name: name.into(),
            outcome: Outcome::Failed,
            call,
            errno: fault.errno,
            fix: Some(fix),
        }
    }
}

/// Whether all of it allows a farm.
pub fn allows(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| matches!(finding.outcome, Outcome::Passed | Outcome::Limited))
}

/// Runs the helper.
///
/// # Errors
/// It could not be run, or broke; what it found is in the findings.
pub async fn run(exe: &Path, request: Request) -> Result<Vec<Finding>, PreflightError> {
    let failed = |source| PreflightError::Run {
        exe: exe.into(),
        source,
    };
    let asked = serde_json::to_string(&request).map_err(PreflightError::Answer)?;
    let mut helper = tokio::process::Command::new(exe)
        .args(["internal", "preflight", &asked])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut answer = Vec::new();
    if let Some(stdout) = helper.stdout.take() {
        stdout
            .take(MAX_ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await
            .map_err(failed)?;
    }
    helper.wait().await.map_err(failed)?;
    serde_json::from_slice(&answer).map_err(PreflightError::Answer)
}
