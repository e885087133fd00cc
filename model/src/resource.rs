//! The farm's versioned records, made by `oast apply -f FILE`: fleets, repositories, teams.
//!
//! Pipelines live in repositories and name these; these name no pipeline.
//! [`definition`] holds the checked types that the ledger stores.

pub mod definition;

pub use definition::*;
