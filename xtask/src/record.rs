//! `cargo xtask record`: writes the recorded log and the recorded files anew.
//!
//! Every test run replays them and compares digests, so that old bytes keep their meaning
//! (CONTRIBUTING, "Change what is replicated"). The tests that make the recordings compare two of them on
//! every run and write one only here. The order matters: the files are made from the log.

use anyhow::Result;

use crate::command::{cargo, shown, succeeds};
use crate::workspace::Workspace;

/// Asks the recording tests to write.
const ASK: &str = "OAST_RECORD";

/// Crate and test, in the order they are run.
const TESTS: [(&str, &str); 2] = [
    ("oast-model", "the_same_life_is_recorded_in_the_same_bytes"),
    (
        "oast-coordinator",
        "the_same_log_is_recorded_in_the_same_files",
    ),
];

/// Records both and says what to look at.
pub fn run(workspace: &Workspace) -> Result<bool> {
    for (package, test) in TESTS {
        let mut command = cargo();
        command
            .args(["test", "--locked", "--lib", "-p", package, test])
            .env(ASK, "1")
            .current_dir(&workspace.root);
        println!("record: {}", shown(&command));
        if !succeeds(&mut command)? {
            return Ok(false);
        }
    }
    println!("record: written to */testdata/ledger; a released recording must not change");
    Ok(true)
}
