//! The blake3 hash of a whole disk without reading all of it again.
//!
//! blake3 is a tree, and a disk's 1 MiB chunks are subtrees of it. Their chaining values are kept
//! beside the disk; a patched disk shares most chunks with its parent, so only the changed ones
//! are read. The result is exactly what hashing the file from end to end gives.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use oast_artifacts::{CHUNK_BYTES, Digest, Manifest};

const CHUNK: u64 = CHUNK_BYTES as u64;

/// The chaining value of each chunk of a disk, with the chunk it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(Vec<(Option<Digest>, ChainingValue)>);

impl Values {
    /// As bytes: 64 for each chunk, no digest being zeros.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * 64);
        for (digest, value) in &self.0 {
            let digest = digest.map_or([0; 32], |digest| *digest.as_bytes());
            bytes.extend_from_slice(&digest);
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// From [`Values::encode`]; none when the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Option<Values> {
        let (entries, rest) = bytes.as_chunks::<64>();
        if !rest.is_empty() {
            return None;
        }
        let value = |entry: &[u8; 64]| {
            let (digest, value) = entry.split_at(32);
            let digest: [u8; 32] = digest.try_into().expect("half of 64");
            let value: ChainingValue = value.try_into().expect("half of 64");
            (
                (digest != [0; 32]).then(|| Digest::from_bytes(digest)),
                value,
            )
        };
        Some(Values(entries.iter().map(value).collect()))
    }
}

/// Hashes the file whose chunks are `manifest`'s. `before` are the values of a similar disk.
///
/// # Errors
/// The file cannot be read.
pub fn hash(
    file: &File,
    manifest: &Manifest,
    before: Option<&Values>,
) -> io::Result<(Digest, Values)> {
    let len = manifest.len();
    let mut buffer = vec![0; CHUNK_BYTES];
    if len <= CHUNK {
        // One subtree is the root itself.
        let part = &mut buffer[..manifest.chunk_len(0)];
        file.read_exact_at(part, 0)?;
        return Ok((Digest::of(part), Values::default()));
    }
    let mut values = Vec::with_capacity(manifest.chunks().len());
    for (place, chunk) in manifest.chunks().iter().enumerate() {
        let known = before
            .and_then(|before| before.0.get(place))
            // A short last chunk has its own digest, so equal digests mean equal subtrees.
            .filter(|(digest, _)| {
                digest == chunk && (chunk.is_some() || !is_last(manifest, place))
            });
        if let Some(known) = known {
            values.push(*known);
            continue;
        }
        let part = &mut buffer[..manifest.chunk_len(place)];
        let offset = place as u64 * CHUNK;
        match chunk {
            // Holes are not read: most of a disk is one.
            None => part.fill(0),
            Some(_) => file.read_exact_at(part, offset)?,
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset);
        hasher.update(part);
        values.push((*chunk, hasher.finalize_non_root()));
    }
    let root = root(&values, len);
    Ok((Digest::from_bytes(*root.as_bytes()), Values(values)))
}

fn is_last(manifest: &Manifest, place: usize) -> bool {
    place + 1 == manifest.chunks().len()
}

/// Where the tree splits: the left part is the largest power of two of chunks below the whole.
fn split(len: u64) -> (u64, usize) {
    let left = left_subtree_len(len);
    let chunks = usize::try_from(left / CHUNK).expect("64-bit host");
    (left, chunks)
}

fn root(values: &[(Option<Digest>, ChainingValue)], len: u64) -> blake3::Hash {
    let (left_len, left) = split(len);
    let (a, b) = values.split_at(left);
    merge_subtrees_root(
        &subtree(a, left_len),
        &subtree(b, len - left_len),
        Mode::Hash,
    )
}

fn subtree(values: &[(Option<Digest>, ChainingValue)], len: u64) -> ChainingValue {
    if let [(_, value)] = values {
        return *value;
    }
    let (left_len, left) = split(len);
    let (a, b) = values.split_at(left);
    merge_subtrees_non_root(
        &subtree(a, left_len),
        &subtree(b, len - left_len),
        Mode::Hash,
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use oast_artifacts::ArtifactStore;

    use super::*;

    #[test]
    fn it_is_the_hash_of_the_whole_file_whatever_was_reused() {
        let folder = tempfile::tempdir().unwrap();
        let root = camino::Utf8Path::from_path(folder.path()).unwrap();
        let store = ArtifactStore::open(&root.join("store")).unwrap();
        let path = root.join("disk");
        for len in [10, CHUNK_BYTES, CHUNK_BYTES * 2, CHUNK_BYTES * 7 + 12_345] {
            let mut content = vec![0_u8; len];
            for (at, byte) in content.iter_mut().enumerate() {
                // The middle stays a hole.
                if !(CHUNK_BYTES * 2..CHUNK_BYTES * 4).contains(&at) {
                    *byte = (at % 251) as u8;
                }
            }
            let write = |content: &[u8]| {
                let mut file = File::create(&path).unwrap();
                file.write_all(content).unwrap();
                let stored = store.put_sparse_file(&path).unwrap();
                (
                    File::open(&path).unwrap(),
                    store.manifest(stored.blob).unwrap(),
                )
            };
            let (file, manifest) = write(&content);
            let (digest, values) = hash(&file, &manifest, None).unwrap();
            assert_eq!(digest, Digest::of(&content), "{len} bytes");
            assert_eq!(Values::decode(&values.encode()), Some(values.clone()));
            content[len / 2] ^= 1;
            let (file, manifest) = write(&content);
            let (digest, _) = hash(&file, &manifest, Some(&values)).unwrap();
            assert_eq!(digest, Digest::of(&content), "{len} bytes, patched");
        }
    }
}
