//! Linearizability of registers (Wing and Gong's search with Lowe's memory): what clients saw of
//! one register can be put into one order that respects real time and the register's rules.
//!
//! A register is a resource with a revision. A write names the revision that it replaces, so it is
//! a compare-and-set: a write applied twice, a lost one or a stale read leaves no such order.

use std::collections::{BTreeMap, HashSet};

use super::Wrong;
use crate::queue::Micros;

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The revision that it replaces.
    pub expected: u64,
    /// The new value; never used twice.
    pub value: String,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Written as this revision.
    Written(u64),
    /// Not written: the revision was this one.
    Moved(u64),
    /// Read.
    Seen(u64, String),
    /// Nothing.
    Unknown,
}

#[derive(Clone, Debug)]
struct Operation {
    began: Micros,
    /// None while nothing was told.
    ended: Option<Micros>,
    write: Option<Write>,
    outcome: Outcome,
}

/// What clients saw.
#[derive(Debug, Default)]
pub struct Registers(BTreeMap<u64, Vec<Operation>>);

impl Registers {
    fn begin(&mut self, register: u64, now: Micros, write: Option<Write>) -> usize {
        let operations = self.0.entry(register).or_default();
        operations.push(Operation {
            began: now,
            ended: None,
            write,
            outcome: Outcome::Unknown,
        });
        operations.len() - 1
    }

    /// A client begins to write.
    pub fn write(&mut self, register: u64, now: Micros, write: Write) -> usize {
        self.begin(register, now, Some(write))
    }

    /// A client begins to read.
    pub fn read(&mut self, register: u64, now: Micros) -> usize {
        self.begin(register, now, None)
    }

    /// A client was told something, or gave up.
    pub fn ended(&mut self, register: u64, operation: usize, now: Micros, outcome: Outcome) {
        let operations = self.0.entry(register).or_default();
        if let Some(operation) = operations.get_mut(operation) {
            operation.ended = (outcome != Outcome::Unknown).then_some(now);
            operation.outcome = outcome;
        }
    }

    /// How many operations had an outcome.
    pub fn count(&self) -> usize {
        let all = self.0.values().flatten();
        all.filter(|operation| operation.ended.is_some()).count()
    }

    /// Looks for an order for each register.
    pub fn check(&self) -> Wrong {
        self.0.iter().find_map(|(register, operations)| {
            (!linearizable(operations))
                .then(|| format!("no order explains what clients saw of register {register}"))
        })
    }
}

/// State of a register: its revision, and which write made it.
type State = (u64, Option<usize>);

/// What an operation does in a state; `None` if it cannot have had its outcome there.
fn step(operations: &[Operation], place: usize, state: State) -> Option<State> {
    let operation = &operations[place];
    let (revision, by) = state;
    match (&operation.write, &operation.outcome) {
        (Some(write), Outcome::Written(new)) => {
            (write.expected == revision && *new == revision + 1).then_some((*new, Some(place)))
        }
        (Some(write), Outcome::Moved(actual)) => {
            (write.expected != revision && *actual == revision).then_some(state)
        }
        (Some(write), Outcome::Unknown) => match write.expected == revision {
            true => Some((revision + 1, Some(place))),
            false => Some(state),
        },
        (None, Outcome::Seen(seen, value)) => {
            let same = match by.and_then(|by| operations[by].write.as_ref()) {
                Some(write) => write.value == *value,
                None => value == "begun",
            };
            (*seen == revision && same).then_some(state)
        }
        _ => Some(state),
    }
}

fn linearizable(all: &[Operation]) -> bool {
    // A read without an answer says nothing.
    let operations: Vec<Operation> = all
        .iter()
        .filter(|op| op.write.is_some() || op.ended.is_some())
        .cloned()
        .collect();
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|place| operations[*place].began);
    let words = operations.len().div_ceil(64);
    let mut done = vec![0_u64; words];
    let mut visited: HashSet<(Vec<u64>, State)> = HashSet::new();
    search(&operations, &order, &mut done, (1, None), &mut visited)
}

