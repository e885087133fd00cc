use super::*;

fn store() -> (tempfile::TempDir, ArtifactStore, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let store = ArtifactStore::open(&root.join("artifacts")).unwrap();
    (folder, store, root)
}

fn file(path: &str, content: impl Into<Vec<u8>>) -> SourceFile {
    let source = FileSource::Bytes {
        bytes: content.into(),
        executable: false,
    };
    SourceFile {
        path: path.to_owned(),
        source,
    }
}

fn link(path: &str, target: &str) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        source: FileSource::Symlink {
            target: target.to_owned(),
        },
    }
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let (_folder, store, root) = store();
    let site = root.join("site");
    fs::create_dir_all(site.join("deep/er")).unwrap();
    fs::create_dir(site.join("empty")).unwrap();
    fs::create_dir(site.join(".git")).unwrap();
    fs::write(site.join(".git/HEAD"), "x").unwrap();
    fs::write(site.join("deep/er/page"), "hello").unwrap();
    let mut large = vec![0; 2 * CHUNK_BYTES + 5];
    getrandom::fill(&mut large).unwrap();
    fs::write(site.join("large"), &large).unwrap();
    fs::write(site.join("zero"), "").unwrap();
    fs::set_permissions(site.join("deep/er/page"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("/etc/passwd", site.join("link")).unwrap();

    let stored = store.put_folder(&site, &|path| path == ".git").unwrap();
    let tree = store.tree(stored.blob).unwrap();
    let paths: Vec<_> = tree
        .entries()
        .iter()
        .map(|entry| entry.path.as_str())
        .collect();
    assert_eq!(paths, ["deep/er/page", "empty", "large", "link", "zero"]);
    assert_eq!(store.read_file(&tree, "large", u64::MAX).unwrap(), large);

    let out = root.join("out");
    store.checkout(&tree, "", &out).unwrap();
    assert_eq!(
        store.put_folder(&out, &|_| false).unwrap().blob,
        stored.blob
    );
    let mode = fs::metadata(out.join("deep/er/page"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o755);
    assert_eq!(
        fs::read_link(out.join("link")).unwrap().to_str(),
        Some("/etc/passwd")
    );

    store
        .checkout(&tree, "deep/er", &root.join("part"))
        .unwrap();
    assert_eq!(fs::read(root.join("part/page")).unwrap(), b"hello");
    store
        .checkout(&tree, "deep/er/page", &root.join("one"))
        .unwrap();
    assert_eq!(fs::read(root.join("one")).unwrap(), b"hello");
    assert!(matches!(
        store.checkout(&tree, "no", &root.join("none")),
        Err(TreeError::NoFile { .. })
    ));
    assert!(!root.join("none").exists());
    assert!(
        store.checkout(&tree, "", &out).is_err(),
        "an existing target is not replaced"
    );
}

#[test]
fn the_digest_of_a_part_ignores_the_rest() {
    let (_folder, store, _root) = store();
    let tree = |files| store.tree(store.put_files(files).unwrap().blob).unwrap();
    let before = tree(vec![
        file("web/index", "1"),
        file("web/a/b", "2"),
        file("webbing", "3"),
    ]);
    let after = tree(vec![
        file("web/index", "1"),
        file("web/a/b", "2"),
        file("webbing", "4"),
    ]);
    let moved = tree(vec![file("site/index", "1"), file("site/a/b", "2")]);
    assert_ne!(before, after);
    assert_eq!(before.digest_under("web"), after.digest_under("web/"));
    assert_eq!(before.digest_under("web"), moved.digest_under("site"));
    assert_ne!(before.digest_under(""), after.digest_under(""));
    assert_ne!(before.digest_under("web"), before.digest_under("web/index"));
    assert_eq!(before.digest_under("we"), None);
    assert_eq!(before.under("web").count(), 2);
}

#[test]
fn an_edit_among_many_small_files_stores_little() {
    let (_folder, store, _root) = store();
    let files = |edit: &str| -> Vec<_> {
        (0..600)
            .map(|n| {
                let text = if n == 300 {
                    edit.to_owned()
                } else {
                    format!("file {n} ").repeat(500)
                };
                file(&format!("src/{n:04}"), text)
            })
            .collect()
    };
    let first = store.put_files(files("before")).unwrap();
    let second = store.put_files(files("after, and longer")).unwrap();
    assert!(first.new_chunks >= 10, "{first:?}");
    // The pack with the edit, at most one neighbour, and the list.
    assert!(second.new_chunks <= 3, "{second:?}");
    assert_eq!(store.put_files(files("before")).unwrap().new_chunks, 0);
}

#[test]
fn a_tree_cannot_write_outside_itself() {
    let (_folder, store, _root) = store();
    for path in ["", "/etc/passwd", "a/../b", "..", "./a", "a//b", "a/"] {
        assert!(
            matches!(
                store.put_files(vec![file(path, "x")]),
                Err(TreeError::Path(_))
            ),
            "{path:?}"
        );
    }
    assert!(matches!(
        store.put_files(vec![link("a", "/etc"), file("a/b", "x")]),
        Err(TreeError::UnderFile { .. })
    ));
    assert!(matches!(
        store.put_files(vec![file("a", "x"), file("a", "y")]),
        Err(TreeError::Twice { .. })
    ));
}

#[test]
fn a_forged_list_is_refused() {
    let (_folder, store, _root) = store();
    let kind = EntryKind::Symlink {
        target: "/".to_owned(),
    };
    let entries = vec![TreeEntry {
        path: "../out".to_owned(),
        kind,
    }];
    let record = rmp_serde::to_vec(&Tree {
        version: VERSION,
        entries,
    })
    .unwrap();
    let blob = store.put_bytes(&record).unwrap().blob;
    assert!(matches!(store.tree(blob), Err(TreeError::Path(_))));
    let blob = store.put_bytes(b"not a list").unwrap().blob;
    assert!(matches!(store.tree(blob), Err(TreeError::Record { .. })));
}

#[test]
fn special_files_are_named() {
    let (_folder, store, root) = store();
    let site = root.join("site");
    fs::create_dir(&site).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.join("socket")).unwrap();
    let err = store.put_folder(&site, &|_| false).unwrap_err();
    assert!(
        matches!(&err, TreeError::Special { path } if path.ends_with("socket")),
        "{err}"
    );
}
