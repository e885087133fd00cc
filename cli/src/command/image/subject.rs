//! What a command looks into: a version of the farm, whose disk is fetched, or a file on this machine.

use anyhow::Context;
use camino::Utf8PathBuf;
use oast_proto::v1;
use oast_worker::inspect::disk::Disk;

use super::{export, get};
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;

/// An image as it was named.
#[derive(Debug)]
pub enum Subject {
    /// A version of the farm.
    Version(Box<v1::ImageVersion>),
    /// A file.
    File(Utf8PathBuf),
}

/// Whether an argument means a file: names and channels of images have neither dots nor slashes.
pub fn is_file(text: &str) -> bool {
    text.contains(['.', '/'])
}

impl Subject {
    /// Finds what was named. The farm is asked only for a version.
    pub async fn find(
        text: &str,
        connect: &Connect,
        client: &mut Option<Client>,
    ) -> anyhow::Result<Subject> {
        if is_file(text) {
            let path = Utf8PathBuf::from(text);
            if !path.is_file() {
                return Err(Fail::failed(format!("{path} is no file"))
                    .hint("give an image of the farm as NAME, NAME:VERSION or NAME@CHANNEL")
                    .into());
            }
            return Ok(Subject::File(path));
        }
        let client = match client {
            Some(client) => client,
            None => client.insert(connect.client()?),
        };
        Ok(Subject::Version(Box::new(get(client, text).await?)))
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        match self {
            Subject::Version(version) => &version.version,
            Subject::File(path) => path.as_str(),
        }
    }

    /// Opens its disk. One of the farm is fetched first, as a sparse file that goes with the result.
    pub async fn open(&self, client: Option<&Client>) -> anyhow::Result<Opened> {
        let (path, folder) = match self {
            Subject::File(path) => (path.clone(), None),
            Subject::Version(version) => {
                let client = client.context("a version has a farm")?;
                let folder = tempfile::Builder::new()
                    .prefix("oast-image-")
                    .tempdir()
                    .context("make a temporary folder for the disk (TMPDIR says where)")?;
                let path = Utf8PathBuf::from_path_buf(folder.path().join("disk.raw"));
                let path = path.map_err(|path| {
                    Fail::usage(format!("TMPDIR is no UTF-8: {}", path.display()))
                })?;
                export::fetch(client, &version.version, path.as_std_path()).await?;
                (path, Some(folder))
            }
        };
        let disk = Disk::open(&path)?;
        Ok(Opened {
            disk,
            _folder: folder,
        })
    }
}

/// A disk, and the folder that it goes with.
#[derive(Debug)]
pub struct Opened {
    /// To be looked into.
    pub disk: Disk,
    _folder: Option<tempfile::TempDir>,
}
