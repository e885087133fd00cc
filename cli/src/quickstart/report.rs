//! What was measured, as a table, and whether all went as it should.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{ContentArrangement, Table};

use super::example::SLOW_STEPS;
use super::ground::Ground;
use super::load::Counts;
use super::story::{Chapter, FLEET, Loss};

/// Width of the table in characters; longer texts are wrapped.
const TABLE_WIDTH: u16 = 110;
/// Requests that the rolling update must have answered.
const REQUESTS_MIN: u64 = 1_000;

/// The story in figures.
#[derive(Clone, Debug)]
pub struct Report {
    pub started: Duration,
    pub first: Chapter,
    pub second: Chapter,
    pub third: Chapter,
    pub fourth: Chapter,
    pub second_requests: Counts,
    pub third_requests: Counts,
    pub fourth_requests: Counts,
    /// Instances that were ever seen with the broken site.
    pub bad_instances: Vec<String>,
    /// How the instances were started.
    pub boot_notes: Vec<String>,
    /// How often each slow step ran, as counted outside of the farm.
    pub step_counts: BTreeMap<String, u32>,
    /// How often each instance was replaced during push 4.
    pub replaced: BTreeMap<String, u32>,
    pub losses: Vec<Loss>,
}

/// One line of the table.
struct Line {
    what: String,
    measured: String,
    bar: String,
    /// Absent where there is nothing to judge.
    good: Option<bool>,
    /// A bar in seconds says how fast the machine is; it does not decide about success.
    timing: bool,
}

impl Report {
    /// All that must hold does. Seconds are shown and do not decide.
    pub fn good(&self) -> bool {
        self.lines()
            .iter()
            .filter(|line| !line.timing)
            .all(|line| line.good != Some(false))
    }

    /// Prints the table on standard output.
    pub fn print(&self) {
        let mut table = Table::new();
        table
            .load_style(UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(TABLE_WIDTH);
        table.set_header(["", "measured", "bar", ""]);
        for line in self.lines() {
            let mark = match line.good {
                Some(true) => "✔",
                Some(false) => "✖",
                None => "",
            };
            table.add_row([line.what, line.measured, line.bar, mark.to_owned()]);
        }
        // A terminal that is gone is no reason to stop the farm.
        let mut out = anstream::stdout().lock();
        let _ = writeln!(out, "\n{table}");
        for counts in [
            &self.second_requests,
            &self.third_requests,
            &self.fourth_requests,
        ] {
            for reason in &counts.reasons {
                let _ = writeln!(out, "failed request: {reason}");
            }
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![
            fact(
                "Farm up: 3 members, 2 workers, local cloud",
                seconds(self.started),
            ),
            timing(
                "Push 1: start to the first served page",
                self.first.first_page.map(|page| page + self.started),
                60.0,
            ),
            fact("Push 1: commit to image", seconds(self.first.image_ready)),
            fact(
                "Push 1: commit to the whole fleet",
                seconds(self.first.settled),
            ),
            timing(
                "Push 2: commit to image (only the site's layer)",
                Some(self.second.image_ready),
                2.0,
            ),
            timing(
                "Push 2: commit to all 6 instances, soak 1 s each batch",
                Some(self.second.settled),
                15.0,
            ),
            requests("Push 2", &self.second_requests),
            Line {
                what: "Push 2: requests".into(),
                measured: self.second_requests.good.to_string(),
                bar: format!("at least {REQUESTS_MIN}"),
                good: Some(self.second_requests.good >= REQUESTS_MIN),
                timing: true,
            },
            Line {
                what: "Push 3: the broken site".into(),
                measured: format!(
                    "{}, {}",
                    self.third.rollout.phase, self.third.rollout.reason
                ),
                bar: "rolled back by itself".into(),
                good: Some(self.third.rollout.phase == "rolled_back"),
                timing: false,
            },
            Line {
                what: "Push 3: instances ever on it".into(),
                measured: self.bad_instances.len().to_string(),
                bar: "at most 1".into(),
                good: Some(self.bad_instances.len() <= 1),
                timing: false,
            },
            requests("Push 3", &self.third_requests),
            Line {
                what: "Push 4: the run".into(),
                measured: self.fourth.run.phase.clone(),
                bar: "succeeded".into(),
                good: Some(self.fourth.run.phase == "succeeded"),
                timing: false,
            },
            self.steps_line(),
            self.replaced_line(),
            requests("Push 4", &self.fourth_requests),
        ];
        for loss in &self.losses {
            lines.push(fact(
                &format!("Push 4: lost by SIGKILL of {}", loss.what),
                seconds(loss.lost),
            ));
        }
        lines.push(fact(
            "Instances were started by",
            self.boot_notes.join("; "),
        ));
        lines
    }

    fn steps_line(&self) -> Line {
        let counts: Vec<u32> = SLOW_STEPS
            .iter()
            .map(|step| self.step_counts.get(*step).copied().unwrap_or(0))
            .collect();
        Line {
            what: "Push 4: executions of each finished step, counted outside".into(),
            measured: counts
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            bar: "1 each".into(),
            good: Some(counts.iter().all(|count| *count == 1)),
            timing: false,
        }
    }

    fn replaced_line(&self) -> Line {
        let counts: Vec<u32> = self.replaced.values().copied().collect();
        Line {
            what: "Push 4: replacements of each instance".into(),
            measured: counts
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(", "),
            bar: "1 each".into(),
            good: Some(!counts.is_empty() && counts.iter().all(|count| *count == 1)),
            timing: false,
        }
    }
}

fn fact(what: &str, measured: String) -> Line {
    Line {
        what: what.into(),
        measured,
        bar: String::new(),
        good: None,
        timing: true,
    }
}

fn timing(what: &str, measured: Option<Duration>, bar: f64) -> Line {
    Line {
        what: what.into(),
        measured: measured.map_or_else(|| "never".into(), seconds),
        bar: format!("≤ {bar:.0} s"),
        good: Some(measured.is_some_and(|measured| measured.as_secs_f64() <= bar)),
        timing: true,
    }
}

fn requests(push: &str, counts: &Counts) -> Line {
    Line {
        what: format!("{push}: failed requests of {}", counts.good + counts.failed),
        measured: counts.failed.to_string(),
        bar: "0".into(),
        good: Some(counts.failed == 0),
        timing: false,
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

/// Addresses to open and commands that work as typed.
pub fn next_steps(ground: &Ground) -> String {
    let member = ground.members().into_iter().next().unwrap_or_default();
    format!(
        "\nOpen\n  http://{member}/          runs, logs, instances\n  http://{}/          the fleet through its load balancer\n\
         \nTry, in another terminal\n  oast run list\n  oast fleet show {FLEET}\n  oast rollout status {FLEET}\n  \
         oast logs $(oast run list -o name | head -n 1)\n  oast image export web --format vhd -o web.vhd\n  \
         cd YOUR-REPOSITORY && oast init && oast run\n  \
         git -C {} push http://you:TOKEN@{member}/git/web.git\n\
         where TOKEN is in {}, and `oast` is {}.",
        ground.fleet(),
        ground.repository().display(),
        ground.root().join("tokens/you").display(),
        ground.exe().display(),
    )
}
