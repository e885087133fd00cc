//! One seed, from its number to what came of it.

use std::panic::AssertUnwindSafe;

use crate::bugs::{self, Bug};
use crate::coverage::Coverage;
use crate::queue::Micros;
use crate::world::World;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Broken rules, the first one first.
    pub violations: Vec<String>,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Simulated time.
    pub simulated: Micros,
    /// Commands that were applied.
    pub commands: u64,
    /// Terms that had a leader.
    pub terms: usize,
    /// Submissions that were acknowledged.
    pub submissions: usize,
    /// Operations on registers that had an outcome.
    pub operations: usize,
    /// What happened how often.
    pub coverage: Coverage,
    /// The text of it, if it was asked for.
    pub lines: Vec<String>,
}

/// Simulates a seed, with a bug planted or not. A panic counts as a broken rule.
pub fn run(seed: u64, bug: Option<Bug>, text: bool) -> Report {
    bugs::plant(bug);
    let mut report = Report {
        seed,
        ..Report::default()
    };
    let mut world = World::new(seed, text);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    bugs::enter_member(0);
    bugs::plant(None);
    if let Err(panic) = ended {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        world.violate(format!("panic: {message}"));
    }
    report.violations = std::mem::take(&mut world.violations);
    report.hash = world.trace.hash();
    report.events = world.trace.events();
    report.simulated = world.now;
    report.commands = world.oracle.ledger().seq().counter();
    report.terms = world.checks.leaders.terms();
    report.submissions = world.checks.submissions.count();
    report.operations = world.checks.registers.count();
    report.coverage = std::mem::take(&mut world.coverage);
    report.lines = world.trace.take_lines();
    report
}
