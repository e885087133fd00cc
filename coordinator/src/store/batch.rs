//! A batch for sled that frees what it replaces.
//!
//! sled copies a page with every change and leaves the old one to the epoch collector, which frees at most
//! 512 objects for every 128 times that a thread begins to use the trees. A batch begins once,
//! whatever is in it: under a load of large batches, gigabytes of old pages would pile up.

/// Changes after which is collected once. A change leaves up to five objects, and one collection frees
/// at most 512.
const CHANGES_PER_COLLECTION: usize = 64;

/// Changes of a tree that become visible together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    changes: sled::Batch,
    count: usize,
}

impl Batch {
    pub(crate) fn insert(&mut self, key: impl Into<sled::IVec>, value: impl Into<sled::IVec>) {
        self.changes.insert(key, value);
        self.count += 1;
    }

    pub(crate) fn remove(&mut self, key: impl Into<sled::IVec>) {
        self.changes.remove(key);
        self.count += 1;
    }

    /// Makes the changes.
    ///
    /// # Errors
    /// sled's.
    pub(crate) fn apply(self, tree: &sled::Tree) -> Result<(), sled::Error> {
        tree.apply_batch(self.changes)?;
        for _ in 0..=self.count / CHANGES_PER_COLLECTION {
            crossbeam_epoch::pin().flush();
        }
        Ok(())
    }
}
