//! A manifest: the list of chunks that make one blob, itself named by its digest.
//!
//! A blob of zeros costs nothing: a chunk of zeros is a hole and is never stored. The record is binary and canonical (one
//! blob, one manifest), so equal blobs have equal names whoever stored them:
//!
//! ```text
//! 0 "OASTMAN1"   8 chunk size u32 LE   12 zero   16 length u64 LE   24.. one digest of 32 bytes per chunk, zeros = hole
//! ```

use oast_model::digest::Digest;

/// The size of every chunk but the last of a blob.
pub const CHUNK_BYTES: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"OASTMAN1";
const HEADER_BYTES: usize = 24;
const DIGEST_BYTES: usize = 32;
const HOLE: [u8; DIGEST_BYTES] = [0; DIGEST_BYTES];

/// The chunks of one blob, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    len: u64,
    chunks: Vec<Option<Digest>>,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the record does not start like a manifest")]
    Magic,
    #[error("the record has chunks of {0} bytes, this version reads {CHUNK_BYTES}")]
    ChunkSize(u32),
    #[error("a blob of {len} bytes cannot have {chunks} chunks")]
    Count { len: u64, chunks: u64 },
}

impl Manifest {
    /// Makes a manifest. `None` is a hole.
    pub fn new(len: u64, chunks: Vec<Option<Digest>>) -> Result<Self, ManifestError> {
        if len.div_ceil(CHUNK_BYTES as u64) != chunks.len() as u64 {
            return Err(ManifestError::Count {
                len,
                chunks: chunks.len() as u64,
            });
        }
        Ok(Self { len, chunks })
    }

    /// The length of the blob in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunks in order, `None` for a hole.
    pub fn chunks(&self) -> &[Option<Digest>] {
        &self.chunks
    }

    /// How many raw bytes chunk `index` has.
    pub fn chunk_len(&self, index: usize) -> usize {
        let start = index as u64 * CHUNK_BYTES as u64;
        usize::try_from(self.len.saturating_sub(start).min(CHUNK_BYTES as u64))
            .expect("a chunk has at most 1 MiB")
    }

    /// The canonical record.
    pub fn encode(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEADER_BYTES + self.chunks.len() * DIGEST_BYTES);
        record.extend_from_slice(MAGIC);
        record.extend_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&self.len.to_le_bytes());
        for chunk in &self.chunks {
            record.extend_from_slice(chunk.as_ref().map_or(&HOLE, |digest| digest.as_bytes()));
        }
        record
    }

    /// Reads a record. The caller has checked its digest.
    pub fn decode(record: &[u8]) -> Result<Self, ManifestError> {
        let (header, body) = record
            .split_at_checked(HEADER_BYTES)
            .ok_or(ManifestError::Magic)?;
        let word = |at: usize| {
            u32::from_le_bytes(
                header[at..at + 4]
                    .try_into()
                    .expect("the header has 24 bytes"),
            )
        };
        if &header[..8] != MAGIC || word(12) != 0 {
            return Err(ManifestError::Magic);
        }
        if word(8) as usize != CHUNK_BYTES {
            return Err(ManifestError::ChunkSize(word(8)));
        }
        let len = u64::from(word(16)) | u64::from(word(20)) << 32;
        let (digests, rest) = body.as_chunks::<{ DIGEST_BYTES }>();
        if !rest.is_empty() {
            return Err(ManifestError::Count {
                len,
                chunks: digests.len() as u64,
            });
        }
        let chunks = digests
            .iter()
            .map(|digest| (*digest != HOLE).then(|| Digest::from_bytes(*digest)))
            .collect();
        Self::new(len, chunks)
    }

    /// The name of the blob.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_survives_its_record() {
        let manifest = Manifest::new(
            CHUNK_BYTES as u64 * 2 + 5,
            vec![Some(Digest::of(b"a")), None, Some(Digest::of(b"b"))],
        )
        .unwrap();
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        assert_eq!(manifest.chunk_len(1), CHUNK_BYTES);
        assert_eq!(manifest.chunk_len(2), 5);
    }

    #[test]
    fn a_manifest_with_too_few_chunks_is_refused() {
        let mut record = Manifest::new(5, vec![Some(Digest::of(b"a"))])
            .unwrap()
            .encode();
        record.truncate(record.len() - DIGEST_BYTES);
        assert!(matches!(
            Manifest::decode(&record),
            Err(ManifestError::Count { .. })
        ));
        assert!(matches!(
            Manifest::decode(b"OAST"),
            Err(ManifestError::Magic)
        ));
    }
}
