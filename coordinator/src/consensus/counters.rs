//! What is counted about the core, readable from any thread.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            watch: Watch,
        }

        impl Counters {
            /// Names and values, for the metrics page.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Commands accepted into the log by this leader.
    proposals_accepted,
    /// Commands refused because this member does not lead.
    proposals_refused,
    /// Commands refused as overload.
    proposals_overloaded,
    /// Commands whose outcome this member could not tell.
    proposals_unknown,
    /// Log entries that this leader made out of commands.
    entries_proposed,
    /// Log entries applied.
    entries_applied,
    /// Commands applied.
    commands_applied,
    /// Commands that were applied and answered here.
    proposals_committed,
    /// Changes of the leader that this member saw.
    leader_changes,
    /// Comparisons of states that found ours right.
    digests_equal,
    /// Comparisons of states that found one, ours or another's, different from most voters'.
    digests_different,
    /// Comparisons of states without a majority for any.
    digests_undecided,
    /// Bytes of snapshot files sent to peers.
    snapshot_bytes_sent,
    /// Bytes of snapshot files received from peers.
    snapshot_bytes_received,
    /// Size of the newest local snapshot file; not a count.
    snapshot_bytes,
    /// Transfers of a snapshot file that went on where they had been cut.
    snapshots_resumed,
    /// Times that this member became leader.
    elections_won,
    /// Read indexes served.
    reads_served,
    /// Snapshot files made.
    snapshots_made,
    /// Snapshot files that could not be made.
    snapshots_failed,
    /// Snapshots taken over from a peer.
    snapshots_installed,
    /// Messages handed to the transport.
    messages_sent,
    /// Messages that came from peers.
    messages_received,
    /// Messages dropped because a queue was full.
    messages_dropped,
    /// Batches refused because the sender is a stranger.
    batches_refused,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Replaces a value that is no count.
pub(crate) fn set(value: &AtomicU64, to: u64) {
    value.store(to, Ordering::Relaxed);
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// Making entries, vote and facts durable.
    Fsync,
    /// Applying committed entries.
    Apply,
    /// All rounds that were due at once.
    Turn,
}

/// Times what the core does. Nothing depends on it: the core itself has no clock.
pub trait Stopwatch: Send + Sync {
    /// Time since some start; never goes back.
    fn now(&self) -> Duration;
    /// Something took this long.
    fn took(&self, what: Timed, time: Duration);
}

#[derive(Default)]
struct Watch(OnceLock<Box<dyn Stopwatch>>);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Counters {
    /// From now on things are timed. Once only; a simulator does without.
    pub fn install(&self, stopwatch: Box<dyn Stopwatch>) {
        // A second one has nothing to say.
        let _ = self.watch.0.set(stopwatch);
    }

    /// The beginning of something that may be timed.
    pub(crate) fn begin(&self) -> Option<Duration> {
        self.watch.0.get().map(|watch| watch.now())
    }

    /// Its end.
    pub(crate) fn end(&self, what: Timed, began: Option<Duration>) {
        if let (Some(watch), Some(began)) = (self.watch.0.get(), began) {
            watch.took(what, watch.now().saturating_sub(began));
        }
    }
}
