//! The disk engine's bake: from a distribution's packages, through steps, to layers.
//!
//! Each step of a bake is a layer; the base system is the first one. Disk formats live in
//! `image`, namespaces in `sandbox`; nothing here talks to the coordinator.

pub mod base;
mod bill;
pub mod cache;
pub mod disk;
pub mod engine;
pub mod find;
mod import;
pub mod key;
pub mod layer;
pub mod manifest;
pub mod shelf;
pub mod steps;
pub mod whole;
