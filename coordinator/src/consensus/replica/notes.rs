//! What members tell each other beside raft: their clocks, and digests of their states.
//!
//! Clocks are compared as NTP does it, by an exchange of two notes. A member whose clock is more
//! than the limit away from the median of the voters' clocks is *barred*: it does not stand for
//! election, and hands leadership over if it has it. Between two clocks nobody can tell which one
//! is wrong, so an even number of them is judged in favour of whoever asks.
//!
//! Digests are taken after every entry whose index is a multiple of `digest_entries`. The leader
//! collects them and, when most voters agree on one, puts it into the log; whoever has another one
//! stops when it applies that entry, also if that is the leader itself.

use std::collections::BTreeMap;

use super::{Note, Output, Reading, Replica, ReplicaError};
use crate::consensus::change::{self, Wire};
use crate::consensus::counters::count;
use crate::consensus::machine::Machine;
use crate::store::log::LogStore;
use crate::store::state::StateRoot;

use oast_proto::peer::v1 as wire;

/// Ticks between two notes to the same member.
pub(super) const NOTE_TICKS: u64 = 20;
/// Ticks after which a measured clock says nothing any more.
const CLOCK_FRESH_TICKS: u64 = 10 * NOTE_TICKS;
/// An exchange that took longer measures nothing: a clock was set meanwhile, or the network held
/// the note up.
const MAX_ROUND_TRIP_MS: i64 = 2_000;
/// Digests kept to be compared.
const MAX_DIGESTS: usize = 8;

/// A digest of the state.
pub(super) type Digest = [u8; 32];

/// Other members' clocks.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// Their wall clock in their last note, and ours when it came.
    heard: BTreeMap<u64, (u64, u64)>,
    /// Theirs minus ours, and the tick at which that was measured.
    offsets: BTreeMap<u64, (i64, u64)>,
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Clocks {
    fn hear(&mut self, from: u64, note: &Note, now_ms: u64, tick: u64) {
        self.heard.insert(from, (note.wall_ms, now_ms));
        if note.echo_ms == 0 {
            return;
        }
        let [asked, heard, answered, now] =
            [note.echo_ms, note.echo_received_ms, note.wall_ms, now_ms].map(signed);
        let round_trip = (now - asked) - (answered - heard);
        if (0..=MAX_ROUND_TRIP_MS).contains(&round_trip) {
            let offset = ((heard - asked) + (answered - now)) / 2;
            self.offsets.insert(from, (offset, tick));
        }
    }

    /// Other clocks minus ours, as far as they were measured lately.
    pub(super) fn fresh(&self, tick: u64) -> BTreeMap<u64, i64> {
        let fresh = self
            .offsets
            .iter()
            .filter(|(_, (_, at))| at + CLOCK_FRESH_TICKS >= tick);
        fresh
            .map(|(member, (offset, _))| (*member, *offset))
            .collect()
    }

    fn forget(&mut self, keep: impl Fn(u64) -> bool) {
        self.heard.retain(|member, _| keep(*member));
        self.offsets.retain(|member, _| keep(*member));
    }
}

/// Our clock minus the median of the voters', ours among them. `None` if fewer than a majority of
/// them, or none but ours, is known.
fn skew(us: u64, voters: &[u64], offsets: &BTreeMap<u64, i64>) -> Option<i64> {
    if !voters.contains(&us) {
        return None;
    }
    let others = voters.iter().filter(|voter| **voter != us);
    let mut clocks: Vec<i64> = others
        .filter_map(|voter| offsets.get(voter))
        .copied()
        .collect();
    clocks.push(0);
    if clocks.len() < 2 || clocks.len() <= voters.len() / 2 {
        return None;
    }
    clocks.sort_unstable();
    let middle = clocks.len() / 2;
    let median = if clocks.len() % 2 == 1 {
        clocks[middle]
    } else {
        // Two camps of the same size: we believe the one nearer to us.
        let (low, high) = (clocks[middle - 1], clocks[middle]);
        if low.abs() <= high.abs() { low } else { high }
    };
    Some(-median)
}

/// Digests of states.
#[derive(Debug, Default)]
pub(super) struct Digests {
    /// Taken here, by log index.
    own: BTreeMap<u64, Digest>,
    /// On the leader: what the others reported.
    reports: BTreeMap<u64, BTreeMap<u64, Digest>>,
    /// The last index that a verdict was proposed for, or was seen for.
    judged: u64,
    /// The last index at which ours was found right.
    pub(super) compared: u64,
}

fn bounded<T>(map: &mut BTreeMap<u64, T>) {
    while map.len() > MAX_DIGESTS {
        map.pop_first();
    }
}

/// What a majority of `voters` has, if there is one.
fn majority(voters: &[u64], reports: &BTreeMap<u64, Digest>) -> Option<Digest> {
    let mut votes: BTreeMap<Digest, usize> = BTreeMap::new();
    for voter in voters {
        if let Some(digest) = reports.get(voter) {
            *votes.entry(*digest).or_default() += 1;
        }
    }
    votes
        .into_iter()
        .find(|(_, count)| *count > voters.len() / 2)
        .map(|(digest, _)| digest)
}

