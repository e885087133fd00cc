//! For tests that need something of the machine: skip loudly, or fail where nothing may be skipped.
//!
//! `cargo xtask test` sets two variables: `OAST_SKIP_LOG`, a file it reads the skips from, and in
//! CI `OAST_REQUIRE_ALL`, which turns a skip into a failure.

use std::fs::OpenOptions;
use std::io::Write;

use crate::config::process_env;

/// True when the test may go on; otherwise it returns at once after this has said why.
///
/// # Panics
/// When `there` is false and `OAST_REQUIRE_ALL` is set.
#[must_use]
#[expect(
    clippy::disallowed_macros,
    reason = "the only reader is a person running tests"
)]
pub fn have(there: bool, what: &str, test: &str) -> bool {
    if there {
        return true;
    }
    assert!(
        process_env("OAST_REQUIRE_ALL").is_none(),
        "{test} needs {what}"
    );
    eprintln!("SKIPPED: {test} needs {what}");
    if let Some(path) = process_env("OAST_SKIP_LOG")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        // One short line in append mode, so that tests in other processes do not mix into it.
        let _ = file.write_all(format!("{test} needs {what}\n").as_bytes());
    }
    false
}
