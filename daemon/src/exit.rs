//! Exit codes of every `oast` process, in one place so that scripts may rely on them.
//!
//! `oast help exit-codes` and the manual print [`TABLE`]. A number once given a meaning keeps it.

use std::process::ExitCode;

/// How a process ends, as the number its parent sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// It worked.
    Ok,
    /// It was tried and failed: a failed run, an aborted rollout, an invalid file.
    Failed,
    /// Only `plan` and `diff` with `--detailed-exitcode`: there are changes.
    Changes,
    /// No server could be reached, or the cluster has no quorum, after retries.
    Unreachable,
    /// Not authenticated, or not permitted.
    Denied,
    /// The named thing does not exist.
    NotFound,
    /// The command line is wrong. Not clap's own 2, which would read as "changes".
    Usage,
    /// `--timeout` ran out; the work itself goes on.
    TimedOut,
    /// Interrupted by the user.
    Interrupted,
}

/// Every code with its meaning, in order.
pub const TABLE: [(Exit, &str); 9] = [
    (Exit::Ok, "success"),
    (
        Exit::Failed,
        "it failed: a failed run, an aborted or rolled-back rollout, an invalid file",
    ),
    (
        Exit::Changes,
        "changes are present (only plan and diff with --detailed-exitcode)",
    ),
    (
        Exit::Unreachable,
        "server unreachable or no quorum, after retries",
    ),
    (Exit::Denied, "not authenticated or not permitted"),
    (Exit::NotFound, "not found"),
    (Exit::Usage, "wrong usage of the command line"),
    (Exit::TimedOut, "--timeout ran out; the work goes on"),
    (Exit::Interrupted, "interrupted"),
];

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Changes => 2,
            Exit::Unreachable => 3,
            Exit::Denied => 4,
            Exit::NotFound => 5,
            Exit::Usage => 64,
            Exit::TimedOut => 124,
            Exit::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(u8::try_from(exit.code()).expect("every code in the table is below 256"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let codes: Vec<i32> = TABLE.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 64, 124, 130]);
    }
}
