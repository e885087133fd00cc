//! Azure without Azure: the Resource Manager, Compute, disk upload, tokens and log ingestion.
//!
//! ```text
//! serve   sockets, http and https        (the only part with real time, tasks and I/O)
//!   |
//! world   one value: handle(real time gone by, request) -> answer
//!   |- time, durations   virtual clock, recorded durations
//!   |- operations        what is under way; ends when virtual time has come
//!   |- throttle, faults, identity
//!   |- store, resources  what exists, and each type's rules
//!   |- blob, logs        disk upload, log ingestion
//!   `- contract          judges every answer by the published types and statuses
//! ```
//!
//! The world is a function of its seed, the requests and the time that it is told, so a test can
//! ask it without a socket and step through twelve minutes of replication in no time. `README.md`
//! says which behaviours of Azure stand, and which words are from memory.

pub mod blob;
pub mod contract;
mod control;
pub mod dice;
pub mod durations;
pub mod faults;
pub mod http;
pub mod identity;
pub mod json;
pub mod operations;
pub mod problem;
pub mod resources;
pub mod schema;
pub mod serve;
pub mod store;
pub mod throttle;
pub mod time;
pub mod world;
