//! One leader per term (Raft §5.2), and none that decides after it was taken out of the group.
//!
//! Who was taken out may still be elected: until it has applied the change it votes and stands as before,
//! and whoever votes for it has found the change in its log. But then the change comes before the first
//! entry of its term, so it knows that it is out before it has the full state, and decides nothing.

use std::collections::BTreeMap;

use super::Wrong;

/// Who led when.
#[derive(Debug, Default)]
pub struct Leaders {
    terms: BTreeMap<u64, u64>,
    /// Members that were taken out, and the newest term that anybody led in then.
    left: BTreeMap<u64, u64>,
}

impl Leaders {
    /// A member was elected in a term.
    pub fn elected(&mut self, term: u64, member: u64) -> Wrong {
        let first = *self.terms.entry(term).or_insert(member);
        (first != member).then(|| format!("members {first} and {member} both lead in term {term}"))
    }

    /// A member leads with the full state.
    pub fn leads(&mut self, term: u64, member: u64) -> Wrong {
        let then = self.left.get(&member).filter(|then| term > **then)?;
        Some(format!(
            "member {member} leads in term {term}, and was taken out of the group in term {then}"
        ))
    }

    /// A member was taken out of the group.
    pub fn left(&mut self, member: u64) -> Wrong {
        let newest = self.terms.keys().next_back().copied().unwrap_or(0);
        self.left.entry(member).or_insert(newest);
        None
    }

    /// How many terms had a leader.
    pub fn terms(&self) -> usize {
        self.terms.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leader_of_a_term_is_wrong_and_a_later_term_is_not() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.elected(2, 1), None);
        assert_eq!(leaders.elected(3, 2), None);
        assert_eq!(leaders.elected(2, 1), None);
        assert!(leaders.elected(3, 1).is_some());
    }

    #[test]
    fn a_member_that_was_taken_out_may_be_elected_and_must_not_lead() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.elected(5, 3), None);
        assert_eq!(leaders.left(3), None);
        // It led then, and goes on until it knows.
        assert_eq!(leaders.leads(5, 3), None);
        assert_eq!(leaders.elected(7, 3), None);
        assert!(leaders.leads(7, 3).is_some());
    }
}
