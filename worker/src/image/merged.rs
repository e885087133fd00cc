//! The merged view of a chain of layers, and what a further layer changes in it.

use std::collections::BTreeMap;

use crate::bake::layer::{LayerEntry, LayerIndex, Node};

/// One change of a root file system, in the order in which they must be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'l> {
    /// Remove what is no folder.
    Remove(String),
    /// Remove a folder that is empty by now.
    RemoveFolder(String),
    /// Make a path that does not exist.
    Create(&'l LayerEntry),
    /// Give an existing folder the entry's metadata; the old attributes that must go are listed.
    Update {
        entry: &'l LayerEntry,
        old_xattrs: Vec<String>,
    },
}

/// Which layer provides each path of a root file system.
#[derive(Debug, Default)]
pub struct Merged<'l> {
    paths: BTreeMap<&'l str, (usize, &'l LayerEntry)>,
}

impl<'l> Merged<'l> {
    /// The entry visible at `path` and the layer that has it.
    pub fn get(&self, path: &str) -> Option<(usize, &'l LayerEntry)> {
        self.paths.get(path).copied()
    }

    /// Everything directly or deeply inside the folder `path`, sorted.
    pub fn inside<'a>(
        &'a self,
        path: &str,
    ) -> impl DoubleEndedIterator<Item = (&'l str, usize, &'l LayerEntry)> + use<'a, 'l> {
        // '0' follows '/' in the order of bytes.
        let (first, end) = (format!("{path}/"), format!("{path}0"));
        self.paths
            .range::<str, _>((
                std::ops::Bound::Included(first.as_str()),
                std::ops::Bound::Excluded(end.as_str()),
            ))
            .map(|(path, (layer, entry))| (*path, *layer, *entry))
    }

    /// All paths, sorted.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&'l str, usize, &'l LayerEntry)> {
        self.paths
            .iter()
            .map(|(path, (layer, entry))| (*path, *layer, *entry))
    }

    /// Lays layer number `layer` on top and returns what that changes.
    pub fn apply(&mut self, layer: usize, index: &'l LayerIndex) -> Vec<Change<'l>> {
        let mut changes = Vec::new();
        for entry in index.entries() {
            let path = entry.path.as_str();
            let existing = self.get(path).map(|(_, entry)| entry);
            let was_folder = existing.is_some_and(|e| matches!(e.node, Node::Folder { .. }));
            match (&entry.node, existing) {
                (Node::Whiteout, None) => continue,
                (Node::Whiteout, Some(_)) => {
                    self.remove(path, was_folder, &mut changes);
                    continue;
                }
                (Node::Folder { opaque }, Some(existing)) if was_folder => {
                    if *opaque {
                        self.empty(path, &mut changes);
                    }
                    let gone = |name: &&str| !entry.xattrs.iter().any(|kept| kept.name == **name);
                    let old = existing.xattrs.iter().map(|old| old.name.as_str());
                    let old_xattrs = old.filter(gone).map(str::to_owned).collect();
                    changes.push(Change::Update { entry, old_xattrs });
                }
                (_, existing) => {
                    if existing.is_some() {
                        self.remove(path, was_folder, &mut changes);
                    }
                    changes.push(Change::Create(entry));
                }
            }
            self.paths.insert(path, (layer, entry));
        }
        changes
    }

    fn remove(&mut self, path: &str, folder: bool, changes: &mut Vec<Change<'l>>) {
        if folder {
            self.empty(path, changes);
            changes.push(Change::RemoveFolder(path.to_owned()));
        } else {
            changes.push(Change::Remove(path.to_owned()));
        }
        self.paths.remove(path);
    }

    fn empty(&mut self, path: &str, changes: &mut Vec<Change<'l>>) {
        let inside: Vec<_> = self
            .inside(path)
            .rev()
            .map(|(path, _, entry)| (path, entry))
            .collect();
        for (path, entry) in inside {
            changes.push(match entry.node {
                Node::Folder { .. } => Change::RemoveFolder(path.to_owned()),
                _ => Change::Remove(path.to_owned()),
            });
            self.paths.remove(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, node: Node) -> LayerEntry {
        let mode = 0o755;
        LayerEntry {
            path: path.into(),
            node,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nanos: 0,
            xattrs: vec![],
        }
    }

    fn folder(path: &str) -> LayerEntry {
        entry(path, Node::Folder { opaque: false })
    }

    fn file(path: &str) -> LayerEntry {
        entry(path, Node::File { offset: 0, size: 1 })
    }

    fn names(changes: &[Change<'_>]) -> Vec<String> {
        let name = |change: &Change<'_>| match change {
            Change::Remove(path) => format!("rm {path}"),
            Change::RemoveFolder(path) => format!("rmdir {path}"),
            Change::Create(entry) => format!("make {}", entry.path),
            Change::Update { entry, .. } => format!("update {}", entry.path),
        };
        changes.iter().map(name).collect()
    }

    #[test]
    fn each_kind_of_change_is_told_in_a_safe_order() {
        let base = LayerIndex::new(vec![
            folder(""),
            folder("a"),
            folder("a/deep"),
            file("a/deep/x"),
            file("a-b"),
            folder("b"),
            file("b/old"),
            file("c"),
            folder("d"),
            file("d/x"),
            file("e"),
        ]);
        let next = LayerIndex::new(vec![
            entry("a", Node::Whiteout),
            entry("b", Node::Folder { opaque: true }),
            file("b/new"),
            folder("c"),
            file("d"),
            file("e"),
            entry("never", Node::Whiteout),
        ]);
        let mut merged = Merged::default();
        assert_eq!(merged.apply(0, &base).len(), 11);
        assert_eq!(
            names(&merged.apply(1, &next)),
            [
                "rm a/deep/x",
                "rmdir a/deep",
                "rmdir a",
                "rm b/old",
                "update b",
                "make b/new",
                "rm c",
                "make c",
                "rm d/x",
                "rmdir d",
                "make d",
                "rm e",
                "make e",
            ]
        );
        let left: Vec<_> = merged
            .iter()
            .map(|(path, layer, _)| (path, layer))
            .collect();
        assert_eq!(
            left,
            [
                ("", 0),
                ("a-b", 0),
                ("b", 1),
                ("b/new", 1),
                ("c", 1),
                ("d", 1),
                ("e", 1)
            ]
        );
    }
}
