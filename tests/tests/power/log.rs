//! The log on raft-engine, with small segments so that they are changed, purged and used again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use oast_coordinator::store::identity::Identity;
use oast_coordinator::store::log::engine::{EngineLog, EngineLogOptions};
use oast_coordinator::store::log::{LogMeta, LogPosition, LogStore, LogWrite};
use oast_coordinator::store::members::Members;
use oast_tests::dice::Dice;
use raft::eraftpb::{ConfState, Entry, HardState};

use crate::lives::{Child, losses, run};

/// Power losses unless asked for more.
const LOSSES: u64 = 25;
/// Most synced writes of one life.
const LIFE: u64 = 120;
/// Writes that may be there beyond the last acknowledged one: one that was not synced, and one whose
/// answer was cut off.
const BEYOND: u64 = 2;

#[test]
fn what_the_log_acknowledged_survives_power_losses() -> Result<()> {
    let test = "log::what_the_log_acknowledged_survives_power_losses";
    match Child::here()? {
        Some(child) => live(&child),
        None => run(test, losses(LOSSES)?, LIFE, false),
    }
}

/// What the log holds, or should hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Content {
    entries: BTreeMap<u64, (u64, Vec<u8>)>,
    hard_state: HardState,
    meta: Option<LogMeta>,
}

impl Content {
    fn of(log: &EngineLog) -> Result<Content> {
        let mut entries = BTreeMap::new();
        let mut low = log.first_index();
        while low <= log.last_index() {
            for entry in log.entries(low, log.last_index() + 1, 1 << 20)? {
                low = entry.index + 1;
                entries.insert(entry.index, (entry.term, entry.data.to_vec()));
            }
        }
        Ok(Content {
            entries,
            hard_state: log.hard_state().clone(),
            meta: log.meta().cloned(),
        })
    }

    fn truncated(&self) -> LogPosition {
        self.meta
            .as_ref()
            .map_or_else(LogPosition::default, |meta| meta.truncated)
    }

    fn last(&self) -> LogPosition {
        match self.entries.last_key_value() {
            None => self.truncated(),
            Some((index, (term, _))) => LogPosition {
                index: *index,
                term: *term,
            },
        }
    }

    fn take(&mut self, write: &LogWrite) {
        if write.reset {
            self.entries.clear();
        }
        for entry in &write.entries {
            self.entries.split_off(&entry.index);
            self.entries
                .insert(entry.index, (entry.term, entry.data.to_vec()));
        }
        if let Some(hard_state) = &write.hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(meta) = &write.meta {
            self.meta = Some(meta.clone());
            self.entries = self.entries.split_off(&(meta.truncated.index + 1));
        }
    }

    /// Write number `number` upon this content, as its seed determines.
    fn next(&self, seed: u64, number: u64) -> LogWrite {
        let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut hard_state = self.hard_state.clone();
        let (truncated, last) = (self.truncated(), self.last());
        let mut write = LogWrite {
            sync: true,
            ..LogWrite::default()
        };
        match dice.below(100) {
            _ if self.meta.is_none() => {
                hard_state.term = 1;
                write.hard_state = Some(hard_state);
                write.meta = Some(meta(LogPosition { index: 1, term: 1 }, number));
            }
            0..65 => write.entries = entries(&mut dice, last.index + 1, hard_state.term),
            // Another leader's entries.
            65..75 => {
                let first = truncated.index + 1 + dice.below(last.index - truncated.index + 1);
                hard_state.term += 1;
                write.entries = entries(&mut dice, first, hard_state.term);
                write.hard_state = Some(hard_state);
            }
            // The commit index alone, which nobody waits for.
            75..87 => {
                hard_state.commit = last.index;
                write.hard_state = Some(hard_state);
                write.sync = false;
            }
            87..97 => {
                let index = truncated.index + dice.below(last.index - truncated.index + 1);
                let there = self.entries.get(&index).map(|(term, _)| *term);
                let term = there.unwrap_or(truncated.term);
                write.meta = Some(meta(LogPosition { index, term }, number));
            }
            // A snapshot was installed.
            _ => {
                let index = last.index + 1 + dice.below(100);
                hard_state.commit = index;
                write.hard_state = Some(hard_state.clone());
                let term = hard_state.term;
                write.meta = Some(meta(LogPosition { index, term }, number));
                write.reset = true;
            }
        }
        write
    }
}

fn entries(dice: &mut Dice, first: u64, term: u64) -> Vec<Entry> {
    let count = 1 + dice.below(4);
    (first..first + count)
        .map(|index| {
            let length = if dice.below(20) == 0 { 30_000 } else { 2_000 };
            let length = dice.below(length);
            Entry {
                index,
                term,
                data: (0..length)
                    .map(|_| dice.number() as u8)
                    .collect::<Vec<u8>>()
                    .into(),
                ..Entry::default()
            }
        })
        .collect()
}

fn meta(truncated: LogPosition, number: u64) -> LogMeta {
    LogMeta {
        identity: Identity {
            cluster: "power".into(),
            member: 1,
            stamp: 7,
        },
        known_stamps: BTreeMap::new(),
        conf_state: ConfState::default(),
        members: Members::default(),
        conf_index: truncated.index,
        truncated,
        state_dir: format!("state-{number:06}"),
    }
}

fn live(child: &Child) -> Result<()> {
    // Small, so that a life sees many of them.
    let options = EngineLogOptions {
        segment_bytes: 64 << 10,
        purge_threshold_bytes: 128 << 10,
        tail_bytes: 16 << 10,
    };
    let mut log = EngineLog::open(&child.folder, &options)?;
    let found = Content::of(&log)?;
    let mut content = Content::default();
    let mut number = 0;
    while number < child.acknowledged {
        number += 1;
        let write = content.next(child.seed, number);
        content.take(&write);
    }
    while content != found {
        ensure!(
            number < child.acknowledged + BEYOND,
            "{} writes were acknowledged, the last entry found is {:?}, the hard state {:?}, truncated {:?}",
            child.acknowledged,
            found.last(),
            found.hard_state,
            found.truncated(),
        );
        number += 1;
        let write = content.next(child.seed, number);
        content.take(&write);
    }
    loop {
        number += 1;
        let write = content.next(child.seed, number);
        content.take(&write);
        let (sync, purge) = (write.sync, write.meta.is_some());
        log.write(write)?;
        if sync {
            Child::acknowledge(number)?;
        }
        if purge {
            log.purge().context("purge")?;
        }
    }
}
