//! What each step of a bake is named by and what it makes: its key, its inputs, its upper folder.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::Digest;
use oast_daemon::telemetry::chain;
use oast_model::pipeline::{Action, CopyFiles, CopySource, Run, Step, Systemd};
use oast_model::task::NamedImage;

use super::Baking;
use crate::bake::base::BaseContext;
use crate::bake::key::{self, State};
use crate::bake::layer::UnpackedLayer;
use crate::bake::steps::run::{Found, Label, Order};
use crate::bake::steps::{copy, download, systemd};
use crate::runner::Halt;
use crate::source::normal_path;

/// The largest script.
const SCRIPT_BYTES_MAX: u64 = 1 << 20;

impl Baking<'_> {
    /// The keys of all steps, the base first. Steps without a layer have their parent's.
    pub(super) fn keys(&self, base: Digest) -> Result<Vec<Digest>, Halt> {
        let bake = &self.request.bake;
        let mut keys = vec![base];
        let mut parent = base;
        for (at, step) in bake.steps.iter().enumerate() {
            if !step.action.is_setting() {
                let files = self.files(at)?;
                parent = self.key(at, parent, &files)?;
            }
            // What is done was done under the key it has, whatever engine made it.
            if let Some(done) = self.finished.get(keys.len()) {
                parent = done.key;
            }
            keys.push(parent);
        }
        Ok(keys)
    }

    fn key(&self, at: usize, parent: Digest, files: &[(String, Digest)]) -> Result<Digest, Halt> {
        let bake = &self.request.bake;
        let scope = self.scope();
        Ok(match &bake.steps[at].action {
            Action::Run(run) => key::run(scope, parent, run, &State::at(bake, at), files),
            Action::Systemd(units) => key::systemd(scope, parent, units, files),
            Action::Copy(copy) => {
                let image = self.copied_image(at)?.map(layers_digest);
                key::copy(scope, parent, copy, &self.tree, image)
                    .ok_or_else(|| self.missing(at, &copy.from))?
            }
            Action::Env(_) | Action::Workdir(_) | Action::User(_) => parent,
            Action::Packages(packages) => key::packages(scope, parent, packages, &self.freshness()),
            Action::Ansible(play) => {
                let state = State::at(bake, at);
                key::ansible(scope, parent, play, &state, files, &self.freshness())
            }
        })
    }

    /// The image that a step copies from.
    fn copied_image(&self, at: usize) -> Result<Option<&NamedImage>, Halt> {
        let Action::Copy(CopyFiles {
            source: CopySource::Image { image, channel },
            ..
        }) = &self.request.bake.steps[at].action
        else {
            return Ok(None);
        };
        let by = self.label(at).to_string();
        self.named_image(image, channel, &by).map(Some)
    }

    /// The files of the commit that a step reads, by path, in the order in which it names them.
    fn files(&self, at: usize) -> Result<Vec<(String, Digest)>, Halt> {
        let sources = self.request.bake.steps[at].action.sources();
        let digest = |path: &&str| {
            let found = self.tree.digest_under(normal_path(path));
            let found = found.ok_or_else(|| self.missing(at, path))?;
            Ok(((*path).to_owned(), found))
        };
        sources.iter().map(digest).collect()
    }

    fn missing(&self, at: usize, path: &str) -> Halt {
        let label = self.label(at);
        Halt::failed(format!(
            "{label} needs {path}, which the commit does not have"
        ))
    }

    /// A step as people know it.
    pub(super) fn label(&self, at: usize) -> Label {
        let step: &Step = &self.request.bake.steps[at];
        Label {
            number: u16::try_from(at + 1).unwrap_or(u16::MAX),
            title: step.title(),
            place: step.place(),
        }
    }

    /// What determines a step's layer beside the layers below and the step itself.
    pub(super) fn inputs(&self, place: usize) -> Result<BTreeMap<String, String>, Halt> {
        let mut inputs = BTreeMap::new();
        let Some(at) = place.checked_sub(1) else {
            let indices = self.indices.clone();
            inputs.extend(indices.map(|digest| ("packageIndices".to_owned(), digest)));
            let keyring = self.keyring.map(|digest| digest.to_string());
            inputs.extend(keyring.map(|digest| ("keyring".to_owned(), digest)));
            inputs.extend(self.base_inputs()?);
            return Ok(inputs);
        };
        let files = self.files(at)?.into_iter();
        inputs.extend(files.map(|(path, digest)| (path, digest.to_string())));
        if let Action::Copy(CopyFiles {
            from,
            source: CopySource::Url { sha256 },
            ..
        }) = &self.request.bake.steps[at].action
        {
            inputs.insert(from.clone(), format!("sha256:{sha256}"));
        }
        if let Some(named) = self.copied_image(at)? {
            let disk = named.image.disk_digest;
            inputs.insert(named.version.to_string(), format!("blake3:{disk}"));
        }
        Ok(inputs)
    }

    /// Makes a step's upper folder.
    pub(super) async fn make_upper(
        &self,
        at: usize,
        context: &BaseContext,
    ) -> Result<Utf8PathBuf, Halt> {
        let label = self.label(at);
        let below = self.below().await?;
        let folder = self.path(&format!("step-{}", label.number))?;
        match &self.request.bake.steps[at].action {
            Action::Run(run) => {
                let mut found = Found::default();
                if let Some(script) = &run.script {
                    found.script = Some(self.file(&label, script, SCRIPT_BYTES_MAX).await?);
                }
                let state = State::at(&self.request.bake, at);
                self.cook(&label, run, &state, &found, &below, &folder)
                    .await
            }
            Action::Copy(copy) => self.copy(at, copy, below, folder).await,
            Action::Systemd(units) => {
                let (run, found) = self.units(&label, units).await?;
                self.cook(&label, &run, &State::fresh(), &found, &below, &folder)
                    .await
            }
            Action::Env(_) | Action::Workdir(_) | Action::User(_) => {
                Err(Halt::errored(format!("{label} has nothing to make")))
            }
            Action::Packages(wanted) => {
                self.install(&label, wanted, &below, &folder, context).await
            }
            Action::Ansible(play) => self.play(&label, at, play, &below, &folder, context).await,
        }
    }

    /// Runs commands over the layers below.
    pub(super) async fn cook(
        &self,
        label: &Label,
        run: &Run,
        state: &State,
        found: &Found,
        below: &[UnpackedLayer],
        folder: &Utf8Path,
    ) -> Result<Utf8PathBuf, Halt> {
        let owner = format!("{} {}", self.attempt.team, self.request.trust);
        let order = Order {
            label,
            run,
            state,
            owner: &owner,
            below,
            found,
            folder,
        };
        let cooked = self.engine.kitchen.run(self.attempt, order).await;
        if !run.caches.is_empty() {
            let caches = self.engine.kitchen.caches.clone();
            let shrinking = move || caches.shrink();
            self.engine
                .tasks
                .blocking("shrink-caches", shrinking)
                .await?;
        }
        cooked
    }

    /// A file of the commit that a step needs whole.
    async fn file(&self, label: &Label, path: &str, bytes_max: u64) -> Result<Vec<u8>, Halt> {
        let store = self.engine.store.clone();
        let tree = self.tree.clone();
        let wanted = normal_path(path).to_owned();
        let reading = move || store.read_file(&tree, &wanted, bytes_max);
        let read = self.engine.tasks.blocking("read-file", reading).await?;
        read.map_err(|err| Halt::failed(format!("{label} reads {path}: {}", chain(&err))))
    }

    async fn units(&self, label: &Label, units: &Systemd) -> Result<(Run, Found), Halt> {
        let mut texts = Vec::new();
        for path in &units.install {
            texts.push(self.file(label, path, systemd::UNIT_BYTES_MAX).await?);
        }
        Ok(systemd::command(units, texts))
    }

    async fn copy(
        &self,
        at: usize,
        copy: &CopyFiles,
        below: Vec<UnpackedLayer>,
        upper: Utf8PathBuf,
    ) -> Result<Utf8PathBuf, Halt> {
        let label = &self.label(at);
        let source = match &copy.source {
            CopySource::Commit => copy::Source::Commit,
            CopySource::Url { sha256 } => {
                copy::Source::Fetched(self.download(label, &copy.from, sha256).await?)
            }
            CopySource::Image { .. } => match self.copied_image(at)? {
                Some(named) => copy::Source::Image(self.layers_of(named).await?),
                None => return Err(Halt::errored(format!("{label} has no image"))),
            },
        };
        let copy = copy.clone();
        let tree = self.tree.clone();
        let store = self.engine.store.clone();
        let host_base = self.engine.kitchen.launcher.idmap().host_base();
        let made = upper.clone();
        let copying = move || {
            copy::make(copy::Order {
                copy: &copy,
                tree: &tree,
                store: &store,
                source: &source,
                below: &below,
                upper: &upper,
                host_base,
            })
        };
        let copied = self.engine.tasks.blocking("copy-step", copying).await?;
        copied.map_err(|err| halt(label, &err, err.is_recipe()))?;
        Ok(made)
    }

    /// Fetches a file of the web.
    pub(super) async fn download(
        &self,
        label: &Label,
        url: &str,
        sha256: &str,
    ) -> Result<Utf8PathBuf, Halt> {
        let engine = self.engine;
        let got = download::get(
            &engine.kitchen.proxy,
            &engine.tasks,
            &engine.download_folder,
            engine.config.package_cache.bytes(),
            download::Wanted { url, sha256 },
        );
        got.await.map_err(|err| halt(label, &err, err.is_recipe()))
    }
}

/// Names the layers of an image.
fn layers_digest(named: &NamedImage) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for layer in &named.image.layers {
        hasher.update(layer.as_bytes());
    }
    Digest::from_bytes(*hasher.finalize().as_bytes())
}

fn halt(label: &Label, err: &(dyn std::error::Error + 'static), recipe: bool) -> Halt {
    let text = format!("{label}: {}", chain(err));
    if recipe {
        Halt::failed(text)
    } else {
        Halt::errored(text)
    }
}
