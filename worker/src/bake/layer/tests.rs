use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use camino::Utf8Path;
use oast_artifacts::ArtifactStore;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::*;

struct Fixture {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
    store: ArtifactStore,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    let store = ArtifactStore::open(&root.join("artifacts")).unwrap();
    Fixture {
        _folder: folder,
        root,
        store,
    }
}

fn options() -> PackOptions {
    // Tests run as any user: the user's own id is the image's root, unless it is root already.
    PackOptions {
        key: Digest::of(b"step"),
        parent: None,
        host_base: rustix::process::geteuid().as_raw(),
        clamp_mtime: None,
    }
}

fn sample(root: &Utf8Path) -> Utf8PathBuf {
    let upper = root.join("upper");
    fs::create_dir_all(upper.join("etc/app")).unwrap();
    fs::create_dir(upper.join("closed")).unwrap();
    fs::write(upper.join("etc/app/config"), "port = 80\n").unwrap();
    fs::write(upper.join("etc/large"), vec![b'x'; (2 << 20) + 3]).unwrap();
    fs::write(upper.join("etc/empty"), "").unwrap();
    fs::hard_link(upper.join("etc/large"), upper.join("etc/second name")).unwrap();
    symlink("../nowhere", upper.join("etc/link")).unwrap();
    fs::write(upper.join("closed/inside"), "x").unwrap();
    fs::set_permissions(upper.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(
        upper.join("etc/app/config"),
        fs::Permissions::from_mode(0o4750),
    )
    .unwrap();
    lsetxattr(
        upper.join("etc").as_std_path(),
        "user.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    lsetxattr(
        upper.join("etc/empty").as_std_path(),
        "user.note",
        b"kept\0",
        XattrFlags::empty(),
    )
    .unwrap();
    mknodat(
        CWD,
        upper.join("gone").as_std_path(),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    mknodat(
        CWD,
        upper.join("fifo").as_std_path(),
        FileType::Fifo,
        Mode::from_raw_mode(0o640),
        0,
    )
    .unwrap();
    upper
}

fn open_up(folder: &Utf8Path) {
    // So that an ordinary user's temporary folder can be removed.
    let _ = fs::set_permissions(folder.join("closed"), fs::Permissions::from_mode(0o700));
}

#[test]
fn a_layer_comes_back_with_everything() {
    let f = fixture();
    let upper = sample(&f.root);
    let (record, index) = pack(&f.store, &upper, &options()).unwrap();
    assert_eq!(record.entries, index.entries().len() as u64);

    let out = f.root.join("lower");
    let (unpacked, skipped) = unpack(&f.store, &record, &out, options().host_base).unwrap();
    assert_eq!(skipped, vec![]);
    assert_eq!(unpacked.index, index);
    let (again, _) = pack(&f.store, &out, &options()).unwrap();
    assert_eq!(again, record, "what was unpacked is the same layer");

    assert_eq!(
        index.get("etc").unwrap().node,
        Node::Folder { opaque: true }
    );
    assert_eq!(index.get("gone").unwrap().node, Node::Whiteout);
    assert_eq!(
        index.get("etc/second name").unwrap().node,
        Node::HardLink {
            target: "etc/large".to_owned()
        }
    );
    let (a, b) = (
        fs::metadata(out.join("etc/large")).unwrap(),
        fs::metadata(out.join("etc/second name")).unwrap(),
    );
    assert_eq!((a.ino(), a.len()), (b.ino(), (2 << 20) + 3));
    assert_eq!(
        fs::metadata(out.join("etc/app/config")).unwrap().mode() & 0o7777,
        0o4750
    );
    open_up(&upper);
    open_up(&out);
}

#[test]
fn owners_are_the_image_s_wherever_its_ids_lie() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may give files away");
        return;
    }
    let f = fixture();
    let upper = f.root.join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("page"), "x").unwrap();
    let base = 1_000_000;
    std::os::unix::fs::chown(&upper, Some(base), Some(base)).unwrap();
    std::os::unix::fs::chown(upper.join("page"), Some(base + 33), Some(base + 34)).unwrap();
    // cap_net_bind_service+ep, bound to the namespace whose root is `base`.
    let mut capability = vec![1, 0, 0, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    capability.extend_from_slice(&base.to_le_bytes());
    lsetxattr(
        upper.join("page").as_std_path(),
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )
    .unwrap();

    let (record, index) = pack(
        &f.store,
        &upper,
        &PackOptions {
            host_base: base,
            ..options()
        },
    )
    .unwrap();
    let page = index.get("page").unwrap();
    assert_eq!((page.uid, page.gid), (33, 34));
    assert_eq!(
        (page.xattrs[0].value.len(), page.xattrs[0].value[3]),
        (20, 2),
        "{:?}",
        page.xattrs
    );

    let out = f.root.join("elsewhere");
    let (_, skipped) = unpack(&f.store, &record, &out, 2_000_000).unwrap();
    assert_eq!(skipped, vec![]);
    assert_eq!(fs::metadata(out.join("page")).unwrap().uid(), 2_000_033);
    let (again, _) = pack(
        &f.store,
        &out,
        &PackOptions {
            host_base: 2_000_000,
            ..options()
        },
    )
    .unwrap();
    assert_eq!(again.index, record.index);

    let err = pack(
        &f.store,
        &upper,
        &PackOptions {
            host_base: base + 1,
            ..options()
        },
    )
    .unwrap_err();
    assert!(matches!(err, PackError::ForeignOwner { .. }), "{err}");
}

