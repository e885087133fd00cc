//! The farm's wire language: generated types and their conversions to model types.
//!
//! `oast.v1` is the public API, `oast.worker.v1` and `oast.peer.v1` are spoken
//! inside a farm, `oast.localcloud.v1` by the local provider. The contract of every
//! message stands in the `.proto` files; this crate adds no meaning of its own.

#![allow(
    clippy::allow_attributes_without_reason,
    reason = "generated code carries allow attributes of its own"
)]

pub mod fault;

/// Spoken between the local provider and the local cloud.
pub mod localcloud {
    /// First version.
    #[allow(
        missing_debug_implementations,
        clippy::all,
        unused_qualifications,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("oast.localcloud.v1");
    }
}

/// The public API.
pub mod v1 {
    #![allow(
        missing_debug_implementations,
        clippy::all,
        unused_qualifications,
        reason = "generated"
    )]
    tonic::include_proto!("oast.v1");
}

/// Spoken between members.
pub mod peer {
    /// First version.
    #[allow(
        missing_debug_implementations,
        clippy::all,
        unused_qualifications,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("oast.peer.v1");
    }
}

/// Spoken between the leader and its workers.
pub mod worker {
    /// First version.
    #[allow(
        missing_debug_implementations,
        clippy::all,
        unused_qualifications,
        reason = "generated"
    )]
    pub mod v1 {
        tonic::include_proto!("oast.worker.v1");
    }
}

/// Descriptors of every service, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/oast.binpb"));
