//! A persistent map of records that knows what changed.
//!
//! The live state is made of these tables. A clone is cheap (structure is shared),
//! so a clone is a snapshot. Every change marks its key; [`Table::drain`] encodes the
//! marked records once, for the store's batch and for the digest.
//!
//! The digest of a set of records is the sum of their hashes, so that it can be kept
//! up to date record by record and does not depend on the order of changes.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, DecodeError};

/// Sum of the hashes of all live records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateDigest(u128);

impl StateDigest {
    /// Sixteen bytes, for comparison between members.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// One changed record: a new value, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordChange {
    /// Table tag, then the encoded key.
    pub key: Vec<u8>,
    /// Encoded value; absent when the record ended.
    pub value: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Row<V> {
    value: Arc<V>,
    /// Hash of the record as last drained; 0 before the first time.
    hash: u128,
}

/// Records of one kind by key.
#[derive(Clone, Debug)]
pub struct Table<K: Ord, V> {
    tag: u8,
    rows: OrdMap<K, Row<V>>,
    /// Hashes of drained records that ended since.
    ended: Vec<(K, u128)>,
    dirty: BTreeSet<K>,
    /// Keys that changed since they were taken last, when somebody follows this table.
    touched: Option<BTreeSet<K>>,
}

impl<K, V> Table<K, V>
where
    K: Ord + Clone + Serialize + DeserializeOwned,
    V: Clone + Serialize + DeserializeOwned,
{
    /// An empty table. `tag` is its place in the store and is never reused.
    pub fn new(tag: u8) -> Table<K, V> {
        Table {
            tag,
            rows: OrdMap::new(),
            ended: Vec::new(),
            dirty: BTreeSet::new(),
            touched: None,
        }
    }

    /// An empty table whose changes [`Table::take_touched`] tells, for what is derived from it.
    pub fn followed(tag: u8) -> Table<K, V> {
        Table {
            touched: Some(BTreeSet::new()),
            ..Table::new(tag)
        }
    }

    /// Keys that were changed, put in or taken out since the last call.
    pub fn take_touched(&mut self) -> BTreeSet<K> {
        self.touched
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn mark(&mut self, key: &K) {
        self.dirty.insert(key.clone());
        if let Some(touched) = &mut self.touched {
            touched.insert(key.clone());
        }
    }

    /// The tag that begins the keys of this table's records.
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// The record under `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.rows.get(key).map(|row| &*row.value)
    }

    /// The record under `key`, shared.
    pub fn get_shared(&self, key: &K) -> Option<Arc<V>> {
        self.rows.get(key).map(|row| Arc::clone(&row.value))
    }

    /// The record under `key`, to change. Counts as changed.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.rows.contains_key(key) {
            return None;
        }
        self.mark(key);
        let row = self.rows.get_mut(key)?;
        Some(Arc::make_mut(&mut row.value))
    }

    /// Puts a record, in place of an older one.
    pub fn insert(&mut self, key: K, value: V) {
        let hash = self.rows.get(&key).map_or(0, |row| row.hash);
        self.mark(&key);
        self.rows.insert(
            key,
            Row {
                value: Arc::new(value),
                hash,
            },
        );
    }

    /// Takes a record out.
    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let row = self.rows.remove(key)?;
        self.mark(key);
        if row.hash != 0 {
            self.ended.push((key.clone(), row.hash));
        }
        Some(row.value)
    }

    /// Whether there is a record under `key`.
    pub fn contains<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.rows.contains_key(key)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All records in the order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &*row.value))
    }

    /// All keys in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> {
        self.rows.keys()
    }

    /// Encodes what changed since the last call and brings `digest` up to date.
    pub fn drain(&mut self, digest: &mut StateDigest, changes: &mut Vec<RecordChange>) {
        for (_, hash) in self.ended.drain(..) {
            digest.0 = digest.0.wrapping_sub(hash);
        }
        for key in std::mem::take(&mut self.dirty) {
            let bytes = record_key(self.tag, &key);
            let Some(row) = self.rows.get_mut(&key) else {
                changes.push(RecordChange {
                    key: bytes,
                    value: None,
                });
                continue;
            };
            let value = codec::encode(&*row.value);
            let hash = record_hash(&bytes, &value);
            digest.0 = digest.0.wrapping_sub(row.hash).wrapping_add(hash);
            row.hash = hash;
            changes.push(RecordChange {
                key: bytes,
                value: Some(value),
            });
        }
    }

    /// Puts back a record that a store or a snapshot kept. Not a change.
    pub fn load(
        &mut self,
        digest: &mut StateDigest,
        key_bytes: &[u8],
        value_bytes: &[u8],
    ) -> Result<(), DecodeError> {
        let key: K = codec::decode(&key_bytes[1..])?;
        let value: V = codec::decode(value_bytes)?;
        let hash = record_hash(key_bytes, value_bytes);
        digest.0 = digest.0.wrapping_add(hash);
        self.rows.insert(
            key,
            Row {
                value: Arc::new(value),
                hash,
            },
        );
        Ok(())
    }

    /// Every record, encoded. The table must have been drained.
    pub fn records(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.rows
            .iter()
            .map(|(key, row)| (record_key(self.tag, key), codec::encode(&*row.value)))
    }
}

fn record_key<K: Serialize>(tag: u8, key: &K) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&codec::encode(key));
    bytes
}

/// Never 0, which means "not counted yet".
fn record_hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(half).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_the_records_and_not_on_their_history() {
        let (mut first, mut second) = (StateDigest::default(), StateDigest::default());
        let mut changes = Vec::new();
        let mut table = Table::new(1);
        table.insert(1_u32, "one".to_owned());
        table.insert(2, "two".to_owned());
        table.drain(&mut first, &mut changes);
        table.remove(&1);
        table.insert(1, "uno".to_owned());
        *table.get_mut(&2).expect("there") = "due".to_owned();
        table.insert(3, "tre".to_owned());
        table.drain(&mut first, &mut changes);
        table.remove(&3);
        table.drain(&mut first, &mut changes);
        assert_eq!(
            changes.last().map(|change| change.value.is_none()),
            Some(true)
        );

        let mut other = Table::new(1);
        other.insert(2_u32, "due".to_owned());
        other.insert(1, "uno".to_owned());
        other.drain(&mut second, &mut Vec::new());
        assert_eq!(first, second);

        let mut loaded = StateDigest::default();
        let mut copy: Table<u32, String> = Table::new(1);
        for (key, value) in other.records() {
            copy.load(&mut loaded, &key, &value).expect("readable");
        }
        assert_eq!(loaded, first);
        assert_eq!(copy.get(&1).map(String::as_str), Some("uno"));
    }

    #[test]
    fn a_clone_is_a_snapshot() {
        let mut table = Table::new(1);
        table.insert(1_u32, 10_u32);
        let before = table.clone();
        table.insert(1, 11);
        assert_eq!(before.get(&1), Some(&10));
        assert_eq!(table.get(&1), Some(&11));
    }
}
