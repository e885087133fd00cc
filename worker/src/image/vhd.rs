//! The fixed VHD form: the raw disk and 512 bytes behind it.
//!
//! Azure takes this form only, with a size of whole MiB. The footer is added in place, so a VHD costs nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{Digest, vhd};

pub const FOOTER_BYTES: u64 = vhd::FOOTER_BYTES as u64;
const COOKIE: &[u8; 8] = b"conectix";

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
    if len == 0 || !len.is_multiple_of(vhd::ALIGNMENT) {
        return Err(VhdError::NotAligned {
            path: path.to_owned(),
            len,
        });
    }
    file.write_all_at(&vhd::footer(len, id), len).map_err(io)
}

/// Whether the last 512 bytes are the footer of the fixed disk before them. `Err` says what is wrong.
pub(super) fn check_footer(file: &File, file_len: u64) -> Result<(), String> {
    let mut footer = [0; vhd::FOOTER_BYTES];
    let len = file_len - FOOTER_BYTES;
    file.read_exact_at(&mut footer, len)
        .map_err(|err| err.to_string())?;
    let sum = u32::from_be_bytes(footer[64..68].try_into().expect("four bytes"));
    if &footer[..8] != COOKIE || vhd::checksum(&footer) != sum {
        return Err("the VHD footer is damaged".to_owned());
    }
    if u64::from_be_bytes(footer[48..56].try_into().expect("eight bytes")) != len
        || !len.is_multiple_of(vhd::ALIGNMENT)
    {
        return Err("the VHD footer states another size".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

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
}
