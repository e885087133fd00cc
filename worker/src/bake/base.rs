//! The base system of an image, made from a distribution's packages by the engine itself.
//!
//! ```text
//! source   where each suite comes from: pipeline, worker, the machine's apt
//! release  InRelease fetched, verified (signature), dated
//! archive  indices by digest, read (index), and the packages chosen (solve, version)
//! fetch    packages by digest, in parallel, resumable
//! unpack   deb -> tree, on all cores, owners shifted; database: what dpkg must know
//! configure  dpkg --configure in a sandbox, then cleaned; lists: apt works in the image
//! ```
//!
//! [`resolve`] answers what a base would be made of (for the layer's key) without making it;
//! [`build`] makes it; [`tools`] unpacks packages that the engine needs beside the image. The
//! work blocks, so it runs on one blocking task with threads of its own; dropping the future
//! leaves the task to notice `cancel`. A root that was not finished is removed.
//!
//! Not done here: layers and their keys (the caller's), disks and initial ramdisks (`image`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

use oast_daemon::clock::SharedClock;

pub mod apt;
pub mod apt_conf;
pub mod archive;
pub mod configure;
pub mod confine;
pub mod database;
pub mod deb;
pub mod distribution;
pub mod fetch;
pub mod index;
pub mod lists;
pub mod release;
pub mod signature;
pub mod solve;
pub mod source;
pub mod tree;
pub mod unpack;
pub mod version;

use archive::{ArchiveError, Archives, Plan};
use configure::{Configure, ConfigureError, Confined};
use distribution::Distribution;
use fetch::{FetchError, FetchOptions, Fetcher};
use release::Freshness;
use source::{Mirror, SourceError, SuiteSource};
use tree::Tree;
use unpack::{UnpackError, Unpacker};

/// What the base shall be.
#[derive(Clone, Debug)]
pub struct BaseRequest {
    /// `debian-12`, `ubuntu-24.04`, …
    pub distribution: String,
    /// Debian's name of the architecture; it must be this machine's, as scripts run natively.
    pub architecture: String,
    /// Packages beside the system itself.
    pub packages: Vec<String>,
    /// Whether the system boots by itself, so has a kernel.
    pub kernel: bool,
    /// Lines of the image's own `sources.list`; empty means the distribution's public archive.
    pub sources: Vec<String>,
    /// The pipeline's mirror.
    pub mirror: Option<Mirror>,
}

/// Where and with what a base is made. Cheap to clone.
#[derive(Clone)]
pub struct BaseContext {
    /// Holds fetched packages, indices and plans; one worker's own.
    pub cache_dir: Utf8PathBuf,
    /// Root of the machine's apt configuration, usually `/etc/apt`.
    pub apt_root: Utf8PathBuf,
    /// Mirrors of the worker's configuration.
    pub mirrors: Vec<Mirror>,
    pub fetch: FetchOptions,
    /// Archives asked less than this long ago are not asked again.
    pub index_max_age: Duration,
    pub confined: Arc<dyn Confined>,
    pub clock: SharedClock,
    pub progress: Arc<dyn Progress>,
    /// The image's id 0 is this id of this machine.
    pub host_base: u32,
    /// Threads that unpack.
    pub threads: usize,
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for BaseContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BaseContext")
            .field("cache_dir", &self.cache_dir)
            .finish_non_exhaustive()
    }
}

/// A part of the work, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Resolve,
    Fetch,
    Unpack,
    Configure,
}

/// Something to show while a base is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Began(Stage),
    /// Bytes while fetching, packages while unpacking.
    Advanced {
        stage: Stage,
        done: u64,
        total: u64,
    },
    Ended {
        stage: Stage,
        took: Duration,
    },
}

/// Hears how a base comes along; called from several threads.
pub trait Progress: Send + Sync {
    fn event(&self, event: Event);
}

/// Shows nothing.
impl Progress for () {
    fn event(&self, _event: Event) {}
}

/// A package of the base.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstalledPackage {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// SHA-256 of the package file.
    pub sha256: String,
}

/// What a base would be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub packages: Vec<InstalledPackage>,
    /// blake3 over the verified indices, for the layer's key. It changes with any change of the
    /// archive.
    pub index_digest: String,
    /// blake3 over the chosen packages. It changes only when one of *them* changes.
    pub closure_digest: String,
}

