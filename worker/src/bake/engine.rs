//! One bake, from the base through its steps to the disk.
//!
//! ```text
//! keys of all steps (pure) --FindLayers--> known layers
//! base, then each step:  done before | known | made here: upper folder -> layer -> StepFinished
//! all layers -> disk (made or patched) -> BakedImage
//! ```
//!
//! A step is finished when its chunks and manifest are durable in the store, and only then it is
//! reported. An attempt goes on after the last finished step of the one before it. Two tasks of
//! this worker that need the same layer wait for one. Everything half-made lies in one folder per
//! attempt, which is removed with it or at the next start; sandboxes die with this process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::{ArtifactStore, Digest, Tree};
use oast_daemon::clock::SharedClock;
use oast_daemon::metrics::{Counters, Histograms, Metric, Metrics};
use oast_daemon::task::Tasks;
use oast_model::bake::{BakedImage, Layer, Trust};
use oast_model::names::WorkerName;
use oast_model::pipeline::{Action, Bake, Base};
use oast_model::task::{NamedImage, Report};
use tokio_util::sync::CancellationToken;

use super::base::confine::Sandboxed;
use super::base::{self, BaseContext, BaseError, BaseRequest, Event, Progress, fetch, source};
use super::cache::{CacheError, Layers};
use super::disk::{Chain, Disks};
use super::find::Finder;
use super::key::{self, Scope};
use super::layer::{LayerRecord, PackOptions, UnpackedLayer, pack};
use super::manifest;
use super::steps::run::Kitchen;
use crate::config::BakeConfig;
use crate::image::Tools;
use crate::runner::{Attempt, Halt};
use crate::source::normal_path;

mod make;
mod origin;
mod packages;

/// Archives asked less than this long ago are not asked again.
const INDEX_MAX_AGE: Duration = Duration::from_secs(3600);
/// The largest keyring that a pipeline may bring.
const KEYRING_MAX: u64 = 16 << 20;
/// Packages that hold the programs of the boot partition.
const TOOL_PACKAGES: [&str; 2] = ["systemd-boot-efi", "busybox-static"];
/// Where those programs may be, with and without a merged /usr.
const STUBS: [&str; 1] = ["usr/lib/systemd/boot/efi/linuxx64.efi.stub"];
const BUSYBOXES: [&str; 2] = ["usr/bin/busybox", "bin/busybox"];

/// What an engine needs.
#[derive(Debug)]
pub struct Engine {
    /// Who makes the layers.
    pub worker: WorkerName,
    /// How images are made here.
    pub config: BakeConfig,
    /// Holds package caches.
    pub base_folder: Utf8PathBuf,
    /// Holds fetched files.
    pub download_folder: Utf8PathBuf,
    /// Holds a folder per attempt.
    pub work_folder: Utf8PathBuf,
    /// Where layers and disks become durable.
    pub store: ArtifactStore,
    /// Unpacked layers.
    pub layers: Arc<Layers>,
    /// Disks.
    pub disks: Arc<Disks>,
    /// What the farm has already.
    pub finder: Arc<dyn Finder>,
    /// Runs steps.
    pub kitchen: Kitchen,
    /// For stamps.
    pub clock: SharedClock,
    /// For blocking work.
    pub tasks: Tasks,
    /// What is counted.
    pub metrics: Metrics,
    /// Layers made here since the start, and who makes one now.
    pub here: Here,
}

/// Layers that this process makes or has made, by key.
#[derive(Debug, Default)]
pub struct Here {
    made: Mutex<BTreeMap<Digest, Layer>>,
    busy: Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

impl Here {
    fn get(&self, key: Digest) -> Option<Layer> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.get(&key).cloned()
    }

    fn put(&self, layer: &Layer) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(layer.key, layer.clone());
    }

    fn turn(&self, key: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for what nobody makes any more.
        busy.retain(|_, turn| Arc::strong_count(turn) > 1);
        busy.entry(key).or_default().clone()
    }
}

/// What is to be baked.
#[derive(Clone, Debug)]
pub struct Request {
    /// The recipe, inputs already filled in.
    pub bake: Bake,
    /// The source tree.
    pub tree: Digest,
    /// Whose work the layers may feed.
    pub trust: Trust,
    /// Layers of the steps that are done.
    pub done: Vec<Layer>,
    /// Name for messages: the image that will be published.
    pub image: String,
    /// Images that the recipe names.
    pub images: Vec<NamedImage>,
}