#[test]
fn equal_changes_make_equal_layers_when_times_are_clamped() {
    let f = fixture();
    let options = PackOptions {
        clamp_mtime: Some(1_700_000_000),
        ..options()
    };
    let mut records = Vec::new();
    for name in ["one", "two"] {
        let upper = f.root.join(name);
        fs::create_dir(&upper).unwrap();
        fs::write(upper.join("page"), "hello").unwrap();
        records.push(pack(&f.store, &upper, &options).unwrap().0);
    }
    assert_eq!(records[0], records[1]);
}

#[test]
fn names_that_a_disk_cannot_take_are_refused_early() {
    let f = fixture();
    let upper = f.root.join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("two\nlines"), "x").unwrap();
    let err = pack(&f.store, &upper, &options()).unwrap_err();
    assert!(
        matches!(&err, PackError::LineBreak { path } if path.starts_with("two")),
        "{err}"
    );
}

#[test]
fn a_forged_index_cannot_leave_its_folder() {
    let f = fixture();
    let entry = |path: &str, node| LayerEntry {
        path: path.to_owned(),
        node,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nanos: 0,
        xattrs: vec![],
    };
    let out = || Node::Symlink {
        target: "/tmp".to_owned(),
    };
    for entries in [
        vec![entry("../x", out())],
        vec![entry("a", out()), entry("a/b", out())],
        vec![entry(
            "a",
            Node::HardLink {
                target: "etc/passwd".to_owned(),
            },
        )],
    ] {
        let blob = f
            .store
            .put_bytes(&LayerIndex::new(entries).encode())
            .unwrap()
            .blob;
        let record = LayerRecord {
            key: blob,
            parent: None,
            index: blob,
            data: blob,
            size: 0,
            entries: 1,
            inputs: BTreeMap::new(),
        };
        assert!(matches!(
            unpack(&f.store, &record, &f.root.join("out"), 0),
            Err(UnpackError::Index(_))
        ));
        assert!(!f.root.join("out").exists());
    }
}

#[test]
fn a_key_changes_with_every_input() {
    let (env, args) = ([("A".to_owned(), "1".to_owned())].into(), BTreeMap::new());
    let inputs = [("web".to_owned(), Digest::of(b"site"))];
    let key = LayerKey {
        parent: Some(Digest::of(b"base")),
        engine: 1,
        arch: "amd64",
        step: b"copy web /srv",
        env: &env,
        args: &args,
        inputs: &inputs,
        packages: "2026-11-23",
        trust_scope: "team/main",
    };
    let all = [
        key.digest(),
        LayerKey {
            parent: None,
            ..key.clone()
        }
        .digest(),
        LayerKey {
            engine: 2,
            ..key.clone()
        }
        .digest(),
        LayerKey {
            arch: "arm64",
            ..key.clone()
        }
        .digest(),
        LayerKey {
            step: b"copy web /srv2",
            ..key.clone()
        }
        .digest(),
        LayerKey {
            env: &args,
            args: &env,
            ..key.clone()
        }
        .digest(),
        LayerKey {
            inputs: &[],
            ..key.clone()
        }
        .digest(),
        LayerKey {
            packages: "2026-11-24",
            ..key.clone()
        }
        .digest(),
        LayerKey {
            trust_scope: "team/fork",
            ..key.clone()
        }
        .digest(),
    ];
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(unique.len(), all.len());
    assert_eq!(key.digest(), key.clone().digest());
}
