//! Release files: fetched, verified against the keyring, and only then read.
//!
//! `InRelease` (clear-signed) is preferred, `Release` with `Release.gpg` is the older pair. The
//! last verified file of a suite is stored and revalidated with a conditional request; a stored
//! file is verified again each time, so a changed cache is as good as a tampered mirror: refused.
//! The caller passes the time; nothing here reads a clock.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::fetch::{Answer, FetchError, Fetcher, Validators};
use super::index::Stanzas;
use super::signature::{self, SignatureError};
use super::source::SuiteSource;

/// Longest release file that is read. Debian's largest has 230 KB.
const RELEASE_BYTES_MAX: u64 = 16 << 20;

/// How far in the future a release file may be dated before the clock counts as wrong.
const CLOCK_SKEW_SECONDS: i64 = 24 * 3600;

/// A release file that cannot be trusted or used.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("get the release file of {suite} from {url}")]
    Fetch {
        suite: String,
        url: String,
        #[source]
        source: FetchError,
    },
    #[error("{source}")]
    Signature {
        #[source]
        source: SignatureError,
    },
    #[error(
        "use {url}: it expired on {valid_until}. The mirror is stale (or the clock of this \
         machine is wrong); use a current mirror, or `Check-Valid-Until: no` for a frozen snapshot"
    )]
    Expired { url: String, valid_until: String },
    #[error("use {url}: it is dated {date}, in the future; check the clock of this machine")]
    Future { url: String, date: String },
    #[error("use {url}: it is for suite {found}, not {expected}; the mirror is not what it says")]
    OtherSuite {
        url: String,
        expected: String,
        found: String,
    },
    #[error(
        "use {url}: it lists no packages of component {component} for {architecture}. \
         It has: {available}"
    )]
    NoIndex {
        url: String,
        component: String,
        architecture: String,
        available: String,
    },
    #[error("read {url}: {problem}")]
    Malformed { url: String, problem: String },
    #[error("store the release file {path}")]
    Store {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A file that the release file vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub sha256: String,
    pub size: u64,
}

/// A verified release file.
#[derive(Clone, Debug)]
pub struct Release {
    pub source: SuiteSource,
    /// The file as it was received, signature included.
    pub signed: Vec<u8>,
    /// The detached signature, when the archive has no `InRelease`.
    pub detached: Option<Vec<u8>>,
    /// Seconds since the epoch.
    pub date: i64,
    pub by_hash: bool,
    files: BTreeMap<String, Listed>,
    components: String,
}

/// What decides whether a stored file still serves.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// Seconds since the epoch.
    pub now: i64,
    /// A file asked about less than this many seconds ago is not asked about again.
    pub max_age_seconds: i64,
}

/// One compressed index to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    pub component: String,
    /// Path below `dists/SUITE/`, as it is stored (with its suffix).
    pub path: String,
    pub stored: Listed,
    /// The uncompressed text.
    pub plain: Listed,
    pub compression: Compression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Xz,
    Gz,
    None,
}

/// Suffixes in the order of preference.
const COMPRESSIONS: &[(&str, Compression)] = &[
    (".xz", Compression::Xz),
    (".gz", Compression::Gz),
    ("", Compression::None),
];

/// Gets the verified release file of a source. An optional suite that the archive does not have
/// is `None`.
pub fn get(
    fetcher: &Fetcher,
    source: &SuiteSource,
    folder: &Utf8Path,
    freshness: Freshness,
) -> Result<Option<Release>, ReleaseError> {
    let base = format!("{}/dists/{}", source.url, source.suite);
    let stored = Stored::open(folder, &base);
    if let Some(known) = &stored.record {
        let age = freshness.now - known.asked;
        if (0..freshness.max_age_seconds).contains(&age) {
            if known.signed.is_empty() && source.optional {
                return Ok(None);
            }
            if let Ok(release) = verify(&stored, known, source, freshness.now) {
                return Ok(Some(release));
            }
        }
    }
    match refresh(fetcher, &stored, &base, freshness.now) {
        Ok(Some(record)) => verify(&stored, &record, source, freshness.now).map(Some),
        Ok(None) if source.optional => {
            tracing::info!(
                suite = source.suite,
                url = base,
                "The mirror has no such suite."
            );
            stored.keep(&Record::absent(&base, freshness.now))?;
            Ok(None)
        }
        Ok(None) => Err(ReleaseError::Fetch {
            suite: source.suite.clone(),
            url: base.clone(),
            source: FetchError::Status {
                url: format!("{base}/InRelease"),
                status: 404,
            },
        }),
        Err(error) => Err(error),
    }
}

