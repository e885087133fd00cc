//! The fixed VHD form: the raw disk and 512 bytes behind it.
//!
//! Azure takes this form only, with a size of whole MiB. The footer is added in place, so a VHD costs nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::Digest;

pub const FOOTER_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
const COOKIE: &[u8; 8] = b"conectix";
/// The format counts from 2000-01-01; a fixed time keeps the file a function of the image.
const EPOCH_2000: i64 = 946_684_800;

/// Why a disk did not become a VHD.
#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    #[error("{path} has {len} bytes; a VHD needs whole MiB, make the disk a multiple of 1048576")]
    NotAligned { path: Utf8PathBuf, len: u64 },
    #[error("write {path}")]
    Io {
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

/// Appends the footer to a raw disk. `id` makes the disk's identity.
pub fn make_fixed_vhd(path: &Utf8Path, id: Digest) -> Result<(), VhdError> {
    let io = |err| VhdError::Io {
        path: path.to_owned(),
        err,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    if len == 0 || len % MIB != 0 {
        return Err(VhdError::NotAligned {
            path: path.to_owned(),
            len,
        });
    }
    file.write_all_at(&footer(len, id), len).map_err(io)
}

/// The footer of a fixed disk of `len` bytes.
pub fn footer(len: u64, id: Digest) -> [u8; FOOTER_BYTES as usize] {
    let mut footer = [0; FOOTER_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| footer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, COOKIE);
    put(8, &2_u32.to_be_bytes());
    put(12, &0x0001_0000_u32.to_be_bytes());
    put(16, &u64::MAX.to_be_bytes());
    let time = u32::try_from(super::FIXED_TIME - EPOCH_2000).expect("a time after 2000");
    put(24, &time.to_be_bytes());
    // Readers take the size from the rounded geometry unless the creator is one that writes exact sizes: Hyper-V's name.
    put(28, b"win ");
    put(32, &0x000a_0000_u32.to_be_bytes());
    put(36, b"Wi2k");
    put(40, &len.to_be_bytes());
    put(48, &len.to_be_bytes());
    let (cylinders, heads, sectors) = geometry(len / 512);
    put(56, &cylinders.to_be_bytes());
    put(58, &[heads, sectors]);
    put(60, &2_u32.to_be_bytes());
    put(68, &id.as_bytes()[..16]);
    let sum = checksum(&footer);
    footer[64..68].copy_from_slice(&sum.to_be_bytes());
    footer
}

fn checksum(footer: &[u8]) -> u32 {
    !footer
        .iter()
        .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)))
}

/// Cylinders, heads and sectors as the format's appendix computes them.
fn geometry(total: u64) -> (u16, u8, u8) {
    let total = total.min(65_535 * 16 * 255);
    let (sectors, heads, cylinder_heads) = if total >= 65_535 * 16 * 63 {
        (255, 16, total / 255)
    } else {
        let mut sectors = 17;
        let mut cylinder_heads = total / 17;
        let mut heads = cylinder_heads.div_ceil(1024).max(4);
        if cylinder_heads >= heads * 1024 || heads > 16 {
            (sectors, heads) = (31, 16);
            cylinder_heads = total / 31;
        }
        if cylinder_heads >= heads * 1024 {
            (sectors, heads) = (63, 16);
            cylinder_heads = total / 63;
        }
        (sectors, heads, cylinder_heads)
    };
    let cylinders = u16::try_from(cylinder_heads / heads).unwrap_or(u16::MAX);
    (cylinders, heads as u8, sectors as u8)
}

/// Whether the last 512 bytes are the footer of the fixed disk before them. `Err` says what is wrong.
pub(super) fn check_footer(file: &File, file_len: u64) -> Result<(), String> {
    let mut footer = [0; FOOTER_BYTES as usize];
    let len = file_len - FOOTER_BYTES;
    file.read_exact_at(&mut footer, len)
        .map_err(|err| err.to_string())?;
    let sum = u32::from_be_bytes(footer[64..68].try_into().expect("four bytes"));
    let mut summed = footer;
    summed[64..68].fill(0);
    if &footer[..8] != COOKIE || checksum(&summed) != sum {
        return Err("the VHD footer is damaged".to_owned());
    }
    if u64::from_be_bytes(footer[48..56].try_into().expect("eight bytes")) != len
        || !len.is_multiple_of(MIB)
    {
        return Err("the VHD footer states another size".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_states_the_exact_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("disk.vhd")).unwrap();
        let file = File::create_new(&path).unwrap();
        file.set_len(3 * MIB).unwrap();
        make_fixed_vhd(&path, Digest::of(b"id")).unwrap();
        let file = File::open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        assert_eq!(len, 3 * MIB + FOOTER_BYTES);
        assert_eq!(check_footer(&file, len), Ok(()));
        assert!(matches!(
            make_fixed_vhd(&path, Digest::of(b"id")),
            Err(VhdError::NotAligned { .. })
        ));
    }

    #[test]
    fn geometry_follows_the_appendix() {
        assert_eq!(geometry(65_535 * 16 * 255 + 1), (65_535, 16, 255));
        assert_eq!(geometry((40 << 20) / 512), (963, 5, 17));
    }
}
