//! What the local cloud needs from whatever runs its instances.
//!
//! Split into prepare and start so that a replacement is made ready (layers unpacked, root
//! mounted) while the old boot still serves; the time without a root is only stop + start. The
//! real one is `instance.rs`; tests use servers inside the test process.

use std::fmt;
use std::sync::Arc;

use camino::Utf8PathBuf;
use futures_util::future::BoxFuture;

use super::backend::Dial;
use super::spec::Image;

/// How a boot runs the image's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMode {
    /// The image's own init is PID 1.
    Init,
    /// The enabled application units were read and started here.
    Units,
}

/// One boot of one instance.
#[derive(Clone, Debug)]
pub struct BootSpec {
    /// Its set.
    pub set: String,
    /// Its id within the set.
    pub id: String,
    /// Its number among all instances of this cloud; its address is derived from it.
    pub number: u32,
    /// Which boot; never used twice for one instance.
    pub boot: u64,
    /// What it runs.
    pub image: Image,
}

/// Why a boot could not be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A layer of the image could not be had.
    #[error("unpack the layers of image {image}: {reason}")]
    Layers {
        /// Name and version.
        image: String,
        /// Why not.
        reason: String,
    },
    /// The image asks for something that this way of booting does not do.
    #[error("{0}")]
    Refused(String),
    /// The operating system refused.
    #[error("{doing}: {reason}")]
    System {
        /// What was tried.
        doing: String,
        /// Why not.
        reason: String,
    },
}

impl BootError {
    /// An operating system error.
    pub fn system(doing: impl Into<String>, reason: impl fmt::Display) -> BootError {
        BootError::System {
            doing: doing.into(),
            reason: reason.to_string(),
        }
    }
}

/// Makes layer digests into folders that hold their unpacked trees.
pub trait LayerSource: fmt::Debug + Send + Sync + 'static {
    /// The folders of `layers`, in the same order, unpacked when this returns. Blocks.
    ///
    /// # Errors
    /// Text that names the layer and the reason.
    fn roots(&self, layers: &[String]) -> Result<Vec<Utf8PathBuf>, String>;
}

/// Runs instances.
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Makes everything ready for a boot beside the one that runs.
    fn prepare(&self, spec: BootSpec) -> BoxFuture<'_, Result<Box<dyn Prepared>, BootError>>;

    /// Unpacks an image's layers.
    fn prefetch<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<(), BootError>>;

    /// Removes what boots of a deleted instance left on disk.
    fn forget<'a>(&'a self, set: &'a str, id: &'a str) -> BoxFuture<'a, ()>;
}

/// A boot that is ready to start. Dropping it removes what was made.
pub trait Prepared: Send {
    /// Starts it.
    fn start(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Running>, BootError>>;
}

/// A boot that runs. Dropping it kills it.
pub trait Running: Send {
    /// The way in.
    fn dial(&self) -> Arc<dyn Dial>;

    /// How its services run.
    fn mode(&self) -> BootMode;

    /// Ends when the main process has ended by itself, with the reason. Cancel-safe.
    fn ended(&mut self) -> BoxFuture<'_, String>;

    /// Asks it to end, then makes it end. Nothing of it is left when this returns.
    fn stop(self: Box<Self>) -> BoxFuture<'static, ()>;
}
