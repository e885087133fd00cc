//! Snapshot files: all records of the live state at one log position, checksummed.
//!
//! ```text
//! magic "OASTSNAP" | u32 format | u32 header length | header (protobuf)
//! { u32 key length | key | u32 value length | value }*      records in key order
//! u32 0xffff_ffff | u64 record count                         end of records
//! 32 bytes blake3 over everything before                     checksum
//! ```
//!
//! Numbers are little-endian. A file is written under a temporary name, synced, read back and
//! verified, then renamed; only verified files have the final name. The same format travels
//! between members: the receiver fetches the sender's bytes and verifies them itself.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::ConfState;

use super::disk::{self, DiskError};
use super::log::LogPosition;
use super::members::Members;
use super::state::{HistoryTail, Mark, Record};

const MAGIC: &[u8; 8] = b"OASTSNAP";
const FORMAT: u32 = 1;
const END_OF_RECORDS: u32 = u32::MAX;
const CHECKSUM_LEN: u64 = 32;
/// A header larger than this is damage, not configuration.
const MAX_HEADER: u32 = 1 << 20;
/// A key or value larger than this is damage.
const MAX_FIELD: u32 = 256 << 20;
const BUFFER: usize = 256 << 10;
/// Files kept besides the newest, so that a peer can finish a fetch it has begun.
const KEEP_OLDER: usize = 1;
const SUFFIX: &str = "oast";

/// What a snapshot file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotHeader {
    /// Farm.
    pub cluster: String,
    /// Applied mark at which it was taken.
    pub mark: Mark,
    /// Configuration at that mark.
    pub conf_state: ConfState,
    /// Who the members of that configuration are.
    pub members: Members,
    /// Digest of the live state.
    pub digest: [u8; 32],
    /// End of the history at that mark.
    pub history: HistoryTail,
}

/// A verified file.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotFile {
    /// Path.
    pub path: PathBuf,
    /// Length in bytes.
    pub length: u64,
    /// Checksum at its end.
    pub checksum: [u8; 32],
    /// Header.
    pub header: SnapshotHeader,
}

/// What a `MsgSnapshot` carries instead of the data: enough to fetch and verify the file.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotOffer {
    /// Log position of the file.
    pub position: LogPosition,
    /// Length in bytes.
    pub length: u64,
    /// Checksum at its end.
    pub checksum: [u8; 32],
}

/// Failed to use a snapshot file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system failed.
    #[error("use a snapshot file")]
    Disk(#[source] DiskError),
    /// The content is damaged.
    #[error("trust the snapshot {}: {problem}", path.display())]
    Damaged {
        /// Path.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderRecord {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    term: u64,
    #[prost(uint64, tag = "4")]
    now_ms: u64,
    #[prost(bytes = "vec", tag = "5")]
    conf_state: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "7")]
    history_last: u64,
    #[prost(bytes = "vec", tag = "8")]
    history_hash: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    members: Vec<u8>,
}

