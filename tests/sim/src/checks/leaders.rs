//! One leader per term (Raft §5.2).

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
    /// A member leads in a term.
    pub fn leads(&mut self, term: u64, member: u64) -> Wrong {
        let first = *self.terms.entry(term).or_insert(member);
        if let Some(then) = self.left.get(&member)
            && term > *then
        {
            return Some(format!(
                "member {member} leads in term {term}, and was taken out of the group in term {then}"
            ));
        }
        (first != member).then(|| format!("members {first} and {member} both lead in term {term}"))
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
        assert_eq!(leaders.leads(2, 1), None);
        assert_eq!(leaders.leads(3, 2), None);
        assert_eq!(leaders.leads(2, 1), None);
        assert!(leaders.leads(3, 1).is_some());
    }
}
