//! Bills of material: what an image is made of, in the two forms that tools read.
//!
//! Both are functions of the [`Bom`] alone. Where a form insists on an identity, it is a hash of the content; where it insists on a
//! time, it is [`CREATED`]: when an image was made stands in its provenance, which is signed.

mod cyclonedx;
mod purl;
mod spdx;

pub use cyclonedx::cyclonedx;
pub use purl::purl;
pub use spdx::spdx;

use crate::dpkg::Package;
use crate::hash::Hashes;

/// The time that SPDX wants. A constant, so that equal images have equal documents.
pub const CREATED: &str = "2024-01-01T00:00:00Z";

/// What is in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bom {
    /// Name of the image.
    pub image: String,
    /// blake3 of its raw disk, in hexadecimal.
    pub disk: String,
    /// What it was made from, such as `debian-12`.
    pub base: String,
    /// The machine it is for.
    pub arch: String,
    /// Its system.
    pub os: Os,
    /// Every package of the distribution, sorted.
    pub packages: Vec<Package>,
    /// Every file that a step copied and that is still what was copied, sorted by path.
    pub files: Vec<CopiedFile>,
}

/// The system, as its os-release file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    /// Such as `debian`.
    pub id: String,
    /// Such as `12`; empty for a rolling one.
    pub version: String,
    /// What people call it.
    pub pretty: String,
}

/// A file that came from the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFile {
    /// Below the root, without a leading slash.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// Of its content.
    pub hashes: Hashes,
}

impl Os {
    /// Reads an os-release file. What it does not say stays empty; a system without a name is `linux`, as the file's own manual has it.
    pub fn read(text: &str) -> Os {
        let value = |key: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            value
                .unwrap_or_default()
                .trim()
                .trim_matches(['"', '\''])
                .to_owned()
        };
        let id = value("ID");
        Os {
            id: if id.is_empty() {
                "linux".to_owned()
            } else {
                id
            },
            version: value("VERSION_ID"),
            pretty: value("PRETTY_NAME"),
        }
    }

    /// As package URLs name it: `debian-12`.
    fn distro(&self) -> String {
        match self.version.is_empty() {
            true => self.id.clone(),
            false => format!("{}-{}", self.id, self.version),
        }
    }
}

#[cfg(test)]
mod tests;
