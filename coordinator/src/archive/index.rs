//! The index of the history: from what people ask for to a record's number.
//!
//! ```text
//! m                          how far the history is indexed, and the hash of that record
//! R<id>, O<id>               a run's or rollout's summary
//! <tag><hash of value><id>   nothing: that id has this value
//! ```
//!
//! Ids are big-endian, so keys are in the order of ids and a list is a backward walk from any
//! position. A hash of 8 bytes may meet another value's: everything found is compared with the
//! summary. Derived data: an index that is damaged, or that a power loss may have damaged (0017), is
//! removed and made anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oast_model::codec;
use oast_model::digest::Digest;
use oast_model::ids::{RunId, Seq};
use oast_model::ledger::{Rollout, RolloutPhase, Run, RunPhase};
use oast_model::names::{FleetName, TeamName};
use oast_model::task::{Ending, Origin};
use oast_model::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ArchiveError, Seen};
use crate::consensus::chain;
use crate::store::batch::Batch;
use crate::store::disk;
use crate::store::state::life::{Life, Trust};
use crate::store::state::{is_tombstone, tombstone};

/// sled's page cache for the index.
const CACHE_BYTES: u64 = 16 << 20;
/// How often changes are handed to the kernel; a crash loses them and they are made again.
const FLUSH_MS: u64 = 1000;
/// Layout of the keys and summaries; another one is made anew.
const LAYOUT: u32 = 1;
const KEY_SEEN: &[u8] = b"m";
/// First digits by which a commit is found.
pub const COMMIT_DIGITS: usize = 7;

/// What entries are looked under: the most selective thing that a filter names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// All of them.
    All,
    /// A team's.
    Team(String),
    /// A team-less pipeline's name.
    Pipeline(String),
    /// A repository's.
    Repository(String),
    /// A branch of a repository, or of whichever.
    Branch(String),
    /// A commit, by its first digits.
    Commit(String),
    /// One phase.
    Phase(String),
    /// A fleet's.
    Fleet(String),
}

impl By {
    fn tag(&self) -> (u8, &str) {
        match self {
            By::All => (b'a', ""),
            By::Team(value) => (b't', value),
            By::Pipeline(value) => (b'p', value),
            By::Repository(value) => (b'y', value),
            By::Branch(value) => (b'b', value),
            By::Commit(value) => (b'c', value.get(..COMMIT_DIGITS).unwrap_or(value)),
            By::Phase(value) => (b'x', value),
            By::Fleet(value) => (b'f', value),
        }
    }

    fn prefix<S: Summary>(&self) -> Vec<u8> {
        let (tag, value) = self.tag();
        if tag == b'a' {
            return vec![S::TAG];
        }
        // Runs and rollouts of one team are different lists.
        let digest = Digest::of(value.as_bytes());
        let mut prefix = vec![tag, S::TAG];
        prefix.extend_from_slice(&digest.as_bytes()[..8]);
        prefix
    }
}

/// What a list needs of a finished thing.
pub trait Summary: Serialize + DeserializeOwned {
    /// Its place among the keys.
    const TAG: u8;
    /// When it began. Never earlier than that of a lower id: ids and times come from one log.
    fn began(&self) -> Timestamp;
    /// Of its record.
    fn number(&self) -> u64;
    /// Under what it can be found.
    fn values(&self) -> Vec<By>;
}

/// Of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Of its record.
    pub number: u64,
    /// Whose.
    pub team: TeamName,
    /// Empty when the source was never read.
    pub pipeline: String,
    /// Empty for an upload.
    pub repository: String,
    /// Empty for an upload.
    pub branch: String,
    /// Full id, if there is one.
    pub commit: String,
    /// How it ended.
    pub ending: Ending,
    /// When it began.
    pub began: Timestamp,
}

impl RunSummary {
    pub(super) fn of(number: u64, run: &Run) -> RunSummary {
        let branch = match &run.origin {
            Origin::Git { branch, .. } => branch.clone(),
            Origin::Upload { .. } => String::new(),
        };
        RunSummary {
            number,
            team: run.team.clone(),
            pipeline: text(run.pipeline.as_ref().map(|pipeline| &pipeline.name)),
            repository: text(run.repository.as_ref()),
            branch,
            commit: run.origin.commit().unwrap_or_default().to_owned(),
            ending: match run.phase {
                RunPhase::Ended(ending) => ending,
                // Only what ended goes to history.
                _ => Ending::Errored,
            },
            began: run.started_at,
        }
    }

