//! Looks into disk images without changing, mounting or starting them: what is in one, how two differ, whether a cloud takes it.
//!
//! ```text
//! file (raw, VHD) --disk: footer, partition table, boot partition--> Disk --ext4--> files
//!                                                                     |---lint----> findings, what it fits
//!                                                                     '---diff----> packages, files, sizes
//! ```
//!
//! The file is read in this process, without tools or privileges, and believed in nothing: it may have been made by anybody. So every
//! count that it states is bounded, and what is damaged is an error with a place, never a panic or a huge allocation.
//!
//! The drawback: only ext4 is understood. Of a disk with another root file system the lint says what can be said from outside.

pub mod diff;
pub mod disk;
pub mod ext4;
mod initrd;
pub mod lint;

#[cfg(test)]
mod tests;
