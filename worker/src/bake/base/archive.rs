//! The verified package indices of one system, and the plan of packages that follows from them.
//!
//! What has been fetched and verified once is kept: indices by the digest of their text
//! (compressed with zstd, which reads six times faster than xz), plans by what they follow from.
//! So asking for the plan of an unchanged archive costs one conditional request per suite, or
//! none within [`Freshness::max_age_seconds`].

use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};

use super::fetch::{FetchError, Fetcher, Wanted, hex};
use super::index::{IndexError, Packages};
use super::release::{self, Compression, Freshness, IndexFile, Release, ReleaseError};
use super::solve::{self, SolveError};
use super::source::SuiteSource;

/// Longest text of one index. Debian's main has 50 MB.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// Part of a stored plan's name; raised when the solver would answer otherwise.
const PLAN_VERSION: u32 = 1;

/// Stored plans and indices beyond this many are removed, the oldest first.
const KEPT_MAX: usize = 64;

/// Indices that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Solve(#[from] SolveError),
    #[error("read the package index of {suite}/{component}")]
    Index {
        suite: String,
        component: String,
        #[source]
        source: IndexError,
    },
    #[error("unpack the package index {url}: {problem}")]
    Damaged { url: String, problem: String },
    #[error("store the package index {path}")]
    Store {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Verified release files with the indices that they vouch for.
#[derive(Debug)]
pub struct Archives {
    pub releases: Vec<Release>,
    /// Indices with the position of their release.
    pub indices: Vec<(usize, IndexFile)>,
    /// blake3 over every index's suite, component and SHA-256: the same digest means the same
    /// candidates, whatever mirror they came from.
    pub digest: String,
    folder: Utf8PathBuf,
}

/// One package that the system will have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Planned {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub file: Wanted,
}

/// Every package that the system will have, by name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Plan {
    pub packages: Vec<Planned>,
}

impl Archives {
    /// Gets and verifies the release files of all sources.
    pub fn open(
        fetcher: &Fetcher,
        sources: &[SuiteSource],
        architecture: &str,
        folder: &Utf8Path,
        freshness: Freshness,
    ) -> Result<Self, ArchiveError> {
        let lists = folder.join("releases");
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = sources
                .iter()
                .map(|source| {
                    let lists = &lists;
                    scope.spawn(move || release::get(fetcher, source, lists, freshness))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        let mut releases = Vec::new();
        for result in results {
            releases.extend(result?);
        }
        let mut indices = Vec::new();
        let mut lines = Vec::new();
        for (position, release) in releases.iter().enumerate() {
            for index in release.indices(architecture)? {
                lines.push(format!(
                    "{} {} {}\n",
                    release.source.suite, index.component, index.plain.sha256
                ));
                indices.push((position, index));
            }
        }
        lines.sort();
        let mut hasher = blake3::Hasher::new();
        hasher.update(architecture.as_bytes());
        for line in &lines {
            hasher.update(line.as_bytes());
        }
        let digest = hasher.finalize().to_hex().to_string();
        Ok(Self {
            releases,
            indices,
            digest,
            folder: folder.to_owned(),
        })
    }

    /// Chooses the packages, or finds the stored choice for the same indices and request.
    pub fn plan(
        &self,
        fetcher: &Fetcher,
        architecture: &str,
        request: &solve::Request<'_>,
    ) -> Result<Plan, ArchiveError> {
        let path = self.plan_path(request);
        if let Some(plan) = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(plan);
        }
        let plan = self.choose(fetcher, architecture, request)?;
        let bytes = serde_json::to_vec(&plan).expect("a plan of strings and numbers is JSON");
        store(&path, &bytes)?;
        Ok(plan)
    }

    fn choose(
        &self,
        fetcher: &Fetcher,
        architecture: &str,
        request: &solve::Request<'_>,
    ) -> Result<Plan, ArchiveError> {
        let mut texts = Vec::with_capacity(self.indices.len());
        for (position, index) in &self.indices {
            texts.push(self.text(fetcher, &self.releases[*position], index)?);
        }
        let mut packages = Packages::default();
        for ((position, index), text) in self.indices.iter().zip(&texts) {
            packages
                .add(text, architecture, *position)
                .map_err(|source| ArchiveError::Index {
                    suite: self.releases[*position].source.suite.clone(),
                    component: index.component.clone(),
                    source,
                })?;
        }
        let chosen = solve::solve(&packages, request)?;
        let planned = chosen
            .into_iter()
            .map(|package| Planned {
                name: package.name.to_owned(),
                version: package.version.to_owned(),
                architecture: package.architecture.to_owned(),
                file: Wanted {
                    url: format!(
                        "{}/{}",
                        self.releases[package.source].source.url, package.filename
                    ),
                    sha256: package.sha256.to_ascii_lowercase(),
                    size: package.size,
                },
            })
            .collect();
        Ok(Plan { packages: planned })
    }

    /// A plan holds addresses, so the mirrors are part of its name.
    fn plan_path(&self, request: &solve::Request<'_>) -> Utf8PathBuf {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(text.as_bytes());
            hasher.update(b"\n");
        };
        add(&PLAN_VERSION.to_string());
        add(&self.digest);
        add(if request.system { "system" } else { "extra" });
        for release in &self.releases {
            add(&release.source.url);
        }
        for name in request.packages {
            add(name);
        }
        for name in request.provided.iter().chain(request.preferred) {
            add(name);
        }
        let name = hasher.finalize().to_hex();
        self.folder
            .join("plans")
            .join(format!("{}.json", &name[..32]))
    }

