//! A base that other tools made: a root file system or an OCI image, in one file.
//!
//! ```text
//! rootfs   tar, plain or compressed (gzip, xz, zstd) --unpack--> root
//! oci      tar of an image layout, or of `docker save` --layout--> layers in order --unpack--> root
//! ```
//!
//! The file is hostile until shown otherwise: every path is resolved inside the root by the kernel,
//! names and sizes have limits, what cannot be in an image is refused by its name, and an OCI
//! image's parts are what its digests say. A root that was not finished is the caller's to remove.
//!
//! Not taken from an OCI image: its entry point, user and environment, which are a container's.

mod layout;
mod unpack;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use camino::{Utf8Path, Utf8PathBuf};
use oast_model::pipeline::FileFormat;
use tokio_util::sync::CancellationToken;

pub use layout::LayoutError;
pub use unpack::{Limits, UnpackError};

use super::base::tree::Tree;
use unpack::Unpacker;

/// Limits the dictionary of an xz stream.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Limits the window of a zstd stream: 128 MiB, what `zstd --long` writes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes that tell how a file is compressed.
const MAGIC_BYTES: usize = 6;

/// A base that cannot be made of a file.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// What is in the archive.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// How the image is laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// This machine.
    #[error("{doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: Utf8PathBuf,
        #[source]
        err: io::Error,
    },
}

impl ImportError {
    /// Whether the file is wrong, and not we.
    pub fn is_recipe(&self) -> bool {
        match self {
            Self::Unpack(err) => err.is_recipe(),
            Self::Layout(err) => err.is_recipe(),
            Self::Io { .. } => false,
        }
    }
}

/// A file that becomes a root.
#[derive(Clone, Debug)]
pub struct Import<'a> {
    /// What it is.
    pub format: FileFormat,
    /// Where it is.
    pub file: &'a Utf8Path,
    /// Debian's name of the machine that the image is for.
    pub architecture: &'a str,
    /// A folder for what lies about meanwhile; must not exist.
    pub scratch: &'a Utf8Path,
    /// The image's id 0 is this id of this machine.
    pub host_base: u32,
    /// What it may be at most.
    pub limits: Limits,
    /// Asked between two entries.
    pub cancel: &'a CancellationToken,
}

impl Import<'_> {
    /// Makes the root folder, which must not exist. The answer is what was left out, one line each.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub fn run(&self, root: &Utf8Path) -> Result<Vec<String>, ImportError> {
        let io = |doing: &'static str, path: &Utf8Path| {
            let path = path.to_owned();
            move |err| ImportError::Io { doing, path, err }
        };
        std::fs::create_dir(root).map_err(io("make", root))?;
        let tree = Tree::open(root, self.host_base).map_err(io("open", root))?;
        let mut unpacker = Unpacker::new(&tree, self.limits, self.cancel);
        match self.format {
            FileFormat::Rootfs => {
                let file = File::open(self.file).map_err(io("open", self.file))?;
                let stream = plain(file).map_err(io("read", self.file))?;
                unpacker.layer(stream, unpack::Whiteouts::Files)?;
            }
            FileFormat::Oci => {
                let made = layout::layers(self).and_then(|layers| {
                    for layer in layers {
                        layout::unpack(&layer, &mut unpacker)?;
                    }
                    Ok(())
                });
                // Copies of what the file has; large, and of no use any more.
                let _ = std::fs::remove_dir_all(self.scratch);
                made?;
            }
        }
        Ok(unpacker.finish()?)
    }
}

/// The content of a file that may be compressed.
fn plain(file: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(128 << 10, file);
    let start = file.fill_buf()?;
    let start = &start[..start.len().min(MAGIC_BYTES)];
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY_BYTES_MAX,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(file, stream))
        }
        [b'B', b'Z', b'h', ..] => {
            let problem = "it is compressed with bzip2; use gzip, xz or zstd";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        }
        _ => Box::new(file),
    })
}

#[cfg(test)]
mod tests;
