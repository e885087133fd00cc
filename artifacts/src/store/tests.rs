use std::os::unix::fs::PermissionsExt;

use super::*;

fn store() -> (tempfile::TempDir, ArtifactStore) {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(folder.path())
        .unwrap()
        .join("artifacts");
    let store = ArtifactStore::open(&root).unwrap();
    (folder, store)
}

fn temporary_files(store: &ArtifactStore) -> usize {
    fs::read_dir(store.root().join(TEMPORARY)).unwrap().count()
}

#[test]
fn a_damaged_chunk_is_named_set_aside_and_stored_afresh() {
    let (_folder, store) = store();
    let content = b"content that is worth a chunk".repeat(100);
    let blob = store.put_bytes(&content).unwrap().blob;
    let chunk = store.manifest(blob).unwrap().chunks()[0].unwrap();
    let path = store.chunk_path(chunk);
    let mut file = fs::read(&path).unwrap();
    let last = file.len() - 1;
    file[last] ^= 1;
    fs::write(&path, &file).unwrap();

    let err = store.read_blob(blob, 1 << 20).unwrap_err();
    assert!(
        matches!(&err, StoreError::Corrupt { path: at, .. } if *at == path),
        "{err}"
    );
    assert!(err.to_string().contains("stored afresh"), "{err}");
    assert!(
        !store.has_chunk(chunk),
        "a damaged chunk must not be taken for a stored one"
    );

    assert_eq!(store.put_bytes(&content).unwrap().new_chunks, 1);
    assert_eq!(store.read_blob(blob, 1 << 20).unwrap(), content);
}

#[test]
fn a_damaged_manifest_is_refused() {
    let (_folder, store) = store();
    let blob = store.put_bytes(b"x").unwrap().blob;
    fs::write(store.manifest_path(blob), b"OASTMAN1 and then nonsense").unwrap();
    assert!(matches!(
        store.manifest(blob),
        Err(StoreError::Corrupt {
            what: "manifest",
            ..
        })
    ));
    assert!(!store.has(blob));
}

#[test]
fn a_missing_blob_is_not_a_damaged_one() {
    let (_folder, store) = store();
    let err = store.manifest(Digest::of(b"never stored")).unwrap_err();
    assert!(matches!(err, StoreError::Missing { .. }), "{err}");
}

#[test]
fn writers_of_one_chunk_do_not_hurt_each_other() {
    let (_folder, store) = store();
    let other = ArtifactStore::open(store.root()).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::thread::scope(|scope| {
        for store in [&store, &other, &store, &other] {
            scope.spawn(|| store.put_bytes(&content).unwrap());
        }
    });
    let blob = store.put_bytes(&content).unwrap();
    assert_eq!(blob.new_chunks, 0);
    assert_eq!(store.read_blob(blob.blob, 1 << 30).unwrap(), content);
    assert_eq!(temporary_files(&store), 0);
}

#[test]
fn a_folder_without_write_access_says_so_and_leaves_nothing() {
    if rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: root may write everywhere");
        return;
    }
    let (_folder, store) = store();
    let shard = store.root().join(TEMPORARY);
    fs::set_permissions(&shard, fs::Permissions::from_mode(0o555)).unwrap();
    let err = store.put_bytes(b"x").unwrap_err();
    assert!(matches!(err, StoreError::NotWritable { .. }), "{err}");
    fs::set_permissions(&shard, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(temporary_files(&store), 0);
}

#[test]
fn a_failed_put_leaves_neither_manifest_nor_temporary_files() {
    let (_folder, store) = store();
    // The shard folders are gone: renames fail, as they would on a damaged disk.
    fs::remove_dir_all(store.root().join(CHUNKS)).unwrap();
    let content: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let err = store.put_bytes(&content).unwrap_err();
    assert!(
        err.to_string().contains("chunks/"),
        "the error names the path: {err}"
    );
    assert_eq!(temporary_files(&store), 0);
    assert_eq!(
        fs::read_dir(store.root().join(MANIFESTS)).unwrap().count(),
        0
    );
}

#[test]
fn io_errors_are_sorted_by_the_way_out() {
    let sorted = |errno: rustix::io::Errno| StoreError::io("write", "/x", errno.into());
    assert!(matches!(
        sorted(rustix::io::Errno::NOSPC),
        StoreError::NoSpace { .. }
    ));
    assert!(matches!(
        sorted(rustix::io::Errno::DQUOT),
        StoreError::NoSpace { .. }
    ));
    assert!(matches!(
        sorted(rustix::io::Errno::ROFS),
        StoreError::NotWritable { .. }
    ));
    assert!(matches!(
        sorted(rustix::io::Errno::ACCESS),
        StoreError::NotWritable { .. }
    ));
    assert!(matches!(
        sorted(rustix::io::Errno::IO),
        StoreError::Io { .. }
    ));
}

#[test]
fn only_old_leftovers_are_swept() {
    let (_folder, store) = store();
    let left = store.temporary_path();
    fs::write(&left, b"half").unwrap();
    let now = fs::metadata(&left).unwrap().modified().unwrap();
    let hour = Duration::from_secs(3600);
    assert_eq!(store.sweep(now + hour / 2, hour).unwrap(), Swept::default());
    assert_eq!(
        store.sweep(now + hour, hour).unwrap(),
        Swept { files: 1, bytes: 4 }
    );
}

#[test]
fn a_reader_sees_what_a_writer_stored() {
    let (_folder, store) = store();
    let blob = store.put_bytes(b"seen").unwrap().blob;
    let reader = ArtifactStore::open_read_only(store.root()).unwrap();
    assert_eq!(reader.read_blob(blob, 10).unwrap(), b"seen");
    assert!(matches!(
        reader.read_blob(blob, 3),
        Err(StoreError::TooLarge { len: 4, .. })
    ));
    assert!(ArtifactStore::open_read_only(&store.root().join("nowhere")).is_err());
}
