//! The farm in one thread and from one seed: real members (replica, ledger, office), workers with the
//! real outbox and the real rule of how long a lease lasts, a cloud that ignores tokens, clients, and
//! everything that can go wrong between them.
//!
//! ```text
//!  seed -> plan -> world: queue of events in simulated time
//!                    members   drive.rs, keeping.rs, reception.rs   over disk/ (loses and tears what was not synced)
//!                    workers   worker/                  their work, their calls
//!                    cloud     cloud.rs                 etags and operation ids, late and doubled calls
//!                    clients   client.rs                retries by request id
//!                    faults    fault.rs                 until healing; then everything must end
//!                  -> checks/  apart from the work; fed by the committed log, applied once more (oracle.rs)
//! ```
//!
//! The same seed gives the same trace in another process. Bugs are planted at the seams
//! ([`bugs`]) to prove that the checkers see.

pub mod bugs;
pub mod checks;
pub mod client;
pub mod cloud;
pub mod coverage;
pub mod disk;
mod drive;
pub mod event;
pub mod fault;
mod keeping;
pub mod machine;
pub mod member;
pub mod network;
pub mod operator;
pub mod oracle;
pub mod plan;
pub mod queue;
mod reception;
pub mod recipe;
pub mod rng;
mod seed;
pub mod stream;
pub mod trace;
pub mod worker;
pub mod world;

pub use seed::{Report, run};
