//! Binary package files: an `ar` archive with a control and a data tarball.
//!
//! Both tarballs are read as streams; nothing is written to the disk here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

use camino::{Utf8Path, Utf8PathBuf};

/// Longest control file or maintainer script that is taken.
const CONTROL_BYTES_MAX: u64 = 16 << 20;

/// Limits the dictionary of an xz stream; dpkg's own default compression needs 8 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// A package file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    #[error("read package file {path}")]
    Read {
        path: Utf8PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read package file {path}: {problem}")]
    Malformed { path: Utf8PathBuf, problem: String },
}

/// An open package file, positioned behind its control part.
pub struct Deb {
    path: Utf8PathBuf,
    file: BufReader<File>,
    /// Control files by name: `control`, `md5sums`, `postinst`, …
    pub control: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Deb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deb")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Size of one read from a package file.
const READ_BYTES: usize = 256 << 10;

impl Deb {
    /// Opens a package file and reads its control part.
    pub fn open(path: &Utf8Path) -> Result<Self, DebError> {
        let read = |source| DebError::Read {
            path: path.to_owned(),
            source,
        };
        let malformed = |problem: String| DebError::Malformed {
            path: path.to_owned(),
            problem,
        };
        let mut file = BufReader::with_capacity(READ_BYTES, File::open(path).map_err(read)?);
        let mut magic = [0; 8];
        file.read_exact(&mut magic).map_err(read)?;
        if &magic != b"!<arch>\n" {
            return Err(malformed("it is not a Debian package".to_owned()));
        }
        loop {
            let Some(member) = Member::read(&mut file).map_err(read)? else {
                return Err(malformed("it has no control part".to_owned()));
            };
            let mut body = Read::take(&mut file, member.size);
            if member.name.starts_with("control.tar") {
                let control = {
                    let stream = decompress(&member.name, &mut body).map_err(read)?;
                    read_control(stream).map_err(read)?
                };
                skip(&mut body).map_err(read)?;
                member.skip_padding(&mut file).map_err(read)?;
                return Ok(Self {
                    path: path.to_owned(),
                    file,
                    control,
                });
            }
            skip(&mut body).map_err(read)?;
            member.skip_padding(&mut file).map_err(read)?;
        }
    }

    /// Hands the data tarball to `read`.
    pub fn data<T, E: From<DebError>>(
        mut self,
        read: impl FnOnce(&mut tar::Archive<Box<dyn Read + '_>>) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = self.path.clone();
        let fail = |source| DebError::Read {
            path: path.clone(),
            source,
        };
        loop {
            let Some(member) = Member::read(&mut self.file).map_err(fail)? else {
                let problem = "it has no data part".to_owned();
                return Err(DebError::Malformed { path, problem }.into());
            };
            let mut body = Read::take(&mut self.file, member.size);
            if member.name.starts_with("data.tar") {
                let stream = decompress(&member.name, body).map_err(fail)?;
                return read(&mut tar::Archive::new(stream));
            }
            skip(&mut body).map_err(fail)?;
            member.skip_padding(&mut self.file).map_err(fail)?;
        }
    }

    /// The `control` file as text.
    pub fn control_text(&self) -> Result<&str, DebError> {
        let malformed = |problem: &str| DebError::Malformed {
            path: self.path.clone(),
            problem: problem.into(),
        };
        let bytes = self
            .control
            .get("control")
            .ok_or_else(|| malformed("it has no control file"))?;
        std::str::from_utf8(bytes).map_err(|_| malformed("its control file is not UTF-8"))
    }
}

struct Member {
    name: String,
    size: u64,
}

impl Member {
    /// Reads one 60-byte header; `None` at the end of the archive.
    fn read(file: &mut impl Read) -> std::io::Result<Option<Self>> {
        let mut header = [0; 60];
        let mut filled = 0;
        while filled < header.len() {
            let read = file.read(&mut header[filled..])?;
            if read == 0 && filled == 0 {
                return Ok(None);
            }
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            filled += read;
        }
        let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
        if &header[58..] != b"`\n" {
            return Err(invalid("a member header is damaged"));
        }
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&header[range])
                .trim_end()
                .to_owned()
        };
        let size = text(48..58)
            .parse()
            .map_err(|_| invalid("a member has no size"))?;
        Ok(Some(Self {
            name: text(0..16).trim_end_matches('/').to_owned(),
            size,
        }))
    }

    /// Members start at even offsets.
    fn skip_padding(&self, file: &mut impl Read) -> std::io::Result<()> {
        if self.size % 2 == 1 {
            file.read_exact(&mut [0])?;
        }
        Ok(())
    }
}

fn skip(body: &mut impl Read) -> std::io::Result<()> {
    std::io::copy(body, &mut std::io::sink()).map(|_| ())
}

fn decompress<'r>(name: &str, body: impl Read + 'r) -> std::io::Result<Box<dyn Read + 'r>> {
    Ok(
        match name.rsplit_once('.').map_or("", |(_, suffix)| suffix) {
            "xz" => {
                let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)
                    .map_err(std::io::Error::from)?;
                Box::new(liblzma::read::XzDecoder::new_stream(body, stream))
            }
            "zst" => Box::new(zstd::stream::read::Decoder::new(body)?),
            "gz" => Box::new(flate2::read::GzDecoder::new(body)),
            "tar" => Box::new(body),
            other => {
                let what = format!("the compression `{other}` of {name} is not supported");
                return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, what));
            }
        },
    )
}

fn read_control(stream: impl Read) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(stream).entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./");
        // Control files lie flat; anything else could leave dpkg's info folder.
        if name.is_empty() || name.contains('/') {
            continue;
        }
        let mut bytes = Vec::new();
        entry.take(CONTROL_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > CONTROL_BYTES_MAX {
            let what = format!("the control file {name} is too long");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}
