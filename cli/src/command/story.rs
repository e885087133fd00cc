//! A run or rollout told as it happens, a line a change, on standard error.
//!
//! Keeps what was said, so that each [`Story::run`] and [`Story::rollout`] says only what is new.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use oast_proto::v1;

use crate::output::{coloured, count, note, phase, plain, short, span, took};

/// What was told so far.
#[derive(Debug, Default)]
pub struct Story {
    headline: String,
    phases: BTreeMap<String, String>,
    waits: BTreeMap<String, String>,
    attempts: BTreeMap<String, u64>,
    steps: BTreeMap<(String, usize), String>,
    readings: BTreeSet<(String, String)>,
    quiet_logs: bool,
}

impl Story {
    /// Nothing told yet.
    pub fn new() -> Story {
        Story::default()
    }

    /// The same without lines of the log.
    pub fn without_logs() -> Story {
        Story {
            quiet_logs: true,
            ..Story::default()
        }
    }

    /// What is new in the run.
    pub fn run(&mut self, run: &v1::Run) {
        let headline = headline(run);
        if self.headline != headline {
            note(&headline);
            self.headline = headline;
        }
        if !run.ended && self.changed(&run.id, &run.phase) {
            note(phase(&run.phase));
        }
        for task in &run.tasks {
            self.task(task);
        }
        if run.ended {
            self.end_of_run(run);
        }
    }

    fn task(&mut self, task: &v1::Task) {
        let name = named(task);
        let waiting = if task.phase == "waiting" {
            task.waiting.clone()
        } else {
            String::new()
        };
        if self
            .waits
            .insert(task.id.clone(), waiting.clone())
            .unwrap_or_default()
            != waiting
            && !waiting.is_empty()
        {
            note(format!("  {name} waits: {}", plain(&waiting)));
        }
        if let Some(attempt) = task.attempts.last()
            && self.attempts.insert(task.id.clone(), attempt.token) != Some(attempt.token)
        {
            let before = task
                .attempts
                .iter()
                .rev()
                .nth(1)
                .map(|before| before.ended.as_str());
            let again = before
                .map(|why| format!(", again after: {}", plain(why)))
                .unwrap_or_default();
            note(format!(
                "  {name} on worker {} (token {}){again}",
                attempt.worker, attempt.token
            ));
        }
        let total = task.steps.len();
        for (place, step) in task.steps.iter().enumerate() {
            let known = self
                .steps
                .insert((task.id.clone(), place), step.phase.clone());
            if known.as_deref() == Some(step.phase.as_str()) {
                continue;
            }
            let of = format!("[{}/{total}] {}", place + 1, plain(&step.title));
            match step.phase.as_str() {
                "running" => note(format!("  > {of}")),
                "done" if step.cached => note(format!("  {}  {of} (cached)", phase("done"))),
                "done" => note(format!(
                    "  {}  {of} ({})",
                    phase("done"),
                    span(step.took_ms)
                )),
                _ => {}
            }
        }
        let failed = matches!(task.phase.as_str(), "failed" | "errored");
        if self.changed(&task.id, &task.phase) && failed {
            note(format!(
                "  {}: {name}: {}",
                phase(&task.phase),
                plain(&task.reason)
            ));
        }
    }

    fn end_of_run(&mut self, run: &v1::Run) {
        if !self.changed(&run.id, &run.phase) {
            return;
        }
        let version = if run.version.is_empty() {
            String::new()
        } else {
            format!(": {}", run.version)
        };
        let reason = if run.reason.is_empty() {
            String::new()
        } else {
            format!(": {}", plain(&run.reason))
        };
        let took = took(run.started_at_ms, run.ended_at_ms);
        note(format!("{} in {took}{version}{reason}", phase(&run.phase)));
        for detail in &run.details {
            note(format!("  {}", plain(detail).replace('\n', "\n  ")));
        }
    }

    /// What is new in the rollout.
    pub fn rollout(&mut self, rollout: &v1::Rollout) {
        let id = &rollout.id;
        if !self.phases.contains_key(id) {
            let from = if rollout.from.is_empty() {
                "nothing"
            } else {
                rollout.from.as_str()
            };
            note(format!(
                "rollout {id} of {}: {from} -> {}",
                rollout.fleet, rollout.to
            ));
        }
        for (place, batch) in rollout.batches.iter().enumerate() {
            let key = format!("{id}/{place}");
            for reading in batch
                .readings
                .iter()
                .filter(|reading| reading.outcome == "shut")
            {
                let what = format!("{}: {}", reading.instance, plain(&reading.measured));
                if self.readings.insert((key.clone(), what.clone())) {
                    note(format!("  gate {} is shut on {what}", reading.gate + 1));
                }
            }
            if self.changed(&key, &batch.phase) {
                let reason = if batch.reason.is_empty() {
                    String::new()
                } else {
                    format!(": {}", plain(&batch.reason))
                };
                note(format!(
                    "  {}  {} of {}: {}{reason}",
                    phase(&batch.phase),
                    plain(&batch.kind),
                    count(batch.instances.len(), "instance"),
                    batch.version
                ));
            }
        }
        if self.changed(id, &rollout.phase) {
            let reason = if rollout.reason.is_empty() {
                String::new()
            } else {
                format!(": {}", plain(&rollout.reason))
            };
            if rollout.ended {
                let took = took(rollout.began_at_ms, rollout.ended_at_ms);
                note(format!(
                    "rollout {id} {} in {took}{reason}",
                    phase(&rollout.phase)
                ));
            } else {
                note(format!("rollout {id} {}{reason}", phase(&rollout.phase)));
            }
            for debt in &rollout.debt {
                note(format!("  still to be cleaned up: {}", plain(debt)));
            }
        }
    }

    /// Lines of the log, set off from what is told.
    pub fn lines(&self, lines: &[v1::LogLine]) {
        if self.quiet_logs {
            return;
        }
        for line in lines {
            note(format!("\u{1b}[2m    |\u{1b}[0m {}\u{1b}[0m", text(line)));
        }
    }

    /// A stream goes on through another member.
    pub fn resumed(&self) {
        note("  (the member that was asked went away; going on with another)");
    }

    fn changed(&mut self, of: &str, phase: &str) -> bool {
        self.phases
            .insert(of.to_owned(), phase.to_owned())
            .as_deref()
            != Some(phase)
    }
}

/// The line's text as it may go to a terminal.
pub fn text(line: &v1::LogLine) -> String {
    coloured(&String::from_utf8_lossy(&line.text))
}

/// `bake`, or `publish westeurope`.
pub fn named(task: &v1::Task) -> String {
    if task.name.is_empty() {
        plain(&task.kind)
    } else {
        plain(&format!("{} {}", task.kind, task.name))
    }
}

/// Which run, of what.
fn headline(run: &v1::Run) -> String {
    let mut text = format!("run {}", run.id);
    if !run.pipeline.is_empty() {
        let _ = write!(text, " of {}", run.pipeline);
    }
    if !run.commit.is_empty() {
        let dirty = if run.dirty { " with changes" } else { "" };
        let _ = write!(text, " at {}{dirty}", short(&run.commit));
    }
    if !run.subject.is_empty() {
        let _ = write!(
            text,
            " ({})",
            run.subject.lines().next().unwrap_or_default()
        );
    }
    plain(&text)
}
