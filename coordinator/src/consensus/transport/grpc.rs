//! Transport over gRPC.
