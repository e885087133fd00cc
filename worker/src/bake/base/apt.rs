//! What apt in an image needs to install packages there: sources and lists that the engine
//! verified, and the package files that apt asks for.
//!
//! ```text
//! lists     release files and indices under apt's own names, in a folder outside the image
//!   apt-get --print-uris (in a sandbox, without a network): which files it will need
//! packages  those files by their digests, from the engine's mirrors and store
//!   apt-get install --no-download (in a sandbox, without a network)
//! ```
//!
//! So apt alone decides what is installed, and the engine alone speaks with the archive. The
//! image's own lists and sources are neither read nor changed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8Path;

use super::archive::ArchiveError;
use super::fetch::{FetchError, Wanted};
use super::lists;
use super::tree::{Attributes, Tree};
use super::{BaseContext, BaseError, BaseRequest, Work, blocking};

/// Where package files lie in the folder, as apt's `Dir::Cache::archives`.
pub const ARCHIVES: &str = "cache/archives";

/// A package file that apt asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AptFile {
    /// In the archive, from `pool/` on.
    pub path: String,
    /// In apt's folder of package files.
    pub name: String,
    pub size: u64,
    pub sha256: String,
}

/// An answer of `apt-get --print-uris` that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("read what apt asks for: `{line}` {why}")]
pub struct AptAnswer {
    line: String,
    why: &'static str,
}