/// Depth first over all orders, by an explicit stack: a history may be long.
fn search(
    operations: &[Operation],
    order: &[usize],
    done: &mut [u64],
    first: State,
    visited: &mut HashSet<(Vec<u64>, State)>,
) -> bool {
    struct Frame {
        state: State,
        candidates: Vec<usize>,
        taken: Option<usize>,
    }
    let is_done = |done: &[u64], place: usize| done[place / 64] & (1 << (place % 64)) != 0;
    let candidates = |done: &[u64]| -> (Vec<usize>, bool) {
        let open = || order.iter().copied().filter(|place| !is_done(done, *place));
        // Everything that began before the first of the rest had ended may come next.
        let limit = open().filter_map(|place| operations[place].ended).min();
        let complete = limit.is_none();
        let limit = limit.unwrap_or(Micros::MAX);
        let next = open().take_while(|place| operations[*place].began <= limit);
        (next.collect(), complete)
    };
    let (next, complete) = candidates(done);
    if complete {
        return true;
    }
    let mut stack = vec![Frame {
        state: first,
        candidates: next,
        taken: None,
    }];
    while let Some(frame) = stack.last_mut() {
        if let Some(taken) = frame.taken.take() {
            done[taken / 64] &= !(1 << (taken % 64));
        }
        let Some(place) = frame.candidates.pop() else {
            stack.pop();
            continue;
        };
        let Some(state) = step(operations, place, frame.state) else {
            continue;
        };
        done[place / 64] |= 1 << (place % 64);
        frame.taken = Some(place);
        if !visited.insert((done.to_vec(), state)) {
            continue;
        }
        let (next, complete) = candidates(done);
        if complete {
            return true;
        }
        stack.push(Frame {
            state,
            candidates: next,
            taken: None,
        });
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(registers: &mut Registers, times: (u64, u64), expected: u64, outcome: Outcome) {
        let value = format!("v{}-{expected}", times.0);
        let op = registers.write(0, times.0, Write { expected, value });
        registers.ended(0, op, times.1, outcome);
    }

    fn read(registers: &mut Registers, times: (u64, u64), revision: u64, value: &str) {
        let op = registers.read(0, times.0);
        let outcome = Outcome::Seen(revision, value.to_owned());
        registers.ended(0, op, times.1, outcome);
    }

    #[test]
    fn a_write_that_nobody_was_told_of_may_count_or_not() {
        for (revision, value) in [(1, "begun"), (2, "v0-1")] {
            let mut registers = Registers::default();
            write(&mut registers, (0, 9), 1, Outcome::Unknown);
            read(&mut registers, (20, 30), revision, value);
            assert_eq!(registers.check(), None);
        }
    }

    #[test]
    fn a_read_older_than_an_acknowledged_write_is_found() {
        let mut registers = Registers::default();
        write(&mut registers, (0, 9), 1, Outcome::Written(2));
        read(&mut registers, (5, 30), 1, "begun");
        assert_eq!(registers.check(), None, "they overlap");
        read(&mut registers, (40, 50), 1, "begun");
        assert!(registers.check().is_some());
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let mut registers = Registers::default();
        // The first copy was applied, the second one was refused, and its answer came.
        write(&mut registers, (0, 9), 1, Outcome::Moved(2));
        read(&mut registers, (20, 30), 2, "v0-1");
        assert!(registers.check().is_some());
    }

    #[test]
    fn of_two_writes_of_one_revision_only_one_counts() {
        let mut registers = Registers::default();
        write(&mut registers, (0, 9), 1, Outcome::Written(2));
        write(&mut registers, (1, 9), 1, Outcome::Written(2));
        assert!(registers.check().is_some());
    }

    #[test]
    fn a_long_history_is_checked_at_once() {
        let mut registers = Registers::default();
        for round in 0..150 {
            let at = round * 10;
            write(
                &mut registers,
                (at, at + 25),
                round + 1,
                Outcome::Written(round + 2),
            );
            read(
                &mut registers,
                (at + 26, at + 40),
                round + 2,
                &format!("v{at}-{}", round + 1),
            );
        }
        assert_eq!(
            registers.check(),
            None,
            "writes and reads overlap all along"
        );
    }
}
