//! Everything that does the work: bakes, batches, instances, and the providers behind fleets.

pub mod bake;
pub mod local_cloud;
pub mod provider;
pub mod sandbox;
