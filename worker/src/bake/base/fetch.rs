//! Fetches files over HTTP: in parallel, over kept-alive connections, resumable, by digest.
//!
//! A file that the archive's signed index names is stored under its SHA-256, so it is fetched
//! once for all bakes; what is in the store is hashed again before it is used. An interrupted
//! fetch leaves a `.partial` file that the next one continues with a range request. Everything
//! here blocks and runs on threads of its caller; the async side waits on one blocking task.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// How to fetch; each field is a limit of its own.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Proxy for every request; `None` takes what the environment says.
    pub proxy: Option<String>,
    /// Files fetched at the same time (default 4; more gains nothing on a near mirror).
    pub connections: usize,
    /// How often a file is tried before its error counts (default 4).
    pub attempts: u32,
    /// Pause before the second attempt; it doubles each time up to `backoff_max`.
    pub backoff: Duration,
    /// Longest pause between two attempts (default 5 s).
    pub backoff_max: Duration,
    /// Limit for making a connection (default 10 s).
    pub connect_timeout: Duration,
    /// Limit for a silent connection (default 30 s); a slow but living one may go on.
    pub read_timeout: Duration,
    /// The store of fetched packages is cut down to this many bytes (default 4 GiB).
    pub cache_bytes_max: u64,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            proxy: None,
            connections: 4,
            attempts: 4,
            backoff: Duration::from_millis(250),
            backoff_max: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            cache_bytes_max: 4 << 30,
        }
    }
}

/// A file that cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("fetch {url}: {reason} (tried {attempts} times)")]
    Unreachable {
        url: String,
        reason: String,
        attempts: u32,
    },
    #[error("fetch {url}: the server answered {status}")]
    Status { url: String, status: u16 },
    #[error("fetch {url}: it is longer than the {limit} bytes that it may have")]
    TooLong { url: String, limit: u64 },
    #[error(
        "fetch {url}: its SHA-256 is {found}, but the signed index says {expected}; the mirror is \
         being updated or serves a damaged file"
    )]
    Mismatch {
        url: String,
        expected: String,
        found: String,
    },
    #[error("fetch {url}: its SHA-256 {said}; if the file was meant to change, write the new one")]
    OtherContent {
        url: String,
        /// What it is and what it should be.
        said: String,
    },
    #[error("store {path}")]
    Store {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("use the proxy {proxy}: {reason}")]
    Proxy { proxy: String, reason: String },
    #[error("fetch {url}: cancelled")]
    Cancelled { url: String },
}

impl FetchError {
    /// Whether the server said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 404 | 410,
                ..
            }
        )
    }

    /// Whether trying again may help. A refusal of the server is final, its trouble is not.
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            _ => false,
        }
    }
}

/// A file that a signed index names.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Wanted {
    pub url: String,
    /// Lower-case hexadecimal SHA-256.
    pub sha256: String,
    pub size: u64,
}

/// What a conditional request brought.
#[derive(Debug)]
pub enum Answer {
    Body {
        bytes: Vec<u8>,
        etag: Option<String>,
        last_modified: Option<String>,
    },
    NotModified,
}

/// What a stored copy of a small file was last known by.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

/// Hears how many bytes of how many have arrived.
pub type OnBytes<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Fetches into one cache folder.
#[derive(Debug)]
pub struct Fetcher {
    agent: ureq::Agent,
    folder: Utf8PathBuf,
    options: FetchOptions,
    cancel: CancellationToken,
}

/// Size of one read from a connection.
const READ_BYTES: usize = 128 << 10;

impl Fetcher {
    /// Makes a fetcher that stores under `folder`.
    pub fn new(
        folder: &Utf8Path,
        options: FetchOptions,
        cancel: CancellationToken,
    ) -> Result<Self, FetchError> {
        let mut config = ureq::Agent::config_builder()
            .user_agent(concat!("oast/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_idle_connections_per_host(options.connections)
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.read_timeout))
            .timeout_per_read(Some(options.read_timeout));
        if let Some(proxy) = &options.proxy {
            let parsed = ureq::Proxy::new(proxy).map_err(|error| FetchError::Proxy {
                proxy: proxy.clone(),
                reason: error.to_string(),
            })?;
            config = config.proxy(Some(parsed));
        }
        let folder = folder.join("files");
        std::fs::create_dir_all(&folder).map_err(|source| FetchError::Store {
            path: folder.clone(),
            source,
        })?;
        let agent = ureq::Agent::with_parts(
            config.build(),
            DefaultConnector::default(),
            Names::default(),
        );
        Ok(Self {
            agent,
            folder,
            options,
            cancel,
        })
    }