/// One bake going on.
struct Baking<'a> {
    engine: &'a Engine,
    attempt: &'a Attempt,
    request: &'a Request,
    tree: Tree,
    keyring: Option<Digest>,
    /// Digest of the verified package indices, once they were asked.
    indices: Option<String>,
    /// Removed with the attempt.
    folder: tempfile::TempDir,
    /// Known layers of this bake, by key.
    known: BTreeMap<Digest, Layer>,
    /// Finished steps, the base first.
    finished: Vec<Layer>,
    /// Layers of the image that is the base, the top one last.
    parents: Vec<Layer>,
}

impl From<CacheError> for Halt {
    fn from(err: CacheError) -> Halt {
        Halt::error(&err)
    }
}

impl Engine {
    /// Does one bake. Dropping the future stops it; finished steps stay finished.
    pub async fn run(&self, attempt: &Attempt, request: Request) -> Result<BakedImage, Halt> {
        let store = self.store.clone();
        let tree = request.tree;
        let tree = self
            .tasks
            .blocking("read-tree", move || store.tree(tree))
            .await?
            .map_err(|err| Halt::error(&err))?;
        let keyring = match request
            .bake
            .mirror
            .as_ref()
            .and_then(|m| m.keyring.as_ref())
        {
            None => None,
            Some(path) => Some(tree.digest_under(normal_path(path)).ok_or_else(|| {
                Halt::failed(format!(
                    "the commit has no {path}, which bake.mirror names as keyring"
                ))
            })?),
        };
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}-", attempt.lease.token))
            .tempdir_in(&self.work_folder)
            .map_err(|err| {
                Halt::errored(format!("make a folder in {}: {err}", self.work_folder))
            })?;
        open_up(folder.path())
            .map_err(|err| Halt::errored(format!("open up {}: {err}", self.work_folder)))?;
        let baking = Baking {
            engine: self,
            attempt,
            request: &request,
            tree,
            keyring,
            indices: None,
            folder,
            known: BTreeMap::new(),
            finished: request.done.clone(),
            parents: Vec::new(),
        };
        baking.run().await
    }

    /// How bases are made, as they are told it.
    fn base_context(&self, attempt: &Attempt, cancel: CancellationToken) -> BaseContext {
        let launcher = self.kitchen.launcher.clone();
        let host_base = launcher.idmap().host_base();
        let runtime = tokio::runtime::Handle::current();
        let confined = Sandboxed::new(launcher, runtime);
        let mirrors = self.config.mirrors.iter().map(|mirror| source::Mirror {
            url: mirror.url.clone(),
            suites: mirror.suites.clone(),
            components: mirror.components.clone(),
            keyring: source::Keyring::Files(mirror.keyrings.clone()),
            check_valid_until: mirror.check_valid_until,
        });
        BaseContext {
            cache_dir: self.base_folder.clone(),
            apt_root: self.config.apt_root.clone(),
            mirrors: mirrors.collect(),
            fetch: fetch::FetchOptions {
                proxy: self.config.http_proxy.clone(),
                cache_bytes_max: self.config.package_cache.bytes(),
                ..fetch::FetchOptions::default()
            },
            index_max_age: INDEX_MAX_AGE,
            confined: Arc::new(confined),
            clock: self.clock.clone(),
            progress: Arc::new(LogProgress {
                attempt: attempt.clone(),
            }),
            host_base,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cancel,
        }
    }
}

/// Lets the mapped root of sandboxes pass through.
fn open_up(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))
}

/// A base's stages in the log.
struct LogProgress {
    attempt: Attempt,
}

impl Progress for LogProgress {
    fn event(&self, event: Event) {
        if let Event::Ended { stage, took } = event {
            let stage = format!("{stage:?}").to_lowercase();
            self.attempt
                .log
                .engine(0, format!("base: {stage} took {:.2} s", took.as_secs_f64()));
        }
    }
}

fn base_halt(err: &BaseError) -> Halt {
    let text = oast_daemon::telemetry::chain(err).to_string();
    match err {
        BaseError::Distribution { .. }
        | BaseError::Architecture { .. }
        | BaseError::Kernel { .. }
        | BaseError::Source(_)
        | BaseError::Configure(_) => Halt::failed(text),
        // What cannot be solved is a wrong package name more often than a broken archive.
        BaseError::Archive(_) if text.contains("has no package") => Halt::failed(text),
        _ => Halt::errored(text),
    }
}

