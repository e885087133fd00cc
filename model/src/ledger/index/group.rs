//! Concurrency groups: which runs hold one, which wait, and which may begin.
//!
//! A run enters its group when its pipeline is read, and leaves when it ends. It *holds* the
//! group from the first lease after the source on: what it has begun it may finish. The others
//! wait in the order in which they were started; as many of them are *admitted* as there is room.
//! Where the open runs of a group say different things, the smallest `max` counts: so a run that is
//! admitted stays so when another one begins, and one that wants to be alone is not starved.

use std::collections::BTreeSet;

use imbl::{OrdMap, OrdSet};

use super::super::{Ledger, Run};
use crate::ids::RunId;
use crate::names::TeamName;
use crate::task::TaskKind;

/// A concurrency group: names are the team's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// Whose.
    pub team: TeamName,
    /// As the pipeline names it.
    pub group: String,
}

/// The open runs of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Runs that have begun.
    pub holders: OrdSet<RunId>,
    /// Runs that have not.
    pub waiting: OrdSet<RunId>,
    /// Those of `waiting` for which there is room.
    admitted: OrdSet<RunId>,
    /// How many of its open runs say which `max`.
    limits: OrdMap<u32, u32>,
}

impl Group {
    /// Every open run of the group, oldest first.
    pub fn runs(&self) -> BTreeSet<RunId> {
        self.holders
            .iter()
            .chain(self.waiting.iter())
            .copied()
            .collect()
    }

    /// How many of its runs may have begun and not ended.
    fn limit(&self) -> usize {
        let strictest = self.limits.get_min().map_or(1, |(max, _)| *max);
        usize::try_from(strictest).unwrap_or(usize::MAX)
    }

    fn enter(&mut self, run: RunId, member: &Member) {
        let side = if member.holds {
            &mut self.holders
        } else {
            &mut self.waiting
        };
        side.insert(run);
        *self.limits.entry(member.max).or_default() += 1;
    }

    fn leave(&mut self, run: RunId, member: &Member) {
        self.holders.remove(&run);
        self.waiting.remove(&run);
        let count = self.limits.get_mut(&member.max).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            self.limits.remove(&member.max);
        }
    }

    /// The run that `run` waits for: the oldest that holds the group, or is before it.
    pub fn before(&self, run: RunId) -> Option<RunId> {
        let first = self.waiting.get_min().copied().filter(|first| *first < run);
        self.holders.get_min().copied().or(first)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    key: GroupKey,
    max: u32,
    holds: bool,
}

/// All groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    groups: OrdMap<GroupKey, Group>,
    members: OrdMap<RunId, Member>,
}

impl Groups {
    pub(super) fn get(&self, key: &GroupKey) -> Option<&Group> {
        self.groups.get(key)
    }

    pub(super) fn of_run(&self, run: RunId) -> Option<&GroupKey> {
        self.members.get(&run).map(|member| &member.key)
    }

    pub(super) fn admitted(&self, run: RunId) -> bool {
        let Some(member) = self.members.get(&run) else {
            return true;
        };
        member.holds
            || self
                .groups
                .get(&member.key)
                .is_some_and(|group| group.admitted.contains(&run))
    }

    /// Follows a run that changed, and notes the groups that this may have opened or shut.
    pub(super) fn follow(
        &mut self,
        ledger: &Ledger,
        id: RunId,
        regrouped: &mut BTreeSet<GroupKey>,
    ) {
        let now = ledger.runs.get(&id).and_then(|run| member(ledger, run));
        if self.members.get(&id) == now.as_ref() {
            return;
        }
        if let Some(old) = self.members.remove(&id) {
            let group = self.groups.get_mut(&old.key).expect("a member has a group");
            group.leave(id, &old);
            regrouped.insert(old.key);
        }
        if let Some(now) = now {
            let group = self.groups.entry(now.key.clone()).or_default();
            group.enter(id, &now);
            regrouped.insert(now.key.clone());
            self.members.insert(id, now);
        }
    }

    /// Admits as many as there is room for, and returns the runs for which that changed.
    pub(super) fn admit(&mut self, key: &GroupKey) -> Vec<RunId> {
        let Some(group) = self.groups.get_mut(key) else {
            return Vec::new();
        };
        let room = group.limit().saturating_sub(group.holders.len());
        // In order, and nobody is passed.
        let admitted = group.waiting.iter().take(room).copied().collect();
        let before = std::mem::replace(&mut group.admitted, admitted);
        let mut changed: Vec<RunId> = before
            .iter()
            .filter(|run| !group.admitted.contains(*run))
            .copied()
            .collect();
        changed.extend(
            group
                .admitted
                .iter()
                .filter(|run| !before.contains(*run))
                .copied(),
        );
        if group.holders.is_empty() && group.waiting.is_empty() {
            self.groups.remove(key);
        }
        changed
    }
}

/// A run's place in its group, if it is in one.
fn member(ledger: &Ledger, run: &Run) -> Option<Member> {
    let concurrency = run.pipeline.as_ref()?.concurrency.as_ref()?;
    let holds = run
        .tasks
        .iter()
        .filter_map(|task| ledger.tasks.get(task))
        .any(|task| task.kind != TaskKind::Source && !task.attempts.is_empty());
    Some(Member {
        key: GroupKey {
            team: run.team.clone(),
            group: concurrency.group.clone(),
        },
        max: concurrency.max,
        holds,
    })
}
