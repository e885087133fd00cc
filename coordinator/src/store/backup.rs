//! Backup files: everything that a farm's ledger is, live state and history, in one stream.
//!
//! What `oast operator snapshot save` writes. A raft snapshot file leaves the history out, because
//! a member that needs one can ask its peers; a backup must do without any.
//!
//! ```text
//! magic "OASTFARM" | u32 format | u32 header length | header (protobuf)
//! { u32 length | key | u32 length | value }*        live records in key order
//! u32 0xffff_ffff | u64 count
//! { u32 length | history record }*                  from the first one
//! u32 0xffff_ffff | u64 count
//! 32 bytes blake3 over everything before
//! ```
//!
//! Written to and read from any stream, without going back: the checksum stands at the end, so a
//! reader that acts on what it reads must have read everything once before.

use std::io::{self, Read, Write};

use prost::Message as _;

use super::framing::{
    END, Hashing, cut, field, number, read_count, read_field, read_record, write_field,
    write_number, write_record,
};
use super::log::LogPosition;
use super::state::{HistoryTail, Mark, Record};

const MAGIC: &[u8; 8] = b"OASTFARM";
/// Format written, and the highest one read.
pub const FORMAT: u32 = 1;
/// A header larger than this is damage.
const MAX_HEADER: u32 = 1 << 20;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupHeader {
    /// The farm's name.
    pub farm: String,
    /// Id of the cluster that it was taken from.
    pub cluster: String,
    /// How far the log was applied.
    pub mark: Mark,
    /// Number of the last command.
    pub seq: u64,
    /// Digest of the live state.
    pub digest: [u8; 32],
    /// End of the history that belongs to the live state.
    pub history: HistoryTail,
    /// The cluster version in force.
    pub cluster_version: u32,
    /// When it was made, milliseconds since the epoch, by the clock of the member that made it.
    pub made_at_ms: u64,
    /// Version of the binary that made it.
    pub made_by: String,
    /// The member that made it.
    pub member: u64,
    /// Voting members at the time.
    pub voters: Vec<u64>,
}

