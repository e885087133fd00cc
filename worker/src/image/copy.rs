//! Copies a disk: shares its blocks where the file system can, else copies only what is not a hole.

use std::fs::File;
use std::io;

use camino::Utf8Path;
use oast_artifacts::data_extents;

/// Copies `from` to the new file `to`.
pub fn copy_disk(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    target.set_len(source.metadata()?.len())?;
    for extent in data_extents(&source)? {
        let (mut read, mut write) = (extent.start, extent.start);
        while read < extent.end {
            let left = usize::try_from(extent.end - read).expect("64-bit host");
            // Advances both offsets by what it copied.
            match rustix::fs::copy_file_range(
                &source,
                Some(&mut read),
                &target,
                Some(&mut write),
                left,
            ) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the disk became shorter",
                    ));
                }
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => {}
                Err(
                    rustix::io::Errno::XDEV
                    | rustix::io::Errno::OPNOTSUPP
                    | rustix::io::Errno::NOSYS,
                ) => {
                    copy_through_memory(&source, &target, read, extent.end)?;
                    break;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

fn copy_through_memory(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let part = usize::try_from((end - at).min(1 << 20)).expect("at most 1 MiB");
        source.read_exact_at(&mut buffer[..part], at)?;
        target.write_all_at(&buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}
