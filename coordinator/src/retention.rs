//! Lets go of finished work that has outlived its policy. Only the leader's part does anything.
//!
//! ```text
//! every PAUSE: read a piece of the history -> oast_model::retention -> PruneHistory -> the next piece
//! ```
//!
//! A sweep begins at the oldest record and ends at the newest; then the next one begins. It reads at
//! most [`PIECE_BYTES`] in each [`PAUSE`], so that a long history costs time and not the members'
//! attention. Nothing here is remembered across leaders: a sweep that is broken off begins again.

use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::Tasks;
use oast_model::codec::{self, DecodeError};
use oast_model::ledger::{Command, ROLLOUT, RUN, RolloutRecord, RunRecord};
use oast_model::resource::Retention;
use oast_model::retention::{Ended, Sweep};
use oast_model::time::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::consensus::ledger::Archived;
use crate::farm::{Farm, FarmView};
use crate::store::state::{HistoryReader, StateError, is_tombstone};

/// Time between two pieces.
const PAUSE: Duration = Duration::from_secs(5);
/// Time between the end of a sweep and the next one.
const REST: Duration = Duration::from_secs(600);
/// Bytes of history that are read in one piece.
const PIECE_BYTES: usize = 4 << 20;

/// Keeps the history within its policies while this member leads.
#[derive(Debug)]
pub struct Keeper {
    farm: Farm,
    tasks: Tasks,
    clock: SharedClock,
    policy: Retention,
}

/// Where a sweep is.
struct At {
    term: u64,
    sweep: Sweep,
    next: u64,
}

/// A piece of the history cannot be used.
#[derive(Debug, thiserror::Error)]
enum PieceError {
    #[error("read the history")]
    State(#[source] StateError),
    #[error("read record {number} of the history")]
    Record {
        number: u64,
        #[source]
        err: DecodeError,
    },
    #[error("read the history: the reading task was lost")]
    Lost,
}

impl Keeper {
    /// A keeper with the farm's policy; teams may have their own.
    pub fn new(farm: Farm, tasks: Tasks, policy: Retention) -> Keeper {
        let clock = farm.clock().clone();
        Keeper {
            farm,
            tasks,
            clock,
            policy,
        }
    }

    /// Works until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut at: Option<At> = None;
        let mut rest = PAUSE;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.clock.sleep(rest) => {}
            }
            let view = self.farm.view();
            let Some(term) = self.farm.leading().filter(|_| !view.farm().name.is_empty()) else {
                at = None;
                rest = PAUSE;
                continue;
            };
            let mut now = at.take().filter(|at| at.term == term);
            let here = now.get_or_insert_with(|| At {
                term,
                sweep: Sweep::begin(&view, &self.policy),
                next: 1,
            });
            rest = match self.piece(&view, here).await {
                Ok(true) => PAUSE,
                Ok(false) => {
                    now = None;
                    REST
                }
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "History was not swept; will begin again."
                    );
                    now = None;
                    REST
                }
            };
            at = now;
        }
    }

    /// One piece. False at the end of the history.
    async fn piece(&self, view: &FarmView, at: &mut At) -> Result<bool, PieceError> {
        let history = self.farm.handle().history();
        let first = at.next;
        let read = self
            .tasks
            .blocking("read-history", move || read(&*history, first))
            .await;
        let (records, next) = read.map_err(|_| PieceError::Lost)??;
        if next == first {
            return Ok(false);
        }
        let mut left = &records[..];
        while !left.is_empty() {
            let now = self.clock.wall();
            let (pruned, looked) = at.sweep.judge(view, &self.policy, left, now);
            left = &left[looked..];
            if pruned.is_empty() {
                continue;
            }
            let count = pruned.len();
            let command = Command::PruneHistory { records: pruned };
            match self.farm.lead(command).await {
                Ok(_) => info!(count, "Finished work was pruned."),
                // The state moved, or another member leads now: what was missed is found again.
                Err(error) => {
                    warn!(%error, "Finished work was not pruned; the next sweep looks again.")
                }
            }
        }
        at.next = next;
        Ok(true)
    }
}

/// What stands in the history from `first` on, and the number after it.
fn read(history: &dyn HistoryReader, first: u64) -> Result<(Vec<Ended>, u64), PieceError> {
    let records = history
        .read(first, PIECE_BYTES)
        .map_err(PieceError::State)?;
    let mut ended = Vec::new();
    let mut number = first;
    for record in records {
        if !is_tombstone(&record) {
            let found = describe(number, &record);
            ended.extend(found.map_err(|err| PieceError::Record { number, err })?);
        }
        number += 1;
    }
    Ok((ended, number))
}

/// None for a kind of a later version, which that version prunes.
fn describe(number: u64, record: &[u8]) -> Result<Option<Ended>, DecodeError> {
    let archived: Archived = codec::decode(record)?;
    let (team, at) = match archived.kind {
        RUN => {
            let RunRecord { run, .. } = codec::decode(&archived.bytes)?;
            (run.team, run.ended_at)
        }
        ROLLOUT => {
            let RolloutRecord { rollout, .. } = codec::decode(&archived.bytes)?;
            (rollout.team, rollout.ended_at)
        }
        _ => return Ok(None),
    };
    Ok(Some(Ended {
        number,
        kind: archived.kind,
        id: archived.id,
        team,
        // Everything that is over says since when.
        at: at.unwrap_or(Timestamp::FAR_FUTURE),
    }))
}

#[cfg(test)]
mod tests;
