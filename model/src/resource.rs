//! The farm's versioned records, made by `oast apply -f FILE`: fleets, repositories, teams.
//!
//! Pipelines live in repositories and name these; these name no pipeline.
//!
//! - [`definition`]: the checked types that the ledger stores.
//! - [`check`]: from a file's text to them, or to every problem at once.
//! - [`file`]: the file's own types: schema and printing.
//! - [`diff`]: what an apply would change.

pub mod check;
pub mod definition;
pub mod diff;
pub mod file;

pub use check::parse;
pub use definition::*;
pub use diff::{FieldChange, diff};