/// Why a stream is no good backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It does not begin as one.
    #[error("it is no snapshot that `oast operator snapshot save` made")]
    NoBackup,
    /// A newer binary wrote it.
    #[error("it has format {format}, this binary reads up to {FORMAT}: use a newer `oast`")]
    Newer {
        /// Format found.
        format: u32,
    },
    /// The content is damaged or incomplete.
    #[error("it is damaged: {0}; take another one")]
    Damaged(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct HeaderRecord {
    #[prost(string, tag = "1")]
    farm: String,
    #[prost(string, tag = "2")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(uint64, tag = "4")]
    term: u64,
    #[prost(uint64, tag = "5")]
    now_ms: u64,
    #[prost(uint64, tag = "6")]
    seq: u64,
    #[prost(bytes = "vec", tag = "7")]
    digest: Vec<u8>,
    #[prost(uint32, tag = "8")]
    cluster_version: u32,
    #[prost(uint64, tag = "9")]
    made_at_ms: u64,
    #[prost(string, tag = "10")]
    made_by: String,
    #[prost(uint64, tag = "11")]
    member: u64,
    #[prost(uint64, repeated, tag = "12")]
    voters: Vec<u64>,
    #[prost(uint64, tag = "13")]
    history_last: u64,
    #[prost(bytes = "vec", tag = "14")]
    history_hash: Vec<u8>,
}

impl BackupHeader {
    fn encode(&self) -> Vec<u8> {
        HeaderRecord {
            farm: self.farm.clone(),
            cluster: self.cluster.clone(),
            index: self.mark.position.index,
            term: self.mark.position.term,
            now_ms: self.mark.now_ms,
            seq: self.seq,
            digest: self.digest.to_vec(),
            cluster_version: self.cluster_version,
            made_at_ms: self.made_at_ms,
            made_by: self.made_by.clone(),
            member: self.member,
            voters: self.voters.clone(),
            history_last: self.history.last,
            history_hash: self.history.hash.to_vec(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = HeaderRecord::decode(bytes).map_err(|error| error.to_string())?;
        let hash = |bytes: Vec<u8>| {
            let hash: Result<[u8; 32], _> = bytes.try_into();
            hash.map_err(|_| "a hash in its header has the wrong length".to_owned())
        };
        Ok(BackupHeader {
            farm: record.farm,
            cluster: record.cluster,
            mark: Mark {
                position: LogPosition {
                    index: record.index,
                    term: record.term,
                },
                now_ms: record.now_ms,
            },
            seq: record.seq,
            digest: hash(record.digest)?,
            history: HistoryTail {
                last: record.history_last,
                hash: hash(record.history_hash)?,
            },
            cluster_version: record.cluster_version,
            made_at_ms: record.made_at_ms,
            made_by: record.made_by,
            member: record.member,
            voters: record.voters,
        })
    }
}

/// Writes a backup piece by piece: records, then history, then the end.
pub struct BackupWriter<W> {
    out: Hashing<W>,
    count: u64,
}

impl<W> std::fmt::Debug for BackupWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupWriter").finish_non_exhaustive()
    }
}

impl<W: Write> BackupWriter<W> {
    /// Writes the header and all live records.
    ///
    /// # Errors
    /// The stream's.
    pub fn begin(
        out: W,
        header: &BackupHeader,
        records: impl Iterator<Item = Record>,
    ) -> io::Result<Self> {
        let mut out = Hashing::new(out);
        let header = header.encode();
        out.write_all(MAGIC)?;
        out.write_all(&FORMAT.to_le_bytes())?;
        write_number(&mut out, header.len())?;
        out.write_all(&header)?;
        let mut count = 0;
        for record in records {
            write_record(&mut out, &record)?;
            count += 1;
        }
        let mut writer = BackupWriter { out, count };
        writer.end()?;
        Ok(writer)
    }

    /// Writes the next record of the history.
    ///
    /// # Errors
    /// The stream's.
    pub fn history(&mut self, record: &[u8]) -> io::Result<()> {
        self.count += 1;
        write_field(&mut self.out, record)
    }

    /// Writes the end. Returns the stream, which the caller flushes or syncs.
    ///
    /// # Errors
    /// The stream's.
    pub fn finish(mut self) -> io::Result<W> {
        self.end()?;
        let (mut out, checksum) = self.out.finish();
        out.write_all(&checksum)?;
        Ok(out)
    }

    fn end(&mut self) -> io::Result<()> {
        let count = std::mem::take(&mut self.count);
        self.out.write_all(&END.to_le_bytes())?;
        self.out.write_all(&count.to_le_bytes())
    }
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Records,
    History,
    Over,
}

/// Reads a backup piece by piece.
pub struct BackupReader<R> {
    input: Hashing<R>,
    header: BackupHeader,
    part: Part,
    count: u64,
}

impl<R> std::fmt::Debug for BackupReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupReader")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

impl<R: Read> BackupReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn new(input: R) -> Result<Self, BackupError> {
        let mut input = Hashing::new(input);
        let mut magic = [0; 8];
        input
            .read_exact(&mut magic)
            .map_err(|_| BackupError::NoBackup)?;
        if &magic != MAGIC {
            return Err(BackupError::NoBackup);
        }
        let format = number(&mut input).map_err(BackupError::Damaged)?;
        if format > FORMAT {
            return Err(BackupError::Newer { format });
        }
        let header = number(&mut input)
            .and_then(|length| field(&mut input, length, MAX_HEADER))
            .and_then(|bytes| BackupHeader::decode(&bytes))
            .map_err(BackupError::Damaged)?;
        Ok(BackupReader {
            input,
            header,
            part: Part::Records,
            count: 0,
        })
    }

    /// What it says about itself.
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// The next live record; `None` when all were read.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn record(&mut self) -> Result<Option<Record>, BackupError> {
        if self.part != Part::Records {
            return Ok(None);
        }
        let record = read_record(&mut self.input).map_err(BackupError::Damaged)?;
        self.passed(record.is_some(), Part::History)?;
        Ok(record)
    }

    /// The next record of the history; `None` when all were read. Records that were not read yet
    /// are passed over.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn history(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        while self.record()?.is_some() {}
        if self.part != Part::History {
            return Ok(None);
        }
        let record = read_field(&mut self.input).map_err(BackupError::Damaged)?;
        self.passed(record.is_some(), Part::Over)?;
        Ok(record)
    }

    fn passed(&mut self, more: bool, next: Part) -> Result<(), BackupError> {
        if more {
            self.count += 1;
            return Ok(());
        }
        self.part = next;
        read_count(&mut self.input, std::mem::take(&mut self.count)).map_err(BackupError::Damaged)
    }

    /// Reads to the end and compares the checksum, which it returns with the length.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn finish(mut self) -> Result<([u8; 32], u64), BackupError> {
        while self.history()?.is_some() {}
        let (length, expected) = (self.input.count(), self.input.hash());
        let (mut input, _) = self.input.finish();
        let mut checksum = [0; 32];
        input
            .read_exact(&mut checksum)
            .map_err(|_| BackupError::Damaged(cut()))?;
        if checksum != expected {
            let problem = "its checksum does not match its content";
            return Err(BackupError::Damaged(problem.to_owned()));
        }
        match input.read(&mut [0]) {
            Ok(0) => Ok((checksum, length + checksum.len() as u64)),
            Ok(_) => Err(BackupError::Damaged("something follows its end".to_owned())),
            Err(error) => Err(BackupError::Damaged(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BackupHeader {
        BackupHeader {
            farm: "demo".to_owned(),
            cluster: "demo".to_owned(),
            mark: Mark {
                position: LogPosition { index: 7, term: 2 },
                now_ms: 99,
            },
            seq: 12,
            digest: [4; 32],
            history: HistoryTail::default().then(b"one"),
            cluster_version: 2,
            made_at_ms: 5,
            made_by: "0.1.0".to_owned(),
            member: 1,
            voters: vec![1, 2, 3],
        }
    }

    fn sample() -> Vec<u8> {
        let records = vec![(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), Vec::new())];
        let mut writer = BackupWriter::begin(Vec::new(), &header(), records.into_iter()).unwrap();
        for record in [&b"one"[..], b"", b"three"] {
            writer.history(record).unwrap();
        }
        writer.finish().unwrap()
    }

    fn whole(bytes: &[u8]) -> Result<([u8; 32], u64), BackupError> {
        BackupReader::new(bytes)?.finish()
    }

    #[test]
    fn a_backup_reads_back_as_it_was_written() {
        let bytes = sample();
        let mut reader = BackupReader::new(&bytes[..]).unwrap();
        assert_eq!(reader.header(), &header());
        assert_eq!(reader.record().unwrap().unwrap().0, b"a");
        // What is not wanted is passed over.
        assert_eq!(reader.history().unwrap().unwrap(), b"one");
        assert_eq!(reader.record().unwrap(), None);
        assert_eq!(reader.history().unwrap().unwrap(), b"");
        let (_, length) = reader.finish().unwrap();
        assert_eq!(length, bytes.len() as u64);
    }

    #[test]
    fn a_backup_with_any_damaged_byte_or_end_is_refused() {
        let good = sample();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(whole(&bad).is_err(), "byte {place}");
            assert!(whole(&good[..place]).is_err(), "cut to {place}");
        }
        let longer = [&good[..], b"x"].concat();
        assert!(whole(&longer).is_err());
    }

    #[test]
    fn a_newer_format_says_what_to_use() {
        let mut bytes = sample();
        bytes[8] = 2;
        let error = whole(&bytes).unwrap_err();
        assert_eq!(error, BackupError::Newer { format: 2 });
        assert!(error.to_string().contains("use a newer `oast`"), "{error}");
    }
}
