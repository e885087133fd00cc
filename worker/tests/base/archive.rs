//! Generates a signed package archive: package files, indices and release files.
//!
//! The few programs that a base needs to configure itself (a shell, dpkg, their libraries) are
//! taken from this machine, so the archive is a toy of a distribution but a real archive.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use oast_worker::bake::base::distribution::native_architecture;
use oast_worker::bake::base::fetch::hex;
use sha2::{Digest, Sha256};

/// One file of a package.
pub enum Entry {
    Folder(u32),
    File(Vec<u8>, u32),
    Link(String),
    HardLink(String),
    /// A header with this very path, for paths that no tar library would write.
    Raw(Vec<u8>),
}

pub struct Package {
    pub name: String,
    pub version: String,
    pub fields: Vec<(String, String)>,
    pub scripts: BTreeMap<String, String>,
    pub files: Vec<(String, Entry)>,
    pub compression: &'static str,
}

impl Package {
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            fields: Vec::new(),
            scripts: BTreeMap::new(),
            files: Vec::new(),
            compression: "zst",
        }
    }

    pub fn field(mut self, key: &str, value: &str) -> Self {
        self.fields.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn essential(self) -> Self {
        self.field("Essential", "yes").field("Priority", "required")
    }

    pub fn script(mut self, name: &str, text: &str) -> Self {
        self.scripts.insert(name.to_owned(), text.to_owned());
        self
    }

    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((
            path.to_owned(),
            Entry::File(text.as_bytes().to_vec(), 0o644),
        ));
        self
    }

    pub fn entry(mut self, path: &str, entry: Entry) -> Self {
        self.files.push((path.to_owned(), entry));
        self
    }

    pub fn compressed(mut self, compression: &'static str) -> Self {
        self.compression = compression;
        self
    }

    fn control(&self) -> String {
        let mut text = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: Test <test@example.org>\n",
            self.name,
            self.version,
            native_architecture()
        );
        for (key, value) in &self.fields {
            let _ = writeln!(text, "{key}: {value}");
        }
        text.push_str("Description: made for a test\n");
        text
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut control = tar::Builder::new(Vec::new());
        let mut scripts = vec![("control", self.control())];
        scripts.extend(
            self.scripts
                .iter()
                .map(|(name, text)| (name.as_str(), text.clone())),
        );
        for (name, text) in scripts {
            let mode = if name.contains("inst") || name.contains("rm") {
                0o755
            } else {
                0o644
            };
            append(
                &mut control,
                &format!("./{name}"),
                &Entry::File(text.into_bytes(), mode),
            )?;
        }
        let mut data = tar::Builder::new(Vec::new());
        append(&mut data, "./", &Entry::Folder(0o755))?;
        let mut folders = std::collections::BTreeSet::new();
        for (path, entry) in &self.files {
            for parent in Path::new(path)
                .ancestors()
                .skip(1)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                let parent = parent.to_string_lossy().into_owned();
                if !parent.is_empty() && folders.insert(parent.clone()) {
                    append(&mut data, &format!("./{parent}/"), &Entry::Folder(0o755))?;
                }
            }
            append(&mut data, &format!("./{path}"), entry)?;
        }
        let mut deb = b"!<arch>\n".to_vec();
        member(&mut deb, "debian-binary", b"2.0\n")?;
        member(
            &mut deb,
            "control.tar.gz",
            &compress(&control.into_inner()?, "gz")?,
        )?;
        let name = format!("data.tar.{}", self.compression);
        member(
            &mut deb,
            &name,
            &compress(&data.into_inner()?, self.compression)?,
        )?;
        Ok(deb)
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, entry: &Entry) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o777);
    header.set_size(0);
    let content: &[u8] = match entry {
        Entry::Folder(mode) => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            &[]
        }
        Entry::File(content, mode) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            content
        }
        Entry::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_link_name(target)?;
            &[]
        }
        Entry::HardLink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            header.set_link_name(target)?;
            &[]
        }
        Entry::Raw(content) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(content.len() as u64);
            let path = path.trim_start_matches("./").as_bytes();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path);
            header.set_cksum();
            tar.append(&header, content.as_slice())?;
            return Ok(());
        }
    };
    header.as_mut_bytes()[..path.len().min(100)]
        .copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
    ensure!(path.len() <= 100, "{path} is too long for a test");
    header.set_cksum();
    tar.append(&header, content)?;
    Ok(())
}

fn member(deb: &mut Vec<u8>, name: &str, bytes: &[u8]) -> Result<()> {
    writeln!(
        deb,
        "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`",
        0,
        0,
        0,
        100_644,
        bytes.len()
    )?;
    deb.extend_from_slice(bytes);
    if bytes.len() % 2 == 1 {
        deb.push(b'\n');
    }
    Ok(())
}

pub fn compress(bytes: &[u8], kind: &str) -> Result<Vec<u8>> {
    Ok(match kind {
        "xz" => {
            let mut out = liblzma::write::XzEncoder::new(Vec::new(), 1);
            out.write_all(bytes)?;
            out.finish()?
        }
        "gz" => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(bytes)?;
            out.finish()?
        }
        _ => zstd::bulk::compress(bytes, 1)?,
    })
}

