//! Power losses: whatever was acknowledged before one is there after it.
//!
//! `log` and `state` try the member's two stores alone, as the members use them; `group` a whole
//! group of real members. `OAST_POWER_SEED` has the same chance again, `OAST_POWER_LOSSES` makes
//! them longer than CI has time for.

mod group;
mod lives;
mod log;
mod state;
