//! The EFI system partition: a FAT32 file system with the one file that firmware starts by itself.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::FileExt;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

/// The path that UEFI tries on a disk without boot entries (x86-64).
const FOLDERS: [&str; 2] = ["EFI", "EFI/BOOT"];
const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// With 512-byte clusters FAT32 needs at least 65,525 of them.
pub const MIN_BYTES: u64 = 64 << 20;
/// Written in pieces of this size, and only those that are not zero, so that the disk stays sparse.
const PIECE: usize = 4096;

/// Writes a fresh file system with `loader` to `disk` at `offset`. Equal arguments give equal bytes.
pub fn write(disk: &File, offset: u64, len: u64, volume: u32, loader: &[u8]) -> io::Result<()> {
    let mut image = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(512)
        .volume_id(volume)
        .volume_label(*b"ESP        ");
    format_volume(Cursor::new(&mut image[..]), options)?;
    {
        let system = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new())?;
        for folder in FOLDERS {
            system.root_dir().create_dir(folder)?;
        }
        system.root_dir().create_file(LOADER)?.write_all(loader)?;
        system.unmount()?;
    }
    // What the file system wrote before may be under what is zero now.
    rustix::fs::fallocate(
        disk,
        rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
        offset,
        len,
    )
    .map_err(io::Error::from)
    .or_else(|_| zero(disk, offset, len))?;
    for (at, piece) in image.chunks(PIECE).enumerate() {
        if piece.iter().any(|byte| *byte != 0) {
            disk.write_all_at(piece, offset + (at * PIECE) as u64)?;
        }
    }
    Ok(())
}

fn zero(disk: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < len {
        let part = usize::try_from((len - at).min(1 << 20)).expect("at most 1 MiB");
        disk.write_all_at(&zeros[..part], offset + at)?;
        at += part as u64;
    }
    Ok(())
}

/// Reads the loader back.
pub fn read(disk: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut image = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    disk.read_exact_at(&mut image, offset)?;
    let system = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new())?;
    let mut loader = Vec::new();
    system
        .root_dir()
        .open_file(LOADER)?
        .read_to_end(&mut loader)?;
    Ok(loader)
}
