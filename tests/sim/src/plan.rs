//! What a seed expands to: the size of the farm, its limits, and how bad the weather is.

use std::time::Duration;

use oast_coordinator::consensus::options::Options;
use oast_model::ledger::VERSION;

use crate::queue::{MS, Micros, SECOND};
use crate::rng::Rng;

/// Simulated time that every seed lasts at least.
pub const AT_LEAST: Micros = 60 * SECOND;
/// Simulated time after healing in which everything must have ended. A rollout that a person begins in a
/// fleet that had none soaks for half a minute with each instance.
pub const PATIENCE: Micros = 300 * SECOND;

/// The choices of one seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its seed.
    pub seed: u64,
    /// Members, ids from 1.
    pub members: u64,
    /// Members begin with a binary that supports no more than this cluster version.
    pub supports: u32,
    /// Workers.
    pub workers: usize,
    /// Clients that submit and change things one after the other.
    pub clients: usize,
    /// Runs that are rolled out, of 1000. With few of them fleets are at rest and get repaired.
    pub rollouts: u64,
    /// When faults and new work end.
    pub heal_at: Micros,
    /// Mean time between two faults.
    pub fault_gap: Micros,
    /// Messages between members that are lost, of 1000.
    pub lost: u64,
    /// Messages between members that come twice, of 1000.
    pub doubled: u64,
    /// Longest usual delay of a message.
    pub delay: Micros,
    /// Calls to the cloud that arrive late, of 1000.
    pub late_calls: u64,
    /// The latest that a call may arrive.
    pub late_by: Micros,
    /// Silence after which a lease is taken away.
    pub lease_ttl: Duration,
    /// Between heartbeats of a worker.
    pub heartbeat: Duration,
    /// Time that a worker keeps free before a lease can end.
    pub margin: Duration,
    /// The replicas' options.
    pub options: Options,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed).fork("plan");
        let lease_ttl = Duration::from_millis(rng.range(1_500, 4_000));
        let calm = rng.chance(150);
        Plan {
            seed,
            members: if rng.chance(300) { 5 } else { 3 },
            supports: match rng.chance(400) {
                true => VERSION - 1,
                false => VERSION,
            },
            workers: rng.range(2, 4) as usize,
            clients: rng.range(2, 5) as usize,
            rollouts: *rng.pick(&[80, 300, 500]),
            heal_at: rng.range(38, 48) * SECOND,
            fault_gap: if calm {
                8 * SECOND
            } else {
                rng.range(400, 2_000) * MS
            },
            lost: if calm { 0 } else { rng.below(60) },
            doubled: if calm { 0 } else { rng.below(40) },
            delay: rng.range(2, 25) * MS,
            late_calls: if calm { 0 } else { rng.below(120) },
            late_by: rng.range(1_000, 5_000) * MS,
            heartbeat: lease_ttl / 6,
            margin: lease_ttl / 5,
            lease_ttl,
            options: Options {
                snapshot_entries: rng.range(30, 300),
                trailing_entries: rng.range(2, 80),
                max_entry_commands: *rng.pick(&[1, 4, 256]),
                max_inflight_messages: *rng.pick(&[2, 16, 256]),
                max_message_bytes: *rng.pick(&[4 << 10, 64 << 10, 256 << 10]),
                seed: rng.bits(),
                ..Options::default()
            },
        }
    }
}
