//! The coordinator: replicated decisions and the interfaces to them.

pub mod api;
pub mod archive;
pub mod certificates;
pub mod config;
pub mod consensus;
pub mod decoders;
pub mod farm;
pub mod feed;
mod gate;
mod gauges;
pub mod git;
mod join;
pub mod leader;
pub mod notary;
pub mod operations;
pub mod ports;
mod retention;
mod run;
pub mod secrets;
pub mod store;
pub mod web;
pub mod webhook;

pub use run::{RunError, run};