/// A stored release file and how it was got.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Record {
    url: String,
    /// When the archive was last asked, in seconds since the epoch.
    asked: i64,
    validators: Validators,
    /// File names in the folder; empty when the archive does not have the suite.
    signed: String,
    detached: Option<String>,
}

impl Record {
    /// Remembers that there was nothing, so that it is not asked for with every bake.
    fn absent(url: &str, now: i64) -> Self {
        Self {
            url: url.to_owned(),
            asked: now,
            validators: Validators::default(),
            signed: String::new(),
            detached: None,
        }
    }
}

struct Stored {
    folder: Utf8PathBuf,
    stem: String,
    record: Option<Record>,
}

impl Stored {
    fn open(folder: &Utf8Path, url: &str) -> Self {
        let stem = blake3::hash(url.as_bytes()).to_hex()[..32].to_owned();
        let record = std::fs::read(folder.join(format!("{stem}.json")))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok())
            .filter(|record| record.url == url);
        Self {
            folder: folder.to_owned(),
            stem,
            record,
        }
    }

    /// Writes a file so that a reader sees the old or the new one, never a half.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ReleaseError> {
        let path = self.folder.join(name);
        let store = |source| ReleaseError::Store {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&self.folder).map_err(store)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.folder).map_err(store)?;
        std::io::Write::write_all(&mut file, bytes).map_err(store)?;
        file.persist(&path).map_err(|error| store(error.error))?;
        Ok(())
    }

    fn keep(&self, record: &Record) -> Result<(), ReleaseError> {
        let bytes = serde_json::to_vec(record).expect("a record of strings and numbers is JSON");
        self.write(&format!("{}.json", self.stem), &bytes)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ReleaseError> {
        let path = self.folder.join(name);
        std::fs::read(&path).map_err(|source| ReleaseError::Store { path, source })
    }
}

/// Asks the archive for its current release file and stores it. `None` when it has none.
fn refresh(
    fetcher: &Fetcher,
    stored: &Stored,
    base: &str,
    now: i64,
) -> Result<Option<Record>, ReleaseError> {
    let fail = |source| ReleaseError::Fetch {
        suite: base.rsplit('/').next().unwrap_or_default().to_owned(),
        url: base.to_owned(),
        source,
    };
    let known = stored
        .record
        .as_ref()
        .filter(|record| record.detached.is_none() && stored.folder.join(&record.signed).is_file());
    let url = format!("{base}/InRelease");
    match fetcher.small(
        &url,
        RELEASE_BYTES_MAX,
        known.map(|record| &record.validators),
    ) {
        Ok(Answer::NotModified) => {
            let record = known.expect("only a known file is asked for conditionally");
            let record = Record {
                asked: now,
                ..record.clone()
            };
            stored.keep(&record)?;
            Ok(Some(record))
        }
        Ok(Answer::Body {
            bytes,
            etag,
            last_modified,
        }) => {
            let signed = format!("{}.InRelease", stored.stem);
            stored.write(&signed, &bytes)?;
            let validators = Validators {
                etag,
                last_modified,
            };
            let record = Record {
                url: base.to_owned(),
                asked: now,
                validators,
                signed,
                detached: None,
            };
            stored.keep(&record)?;
            Ok(Some(record))
        }
        Err(error) if error.is_not_found() => {
            let fetch = |name: &str| match fetcher.small(
                &format!("{base}/{name}"),
                RELEASE_BYTES_MAX,
                None,
            ) {
                Ok(Answer::Body { bytes, .. }) => Ok(Some(bytes)),
                Ok(Answer::NotModified) => Ok(None),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(fail(error)),
            };
            let Some(text) = fetch("Release")? else {
                return Ok(None);
            };
            let Some(signature) = fetch("Release.gpg")? else {
                return Err(ReleaseError::Malformed {
                    url: format!("{base}/Release"),
                    problem: "it has no signature (neither InRelease nor Release.gpg)".to_owned(),
                });
            };
            let signed = format!("{}.Release", stored.stem);
            let detached = format!("{}.Release.gpg", stored.stem);
            stored.write(&signed, &text)?;
            stored.write(&detached, &signature)?;
            let record = Record {
                url: base.to_owned(),
                asked: now,
                validators: Validators::default(),
                signed,
                detached: Some(detached),
            };
            stored.keep(&record)?;
            Ok(Some(record))
        }
        Err(error) => Err(fail(error)),
    }
}