/// Reads what `apt-get --print-uris` printed.
///
/// # Errors
/// A line names a file in a way that is not trusted or not known.
pub fn asked(text: &str) -> Result<Vec<AptFile>, AptAnswer> {
    let lines = text.lines().filter(|line| line.starts_with('\''));
    let file = |line: &str| {
        let wrong = |why| AptAnswer {
            line: line.to_owned(),
            why,
        };
        let rest = line.get(1..).unwrap_or_default();
        let (address, rest) = rest
            .split_once('\'')
            .ok_or_else(|| wrong("has no address"))?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let [name, size, digest] = fields[..] else {
            return Err(wrong("has not three fields behind the address"));
        };
        let sha256 = digest
            .strip_prefix("SHA256:")
            .filter(|digits| digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(|| wrong("has no SHA-256"))?;
        if name.contains('/') || name.starts_with('.') {
            return Err(wrong("has a path for a name"));
        }
        let at = address
            .find("/pool/")
            .ok_or_else(|| wrong("is not in a pool"))?;
        Ok(AptFile {
            path: address[at + 1..].to_owned(),
            name: name.to_owned(),
            size: size.parse().map_err(|_| wrong("has no size"))?,
            sha256: sha256.to_ascii_lowercase(),
        })
    };
    lines.map(file).collect()
}

/// Makes `folder` (its parent must exist) with the sources and lists of the request's
/// distribution. The answer is the digest of the verified indices.
pub async fn lists(
    request: &BaseRequest,
    context: &BaseContext,
    folder: &Utf8Path,
) -> Result<String, BaseError> {
    let (request, context, folder) = (request.clone(), context.clone(), folder.to_owned());
    blocking(context, move |context| {
        let work = Work::new(&request, context)?;
        let made = |source| BaseError::Root {
            path: folder.clone(),
            source,
        };
        let attempt = |max_age| {
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir(&folder).map_err(made)?;
            let tree = Tree::open(&folder, context.host_base).map_err(made)?;
            let root = Attributes::root(0o755, 0);
            tree.dress_folder(b"", root).map_err(made)?;
            for made_before in ["partial", "log"] {
                let path = format!("{ARCHIVES}/{made_before}");
                tree.make_folders(path.as_bytes()).map_err(made)?;
            }
            let archives = work.open(max_age)?;
            let sources = &request.sources;
            lists::write(
                &tree,
                work.distribution,
                (!sources.is_empty()).then_some(sources.as_slice()),
                &archives,
                &work.fetcher,
                &request.architecture,
            )?;
            Ok(archives.digest.clone())
        };
        match attempt(context.index_max_age) {
            // An archive that is updated between its release file and its index is asked again.
            Err(BaseError::Archive(ArchiveError::Fetch(error)))
                if error.is_not_found() || matches!(error, FetchError::Mismatch { .. }) =>
            {
                attempt(std::time::Duration::ZERO)
            }
            other => other,
        }
    })
    .await
}

/// Puts the package files into the folder that [`lists`] made.
pub async fn packages(
    request: &BaseRequest,
    context: &BaseContext,
    files: Vec<AptFile>,
    folder: &Utf8Path,
) -> Result<(), BaseError> {
    let (request, context, folder) = (request.clone(), context.clone(), folder.to_owned());
    blocking(context, move |context| {
        let work = Work::new(&request, context)?;
        let archives = work.open(context.index_max_age)?;
        let mut mirrors: Vec<&str> = Vec::new();
        for release in &archives.releases {
            let url = release.source.url.as_str();
            if !mirrors.contains(&url) {
                mirrors.push(url);
            }
        }
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<BaseError>> = Mutex::new(None);
        let threads = context.fetch.connections.clamp(1, files.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = place(&work, &mirrors, file, &folder) {
                            let mut failure = failure.lock().unwrap_or_else(|e| e.into_inner());
                            failure.get_or_insert(error);
                            next.store(files.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    })
    .await
}

/// Fetches one file from the first mirror that has it. A copy, not a link: the sandbox could
/// write to what it sees.
fn place(
    work: &Work<'_>,
    mirrors: &[&str],
    file: &AptFile,
    folder: &Utf8Path,
) -> Result<(), BaseError> {
    let mut missing = None;
    for mirror in mirrors {
        let wanted = Wanted {
            url: format!("{mirror}/{}", file.path),
            sha256: file.sha256.clone(),
            size: file.size,
        };
        let fetched = match work.fetcher.one(&wanted) {
            Ok(fetched) => fetched,
            Err(error) if error.is_not_found() => {
                missing = Some(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let target = folder.join(ARCHIVES).join(&file.name);
        let made = |source| BaseError::Root {
            path: target.clone(),
            source,
        };
        std::fs::copy(&fetched, &target).map_err(made)?;
        let tree = Tree::open(folder, work.context.host_base).map_err(made)?;
        let path = format!("{ARCHIVES}/{}", file.name);
        let attributes = Attributes::root(0o644, 0);
        tree.dress_folder(path.as_bytes(), attributes)
            .map_err(made)?;
        return Ok(());
    }
    Err(missing.map_or(BaseError::Cancelled, BaseError::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "3b5b4d0b7ae07cd4a8f3f7e5b0a2d8b1c9e0f1a2b3c4d5e6f708192a3b4c5d6e";

    #[test]
    fn what_apt_asks_for_is_read() {
        let text = format!(
            "Reading package lists...\n'http://deb.debian.org/debian/pool/main/j/jq/jq_1.6-2.1_amd64.deb' jq_1.6-2.1_amd64.deb 64900 SHA256:{DIGEST}\n"
        );
        let file = AptFile {
            path: "pool/main/j/jq/jq_1.6-2.1_amd64.deb".to_owned(),
            name: "jq_1.6-2.1_amd64.deb".to_owned(),
            size: 64_900,
            sha256: DIGEST.to_owned(),
        };
        assert_eq!(asked(&text), Ok(vec![file]));
        assert_eq!(asked("0 upgraded\n"), Ok(Vec::new()));
    }

    #[test]
    fn what_cannot_be_trusted_is_refused() {
        for line in [
            "'http://h/pool/a.deb' a.deb 5 MD5Sum:0123".to_owned(),
            format!("'http://h/pool/a.deb' ../a.deb 5 SHA256:{DIGEST}"),
            format!("'http://h/a.deb' a.deb 5 SHA256:{DIGEST}"),
            format!("'http://h/pool/a.deb' a.deb many SHA256:{DIGEST}"),
            "'http://h/pool/a.deb".to_owned(),
            "'http://h/pool/a.deb' a.deb".to_owned(),
        ] {
            assert!(asked(&line).is_err(), "{line}");
        }
    }
}
