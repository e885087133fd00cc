//! The replicated core of the coordinator: one Raft group that orders every command.
//!
//! ```text
//!  Handle --events--> driver (one thread) --owns--> Replica --owns--> Core (raft-rs) + LogStore
//!                        |                             |                 Machine + StateStore
//!  Transport <--sends----+                             +-- decides, never waits, reads no clock
//! ```
//!
//! * [`machine`]: what is replicated, as a trait; the farm's ledger is one, tests have another.
//! * [`core`]: raft-rs with its traps closed, and the order in which a member may write, send,
//!   apply and acknowledge.
//! * [`replica`]: core + machine + stores as one deterministic state machine. A simulator can drive
//!   it: time, ticks, messages and finished background work come in as calls, everything it wants
//!   done comes out as [`replica::Output`].
//! * [`driver`]: the thread that drives a replica for real. [`handle::Handle`] is how everybody
//!   else talks to it.
//! * [`open`]: from what is on the disk to a replica, repairing what can be repaired.
//! * [`transport`]: carrying messages and files between members; [`roster`] refuses strangers.
//!
//! A member that cannot write, or reads something that cannot be, stops ([`halt`]): its peers go
//! on, whereas a member that guesses can make two of them disagree.

pub mod change;
pub mod core;
pub mod counters;
pub mod driver;
pub mod entry;
pub mod halt;
pub mod handle;
pub mod ledger;
mod logger;
pub mod machine;
pub mod open;
pub mod options;
pub mod replica;
pub mod roster;
mod storage;
pub mod transport;

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    oast_daemon::telemetry::chain(error).to_string()
}

#[cfg(test)]
mod tests;
