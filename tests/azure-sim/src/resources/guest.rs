//! What happens inside machines: scripts give what a rule says, and every run is remembered.
//!
//! Nothing is executed. A rule is found by a text that the script has; without one a script prints
//! nothing, ends with zero, and takes as long as Run Commands were recorded to take.

use serde_json::{Value, json};

use crate::json;
use crate::time::Moment;

/// Runs that are remembered.
const REMEMBERED: usize = 100_000;
/// Azure keeps so much of what a script prints.
const OUTPUT_BYTES: usize = 4096;

/// How a script ends.
#[derive(Clone, Debug)]
pub struct Run {
    /// When it began.
    pub began: Moment,
    /// When it ends.
    pub ends: Moment,
    /// What it ends with.
    pub exit: i64,
    /// What it prints.
    pub stdout: String,
    /// What it complains.
    pub stderr: String,
    /// It was stopped at its time limit.
    pub timed_out: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    contains: String,
    exit: i64,
    stdout: String,
    stderr: String,
    ms: Option<u64>,
}

/// The rules and what was run.
#[derive(Debug, Default)]
pub struct Guests {
    rules: Vec<Rule>,
    runs: Vec<(String, String, Moment)>,
    health: Vec<(String, String)>,
}

impl Guests {
    /// Adds a rule: `{"contains", "exitCode", "stdout", "stderr", "ms"}`; the last that fits holds.
    pub fn add(&mut self, rule: &Value) {
        let words = |name: &str| json::text(rule, name).unwrap_or_default().to_owned();
        self.rules.push(Rule {
            contains: words("contains"),
            exit: json::at(rule, "exitCode")
                .and_then(Value::as_i64)
                .unwrap_or(0),
            stdout: words("stdout"),
            stderr: words("stderr"),
            ms: json::number(rule, "ms"),
        });
    }

    /// Instances whose id or image has this text report this state; the last that fits holds.
    pub fn set_health(&mut self, contains: &str, state: &str) {
        let rule = (contains.to_ascii_lowercase(), state.to_ascii_lowercase());
        self.health.push(rule);
    }

    /// What an instance reports: `healthy` unless a rule says otherwise.
    #[must_use]
    pub fn health(&self, instance: &str, image: &str) -> String {
        let about = [instance.to_ascii_lowercase(), image.to_ascii_lowercase()];
        let fits = |(text, _): &&(String, String)| about.iter().any(|one| one.contains(text));
        let rule = self.health.iter().rev().find(fits);
        rule.map_or_else(|| "healthy".to_owned(), |(_, state)| state.clone())
    }

    /// What was run, where and when.
    #[must_use]
    pub fn listed(&self) -> Value {
        let one = |(machine, script, at): &(String, String, Moment)| json!({"machine": machine, "script": script, "at": at.rfc3339()});
        self.runs.iter().map(one).collect()
    }

    /// Runs a script; `usual_ms` is how long when no rule says it.
    pub fn run(
        &mut self,
        machine: &str,
        script: &str,
        now: Moment,
        usual_ms: u64,
        limit_ms: Option<u64>,
    ) -> Run {
        if self.runs.len() < REMEMBERED {
            self.runs.push((machine.to_owned(), script.to_owned(), now));
        }
        let rule = self
            .rules
            .iter()
            .rev()
            .find(|rule| script.contains(&rule.contains));
        let ms = rule.and_then(|rule| rule.ms).unwrap_or(usual_ms);
        let timed_out = limit_ms.is_some_and(|limit| ms > limit);
        let tail = |text: &str| {
            let from = text.len().saturating_sub(OUTPUT_BYTES);
            let from = (from..=text.len()).find(|at| text.is_char_boundary(*at));
            text[from.unwrap_or(0)..].to_owned()
        };
        Run {
            began: now,
            ends: now.after(limit_ms.map_or(ms, |limit| ms.min(limit))),
            exit: rule.map_or(0, |rule| rule.exit),
            stdout: rule.map_or_else(String::new, |rule| tail(&rule.stdout)),
            stderr: rule.map_or_else(String::new, |rule| tail(&rule.stderr)),
            timed_out,
        }
    }
}

impl Run {
    /// As the answer of the Run Command action has it.
    #[must_use]
    pub fn output(&self) -> Value {
        let said = format!(
            "Enable succeeded: \n[stdout]\n{}\n[stderr]\n{}",
            self.stdout, self.stderr
        );
        json!({"value": [{
            "code": "ProvisioningState/succeeded",
            "level": "Info",
            "displayStatus": "Provisioning succeeded",
            "message": said,
        }]})
    }

    /// As the instance view of a managed Run Command has it.
    #[must_use]
    pub fn view(&self, now: Moment) -> Value {
        if self.ends > now {
            return json!({
                "executionState": "Running",
                "executionMessage": "Execution in progress",
                "output": "",
                "error": "",
                "startTime": self.began.rfc3339(),
            });
        }
        json!({
            "executionState": match (self.timed_out, self.exit) {
                (true, _) => "TimedOut",
                (false, 0) => "Succeeded",
                (false, _) => "Failed",
            },
            "executionMessage": if self.timed_out { "Execution timed out" } else { "Execution completed" },
            "exitCode": if self.timed_out { -1 } else { self.exit },
            "output": self.stdout,
            "error": self.stderr,
            "startTime": self.began.rfc3339(),
            "endTime": self.ends.rfc3339(),
        })
    }

    /// Whether it ended well.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        !self.timed_out && self.exit == 0
    }
}