/// A finished base.
#[derive(Clone, Debug)]
pub struct Base {
    pub root: Utf8PathBuf,
    pub resolved: Resolved,
}

/// A base that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BaseError {
    #[error("make a base of `{name}`: the engine knows {known}")]
    Distribution { name: String, known: String },
    #[error("make a base for {wanted}: this worker runs {native} programs only")]
    Architecture {
        wanted: String,
        native: &'static str,
    },
    #[error("make a base of {distribution}: it has no kernel package for {architecture}")]
    Kernel {
        distribution: &'static str,
        architecture: String,
    },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Database(#[from] database::DatabaseError),
    #[error(transparent)]
    Configure(#[from] ConfigureError),
    #[error(transparent)]
    Lists(#[from] lists::ListsError),
    #[error("make the root folder {path}")]
    Root {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("make the base: the work was cancelled")]
    Cancelled,
}

/// Finds out what a base would be made of, without making it.
pub async fn resolve(request: &BaseRequest, context: &BaseContext) -> Result<Resolved, BaseError> {
    let (request, context) = (request.clone(), context.clone());
    blocking(context, move |context| {
        let work = Work::new(&request, context)?;
        work.stage(Stage::Resolve, || work.resolve())
            .map(|(_, plan, digest)| described(&plan, digest))
    })
    .await
}

/// Makes a base in the folder `root`, which must not exist yet; its parent must.
pub async fn build(
    request: &BaseRequest,
    context: &BaseContext,
    root: &Utf8Path,
) -> Result<Base, BaseError> {
    let (request, context, root) = (request.clone(), context.clone(), root.to_owned());
    blocking(context, move |context| {
        let work = Work::new(&request, context)?;
        let result = work.build(&root);
        if result.is_err() && !matches!(result, Err(BaseError::Root { .. })) {
            // Half a root is worth nothing, and a later try would find it in its way.
            if let Err(error) = std::fs::remove_dir_all(&root) {
                tracing::warn!(%root, %error, "An unfinished root could not be removed.");
            }
        }
        result
    })
    .await
}

/// Unpacks packages (without their dependencies) into a folder outside any image, for tools and
/// data that the engine itself needs. The folder is reused when it holds the same packages.
pub async fn tools(
    request: &BaseRequest,
    context: &BaseContext,
    names: &[&str],
) -> Result<Utf8PathBuf, BaseError> {
    let (request, context) = (request.clone(), context.clone());
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    blocking(context, move |context| {
        Work::new(&request, context)?.tools(&names)
    })
    .await
}

/// As [`tools`], with everything that the packages depend on: a folder in which programs find all
/// that they need.
pub async fn toolbox(
    request: &BaseRequest,
    context: &BaseContext,
    names: &[&str],
) -> Result<Utf8PathBuf, BaseError> {
    let (request, context) = (request.clone(), context.clone());
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    blocking(context, move |context| {
        let work = Work::new(&request, context)?;
        let (_, plan) = work.plan(&names, false)?;
        work.unpacked(&plan)
    })
    .await
}

/// Runs work on a blocking task that is told when nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    context: BaseContext,
    work: impl FnOnce(&BaseContext) -> Result<T, BaseError> + Send + 'static,
) -> Result<T, BaseError> {
    let cancel = context.cancel.child_token();
    let guard: DropGuard = cancel.clone().drop_guard();
    let context = BaseContext { cancel, ..context };
    #[expect(
        clippy::disallowed_methods,
        reason = "the caller's own task waits for it and carries its name"
    )]
    let result = tokio::task::spawn_blocking(move || work(&context)).await;
    drop(guard);
    match result {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(BaseError::Cancelled),
    }
}

fn described(plan: &Plan, index_digest: String) -> Resolved {
    let mut hasher = blake3::Hasher::new();
    let packages = plan
        .packages
        .iter()
        .map(|planned| {
            hasher.update(planned.name.as_bytes());
            hasher.update(b" ");
            hasher.update(planned.file.sha256.as_bytes());
            hasher.update(b"\n");
            InstalledPackage {
                name: planned.name.clone(),
                version: planned.version.clone(),
                architecture: planned.architecture.clone(),
                sha256: planned.file.sha256.clone(),
            }
        })
        .collect();
    let closure_digest = hasher.finalize().to_hex().to_string();
    Resolved {
        packages,
        index_digest,
        closure_digest,
    }
}