impl SnapshotHeader {
    fn encode(&self) -> Vec<u8> {
        HeaderRecord {
            cluster: self.cluster.clone(),
            index: self.mark.position.index,
            term: self.mark.position.term,
            now_ms: self.mark.now_ms,
            conf_state: self
                .conf_state
                .write_to_bytes()
                .expect("a configuration has no required fields that could be missing"),
            digest: self.digest.to_vec(),
            history_last: self.history.last,
            history_hash: self.history.hash.to_vec(),
            members: self.members.encode(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = HeaderRecord::decode(bytes).map_err(|error| error.to_string())?;
        let mut conf_state = ConfState::default();
        conf_state
            .merge_from_bytes(&record.conf_state)
            .map_err(|error| error.to_string())?;
        let hash = |bytes: Vec<u8>| {
            <[u8; 32]>::try_from(bytes).map_err(|_| "a hash has the wrong length".to_owned())
        };
        Ok(SnapshotHeader {
            cluster: record.cluster,
            mark: Mark {
                position: LogPosition {
                    index: record.index,
                    term: record.term,
                },
                now_ms: record.now_ms,
            },
            conf_state,
            members: Members::decode(&record.members)?,
            digest: hash(record.digest)?,
            history: HistoryTail {
                last: record.history_last,
                hash: hash(record.history_hash)?,
            },
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfferRecord {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
    #[prost(uint64, tag = "3")]
    length: u64,
    #[prost(bytes = "vec", tag = "4")]
    checksum: Vec<u8>,
}

impl SnapshotOffer {
    /// Bytes for the data field of a Raft snapshot.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        OfferRecord {
            index: self.position.index,
            term: self.position.term,
            length: self.length,
            checksum: self.checksum.to_vec(),
        }
        .encode_to_vec()
    }

    /// Reads what [`SnapshotOffer::encode`] wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let record = OfferRecord::decode(bytes).ok()?;
        Some(SnapshotOffer {
            position: LogPosition {
                index: record.index,
                term: record.term,
            },
            length: record.length,
            checksum: record.checksum.try_into().ok()?,
        })
    }
}

impl SnapshotFile {
    /// What to announce to a peer.
    #[must_use]
    pub fn offer(&self) -> SnapshotOffer {
        SnapshotOffer {
            position: self.header.mark.position,
            length: self.length,
            checksum: self.checksum,
        }
    }
}

/// The directory of a member's own verified snapshot files.
#[derive(Clone, Debug)]
pub struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    /// Makes the directory if needed.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn open(directory: PathBuf) -> Result<Self, SnapshotError> {
        disk::make_dir(&directory).map_err(SnapshotError::Disk)?;
        Ok(Shelf { directory })
    }

    fn path(&self, position: LogPosition) -> PathBuf {
        self.directory.join(format!(
            "snap-{:020}-{:010}.{SUFFIX}",
            position.index, position.term
        ))
    }

    /// Writes, verifies and shelves a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError`]; nothing under a final name is left behind.
    pub fn write(
        &self,
        header: SnapshotHeader,
        records: impl Iterator<Item = Record>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let path = self.path(header.mark.position);
        let temporary = path.with_extension("tmp");
        let written = write_file(&temporary, &header, records);
        written
            .map_err(disk::at("write", &temporary))
            .map_err(SnapshotError::Disk)?;
        // Read back through the file system: this file is about to replace part of the log.
        let (header, length, checksum) = verify(&temporary)?;
        self.place(&temporary, &path)?;
        Ok(SnapshotFile {
            path,
            length,
            checksum,
            header,
        })
    }

    /// Shelves a file that was fetched from a peer, after verifying it.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn adopt(
        &self,
        fetched: &Path,
        offer: &SnapshotOffer,
    ) -> Result<SnapshotFile, SnapshotError> {
        let (header, length, checksum) = verify(fetched)?;
        if checksum != offer.checksum || header.mark.position != offer.position {
            return Err(damaged(fetched, "it is not the file that was announced"));
        }
        let path = self.path(header.mark.position);
        self.place(fetched, &path)?;
        Ok(SnapshotFile {
            path,
            length,
            checksum,
            header,
        })
    }

    fn place(&self, from: &Path, to: &Path) -> Result<(), SnapshotError> {
        fs::rename(from, to)
            .map_err(disk::at("rename into place", to))
            .and_then(|()| disk::sync_dir(&self.directory))
            .map_err(SnapshotError::Disk)
    }

    /// Newest file that verifies; damaged ones are passed over and reported.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`] if the directory cannot be listed.
    pub fn newest(&self) -> Result<Option<SnapshotFile>, SnapshotError> {
        for path in self.list()?.into_iter().rev() {
            match verify(&path) {
                Ok((header, length, checksum)) => {
                    return Ok(Some(SnapshotFile {
                        path,
                        length,
                        checksum,
                        header,
                    }));
                }
                Err(error) => {
                    tracing::error!(
                        path = %path.display(),
                        error = %oast_daemon::telemetry::chain(&error),
                        "A snapshot file is damaged and is passed over."
                    );
                }
            }
        }
        Ok(None)
    }

    /// Removes files older than the newest few, and unfinished ones.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn sweep(&self) -> Result<(), SnapshotError> {
        let mut files = self.list()?;
        files.truncate(files.len().saturating_sub(1 + KEEP_OLDER));
        for path in files {
            disk::remove(&path).map_err(SnapshotError::Disk)?;
        }
        Ok(())
    }

    /// Bytes of a shelved file, for a peer. `None` if it is no longer here.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn read(
        &self,
        offer: &SnapshotOffer,
        offset: u64,
        max: usize,
    ) -> Result<Option<Vec<u8>>, SnapshotError> {
        let path = self.path(offer.position);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotError::Disk(disk::at("open", &path)(source))),
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(max as u64).read_to_end(&mut bytes))
            .map_err(disk::at("read", &path))
            .map_err(SnapshotError::Disk)?;
        Ok(Some(bytes))
    }

    /// Final names, oldest first: the numbers in them are padded.
    fn list(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        let listing = fs::read_dir(&self.directory)
            .map_err(disk::at("list", &self.directory))
            .map_err(SnapshotError::Disk)?;
        let mut files: Vec<PathBuf> = listing
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == SUFFIX)
            })
            .collect();
        files.sort();
        Ok(files)
    }
}

/// Reads the records of a verified file.
#[derive(Debug)]
pub struct Records {
    reader: BufReader<File>,
    path: PathBuf,
    done: bool,
}

/// Opens a verified file for its records.
///
/// # Errors
/// [`SnapshotError`].
pub fn records(file: &SnapshotFile) -> Result<Records, SnapshotError> {
    let open = File::open(&file.path)
        .map_err(disk::at("open", &file.path))
        .map_err(SnapshotError::Disk)?;
    let mut reader = BufReader::with_capacity(BUFFER, open);
    read_header(&mut reader).map_err(|problem| damaged(&file.path, problem))?;
    Ok(Records {
        reader,
        path: file.path.clone(),
        done: false,
    })
}

