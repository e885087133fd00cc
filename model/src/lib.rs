//! What the farm decides, as pure functions: no clock, no randomness, no input or output.
//!
//! `now` and what was observed come in as arguments, decisions go out as values.
//! That is what lets replicas agree and tests replay.

pub mod codec;
pub mod digest;
pub mod ids;
pub mod names;
pub mod pipeline;
pub mod principal;
pub mod resource;
pub mod table;
pub mod time;
pub mod units;
