//! Files of certificates and keys.
//!
//! A key and its chain share one file, so that one rename replaces both: whoever reads while it is
//! replaced sees the old pair or the new one, never a key with another's certificate.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::{Zeroize, Zeroizing};

use super::certificate::Certificate;
use super::key::{Key, SecretText};
use crate::random;

/// Largest file that is read: a bundle of many roots is far below.
const FILE_MAX: u64 = 1 << 20;
/// Characters in a line.
const LINE: usize = 64;
/// Rights of a file with a key.
const SECRET_MODE: u32 = 0o600;
/// Rights of a file without one.
const PUBLIC_MODE: u32 = 0o644;

/// A file of certificates or keys is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// It cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// It is there already.
    #[error("{} is there already and is not overwritten: remove it, or use another folder", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// Others may read the key in it.
    #[error("{} holds a private key and others may read it: chmod 600 {}", path.display(), path.display())]
    Open {
        /// Which.
        path: PathBuf,
    },
    /// It does not hold what it should.
    #[error("{} {what}", path.display())]
    Contents {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What one file holds.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// In the file's order: first the holder's own, then who signed it.
    pub chain: Vec<Certificate>,
    /// The key of the first certificate, if the file has one.
    pub key: Option<Key>,
}

impl Bundle {
    /// Reads a file; one with a key must not be readable by everybody.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(path: &Path) -> Result<Bundle, FileError> {
        let failed = |err| FileError::Read {
            path: path.to_owned(),
            err,
        };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode();
        let mut text = Zeroizing::new(Vec::new());
        file.take(FILE_MAX).read_to_end(&mut text).map_err(failed)?;
        let bundle = Bundle::parse(&text).map_err(|what| FileError::Contents {
            path: path.to_owned(),
            what,
        })?;
        if bundle.key.is_some() && mode & 0o007 != 0 {
            return Err(FileError::Open {
                path: path.to_owned(),
            });
        }
        Ok(bundle)
    }

    /// Reads PEM text.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence about the file.
    pub fn parse(text: &[u8]) -> Result<Bundle, &'static str> {
        let mut bundle = Bundle::default();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
            let (kind, mut der) =
                section.map_err(|_| "is damaged: a PEM section cannot be read")?;
            match kind {
                SectionKind::Certificate => {
                    let certificate = Certificate::read(&der.into())
                        .map_err(|_| "holds a certificate that cannot be read")?;
                    bundle.chain.push(certificate);
                }
                SectionKind::PrivateKey if bundle.key.is_none() => {
                    bundle.key = Some(Key::from_pkcs8(der));
                }
                SectionKind::PrivateKey => {
                    der.zeroize();
                    return Err("holds two private keys");
                }
                SectionKind::EcPrivateKey | SectionKind::RsaPrivateKey => {
                    der.zeroize();
                    return Err(
                        "holds a private key in an old form: convert it with `openssl pkcs8 -topk8 -nodes`",
                    );
                }
                _ => {}
            }
        }
        if bundle.chain.is_empty() && bundle.key.is_none() {
            return Err("holds no certificate");
        }
        Ok(bundle)
    }

    /// As PEM text; the key first, if there is one.
    fn text(&self) -> SecretText {
        let mut text = SecretText::default();
        // Grown once, so that no copy of a key stays behind in a freed buffer.
        let key = self
            .key
            .as_ref()
            .map_or(0, |key| encoded(key.pkcs8().expose()));
        let chain: usize = self.chain.iter().map(|one| encoded(one.der())).sum();
        text.reserve(key + chain);
        if let Some(key) = &self.key {
            push(&mut text, "PRIVATE KEY", key.pkcs8().expose());
        }
        for certificate in &self.chain {
            push(&mut text, "CERTIFICATE", certificate.der());
        }
        text
    }

    /// Writes a file that is not there yet.
    ///
    /// # Errors
    /// [`FileError::Exists`], or [`FileError::Write`].
    pub fn create(&self, path: &Path) -> Result<(), FileError> {
        self.write(path, |draft| {
            // Unlike a rename, a link never replaces.
            let linked = fs::hard_link(draft, path);
            let removed = fs::remove_file(draft);
            linked.and(removed)
        })
    }

    /// Writes a file, whole or not at all, in the place of one that may be there.
    ///
    /// # Errors
    /// [`FileError::Write`].
    pub fn replace(&self, path: &Path) -> Result<(), FileError> {
        self.write(path, |draft| fs::rename(draft, path))
    }

    fn write(
        &self,
        path: &Path,
        place: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), FileError> {
        let failed = |err: io::Error| match err.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists {
                path: path.to_owned(),
            },
            _ => FileError::Write {
                path: path.to_owned(),
                err,
            },
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let draft = folder.join(format!(".draft-{:016x}", random::number()));
        let mode = match self.key {
            Some(_) => SECRET_MODE,
            None => PUBLIC_MODE,
        };
        let written = (|| {
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&draft)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            place(&draft)?;
            File::open(folder)?.sync_all()
        })();
        if written.is_err() {
            // It may never have been made; either way nothing more can be done about it.
            let _ = fs::remove_file(&draft);
        }
        written.map_err(failed)
    }
}

/// Makes a folder for keys, its owner's alone; one that is there stays as it is.
///
/// # Errors
/// [`FileError::Write`].
pub fn folder(path: &Path) -> Result<(), FileError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.map_err(|err| FileError::Write {
        path: path.to_owned(),
        err,
    })
}

/// Certificates as PEM text, for messages and the command line's file of contexts.
#[must_use]
pub fn certificates(chain: &[Certificate]) -> String {
    let bundle = Bundle {
        chain: chain.to_vec(),
        key: None,
    };
    bundle.text().as_str().to_owned()
}

/// Room that bytes take as a section, a little more than needed.
fn encoded(der: &[u8]) -> usize {
    der.len() * 4 / 3 + der.len() / LINE * 2 + 128
}

fn push(out: &mut SecretText, kind: &str, der: &[u8]) {
    let body = Zeroizing::new(STANDARD.encode(der));
    out.push_str("-----BEGIN ");
    out.push_str(kind);
    out.push_str("-----\n");
    for line in body.as_bytes().chunks(LINE) {
        out.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        out.push('\n');
    }
    out.push_str("-----END ");
    out.push_str(kind);
    out.push_str("-----\n");
}

/// What tells one state of a file from the next without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// None for a file that is not there.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        length: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}
