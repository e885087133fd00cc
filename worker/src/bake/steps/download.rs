//! A file of the web that the pipeline names with its SHA-256.
//!
//! The address is the pipeline author's, so the worker asks for it only through the same filter as
//! a step's own requests: neither the farm nor the machine's metadata service can be reached so.

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::task::{Lost, Tasks};
use tokio_util::sync::CancellationToken;

use crate::bake::base::fetch::{FetchError, FetchOptions, Fetcher};
use crate::sandbox::proxy::{Egress, Proxy};

/// The largest file.
pub const BYTES_MAX: u64 = 8 << 30;

/// A file that is wanted.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Its address.
    pub url: &'a str,
    /// Lower-case hexadecimal SHA-256.
    pub sha256: &'a str,
}

/// Why it is not here.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The proxy for it.
    #[error("open the proxy for downloads")]
    Proxy(#[source] std::io::Error),
    /// It cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The proxy did not let it through.
    #[error(
        "fetch {url}: {host} is {why}, which a pipeline may not reach; the operator can allow it with bake.proxy_allow"
    )]
    Refused {
        /// The address.
        url: String,
        /// The host as it was asked for.
        host: String,
        /// What it is.
        why: String,
    },
    /// A bug.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl DownloadError {
    /// Whether the recipe is wrong, and not we: another try would end alike.
    pub fn is_recipe(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Fetch(err) => {
                err.is_not_found()
                    || matches!(
                        err,
                        FetchError::TooLong { .. }
                            | FetchError::OtherContent { .. }
                            | FetchError::Status {
                                status: 400..500,
                                ..
                            }
                    )
            }
            Self::Proxy(_) | Self::Lost(_) => false,
        }
    }
}

/// Fetches the file into the store of downloads under `folder`, or finds it there.
///
/// # Errors
/// See [`DownloadError`].
pub async fn get(
    proxy: &Proxy,
    tasks: &Tasks,
    folder: &Utf8Path,
    cache_bytes_max: u64,
    wanted: Wanted<'_>,
) -> Result<Utf8PathBuf, DownloadError> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(DownloadError::Proxy)?;
    let address = listener.local_addr().map_err(DownloadError::Proxy)?;
    let egress = proxy.serve(listener).map_err(DownloadError::Proxy)?;
    let options = FetchOptions {
        proxy: Some(format!("http://{address}")),
        cache_bytes_max,
        ..FetchOptions::default()
    };
    // Blocking work notices when this future is dropped.
    let cancel = CancellationToken::new();
    let _guard = cancel.clone().drop_guard();
    let (folder, url, sha256) = (
        folder.to_owned(),
        wanted.url.to_owned(),
        wanted.sha256.to_owned(),
    );
    let fetching = move || {
        let fetcher = Fetcher::new(&folder, options, cancel)?;
        fetcher.by_digest(&url, &sha256, BYTES_MAX)
    };
    let fetched = tasks.blocking("download", fetching).await?;
    fetched.map_err(|err| refusal(&egress, wanted.url).unwrap_or(DownloadError::Fetch(err)))
}

fn refusal(egress: &Egress, url: &str) -> Option<DownloadError> {
    let refused = egress.refusals().into_iter().next()?;
    Some(DownloadError::Refused {
        url: url.to_owned(),
        host: refused.destination.host,
        why: refused.why.to_string(),
    })
}
