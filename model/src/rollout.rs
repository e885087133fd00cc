//! The rollout planner: from what is observed to the next thing to do. Pure.
//!
//! [`plan`] looks at one fleet, its open rollout and what a provider shows, and says
//! what to propose now. It never counts on an order of events: called again with the
//! same facts it says the same, called after a crash it goes on from the facts.

mod plan;

pub use plan::{Decision, Situation, instance_names, plan, unavailable};
