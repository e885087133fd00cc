//! The state on sled: what was synced is there, and what is found is exactly the state after one of
//! the later writes.

use std::fs;
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use oast_coordinator::store::log::LogPosition;
use oast_coordinator::store::state::memory::{MemoryRoot, MemoryState};
use oast_coordinator::store::state::tree::{TreeOptions, TreeRoot};
use oast_coordinator::store::state::{
    Changes, HistoryTail, Mark, StateRoot as _, StateStore, Syncer,
};
use oast_tests::dice::Dice;

use crate::lives::{Child, losses, run};

/// Power losses unless asked for more.
const LOSSES: u64 = 15;
/// Most syncs of one life.
const LIFE: u64 = 12;
/// Writes between the beginnings of two syncs, and most writes during one.
const BETWEEN: u64 = 40;
const DURING: u64 = 60;
const NAME: &str = "state-000001";

#[test]
fn what_the_state_synced_survives_power_losses() -> Result<()> {
    let test = "state::what_the_state_synced_survives_power_losses";
    match Child::here()? {
        Some(child) => live(&child),
        None => run(test, losses(LOSSES)?, LIFE),
    }
}

fn bytes(dice: &mut Dice, most: u64) -> Vec<u8> {
    let length = 1 + dice.below(most);
    (0..length).map(|_| dice.number() as u8).collect()
}

/// Write number `number` upon a state, as its seed determines.
fn write(state: &mut impl StateStore, seed: u64, number: u64) -> Result<()> {
    let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // Some are so large that sled would give their pages files of their own if it could.
    let value = |dice: &mut Dice| {
        let most = if dice.below(20) == 0 { 80_000 } else { 300 };
        bytes(dice, most)
    };
    let mut changes = Changes::default();
    let first = dice.below(300);
    for place in 0..1 + dice.below(5) {
        let key = ((first + place * 7) % 300).to_be_bytes().to_vec();
        let kept = dice.below(8) > 0;
        changes.records.push((key, kept.then(|| value(&mut dice))));
    }
    if dice.below(3) == 0 {
        changes.history.push(value(&mut dice));
    }
    let last = state.history().last;
    if last > 0 && dice.below(10) == 0 {
        changes.pruned.push(1 + dice.below(last));
    }
    Ok(state.write(mark(number), changes)?)
}

fn mark(number: u64) -> Mark {
    Mark {
        position: LogPosition {
            index: number,
            term: 1,
        },
        now_ms: number,
    }
}

fn ensure_same(found: &impl StateStore, wanted: &MemoryState) -> Result<()> {
    ensure!(found.history() == wanted.history(), "another history");
    for (found, wanted) in found.records().zip(wanted.records()) {
        let ((key, value), wanted) = (found?, wanted?);
        ensure!((&key, &value) == (&wanted.0, &wanted.1), "record {key:?}");
    }
    ensure!(
        found.records().count() == wanted.records().count(),
        "more or fewer records"
    );
    let (found, wanted) = (found.history_reader(), wanted.history_reader());
    let (found, wanted) = (found.read(1, usize::MAX)?, wanted.read(1, usize::MAX)?);
    ensure!(found == wanted, "other records in the history");
    Ok(())
}

fn live(child: &Child) -> Result<()> {
    fs::create_dir_all(&child.folder)?;
    let options = TreeOptions {
        cache_bytes: 1 << 20,
        flush_ms: 20,
    };
    let root = TreeRoot::new(child.folder.clone(), options);
    let nothing = (mark(0), HistoryTail::default());
    let mut state = match child.acknowledged {
        0 => root.create(NAME, nothing.0, nothing.1, &mut std::iter::empty())?,
        _ => root.open(NAME).context("open what was synced")?,
    };
    let mut number = state.mark().position.index;
    ensure!(
        number >= child.acknowledged,
        "write {} was synced, found is {number}",
        child.acknowledged
    );
    let mut wanted =
        MemoryRoot::default().create(NAME, nothing.0, nothing.1, &mut std::iter::empty())?;
    for number in 1..=number {
        write(&mut wanted, child.seed, number)?;
    }
    ensure_same(&state, &wanted).with_context(|| format!("after write {number}"))?;
    drop(wanted);

    // As a member does it: one thread writes, another one syncs what there is.
    let (orders, syncs) = mpsc::channel::<(u64, Syncer)>();
    let (done, synced) = mpsc::channel();
    std::thread::spawn(move || {
        for (number, sync) in syncs {
            let tried = sync().map_err(anyhow::Error::from);
            let _ = done.send(tried.and_then(|()| Child::acknowledge(number)));
        }
    });
    loop {
        for _ in 0..BETWEEN {
            number += 1;
            write(&mut state, child.seed, number)?;
        }
        orders
            .send((number, state.syncer()))
            .ok()
            .context("the syncing thread is gone")?;
        for _ in 0..DURING {
            if let Ok(tried) = synced.try_recv() {
                tried?;
                break;
            }
            number += 1;
            write(&mut state, child.seed, number)?;
        }
    }
}