impl Baking<'_> {
    async fn run(mut self) -> Result<BakedImage, Halt> {
        let cancel = CancellationToken::new();
        // Blocking work notices when this future is dropped.
        let _guard = cancel.clone().drop_guard();
        let context = self.engine.base_context(self.attempt, cancel);
        self.parents = self.parents().await?;
        let base_key = match self.finished.first() {
            Some(base) => base.key,
            None => self.base_key(&context).await?,
        };
        let keys = self.keys(base_key)?;
        let wanted: Vec<Digest> = keys.iter().skip(self.finished.len()).copied().collect();
        self.known = self.engine.finder.find(&wanted).await;
        if self.finished.is_empty() {
            self.step(0, base_key, &context).await?;
        }
        for (place, key) in keys.into_iter().enumerate().skip(self.finished.len()) {
            self.step(place, key, &context).await?;
        }
        self.image(&context).await
    }

    fn scope(&self) -> Scope<'_> {
        Scope {
            arch: self.request.bake.arch,
            trust: &self.request.trust,
        }
    }

    fn base_request(&self) -> Result<BaseRequest, Halt> {
        let from = &self.request.bake.from;
        let Base::Distribution { .. } = from else {
            return Err(Halt::errored(format!(
                "bake.from: {from} is no distribution"
            )));
        };
        self.request_of(&from.to_string())
    }

    /// How a distribution is asked for, from the bake's mirror or the worker's.
    fn request_of(&self, distribution: &str) -> Result<BaseRequest, Halt> {
        let bake = &self.request.bake;
        let mirror = match &bake.mirror {
            None => None,
            Some(mirror) => Some(source::Mirror {
                url: mirror.url.clone(),
                suites: Vec::new(),
                components: mirror.components.clone(),
                keyring: self.mirror_keyring(mirror.keyring.as_deref())?,
                check_valid_until: true,
            }),
        };
        Ok(BaseRequest {
            distribution: distribution.to_owned(),
            architecture: bake.arch.as_str().to_owned(),
            packages: bake.packages.clone(),
            kernel: true,
            sources: bake.sources.clone(),
            mirror,
        })
    }

    /// The keyring file of the commit, as a file of this attempt.
    fn mirror_keyring(&self, path: Option<&str>) -> Result<source::Keyring, Halt> {
        let Some(path) = path else {
            return Ok(source::Keyring::Files(Vec::new()));
        };
        let bytes = self
            .engine
            .store
            .read_file(&self.tree, normal_path(path), KEYRING_MAX)
            .map_err(|err| Halt::failed(oast_daemon::telemetry::chain(&err).to_string()))?;
        // Its ending says whether it is armoured.
        let name = path.rsplit('/').next().unwrap_or("keyring.gpg");
        let file = self.path(&format!("keyring-{name}"))?;
        std::fs::write(&file, bytes)
            .map_err(|err| Halt::errored(format!("write {file}: {err}")))?;
        Ok(source::Keyring::Files(vec![file]))
    }

    fn path(&self, name: &str) -> Result<Utf8PathBuf, Halt> {
        Utf8Path::from_path(self.folder.path())
            .map(|folder| folder.join(name))
            .ok_or_else(|| Halt::errored("the data directory's path is not UTF-8"))
    }

    async fn distribution_key(&mut self, context: &BaseContext) -> Result<Digest, Halt> {
        let request = self.base_request()?;
        let resolved = base::resolve(&request, context)
            .await
            .map_err(|err| base_halt(&err))?;
        self.attempt.log.engine(
            0,
            format!(
                "base {}: {} packages",
                request.distribution,
                resolved.packages.len()
            ),
        );
        let key = key::base(
            self.scope(),
            &self.request.bake,
            self.keyring,
            &resolved.index_digest,
        );
        self.indices = Some(resolved.index_digest);
        Ok(key)
    }

    fn title(&self, place: usize) -> String {
        match place.checked_sub(1) {
            None => format!("base {}", self.request.bake.from),
            Some(step) => self.request.bake.steps[step].title(),
        }
    }

    /// Finishes one step and reports it.
    async fn step(&mut self, place: usize, key: Digest, context: &BaseContext) -> Result<(), Halt> {
        let number =
            u16::try_from(place).map_err(|_| Halt::failed("a bake has at most 65,535 steps"))?;
        let title = self.title(place);
        let counts = Counts::new(&self.engine.metrics);
        let (layer, took) = match self.without_work(place, key, &title) {
            Some(layer) => (layer, None),
            None => {
                let turn = self.engine.here.turn(key);
                let _turn = turn.lock().await;
                match self.engine.here.get(key) {
                    Some(layer) => (layer, None),
                    None => {
                        let report = Report::StepStarted { step: number };
                        self.attempt.report(&report).await;
                        let began = self.engine.clock.monotonic();
                        let made = self.make(place, number, key, &title, context).await;
                        let took = self.engine.clock.monotonic().saturating_sub(began);
                        let made = made.inspect_err(|_| counts.steps.with(&["failed"]).inc())?;
                        (made, Some(took))
                    }
                }
            }
        };
        match took {
            None => {
                counts.steps.with(&["cached"]).inc();
                self.attempt.log.engine(number, format!("{title}: known"));
            }
            Some(took) => {
                counts.steps.with(&["executed"]).inc();
                counts.seconds.with(&[self.kind(place)]).observe(took);
                let seconds = took.as_secs_f64();
                self.attempt
                    .log
                    .engine(number, format!("{title}: done in {seconds:.2} s"));
            }
        }
        let report = Report::StepFinished {
            step: number,
            layer: layer.clone(),
            cached: took.is_none(),
            took_ms: took.map_or(0, |took| {
                u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
            }),
        };
        self.attempt.report(&report).await;
        self.finished.push(layer);
        Ok(())
    }

    fn kind(&self, place: usize) -> &'static str {
        match place.checked_sub(1) {
            None => "base",
            Some(step) => self.request.bake.steps[step].action.key(),
        }
    }

    /// A step that sets something only, or whose layer is in the store.
    fn without_work(&self, place: usize, key: Digest, title: &str) -> Option<Layer> {
        if let Some(step) = place.checked_sub(1)
            && self.request.bake.steps[step].action.is_setting()
        {
            let parent = self.finished.last()?;
            return Some(Layer {
                title: title.to_owned(),
                ..parent.clone()
            });
        }
        if place == 0
            && let Some(top) = self.parents.last()
        {
            return Some(top.clone());
        }
        let known = self
            .engine
            .here
            .get(key)
            .or_else(|| self.known.get(&key).cloned())?;
        // The ledger remembers longer than a store that somebody cleaned.
        publishable(&self.engine.store, &known).then_some(known)
    }

    /// Does the work of a step and makes its layer durable.
    async fn make(
        &self,
        place: usize,
        number: u16,
        key: Digest,
        title: &str,
        context: &BaseContext,
    ) -> Result<Layer, Halt> {
        self.attempt.log.engine(number, title);
        let upper = match place.checked_sub(1) {
            None => self.make_base(context).await?,
            Some(step) => self.make_upper(step, context).await?,
        };
        let parent = self.finished.last().map(|layer| layer.key);
        let options = PackOptions {
            key,
            parent,
            host_base: context.host_base,
            clamp_mtime: None,
        };
        let store = self.engine.store.clone();
        let layers = self.engine.layers.clone();
        let log = self.attempt.log.clone();
        let inputs = self.inputs(place)?;
        let packing = move || -> Result<(LayerRecord, Digest), Halt> {
            let (mut record, index) =
                pack(&store, &upper, &options).map_err(|err| Halt::error(&err))?;
            record.inputs = inputs;
            // Durable chunks first, the manifest last, the report after both.
            let address = manifest::put(&store, &record).map_err(|err| Halt::error(&err))?;
            layers.adopt(address, &record, index, &upper)?;
            log.sync();
            Ok((record, address))
        };
        let (record, manifest) = self.engine.tasks.blocking("pack-layer", packing).await??;
        let layer = Layer {
            key,
            parent,
            manifest,
            size: record.size,
            title: title.to_owned(),
            worker: self.engine.worker.clone(),
            made_at: self.engine.clock.wall(),
        };
        self.engine.here.put(&layer);
        Ok(layer)
    }

    /// Finished layers in order, each once.
    fn distinct(&self) -> Vec<&Layer> {
        // The top one of the parents is the first finished.
        let below = self
            .parents
            .split_last()
            .map_or(&[][..], |(_, below)| below);
        let mut layers: Vec<&Layer> = below.iter().collect();
        for layer in &self.finished {
            if layers.last().is_none_or(|last| last.key != layer.key) {
                layers.push(layer);
            }
        }
        layers
    }

    /// The finished layers, unpacked.
    async fn below(&self) -> Result<Vec<UnpackedLayer>, Halt> {
        let mut below = Vec::new();
        for layer in self.distinct() {
            below.push(self.engine.layers.get(layer.manifest).await?);
        }
        Ok(below)
    }

    /// How many distinct layers there are up to the last step that is no `copy`.
    fn anchor(&self) -> usize {
        let steps = &self.request.bake.steps;
        let last = steps.iter().rposition(|step| {
            let copied = matches!(step.action, Action::Copy(_));
            !copied && !step.action.is_setting()
        });
        let base = self.parents.len().max(1);
        let Some(last) = last else { return base };
        let key = self.finished[last + 1].key;
        let layers = self.distinct();
        layers
            .iter()
            .position(|layer| layer.key == key)
            .map_or(base, |place| place + 1)
    }

    /// Places among the distinct layers of those that `copy` steps made, with the blobs of their contents.
    fn copied(&self) -> Result<Vec<(usize, Digest)>, Halt> {
        let layers = self.distinct();
        let steps = self.request.bake.steps.iter().zip(&self.finished[1..]);
        let mut copied = Vec::new();
        for (step, layer) in steps {
            if !matches!(step.action, Action::Copy(_)) {
                continue;
            }
            let record = manifest::get(&self.engine.store, layer.manifest);
            let record = record.map_err(|err| Halt::error(&err))?;
            let place = layers.iter().position(|distinct| distinct.key == layer.key);
            copied.extend(place.map(|place| (place, record.data)));
        }
        Ok(copied)
    }

    /// Makes the disk of the finished layers.
    async fn image(&self, context: &BaseContext) -> Result<BakedImage, Halt> {
        let layers = self.below().await?;
        let tools = self.tools(context, &layers).await?;
        let chain = Chain {
            layers,
            anchor: self.anchor(),
            size: self.request.bake.disk.size.map(|size| size.bytes()),
            tools,
            hostname: self.request.image.clone(),
            base: self.request.bake.from.to_string(),
            arch: self.request.bake.arch,
            copied: self.copied()?,
        };
        let disks = self.engine.disks.clone();
        let log = self.attempt.log.clone();
        let last = u16::try_from(self.finished.len()).unwrap_or(u16::MAX) - 1;
        let began = self.engine.clock.monotonic();
        // One disk at a time: two of one chain would make the same files.
        let turn = self.engine.here.turn(Digest::of(b"disk"));
        let _turn = turn.lock().await;
        let making = move || disks.make(&chain, &|text| log.engine(last, text));
        let made = self.engine.tasks.blocking("make-disk", making).await?;
        let made = made.map_err(|err| {
            let text = oast_daemon::telemetry::chain(&err).to_string();
            if err.is_recipe() {
                Halt::failed(text)
            } else {
                Halt::errored(text)
            }
        })?;
        let took = self.engine.clock.monotonic().saturating_sub(began);
        self.attempt.log.engine(
            last,
            format!(
                "disk {} of {} bytes in {:.2} s",
                made.disk.short(),
                made.size,
                took.as_secs_f64()
            ),
        );
        Ok(BakedImage {
            base: self.request.bake.from.to_string(),
            arch: self.request.bake.arch,
            layers: self.distinct().iter().map(|layer| layer.manifest).collect(),
            disk: made.disk,
            disk_size: made.size,
            disk_digest: made.digest,
            packages: made.packages,
            package_count: made.package_count,
            bills: Some(made.bills),
            // The leader signs what the ledger knows.
            provenance: None,
        })
    }

    /// The programs of the boot partition, from the image's own distribution where it is known.
    async fn tools(&self, context: &BaseContext, layers: &[UnpackedLayer]) -> Result<Tools, Halt> {
        let request = self.tools_request(layers)?;
        let folder = base::tools(&request, context, &TOOL_PACKAGES)
            .await
            .map_err(|err| base_halt(&err))?;
        let find = |places: &[&str]| {
            let found = places.iter().map(|place| folder.join(place));
            found.into_iter().find(|path| path.exists()).ok_or_else(|| {
                Halt::errored(format!(
                    "the packages {} have none of {}",
                    TOOL_PACKAGES.join(" and "),
                    places.join(", ")
                ))
            })
        };
        Ok(Tools {
            stub: find(&STUBS)?,
            busybox: find(&BUSYBOXES)?,
        })
    }
}

/// Whether everything of the layer is in the store.
fn publishable(store: &ArtifactStore, layer: &Layer) -> bool {
    manifest::get(store, layer.manifest)
        .is_ok_and(|record| store.has(record.index) && store.has(record.data))
}

struct Counts {
    steps: Counters,
    seconds: Histograms,
}

impl Counts {
    fn new(metrics: &Metrics) -> Counts {
        Counts {
            steps: metrics.counters(Metric::StepsTotal),
            seconds: metrics.histograms(Metric::StepSeconds),
        }
    }
}