/// A signing key in a folder of its own.
pub struct Signer {
    home: tempfile::TempDir,
}

impl Signer {
    pub fn new() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("oast-gnupg-").tempdir()?;
        let signer = Self { home };
        signer.gpg(&[
            "--quick-generate-key",
            "Test <test@example.org>",
            "ed25519",
            "sign",
            "0",
        ])?;
        Ok(signer)
    }

    fn gpg(&self, args: &[&str]) -> Result<Vec<u8>> {
        let output = Command::new("gpg")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--batch", "--yes", "--quiet", "--pinentry-mode", "loopback"])
            .args(["--passphrase", ""])
            .args(args)
            .output()
            .context("run gpg (apt-get install gnupg)")?;
        ensure!(
            output.status.success(),
            "gpg: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Exports the public key; armoured when the name ends so.
    pub fn export(&self, path: &Path) -> Result<()> {
        let bytes = if path.extension().is_some_and(|suffix| suffix == "asc") {
            self.gpg(&["--armor", "--export"])?
        } else {
            self.gpg(&["--export"])?
        };
        Ok(std::fs::write(path, bytes)?)
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // gpg left an agent running for the key; it belongs to this folder only.
        let _ = Command::new("gpgconf")
            .arg("--homedir")
            .arg(self.home.path())
            .args(["--kill", "all"])
            .output();
    }
}

/// How a suite is published.
pub struct Publish<'a> {
    pub suite: &'a str,
    pub packages: &'a [Package],
    pub signer: &'a Signer,
    pub date: &'a str,
    pub valid_until: Option<&'a str>,
    /// `Release` and `Release.gpg` in place of `InRelease`.
    pub detached: bool,
}

impl Publish<'_> {
    /// Writes the suite under `root`, as a web server would serve it.
    pub fn write(&self, root: &Path) -> Result<()> {
        let mut index = String::new();
        for package in self.packages {
            let bytes = package.bytes()?;
            let file = format!("pool/{}_{}.deb", package.name, package.version);
            write(&root.join(&file), &bytes)?;
            let _ = writeln!(
                index,
                "{}Filename: {file}\nSize: {}\nSHA256: {}\n",
                package.control(),
                bytes.len(),
                hex(&Sha256::digest(&bytes))
            );
        }
        let folder = root.join("dists").join(self.suite);
        let path = format!("main/binary-{}/Packages", native_architecture());
        let mut release = format!(
            "Origin: Test\nSuite: {}\nCodename: {}\nDate: {}\n",
            self.suite,
            self.suite.split('-').next().unwrap_or(self.suite),
            self.date
        );
        if let Some(until) = self.valid_until {
            let _ = writeln!(release, "Valid-Until: {until}");
        }
        release.push_str("Acquire-By-Hash: yes\nComponents: main\nSHA256:\n");
        for (suffix, bytes) in [
            ("", index.clone().into_bytes()),
            (".gz", compress(index.as_bytes(), "gz")?),
            (".xz", compress(index.as_bytes(), "xz")?),
        ] {
            let digest = hex(&Sha256::digest(&bytes));
            let _ = writeln!(release, " {digest} {} {path}{suffix}", bytes.len());
            if !suffix.is_empty() {
                write(&folder.join(format!("{path}{suffix}")), &bytes)?;
                let by_hash = folder
                    .join("main")
                    .join(format!("binary-{}", native_architecture()))
                    .join("by-hash/SHA256");
                write(&by_hash.join(digest), &bytes)?;
            }
        }
        let plain = folder.join("Release");
        write(&plain, release.as_bytes())?;
        let plain = plain.to_string_lossy().into_owned();
        if self.detached {
            let out = folder.join("Release.gpg").to_string_lossy().into_owned();
            self.signer
                .gpg(&["--armor", "--detach-sign", "-o", &out, &plain])?;
        } else {
            let out = folder.join("InRelease").to_string_lossy().into_owned();
            self.signer.gpg(&["--clearsign", "-o", &out, &plain])?;
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a file in a folder")?)?;
    Ok(std::fs::write(path, bytes)?)
}

/// Adds programs of this machine to a package, and the libraries that they load to another.
pub fn programs(package: Package, libraries: &mut Package, names: &[&str]) -> Result<Package> {
    let mut package = package;
    for name in names {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .map(|folder| PathBuf::from(folder).join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("this machine has no {name}"))?;
        let content = std::fs::read(&found)?;
        let path = found.to_string_lossy().trim_start_matches('/').to_owned();
        package.files.push((path, Entry::File(content, 0o755)));
        let listed = Command::new("ldd").arg(&found).output()?;
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            if !word.starts_with('/') {
                continue;
            }
            let path = word.trim_start_matches('/').to_owned();
            if libraries.files.iter().all(|(known, _)| *known != path) {
                let content = std::fs::read(word)?;
                libraries.files.push((path, Entry::File(content, 0o755)));
            }
        }
    }
    Ok(package)
}