impl Iterator for Records {
    type Item = Result<Record, SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match read_record(&mut self.reader) {
            Ok(Some(record)) => Some(Ok(record)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(problem) => {
                self.done = true;
                Some(Err(damaged(&self.path, problem)))
            }
        }
    }
}

fn damaged(path: &Path, problem: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

/// Hashes what passes through it.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    count: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Hashing {
            inner,
            hasher: blake3::Hasher::new(),
            count: 0,
        }
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

fn write_file(
    path: &Path,
    header: &SnapshotHeader,
    records: impl Iterator<Item = Record>,
) -> io::Result<()> {
    let too_large = |_| io::Error::new(io::ErrorKind::InvalidInput, "a record is too large");
    let file = BufWriter::with_capacity(BUFFER, File::create(path)?);
    let mut out = Hashing::new(file);
    let header = header.encode();
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    out.write_all(
        &u32::try_from(header.len())
            .map_err(too_large)?
            .to_le_bytes(),
    )?;
    out.write_all(&header)?;
    let mut count: u64 = 0;
    for (key, value) in records {
        for field in [&key, &value] {
            out.write_all(&u32::try_from(field.len()).map_err(too_large)?.to_le_bytes())?;
            out.write_all(field)?;
        }
        count += 1;
    }
    out.write_all(&END_OF_RECORDS.to_le_bytes())?;
    out.write_all(&count.to_le_bytes())?;
    let checksum = out.hasher.finalize();
    let mut file = out.inner;
    file.write_all(checksum.as_bytes())?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

fn number(reader: &mut impl Read) -> Result<u32, String> {
    let mut bytes = [0; 4];
    reader
        .read_exact(&mut bytes)
        .map_err(|_| "it ends too early".to_owned())?;
    Ok(u32::from_le_bytes(bytes))
}

fn field(reader: &mut impl Read, length: u32, limit: u32) -> Result<Vec<u8>, String> {
    if length > limit {
        return Err(format!("a field claims {length} bytes"));
    }
    // Grown while reading, so that a damaged length does not allocate a quarter gigabyte.
    let mut bytes = Vec::new();
    let read = reader.take(u64::from(length)).read_to_end(&mut bytes);
    match read {
        Ok(read) if read == length as usize => Ok(bytes),
        _ => Err("it ends too early".to_owned()),
    }
}

fn read_header(reader: &mut impl Read) -> Result<SnapshotHeader, String> {
    let mut magic = [0; 8];
    reader
        .read_exact(&mut magic)
        .map_err(|_| "it ends too early".to_owned())?;
    if &magic != MAGIC {
        return Err("it is not a snapshot file".to_owned());
    }
    let format = number(reader)?;
    if format != FORMAT {
        return Err(format!(
            "it has format {format}, this binary reads {FORMAT}"
        ));
    }
    let length = number(reader)?;
    SnapshotHeader::decode(&field(reader, length, MAX_HEADER)?)
}

fn read_record(reader: &mut impl Read) -> Result<Option<Record>, String> {
    let length = number(reader)?;
    if length == END_OF_RECORDS {
        return Ok(None);
    }
    let key = field(reader, length, MAX_FIELD)?;
    let length = number(reader)?;
    Ok(Some((key, field(reader, length, MAX_FIELD)?)))
}

/// Reads a whole file and checks structure, count, length and checksum.
fn verify(path: &Path) -> Result<(SnapshotHeader, u64, [u8; 32]), SnapshotError> {
    let file = File::open(path)
        .map_err(disk::at("open", path))
        .map_err(SnapshotError::Disk)?;
    let length = file
        .metadata()
        .map_err(disk::at("look at", path))
        .map_err(SnapshotError::Disk)?
        .len();
    let mut reader = Hashing::new(BufReader::with_capacity(BUFFER, file));
    let wrong = |problem: String| damaged(path, problem);
    let header = read_header(&mut reader).map_err(wrong)?;
    let mut count: u64 = 0;
    while read_record(&mut reader).map_err(wrong)?.is_some() {
        count += 1;
    }
    let mut claimed = [0; 8];
    reader
        .read_exact(&mut claimed)
        .map_err(|_| damaged(path, "it ends too early"))?;
    if u64::from_le_bytes(claimed) != count {
        return Err(damaged(path, "records are missing"));
    }
    let expected = *reader.hasher.finalize().as_bytes();
    if reader.count + CHECKSUM_LEN != length {
        return Err(damaged(path, "its length does not fit its content"));
    }
    let mut checksum = [0; 32];
    reader
        .read_exact(&mut checksum)
        .map_err(|_| damaged(path, "it ends too early"))?;
    if checksum != expected {
        return Err(damaged(path, "its checksum does not match its content"));
    }
    Ok((header, length, checksum))
}
