//! The file form of one chunk: a 16-byte header and the payload, raw or zstd.
//!
//! ```text
//! 0  "OASTCHK1"   8   codec: 0 raw, 1 zstd   9..12 zero   12..16 length of the raw bytes, little endian
//! ```

use super::Digest;
use crate::manifest::CHUNK_BYTES;

const MAGIC: &[u8; 8] = b"OASTCHK1";
const HEADER_BYTES: usize = 16;
const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
/// The cheapest level: a bake waits for the store, and most of the gain is in the first level.
const ZSTD_LEVEL: i32 = 1;
/// Below this size a frame costs more than it saves.
const MIN_COMPRESSED_BYTES: usize = 128;

/// Why the bytes of a chunk file are not the chunk they claim to be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("the header is damaged")]
    Header,
    #[error("the payload does not decompress to the {expected} bytes that the header promises")]
    Payload { expected: usize },
    #[error("the content has the digest {actual}")]
    Digest { actual: Digest },
}

/// Makes the file form. Compressed only when that saves at least an eighth: a barely smaller chunk would cost every reader
/// the decompression for nothing.
pub fn encode(raw: &[u8]) -> Vec<u8> {
    debug_assert!(raw.len() <= CHUNK_BYTES);
    if raw.len() >= MIN_COMPRESSED_BYTES
        && let Ok(packed) = zstd::bulk::compress(raw, ZSTD_LEVEL)
        && packed.len() < raw.len() - raw.len() / 8
    {
        return frame(CODEC_ZSTD, raw.len(), &packed);
    }
    frame(CODEC_RAW, raw.len(), raw)
}

fn frame(codec: u8, raw_len: usize, payload: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER_BYTES + payload.len());
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&[codec, 0, 0, 0]);
    let raw_len = u32::try_from(raw_len).expect("a chunk has at most 1 MiB");
    file.extend_from_slice(&raw_len.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// Takes the raw bytes out of the file form and proves that they are the chunk `digest`.
pub fn decode(digest: Digest, file: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (header, payload) = file
        .split_at_checked(HEADER_BYTES)
        .ok_or(DecodeError::Header)?;
    let length: [u8; 4] = header[12..16].try_into().expect("the header has 16 bytes");
    let expected = u32::from_le_bytes(length) as usize;
    if &header[..8] != MAGIC || header[9..12] != [0, 0, 0] || expected > CHUNK_BYTES {
        return Err(DecodeError::Header);
    }
    let raw = match header[8] {
        CODEC_RAW => payload.to_vec(),
        CODEC_ZSTD => zstd::bulk::decompress(payload, expected)
            .map_err(|_| DecodeError::Payload { expected })?,
        _ => return Err(DecodeError::Header),
    };
    if raw.len() != expected {
        return Err(DecodeError::Payload { expected });
    }
    let actual = Digest::of(&raw);
    if actual != digest {
        return Err(DecodeError::Digest { actual });
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressible_and_random_bytes_come_back() {
        let mut noise = vec![0; 4096];
        getrandom::fill(&mut noise).unwrap();
        for raw in [b"".to_vec(), b"x".to_vec(), vec![7; CHUNK_BYTES], noise] {
            let file = encode(&raw);
            assert!(file.len() <= raw.len() + HEADER_BYTES);
            assert_eq!(decode(Digest::of(&raw), &file).unwrap(), raw);
        }
    }

    #[test]
    fn a_flipped_bit_never_changes_what_is_read() {
        let raw = b"a chunk that is worth keeping. ".repeat(40);
        let file = encode(&raw);
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            // A few bits of a compressed frame mean nothing; all others must be noticed.
            if let Ok(read) = decode(Digest::of(&raw), &damaged) {
                assert_eq!(read, raw, "byte {at}");
            }
        }
    }
}
