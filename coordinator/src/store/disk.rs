//! Durable file operations: what has returned is on the disk, also after power loss.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::fault::point;

/// Failed to work on a file.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct DiskError {
    /// Verb.
    pub action: &'static str,
    /// File or directory.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Adds the action and the path to an I/O error.
pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError {
        action,
        path,
        source,
    }
}

/// Makes a directory and its parents, durably.
pub(crate) fn make_dir(path: &Path) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(at("make", path))?;
    point("a directory was made");
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes renames and new files in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), DiskError> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(at("sync", path))
}

/// Syncs every regular file below `path` and the directories that hold them.
pub(crate) fn sync_tree(path: &Path) -> Result<(), DiskError> {
    for entry in fs::read_dir(path).map_err(at("list", path))? {
        let entry = entry.map_err(at("list", path))?;
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            Err(source) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(at("look at", &entry.path())(source)),
        };
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            // The owner may replace its files while we walk; a file that is gone needs no sync.
            match File::open(entry.path()).and_then(|file| file.sync_data()) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(at("sync", &entry.path())(source)),
            }
        }
    }
    sync_dir(path)
}

/// Reads a small text file; `None` if there is none.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, DiskError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(at("read", path)(source)),
    }
}

/// Replaces a file as a whole, durably.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), DiskError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(at("make", &temporary))?;
    point("a file was begun");
    file.write_all(content).map_err(at("write", &temporary))?;
    file.sync_all().map_err(at("sync", &temporary))?;
    point("a file was written");
    fs::rename(&temporary, path).map_err(at("rename into place", path))?;
    point("a file was replaced");
    path.parent().map_or(Ok(()), sync_dir)
}

/// Removes a file or a whole directory if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), DiskError> {
    point("something is removed");
    let gone = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match gone {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(source)),
        _ => Ok(()),
    }
}