    /// The phase that it ended in.
    pub fn phase(&self) -> RunPhase {
        RunPhase::Ended(self.ending)
    }
}

fn text(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

impl Summary for RunSummary {
    const TAG: u8 = b'R';

    fn began(&self) -> Timestamp {
        self.began
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn values(&self) -> Vec<By> {
        let mut values = vec![By::Team(self.team.to_string())];
        // What most of them are is no help to find one.
        if self.ending != Ending::Succeeded {
            values.push(By::Phase(format!("{:?}", self.ending)));
        }
        let named = [
            (&self.pipeline, By::Pipeline as fn(String) -> By),
            (&self.repository, By::Repository),
            (&self.branch, By::Branch),
            (&self.commit, By::Commit),
        ];
        for (value, by) in named {
            if !value.is_empty() {
                values.push(by(value.clone()));
            }
        }
        values
    }
}

/// Of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutSummary {
    /// Of its record.
    pub number: u64,
    /// Whose.
    pub team: TeamName,
    /// Its fleet.
    pub fleet: FleetName,
    /// The run that published the version.
    pub run: Option<RunId>,
    /// How it ended.
    pub phase: RolloutPhase,
    /// When it began.
    pub began: Timestamp,
}

impl RolloutSummary {
    pub(super) fn of(number: u64, rollout: &Rollout) -> RolloutSummary {
        RolloutSummary {
            number,
            team: rollout.team.clone(),
            fleet: rollout.fleet.clone(),
            run: rollout.run,
            phase: rollout.phase,
            began: rollout.began_at,
        }
    }
}

impl Summary for RolloutSummary {
    const TAG: u8 = b'O';

    fn began(&self) -> Timestamp {
        self.began
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn values(&self) -> Vec<By> {
        let mut values = vec![
            By::Team(self.team.to_string()),
            By::Fleet(self.fleet.to_string()),
        ];
        if self.phase != RolloutPhase::Succeeded {
            values.push(By::Phase(format!("{:?}", self.phase)));
        }
        values
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    layout: u32,
    number: u64,
    epoch: u64,
    hash: Digest,
}

/// What tells two histories apart. The same for a record and for what is left of it.
pub(super) fn hash(record: &[u8]) -> Digest {
    if is_tombstone(record) {
        Digest::of(record)
    } else {
        Digest::of(&tombstone(record))
    }
}

#[derive(Debug)]
pub(super) struct Index {
    db: sled::Db,
    folder: PathBuf,
}

impl Drop for Index {
    /// Closes it in peace, if that is possible.
    fn drop(&mut self) {
        let closed = self.db.flush().map_err(ArchiveError::Index);
        let closed = closed.and_then(|_| {
            disk::sync_tree(&self.folder)
                .and_then(|()| Life::of(&self.folder).closed())
                .map_err(ArchiveError::Folder)
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "The index of finished runs could not be closed.");
        }
    }
}

impl Index {
    pub(super) fn open(folder: &Path) -> Result<Index, ArchiveError> {
        let life = Life::of(folder);
        let trust = life.trust().map_err(ArchiveError::Folder)?;
        if trust != Trust::Whole {
            tracing::warn!(
                ?trust,
                "The index of finished runs is not believed; it is made anew."
            );
            disk::remove(folder).map_err(ArchiveError::Folder)?;
        }
        let open = || {
            disk::make_dir(folder)
                .and_then(|()| life.opening())
                .map_err(ArchiveError::Folder)?;
            let db = sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE_BYTES)
                .flush_every_ms(Some(FLUSH_MS))
                .open();
            db.map_err(ArchiveError::Index)
        };
        let db = match open() {
            Ok(db) => db,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(
                    error,
                    "The index of finished runs cannot be opened; it is made anew."
                );
                disk::remove(folder).map_err(ArchiveError::Folder)?;
                open()?
            }
        };
        life.opened().map_err(ArchiveError::Folder)?;
        let folder = folder.to_owned();
        Ok(Index { db, folder })
    }

    /// How far the history is indexed; none for an index that is empty or of another layout.
    pub(super) fn seen(&self) -> Result<Option<(Seen, Digest)>, sled::Error> {
        let bytes = self.db.get(KEY_SEEN)?;
        let stored = bytes.and_then(|bytes| codec::decode::<Stored>(&bytes).ok());
        let stored = stored.filter(|stored| stored.layout == LAYOUT);
        Ok(stored.map(|stored| {
            let seen = Seen {
                number: stored.number,
                epoch: stored.epoch,
            };
            (seen, stored.hash)
        }))
    }

    pub(super) fn clear(&self) -> Result<(), sled::Error> {
        self.db.clear()
    }

    pub(super) fn step(&self) -> Step<'_> {
        Step {
            index: self,
            batch: Batch::default(),
        }
    }

    pub(super) fn summary<S: Summary>(&self, id: Seq) -> Result<Option<S>, ArchiveError> {
        let key = key(&[S::TAG], id);
        let bytes = self.db.get(key).map_err(ArchiveError::Index)?;
        let summary = bytes.map(|bytes| codec::decode(&bytes)).transpose();
        summary.map_err(ArchiveError::Entry)
    }

    /// Leaves no entry of something that is no longer kept.
    pub(super) fn forget<S: Summary>(&self, id: Seq, summary: &S) -> Result<(), sled::Error> {
        let mut batch = Batch::default();
        for by in summary.values() {
            batch.remove(key(&by.prefix::<S>(), id));
        }
        batch.remove(key(&[S::TAG], id));
        batch.apply(&self.db)
    }

    /// Ids below `before`, newest first.
    pub(super) fn newest_first<S: Summary>(
        &self,
        by: &By,
        before: Option<Seq>,
    ) -> impl Iterator<Item = Result<Seq, sled::Error>> + use<S> {
        let prefix = by.prefix::<S>();
        let first = key(&prefix, Seq::ZERO);
        let end = key(&prefix, before.unwrap_or(Seq::from_u64(u64::MAX)));
        let range = self.db.range(first..end).rev();
        range.map(move |item| item.map(|(key, _)| id_of(&key)))
    }

    /// The newest id below `before` that began before `until`. Times never fall from id to id, so
    /// this is a binary search over ids.
    pub(super) fn begun_before<S: Summary>(
        &self,
        until: Timestamp,
        before: Option<Seq>,
    ) -> Result<Option<Seq>, ArchiveError> {
        let newest = |below: u64| -> Result<Option<(u64, S)>, ArchiveError> {
            let below = Some(Seq::from_u64(below));
            let Some(id) = self.newest_first::<S>(&By::All, below).next() else {
                return Ok(None);
            };
            let id = id.map_err(ArchiveError::Index)?;
            let summary = self.summary::<S>(id)?;
            Ok(summary.map(|summary| (id.as_u64(), summary)))
        };
        // Everything below `low` that exists began in time; nothing from `high` on did.
        let (mut low, mut high) = (0, before.map_or(u64::MAX, Seq::as_u64));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match newest(middle)? {
                Some((id, summary)) if summary.began() >= until => high = id,
                _ => low = middle,
            }
        }
        Ok(newest(low)?.map(|(id, _)| Seq::from_u64(id)))
    }
}

