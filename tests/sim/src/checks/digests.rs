//! Equal states at equal positions: every member at every index that it stops at is compared with
//! the log applied once more.

use std::collections::BTreeMap;

use super::Wrong;

/// The state after an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Term of the entry.
    pub term: u64,
    /// The ledger's time.
    pub now_ms: u64,
    /// Digest of the live records.
    pub digest: [u8; 32],
}

/// The state at each index.
#[derive(Debug, Default)]
pub struct Digests(BTreeMap<u64, Point>);

impl Digests {
    /// The state after the entry at `index`.
    pub fn reached(&mut self, index: u64, point: Point) {
        self.0.insert(index, point);
    }

    /// A member is at `index` with this state.
    pub fn compare(&self, member: u64, index: u64, point: &Point) -> Wrong {
        let expected = self.0.get(&index)?;
        (expected != point).then(|| {
            format!(
                "member {member} has another state at index {index}: term {} instead of {}, time {} instead of {}, digests {}",
                point.term,
                expected.term,
                point.now_ms,
                expected.now_ms,
                match point.digest == expected.digest {
                    true => "equal",
                    false => "different",
                }
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_state_at_the_same_index_is_wrong() {
        let mut digests = Digests::default();
        let point = |digest| Point {
            term: 2,
            now_ms: 5,
            digest: [digest; 32],
        };
        digests.reached(7, point(1));
        assert_eq!(digests.compare(1, 7, &point(1)), None);
        assert_eq!(digests.compare(1, 8, &point(9)), None);
        assert!(digests.compare(1, 7, &point(2)).is_some());
    }
}
