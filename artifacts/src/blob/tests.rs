use std::os::unix::fs::MetadataExt;

use camino::Utf8PathBuf;

use super::*;

fn store() -> (tempfile::TempDir, ArtifactStore, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let store = ArtifactStore::open(&root.join("artifacts")).unwrap();
    (folder, store, root)
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

#[test]
fn every_way_to_store_the_same_bytes_gives_the_same_blob() {
    let (_folder, store, root) = store();
    for len in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES * 3 + 17] {
        let content = noise(len);
        let path = root.join("content");
        fs::write(&path, &content).unwrap();
        let bytes = store.put_bytes(&content).unwrap();
        let reader = store
            .put_reader("memory".into(), &mut content.as_slice())
            .unwrap();
        let file = store.put_sparse_file(&path).unwrap();
        assert_eq!((bytes.blob, bytes.len), (reader.blob, len as u64));
        assert_eq!((file.blob, file.new_chunks), (bytes.blob, 0));
        assert_eq!(store.read_blob(bytes.blob, u64::MAX).unwrap(), content);
    }
}

#[test]
fn holes_cost_nothing_and_come_back_as_holes() {
    let (_folder, store, root) = store();
    let path = root.join("disk");
    let file = File::create(&path).unwrap();
    file.set_len(512 << 20).unwrap();
    let content = noise(3000);
    file.write_all_at(&content, 300 << 20).unwrap();
    let stored = store.put_sparse_file(&path).unwrap();
    assert_eq!(
        (stored.len, stored.chunks, stored.new_chunks),
        (512 << 20, 1, 1)
    );

    let copy = root.join("copy");
    store.materialize(stored.blob, &copy).unwrap();
    let metadata = fs::metadata(&copy).unwrap();
    assert_eq!(metadata.len(), 512 << 20);
    assert!(
        metadata.blocks() * 512 <= 2 << 20,
        "{} blocks",
        metadata.blocks()
    );
    assert_eq!(store.put_sparse_file(&copy).unwrap().blob, stored.blob);

    let mut reader = store.open_blob(stored.blob).unwrap();
    reader.seek(SeekFrom::Start((300 << 20) - 5)).unwrap();
    let mut part = vec![1; 3005];
    reader.read_exact(&mut part).unwrap();
    assert_eq!(part[..5], [0; 5]);
    assert_eq!(part[5..], content);
    assert_eq!(reader.seek(SeekFrom::End(0)).unwrap(), 512 << 20);
    assert_eq!(reader.read(&mut part).unwrap(), 0);
}

#[test]
fn a_small_change_stores_only_the_chunks_it_touches() {
    let (_folder, store, root) = store();
    let path = root.join("disk");
    fs::write(&path, noise(CHUNK_BYTES * 8)).unwrap();
    let first = store.put_sparse_file(&path).unwrap();
    assert_eq!(first.new_chunks, 8);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"changed", 5 * CHUNK_BYTES as u64 - 3)
        .unwrap();
    let second = store.put_sparse_file(&path).unwrap();
    assert_eq!((second.chunks, second.new_chunks), (8, 2));
    assert_ne!(first.blob, second.blob);
}

#[test]
fn nothing_appears_when_a_blob_cannot_be_materialized() {
    let (_folder, store, root) = store();
    let stored = store.put_bytes(&noise(CHUNK_BYTES + 1)).unwrap();
    let chunk = store.manifest(stored.blob).unwrap().chunks()[1].unwrap();
    fs::remove_file(store.chunk_path(chunk)).unwrap();
    let folder = root.join("out");
    fs::create_dir(&folder).unwrap();
    assert!(matches!(
        store.materialize(stored.blob, &folder.join("disk")),
        Err(StoreError::Missing { what: "chunk", .. })
    ));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert!(store.verify(stored.blob).is_err());
}

#[test]
fn extents_are_widened_to_chunks_once() {
    let mib = CHUNK_BYTES as u64;
    let extents = [
        Extent { start: 10, end: 20 },
        Extent {
            start: 30,
            end: mib + 1,
        },
        Extent {
            start: 4 * mib,
            end: 5 * mib,
        },
    ];
    assert_eq!(chunks_with_data(&extents, 9), [0, 1, 4]);
}
