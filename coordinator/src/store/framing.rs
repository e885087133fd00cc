//! What snapshot files and backup files are made of: lengths, records, ends and a running checksum.
//!
//! Numbers are little-endian. A reader trusts no length: fields grow while they are read, so
//! that a damaged one costs what the file holds and not what it claims.

use std::io::{self, Read, Write};

use super::state::Record;

/// Stands where the length of a next record would.
pub(super) const END: u32 = u32::MAX;
/// Length of the checksum at the end of a file.
pub(super) const CHECKSUM_LEN: u64 = 32;
/// A key, value or history record larger than this is damage.
pub(super) const MAX_FIELD: u32 = 256 << 20;
/// Bytes read or written at once.
pub(super) const BUFFER: usize = 256 << 10;

/// Hashes and counts what passes through it.
pub(super) struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    count: u64,
}

impl<T> Hashing<T> {
    pub(super) fn new(inner: T) -> Self {
        Hashing {
            inner,
            hasher: blake3::Hasher::new(),
            count: 0,
        }
    }

    /// Bytes so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Hash so far.
    pub(super) fn hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }

    /// What is below, and the hash of what went through.
    pub(super) fn finish(self) -> (T, [u8; 32]) {
        let hash = self.hash();
        (self.inner, hash)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        self.count += read as u64;
        Ok(read)
    }
}

/// Writes a length.
pub(super) fn write_number(out: &mut impl Write, number: usize) -> io::Result<()> {
    let number = u32::try_from(number)
        .ok()
        .filter(|number| *number <= MAX_FIELD)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a record is too large"))?;
    out.write_all(&number.to_le_bytes())
}

/// Writes a length and as many bytes.
pub(super) fn write_field(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write_number(out, bytes.len())?;
    out.write_all(bytes)
}

/// Writes a key and its value.
pub(super) fn write_record(out: &mut impl Write, (key, value): &Record) -> io::Result<()> {
    write_field(out, key)?;
    write_field(out, value)
}

/// The phrase for a file that was cut.
pub(super) fn cut() -> String {
    "it ends too early".to_owned()
}

/// Reads a length or a format.
pub(super) fn number(reader: &mut impl Read) -> Result<u32, String> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).map_err(|_| cut())?;
    Ok(u32::from_le_bytes(bytes))
}

/// Reads `length` bytes, at most `limit`.
pub(super) fn field(reader: &mut impl Read, length: u32, limit: u32) -> Result<Vec<u8>, String> {
    if length > limit {
        return Err(format!("a field claims {length} bytes"));
    }
    let mut bytes = Vec::new();
    match reader.take(u64::from(length)).read_to_end(&mut bytes) {
        Ok(read) if read == length as usize => Ok(bytes),
        _ => Err(cut()),
    }
}

/// Reads a length and as many bytes; `None` at [`END`].
pub(super) fn read_field(reader: &mut impl Read) -> Result<Option<Vec<u8>>, String> {
    let length = number(reader)?;
    if length == END {
        return Ok(None);
    }
    field(reader, length, MAX_FIELD).map(Some)
}

/// Reads a key and its value; `None` at [`END`].
pub(super) fn read_record(reader: &mut impl Read) -> Result<Option<Record>, String> {
    let Some(key) = read_field(reader)? else {
        return Ok(None);
    };
    let length = number(reader)?;
    Ok(Some((key, field(reader, length, MAX_FIELD)?)))
}

/// Reads the count behind [`END`] and compares it.
pub(super) fn read_count(reader: &mut impl Read, expected: u64) -> Result<(), String> {
    let mut claimed = [0; 8];
    reader.read_exact(&mut claimed).map_err(|_| cut())?;
    if u64::from_le_bytes(claimed) == expected {
        Ok(())
    } else {
        Err("records are missing".to_owned())
    }
}
