//! A tree of files from a client into the artifact store.
//!
//! Small files are kept in memory up to a bound, the others in a folder of their own next to the
//! store, which goes away with the call. Nothing is visible before the whole tree is stored.

use std::path::PathBuf;

use camino::Utf8PathBuf;
use oast_artifacts::{FileSource, InvalidPath, SourceFile, TreeError, normal_path};
use oast_daemon::random;
use oast_proto::v1;
use oast_proto::v1::upload_tree_request::Message;
use tokio::io::AsyncWriteExt as _;
use tonic::{Code, Status, Streaming};

use super::{Api, status};

/// Most files of one tree.
const FILES_MAX: usize = 100_000;
/// Most bytes of one tree.
const TREE_MAX: u64 = 4 << 30;
/// Files up to this size stay in memory...
const SMALL: u64 = 64 << 10;
/// ...while all of them together stay below this.
const MEMORY_MAX: u64 = 32 << 20;
/// Longest path or link.
const PATH_MAX: usize = 4096;

/// The folder of one upload, removed when the call ends however it ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Best effort: what stays is in the store's temporary folder, which is swept by age.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file whose bytes are still coming.
struct Open {
    path: String,
    executable: bool,
    left: u64,
    place: Place,
}

enum Place {
    Memory(Vec<u8>),
    Disk(Utf8PathBuf, tokio::fs::File),
}

impl Api {
    pub(super) async fn store_upload(
        &self,
        mut messages: Streaming<v1::UploadTreeRequest>,
    ) -> Result<v1::UploadTreeResponse, Status> {
        let place = self.artifacts.root().join("tmp");
        let place = place.join(format!("upload-{:016x}", random::number()));
        let folder = Folder(place.clone().into_std_path_buf());
        let mut files = Vec::new();
        let mut open: Option<Open> = None;
        let (mut total, mut memory) = (0_u64, 0_u64);
        while let Some(message) = messages.message().await? {
            match message.message {
                Some(Message::File(file)) => {
                    finish(open.take(), &mut files).await?;
                    check(&file, files.len())?;
                    total = total.saturating_add(file.size);
                    if total > TREE_MAX {
                        let message = format!("a tree has at most {TREE_MAX} bytes");
                        return Err(status::invalid("file", message));
                    }
                    if !file.symlink.is_empty() {
                        let source = FileSource::Symlink {
                            target: file.symlink,
                        };
                        files.push(SourceFile {
                            path: file.path,
                            source,
                        });
                        continue;
                    }
                    let small = file.size <= SMALL && memory + file.size <= MEMORY_MAX;
                    let kept = if small {
                        memory += file.size;
                        Place::Memory(Vec::new())
                    } else {
                        tokio::fs::create_dir_all(&place)
                            .await
                            .map_err(|err| status::internal(&err))?;
                        let path = place.join(files.len().to_string());
                        let made = tokio::fs::File::create_new(&path).await;
                        Place::Disk(path, made.map_err(|err| status::internal(&err))?)
                    };
                    open = Some(Open {
                        path: file.path,
                        executable: file.mode & 0o111 != 0,
                        left: file.size,
                        place: kept,
                    });
                }
                Some(Message::Chunk(chunk)) => {
                    let Some(file) = &mut open else {
                        return Err(status::invalid("chunk", "it belongs to no file"));
                    };
                    file.take(&chunk).await?;
                }
                None => return Err(status::invalid("message", "it is empty")),
            }
        }
        finish(open, &mut files).await?;
        let count = files.len();
        let store = self.artifacts.clone();
        let stored = self
            .blocking("store-upload", move || {
                let stored = store.put_files(files);
                drop(folder);
                stored
            })
            .await?
            .map_err(refused)?;
        Ok(v1::UploadTreeResponse {
            tree: stored.blob.to_string(),
            files: u32::try_from(count).unwrap_or(u32::MAX),
            bytes: total,
        })
    }
}

impl Open {
    async fn take(&mut self, chunk: &[u8]) -> Result<(), Status> {
        let left = self.left.checked_sub(chunk.len() as u64);
        let Some(left) = left else {
            let message = format!("{} has more bytes than it said", self.path);
            return Err(status::invalid("chunk", message));
        };
        self.left = left;
        match &mut self.place {
            Place::Memory(bytes) => bytes.extend_from_slice(chunk),
            Place::Disk(_, file) => {
                let written = file.write_all(chunk).await;
                written.map_err(|err| status::internal(&err))?;
            }
        }
        Ok(())
    }
}

async fn finish(open: Option<Open>, files: &mut Vec<SourceFile>) -> Result<(), Status> {
    let Some(open) = open else {
        return Ok(());
    };
    if open.left > 0 {
        let message = format!("{} has {} bytes fewer than it said", open.path, open.left);
        return Err(status::invalid("chunk", message));
    }
    let executable = open.executable;
    let source = match open.place {
        Place::Memory(bytes) => FileSource::Bytes { bytes, executable },
        Place::Disk(path, mut file) => {
            let flushed = file.flush().await;
            flushed.map_err(|err| status::internal(&err))?;
            FileSource::OnDisk { path, executable }
        }
    };
    files.push(SourceFile {
        path: open.path,
        source,
    });
    Ok(())
}

fn check(file: &v1::UploadFile, before: usize) -> Result<(), Status> {
    if before >= FILES_MAX {
        let message = format!("a tree has at most {FILES_MAX} files");
        return Err(status::invalid("file", message));
    }
    if file.path.len() > PATH_MAX || file.symlink.len() > PATH_MAX {
        return Err(status::invalid("file.path", "the path is too long"));
    }
    let wrong = |err: InvalidPath| status::invalid("file.path", err.to_string());
    normal_path(&file.path).map_err(wrong)
}

fn refused(err: TreeError) -> Status {
    match err {
        TreeError::Path(_) | TreeError::Twice { .. } | TreeError::UnderFile { .. } => {
            status::invalid("file.path", err.to_string())
        }
        TreeError::Store(oast_artifacts::StoreError::NoSpace { .. }) => {
            status::error(Code::ResourceExhausted, "NO_SPACE", err.to_string())
        }
        err => status::internal(&err),
    }
}
