//! What a scenario needs of the machine. Missing: it says so loudly and passes, but fails in CI.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// True when the test may go on. With `CI=true`, or under `cargo xtask test` in CI, something
/// that is missing is a failure.
///
/// # Panics
/// When it is missing where nothing may be skipped.
#[must_use]
pub fn have(there: bool, what: &str, test: &str) -> bool {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(
        there || !ci,
        "{test} needs {what}, and in CI nothing may be skipped"
    );
    oast_daemon::testing::have(there, what, test)
}

/// The binary under test: `OAST_BIN`, else a built one beside the test itself.
#[must_use]
pub fn oast(test: &str) -> Option<PathBuf> {
    let named = std::env::var_os("OAST_BIN").map(PathBuf::from);
    let found = named.or_else(beside).filter(|path| path.exists());
    let what = "the binary: run `cargo xtask test`, or `cargo build` first, or set OAST_BIN";
    have(found.is_some(), what, test).then_some(found).flatten()
}

/// `target/<profile>/deps/<test>` is beside `target/<profile>/oast`.
fn beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.parent()?.join("oast"))
}

/// Where suites keep what is costly to make anew: `oast-test-cache` in the target folder.
///
/// # Panics
/// When the test binary lies nowhere.
#[must_use]
pub fn cache() -> PathBuf {
    let own = std::env::current_exe().expect("a running test has a file");
    let target = own
        .ancestors()
        .nth(3)
        .expect("target/<profile>/deps/<test>");
    target.join("oast-test-cache")
}

/// Whether a program can be started.
#[must_use]
pub fn program(name: &str) -> bool {
    let tried = Command::new(name)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok()
}

/// Whether this process is root.
#[must_use]
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The repository's own folder.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
