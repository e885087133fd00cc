//! The artifact store: one folder, shared by several processes, that holds everything bulky the farm makes.
//!
//! Members read it (logs, image records), workers and the local cloud read and write it. What is inside is immutable and
//! named by its content, so writers never have to agree with each other:
//!
//! ```text
//! <root>/chunks/<h>/<digest>      one chunk of at most 1 MiB, compressed when that pays      (store/chunk.rs)
//! <root>/manifests/<digest>       the list of chunks of one blob                             (manifest.rs)
//! <root>/logs/<run>/<task>/<attempt>.log   append-only records of one attempt                (logs.rs)
//! <root>/tmp/                     what is being written; swept by age
//! <root>/corrupt/                 chunks that failed verification, kept for a look
//! ```
//!
//! A blob is durable when its manifest is: chunks are written, synced and renamed first, their folders synced next, and the
//! manifest comes last (store/batch.rs). So a manifest that can be found can be read, whatever crashed.
//!
//! What this crate does not do: it gives nothing a name but its digest (names, keys and references are ledger records), it
//! decides nothing about retention, and it never deletes a chunk by itself. Every call blocks; async callers use a blocking
//! thread.

mod blob;
mod logs;
mod manifest;
mod sparse;
mod store;
mod tree;
pub mod vhd;

pub use blob::{BlobReader, Fill, Stored};
pub use logs::{
    LogError, LogReader, LogRecord, LogStream, LogWriter, MAX_PAYLOAD_BYTES, MAX_SEGMENT_BYTES,
    ReadLogs, SegmentKey,
};
pub use manifest::{CHUNK_BYTES, Manifest, ManifestError};
pub use oast_model::digest::Digest;
pub use sparse::{Extent, data_extents};
pub use store::{ArtifactStore, StoreError, Swept};
pub use tree::{
    EntryKind, FileSource, InvalidPath, SourceFile, Tree, TreeEntry, TreeError, normal_path,
};
