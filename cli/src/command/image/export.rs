//! An image's disk as a file: sparse, checked, and there as a whole or not at all.
//!
//! Bytes go to a file of another name beside the wanted one; zeros become holes. Only when the
//! length and, where the farm knows it, the blake3 hash are right does the file get its name.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use oast_daemon::exit::Exit;
use oast_daemon::random;
use oast_proto::v1;
use oast_proto::v1::export_chunk::Content;
use tonic::{Status, Streaming};

use crate::client::Client;
use crate::fail::Fail;
use crate::output::{bytes, note};

/// Zeros that are hashed at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What the file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The disk byte for byte, for qemu and dd.
    Raw,
    /// A fixed VHD, for Azure and Hyper-V.
    Vhd,
}

impl Format {
    fn word(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Vhd => "vhd",
        }
    }
}

/// Writes the version's disk to `file`.
pub async fn export(
    client: &Client,
    version: &str,
    format: Format,
    file: &Path,
    force: bool,
) -> anyhow::Result<Exit> {
    if file.is_dir() {
        return Err(Fail::usage(format!("{} is a folder", file.display()))
            .hint(format!(
                "-o {}",
                file.join(format!("{}.{}", version.replace(':', "-"), format.word()))
                    .display()
            ))
            .into());
    }
    if file.symlink_metadata().is_ok() && !force {
        return Err(Fail::failed(format!("{} is there already", file.display()))
            .hint("--force replaces it")
            .into());
    }
    let request = v1::ExportImageRequest {
        version: version.to_owned(),
        format: format.word().to_owned(),
    };
    let (stream, _) = client
        .open(|member| {
            let request = request.clone();
            async move { member.images().export_image(request).await }
        })
        .await?;
    let draft = Draft::new(file)?;
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => {
            note("Nothing was written.");
            Ok(Exit::Interrupted)
        }
        written = receive(stream, draft, force) => {
            let (size, hash) = written?;
            note(format!("{} of {version} in {} (blake3 {hash})", bytes(size), file.display()));
            Ok(Exit::Ok)
        }
    }
}

/// Writes the version's raw disk to a file of our own, which must not exist. What came is checked against the farm's hash.
pub async fn fetch(client: &Client, version: &str, file: &Path) -> anyhow::Result<()> {
    let request = v1::ExportImageRequest {
        version: version.to_owned(),
        format: Format::Raw.word().to_owned(),
    };
    let (stream, _) = client
        .open(|member| {
            let request = request.clone();
            async move { member.images().export_image(request).await }
        })
        .await?;
    receive(stream, Draft::new(file)?, false).await.map(drop)
}

async fn receive(
    mut stream: Streaming<v1::ExportChunk>,
    mut draft: Draft,
    force: bool,
) -> anyhow::Result<(u64, blake3::Hash)> {
    let header = match next(&mut stream).await? {
        Some(Content::Header(header)) => header,
        _ => anyhow::bail!("the farm sent no header before the disk"),
    };
    draft.prepare(header.size)?;
    let bar = bar(header.size);
    while let Some(content) = next(&mut stream).await? {
        match content {
            Content::Data(data) => draft.data(&data)?,
            Content::ZeroBytes(count) => draft.zeros(count)?,
            Content::Header(_) => anyhow::bail!("the farm sent a second header"),
        }
        bar.set_position(draft.length);
    }
    bar.finish_and_clear();
    draft.finish(&header, force)
}

async fn next(stream: &mut Streaming<v1::ExportChunk>) -> Result<Option<Content>, Status> {
    Ok(stream.message().await?.and_then(|chunk| chunk.content))
}

fn bar(size: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "  {bar:32} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
    );
    ProgressBar::new(size).with_style(style.expect("the template is well-formed"))
}

/// The file under its other name; removed unless it was finished.
#[derive(Debug)]
struct Draft {
    wanted: PathBuf,
    path: PathBuf,
    file: File,
    expected: u64,
    length: u64,
    hasher: blake3::Hasher,
    named: bool,
}

