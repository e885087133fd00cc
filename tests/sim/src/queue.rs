//! What happens next: events by time, ties in the order in which they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Simulated microseconds since the beginning.
pub type Micros = u64;

/// A millisecond.
pub const MS: Micros = 1_000;
/// A second.
pub const SECOND: Micros = 1_000_000;

struct Entry<E> {
    at: Micros,
    order: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap gives its greatest first.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Events to come.
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    order: u64,
}

impl<E> std::fmt::Debug for Queue<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("waiting", &self.heap.len())
            .finish_non_exhaustive()
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue {
            heap: BinaryHeap::new(),
            order: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Lets `event` happen at `at`.
    pub fn put(&mut self, at: Micros, event: E) {
        self.order += 1;
        self.heap.push(Entry {
            at,
            order: self.order,
            event,
        });
    }

    /// The next event and its time.
    pub fn take(&mut self) -> Option<(Micros, E)> {
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_order() {
        let mut queue = Queue::default();
        for (at, name) in [(2, "c"), (1, "a"), (2, "d"), (1, "b")] {
            queue.put(at, name);
        }
        let order: Vec<&str> = std::iter::from_fn(|| queue.take().map(|(_, e)| e)).collect();
        assert_eq!(order, ["a", "b", "c", "d"]);
    }
}
