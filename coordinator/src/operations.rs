//! What an operator does to the farm as a whole, and what the farm does to protect itself.
//!
//! * [`save`]: the whole ledger as one stream, from a running member.
//! * [`inspect`]: reads such a file and proves that it is whole.
//! * [`restore`]: makes the data directory of a new cluster from one.
//! * [`version`]: what every member supports, and what may be proposed before that rises.
//! * [`recover`]: makes a stopped member the only voter after the majority was lost for good.
//! * [`space`]: a member whose disk is full stays readable and harms nobody.
//!
//! Restore and recovery begin a new cluster: another cluster id, so that members of the old one are refused,
//! and another epoch, so that no number is issued twice (docs/decisions/0018).

pub mod inspect;
pub mod recover;
pub mod restore;
pub mod save;
pub mod space;
pub mod version;

#[cfg(test)]
mod tests;
