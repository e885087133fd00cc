//! The state on sled: after a power loss it is not believed. Its records are made again, and what
//! is taken over of its history is exactly what was synced, or nothing.

use std::fs;
use std::io::Write as _;
use std::sync::mpsc;

use anyhow::{Context, Result, ensure};
use oast_coordinator::store::log::LogPosition;
use oast_coordinator::store::state::memory::{MemoryRoot, MemoryState};
use oast_coordinator::store::state::tree::{TreeOptions, TreeRoot, TreeState};
use oast_coordinator::store::state::{
    Changes, HistoryTail, Mark, StateRoot as _, StateStore, Syncer, next_name, tombstone,
};
use oast_tests::dice::Dice;

use crate::lives::{Child, losses, run};

/// Power losses unless asked for more.
const LOSSES: u64 = 15;
/// Most syncs of one life.
const LIFE: u64 = 12;
/// Writes between the beginnings of two syncs, and most writes during one.
const BETWEEN: u64 = 40;
const DURING: u64 = 80;

#[test]
fn what_the_state_synced_survives_power_losses() -> Result<()> {
    let test = "state::what_the_state_synced_survives_power_losses";
    match Child::here()? {
        Some(child) => live(&child),
        None => run(test, losses(LOSSES)?, LIFE, true),
    }
}

fn bytes(dice: &mut Dice, most: u64) -> Vec<u8> {
    let length = 1 + dice.below(most);
    (0..length).map(|_| dice.number() as u8).collect()
}

/// Write number `number` upon a state, as its seed determines.
fn write(state: &mut impl StateStore, seed: u64, number: u64) -> Result<()> {
    let mut dice = Dice::new(seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    // Some values are so large that sled gives them files of their own.
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
    // A later write, which comes again, may have pruned it already.
    let same =
        |(found, wanted): (&Vec<u8>, &Vec<u8>)| found == wanted || *found == tombstone(wanted);
    ensure!(
        found.len() == wanted.len() && found.iter().zip(&wanted).all(same),
        "other records in the history"
    );
    Ok(())
}

/// A new state as of the last acknowledged write, with the history of the one that the power loss
/// left: what a member does with its snapshot and its log.
fn again(root: &TreeRoot, child: &Child) -> Result<TreeState> {
    let mut wanted = MemoryRoot::default().create(
        "",
        mark(0),
        HistoryTail::default(),
        &mut std::iter::empty(),
    )?;
    for number in 1..=child.acknowledged {
        write(&mut wanted, child.seed, number)?;
    }
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(&child.folder)? {
        names.extend(entry?.file_name().into_string());
    }
    // A start that died left a newer one, of which nobody knows.
    let old = names.into_iter().min().context("no state is left")?;
    ensure!(
        root.open(&old).is_err(),
        "a state that was open when the power failed is believed"
    );
    let name = next_name(&old);
    let mut records = wanted
        .records()
        .map(|record| record.map_err(|e| e.to_string()));
    let mut state = root.create(
        &name,
        mark(child.acknowledged),
        wanted.history(),
        &mut records,
    )?;
    drop(records);
    let salvaged = root.salvage(&mut state, &old);
    writeln!(std::io::stdout(), "\nsalvaged: {salvaged:?}")?;
    while let Some(gap) = state.gap() {
        ensure!(
            salvaged.is_err() || gap.after.last == 0,
            "a part was taken over"
        );
        let first = gap.after.last + 1;
        let records = wanted.history_reader().read(first, usize::MAX)?;
        state.fill(first, records)?;
    }
    root.sweep(&name)?;
    ensure_same(&state, &wanted).with_context(|| format!("after write {}", child.acknowledged))?;
    Ok(state)
}

fn live(child: &Child) -> Result<()> {
    fs::create_dir_all(&child.folder)?;
    let options = TreeOptions {
        cache_bytes: 1 << 20,
        flush_ms: 20,
    };
    let root = TreeRoot::new(child.folder.clone(), options);
    let mut state = match child.acknowledged {
        0 => root.create(
            &next_name(""),
            mark(0),
            HistoryTail::default(),
            &mut std::iter::empty(),
        )?,
        _ => again(&root, child)?,
    };
    let mut number = child.acknowledged;

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
