//! Commits of Git remotes, through the `git` program.
//!
//! One bare repository per remote is kept as a cache. A fetch asks for exactly the commit (and
//! the one before, for path filters) without its history. The program is kept away from whatever
//! this machine's users have configured, may use only the protocols of a list, never asks a
//! terminal, and gets credentials through an open file of this process: they stand in no
//! argument, no environment and on no disk.

mod credentials;
mod process;

use std::fs::File;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest, FileSource, SourceFile};
use oast_daemon::clock::SharedClock;
use oast_daemon::secret::redact;
use oast_daemon::task::Tasks;
use oast_daemon::telemetry::chain;
use oast_model::names;
use oast_model::task::Origin;
use rustix::fs::{FlockOperation, flock};

use crate::config::SourceConfig;
use crate::runner::{Attempt, Halt};
use credentials::Credentials;
use process::{Process, ProcessError};

/// Most names of one commit; a list beyond is nothing that people wrote.
const ENTRIES_MAX: usize = 500_000;
/// Longest symbolic link.
const LINK_MAX: u64 = 4096;
/// Most that a listing command may print.
const LISTING_MAX: usize = 256 << 20;
/// Time for commands that touch only this disk.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(120);

/// How the url of a repository that the farm serves itself begins.
const HOSTED: &str = "farm:";
/// Where the members keep those, in the artifact store's folder (their `git_dir`).
const HOSTED_FOLDER: &str = "git";

/// Fetches commits into a folder of caches.
#[derive(Debug)]
pub struct Git {
    config: SourceConfig,
    /// Holds a bare repository per remote, and the home folder of the git processes.
    folder: Utf8PathBuf,
    /// Holds the repositories that the farm serves itself.
    hosted: Utf8PathBuf,
    store: ArtifactStore,
    tasks: Tasks,
    clock: SharedClock,
}

/// A commit, stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its tree in the artifact store.
    pub tree: Digest,
    /// First line of its message.
    pub subject: String,
    /// Who wrote it.
    pub author: String,
    /// Files that changed since the commit before; none when that is not known.
    pub changed: Option<Vec<String>>,
}

/// Git could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A folder or file of the cache.
    #[error("prepare the Git cache {path}")]
    Folder {
        /// Which.
        path: Utf8PathBuf,
        #[source]
        err: std::io::Error,
    },
}

