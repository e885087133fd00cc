//! The hashes that the documents carry. SHA-1 only because SPDX 2.3 wants one for every file.

use std::fmt::Write as _;

use ring::digest;

/// Hashes of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashes {
    /// In hexadecimal.
    pub sha256: String,
    /// In hexadecimal. Says nothing against an attacker.
    pub sha1: String,
}

/// Hashes what it is fed.
#[derive(Clone)]
pub struct Hasher {
    sha256: digest::Context,
    sha1: digest::Context,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

impl Default for Hasher {
    fn default() -> Hasher {
        Hasher {
            sha256: digest::Context::new(&digest::SHA256),
            sha1: digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        }
    }
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.sha1.update(bytes);
    }

    /// The hashes of everything that was taken.
    pub fn finish(self) -> Hashes {
        Hashes {
            sha256: hex(self.sha256.finish().as_ref()),
            sha1: hex(self.sha1.finish().as_ref()),
        }
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_the_published_ones() {
        let mut hasher = Hasher::default();
        hasher.update(b"a");
        hasher.update(b"bc");
        let hashes = hasher.finish();
        assert_eq!(hashes.sha1, "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hashes.sha256, sha256(b"abc"));
        assert!(hashes.sha256.starts_with("ba7816bf8f01cfea"));
    }
}
