//! Archives as tools make them, and as attackers do.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use tar::{Builder, EntryType, Header};

use super::*;

/// One entry, written as it is, however wrong.
#[derive(Clone)]
struct Raw {
    name: String,
    kind: EntryType,
    link: String,
    data: Vec<u8>,
    mode: u32,
    uid: u64,
    /// What the header says the data has.
    size: Option<u64>,
}

fn file(name: &str, data: &str) -> Raw {
    Raw {
        name: name.to_owned(),
        kind: EntryType::Regular,
        link: String::new(),
        data: data.as_bytes().to_vec(),
        mode: 0o644,
        uid: 0,
        size: None,
    }
}

fn other(name: &str, kind: EntryType, link: &str) -> Raw {
    Raw {
        kind,
        link: link.to_owned(),
        mode: 0o755,
        ..file(name, "")
    }
}

fn folder(name: &str) -> Raw {
    other(name, EntryType::Directory, "")
}

fn archive(entries: &[Raw]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(entry.size.unwrap_or(entry.data.len() as u64));
        let old = header.as_old_mut();
        old.name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        old.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder.append(&header, entry.data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A folder with an archive in it and a file beside the root that nothing may touch.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("outside")).unwrap();
        fs::write(place.path("outside/kept"), "kept").unwrap();
        place
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).unwrap().join(name)
    }

    fn import(&self, format: FileFormat, bytes: &[u8]) -> Result<Vec<String>, ImportError> {
        let limits = Limits {
            bytes: 1 << 20,
            entries: 100,
        };
        fs::write(self.path("file"), bytes).unwrap();
        let _ = fs::remove_dir_all(self.path("root"));
        let import = Import {
            format,
            file: &self.path("file"),
            architecture: "amd64",
            scratch: &self.path("scratch"),
            host_base: rustix::process::getuid().as_raw(),
            limits,
            cancel: &CancellationToken::new(),
        };
        let done = import.run(&self.path("root"));
        let outside = fs::read_dir(self.path("outside")).unwrap().count();
        assert_eq!(outside, 1, "something was written outside of the root");
        assert_eq!(fs::read(self.path("outside/kept")).unwrap(), b"kept");
        assert!(!self.path("scratch").exists(), "parts are left");
        done
    }

    fn rootfs(&self, entries: &[Raw]) -> Result<Vec<String>, ImportError> {
        self.import(FileFormat::Rootfs, &archive(entries))
    }

    fn refused(&self, entries: &[Raw], why: &str) {
        let err = self.rootfs(entries).unwrap_err();
        let text = oast_daemon::telemetry::chain(&err).to_string();
        assert!(text.contains(why), "{why:?} is not in {text:?}");
        assert!(err.is_recipe(), "{text}");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path("root").join(name)).unwrap()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let list = fs::read_dir(self.path("root").join(folder)).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<String> = list.flatten().map(name).collect();
        names.sort();
        names
    }
}

