//! `oast operator snapshot inspect`: reads a backup from end to end and proves that it is whole.
//!
//! Whole means: the checksum holds; the live records make a ledger with the digest that the file
//! names; the history is the one whose end the file names, pruned records included.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use oast_model::codec;
use oast_model::ledger::{VERSION, table_name};

use crate::consensus::chain;
use crate::consensus::ledger::{Archived, LedgerMachine};
use crate::consensus::machine::{Machine as _, View as _};
use crate::store::backup::{BackupError, BackupHeader, BackupReader};
use crate::store::state::{HistoryTail, is_tombstone};

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// What a good backup holds.
#[derive(Clone, Debug)]
pub struct Contents {
    /// What it says about itself.
    pub header: BackupHeader,
    /// Live records by table, in words.
    pub tables: BTreeMap<&'static str, u64>,
    /// End of the history.
    pub history: HistoryTail,
    /// Length in bytes.
    pub length: u64,
    /// Checksum at its end.
    pub checksum: [u8; 32],
}

/// A file that is no good backup.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file cannot be read.
    #[error("open the snapshot {}", path.display())]
    Open {
        /// Path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The stream is damaged.
    #[error("use the snapshot {}", path.display())]
    Backup {
        /// Path.
        path: PathBuf,
        /// Cause.
        #[source]
        source: BackupError,
    },
    /// Whole, but its content is not what it says.
    #[error("use the snapshot {}: {problem}; take another one", path.display())]
    Content {
        /// Path.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// A farm that newer binaries run.
    #[error(
        "use the snapshot {}: its cluster version is {version}, this binary supports up to {VERSION}; use a newer `oast`",
        path.display()
    )]
    NewerVersion {
        /// Path.
        path: PathBuf,
        /// Cluster version in it.
        version: u32,
    },
}

pub(super) fn open(path: &Path) -> Result<BackupReader<BufReader<File>>, InspectError> {
    let file = File::open(path).map_err(|source| InspectError::Open {
        path: path.to_owned(),
        source,
    })?;
    BackupReader::new(BufReader::with_capacity(BUFFER, file)).map_err(at(path))
}

pub(super) fn at(path: &Path) -> impl Fn(BackupError) -> InspectError + use<> {
    let path = path.to_owned();
    move |source| InspectError::Backup {
        path: path.clone(),
        source,
    }
}

/// Reads and proves the whole file.
///
/// # Errors
/// [`InspectError`] naming what is wrong with it.
pub fn inspect(path: &Path) -> Result<Contents, InspectError> {
    read(path).map(|(contents, _)| contents)
}

/// [`inspect`], and the ledger that is in it.
pub(super) fn read(path: &Path) -> Result<(Contents, LedgerMachine), InspectError> {
    let wrong = |problem: String| InspectError::Content {
        path: path.to_owned(),
        problem,
    };
    // Nothing of it is used before all of it is known to be what was written.
    let (checksum, length) = open(path)?.finish().map_err(at(path))?;
    let mut reader = open(path)?;
    let header = reader.header().clone();
    if header.cluster_version > VERSION {
        return Err(InspectError::NewerVersion {
            path: path.to_owned(),
            version: header.cluster_version,
        });
    }
    let mut tables = BTreeMap::new();
    let mut failed = None;
    let mut records = std::iter::from_fn(|| match reader.record() {
        Ok(record) => {
            let record = record?;
            let tag = record.0.first().copied();
            *tables
                .entry(tag.and_then(table_name).unwrap_or("unknown"))
                .or_insert(0) += 1;
            Some(Ok(record))
        }
        Err(error) => {
            let problem = error.to_string();
            failed = Some(error);
            Some(Err(problem))
        }
    });
    let loaded = LedgerMachine::load(&mut records);
    if let Some(error) = failed {
        return Err(at(path)(error));
    }
    let machine = loaded.map_err(|error| wrong(chain(&error)))?;
    let ledger = machine.view();
    let farm = ledger.farm();
    if ledger.digest() != header.digest {
        return Err(wrong(
            "its records do not have the digest that it names".to_owned(),
        ));
    }
    if farm.name != header.farm || farm.seq.as_u64() != header.seq {
        return Err(wrong(
            "its description is not that of its records".to_owned(),
        ));
    }
    let mut history = HistoryTail::default();
    while let Some(record) = reader.history().map_err(at(path))? {
        if !is_tombstone(&record) {
            let _: Archived = codec::decode(&record).map_err(|error| {
                wrong(format!("record {}: {}", history.last + 1, chain(&error)))
            })?;
        }
        history = history.then(&record);
    }
    if history != header.history {
        return Err(wrong("its history is not the one that it names".to_owned()));
    }
    let contents = Contents {
        header,
        tables,
        history,
        length,
        checksum,
    };
    Ok((contents, machine))
}
