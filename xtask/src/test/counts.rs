//! Counts tests from what the runners print.

use std::fmt;
use std::ops::Add;

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    pub const PASSED: Counts = Counts {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    pub const FAILED: Counts = Counts {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
    pub const SKIPPED: Counts = Counts {
        passed: 0,
        failed: 0,
        skipped: 1,
    };

    /// Adds up the summary lines of cargo test or nextest. A runner that failed without naming a
    /// test (it did not compile, it crashed) counts as one failure.
    pub fn read(output: &str, succeeded: bool) -> Counts {
        let mut counts = output
            .lines()
            .filter_map(line)
            .fold(Counts::default(), Add::add);
        if !succeeded && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

impl Counts {
    /// Counts the scenarios that a test with a main of its own says to have passed: `ok NAME` or
    /// `test NAME ... ok`. Its exit code decides about failure.
    pub fn of_own_main(output: &str, succeeded: bool) -> Counts {
        let ok = |line: &&str| line.starts_with("ok ") || line.ends_with("... ok");
        let passed = output.lines().filter(ok).count() as u64;
        Counts {
            passed: if succeeded { passed.max(1) } else { passed },
            failed: u64::from(!succeeded),
            skipped: 0,
        }
    }
}

impl Add for Counts {
    type Output = Counts;

    fn add(self, other: Counts) -> Counts {
        Counts {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...` or
/// `Summary [ 0.1s] 4 tests run: 3 passed (1 slow), 1 failed, 0 skipped`.
fn line(line: &str) -> Option<Counts> {
    let libtest = line
        .trim()
        .strip_prefix("test result: ")
        .and_then(|rest| rest.split_once(". "));
    let nextest = line
        .trim()
        .starts_with("Summary [")
        .then(|| line.split_once(": "))
        .flatten();
    let (tail, is_nextest) = match (libtest, nextest) {
        (Some((_, tail)), _) => (tail, false),
        (None, Some((_, tail))) => (tail, true),
        (None, None) => return None,
    };
    let mut counts = Counts::default();
    for piece in tail.split([';', ',']) {
        let mut words = piece.split_whitespace();
        let (Some(number), Some(word)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        match word {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            // nextest also calls "skipped" what its filter left to another suite.
            "ignored" if !is_nextest => counts.skipped += number,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_of_its_own_is_judged_by_its_exit_code() {
        let text = "ok one\ntest two ... ok\nnoise\n";
        assert_eq!(Counts::of_own_main(text, true).passed, 2);
        assert_eq!(Counts::of_own_main("", true), Counts::PASSED);
        assert_eq!(Counts::of_own_main(text, false).failed, 1);
    }

    #[test]
    fn both_runners_are_understood() {
        let text = "test result: ok. 21 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.11s\n\
                    test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1s\n";
        assert_eq!(
            Counts::read(text, false),
            Counts {
                passed: 22,
                failed: 3,
                skipped: 2
            }
        );
        let text = "     Summary [   1.2s] 9 tests run: 5 passed (1 slow), 2 failed, 1 timed out, 1 exec failed, 7 skipped\n";
        assert_eq!(
            Counts::read(text, false),
            Counts {
                passed: 5,
                failed: 4,
                skipped: 0
            }
        );
    }

    #[test]
    fn a_crash_without_a_summary_is_one_failure() {
        assert_eq!(
            Counts::read("error: could not compile", false),
            Counts::FAILED
        );
        assert_eq!(Counts::read("", true), Counts::default());
    }
}
