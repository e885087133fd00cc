//! `oast local-cloud`: a small cloud on one machine, shaped as scale sets are on Azure.
//!
//! Sets of instances behind a TCP load balancer, with etags, draining, long operations and durable
//! state, over a gRPC control API. It is a process of its own so that a worker can die without its
//! instances. It decides nothing about rollouts and repairs nothing: that is the farm's business
//! (docs/decisions, "the embedded default is the same code").
//!
//! ```text
//! provider/local --gRPC--> api -> cloud (owner) -> driver per instance -> runtime (namespaces)
//!                                   |  '-- store (one synced file per record)
//! clients ------TCP------> balancer -> backend -> the instance's network namespace
//!                                        ^ health
//! ```
//!
//! Instances are children of this process: when it dies the kernel ends them, and its next start
//! brings them back from the durable state.

pub mod api;
pub mod backend;
pub mod balancer;
pub mod cloud;
pub mod driver;
pub mod health;
pub mod record;
pub mod runtime;
pub mod spec;
pub mod store;
pub mod view;
