//! What the farm decides, as pure functions: no clock, no randomness, no input or output.
//!
//! `now` and what was observed come in as arguments, decisions go out as values.
//! That is what lets replicas agree and tests replay.

pub mod names;
pub mod pipeline;
pub mod resource;
pub mod time;
pub mod units;
