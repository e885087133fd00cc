//! Where a sparse file has data.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// A run of bytes that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub start: u64,
    pub end: u64,
}

/// The runs of data of `file` in order. A file system that does not know holes answers with one run.
///
/// The file's offset moves.
pub fn data_extents(file: &File) -> io::Result<Vec<Extent>> {
    let len = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) if extents.is_empty() => {
                return Ok(vec![Extent { start: 0, end: len }]);
            }
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file.as_fd(), SeekFrom::Hole(start))?.min(len);
        if start >= end {
            break;
        }
        extents.push(Extent { start, end });
        at = end;
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn only_written_ranges_are_data() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"x", 10 << 20).unwrap();
        let extents = data_extents(&file).unwrap();
        let bytes: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
        assert!(
            extents
                .iter()
                .any(|e| e.start <= 10 << 20 && e.end > 10 << 20)
        );
        assert!(bytes <= 64 << 20);
    }

    #[test]
    fn an_empty_file_has_no_data() {
        assert_eq!(
            data_extents(&tempfile::tempfile().unwrap()).unwrap(),
            vec![]
        );
    }
}
