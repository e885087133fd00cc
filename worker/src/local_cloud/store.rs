//! The durable state: one small JSON file per record, replaced as a whole.
//!
//! ```text
//! sets/<set>/set.json                 SetRecord
//! sets/<set>/instances/<id>.json      InstanceRecord
//! spent.json                          operation ids of deleted resources, next instance number
//! ```
//!
//! A change is written to a temporary file, fsynced, renamed over the old one, and the folder is
//! fsynced: after a crash a file is the old or the new record, never a part. Files that do not
//! parse stop the start with their path; the cloud never guesses. All calls block; the owner runs
//! them off the async threads.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::record::{InstanceRecord, SetRecord};

/// Operation ids of deleted resources that are remembered.
pub const SPENT_MAX: usize = 4096;

/// A file of the durable state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On which file or folder.
        path: Utf8PathBuf,
        /// Why not.
        #[source]
        err: io::Error,
    },
    /// The content is not what this version writes.
    #[error(
        "read {path}: it is not a record of this version; move the file away to go on without it"
    )]
    Parse {
        /// The file.
        path: Utf8PathBuf,
        /// What the parser said.
        #[source]
        err: serde_json::Error,
    },
}

/// What outlives the resources themselves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Operation ids of deleted resources, oldest first.
    pub operations: VecDeque<String>,
    /// The number of the next instance.
    pub next_number: u32,
}

impl Spent {
    /// Remembers the operations of a deleted resource.
    pub fn add<'a>(&mut self, operations: impl Iterator<Item = &'a str>) {
        self.operations.extend(operations.map(str::to_owned));
        while self.operations.len() > SPENT_MAX {
            self.operations.pop_front();
        }
    }

    /// Whether a deleted resource accepted this operation.
    #[must_use]
    pub fn seen(&self, operation_id: &str) -> bool {
        self.operations.iter().any(|o| o == operation_id)
    }
}

/// Everything on disk.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The sets, by name.
    pub sets: Vec<SetRecord>,
    /// The instances of all sets.
    pub instances: Vec<InstanceRecord>,
    /// What outlives resources.
    pub spent: Spent,
}

/// The folder of the durable state.
#[derive(Clone, Debug)]
pub struct Store {
    root: Utf8PathBuf,
}

impl Store {
    /// Opens or makes the folder.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Utf8Path) -> Result<Store, StoreError> {
        let store = Store {
            root: root.to_owned(),
        };
        make_folder(&store.sets())?;
        Ok(store)
    }

    /// Reads all records.
    ///
    /// # Errors
    /// A file cannot be read or parsed.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = Loaded {
            spent: read(&self.spent())?.unwrap_or_default(),
            ..Loaded::default()
        };
        for folder in list(&self.sets())? {
            // A folder without set.json is a deletion that had come to its last step.
            let Some(set) = read::<SetRecord>(&folder.join("set.json"))? else {
                remove_tree(&folder)?;
                continue;
            };
            for path in list(&folder.join("instances"))? {
                if path.extension() == Some("json") {
                    loaded.instances.extend(read::<InstanceRecord>(&path)?);
                }
            }
            loaded.sets.push(set);
        }
        Ok(loaded)
    }

    /// Makes a set's record durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_set(&self, record: &SetRecord) -> Result<(), StoreError> {
        let folder = self.sets().join(&record.spec.name);
        make_folder(&folder.join("instances"))?;
        replace(&folder.join("set.json"), record)
    }

    /// Makes an instance's record durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_instance(&self, record: &InstanceRecord) -> Result<(), StoreError> {
        replace(&self.instance(&record.set, &record.id), record)
    }

    /// Makes the memory of deleted resources durable.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_spent(&self, spent: &Spent) -> Result<(), StoreError> {
        replace(&self.spent(), spent)
    }

    /// Removes an instance's record.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn remove_instance(&self, set: &str, id: &str) -> Result<(), StoreError> {
        let path = self.instance(set, id);
        remove(&path)?;
        sync_parent(&path)
    }

    /// Removes a set's record and folder.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn remove_set(&self, set: &str) -> Result<(), StoreError> {
        let folder = self.sets().join(set);
        let record = folder.join("set.json");
        // The record goes first: a crash in between leaves a folder that `load` sweeps.
        remove(&record)?;
        sync_parent(&record)?;
        remove_tree(&folder)
    }

    fn sets(&self) -> Utf8PathBuf {
        self.root.join("sets")
    }

    fn spent(&self) -> Utf8PathBuf {
        self.root.join("spent.json")
    }

    fn instance(&self, set: &str, id: &str) -> Utf8PathBuf {
        self.sets()
            .join(set)
            .join("instances")
            .join(format!("{id}.json"))
    }
}