impl Git {
    /// Prepares the cache in `folder`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(
        config: SourceConfig,
        folder: Utf8PathBuf,
        store: ArtifactStore,
        tasks: Tasks,
        clock: SharedClock,
    ) -> Result<Git, PrepareError> {
        let home = folder.join("home");
        let error = |path: &Utf8Path, err| PrepareError::Folder {
            path: path.to_owned(),
            err,
        };
        std::fs::create_dir_all(&home).map_err(|err| error(&home, err))?;
        let config_file = home.join("config");
        // Repositories of this machine may belong to other users; that is allowed or refused as
        // a whole by `allow_file`. Caches have no refs, so nothing of them may be collected.
        let safe = if config.allow_file {
            "[safe]\n\tdirectory = *\n"
        } else {
            ""
        };
        let text = format!("[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n{safe}");
        std::fs::write(&config_file, text).map_err(|err| error(&config_file, err))?;
        Ok(Git {
            config,
            folder,
            hosted: store.root().join(HOSTED_FOLDER),
            store,
            tasks,
            clock,
        })
    }

    /// Fetches the commit of a Git origin and stores its tree.
    pub async fn commit(&self, attempt: &Attempt, origin: &Origin) -> Result<Commit, Halt> {
        let Origin::Git {
            url,
            branch,
            commit,
            before,
            credentials,
        } = origin
        else {
            return Err(Halt::errored("an upload has no remote to fetch from"));
        };
        if !is_object_id(commit) {
            return Err(Halt::failed(format!("{commit:?} is no full commit id")));
        }
        let secret = match credentials {
            None => None,
            Some(reference) => match attempt.secrets.0.get(reference.secret.as_str()) {
                Some(value) => Some(Credentials::new(value, url).map_err(|err| Halt::error(&err))?),
                None => {
                    return Err(Halt::failed(format!(
                        "the repository needs the secret {}, which team {} does not have; set it with `oast secret set`",
                        reference.secret, attempt.team
                    )));
                }
            },
        };
        let before = before.as_deref().filter(|before| is_object_id(before));
        let cache = self.cache(url, attempt).await?;
        let place = self.place(url);
        let fetch = Fetch {
            git: self,
            cache: &cache,
            url: &place,
            branch,
            secret: secret.as_ref(),
            attempt,
        };
        fetch.bring(commit).await?;
        let changed = match before {
            None => None,
            Some(before) => fetch.changed(before, commit).await,
        };
        let (subject, author) = fetch.headline(commit).await?;
        let tree = fetch.tree(commit).await?;
        Ok(Commit {
            tree,
            subject,
            author,
            changed,
        })
    }

    /// Where a remote is read: repositories that the farm serves itself (`farm:NAME`) lie in a
    /// folder that workers share with the members.
    fn place(&self, url: &str) -> String {
        match url.strip_prefix(HOSTED) {
            Some(name) if names::check(name).is_ok() => {
                self.hosted.join(format!("{name}.git")).into_string()
            }
            _ => url.to_owned(),
        }
    }

    /// Opens and locks the cache of a remote. Tasks of one remote go one after the other.
    async fn cache(&self, url: &str, attempt: &Attempt) -> Result<Cache, Halt> {
        let name = blake3::hash(url.as_bytes()).to_hex();
        let path = self.folder.join(&name[..24]);
        let lock = Utf8PathBuf::from(format!("{path}.lock"));
        let locked = self
            .tasks
            .blocking("git-lock", {
                let lock = lock.clone();
                move || {
                    let file = File::create(&lock)?;
                    flock(&file, FlockOperation::LockExclusive)?;
                    Ok::<_, std::io::Error>(file)
                }
            })
            .await?;
        let lock = locked.map_err(|err| Halt::errored(format!("lock {lock}: {err}")))?;
        if !path.join("HEAD").exists() {
            let mut init = self.process(None);
            init.args(["init", "--quiet", "--bare", path.as_str()]);
            self.run(init, attempt).await?;
        }
        Ok(Cache { path, _lock: lock })
    }

    /// A git process that sees nothing of this machine's users.
    fn process(&self, cache: Option<&Cache>) -> Process {
        let mut process = Process::new(&self.config.git, self.clock.clone());
        let home = self.folder.join("home");
        let protocols = if self.config.allow_file {
            "http:https:ssh:file"
        } else {
            "http:https:ssh"
        };
        process.env("HOME", home.as_str());
        process.env("XDG_CONFIG_HOME", home.as_str());
        process.env("GIT_CONFIG_NOSYSTEM", "1");
        process.env("GIT_CONFIG_GLOBAL", home.join("config").as_str());
        process.env("GIT_ATTR_NOSYSTEM", "1");
        process.env("GIT_TERMINAL_PROMPT", "0");
        process.env("GIT_ALLOW_PROTOCOL", protocols);
        process.env("GIT_NO_REPLACE_OBJECTS", "1");
        process.env("GIT_OPTIONAL_LOCKS", "0");
        process.env("LC_ALL", "C.UTF-8");
        if let Some(cache) = cache {
            process.args(["--git-dir", cache.path.as_str()]);
        }
        process
    }

    /// Runs a command that touches only this disk.
    async fn run(&self, process: Process, _attempt: &Attempt) -> Result<Vec<u8>, Halt> {
        process
            .output(LOCAL_TIMEOUT, LISTING_MAX)
            .await
            .map_err(|err| Halt::error(&err))
    }
}

/// A bare repository, locked.
#[derive(Debug)]
struct Cache {
    path: Utf8PathBuf,
    /// Open for as long as the lock is held.
    _lock: File,
}

/// One remote's commit being fetched.
struct Fetch<'a> {
    git: &'a Git,
    cache: &'a Cache,
    url: &'a str,
    branch: &'a str,
    secret: Option<&'a Credentials>,
    attempt: &'a Attempt,
}