/// Records that become visible together with how far the index has come.
pub(super) struct Step<'a> {
    index: &'a Index,
    batch: Batch,
}

impl Step<'_> {
    pub(super) fn add<S: Summary>(&mut self, id: Seq, summary: &S) {
        let mut prefixes = BTreeSet::new();
        for by in summary.values() {
            prefixes.insert(by.prefix::<S>());
        }
        for prefix in prefixes {
            self.batch.insert(key(&prefix, id), &[]);
        }
        self.batch
            .insert(key(&[S::TAG], id), codec::encode(summary));
    }

    pub(super) fn finish(mut self, seen: Seen, last: &[u8]) -> Result<(), sled::Error> {
        let stored = Stored {
            layout: LAYOUT,
            number: seen.number,
            epoch: seen.epoch,
            hash: hash(last),
        };
        self.batch.insert(KEY_SEEN, codec::encode(&stored));
        self.batch.apply(&self.index.db)
    }
}

fn key(prefix: &[u8], id: Seq) -> Vec<u8> {
    [prefix, &id.as_u64().to_be_bytes()].concat()
}

fn id_of(key: &[u8]) -> Seq {
    let start = key.len().saturating_sub(8);
    let id = key[start..].try_into().map_or(0, u64::from_be_bytes);
    Seq::from_u64(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(number: u64, team: &str, commit: &str, ending: Ending) -> RunSummary {
        RunSummary {
            number,
            team: TeamName::new(team).unwrap(),
            pipeline: "web".into(),
            repository: "web".into(),
            branch: "main".into(),
            commit: commit.into(),
            ending,
            began: Timestamp(number * 10),
        }
    }

    fn index() -> (tempfile::TempDir, Index) {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index")).unwrap();
        let mut step = index.step();
        for number in 1..=9 {
            let team = if number % 3 == 0 { "ads" } else { "pay" };
            let ending = match number {
                5 => Ending::Failed,
                _ => Ending::Succeeded,
            };
            let commit = format!("{number}").repeat(40);
            // Ids have gaps: other commands have numbers too.
            let id = Seq::from_u64(number * 7);
            step.add(id, &summary(number, team, &commit, ending));
        }
        let seen = Seen {
            number: 9,
            epoch: 0,
        };
        step.finish(seen, b"nine").unwrap();
        (folder, index)
    }

    fn ids(index: &Index, by: &By, before: Option<u64>) -> Vec<u64> {
        let found = index.newest_first::<RunSummary>(by, before.map(Seq::from_u64));
        found.map(|id| id.unwrap().as_u64() / 7).collect()
    }

    #[test]
    fn each_value_has_its_own_list_newest_first_from_any_position() {
        let (_folder, index) = index();
        let all: Vec<u64> = (1..=9).rev().collect();
        assert_eq!(ids(&index, &By::All, None), all);
        assert_eq!(ids(&index, &By::Branch("main".into()), None), all);
        assert_eq!(ids(&index, &By::Team("ads".into()), None), [9, 6, 3]);
        assert_eq!(ids(&index, &By::Team("ads".into()), Some(63)), [6, 3]);
        assert_eq!(ids(&index, &By::Team("ads".into()), Some(62)), [6, 3]);
        assert_eq!(ids(&index, &By::Commit("4444444".into()), None), [4]);
        assert_eq!(ids(&index, &By::Commit("4".repeat(40)), None), [4]);
        assert_eq!(ids(&index, &By::Phase("Failed".into()), None), [5]);
        assert_eq!(ids(&index, &By::Fleet("ads".into()), None), [0_u64; 0]);
    }

    #[test]
    fn a_time_is_found_among_ids_with_gaps() {
        let (_folder, index) = index();
        let newest = |until: u64, before: Option<u64>| {
            let before = before.map(Seq::from_u64);
            let found = index.begun_before::<RunSummary>(Timestamp(until), before);
            found.unwrap().map(|id| id.as_u64() / 7)
        };
        assert_eq!(newest(10, None), None);
        assert_eq!(newest(11, None), Some(1));
        assert_eq!(newest(50, None), Some(4));
        assert_eq!(newest(51, None), Some(5));
        assert_eq!(newest(u64::MAX, None), Some(9));
        assert_eq!(newest(51, Some(21)), Some(2));
        assert_eq!(newest(51, Some(7)), None);
    }

    #[test]
    fn what_was_indexed_is_known_after_a_restart() {
        let (folder, index) = index();
        index.db.flush().unwrap();
        drop(index);
        let index = Index::open(&folder.path().join("index")).unwrap();
        let (seen, last) = index.seen().unwrap().unwrap();
        assert_eq!((seen.number, last), (9, hash(b"nine")));
        assert_eq!(hash(&tombstone(b"nine")), last);
        let found: RunSummary = index.summary(Seq::from_u64(35)).unwrap().unwrap();
        assert_eq!((found.number, found.ending), (5, Ending::Failed));
        index.forget(Seq::from_u64(35), &found).unwrap();
        assert_eq!(ids(&index, &By::All, None), [9, 8, 7, 6, 4, 3, 2, 1]);
        assert_eq!(ids(&index, &By::Phase("Failed".into()), None), [0_u64; 0]);
        assert_eq!(ids(&index, &By::Team("pay".into()), None), [8, 7, 4, 2, 1]);
        index.clear().unwrap();
        assert!(index.seen().unwrap().is_none());
    }

    #[test]
    fn an_index_is_believed_after_peace_and_not_after_a_boot_or_a_start_that_died_of_it() {
        let (folder, index) = index();
        let place = folder.path().join("index");
        drop(index);
        assert!(!place.join("life").exists(), "closed in peace");
        for last in ["open another-boot", "opening now"] {
            let index = Index::open(&place).unwrap();
            let mut step = index.step();
            step.add(Seq::from_u64(7), &summary(1, "pay", "1", Ending::Failed));
            let (number, epoch) = (1, 0);
            step.finish(Seen { number, epoch }, b"one").unwrap();
            drop(index);
            std::fs::write(place.join("life"), last).unwrap();
            let index = Index::open(&place).unwrap();
            assert!(index.seen().unwrap().is_none(), "{last}");
            assert_eq!(ids(&index, &By::All, None), [0_u64; 0], "{last}");
        }
    }
}