impl Draft {
    fn new(wanted: &Path) -> anyhow::Result<Draft> {
        let mut name = wanted
            .file_name()
            .context("the file needs a name")?
            .to_owned();
        name.push(format!(".{:08x}.part", random::number() & 0xffff_ffff));
        let path = wanted.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|err| failure(wanted, err))?;
        Ok(Draft {
            wanted: wanted.to_owned(),
            path,
            file,
            expected: 0,
            length: 0,
            hasher: blake3::Hasher::new(),
            named: false,
        })
    }

    fn prepare(&mut self, size: u64) -> anyhow::Result<()> {
        self.expected = size;
        self.file
            .set_len(size)
            .map_err(|err| failure(&self.wanted, err))
    }

    fn data(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.grow(data.len() as u64)?;
        self.hasher.update(data);
        self.file
            .write_all(data)
            .map_err(|err| failure(&self.wanted, err))
    }

    fn zeros(&mut self, count: u64) -> anyhow::Result<()> {
        self.grow(count)?;
        let mut left = count;
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.hasher.update(&ZEROS[..some]);
            left -= some as u64;
        }
        self.file
            .seek(SeekFrom::Start(self.length))
            .map_err(|err| failure(&self.wanted, err))?;
        Ok(())
    }

    fn grow(&mut self, by: u64) -> anyhow::Result<()> {
        self.length = self.length.saturating_add(by);
        anyhow::ensure!(
            self.length <= self.expected,
            "the farm sent more than the {} it had said",
            self.expected
        );
        Ok(())
    }

    fn finish(
        mut self,
        header: &v1::ExportHeader,
        force: bool,
    ) -> anyhow::Result<(u64, blake3::Hash)> {
        anyhow::ensure!(
            self.length == self.expected,
            "the disk was cut short: {} of {} came; start again",
            bytes(self.length),
            bytes(self.expected)
        );
        let hash = self.hasher.finalize();
        if !header.digest.is_empty() && hash.to_hex().as_str() != header.digest {
            let message = format!(
                "what came has blake3 {hash}, the farm has {}: nothing was kept",
                header.digest
            );
            return Err(Fail::failed(message)
                .hint("start again; if it stays so, the artifact store is damaged")
                .into());
        }
        self.file
            .sync_all()
            .map_err(|err| failure(&self.wanted, err))?;
        let named = if force {
            std::fs::rename(&self.path, &self.wanted)
        } else {
            // Fails where a rename would replace what somebody made in between.
            std::fs::hard_link(&self.path, &self.wanted).or_else(|err| match err.kind() {
                io::ErrorKind::AlreadyExists => Err(err),
                // Some file systems have no second names.
                _ => std::fs::rename(&self.path, &self.wanted),
            })
        };
        named.map_err(|err| failure(&self.wanted, err))?;
        self.named = force || !self.path.exists();
        Ok((self.length, hash))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.named {
            // Best effort: the process is about to say what went wrong.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failure(file: &Path, err: io::Error) -> anyhow::Error {
    if err.kind() == io::ErrorKind::StorageFull || err.kind() == io::ErrorKind::QuotaExceeded {
        let message = format!(
            "the disk is full while writing {}: nothing was kept",
            file.display()
        );
        return Fail::failed(message)
            .hint("free some space, or write elsewhere with -o")
            .into();
    }
    anyhow::Error::new(err).context(format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn header(text: &[u8]) -> v1::ExportHeader {
        v1::ExportHeader {
            size: text.len() as u64,
            digest: blake3::hash(text).to_hex().to_string(),
        }
    }

    fn left(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("list")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn zeros_become_holes_and_the_hash_covers_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk.raw");
        let mut whole = vec![0; 8 << 20];
        whole[..4].copy_from_slice(b"head");
        whole.extend_from_slice(b"tail");
        whole.extend_from_slice(&[0; 4096]);
        let mut draft = Draft::new(&file).expect("a draft");
        draft.prepare(whole.len() as u64).expect("prepare");
        draft.data(b"head").expect("data");
        draft.zeros((8 << 20) - 4).expect("zeros");
        draft.data(b"tail").expect("data");
        draft.zeros(4096).expect("zeros");
        draft.finish(&header(&whole), false).expect("finish");
        assert_eq!(std::fs::read(&file).expect("read"), whole);
        assert!(
            file.metadata().expect("stat").blocks() * 512 < 1 << 20,
            "it is sparse"
        );
        assert_eq!(left(folder.path()), ["disk.raw"]);
    }

    #[test]
    fn what_is_short_or_wrong_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk.raw");
        for (data, why) in [(&b"dis"[..], "cut short"), (&b"dusk"[..], "blake3")] {
            let mut draft = Draft::new(&file).expect("a draft");
            draft.prepare(4).expect("prepare");
            draft.data(data).expect("data");
            let err = draft.finish(&header(b"disk"), false).expect_err("refused");
            assert!(err.to_string().contains(why), "{err}");
            assert!(left(folder.path()).is_empty());
        }
        let mut draft = Draft::new(&file).expect("a draft");
        draft.prepare(2).expect("prepare");
        assert!(draft.data(b"disk").is_err(), "more than was said");
    }

    #[test]
    fn a_file_made_in_between_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk.raw");
        let mut draft = Draft::new(&file).expect("a draft");
        draft.prepare(4).expect("prepare");
        draft.data(b"disk").expect("data");
        std::fs::write(&file, "mine").expect("write");
        assert!(draft.finish(&header(b"disk"), false).is_err());
        assert_eq!(std::fs::read(&file).expect("read"), b"mine");
        assert_eq!(left(folder.path()), ["disk.raw"]);
    }

    #[test]
    fn a_full_disk_is_said_in_words() {
        let err = failure(Path::new("x"), io::Error::from(io::ErrorKind::StorageFull));
        assert!(err.to_string().contains("the disk is full"), "{err}");
    }
}
