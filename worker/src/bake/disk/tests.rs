use oast_daemon::metrics::Metrics;

use super::super::layer::{PackOptions, pack};
use super::*;
use crate::image::tests::{fake_stub, have};

struct Bench {
    _folder: tempfile::TempDir,
    root: Utf8PathBuf,
    store: ArtifactStore,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let store = ArtifactStore::open(&root.join("store")).unwrap();
        Bench {
            _folder: folder,
            root,
            store,
        }
    }

    fn write(&self, path: &str, content: &[u8]) -> Utf8PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A layer of one key with this content.
    fn layer(&self, key: &str, name: &str, files: &[(&str, &str)]) -> UnpackedLayer {
        for (path, text) in files {
            self.write(&format!("{name}/{path}"), text.as_bytes());
        }
        let root = self.root.join(name);
        let options = PackOptions {
            key: Digest::of(key.as_bytes()),
            parent: None,
            host_base: rustix::process::geteuid().as_raw(),
            clamp_mtime: Some(1_704_067_200),
        };
        let (record, index) = pack(&self.store, &root, &options).unwrap();
        UnpackedLayer {
            key: record.key,
            content: record.content(),
            index,
            root,
            held: None,
        }
    }

    fn base(&self) -> UnpackedLayer {
        let modules = "usr/lib/modules/6.1.0-9";
        let builtin = format!("{modules}/modules.builtin");
        let dep = format!("{modules}/modules.dep");
        self.layer(
            "base",
            "base",
            &[
                ("boot/vmlinuz-6.1.0-9", "kernel"),
                (&builtin, "kernel/fs/ext4/ext4.ko\n"),
                (&dep, ""),
                ("srv/page", "one\n"),
            ],
        )
    }

    fn chain(&self, layers: Vec<UnpackedLayer>) -> Chain {
        Chain {
            anchor: 1,
            layers,
            size: Some(130 << 20),
            tools: Tools {
                stub: self.write("stub", &fake_stub()),
                busybox: self.write("busybox", b"#!/bin/false"),
            },
            hostname: "web".to_owned(),
            base: "debian-12".to_owned(),
            arch: Arch::Amd64,
            copied: Vec::new(),
        }
    }

    fn disks(&self, name: &str, limit: u64) -> Disks {
        let shelf = Shelf::new(limit, &Metrics::new());
        Disks::open(self.root.join(name), self.store.clone(), shelf).unwrap()
    }
}

fn silent(_: String) {}

/// Each chain's disk from a cache full of other disks is that from an empty one, and no two chains share one.
#[test]
fn a_disk_is_a_function_of_its_chain_whatever_the_cache_has() {
    if !have("debugfs") {
        return;
    }
    let bench = Bench::new();
    let base = bench.base();
    let app = bench.layer("app", "app", &[("srv/page", "two\n")]);
    // The same step, run again, may leave something else.
    let again = bench.layer("app", "again", &[("srv/page", "2026-11-23\n")]);
    let plain = bench.chain(vec![base.clone(), app.clone()]);
    let mut busybox = plain.clone();
    busybox.tools.busybox = bench.write("other-busybox", b"#!/bin/true");
    let chains = [
        ("as it is", plain.clone()),
        (
            "another name",
            Chain {
                hostname: "api".to_owned(),
                ..plain.clone()
            },
        ),
        (
            "a larger disk",
            Chain {
                size: Some(140 << 20),
                ..plain.clone()
            },
        ),
        ("another program in the boot partition", busybox),
        (
            "other content under the same key",
            Chain {
                layers: vec![base.clone(), again],
                ..plain.clone()
            },
        ),
        ("without the application", bench.chain(vec![base])),
    ];
    let shared = bench.disks("shared", u64::MAX);
    let mut seen = std::collections::BTreeMap::new();
    for (what, chain) in &chains {
        let made = shared.make(chain, &silent).unwrap();
        let alone = bench.disks(&format!("alone {what}"), u64::MAX);
        let anew = alone.make(chain, &silent).unwrap();
        assert_eq!(made, anew, "{what}: another cache made another disk");
        let before = seen.insert(made.digest, what);
        assert_eq!(before, None, "{what}: the same disk");
        assert_eq!(shared.make(chain, &silent).unwrap(), made, "{what}: known");
    }
    // Where the making from nothing begins does not show either.
    let anchored = Chain { anchor: 2, ..plain };
    let alone = bench.disks("anchored", u64::MAX);
    let made = alone.make(&anchored, &silent).unwrap();
    assert_eq!(seen.get(&made.digest), Some(&&"as it is"));
}

#[test]
fn many_images_stay_within_the_bound_and_a_disk_in_use_stays() {
    if !have("debugfs") {
        return;
    }
    let bench = Bench::new();
    let chain = bench.chain(vec![bench.base()]);
    let one = bench.disks("one", u64::MAX);
    one.make(&chain, &silent).unwrap();
    let size = one.shelf.bytes();
    let limit = size * 5 / 2;
    let disks = bench.disks("disks", limit);
    let first = disks.make(&chain, &silent).unwrap();
    let (path, kept) = disks.of(first.disk).unwrap();
    for number in 0..6 {
        let other = Chain {
            hostname: format!("web-{number}"),
            ..chain.clone()
        };
        let made = disks.make(&other, &silent).unwrap();
        assert!(
            disks.shelf.bytes() <= limit,
            "{} bytes",
            disks.shelf.bytes()
        );
        assert!(disks.of(made.disk).is_some(), "the newest is here");
        assert!(path.exists(), "somebody reads the first");
    }
    drop(kept);
    // A worker that starts anew with less room makes room at once.
    drop(disks);
    let disks = bench.disks("disks", size * 3 / 2);
    let raw = |entry: &fs::DirEntry| {
        entry
            .path()
            .extension()
            .is_some_and(|ending| ending == "raw")
    };
    let entries = fs::read_dir(&disks.folder).unwrap().flatten();
    assert_eq!(entries.filter(raw).count(), 1);
    assert!(disks.of(first.disk).is_none());
    // What was removed is made again, the same.
    assert_eq!(disks.make(&chain, &silent).unwrap(), first);
}
