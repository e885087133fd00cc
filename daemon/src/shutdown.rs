//! SIGINT and SIGTERM become a cancelled token; a second one leaves at once.
//!
//! The first signal asks: the root token of [`Tasks`] is cancelled and everything drains. The
//! second one does not ask, for the operator who has seen enough. SIGPIPE is Rust's business
//! (ignored), SIGHUP is left alone.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::exit::Exit;
use crate::task::{self, Tasks};

/// The signals that ask a process to end.
#[derive(Debug)]
struct Asked {
    interrupt: Signal,
    terminate: Signal,
}

impl Asked {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Listens for the signals from now on and cancels the root token of `tasks` at the first.
///
/// # Errors
/// When the process may not install signal handlers, or no runtime is running.
pub fn on_signals(tasks: &Tasks) -> io::Result<()> {
    let mut asked = Asked {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
    };
    let cancel = tasks.cancelled();
    // Outside the register: this must outlive the shutdown to hear the second signal.
    task::start(async move {
        let name = asked.next().await;
        info!(
            signal = name,
            "Asked to stop; draining. A second signal leaves at once."
        );
        cancel.cancel();
        let name = asked.next().await;
        warn!(signal = name, "Asked again; leaving without draining.");
        std::process::exit(Exit::Interrupted.code());
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::ManualClock;

    #[tokio::test]
    async fn the_first_signal_cancels_the_root_token() {
        let tasks = Tasks::new(Arc::new(ManualClock::default()), CancellationToken::new());
        on_signals(&tasks).expect("handlers can be installed");
        // Caught by the handler above, so the test process lives on.
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).expect("a signal");
        tasks.cancelled().cancelled().await;
    }
}