    /// Fetches a small file into memory, at most `limit` bytes.
    pub fn small(
        &self,
        url: &str,
        limit: u64,
        known: Option<&Validators>,
    ) -> Result<Answer, FetchError> {
        self.attempts(url, || {
            let mut request = self.agent.get(url);
            if let Some(etag) = known.and_then(|known| known.etag.as_deref()) {
                request = request.header(header::IF_NONE_MATCH, etag);
            }
            if let Some(date) = known.and_then(|known| known.last_modified.as_deref()) {
                request = request.header(header::IF_MODIFIED_SINCE, date);
            }
            let response = request.call().map_err(|error| unreachable(url, &error))?;
            if response.status() == StatusCode::NOT_MODIFIED && known.is_some() {
                return Ok(Answer::NotModified);
            }
            let response = successful(url, response)?;
            let text = |name: header::HeaderName| {
                response
                    .headers()
                    .get(name)
                    .and_then(|v| v.to_str().ok())
                    .map(ToOwned::to_owned)
            };
            let (etag, last_modified) = (text(header::ETAG), text(header::LAST_MODIFIED));
            let mut bytes = Vec::new();
            let mut body = response.into_body().into_reader().take(limit + 1);
            body.read_to_end(&mut bytes)
                .map_err(|error| unreachable(url, &error))?;
            if bytes.len() as u64 > limit {
                return Err(FetchError::TooLong {
                    url: url.to_owned(),
                    limit,
                });
            }
            Ok(Answer::Body {
                bytes,
                etag,
                last_modified,
            })
        })
    }

