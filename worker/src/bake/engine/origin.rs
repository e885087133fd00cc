//! The base of a bake: of a distribution's packages, of a file, or another pipeline's image.
//!
//! An image brings its whole chain of layers, of which the top one counts as the base's: the rest,
//! `parents`, lies below it and is never made here.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use oast_artifacts::Digest;
use oast_daemon::telemetry::chain;
use oast_model::bake::Layer;
use oast_model::names::{ChannelName, ImageName};
use oast_model::pipeline::{Base, BaseFile, FilePlace};
use oast_model::task::NamedImage;

use super::{Baking, base_halt};
use crate::bake::base::{self, BaseContext};
use crate::bake::import::{Import, Limits};
use crate::bake::key;
use crate::bake::layer::UnpackedLayer;
use crate::bake::manifest;
use crate::bake::steps::run::Label;
use crate::runner::Halt;
use crate::source::normal_path;

/// What a system has at its top; an archive without any of them is packed some other way.
const TOPS: [&str; 4] = ["usr", "etc", "bin", "sbin"];
/// Layers of one chain.
const CHAIN_MAX: usize = 20_000;

impl Baking<'_> {
    pub(super) async fn base_key(&mut self, context: &BaseContext) -> Result<Digest, Halt> {
        match &self.request.bake.from {
            Base::Distribution { .. } => self.distribution_key(context).await,
            Base::Image { .. } => {
                let top = self.parents.last();
                let top = top.ok_or_else(|| Halt::errored("the parent image has no layers"))?;
                Ok(top.key)
            }
            Base::File(file) => {
                let content = self.content(file)?;
                Ok(key::file(self.scope(), file.format, &content))
            }
        }
    }

    /// The digest that a base file has, with the name of its function.
    fn content(&self, file: &BaseFile) -> Result<String, Halt> {
        match &file.place {
            FilePlace::Url { sha256, .. } => Ok(format!("sha256:{sha256}")),
            FilePlace::Path(path) => {
                let digest = self.tree.digest_under(normal_path(path));
                let digest = digest.ok_or_else(|| {
                    Halt::failed(format!(
                        "bake.from names {path}, which the commit does not have"
                    ))
                })?;
                Ok(format!("blake3:{digest}"))
            }
        }
    }

    /// What the base is made of beside packages, for whoever signs where an image came from.
    pub(super) fn base_inputs(&self) -> Result<BTreeMap<String, String>, Halt> {
        Ok(match &self.request.bake.from {
            Base::File(file) => {
                let name = match &file.place {
                    FilePlace::Path(path) => path,
                    FilePlace::Url { url, .. } => url,
                };
                BTreeMap::from([(name.clone(), self.content(file)?)])
            }
            Base::Distribution { .. } | Base::Image { .. } => BTreeMap::new(),
        })
    }

    pub(super) async fn make_base(&self, context: &BaseContext) -> Result<Utf8PathBuf, Halt> {
        let root = self.path("base")?;
        match &self.request.bake.from {
            Base::Distribution { .. } => {
                let request = self.base_request()?;
                let built = base::build(&request, context, &root).await;
                built.map_err(|err| base_halt(&err))?;
            }
            Base::Image { image, .. } => {
                return Err(Halt::errored(format!("the image {image} is not made here")));
            }
            Base::File(file) => self.import(file, context, &root).await?,
        }
        Ok(root)
    }

    async fn import(
        &self,
        file: &BaseFile,
        context: &BaseContext,
        root: &Utf8Path,
    ) -> Result<(), Halt> {
        let label = Label {
            number: 0,
            title: format!("base {}", self.request.bake.from),
            place: None,
        };
        let path = match &file.place {
            FilePlace::Url { url, sha256 } => self.download(&label, url, sha256).await?,
            FilePlace::Path(path) => {
                let target = self.path("base-file")?;
                let (store, tree) = (self.engine.store.clone(), self.tree.clone());
                let (of, to) = (normal_path(path).to_owned(), target.clone());
                let writing = move || store.checkout(&tree, &of, &to);
                let written = self
                    .engine
                    .tasks
                    .blocking("check-out-base", writing)
                    .await?;
                written.map_err(|err| Halt::error(&err))?;
                target
            }
        };
        let (format, architecture) = (file.format, self.request.bake.arch.as_str());
        let (host_base, cancel) = (context.host_base, context.cancel.clone());
        let (scratch, target) = (self.path("base-parts")?, root.to_owned());
        let importing = move || {
            let import = Import {
                format,
                file: &path,
                architecture,
                scratch: &scratch,
                host_base,
                limits: Limits::default(),
                cancel: &cancel,
            };
            import.run(&target)
        };
        let imported = self.engine.tasks.blocking("import-base", importing).await?;
        let left_out = imported.map_err(|err| {
            let text = format!("{label}: {}", chain(&err));
            if err.is_recipe() {
                Halt::failed(text)
            } else {
                Halt::errored(text)
            }
        })?;
        for line in left_out {
            self.attempt.log.engine(0, line);
        }
        if !TOPS
            .iter()
            .any(|top| root.join(top).symlink_metadata().is_ok())
        {
            return Err(Halt::failed(format!(
                "{label}: the archive has none of {} at its top; pack the root file system itself, not the folder that it is in",
                TOPS.join(", ")
            )));
        }
        Ok(())
    }

    /// The image that a recipe names.
    pub(super) fn named_image(
        &self,
        image: &ImageName,
        channel: &ChannelName,
        by: &str,
    ) -> Result<&NamedImage, Halt> {
        let found = self
            .request
            .images
            .iter()
            .find(|named| named.version.image == *image && named.channel == *channel);
        let named = found.ok_or_else(|| {
            Halt::failed(format!(
                "{by} names {image}@{channel}, and team {} has published no image {image} in channel {channel}; publish it first",
                self.attempt.team
            ))
        })?;
        let (wanted, found) = (self.request.bake.arch, named.image.arch);
        if wanted != found {
            return Err(Halt::failed(format!(
                "{by} names {image}@{channel}, which is for {}, and this bake is for {}",
                found.as_str(),
                wanted.as_str()
            )));
        }
        Ok(named)
    }

    /// The chain of the parent image; empty unless the base is one.
    pub(super) async fn parents(&self) -> Result<Vec<Layer>, Halt> {
        let Base::Image { image, channel } = &self.request.bake.from else {
            return Ok(Vec::new());
        };
        if let Some(top) = self.finished.first() {
            return self.chain_below(top).await;
        }
        let named = self.named_image(image, channel, "bake.from")?;
        self.attempt.log.engine(
            0,
            format!("base {image}@{channel} is version {}", named.version.number),
        );
        let mut parents = Vec::new();
        for address in &named.image.layers {
            let record = manifest::get(&self.engine.store, *address);
            let record = record.map_err(|err| Halt::error(&err))?;
            parents.push(Layer {
                key: record.key,
                parent: record.parent,
                manifest: *address,
                size: record.size,
                title: format!("base {image}@{channel}"),
                worker: self.engine.worker.clone(),
                made_at: self.engine.clock.wall(),
            });
        }
        Ok(parents)
    }

    /// The chain as it was when the bake began, though the channel may have moved since: by the
    /// keys of the layers, which the farm knows.
    async fn chain_below(&self, top: &Layer) -> Result<Vec<Layer>, Halt> {
        let mut chain = vec![top.clone()];
        let mut wanted = top.parent;
        while let Some(key) = wanted {
            let mut found = self.engine.finder.find(&[key]).await;
            let layer = found.remove(&key).filter(|_| chain.len() < CHAIN_MAX);
            let layer = layer.ok_or_else(|| {
                Halt::failed(format!(
                    "layer {} of {} is not known any more; start a new run",
                    key.short(),
                    self.request.bake.from
                ))
            })?;
            wanted = layer.parent;
            chain.push(layer);
        }
        chain.reverse();
        Ok(chain)
    }

    /// The layers of another image, unpacked.
    pub(super) async fn layers_of(&self, named: &NamedImage) -> Result<Vec<UnpackedLayer>, Halt> {
        let mut layers = Vec::new();
        for address in &named.image.layers {
            layers.push(self.engine.layers.get(*address).await?);
        }
        Ok(layers)
    }
}