#[test]
fn a_root_is_unpacked_as_it_was() {
    let place = Place::new();
    let entries = [
        folder("./"),
        folder("etc/"),
        Raw {
            mode: 0o4755,
            ..file("usr/bin/su", "program")
        },
        other("bin", EntryType::Symlink, "usr/bin"),
        other("etc/su", EntryType::Link, "usr/bin/su"),
        file("bin/through", "a merged folder"),
        other("run/pipe", EntryType::Fifo, ""),
        Raw {
            mode: 0o700,
            ..folder("root/")
        },
        file("root/late", "the folder's time stays"),
    ];
    let plain = archive(&entries);
    let forms = [
        gzip(&plain),
        zstd::encode_all(plain.as_slice(), 1).unwrap(),
        plain,
    ];
    for bytes in forms {
        assert_eq!(
            place.import(FileFormat::Rootfs, &bytes).unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(place.read("usr/bin/through"), "a merged folder");
        let root = place.path("root");
        let su = fs::metadata(root.join("usr/bin/su")).unwrap();
        assert_eq!(su.permissions().mode() & 0o7777, 0o4755);
        assert_eq!(su.ino(), fs::metadata(root.join("etc/su")).unwrap().ino());
        assert_eq!(su.mtime(), 1_000_000);
        let home = fs::metadata(root.join("root")).unwrap();
        assert_eq!((home.mode() & 0o7777, home.mtime()), (0o700, 1_000_000));
        let pipe = fs::symlink_metadata(root.join("run/pipe")).unwrap();
        assert!(pipe.file_type().is_fifo());
    }
}

#[test]
fn nothing_leads_out_of_the_root() {
    let place = Place::new();
    place.refused(&[file("../outside/new", "x")], "leads out");
    place.refused(&[file("a/../../outside/new", "x")], "leads out");
    place.refused(&[file("/outside/new", "x")], "absolute");
    place.refused(
        &[other("x", EntryType::Link, "../outside/kept")],
        "leads out",
    );
    place.refused(&[other("x", EntryType::Link, "/outside/kept")], "absolute");
    let outside = place.path("outside");
    for target in [outside.as_str(), "../outside", "../../../outside"] {
        let link = || other("way", EntryType::Symlink, target);
        // Inside the root the link leads nowhere.
        place.refused(&[link(), file("way/new", "x")], "cannot have its folder");
        place.refused(
            &[link(), other("x", EntryType::Link, "way/kept")],
            "is a hard link to",
        );
        // What is at the path is replaced, and not written through.
        let kept = format!("{target}/kept");
        place
            .rootfs(&[
                other("way", EntryType::Symlink, &kept),
                file("way", "the file itself"),
            ])
            .unwrap();
        assert_eq!(place.read("way"), "the file itself");
        place
            .rootfs(&[link(), folder("way/"), file("way/new", "x")])
            .unwrap();
        assert_eq!(place.names("way"), ["new"]);
    }
    let around = other("a", EntryType::Symlink, "a");
    place.refused(&[around, file("a/b", "x")], "cannot have its folder");
    place.refused(
        &[file("a", "x"), file("a/b", "x")],
        "cannot have its folder",
    );
}

#[test]
fn a_link_that_is_removed_is_not_followed() {
    let place = Place::new();
    let root = place.path("other");
    fs::create_dir_all(root.join("inner")).unwrap();
    symlink(place.path("outside"), root.join("inner/link")).unwrap();
    let tree = Tree::open(&root, rustix::process::getuid().as_raw()).unwrap();
    let cancel = CancellationToken::new();
    let mut unpacker = Unpacker::new(&tree, Limits::default(), &cancel);
    let bytes = archive(&[file("inner", "a file in place of the folder")]);
    unpacker
        .layer(bytes.as_slice(), unpack::Whiteouts::Files)
        .unwrap();
    assert!(place.path("outside/kept").exists());
    assert!(root.join("inner").is_file());
}

#[test]
fn bombs_end_at_a_limit() {
    let place = Place::new();
    let zeros = "\0".repeat(8 << 20);
    let bomb = gzip(&archive(&[file("zeros", &zeros)]));
    assert!(bomb.len() < 1 << 18);
    let err = place.import(FileFormat::Rootfs, &bomb).unwrap_err();
    assert!(err.to_string().contains("more than 1048576 bytes"), "{err}");
    assert!(fs::metadata(place.path("root/zeros")).is_ok_and(|zeros| zeros.len() <= 1 << 20));

    let lie = Raw {
        size: Some(1 << 32),
        ..file("large", "x")
    };
    place.refused(&[lie], "more than 1048576 bytes");
    let many: Vec<Raw> = (0..101).map(|n| file(&format!("f{n}"), "")).collect();
    place.refused(&many, "more than 100 entries");
    let err = place
        .import(FileFormat::Oci, &gzip(&archive(&[file("blobs/x", &zeros)])))
        .unwrap_err();
    assert!(err.to_string().contains("more than 1048576 bytes"), "{err}");
}

#[test]
fn devices_and_strange_owners_are_refused() {
    let place = Place::new();
    for kind in [EntryType::Char, EntryType::Block] {
        place.refused(&[other("etc/disk", kind, "")], "device outside of /dev");
        let left_out = place.rootfs(&[other("dev/console", kind, "")]).unwrap();
        assert_eq!(left_out, ["left out the device /dev/console"]);
        assert!(!place.path("root/dev/console").exists());
    }
    let far = Raw {
        uid: 70_000,
        ..file("x", "")
    };
    place.refused(&[far], "belongs to user 70000");

    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("uid", b"70000".as_slice())])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    builder.append_data(&mut header, "x", io::empty()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let err = place.import(FileFormat::Rootfs, &bytes).unwrap_err();
    assert!(err.to_string().contains("belongs to user 70000"), "{err}");
}

#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let place = Place::new();
    let text = "<html>not found</html>\n".repeat(100);
    for bytes in [text.as_bytes(), &gzip(text.as_bytes()), b"BZh91AY&SY...."] {
        for format in [FileFormat::Rootfs, FileFormat::Oci] {
            let err = place.import(format, bytes).unwrap_err();
            let text = oast_daemon::telemetry::chain(&err).to_string();
            assert!(
                text.contains("tar archive") || text.contains("bzip2"),
                "{text}"
            );
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    crate::bake::base::fetch::hex(&sha2::Sha256::digest(bytes))
}

/// An image layout of layers, some parts spoiled.
fn layout(layers: &[Vec<Raw>], spoil: impl Fn(&str, Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    let mut blob = |kind: &str, bytes: Vec<u8>| {
        let digest = sha256(&bytes);
        parts.push((format!("blobs/sha256/{digest}"), spoil(kind, bytes)));
        format!("sha256:{digest}")
    };
    let mut contents = Vec::new();
    let mut stored = Vec::new();
    for layer in layers {
        let plain = archive(layer);
        contents.push(format!("sha256:{}", sha256(&plain)));
        stored.push(serde_json::json!({ "digest": blob("layer", gzip(&plain)) }));
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "diff_ids": contents }
    });
    let config = blob("config", config.to_string().into_bytes());
    let manifest = serde_json::json!({ "config": { "digest": config }, "layers": stored });
    let manifest = blob("manifest", manifest.to_string().into_bytes());
    let platform =
        |architecture: &str| serde_json::json!({ "os": "linux", "architecture": architecture });
    let index = serde_json::json!({ "manifests": [
        { "digest": format!("sha256:{}", "0".repeat(64)), "platform": platform("arm64") },
        { "digest": manifest, "platform": platform("amd64") },
    ] });
    parts.push((
        "index.json".to_owned(),
        spoil("index", index.to_string().into_bytes()),
    ));
    let entries: Vec<Raw> = parts
        .into_iter()
        .map(|(name, data)| Raw {
            data,
            ..file(&name, "")
        })
        .collect();
    archive(&entries)
}

