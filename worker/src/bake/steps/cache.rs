//! Folders that `run` steps keep from one bake to the next, such as a package manager's downloads.
//!
//! ```text
//! step-caches/<hash of owner and path>/data    what the step sees at the path
//! ```
//!
//! The owner is the team with the trust of its work, so what an upload leaves behind is never seen
//! by a watched branch. One step at a time has a folder; others wait for it, because programs
//! seldom expect company there. Nothing of it is part of a layer or of a key: a step must come to
//! the same result with an empty one. Beyond the limit the longest unused folders go. Nothing of it
//! is synced, so all of it goes after a boot of the machine: a torn file would look like a kept one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::OwnedMutexGuard;

use crate::bake::cache::{CacheError, open_folder};
use crate::sandbox::Bind;

/// A folder that cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}")]
pub struct StepCacheError {
    doing: &'static str,
    path: Utf8PathBuf,
    #[source]
    err: io::Error,
}

/// One lock for each folder in use.
type Turns = BTreeMap<String, Arc<tokio::sync::Mutex<()>>>;

/// The folders of one worker.
#[derive(Debug)]
pub struct StepCaches {
    folder: Utf8PathBuf,
    bytes_max: u64,
    host_base: u32,
    turns: Mutex<Turns>,
}

/// Folders that a step has for itself until this is dropped.
#[derive(Debug, Default)]
pub struct Held {
    /// Where the step sees them.
    pub binds: Vec<Bind>,
    turns: Vec<OwnedMutexGuard<()>>,
}

impl StepCaches {
    /// Keeps folders under `folder`, together about `bytes_max` at most.
    ///
    /// # Errors
    /// The folder cannot be made or emptied.
    pub fn open(
        folder: Utf8PathBuf,
        bytes_max: u64,
        host_base: u32,
    ) -> Result<StepCaches, CacheError> {
        open_folder(&folder)?;
        Ok(StepCaches {
            folder,
            bytes_max,
            host_base,
            turns: Mutex::default(),
        })
    }

    /// Waits for the folders of `owner` for these paths.
    ///
    /// # Errors
    /// One cannot be made.
    pub async fn take(&self, owner: &str, paths: &[String]) -> Result<Held, StepCacheError> {
        let named: BTreeMap<String, &String> =
            paths.iter().map(|path| (name(owner, path), path)).collect();
        let mut held = Held::default();
        // In the order of names, so that two steps never wait for each other.
        for (name, path) in named {
            let turn = self.turn(&name);
            held.turns.push(turn.lock_owned().await);
            let data = self.folder.join(&name).join("data");
            self.make(&data)?;
            held.binds
                .push(Bind::writable(data.as_std_path(), path.as_str()));
        }
        Ok(held)
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(name.to_owned()).or_default().clone()
    }

    fn make(&self, data: &Utf8Path) -> Result<(), StepCacheError> {
        let at = |doing: &'static str| {
            move |err| StepCacheError {
                doing,
                path: data.to_owned(),
                err,
            }
        };
        fs::create_dir_all(data).map_err(at("make the cache folder"))?;
        let parent = data.parent().unwrap_or(data);
        for folder in [&self.folder, parent] {
            let mode = fs::Permissions::from_mode(0o711);
            fs::set_permissions(folder, mode).map_err(at("open up the cache folder"))?;
        }
        let owner = fs::metadata(data).map_err(at("look at the cache folder"))?;
        if owner.uid() != self.host_base {
            chown(data, Some(self.host_base), Some(self.host_base))
                .map_err(at("give the sandbox the cache folder"))?;
        }
        // Its time says when it was last used.
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        fs::File::open(parent)
            .and_then(|file| Ok(rustix::fs::futimens(file, &times)?))
            .map_err(at("mark the cache folder"))
    }

    /// Removes the longest unused folders that nobody has while all are too large. Blocks.
    pub fn shrink(&self) {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            // The mark of the boot lies beside them.
            let Some(metadata) = entry.metadata().ok().filter(fs::Metadata::is_dir) else {
                continue;
            };
            let used = metadata.modified();
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let bytes = bytes_in(&entry.path());
            kept.push((used.unwrap_or(SystemTime::UNIX_EPOCH), name, bytes));
        }
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, name, bytes) in kept {
            if total <= self.bytes_max {
                break;
            }
            let Ok(_turn) = self.turn(&name).try_lock_owned() else {
                continue;
            };
            match fs::remove_dir_all(self.folder.join(&name)) {
                Ok(()) => total -= bytes,
                Err(error) => tracing::warn!(%name, %error, "A step's cache could not be removed."),
            }
        }
    }
}

