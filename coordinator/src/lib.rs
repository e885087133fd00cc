//! The coordinator: replicated decisions and the interfaces to them.

pub mod consensus;
pub mod farm;
pub mod leader;
pub mod secrets;
pub mod store;
