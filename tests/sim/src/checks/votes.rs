//! A member votes once in a term, whatever it forgets (Raft §5.2). Two leaders of one term need two
//! votes of somebody; this sees the second vote also when no leader came of it.

use std::collections::BTreeMap;

use super::Wrong;

/// Who voted for whom in which term.
#[derive(Debug, Default)]
pub struct Votes(BTreeMap<(u64, u64), u64>);

impl Votes {
    /// A member's vote has reached a candidate.
    pub fn given(&mut self, member: u64, term: u64, candidate: u64) -> Wrong {
        let first = *self.0.entry((member, term)).or_insert(candidate);
        (first != candidate).then(|| {
            format!("member {member} voted for {first} and for {candidate} in term {term}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_vote_may_come_twice_and_another_one_in_its_term_may_not() {
        let mut votes = Votes::default();
        assert_eq!(votes.given(1, 2, 3), None);
        assert_eq!(votes.given(1, 2, 3), None);
        assert_eq!(votes.given(1, 3, 2), None);
        assert!(votes.given(1, 2, 2).is_some());
    }
}