fn as_it_is(_: &str, bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[test]
fn layers_hide_what_is_below_them() {
    let place = Place::new();
    let layers = [
        vec![
            folder("etc/"),
            file("etc/gone", "1"),
            file("etc/kept", "1"),
            file("var/lib/a/old", "1"),
            file("var/lib/b/old", "1"),
            file("tree/inner/leaf", "1"),
            file("swap", "a file"),
        ],
        vec![
            file("etc/.wh.gone", ""),
            file("var/lib/a/new", "2"),
            // Behind what it must not hide, and in front of it.
            file("var/lib/a/.wh..wh..opq", ""),
            file("var/lib/b/.wh..wh..opq", ""),
            file("var/lib/b/new", "2"),
            file(".wh.tree", ""),
            folder("swap/"),
            file("swap/in", "a folder"),
        ],
        vec![file("etc/gone", "3"), file("no/.wh.such", "")],
    ];
    place
        .import(FileFormat::Oci, &layout(&layers, as_it_is))
        .unwrap();
    assert_eq!(place.names(""), ["etc", "swap", "var"]);
    assert_eq!(place.names("etc"), ["gone", "kept"]);
    assert_eq!(place.read("etc/gone"), "3");
    assert_eq!(place.names("var/lib/a"), ["new"]);
    assert_eq!(place.names("var/lib/b"), ["new"]);
    assert_eq!(place.read("swap/in"), "a folder");
}

#[test]
fn a_whiteout_removes_nothing_elsewhere() {
    let place = Place::new();
    let way = other("way", EntryType::Symlink, "../outside");
    let layers = [vec![way], vec![file("way/.wh.kept", "")]];
    place
        .import(FileFormat::Oci, &layout(&layers, as_it_is))
        .unwrap();
    for name in ["a/.wh..", "a/.wh...", "a/.wh."] {
        let bytes = layout(&[vec![file("a/b", ""), file(name, "")]], as_it_is);
        let err = place.import(FileFormat::Oci, &bytes).unwrap_err();
        assert!(err.to_string().contains("whiteout of nothing"), "{err}");
    }
}

#[test]
fn every_part_of_an_image_is_what_its_digest_says() {
    let layers = [vec![file("etc/x", "1")]];
    let spoiled = |which: &'static str, with: fn(Vec<u8>) -> Vec<u8>| {
        let place = Place::new();
        let bytes = layout(
            &layers,
            |kind, bytes| {
                if kind == which { with(bytes) } else { bytes }
            },
        );
        let err = place.import(FileFormat::Oci, &bytes).unwrap_err();
        assert!(err.is_recipe());
        oast_daemon::telemetry::chain(&err).to_string()
    };
    let space = |mut bytes: Vec<u8>| {
        bytes.push(b' ');
        bytes
    };
    for part in ["manifest", "config"] {
        let said = spoiled(part, space);
        assert!(said.contains("has the content sha256:"), "{said}");
    }
    let said = spoiled("layer", |_| gzip(&archive(&[file("etc/x", "2")])));
    assert!(said.contains("has the content sha256:"), "{said}");
    let said = spoiled("index", |_| b"{\"manifests\":[]}".to_vec());
    assert!(said.contains("not for linux/amd64"), "{said}");
    let said = spoiled("index", |_| b"nonsense".to_vec());
    assert!(said.contains("index.json cannot be read"), "{said}");
    let said = spoiled("index", |bytes| {
        String::from_utf8(bytes)
            .unwrap()
            .replace("sha256:", "sha256:../../")
            .into_bytes()
    });
    assert!(said.contains("which is no SHA-256"), "{said}");
}

#[test]
fn a_saved_image_is_taken_too() {
    let place = Place::new();
    let layer = archive(&[file("etc/x", "saved")]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "diff_ids": [format!("sha256:{}", sha256(&layer)), format!("sha256:{}", sha256(&layer))] }
    });
    let manifest = serde_json::json!([
        { "Config": "c.json", "Layers": ["1/layer.tar", "2/layer.tar"] }
    ]);
    let part = |name: &str, data: Vec<u8>| Raw {
        data,
        ..file(name, "")
    };
    let bytes = archive(&[
        part("manifest.json", manifest.to_string().into_bytes()),
        part("c.json", config.to_string().into_bytes()),
        other("2/layer.tar", EntryType::Symlink, "../1/layer.tar"),
        part("1/layer.tar", layer),
    ]);
    place.import(FileFormat::Oci, &bytes).unwrap();
    assert_eq!(place.read("etc/x"), "saved");
}
