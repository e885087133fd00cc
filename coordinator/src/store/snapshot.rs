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

mod place;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::ConfState;

use super::disk::{self, DiskError};
use super::fault::point;
use super::framing::{
    CHECKSUM_LEN, END, Hashing, cut, field, number, read_count, read_record, write_number,
    write_record,
};
use super::log::LogPosition;
use super::members::Members;
use super::state::{HistoryTail, Mark, Record};
use place::{Place, Source};

const MAGIC: &[u8; 8] = b"OASTSNAP";
const FORMAT: u32 = 1;
/// A header larger than this is damage, not configuration.
const MAX_HEADER: u32 = 1 << 20;
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
    place: Place,
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
    place: Place,
}

impl Shelf {
    /// Makes the directory if needed.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn open(directory: PathBuf) -> Result<Self, SnapshotError> {
        disk::make_dir(&directory).map_err(SnapshotError::Disk)?;
        Ok(Shelf {
            place: Place::Directory(directory),
        })
    }

    /// A shelf that is lost with its process, for members whose disks are simulated.
    #[must_use]
    pub fn in_memory() -> Self {
        Shelf {
            place: Place::Memory(Default::default()),
        }
    }

    /// Keeps what came from a peer, to be [adopted](Shelf::adopt).
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn receive(&self, bytes: &[u8]) -> Result<PathBuf, SnapshotError> {
        let path = self.place.path("received.part".to_owned());
        self.place
            .write(&path, |file| file.write_all(bytes))
            .map_err(disk::at("write", &path))
            .map_err(SnapshotError::Disk)?;
        Ok(path)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn wipe(&self) -> Result<(), SnapshotError> {
        for path in self.place.list().map_err(SnapshotError::Disk)? {
            self.place.remove(&path).map_err(SnapshotError::Disk)?;
        }
        Ok(())
    }

    fn path(&self, position: LogPosition) -> PathBuf {
        self.place.path(format!(
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
        let written = self
            .place
            .write(&temporary, |file| write_file(file, &header, records));
        if let Err(error) = written {
            // Most likely the disk is full: half a file would keep it so.
            let _ = self.place.remove(&temporary);
            return Err(SnapshotError::Disk(disk::at("write", &temporary)(error)));
        }
        // Read back through the file system: this file is about to replace part of the log.
        let (header, length, checksum) = verify(&self.place, &temporary)?;
        self.put(&temporary, &path)?;
        Ok(SnapshotFile {
            place: self.place.clone(),
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
        let (header, length, checksum) = verify(&self.place, fetched)?;
        if checksum != offer.checksum || header.mark.position != offer.position {
            return Err(damaged(fetched, "it is not the file that was announced"));
        }
        let path = self.path(header.mark.position);
        self.put(fetched, &path)?;
        Ok(SnapshotFile {
            place: self.place.clone(),
            path,
            length,
            checksum,
            header,
        })
    }

    fn put(&self, from: &Path, to: &Path) -> Result<(), SnapshotError> {
        point("a snapshot file is verified");
        self.place.rename(from, to).map_err(SnapshotError::Disk)?;
        point("a snapshot file is on the shelf");
        Ok(())
    }

    /// Newest file that verifies, among those whose position `fits`; damaged ones are passed over
    /// and reported.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`] if the directory cannot be listed.
    pub fn newest(
        &self,
        fits: impl Fn(LogPosition) -> bool,
    ) -> Result<Option<SnapshotFile>, SnapshotError> {
        for (position, path) in self.list()?.into_iter().rev() {
            if !fits(position) {
                continue;
            }
            match verify(&self.place, &path) {
                Ok((header, length, checksum)) => {
                    return Ok(Some(SnapshotFile {
                        place: self.place.clone(),
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

    /// Removes what nobody needs. `ours` is the newest file that our log follows: it stays, with a
    /// few older ones. Files ahead of it were fetched and did not become current yet; the newest
    /// of them stays. Never counting those among ours is what keeps a rebuild possible after
    /// any number of interrupted installs.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn sweep(&self, ours: LogPosition) -> Result<(), SnapshotError> {
        let files = self.list()?;
        let own = files.partition_point(|(position, _)| *position <= ours);
        let (own, ahead) = files.split_at(own);
        let old = &own[..own.len().saturating_sub(1 + KEEP_OLDER)];
        let outdone = &ahead[..ahead.len().saturating_sub(1)];
        for (_, path) in old.iter().chain(outdone) {
            self.place.remove(path).map_err(SnapshotError::Disk)?;
        }
        Ok(())
    }

    /// Removes every file but `kept`, for a log that follows no other.
    ///
    /// # Errors
    /// [`SnapshotError::Disk`].
    pub fn keep_only(&self, kept: &SnapshotFile) -> Result<(), SnapshotError> {
        for (_, path) in self.list()? {
            if path != kept.path {
                self.place.remove(&path).map_err(SnapshotError::Disk)?;
            }
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
        let mut file = match self.place.open(&path) {
            Ok((file, _)) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotError::Disk(disk::at("open", &path)(source))),
        };
        let mut bytes = Vec::new();
        file.seek(offset)
            .and_then(|()| file.take(max as u64).read_to_end(&mut bytes))
            .map_err(disk::at("read", &path))
            .map_err(SnapshotError::Disk)?;
        Ok(Some(bytes))
    }

    /// Files under their final names with the positions in these, oldest first.
    fn list(&self) -> Result<Vec<(LogPosition, PathBuf)>, SnapshotError> {
        let listing = self.place.list().map_err(SnapshotError::Disk)?;
        let mut files: Vec<(LogPosition, PathBuf)> = listing
            .into_iter()
            .filter_map(|path| Some((position_in(&path)?, path)))
            .collect();
        files.sort();
        Ok(files)
    }
}

fn position_in(path: &Path) -> Option<LogPosition> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(SUFFIX)?.strip_suffix('.')?;
    let (index, term) = name.strip_prefix("snap-")?.split_once('-')?;
    Some(LogPosition {
        index: index.parse().ok()?,
        term: term.parse().ok()?,
    })
}

/// Reads the records of a verified file.
#[derive(Debug)]
pub struct Records {
    reader: Source,
    path: PathBuf,
    done: bool,
}

/// Opens a verified file for its records.
///
/// # Errors
/// [`SnapshotError`].
pub fn records(file: &SnapshotFile) -> Result<Records, SnapshotError> {
    let (mut reader, _) = file
        .place
        .open(&file.path)
        .map_err(disk::at("open", &file.path))
        .map_err(SnapshotError::Disk)?;
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

fn write_file(
    file: &mut dyn Write,
    header: &SnapshotHeader,
    records: impl Iterator<Item = Record>,
) -> io::Result<()> {
    let mut out = Hashing::new(file);
    let header = header.encode();
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT.to_le_bytes())?;
    write_number(&mut out, header.len())?;
    out.write_all(&header)?;
    let mut count: u64 = 0;
    for record in records {
        write_record(&mut out, &record)?;
        count += 1;
    }
    out.write_all(&END.to_le_bytes())?;
    out.write_all(&count.to_le_bytes())?;
    let (file, checksum) = out.finish();
    file.write_all(&checksum)
}

fn read_header(reader: &mut impl Read) -> Result<SnapshotHeader, String> {
    let mut magic = [0; 8];
    reader.read_exact(&mut magic).map_err(|_| cut())?;
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

/// Reads a whole file and checks structure, count, length and checksum.
fn verify(place: &Place, path: &Path) -> Result<(SnapshotHeader, u64, [u8; 32]), SnapshotError> {
    let (file, length) = place
        .open(path)
        .map_err(disk::at("open", path))
        .map_err(SnapshotError::Disk)?;
    let (header, checksum) = check(file, length).map_err(|problem| damaged(path, problem))?;
    Ok((header, length, checksum))
}

/// [`verify`] for a stream that should have `length` bytes.
pub(crate) fn check(input: impl Read, length: u64) -> Result<(SnapshotHeader, [u8; 32]), String> {
    let mut reader = Hashing::new(input);
    let header = read_header(&mut reader)?;
    let mut count: u64 = 0;
    while read_record(&mut reader)?.is_some() {
        count += 1;
    }
    read_count(&mut reader, count)?;
    let expected = reader.hash();
    if reader.count() + CHECKSUM_LEN != length {
        return Err("its length does not fit its content".to_owned());
    }
    let mut checksum = [0; 32];
    reader.read_exact(&mut checksum).map_err(|_| cut())?;
    if checksum != expected {
        return Err("its checksum does not match its content".to_owned());
    }
    Ok((header, checksum))
}
