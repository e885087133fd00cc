//! Log segments: what the steps of one attempt printed, append-only, one file per attempt.
//!
//! The worker that holds the attempt writes; members read and follow while it grows. A later attempt has a later token and
//! so another file: a writer that died, or one that lives on without its lease, can never damage what its successor writes.
//! Its own last record may be torn; a reader stops before it and knows that nothing follows.
//!
//! ```text
//! record: length of payload u32 LE | checksum u32 LE | time ms u64 LE | step u16 LE | stream u8 | zero u8 | payload
//! ```
//!
//! Offsets are file offsets of record starts; 0 is the beginning and every offset that a reader returns is valid for ever.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_model::digest::Digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::store::{ArtifactStore, LOGS, StoreError, sync_folder};

const HEADER_BYTES: usize = 20;
/// A longer payload is split into several records.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// A segment holds no more than this; then one record says that the rest was dropped. A step that prints without end must
/// not fill the store.
pub const MAX_SEGMENT_BYTES: u64 = 256 << 20;
/// A follower looks again after this even when no event came: events are not delivered for changes made on another host.
const RECHECK: Duration = Duration::from_millis(250);

/// Whose log: the attempt (lease token) of a task of a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentKey {
    pub run: String,
    pub task: String,
    /// The attempt's token as a decimal number, so that attempts sort.
    pub attempt: u64,
}

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
    /// The engine itself: what it does, what it decided.
    Engine,
    /// The attempt is over; nothing follows. Written by [`LogWriter::finish`].
    End,
}

/// One record: usually one line without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Unix milliseconds by the writer's clock.
    pub time_ms: u64,
    /// Index of the step within the task.
    pub step: u16,
    pub stream: LogStream,
    pub payload: Vec<u8>,
}

impl LogRecord {
    /// How far the next record's offset is from this one's.
    pub fn stored_bytes(&self) -> u64 {
        (HEADER_BYTES + self.payload.len()) as u64
    }
}

/// What a reader found.
#[derive(Debug, Clone, Default)]
pub struct ReadLogs {
    pub records: Vec<LogRecord>,
    /// Where to read on.
    pub next_offset: u64,
    /// The writer said that nothing follows, and it was read.
    pub ended: bool,
}

/// What went wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{part:?} cannot name a log; use letters, digits, '.', '_' and '-'")]
    Name { part: String },
    #[error("the log {path} exists; an attempt writes its log once")]
    Exists { path: Utf8PathBuf },
    #[error(
        "the log {path} is damaged at byte {offset}; read on from a later offset or accept the gap"
    )]
    Damaged { path: Utf8PathBuf, offset: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LogStream {
    fn code(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::Engine => 3,
            Self::End => 4,
        }
    }

    fn of(code: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::Engine, Self::End]
            .into_iter()
            .find(|s| s.code() == code)
    }
}

impl ArtifactStore {
    /// Starts the log of an attempt.
    pub fn write_log(&self, key: &SegmentKey) -> Result<LogWriter, LogError> {
        let path = self.log_path(key)?;
        let folder = path.parent().expect("a segment lies in its task's folder");
        fs::create_dir_all(folder).map_err(|err| StoreError::io("make the folder", folder, err))?;
        let file = File::options()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(|err| {
                if err.kind() == io::ErrorKind::AlreadyExists {
                    LogError::Exists { path: path.clone() }
                } else {
                    StoreError::io("write", &path, err).into()
                }
            })?;
        for folder in folder.ancestors().take(3) {
            sync_folder(folder)?;
        }
        Ok(LogWriter {
            file,
            path,
            written: 0,
            durable: 0,
            dropped: 0,
        })
    }

    /// Opens the log of an attempt for reading; it may not exist yet.
    pub fn read_log(&self, key: &SegmentKey) -> Result<LogReader, LogError> {
        Ok(LogReader {
            path: self.log_path(key)?,
            watch: None,
        })
    }

