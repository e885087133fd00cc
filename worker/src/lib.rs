//! Everything that does the work: bakes, batches, instances, and the providers behind fleets.

pub mod bake;
pub mod batch;
pub mod config;
pub mod fleet;
pub mod image;
pub mod inspect;
pub mod join;
pub mod lease;
pub mod local_cloud;
pub mod observe;
pub mod probe;
pub mod process;
pub mod provider;
pub mod publish;
pub mod renew;
pub mod runner;
pub mod sandbox;
pub mod session;
pub mod source;
pub mod test;

pub use config::WorkerConfig;
pub use process::{Process, WorkerError, run};
