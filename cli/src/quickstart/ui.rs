//! What the story looks like: progress bars on a terminal, one line a change elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oast_proto::v1::{Rollout, Run, Step};

use crate::output::note;

/// Width of a bar in characters.
const BAR_WIDTH: u16 = 24;
/// Time between two frames of a spinner.
const FRAME: Duration = Duration::from_millis(120);

/// Where the story is told.
#[derive(Clone, Debug)]
pub struct Ui {
    bars: Option<MultiProgress>,
}

impl Ui {
    /// Bars when standard error is a terminal.
    pub fn new() -> Ui {
        Ui {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
        }
    }

    /// A line that stays.
    pub fn say(&self, text: impl AsRef<str>) {
        match &self.bars {
            // A terminal that is gone is no reason to stop the farm.
            Some(bars) => drop(bars.println(text.as_ref())),
            None => note(text),
        }
    }

    /// A headline with an empty line before it.
    pub fn chapter(&self, text: &str) {
        self.say(format!("\n\u{1b}[1m{text}\u{1b}[0m"));
    }

    /// Something that takes a while.
    pub fn wait(&self, text: &str) -> Waiting {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template("  {spinner} {msg} {elapsed:.dim}")
                    .expect("the template is well-formed"),
            );
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(FRAME);
            bar
        });
        Waiting { bar }
    }

    /// A bar of `total` parts.
    pub fn bar(&self, text: &str, total: u64) -> Waiting {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(total));
            let template = format!(
                "  {{spinner}} {{msg:32}} {{bar:{BAR_WIDTH}}} {{pos}}/{{len}} {{elapsed:.dim}}"
            );
            bar.set_style(
                ProgressStyle::with_template(&template).expect("the template is well-formed"),
            );
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(FRAME);
            bar
        });
        Waiting { bar }
    }
}

/// A line that moves until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    bar: Option<ProgressBar>,
}

impl Waiting {
    /// Says something else.
    pub fn now(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// So much is done.
    pub fn at(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Tells a run's changes, each once.
#[derive(Debug)]
pub struct RunTeller {
    ui: Ui,
    bar: Option<Waiting>,
    told: BTreeMap<String, String>,
}

impl RunTeller {
    /// A teller of one run.
    pub fn new(ui: &Ui) -> RunTeller {
        RunTeller {
            ui: ui.clone(),
            bar: None,
            told: BTreeMap::new(),
        }
    }

    /// Tells what is new in a run.
    pub fn run(&mut self, run: &Run) {
        for task in &run.tasks {
            for attempt in &task.attempts {
                let text = format!(
                    "{} on {} under lease {}",
                    task.kind, attempt.worker, attempt.token
                );
                self.once(&format!("attempt {}", attempt.token), &text);
                if attempt.ended_at_ms > 0 && attempt.ended != "succeeded" {
                    let text = format!("lease {} ended: {}", attempt.token, attempt.ended);
                    self.once(&format!("ended {}", attempt.token), &text);
                }
            }
            for (place, step) in task.steps.iter().enumerate() {
                if step.phase == "done" {
                    self.once(&format!("{} {place}", task.id), &step_line(step));
                }
            }
            if task.kind == "bake" && task.phase == "running" {
                self.bake_bar(&task.steps);
            } else if task.kind == "bake" {
                self.bar = None;
            }
            if task.kind == "test" && task.phase == "succeeded" {
                self.once(&task.id, "✔ tested");
            }
        }
        if !run.version.is_empty() {
            self.once("version", &format!("✔ {} is published", run.version));
        }
    }

    /// Tells what is new in a rollout.
    pub fn rollout(&mut self, rollout: &Rollout) {
        for (place, batch) in rollout.batches.iter().enumerate() {
            let what = format!(
                "{} batch: {} to {}",
                batch.kind,
                batch.instances.join(", "),
                batch.version
            );
            match batch.phase.as_str() {
                "passed" => self.once(&format!("batch {place}"), &format!("✔ {what}")),
                "failed" => {
                    self.once(
                        &format!("batch {place}"),
                        &format!("✖ {what}: {}", batch.reason),
                    );
                }
                _ => {}
            }
        }
    }

    fn bake_bar(&mut self, steps: &[Step]) {
        let total = steps.len() as u64;
        let bar = self.bar.get_or_insert_with(|| self.ui.bar("bake", total));
        bar.at(steps.iter().filter(|step| step.phase == "done").count() as u64);
        if let Some(step) = steps.iter().find(|step| step.phase == "running") {
            bar.now(&step.title);
        }
    }

    fn once(&mut self, key: &str, text: &str) {
        if self.told.get(key).is_none_or(|told| told != text) {
            self.told.insert(key.to_owned(), text.to_owned());
            self.ui.say(format!("  {text}"));
        }
    }
}

fn step_line(step: &Step) -> String {
    if step.cached {
        format!("✔ {} (cached)", step.title)
    } else {
        format!(
            "✔ {} {:.2} s",
            step.title,
            Duration::from_millis(step.took_ms).as_secs_f64()
        )
    }
}