/// One request being worked on, on a blocking thread.
struct Work<'a> {
    request: &'a BaseRequest,
    context: &'a BaseContext,
    distribution: &'static Distribution,
    fetcher: Fetcher,
    sources: Vec<SuiteSource>,
}

impl<'a> Work<'a> {
    fn new(request: &'a BaseRequest, context: &'a BaseContext) -> Result<Self, BaseError> {
        let distribution =
            Distribution::find(&request.distribution).ok_or_else(|| BaseError::Distribution {
                name: request.distribution.clone(),
                known: Distribution::names().collect::<Vec<_>>().join(", "),
            })?;
        let native = distribution::native_architecture();
        if request.architecture != native {
            return Err(BaseError::Architecture {
                wanted: request.architecture.clone(),
                native,
            });
        }
        let sources = source::find(
            &source::Wanted {
                suite: distribution.suite,
                overlays: distribution.overlays,
                components: distribution.components,
                architecture: &request.architecture,
            },
            &source::Places {
                mirror: request.mirror.as_ref(),
                configured: &context.mirrors,
                apt_root: &context.apt_root,
            },
        )?;
        let mut options = context.fetch.clone();
        if options.proxy.is_none() {
            options.proxy = apt_conf::http_proxy(&context.apt_root);
        }
        let fetcher = Fetcher::new(&context.cache_dir, options, context.cancel.clone())?;
        Ok(Self {
            request,
            context,
            distribution,
            fetcher,
            sources,
        })
    }

    fn open(&self, max_age: Duration) -> Result<Archives, ArchiveError> {
        let freshness = Freshness {
            now: i64::try_from(self.context.clock.wall().0 / 1000).unwrap_or(i64::MAX),
            max_age_seconds: i64::try_from(max_age.as_secs()).unwrap_or(i64::MAX),
        };
        Archives::open(
            &self.fetcher,
            &self.sources,
            &self.request.architecture,
            &self.context.cache_dir,
            freshness,
        )
    }

    /// Opens the archives and chooses packages. An archive that is updated between its release
    /// file and its index is asked a second time.
    fn plan(&self, packages: &[String], system: bool) -> Result<(Archives, Plan), ArchiveError> {
        let request = solve::Request {
            packages,
            provided: configure::PROVIDED,
            preferred: self.distribution.preferred,
            system,
        };
        let attempt = |max_age| {
            let archives = self.open(max_age)?;
            let plan = archives.plan(&self.fetcher, &self.request.architecture, &request)?;
            Ok((archives, plan))
        };
        match attempt(self.context.index_max_age) {
            Err(ArchiveError::Fetch(error))
                if error.is_not_found() || matches!(error, FetchError::Mismatch { .. }) =>
            {
                tracing::info!(%error, "The archive seems to be in an update; will ask again.");
                attempt(Duration::ZERO)
            }
            other => other,
        }
    }

    fn resolve(&self) -> Result<(Archives, Plan, String), BaseError> {
        let mut packages: Vec<String> = self
            .distribution
            .packages
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        if self.request.kernel {
            let kernel = self
                .distribution
                .kernel(&self.request.architecture)
                .ok_or_else(|| BaseError::Kernel {
                    distribution: self.distribution.name,
                    architecture: self.request.architecture.clone(),
                })?;
            packages.push(kernel.to_owned());
        }
        packages.extend(self.request.packages.iter().cloned());
        let (archives, plan) = self.plan(&packages, true)?;
        let digest = archives.digest.clone();
        Ok((archives, plan, digest))
    }

    fn build(&self, root: &Utf8Path) -> Result<Base, BaseError> {
        let (archives, plan, digest) = self.stage(Stage::Resolve, || self.resolve())?;
        let files = self.stage(Stage::Fetch, || self.fetch(&plan))?;
        let modified = archives
            .releases
            .iter()
            .map(|release| release.date)
            .max()
            .unwrap_or(0);
        let made = |source| BaseError::Root {
            path: root.to_owned(),
            source,
        };
        let tree = unpack::make_root(
            root,
            self.context.host_base,
            self.distribution.merged,
            modified,
        )
        .map_err(made)?;
        let unpacked = self.stage(Stage::Unpack, || {
            let unpacked = self.unpack(&tree, &plan, &files)?;
            let stand_ins: &[_] = if self.request.kernel {
                &[configure::RAMDISK]
            } else {
                &[]
            };
            database::write(&tree, &unpacked, stand_ins, modified)?;
            Ok(unpacked)
        })?;
        self.stage(Stage::Configure, || {
            if self.context.cancel.is_cancelled() {
                return Err(BaseError::Cancelled);
            }
            let scratch = Utf8PathBuf::from(format!("{root}.scratch"));
            let configure = Configure {
                tree: &tree,
                root,
                scratch: &scratch,
                confined: self.context.confined.as_ref(),
                cancel: &self.context.cancel,
                modified,
            };
            configure.run(&unpacked)?;
            let sources = &self.request.sources;
            lists::write(
                &tree,
                self.distribution,
                (!sources.is_empty()).then_some(sources.as_slice()),
                &archives,
                &self.fetcher,
                &self.request.architecture,
            )?;
            Ok(())
        })?;
        Ok(Base {
            root: root.to_owned(),
            resolved: described(&plan, digest),
        })
    }