impl Fetch<'_> {
    fn local(&self) -> Process {
        self.git.process(Some(self.cache))
    }

    async fn has(&self, commit: &str) -> bool {
        let mut process = self.local();
        process.args(["cat-file", "-e", &format!("{commit}^{{tree}}")]);
        process.output(LOCAL_TIMEOUT, LISTING_MAX).await.is_ok()
    }

    /// Makes the commit's files present.
    async fn bring(&self, commit: &str) -> Result<(), Halt> {
        let url = redact(self.url);
        let short = &commit[..12];
        if self.has(commit).await {
            self.attempt
                .log
                .engine(0, format!("commit {short} of {url} is in the cache"));
            return Ok(());
        }
        self.attempt.log.engine(
            0,
            format!("fetch commit {short} ({}) from {url}", self.branch),
        );
        let exact = self.fetch(&["--depth=1"], commit).await;
        if exact.is_ok() && self.has(commit).await {
            return Ok(());
        }
        // Some servers give out only what a branch points to: then the whole branch.
        let branch = format!("refs/heads/{}", self.branch);
        let whole = match exact {
            Err(error) if !error.may_be_refused_commit() => Err(error),
            _ => self.fetch(&[], &branch).await,
        };
        match whole {
            Ok(_) if self.has(commit).await => Ok(()),
            Ok(_) => Err(Halt::failed(format!(
                "{url} has no commit {commit} on branch {}; it may have been force-pushed away",
                self.branch
            ))),
            Err(error) => Err(self.sorted(&error)),
        }
    }

    async fn fetch(&self, options: &[&str], what: &str) -> Result<Vec<u8>, ProcessError> {
        let mut process = self.local();
        process.args([
            "-c",
            "protocol.version=2",
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--no-auto-maintenance",
        ]);
        process.args(options.iter().copied());
        process.args(["--", self.url, what]);
        if self.url.starts_with(self.git.hosted.as_str()) {
            process.env("GIT_ALLOW_PROTOCOL", "file");
        }
        if let Some(secret) = self.secret {
            secret.give(&mut process, &self.git.folder)?;
        }
        process
            .output(self.git.config.timeout.duration(), LISTING_MAX)
            .await
    }

    /// A failed fetch: the author's mistake or ours.
    fn sorted(&self, error: &ProcessError) -> Halt {
        let said = error.said().to_lowercase();
        let url = redact(self.url);
        let theirs = [
            "not allowed",
            "could not read username",
            "could not read password",
            "authentication failed",
            "permission denied",
            "not found",
            "does not appear to be a git repository",
            "couldn't find remote ref",
            "not our ref",
        ];
        let reason = format!("fetch {url}: {}", redact(&chain(error).to_string()));
        if theirs.iter().any(|words| said.contains(words)) {
            let hint = if said.contains("not allowed") {
                "; this worker fetches http, https and ssh only (source.allow_file is off)"
            } else {
                "; check the repository's `url` and `credentials`"
            };
            return Halt::failed(format!("{reason}{hint}"));
        }
        Halt::errored(reason)
    }

    /// The changed files, if both commits can be had.
    async fn changed(&self, before: &str, commit: &str) -> Option<Vec<String>> {
        if !self.has(before).await {
            // A force push may have made it unreachable; then every path counts as changed.
            let _ = self.fetch(&["--depth=1"], before).await;
        }
        let mut process = self.local();
        process.args([
            "diff-tree",
            "-r",
            "-z",
            "--name-only",
            "--no-renames",
            before,
            commit,
        ]);
        let listing = process.output(LOCAL_TIMEOUT, LISTING_MAX).await.ok()?;
        Some(
            listing
                .split(|byte| *byte == 0)
                .filter(|name| !name.is_empty())
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect(),
        )
    }

    async fn headline(&self, commit: &str) -> Result<(String, String), Halt> {
        let mut process = self.local();
        process.args([
            "show",
            "--no-patch",
            "--no-show-signature",
            "--format=%s%n%an <%ae>",
            commit,
            "--",
        ]);
        let text = self.git.run(process, self.attempt).await?;
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let subject = lines.next().unwrap_or_default().to_owned();
        let author = lines.next().unwrap_or_default().to_owned();
        Ok((subject, author))
    }

    /// Stores the commit's files.
    async fn tree(&self, commit: &str) -> Result<Digest, Halt> {
        let mut process = self.local();
        process.args(["ls-tree", "-r", "-z", "-l", "--full-tree", commit]);
        let listing = self.git.run(process, self.attempt).await?;
        let limit = self.git.config.tree_max.bytes();
        let entries = parse_listing(&listing, limit)?;
        let mut process = self.local();
        process.args(["cat-file", "--batch", "--buffer"]);
        let ids: String = entries
            .iter()
            .map(|entry| format!("{}\n", entry.id))
            .collect();
        let scratch = self.git.folder.clone();
        let store = self.git.store.clone();
        let (reading, source) = process
            .start(ids.as_bytes())
            .map_err(|err| Halt::error(&err))?;
        let storing = self.git.tasks.blocking("store-tree", move || {
            store_tree(&store, &entries, source, &scratch)
        });
        let stored = storing.await?;
        // Whatever git thought of it: each object was read with the length it announced.
        drop(reading);
        stored
    }
}

fn is_object_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// One line of `git ls-tree`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: String,
    id: String,
    kind: Kind,
    size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Executable,
    Link,
}

