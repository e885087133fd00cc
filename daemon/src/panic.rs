//! A panic in a daemon is a broken invariant, so the process ends instead of going on.
//!
//! Consensus code panics when continuing could lose or corrupt data. Unwinding one thread of many
//! would leave a member that still answers but no longer applies. The hook says where it happened,
//! on stderr and in the log, and aborts. Tests do not install it.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io::Write;
use std::time::Duration;

use tracing::error;

use crate::task::message_of;

/// Time the log may take to write the message, in case its writer is what panicked.
const LOG_GRACE: Duration = Duration::from_secs(2);

thread_local! {
    static DOING: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Does `work`; if it panics, `advice` says what that means and what to do about it. For
/// libraries that panic when the machine fails them, such as a log on a disk that is broken.
pub fn doing<T>(advice: &'static str, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<&'static str>);
    impl Drop for Restore {
        fn drop(&mut self) {
            // After a panic it stays for whoever reports it.
            if !std::thread::panicking() {
                DOING.set(self.0);
            }
        }
    }
    let _restore = Restore(DOING.replace(Some(advice)));
    work()
}

/// What this thread was [`doing`] when it panicked.
#[must_use]
pub fn advice() -> Option<&'static str> {
    DOING.get()
}

/// Makes every panic of this process print its place and abort.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let message = message_of(info.payload());
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let trace = Backtrace::capture();
        // Stderr first: it takes no lock that the panicking code could be holding.
        let _ = writeln!(
            std::io::stderr(),
            "oast: bug: thread {thread} panicked at {place}: {message}\n{trace}"
        );
        if let Some(advice) = advice() {
            let _ = writeln!(std::io::stderr(), "oast: {advice}");
        }
        abort_after_grace();
        error!(%place, %message, thread, "A broken invariant; aborting.");
        std::process::abort();
    }));
}

#[expect(
    clippy::disallowed_methods,
    reason = "the last resort must not depend on the runtime"
)]
fn abort_after_grace() {
    std::thread::spawn(|| {
        std::thread::sleep(LOG_GRACE);
        std::process::abort();
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Set in the child that is to panic.
    const CHILD: &str = "OAST_TEST_PANIC_CHILD";

    #[test]
    fn the_advice_outlives_the_panic_and_nothing_else() {
        assert_eq!(super::doing("inner", super::advice), Some("inner"));
        assert_eq!(super::advice(), None);
        let caught = std::panic::catch_unwind(|| super::doing("buy a disk", || panic!("EIO")));
        assert!(caught.is_err());
        assert_eq!(super::advice(), Some("buy a disk"));
    }

    #[test]
    fn a_panic_in_any_thread_is_told_with_its_place_and_aborts_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::abort_on_panic();
            // The join would turn the panic into an ordinary error, if the hook let it.
            let thread = std::thread::Builder::new().name("applier".to_owned());
            let ended = thread
                .spawn(|| panic!("log index {} is missing", 7))
                .map(|t| t.join());
            unreachable!("the process has aborted: {ended:?}");
        }
        let own = std::env::current_exe().expect("the path of this test");
        let name =
            "panic::tests::a_panic_in_any_thread_is_told_with_its_place_and_aborts_the_process";
        let out = Command::new(own)
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("this test can be started again");
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.signal(), Some(6), "{text}");
        assert!(
            text.contains("oast: bug: thread applier panicked at daemon/src/panic.rs:"),
            "{text}"
        );
        assert!(text.contains("log index 7 is missing"), "{text}");
    }
}