fn verify(
    stored: &Stored,
    record: &Record,
    source: &SuiteSource,
    now: i64,
) -> Result<Release, ReleaseError> {
    let signed = stored.read(&record.signed)?;
    let detached = record
        .detached
        .as_deref()
        .map(|name| stored.read(name))
        .transpose()?;
    let name = if detached.is_some() {
        "Release"
    } else {
        "InRelease"
    };
    let url = format!("{}/{name}", record.url);
    let trusted = match &detached {
        None => signature::verify_clear(&signed, &source.keyring, &url),
        Some(signature) => signature::verify_detached(&signed, signature, &source.keyring, &url)
            .map(|()| signed.clone()),
    };
    let text = trusted.map_err(|source| ReleaseError::Signature { source })?;
    let text = String::from_utf8(text).map_err(|_| ReleaseError::Malformed {
        url: url.clone(),
        problem: "it is not UTF-8 text".to_owned(),
    })?;
    let mut release = read(&text, source, &url, now)?;
    release.signed = signed;
    release.detached = detached;
    Ok(release)
}

/// Reads a trusted release file and checks its dates and suite.
fn read(text: &str, source: &SuiteSource, url: &str, now: i64) -> Result<Release, ReleaseError> {
    let malformed = |problem: String| ReleaseError::Malformed {
        url: url.to_owned(),
        problem,
    };
    let stanza = Stanzas::new(text)
        .next()
        .ok_or_else(|| malformed("it is empty".to_owned()))?;
    let field = |key: &str| stanza.get(key);
    let seconds = |key: &str| -> Result<Option<i64>, ReleaseError> {
        field(key)
            .map(|value| {
                parse_date(value).ok_or_else(|| malformed(format!("`{key}: {value}` is no date")))
            })
            .transpose()
    };
    let date = seconds("Date")?.ok_or_else(|| malformed("it has no `Date`".to_owned()))?;
    if source.check_valid_until {
        if date > now + CLOCK_SKEW_SECONDS {
            return Err(ReleaseError::Future {
                url: url.to_owned(),
                date: field("Date").unwrap_or_default().to_owned(),
            });
        }
        if seconds("Valid-Until")?.is_some_and(|until| until < now) {
            return Err(ReleaseError::Expired {
                url: url.to_owned(),
                valid_until: field("Valid-Until").unwrap_or_default().to_owned(),
            });
        }
    }
    // A signature says that the archive made this file, not that it belongs to this suite.
    let names = [field("Codename"), field("Suite")];
    if !names.iter().flatten().any(|name| *name == source.suite) {
        return Err(ReleaseError::OtherSuite {
            url: url.to_owned(),
            expected: source.suite.clone(),
            found: names
                .iter()
                .flatten()
                .copied()
                .collect::<Vec<_>>()
                .join(" / "),
        });
    }
    let mut files = BTreeMap::new();
    for line in field("SHA256").unwrap_or_default().lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [digest, size, path] = words.as_slice() else {
            continue;
        };
        let hexadecimal = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        let (true, Ok(size)) = (hexadecimal, size.parse()) else {
            return Err(malformed(format!(
                "its list of digests has the line `{line}`"
            )));
        };
        let listed = Listed {
            sha256: digest.to_ascii_lowercase(),
            size,
        };
        files.insert((*path).to_owned(), listed);
    }
    if files.is_empty() {
        return Err(malformed("it lists no SHA-256 digests".to_owned()));
    }
    Ok(Release {
        source: source.clone(),
        signed: Vec::new(),
        detached: None,
        date,
        by_hash: field("Acquire-By-Hash") == Some("yes"),
        files,
        components: field("Components").unwrap_or_default().to_owned(),
    })
}

impl Release {
    /// The package indices of the source's components for an architecture.
    pub fn indices(&self, architecture: &str) -> Result<Vec<IndexFile>, ReleaseError> {
        let mut found = Vec::new();
        for component in &self.source.components {
            let Some(index) = self.index(component, architecture) else {
                // An overlay need not have every component of its base.
                if self.source.optional {
                    continue;
                }
                return Err(ReleaseError::NoIndex {
                    url: self.url(),
                    component: component.clone(),
                    architecture: architecture.to_owned(),
                    available: self.components.clone(),
                });
            };
            found.push(index);
        }
        Ok(found)
    }

