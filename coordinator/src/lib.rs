//! The coordinator: replicated decisions and the interfaces to them.

pub mod api;
pub mod archive;
pub mod consensus;
pub mod farm;
pub mod leader;
pub mod secrets;
pub mod store;
