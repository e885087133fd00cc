//! A panic in a daemon is a broken invariant, so the process ends instead of going on.
//!
//! Consensus code panics when continuing could lose or corrupt data. Unwinding one thread of many
//! would leave a member that still answers but no longer applies. The hook says where it happened,
//! on stderr and in the log, and aborts. Tests do not install it.

use std::backtrace::Backtrace;
use std::io::Write;
use std::time::Duration;

use tracing::error;

use crate::task::message_of;

/// Time the log may take to write the message, in case its writer is what panicked.
const LOG_GRACE: Duration = Duration::from_secs(2);

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
