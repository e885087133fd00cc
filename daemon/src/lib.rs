//! Process plumbing shared by every `oast` daemon (docs/decisions/0002).
//!
//! What a process needs before it has any business: a clock, named tasks, shutdown, secrets,
//! logging, metrics, a port, a locked data directory and configuration. It knows `model` and
//! nothing else of ours, and decides nothing about runs, images or fleets.

pub mod clock;
pub mod config;
pub mod exit;
pub mod health;
pub mod isolate;
pub mod lock;
pub mod metrics;
pub mod panic;
pub mod preflight;
pub mod random;
pub mod retry;
pub mod secret;
pub mod serve;
pub mod shutdown;
pub mod task;
pub mod telemetry;
pub mod testing;
pub mod tls;