    /// Fetches every file that is not in the store yet; the paths come in the order of `wanted`.
    /// The first error ends the others.
    pub fn all(
        &self,
        wanted: &[Wanted],
        on_bytes: OnBytes<'_>,
    ) -> Result<Vec<Utf8PathBuf>, FetchError> {
        let total: u64 = wanted.iter().map(|file| file.size).sum();
        let arrived = AtomicU64::new(0);
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<FetchError>> = Mutex::new(None);
        let threads = self.options.connections.min(wanted.len()).max(1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let position = next.fetch_add(1, Ordering::Relaxed);
                        let Some(file) = wanted.get(position) else {
                            break;
                        };
                        let result = self.file(file, &|bytes| {
                            let so_far = arrived.fetch_add(bytes, Ordering::Relaxed) + bytes;
                            on_bytes(so_far, total);
                        });
                        if let Err(error) = result {
                            let mut failure = failure.lock().unwrap_or_else(|e| e.into_inner());
                            failure.get_or_insert(error);
                            next.store(wanted.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        if let Some(error) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        self.shrink(wanted)?;
        Ok(wanted
            .iter()
            .map(|file| self.path_of(&file.sha256))
            .collect())
    }

    /// Fetches one file into the store, or finds it there.
    pub fn one(&self, wanted: &Wanted) -> Result<Utf8PathBuf, FetchError> {
        self.file(wanted, &|_| {})
    }

    /// Fetches one file of unknown length into the store, or finds it there.
    pub fn by_digest(
        &self,
        url: &str,
        sha256: &str,
        limit: u64,
    ) -> Result<Utf8PathBuf, FetchError> {
        let wanted = Wanted {
            url: url.to_owned(),
            sha256: sha256.to_owned(),
            size: 0,
        };
        let path = self.path_of(sha256);
        if self.stored(&path, &wanted)? {
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(&self.folder);
        let store = |source| FetchError::Store {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(parent).map_err(store)?;
        // Without a length there is nothing to continue from, so each fetch has a file of its own.
        let partial = tempfile::NamedTempFile::new_in(parent).map_err(store)?;
        let found = self.attempts(url, || {
            let mut file = partial.reopen().map_err(store)?;
            file.set_len(0).map_err(store)?;
            let response = self.agent.get(url).call();
            let response = response.map_err(|error| unreachable(url, &error))?;
            let mut body = successful(url, response)?.into_body().into_reader();
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; READ_BYTES];
            let mut have = 0;
            loop {
                if self.cancel.is_cancelled() {
                    return Err(FetchError::Cancelled {
                        url: url.to_owned(),
                    });
                }
                let read = body.read(&mut buffer);
                let read = read.map_err(|error| unreachable(url, &error))?;
                if read == 0 {
                    return Ok(hex(&hasher.finalize()));
                }
                have += read as u64;
                if have > limit {
                    return Err(FetchError::TooLong {
                        url: url.to_owned(),
                        limit,
                    });
                }
                file.write_all(&buffer[..read]).map_err(store)?;
                hasher.update(&buffer[..read]);
            }
        })?;
        if found != sha256 {
            return Err(FetchError::OtherContent {
                url: url.to_owned(),
                said: format!("is {found}, but the pipeline says {sha256}"),
            });
        }
        partial.persist(&path).map_err(|error| store(error.error))?;
        self.shrink(&[wanted])?;
        Ok(path)
    }

    fn file(
        &self,
        wanted: &Wanted,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<Utf8PathBuf, FetchError> {
        let path = self.path_of(&wanted.sha256);
        if self.stored(&path, wanted)? {
            on_bytes(wanted.size);
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(&self.folder);
        let store = |source| FetchError::Store {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(parent).map_err(store)?;
        let partial = Utf8PathBuf::from(format!("{path}.partial"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(store)?;
        // Two bakes may want the same file: the second waits here and then finds it stored.
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| store(error.into()))?;
        if self.stored(&path, wanted)? {
            on_bytes(wanted.size);
            return Ok(path);
        }
        let mut counted = 0;
        let mut mismatches = 0;
        loop {
            let digest = self.attempts(&wanted.url, || {
                self.receive(wanted, &mut file, &partial, &mut counted, on_bytes)
            })?;
            if digest == wanted.sha256 {
                break;
            }
            file.set_len(0).map_err(store)?;
            mismatches += 1;
            // A damaged partial file of an earlier try deserves one clean fetch.
            if mismatches == MISMATCHES_MAX {
                let _ = std::fs::remove_file(&partial);
                return Err(FetchError::Mismatch {
                    url: wanted.url.clone(),
                    expected: wanted.sha256.clone(),
                    found: digest,
                });
            }
        }
        std::fs::rename(&partial, &path).map_err(store)?;
        Ok(path)
    }

    /// Continues the partial file to its end and returns the digest of the whole.
    fn receive(
        &self,
        wanted: &Wanted,
        file: &mut File,
        partial: &Utf8Path,
        counted: &mut u64,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<String, FetchError> {
        let store = |source| FetchError::Store {
            path: partial.to_owned(),
            source,
        };
        let mut have = file.metadata().map_err(store)?.len();
        if have > wanted.size {
            file.set_len(0).map_err(store)?;
            have = 0;
        }
        let mut hasher = Sha256::new();
        file.seek(SeekFrom::Start(0)).map_err(store)?;
        hash(&mut Read::by_ref(file).take(have), &mut hasher).map_err(store)?;
        // Bytes are counted once, however often they are fetched.
        let mut count = |have: u64| {
            on_bytes(have.saturating_sub(*counted));
            *counted = (*counted).max(have);
        };
        count(have);
        if have < wanted.size {
            let mut request = self.agent.get(&wanted.url);
            if have > 0 {
                request = request.header(header::RANGE, format!("bytes={have}-"));
            }
            let response = request
                .call()
                .map_err(|error| unreachable(&wanted.url, &error))?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                file.set_len(0).map_err(store)?;
                return Err(unreachable(&wanted.url, &"the server refused to continue"));
            }
            let response = successful(&wanted.url, response)?;
            if response.status() != StatusCode::PARTIAL_CONTENT && have > 0 {
                file.set_len(0).map_err(store)?;
                file.seek(SeekFrom::Start(0)).map_err(store)?;
                hasher = Sha256::new();
                have = 0;
            }
            let mut body = response.into_body().into_reader();
            let mut buffer = vec![0; READ_BYTES];
            loop {
                if self.cancel.is_cancelled() {
                    return Err(FetchError::Cancelled {
                        url: wanted.url.clone(),
                    });
                }
                let read = body
                    .read(&mut buffer)
                    .map_err(|error| unreachable(&wanted.url, &error))?;
                if read == 0 {
                    break;
                }
                have += read as u64;
                if have > wanted.size {
                    file.set_len(0).map_err(store)?;
                    return Err(FetchError::TooLong {
                        url: wanted.url.clone(),
                        limit: wanted.size,
                    });
                }
                file.write_all(&buffer[..read]).map_err(store)?;
                hasher.update(&buffer[..read]);
                count(have);
            }
            if have < wanted.size {
                let reason = format!("it ended after {have} of {} bytes", wanted.size);
                return Err(unreachable(&wanted.url, &reason));
            }
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Runs one request until it succeeds, its error is final, or the attempts are used up.
    fn attempts<T>(
        &self,
        url: &str,
        mut run: impl FnMut() -> Result<T, FetchError>,
    ) -> Result<T, FetchError> {
        let mut pause = self.options.backoff;
        let mut attempt = 1;
        loop {
            if self.cancel.is_cancelled() {
                return Err(FetchError::Cancelled {
                    url: url.to_owned(),
                });
            }
            match run() {
                Err(error) if error.is_transient() && attempt < self.options.attempts => {
                    tracing::debug!(url, attempt, %error, "Fetch failed; will try again.");
                    self.pause(pause);
                    pause = (pause * 2).min(self.options.backoff_max);
                    attempt += 1;
                }
                Err(FetchError::Unreachable { url, reason, .. }) => {
                    return Err(FetchError::Unreachable {
                        url,
                        reason,
                        attempts: attempt,
                    });
                }
                other => return other,
            }
        }
    }

    /// Waits, but not longer than until the cancellation.
    fn pause(&self, length: Duration) {
        let slice = Duration::from_millis(50);
        let mut left = length;
        while !left.is_zero() && !self.cancel.is_cancelled() {
            let now = slice.min(left);
            std::thread::park_timeout(now);
            left -= now;
        }
    }

    /// Whether the store has this file, whole and undamaged.
    fn stored(&self, path: &Utf8Path, wanted: &Wanted) -> Result<bool, FetchError> {
        let store = |source| FetchError::Store {
            path: path.to_owned(),
            source,
        };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(store(source)),
        };
        let mut hasher = Sha256::new();
        hash(&mut file, &mut hasher).map_err(store)?;
        if hex(&hasher.finalize()) != wanted.sha256 {
            tracing::warn!(%path, "A stored file is damaged; will fetch it again.");
            std::fs::remove_file(path).map_err(store)?;
            return Ok(false);
        }
        // The age decides what is thrown out first when the store is too big.
        let now = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        };
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: now,
        };
        let _ = rustix::fs::futimens(&file, &times);
        Ok(true)
    }

    /// Where the store keeps the file with this digest.
    pub fn path_of(&self, sha256: &str) -> Utf8PathBuf {
        self.folder.join(&sha256[..2]).join(sha256)
    }

    /// Throws out what was not used for longest until the store fits its limit; files of the
    /// current request stay.
    fn shrink(&self, keep: &[Wanted]) -> Result<(), FetchError> {
        let mut files = Vec::new();
        let mut total = 0;
        for folder in self.folder.read_dir_utf8().into_iter().flatten().flatten() {
            for entry in folder
                .path()
                .read_dir_utf8()
                .into_iter()
                .flatten()
                .flatten()
            {
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                total += metadata.len();
                files.push((
                    metadata.modified().ok(),
                    metadata.len(),
                    entry.path().to_owned(),
                ));
            }
        }
        if total <= self.options.cache_bytes_max {
            return Ok(());
        }
        files.sort();
        for (_, length, path) in files {
            if total <= self.options.cache_bytes_max {
                break;
            }
            let name = path.file_name().unwrap_or_default();
            if keep.iter().any(|wanted| name.starts_with(&wanted.sha256)) {
                continue;
            }
            match std::fs::remove_file(&path) {
                Ok(()) => total -= length,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => total -= length,
                Err(source) => return Err(FetchError::Store { path, source }),
            }
        }
        Ok(())
    }
}

/// Looks each host up once for the life of a fetcher.
///
/// The client asks the resolver for every request, also when it then reuses a connection. With a
/// hundred small files that is a hundred look-ups, and one lost answer costs five seconds.
#[derive(Default)]
struct Names {
    system: DefaultResolver,
    known: Mutex<HashMap<String, Vec<SocketAddr>>>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let scheme = uri.scheme_str().unwrap_or_default();
        let key = format!("{scheme}://{}", uri.authority().map_or("", |a| a.as_str()));
        // Held during the look-up, so that threads that start together look up once.
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(addresses) = known.get(&key) {
            let mut found = self.empty();
            for address in addresses {
                found.push(*address);
            }
            return Ok(found);
        }
        let found = self.system.resolve(uri, config, timeout)?;
        known.insert(key, found.iter().copied().collect());
        Ok(found)
    }
}

/// How many wrong digests in a row end a fetch.
const MISMATCHES_MAX: u32 = 2;

fn unreachable(url: &str, reason: &dyn std::fmt::Display) -> FetchError {
    FetchError::Unreachable {
        url: url.to_owned(),
        reason: reason.to_string(),
        attempts: 1,
    }
}

fn successful<B>(url: &str, response: Response<B>) -> Result<Response<B>, FetchError> {
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(FetchError::Status {
            url: url.to_owned(),
            status: response.status().as_u16(),
        })
    }
}

fn hash(from: &mut impl Read, hasher: &mut Sha256) -> std::io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..read]);
    }
}

/// Lower-case hexadecimal, as archives write digests.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}
