//! Images: from a chain of layers to a disk that boots.
//!
//! ```text
//! layers --merged--> operations --ext4 (debugfs script)--> root partition --.
//! kernel + modules --initrd--> cpio --uki--> UKI --esp--> EFI partition -----+--gpt--> raw disk --check--> (vhd footer)
//! ```
//!
//! A disk is a pure function of its chain: the first layer makes it, every further layer patches it, whether all happens at
//! once or over a week on different workers. Identifiers come from the first layer's key and times are fixed, so nothing
//! else can enter. No loop device, device mapper, mount or privilege is used: everything is written at byte offsets.
//!
//! The disk itself is a cache; what is durable are its chunks in the artifact store (`put_sparse_file`).
//!
//! The drawback accepted: a disk that was patched a hundred times has another block layout than one made at once from the
//! merged tree. It has the same files.

pub mod check;
mod copy;
mod defaults;
pub mod disk;
mod esp;
mod ext4;
pub(crate) mod gpt;
mod initrd;
mod merged;
pub mod packages;
mod tool;
pub(crate) mod uki;
pub mod vhd;

pub use check::{CheckError, Checked, check};
pub use disk::{DiskError, DiskInfo, DiskOptions, Tools, build, patch};
pub(crate) use merged::Merged;
pub use packages::{Package, installed_packages};
pub use tool::{ToolError, file_system_maker};
pub use vhd::{VhdError, make_fixed_vhd};

/// Every time that no layer states: 2024-01-01 00:00:00 UTC, after the epoch so that no tool takes it for "unset".
const FIXED_TIME: i64 = 1_704_067_200;

#[cfg(test)]
pub(crate) mod tests;