fn io_at(verb: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |err| StoreError::Io { verb, path, err }
}

fn make_folder(path: &Utf8Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(io_at("make the folder", path))
}

fn list(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, StoreError> {
    let entries = match folder.read_dir_utf8() {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(io_at("list", folder)(err)),
    };
    let mut paths = entries
        .map(|entry| entry.map(camino::Utf8DirEntry::into_path))
        .collect::<Result<Vec<_>, _>>()
        .map_err(io_at("list", folder))?;
    paths.sort();
    Ok(paths)
}

fn read<T: DeserializeOwned>(path: &Utf8Path) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(io_at("read", path)(err)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|err| StoreError::Parse {
            path: path.to_owned(),
            err,
        })
}

fn replace<T: Serialize>(path: &Utf8Path, record: &T) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(record).expect("records have string keys only");
    // One writer per folder (the data directory is locked), so one temporary name is enough.
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(io_at("create", &temporary))?;
    file.write_all(&bytes).map_err(io_at("write", &temporary))?;
    file.sync_all().map_err(io_at("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io_at("replace", path))?;
    sync_parent(path)
}

fn sync_parent(path: &Utf8Path) -> Result<(), StoreError> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io_at("sync", folder))
}

fn remove(path: &Utf8Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io_at("remove", path)(err)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Utf8Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(io_at("remove", path)(err)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Caller, Etag, Operations};
    use super::super::spec::{Image, SetSpec};
    use super::*;

    fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    fn set(name: &str) -> SetRecord {
        SetRecord {
            spec: SetSpec::new(name, "fleet", "127.0.0.1:0".parse().unwrap(), 80),
            etag: Etag(1),
            address: None,
            operations: Operations::default(),
            deleting: false,
        }
    }

    fn instance(set: &str, id: &str) -> InstanceRecord {
        let image = Image {
            name: "web".into(),
            version: "1".into(),
            layers: vec!["l".into()],
            base_layers: 1,
        };
        let caller = Caller {
            operation_id: "o".into(),
            token: String::new(),
            now_ms: 1,
        };
        InstanceRecord::new(set, id, 0, image, &caller)
    }

    #[test]
    fn records_are_read_back_as_written() {
        let (_dir, path) = folder();
        let store = Store::open(&path).unwrap();
        store.save_set(&set("web")).unwrap();
        store.save_instance(&instance("web", "0")).unwrap();
        let loaded = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(loaded.sets[0].spec, set("web").spec);
        assert_eq!(loaded.instances[0].history, instance("web", "0").history);
    }

    #[test]
    fn a_half_written_file_never_replaces_a_record() {
        let (_dir, path) = folder();
        let store = Store::open(&path).unwrap();
        store.save_set(&set("web")).unwrap();
        store.save_instance(&instance("web", "0")).unwrap();
        // What a crash in the middle of a write leaves behind.
        fs::write(path.join("sets/web/instances/0.tmp"), b"{\"set\":").unwrap();
        assert_eq!(store.load().unwrap().instances.len(), 1);
    }

    #[test]
    fn a_damaged_record_stops_the_start_and_is_named() {
        let (_dir, path) = folder();
        let store = Store::open(&path).unwrap();
        store.save_set(&set("web")).unwrap();
        fs::write(path.join("sets/web/set.json"), b"{").unwrap();
        let err = store.load().unwrap_err();
        assert!(err.to_string().contains("sets/web/set.json"), "{err}");
    }

    #[test]
    fn an_interrupted_deletion_of_a_set_is_swept() {
        let (_dir, path) = folder();
        let store = Store::open(&path).unwrap();
        store.save_set(&set("web")).unwrap();
        fs::remove_file(path.join("sets/web/set.json")).unwrap();
        assert!(store.load().unwrap().sets.is_empty());
        assert!(!path.join("sets/web").exists());
    }
}