    /// The text of an index as zstd, as it is stored.
    pub fn compressed(
        &self,
        fetcher: &Fetcher,
        release: &Release,
        index: &IndexFile,
    ) -> Result<Vec<u8>, ArchiveError> {
        let path = self.index_path(index);
        if !path.is_file() {
            self.text(fetcher, release, index)?;
        }
        std::fs::read(&path).map_err(|source| ArchiveError::Store { path, source })
    }

    fn index_path(&self, index: &IndexFile) -> Utf8PathBuf {
        self.folder
            .join("indices")
            .join(format!("{}.zst", index.plain.sha256))
    }

    fn text(
        &self,
        fetcher: &Fetcher,
        release: &Release,
        index: &IndexFile,
    ) -> Result<String, ArchiveError> {
        let path = self.index_path(index);
        if let Ok(file) = std::fs::File::open(&path) {
            let text = zstd::stream::read::Decoder::new(file)
                .ok()
                .and_then(|decoder| read_plain(decoder, index).ok());
            match text {
                Some(text) => return Ok(text),
                None => tracing::warn!(%path, "A stored index is damaged; will fetch it again."),
            }
        }
        let (file, url) = fetch_index(fetcher, release, index)?;
        let damaged = |problem: String| ArchiveError::Damaged {
            url: url.clone(),
            problem,
        };
        let open = |source| ArchiveError::Store {
            path: file.clone(),
            source,
        };
        let compressed = std::fs::File::open(&file).map_err(open)?;
        let text = match index.compression {
            Compression::Xz => read_plain(liblzma::read::XzDecoder::new(compressed), index),
            Compression::Gz => read_plain(flate2::read::GzDecoder::new(compressed), index),
            Compression::None => read_plain(compressed, index),
        }
        .map_err(damaged)?;
        let packed =
            zstd::bulk::compress(text.as_bytes(), zstd::DEFAULT_COMPRESSION_LEVEL).map_err(open)?;
        store(&path, &packed)?;
        // The text is kept as zstd, so what came over the wire has served its purpose.
        let _ = std::fs::remove_file(&file);
        Ok(text)
    }
}

/// Fetches a compressed index from the first of its addresses that has it.
fn fetch_index(
    fetcher: &Fetcher,
    release: &Release,
    index: &IndexFile,
) -> Result<(Utf8PathBuf, String), ArchiveError> {
    let mut last = None;
    for url in release.addresses(index) {
        let wanted = Wanted {
            url: url.clone(),
            sha256: index.stored.sha256.clone(),
            size: index.stored.size,
        };
        match fetcher.one(&wanted) {
            Ok(file) => return Ok((file, url)),
            Err(error) if error.is_not_found() => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last
        .unwrap_or_else(|| FetchError::Status {
            url: index.path.clone(),
            status: 404,
        })
        .into())
}

/// Reads an index's text and checks it against the release file.
fn read_plain(from: impl Read, index: &IndexFile) -> Result<String, String> {
    let limit = index.plain.size;
    if limit > INDEX_BYTES_MAX {
        return Err(format!(
            "it has {limit} bytes, more than the limit of {INDEX_BYTES_MAX}"
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(limit).unwrap_or_default());
    from.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let digest = hex(&Sha256::digest(&bytes));
    if bytes.len() as u64 != limit || digest != index.plain.sha256 {
        return Err(format!(
            "its text has SHA-256 {digest}, but the signed release file says {}",
            index.plain.sha256
        ));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// Writes a file whole, then keeps its folder small.
fn store(path: &Utf8Path, bytes: &[u8]) -> Result<(), ArchiveError> {
    let fail = |source| ArchiveError::Store {
        path: path.to_owned(),
        source,
    };
    let folder = path
        .parent()
        .expect("stored files are inside the cache folder");
    std::fs::create_dir_all(folder).map_err(fail)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    std::io::Write::write_all(&mut file, bytes).map_err(fail)?;
    file.persist(path).map_err(|error| fail(error.error))?;
    let mut known: Vec<_> = folder
        .read_dir_utf8()
        .map_err(fail)?
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.into_path())))
        .collect();
    known.sort();
    let surplus = known.len().saturating_sub(KEPT_MAX);
    for (_, path) in known.into_iter().take(surplus) {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
