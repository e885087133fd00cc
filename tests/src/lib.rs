//! The harness of the scenarios: farms of real processes, and what is needed to judge them.
//!
//! Each target under `tests/` is a suite of its own (`cargo xtask test` finds them). A scenario
//! starts what it needs with [`farm::Plan`], talks to it through [`api`], [`cli`], [`http`] or
//! [`git`], waits with [`wait`], and returns an error that says what was seen. Everything that
//! was started ends with the value that stands for it, also when the test is killed.
//!
//! Not here: anything about what the farm should do. That is the scenarios' part.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "tests read clocks, start processes and print; the bans are about daemons"
)]

pub mod api;
pub mod cli;
pub mod counter;
pub mod delay;
pub mod dice;
pub mod documents;
pub mod farm;
pub mod faults;
pub mod git;
pub mod http;
pub mod load;
pub mod need;
pub mod ports;
pub mod power;
pub mod traces;
pub mod wait;
