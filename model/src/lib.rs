//! What the farm decides, as pure functions: no clock, no randomness, no input or output.
//!
//! `now` and what was observed come in as arguments, decisions go out as values.
//! That is what lets replicas agree and tests replay.

pub mod bake;
pub mod class;
pub mod codec;
pub mod digest;
pub mod document;
pub mod fleet;
pub mod ids;
pub mod ledger;
pub mod names;
pub mod pipeline;
pub mod principal;
pub mod priority;
pub mod resource;
pub mod retention;
pub mod rollout;
pub mod schedule;
pub mod table;
pub mod task;
pub mod time;
pub mod units;