    /// The attempts of a task that have a log, ascending.
    pub fn log_attempts(&self, run: &str, task: &str) -> Result<Vec<SegmentKey>, LogError> {
        let probe = SegmentKey {
            run: run.to_owned(),
            task: task.to_owned(),
            attempt: 0,
        };
        let path = self.log_path(&probe)?;
        let folder = path.parent().expect("a segment lies in its task's folder");
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => return Err(StoreError::io("list", folder, err).into()),
        };
        let mut attempts: Vec<u64> = entries
            .filter_map(|entry| {
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".log")?
                    .parse()
                    .ok()
            })
            .collect();
        attempts.sort_unstable();
        Ok(attempts
            .into_iter()
            .map(|attempt| SegmentKey {
                attempt,
                ..probe.clone()
            })
            .collect())
    }

    fn log_path(&self, key: &SegmentKey) -> Result<Utf8PathBuf, LogError> {
        for part in [&key.run, &key.task] {
            let plain = part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
            if !plain || part.is_empty() || part.starts_with('.') || part.len() > 200 {
                return Err(LogError::Name { part: part.clone() });
            }
        }
        let name = format!("{:020}.log", key.attempt);
        Ok(self
            .root()
            .join(LOGS)
            .join(&key.run)
            .join(&key.task)
            .join(name))
    }
}

/// Appends to the log of one attempt. Not cloneable: one writer per segment.
#[derive(Debug)]
pub struct LogWriter {
    file: File,
    path: Utf8PathBuf,
    written: u64,
    durable: u64,
    dropped: u64,
}

impl LogWriter {
    /// Appends one record and returns the offset behind it. Readers see it at once; it is durable after [`Self::sync`].
    ///
    /// When the segment is full the record is dropped and counted; the first drop leaves a note in the log.
    pub fn append(
        &mut self,
        time_ms: u64,
        step: u16,
        stream: LogStream,
        payload: &[u8],
    ) -> Result<u64, LogError> {
        if self.written + payload.len() as u64 > MAX_SEGMENT_BYTES {
            self.dropped += 1;
            if self.dropped == 1 {
                let note = format!(
                    "the log is full at {MAX_SEGMENT_BYTES} bytes; what follows was dropped"
                );
                self.record(time_ms, step, LogStream::Engine, note.as_bytes())?;
            }
            return Ok(self.written);
        }
        if payload.is_empty() {
            self.record(time_ms, step, stream, payload)?;
        }
        for part in payload.chunks(MAX_PAYLOAD_BYTES) {
            self.record(time_ms, step, stream, part)?;
        }
        Ok(self.written)
    }

