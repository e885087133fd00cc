//! Namespaces as the farm's processes use them: who is who, and how helpers talk and die.
//!
//! The worker's sandboxes ([`oast_worker::sandbox`](../../oast_worker/sandbox/index.html)), the local cloud's instances
//! and quickstart's farm all rest on the same few parts: an id map, faults that name the failing call, messages with
//! descriptors over a socket that is also the lifeline, and forks of single-threaded helpers.

pub mod cgroup;
pub mod enter;
pub mod farm;
pub mod fault;
pub mod idmap;
pub mod proc;
pub mod wire;

pub use enter::{Entered, enter, remove_entry};
pub use farm::{ChildSpec, Farm, FarmError, FarmEvent, FarmEvents, FarmSpec, entry};
pub use fault::{Fault, Named};
pub use idmap::{ID_COUNT, IdMap, IdMapError};