    fn tools(&self, names: &[String]) -> Result<Utf8PathBuf, BaseError> {
        let mut found = Vec::new();
        let (_, plan) = self.plan(names, false)?;
        for planned in plan.packages {
            if names.contains(&planned.name) {
                found.push(planned);
            }
        }
        self.unpacked(&Plan { packages: found })
    }

    /// The packages unpacked in a folder of the cache.
    fn unpacked(&self, plan: &Plan) -> Result<Utf8PathBuf, BaseError> {
        let resolved = described(plan, String::new());
        let folder = self
            .context
            .cache_dir
            .join("tools")
            .join(&resolved.closure_digest[..32]);
        if folder.is_dir() {
            return Ok(folder);
        }
        let files = self.fetch(plan)?;
        let parent = self.context.cache_dir.join("tools");
        let made = |source| BaseError::Root {
            path: folder.clone(),
            source,
        };
        std::fs::create_dir_all(&parent).map_err(made)?;
        let partial = tempfile::tempdir_in(&parent).map_err(made)?;
        let path = partial.path().join("root");
        let path = Utf8PathBuf::from_path_buf(path).map_err(|path| {
            let reason = format!("{} is not UTF-8", path.display());
            made(std::io::Error::other(reason))
        })?;
        let tree = unpack::make_root(&path, 0, self.distribution.merged, 0).map_err(made)?;
        self.unpack(&tree, plan, &files)?;
        match std::fs::rename(&path, &folder) {
            // Another task made the same folder meanwhile; its content is the same.
            Err(_) if folder.is_dir() => Ok(folder),
            Err(source) => Err(made(source)),
            Ok(()) => Ok(folder),
        }
    }

    fn fetch(&self, plan: &Plan) -> Result<Vec<Utf8PathBuf>, BaseError> {
        let wanted: Vec<_> = plan
            .packages
            .iter()
            .map(|planned| planned.file.clone())
            .collect();
        let files = self.fetcher.all(&wanted, &|done, total| {
            self.event(Event::Advanced {
                stage: Stage::Fetch,
                done,
                total,
            });
        })?;
        Ok(files)
    }

    fn unpack(
        &self,
        tree: &Tree,
        plan: &Plan,
        files: &[Utf8PathBuf],
    ) -> Result<Vec<unpack::Unpacked>, BaseError> {
        let sources: Vec<_> = plan
            .packages
            .iter()
            .zip(files)
            .map(|(planned, file)| unpack::Source {
                name: planned.name.clone(),
                version: planned.version.clone(),
                file: file.clone(),
                size: planned.file.size,
            })
            .collect();
        let done = AtomicU64::new(0);
        let total = sources.len() as u64;
        let unpacker = Unpacker {
            tree,
            merged: self.distribution.merged,
            threads: self.context.threads,
            cancel: &self.context.cancel,
        };
        let unpacked = unpacker.unpack(&sources, &|_| {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            self.event(Event::Advanced {
                stage: Stage::Unpack,
                done,
                total,
            });
        })?;
        Ok(unpacked)
    }

    fn stage<T>(
        &self,
        stage: Stage,
        work: impl FnOnce() -> Result<T, BaseError>,
    ) -> Result<T, BaseError> {
        let began = self.context.clock.monotonic();
        self.event(Event::Began(stage));
        let result = work()?;
        let took = self.context.clock.monotonic().saturating_sub(began);
        tracing::info!(?stage, ?took, "A stage of the base is done.");
        self.event(Event::Ended { stage, took });
        Ok(result)
    }

    fn event(&self, event: Event) {
        self.context.progress.event(event);
    }
}
