//! The pipeline: how a commit becomes an image and the image becomes a fleet.
//!
//! ```text
//! oast.yaml --parse--> Pipeline (checked) --resolve(inputs)--> Pipeline of one run
//!                          |                                     |
//!                          +-- what the ledger stores            +-- what workers obey
//! ```
//!
//! - [`definition`]: the checked types; [`step`]: those of the steps.
//! - [`check`]: from a file's text to them, or to every problem at once.
//! - [`file`]: the file's own types, from which editors get a JSON Schema, and printing.
//! - [`inputs`]: `${{ inputs.x }}`.
//! - [`cron`]: when a calendar next comes true.
//! - [`policy`]: steps that the operator puts into every pipeline.
//! - [`rules`]: what single texts must look like; globs.
//!
//! Nothing here reads a clock, a disk or a network.

pub mod check;
pub mod cron;
pub mod definition;
pub mod file;
pub mod inputs;
pub mod policy;
pub mod rules;
pub mod step;

pub use check::{parse, parse_policies};
pub use definition::*;
pub use inputs::resolve;
pub use policy::Policy;
