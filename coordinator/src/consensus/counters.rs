//! What is counted about the core, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since the start of the process.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
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
