//! What the local cloud keeps across restarts: one record per set and per instance.
//!
//! A record holds what was *asked* (image, draining, which boot) and the history of it; what is
//! *seen* (phase, health, connections) is found out again after a restart and never stored. The
//! rules of etags and repeated operations live here as pure functions on the records.

use std::collections::VecDeque;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::spec::{Image, SetSpec};

/// Operation ids remembered per resource. A caller repeats a call within seconds, and each batch
/// makes three calls per instance, so 64 covers many rollouts.
pub const OPERATIONS_MAX: usize = 64;
/// Entries of history kept per instance.
pub const HISTORY_MAX: usize = 256;

/// A number that changes with each accepted operation, in the form callers quote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Etag(pub u64);

impl Etag {
    /// The etag after one more accepted operation.
    #[must_use]
    pub fn next(self) -> Etag {
        Etag(self.0 + 1)
    }

    /// Whether the caller's condition holds; empty and `*` always do.
    #[must_use]
    pub fn matches(self, if_match: &str) -> bool {
        if_match.is_empty() || if_match == "*" || if_match == self.to_string()
    }
}

impl std::fmt::Display for Etag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// The newest operation ids that a resource accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations(VecDeque<String>);

impl Operations {
    /// Whether this operation was accepted before.
    #[must_use]
    pub fn seen(&self, operation_id: &str) -> bool {
        self.0.iter().any(|o| o == operation_id)
    }

    /// Remembers an accepted operation; the oldest makes room.
    pub fn accept(&mut self, operation_id: &str) {
        if self.0.len() == OPERATIONS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(operation_id.to_owned());
    }

    /// The ids, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A scale set as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetRecord {
    /// What the caller set.
    pub spec: SetSpec,
    /// Changes with each accepted operation on the set.
    pub etag: Etag,
    /// The address the balancer took, so that a picked port stays.
    pub address: Option<SocketAddr>,
    /// Accepted operations.
    pub operations: Operations,
    /// Deletion was accepted; goes on after a restart.
    pub deleting: bool,
}

/// What an entry of the history was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// The instance was made.
    Create,
    /// Its root was replaced by another image.
    Reimage,
    /// Its root was made anew from the same image.
    Restart,
}

/// One accepted create, reimage or restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// What it was.
    pub kind: OperationKind,
    /// The image's version it moved to.
    pub image_version: String,
    /// Unix milliseconds of acceptance.
    pub at_ms: u64,
    /// The caller's operation id.
    pub operation_id: String,
    /// What the caller gave as its token.
    pub caller_token: String,
    /// Which boot it asked for.
    pub boot: u64,
    /// Milliseconds between the stop of the old root and the start of the new one.
    pub gap_ms: u64,
}

/// An instance as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its set.
    pub set: String,
    /// Its id within the set.
    pub id: String,
    /// Changes with each accepted operation on it.
    pub etag: Etag,
    /// What it should run.
    pub image: Image,
    /// Which boot it should be on; each create, reimage and restart raises it by one.
    pub boot: u64,
    /// Gets no new connections.
    pub draining: bool,
    /// Deletion was accepted; goes on after a restart.
    pub deleting: bool,
    /// Port of its direct address, kept while it is free.
    pub direct_port: Option<u16>,
    /// A number of its own among all instances ever made here; its address is derived from it.
    pub number: u32,
    /// Reimages accepted.
    pub replaced_count: u32,
    /// The newest [`HISTORY_MAX`] entries, oldest first.
    pub history: VecDeque<HistoryEntry>,
    /// Accepted operations.
    pub operations: Operations,
}

/// Who asks for a boot, and when.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The operation's id.
    pub operation_id: String,
    /// What the caller gave as its token.
    pub token: String,
    /// Unix milliseconds now.
    pub now_ms: u64,
}

impl InstanceRecord {
    /// A new instance on its first boot.
    #[must_use]
    pub fn new(set: &str, id: &str, number: u32, image: Image, caller: &Caller) -> InstanceRecord {
        let mut record = InstanceRecord {
            set: set.to_owned(),
            id: id.to_owned(),
            etag: Etag(0),
            image,
            boot: 0,
            draining: false,
            deleting: false,
            direct_port: None,
            number,
            replaced_count: 0,
            history: VecDeque::new(),
            operations: Operations::default(),
        };
        record.next_boot(OperationKind::Create, caller);
        record
    }

    /// Accepts a reimage.
    pub fn reimage(&mut self, image: Image, caller: &Caller) {
        self.image = image;
        self.replaced_count += 1;
        self.next_boot(OperationKind::Reimage, caller);
    }

    /// Accepts a restart.
    pub fn restart(&mut self, caller: &Caller) {
        self.next_boot(OperationKind::Restart, caller);
    }

    /// Accepts the start or the end of draining.
    pub fn set_draining(&mut self, draining: bool, operation_id: &str) {
        self.draining = draining;
        self.accept(operation_id);
    }

    /// Accepts the deletion.
    pub fn delete(&mut self, operation_id: &str) {
        self.deleting = true;
        self.accept(operation_id);
    }

    /// Notes how long the instance had no serving root; false when that boot is not in the history.
    pub fn note_gap(&mut self, boot: u64, gap_ms: u64) -> bool {
        match self.history.iter_mut().rev().find(|h| h.boot == boot) {
            Some(entry) if entry.gap_ms == 0 => {
                entry.gap_ms = gap_ms;
                true
            }
            _ => false,
        }
    }

    fn next_boot(&mut self, kind: OperationKind, caller: &Caller) {
        self.boot += 1;
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(HistoryEntry {
            kind,
            image_version: self.image.version.clone(),
            at_ms: caller.now_ms,
            operation_id: caller.operation_id.clone(),
            caller_token: caller.token.clone(),
            boot: self.boot,
            gap_ms: 0,
        });
        self.accept(&caller.operation_id);
    }

    fn accept(&mut self, operation_id: &str) {
        self.etag = self.etag.next();
        self.operations.accept(operation_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: &str) -> Image {
        Image {
            name: "web".into(),
            version: version.into(),
            layers: vec!["l0".into()],
            base_layers: 1,
        }
    }

    fn caller(id: &str) -> Caller {
        Caller {
            operation_id: id.into(),
            token: "t".into(),
            now_ms: 7,
        }
    }

    #[test]
    fn each_accepted_operation_changes_the_etag_and_only_boots_enter_the_history() {
        let mut record = InstanceRecord::new("web", "0", 0, image("1"), &caller("a"));
        let first = record.etag;
        record.set_draining(true, "b");
        assert!(!record.etag.matches(&first.to_string()));
        assert!(record.etag.matches("") && record.etag.matches("*"));
        record.reimage(image("2"), &caller("c"));
        let kinds: Vec<_> = record.history.iter().map(|h| (h.kind, h.boot)).collect();
        assert_eq!(
            kinds,
            [(OperationKind::Create, 1), (OperationKind::Reimage, 2)]
        );
        assert_eq!(record.replaced_count, 1);
    }

    #[test]
    fn the_oldest_operation_is_forgotten_first() {
        let mut operations = Operations::default();
        for n in 0..=OPERATIONS_MAX {
            operations.accept(&n.to_string());
        }
        assert!(!operations.seen("0"));
        assert!(operations.seen("1") && operations.seen(&OPERATIONS_MAX.to_string()));
    }
}