impl Digests {
    /// Takes one after the entry at `index`.
    pub(super) fn take(&mut self, index: u64, digest: Digest) {
        self.own.insert(index, digest);
        bounded(&mut self.own);
    }

    /// The state was replaced: what was taken of the old one must not be compared.
    pub(super) fn clear(&mut self) {
        self.own.clear();
    }

    /// Compares ours with what most voters have. The error is ours.
    pub(super) fn compare(&mut self, index: u64, theirs: Digest) -> Result<bool, Digest> {
        self.judged = self.judged.max(index);
        self.reports.retain(|at, _| *at > index);
        match self.own.get(&index) {
            Some(ours) if *ours == theirs => {
                self.compared = self.compared.max(index);
                Ok(true)
            }
            Some(ours) => Err(*ours),
            None => Ok(false),
        }
    }

    fn report(&mut self, from: u64, index: u64, digest: Digest) {
        if index > self.judged {
            self.reports.entry(index).or_default().insert(from, digest);
            bounded(&mut self.reports);
        }
    }
}

fn hex(digest: &Digest) -> String {
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl<M: Machine, L: LogStore, R: StateRoot> Replica<M, L, R> {
    /// Says what the clocks show; to be called before [`Replica::tick`].
    pub fn clock(&mut self, time: Reading) {
        self.time = time;
    }

    /// Takes a note of another member.
    pub fn hear(&mut self, from: u64, note: &Note, time: Reading) {
        self.time = time;
        self.heard.insert(from, self.ticks);
        self.clocks.hear(from, note, time.wall_ms, self.ticks);
        if let Some((index, digest)) = note.digest {
            self.side.digests.report(from, index, digest);
        }
    }

    pub(super) fn pass_notes(&mut self) {
        if !self.ticks.is_multiple_of(NOTE_TICKS) {
            return;
        }
        let us = self.side.member(&self.core);
        let members: Vec<u64> = self.core.meta().map_or_else(Vec::new, |meta| {
            meta.members.known.keys().copied().collect()
        });
        self.clocks.forget(|member| members.contains(&member));
        let newest = self.side.digests.own.last_key_value();
        let digest = newest.map(|(index, digest)| (*index, *digest));
        for to in members.into_iter().filter(|member| *member != us) {
            let (echo_ms, echo_received_ms) = self.clocks.heard.get(&to).copied().unwrap_or((0, 0));
            let note = Note {
                wall_ms: self.time.wall_ms,
                echo_ms,
                echo_received_ms,
                digest,
            };
            self.side.outputs.push(Output::Note { to, note });
        }
        self.judge_clock();
        self.judge_digests();
    }

    /// Our clock minus that of most voters.
    pub(super) fn skew(&self) -> Option<i64> {
        let voters = self.core.meta().map(|meta| &meta.conf_state.voters)?;
        let offsets = self.clocks.fresh(self.ticks);
        skew(self.side.member(&self.core), voters, &offsets)
    }

    /// Members whose clocks are further than the limit from most voters', and how far.
    pub(super) fn skewed(&self) -> BTreeMap<u64, i64> {
        let Some(ours) = self.skew() else {
            return BTreeMap::new();
        };
        let limit = signed(self.options.max_skew_ms);
        let offsets = self.clocks.fresh(self.ticks);
        let theirs = offsets
            .into_iter()
            .map(|(member, offset)| (member, offset + ours));
        theirs.filter(|(_, skew)| skew.abs() > limit).collect()
    }

    fn judge_clock(&mut self) {
        let limit = self.options.max_skew_ms;
        let skew_ms = self.skew();
        let barred = skew_ms.is_some_and(|skew| skew.unsigned_abs() > limit);
        if barred != self.core.barred() {
            if barred {
                tracing::error!(
                    skew_ms,
                    limit,
                    "This member's clock is wrong; it does not lead until the clock is right."
                );
            } else {
                tracing::info!(skew_ms, "This member's clock is right again; it may lead.");
            }
            self.core.set_barred(barred);
        }
        if barred && self.core.leads() {
            // Leader => Follower: deadlines that it stamps would be wrong for everybody. Without
            // an heir it goes on: a group with a wrong clock is better than none.
            if let Some(heir) = self.ground().and_then(|ground| ground.heir()) {
                tracing::warn!(
                    heir,
                    skew_ms,
                    "Leadership is handed over because of the clock."
                );
                self.core.transfer(heir);
            }
        }
    }

    /// Leader: puts what most voters have into the log.
    fn judge_digests(&mut self) {
        if !self.core.leads_with_full_state() {
            return;
        }
        let us = self.side.member(&self.core);
        let voters: Vec<u64> = self
            .core
            .meta()
            .map_or_else(Vec::new, |meta| meta.conf_state.voters.clone());
        let digests = &mut self.side.digests;
        for (index, digest) in &digests.own {
            if *index > digests.judged {
                digests
                    .reports
                    .entry(*index)
                    .or_default()
                    .insert(us, *digest);
            }
        }
        let mut found = None;
        for (index, reports) in digests.reports.iter().rev() {
            found = majority(&voters, reports).map(|digest| (*index, digest));
            if found.is_some() {
                break;
            }
            if voters.iter().all(|voter| reports.contains_key(voter)) && *index > digests.compared {
                count(&self.counters.digests_undecided, 1);
                tracing::error!(
                    log_index = *index,
                    "No majority of the voters has the same state; nobody can tell which one is right."
                );
            }
        }
        let Some((index, digest)) = found else { return };
        if let Some(reports) = digests.reports.get(&index) {
            for (member, theirs) in reports {
                if *theirs != digest {
                    count(&self.counters.digests_different, 1);
                    tracing::error!(
                        member,
                        log_index = index,
                        "A member's state is not that of most voters; it is to stop."
                    );
                }
            }
        }
        let verdict = Wire::Verdict(wire::DigestVerdict {
            index,
            digest: digest.to_vec().into(),
        });
        if self.propose_note(change::context("", verdict)).is_ok() {
            let digests = &mut self.side.digests;
            digests.judged = index;
            digests.reports.retain(|at, _| *at > index);
        }
    }
}

/// Stops a member whose state is not that of most voters.
pub(super) fn check_verdict(
    digests: &mut Digests,
    counters: &crate::consensus::counters::Counters,
    member: u64,
    verdict: &wire::DigestVerdict,
) -> Result<(), ReplicaError> {
    let Ok(theirs) = Digest::try_from(verdict.digest.as_ref()) else {
        return Ok(());
    };
    match digests.compare(verdict.index, theirs) {
        Ok(true) => count(&counters.digests_equal, 1),
        Ok(false) => {}
        Err(ours) => {
            count(&counters.digests_different, 1);
            return Err(ReplicaError::Diverged {
                member,
                index: verdict.index,
                ours: hex(&ours),
                theirs: hex(&theirs),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(values: &[(u64, i64)]) -> BTreeMap<u64, i64> {
        values.iter().copied().collect()
    }

    #[test]
    fn the_member_whose_clock_is_wrong_is_the_one_that_notices() {
        // Member 1 is 2 s ahead of the others.
        assert_eq!(
            skew(1, &[1, 2, 3], &offsets(&[(2, -2_000), (3, -2_010)])),
            Some(2_000)
        );
        // Seen from member 2, only member 1 is off.
        assert_eq!(
            skew(2, &[1, 2, 3], &offsets(&[(1, 2_000), (3, -10)])),
            Some(0)
        );
    }

    #[test]
    fn nobody_is_blamed_without_a_majority_of_clocks() {
        assert_eq!(skew(1, &[1, 2], &offsets(&[(2, 9_000)])), Some(0));
        assert_eq!(skew(1, &[1, 2, 3], &offsets(&[(2, 9_000)])), Some(0));
        assert_eq!(skew(1, &[1, 2, 3, 4, 5], &offsets(&[(2, 9_000)])), None);
        assert_eq!(skew(1, &[1], &offsets(&[])), None);
        assert_eq!(
            skew(4, &[1, 2, 3], &offsets(&[(2, 9_000), (1, 9_000)])),
            None
        );
    }

    #[test]
    fn an_exchange_of_notes_measures_the_offset_whatever_the_delay() {
        // B is 700 ms ahead of A; each note takes 80 ms.
        let (mut a, mut b) = (Clocks::default(), Clocks::default());
        let first = Note {
            wall_ms: 10_000,
            ..Note::default()
        };
        b.hear(1, &first, 10_780, 1);
        let (echo_ms, echo_received_ms) = b.heard[&1];
        let second = Note {
            wall_ms: 11_500,
            echo_ms,
            echo_received_ms,
            digest: None,
        };
        a.hear(2, &second, 10_880, 5);
        assert_eq!(a.fresh(5), offsets(&[(2, 700)]));
        assert!(a.fresh(5 + CLOCK_FRESH_TICKS + 1).is_empty());
    }

    #[test]
    fn a_clock_that_is_set_during_an_exchange_measures_nothing() {
        let mut clocks = Clocks::default();
        let note = |echo_ms| Note {
            wall_ms: 20_000,
            echo_ms,
            echo_received_ms: 20_000,
            digest: None,
        };
        clocks.hear(2, &note(10_000), 20_000, 1);
        clocks.hear(2, &note(30_000), 20_000, 1);
        assert!(clocks.fresh(1).is_empty());
    }

    #[test]
    fn the_odd_one_out_is_outvoted_and_a_tie_is_not_decided() {
        let (a, b) = ([1; 32], [2; 32]);
        let reports = |values: &[(u64, Digest)]| values.iter().copied().collect();
        assert_eq!(
            majority(&[1, 2, 3], &reports(&[(1, b), (2, a), (3, a)])),
            Some(a)
        );
        assert_eq!(majority(&[1, 2, 3], &reports(&[(1, b), (2, a)])), None);
        // A learner has no say.
        assert_eq!(
            majority(&[1, 2, 3], &reports(&[(1, b), (2, a), (9, a)])),
            None
        );
    }
}