    fn record(
        &mut self,
        time_ms: u64,
        step: u16,
        stream: LogStream,
        payload: &[u8],
    ) -> Result<(), LogError> {
        let mut record = Vec::with_capacity(HEADER_BYTES + payload.len());
        let len = u32::try_from(payload.len()).expect("split at 64 KiB");
        record.extend_from_slice(&len.to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&time_ms.to_le_bytes());
        record.extend_from_slice(&step.to_le_bytes());
        record.extend_from_slice(&[stream.code(), 0]);
        record.extend_from_slice(payload);
        let sum = checksum(&record[8..]);
        record[4..8].copy_from_slice(&sum.to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(|err| StoreError::io("write", &self.path, err))?;
        self.written += record.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable and returns the offset up to which it is.
    pub fn sync(&mut self) -> Result<u64, LogError> {
        if self.durable < self.written {
            self.file
                .sync_data()
                .map_err(|err| StoreError::io("sync", &self.path, err))?;
            self.durable = self.written;
        }
        Ok(self.durable)
    }

    /// The offset up to which the log survives a power cut.
    pub fn durable_to(&self) -> u64 {
        self.durable
    }

    /// How many records were dropped because the segment was full.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Ends the log: followers stop. Returns the durable length.
    pub fn finish(mut self, time_ms: u64) -> Result<u64, LogError> {
        self.record(time_ms, 0, LogStream::End, b"")?;
        self.sync()
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let digest = Digest::of(bytes);
    let first: [u8; 4] = digest.as_bytes()[..4]
        .try_into()
        .expect("a digest has 32 bytes");
    u32::from_le_bytes(first)
}

/// Reads the log of one attempt from any offset.
#[derive(Debug)]
pub struct LogReader {
    path: Utf8PathBuf,
    watch: Option<std::os::fd::OwnedFd>,
}

impl LogReader {
    /// Reads whole records from `offset`, at most about `limit` bytes of them. A log that does not exist yet is empty.
    pub fn read(&self, offset: u64, limit: usize) -> Result<ReadLogs, LogError> {
        let mut found = ReadLogs {
            next_offset: offset,
            ..ReadLogs::default()
        };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(err) => return Err(StoreError::io("open", &self.path, err).into()),
        };
        let mut buffer = vec![0; limit.max(HEADER_BYTES + MAX_PAYLOAD_BYTES)];
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(StoreError::io("read", &self.path, err).into()),
            }
        }
        let at_end = filled < buffer.len();
        let mut rest = &buffer[..filled];
        while let Some((header, body)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let damaged = LogError::Damaged {
                path: self.path.clone(),
                offset: found.next_offset,
            };
            if len > MAX_PAYLOAD_BYTES {
                return Err(damaged);
            }
            // Torn, still being written, or beyond `limit`.
            let Some(payload) = body.get(..len) else {
                break;
            };
            let sum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            let size = HEADER_BYTES + len;
            let stream = LogStream::of(header[18]);
            let (true, Some(stream)) = (checksum(&rest[8..size]) == sum, stream) else {
                // After a power cut the length may have reached the disk before the last record did.
                if at_end && size == rest.len() || rest.iter().all(|byte| *byte == 0) {
                    break;
                }
                return Err(damaged);
            };
            if stream == LogStream::End {
                found.ended = true;
            } else {
                found.records.push(LogRecord {
                    time_ms: u64::from_le_bytes(header[8..16].try_into().expect("eight bytes")),
                    step: u16::from_le_bytes([header[16], header[17]]),
                    stream,
                    payload: payload.to_vec(),
                });
            }
            found.next_offset += size as u64;
            rest = &rest[size..];
        }
        Ok(found)
    }

    /// Waits until the log may hold more than `offset` bytes or `timeout` is over. A wake-up is a hint, not a promise.
    pub fn wait(&mut self, offset: u64, timeout: Duration) -> Result<(), LogError> {
        if self.watch.is_none() {
            self.watch = watch(&self.path);
        }
        // The watch stands before the length is read, so growth in between is not lost.
        let len = fs::metadata(&self.path).map_or(0, |metadata| metadata.len());
        if len > offset {
            return Ok(());
        }
        let timeout = timeout.min(RECHECK);
        let until = Timespec {
            tv_sec: 0,
            tv_nsec: timeout.as_nanos().try_into().unwrap_or(i64::MAX),
        };
        match &self.watch {
            Some(watch) => {
                let mut fds = [PollFd::new(watch, PollFlags::IN)];
                if poll(&mut fds, Some(&until)).is_ok_and(|ready| ready > 0) {
                    let mut events = [std::mem::MaybeUninit::uninit(); 4096];
                    // Only the wake-up matters, not what it says.
                    let _ = rustix::io::read(watch, &mut events);
                }
            }
            None => {
                let _ = poll(&mut [], Some(&until));
            }
        }
        Ok(())
    }
}

/// Watches the file, or nothing while there is none: then the follower looks again by itself.
fn watch(path: &Utf8Path) -> Option<std::os::fd::OwnedFd> {
    let inotify =
        inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&inotify, path.as_std_path(), inotify::WatchFlags::MODIFY).ok()?;
    Some(inotify)
}

#[cfg(test)]
mod tests;
