//! The pipeline: how a commit becomes an image and the image becomes a fleet.
//!
//! [`definition`] holds the validated types that the ledger stores and the
//! workers obey. A pipeline that exists as these types has been checked.
//!
//! Nothing here reads a clock, a disk or a network.

pub mod definition;

pub use definition::*;
