//! What the farm decides, as pure functions: no clock, no randomness, no input or output.

pub mod time;
