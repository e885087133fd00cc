//! What can be said of an image that others may check: what is in it, and where it came from.
//!
//! ```text
//! dpkg status, copyright files, copied files --sbom--> CycloneDX 1.6, SPDX 2.3
//! what the ledger knows of a bake --provenance--> in-toto statement --dsse--> signed envelope
//! envelope, key, disk, bills --verify--> what was proved, line by line
//! ```
//!
//! Pure: no clock, no files, no network; randomness in one place, where a key is made. Every document is
//! a function of what it describes, so the same image has the same documents, byte for byte. Who reads disks and
//! stores lies above: `worker` collects, members sign, `cli` shows.
//!
//! Written by hand and judged by others (`tests/judges.rs`): the published schemas, syft, SPDX's and
//! in-toto's own tools. See docs/decisions/0020 for who signs and why.

pub mod dpkg;
pub mod dsse;
pub mod hash;
pub mod key;
pub mod licence;
pub mod provenance;
pub mod sbom;
pub mod verify;