fn name(owner: &str, path: &str) -> String {
    let text = format!("{owner}\0{path}");
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

/// Bytes on disk under a folder, each file once; links are not followed.
fn bytes_in(folder: &std::path::Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.nlink() < 2 || seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(folder: &tempfile::TempDir, bytes_max: u64) -> StepCaches {
        let folder = Utf8Path::from_path(folder.path()).unwrap().join("caches");
        let own = rustix::process::getuid().as_raw();
        StepCaches::open(folder, bytes_max, own).unwrap()
    }

    fn paths(list: &[&str]) -> Vec<String> {
        list.iter().map(|path| (*path).to_owned()).collect()
    }

    #[tokio::test]
    async fn each_owner_and_path_has_a_folder_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let caches = caches(&folder, 1 << 20);
        let mut sources = BTreeSet::new();
        for (owner, path) in [("a", "/x"), ("b", "/x"), ("a", "/y"), ("a", "/x")] {
            let held = caches.take(owner, &paths(&[path])).await.unwrap();
            sources.insert(held.binds[0].source.clone());
        }
        assert_eq!(sources.len(), 3);
    }

    #[tokio::test]
    async fn what_was_kept_before_a_boot_is_gone_after_it() {
        let folder = tempfile::tempdir().unwrap();
        for (boot, kept) in [(None, true), (Some("another boot"), false)] {
            let held = caches(&folder, 1 << 20).take("a", &paths(&["/x"])).await;
            let file = held.unwrap().binds[0].source.join("f");
            fs::write(&file, "kept").unwrap();
            if let Some(boot) = boot {
                fs::write(folder.path().join("caches/boot"), boot).unwrap();
            }
            let again = caches(&folder, 1 << 20);
            again.shrink();
            assert_eq!(file.exists(), kept, "{boot:?}");
        }
    }

    #[tokio::test]
    async fn a_second_step_waits_for_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let caches = caches(&folder, 1 << 20);
        let both = paths(&["/x", "/y"]);
        let turned = paths(&["/y", "/x"]);
        let held = caches.take("a", &both).await.unwrap();
        let mut second = Box::pin(caches.take("a", &turned));
        tokio::select! {
            biased;
            _ = &mut second => panic!("two steps have one folder"),
            () = std::future::ready(()) => {}
        }
        drop(held);
        assert_eq!(second.await.unwrap().binds.len(), 2);
    }

    #[tokio::test]
    async fn the_longest_unused_go_first_and_never_one_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let caches = caches(&folder, 24 << 10);
        let mut folders = Vec::new();
        for (path, used) in [("/old", 100), ("/held", 200), ("/new", 300)] {
            let held = caches.take("a", &paths(&[path])).await.unwrap();
            let data = held.binds[0].source.clone();
            fs::write(data.join("f"), vec![7; 16 << 10]).unwrap();
            let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(used);
            let parent = fs::File::open(data.parent().unwrap()).unwrap();
            parent.set_modified(used).unwrap();
            folders.push(data);
        }
        let _held = caches.take("a", &paths(&["/held"])).await.unwrap();
        caches.shrink();
        let left: Vec<bool> = folders.iter().map(|data| data.exists()).collect();
        assert_eq!(left, [false, true, false], "16 KiB of 24 are in use");
    }
}