    fn index(&self, component: &str, architecture: &str) -> Option<IndexFile> {
        let path = format!("{component}/binary-{architecture}/Packages");
        COMPRESSIONS.iter().find_map(|(suffix, compression)| {
            let stored_path = format!("{path}{suffix}");
            let stored = self.files.get(&stored_path)?;
            Some(IndexFile {
                component: component.to_owned(),
                plain: self.files.get(&path)?.clone(),
                stored: stored.clone(),
                path: stored_path,
                compression: *compression,
            })
        })
    }

    fn url(&self) -> String {
        let name = if self.detached.is_some() {
            "Release"
        } else {
            "InRelease"
        };
        format!("{}/dists/{}/{name}", self.source.url, self.source.suite)
    }

    /// Addresses of an index, the one that cannot change under us first.
    pub fn addresses(&self, index: &IndexFile) -> Vec<String> {
        let base = format!("{}/dists/{}", self.source.url, self.source.suite);
        let plain = format!("{base}/{}", index.path);
        if !self.by_hash {
            return vec![plain];
        }
        let folder = index.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        vec![
            format!("{base}/{folder}/by-hash/SHA256/{}", index.stored.sha256),
            plain,
        ]
    }
}

/// Reads the date of a release file (`Sat, 11 Jul 2026 10:16:37 UTC`) as seconds since the epoch.
fn parse_date(text: &str) -> Option<i64> {
    let text = text.split_once(',').map_or(text, |(_, rest)| rest);
    let mut words = text.split_whitespace();
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let month = i64::try_from(months.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words
        .next()?
        .split(':')
        .map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next().flatten()?);
    if !matches!(words.next(), Some("UTC" | "GMT" | "Z" | "+0000")) {
        return None;
    }
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // Days from the civil date, with years that start in March so that leap days come last.
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let era = shifted_year / 400;
    let year_of_era = shifted_year % 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bake::base::source::Keyring;

    fn source(suite: &str) -> SuiteSource {
        SuiteSource {
            url: "http://m.example/d".to_owned(),
            suite: suite.to_owned(),
            components: vec!["main".to_owned()],
            keyring: Keyring::Files(Vec::new()),
            check_valid_until: true,
            optional: false,
            named_by: "test".to_owned(),
        }
    }

    const NOW: i64 = 1_783_765_000;

    fn text(more: &str) -> String {
        let digest = "0".repeat(64);
        format!(
            "Suite: oldstable\nCodename: bookworm\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n{more}\
             Acquire-By-Hash: yes\nComponents: main\nSHA256:\n {digest} 10 main/binary-amd64/Packages\n \
             {digest} 5 main/binary-amd64/Packages.xz\n"
        )
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(
            parse_date("Sat, 11 Jul 2026 10:16:37 UTC"),
            Some(1_783_764_997)
        );
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(
            parse_date("Thu, 29 Feb 2024 23:59:59 UTC"),
            Some(1_709_251_199)
        );
        assert_eq!(parse_date("Thu, 29 Feb 2024 23:59:59 CET"), None);
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn the_best_compression_is_taken_by_hash() {
        let release = read(&text(""), &source("bookworm"), "u", NOW).unwrap();
        let indices = release.indices("amd64").unwrap();
        assert_eq!(indices[0].compression, Compression::Xz);
        let addresses = release.addresses(&indices[0]);
        assert!(addresses[0].ends_with(&format!("by-hash/SHA256/{}", "0".repeat(64))));
        assert!(addresses[1].ends_with("main/binary-amd64/Packages.xz"));
        let error = release.indices("arm64").unwrap_err();
        assert!(matches!(error, ReleaseError::NoIndex { .. }), "{error}");
    }

    #[test]
    fn expired_future_and_foreign_release_files_are_refused() {
        let until = "Valid-Until: Sat, 11 Jul 2026 10:16:38 UTC\n";
        let error = read(&text(until), &source("bookworm"), "u", NOW).unwrap_err();
        assert!(matches!(error, ReleaseError::Expired { .. }), "{error}");
        let error = read(&text(""), &source("bookworm"), "u", NOW - 200_000).unwrap_err();
        assert!(matches!(error, ReleaseError::Future { .. }), "{error}");
        let error = read(&text(""), &source("trixie"), "u", NOW).unwrap_err();
        assert!(matches!(error, ReleaseError::OtherSuite { .. }), "{error}");
        let frozen = SuiteSource {
            check_valid_until: false,
            ..source("bookworm")
        };
        read(&text(until), &frozen, "u", NOW).unwrap();
    }
}