fn parse_listing(listing: &[u8], limit: u64) -> Result<Vec<Entry>, Halt> {
    let mut entries = Vec::new();
    let mut total = 0_u64;
    for line in listing.split(|byte| *byte == 0).filter(|l| !l.is_empty()) {
        let strange = || {
            let line = String::from_utf8_lossy(line);
            Halt::errored(format!("git ls-tree printed {line:?}"))
        };
        let tab = line
            .iter()
            .position(|byte| *byte == b'\t')
            .ok_or_else(strange)?;
        let (head, path) = (&line[..tab], &line[tab + 1..]);
        let path = std::str::from_utf8(path).map_err(|_| {
            Halt::failed(format!(
                "the file name {:?} is not UTF-8; rename it",
                String::from_utf8_lossy(path)
            ))
        })?;
        let head = std::str::from_utf8(head).map_err(|_| strange())?;
        let mut words = head.split_ascii_whitespace();
        let (Some(mode), Some(_), Some(id), Some(size)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(strange());
        };
        let kind = match mode {
            "100644" | "100664" => Kind::File,
            "100755" => Kind::Executable,
            "120000" => Kind::Link,
            "160000" => {
                return Err(Halt::failed(format!(
                    "{path} is a submodule, which is not fetched; commit its files instead, or get them in a `run` step"
                )));
            }
            _ => return Err(strange()),
        };
        let size: u64 = size.parse().map_err(|_| strange())?;
        if kind == Kind::Link && size > LINK_MAX {
            return Err(Halt::failed(format!(
                "the symbolic link {path} is too long"
            )));
        }
        total = total.saturating_add(size);
        entries.push(Entry {
            path: path.to_owned(),
            id: id.to_owned(),
            kind,
            size,
        });
    }
    if total > limit || entries.len() > ENTRIES_MAX {
        return Err(Halt::failed(format!(
            "the commit has {} files of {total} bytes; at most {ENTRIES_MAX} files of {limit} bytes are taken (source.tree_max)",
            entries.len()
        )));
    }
    Ok(entries)
}

/// A file of at least this size goes over the disk and not through memory.
const LARGE: u64 = 4 << 20;

fn store_tree(
    store: &ArtifactStore,
    entries: &[Entry],
    source: impl std::io::Read,
    scratch: &Utf8Path,
) -> Result<Digest, Halt> {
    use std::io::{BufRead, Read};
    let mut source = std::io::BufReader::with_capacity(1 << 18, source);
    let errored = |what: &str, err: std::io::Error| Halt::errored(format!("{what}: {err}"));
    let large = tempfile::tempdir_in(scratch)
        .map_err(|err| errored("make a folder for large files", err))?;
    let large_path = Utf8Path::from_path(large.path())
        .ok_or_else(|| Halt::errored("the data directory's path is not UTF-8"))?;
    let mut files = Vec::with_capacity(entries.len());
    for (entry, place) in entries.iter().zip(0..) {
        let broken = |err| errored(&format!("read {} from git", entry.path), err);
        let mut header = String::new();
        source.read_line(&mut header).map_err(broken)?;
        // `<id> blob <size>`, or `<id> missing`.
        if header.trim_end() != format!("{} blob {}", entry.id, entry.size) {
            return Err(Halt::errored(format!(
                "git has no {}: {}",
                entry.path,
                header.trim_end()
            )));
        }
        let executable = entry.kind == Kind::Executable;
        let mut content = (&mut source).take(entry.size);
        let from = if entry.kind != Kind::Link && entry.size >= LARGE {
            let path = large_path.join(place.to_string());
            let mut file = File::create(&path).map_err(broken)?;
            let copied = std::io::copy(&mut content, &mut file).map_err(broken)?;
            whole(entry, copied)?;
            FileSource::OnDisk { path, executable }
        } else {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(broken)?;
            whole(entry, bytes.len() as u64)?;
            if entry.kind == Kind::Link {
                let target = String::from_utf8(bytes).map_err(|_| {
                    Halt::failed(format!(
                        "the symbolic link {} leads to a name that is not UTF-8",
                        entry.path
                    ))
                })?;
                FileSource::Symlink { target }
            } else {
                FileSource::Bytes { bytes, executable }
            }
        };
        let mut end = [0];
        source.read_exact(&mut end).map_err(broken)?;
        files.push(SourceFile {
            path: entry.path.clone(),
            source: from,
        });
    }
    let stored = store.put_files(files).map_err(|err| Halt::error(&err))?;
    Ok(stored.blob)
}

fn whole(entry: &Entry, read: u64) -> Result<(), Halt> {
    if read == entry.size {
        return Ok(());
    }
    Err(Halt::errored(format!(
        "git ended after {read} of {} bytes of {}",
        entry.size, entry.path
    )))
}
