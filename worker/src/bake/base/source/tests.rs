use camino::Utf8PathBuf;

use super::*;

fn apt_root(files: &[(&str, &str)]) -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    for (name, text) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    (folder, root)
}

fn wanted() -> Wanted<'static> {
    Wanted {
        suite: "bookworm",
        overlays: &["bookworm-updates", "bookworm-security"],
        components: &["main"],
        architecture: "amd64",
    }
}

fn places(apt_root: &Utf8Path) -> Places<'_> {
    Places {
        mirror: None,
        configured: &[],
        apt_root,
    }
}

const DEB822: &str = "\
Types: deb deb-src
# a comment inside a stanza
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Enabled: no
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://mirror.example/arm
Suites: bookworm
Components: main
Architectures: arm64
Signed-By: /keys/arm.gpg
";

#[test]
fn deb822_sources_are_read_with_their_keyring_and_architecture() {
    let (_folder, root) = apt_root(&[("sources.list.d/debian.sources", DEB822)]);
    let found = find(&wanted(), &places(&root)).unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|s| (s.url.as_str(), s.suite.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            ("http://mirror.example/debian", "bookworm"),
            ("http://mirror.example/debian", "bookworm-updates")
        ]
    );
    assert_eq!(found[0].components, ["contrib", "main"]);
    assert_eq!(
        found[0].keyring,
        Keyring::Files(vec!["/keys/debian.gpg".into()])
    );
}

#[test]
fn one_line_sources_are_read_with_their_options() {
    let list = "\
# deb http://off.example/debian bookworm main
deb [arch=amd64,i386 signed-by=/k/a.gpg,/k/b.asc check-valid-until=no] https://m.example/d bookworm main
deb [ arch=arm64 ] https://m.example/arm bookworm main
deb-src https://m.example/d bookworm main
deb cdrom:[Debian]/ bookworm main
deb https://m.example/d bookworm contrib # more
deb https://m.example/flat ./
";
    let (_folder, root) = apt_root(&[("sources.list", list)]);
    let found = find(&wanted(), &places(&root)).unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].components, ["main", "contrib"]);
    assert_eq!(
        found[0].keyring,
        Keyring::Files(vec!["/k/a.gpg".into(), "/k/b.asc".into()])
    );
    assert!(!found[0].check_valid_until);
}

#[test]
fn inline_keys_and_fingerprints_are_told_apart_from_files() {
    let inline = "\
Types: deb
URIs: http://m.example/d
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEZQ==
 -----END PGP PUBLIC KEY BLOCK-----
";
    let (_folder, root) = apt_root(&[("sources.list.d/a.sources", inline)]);
    let found = find(&wanted(), &places(&root)).unwrap();
    let Keyring::Inline(text) = &found[0].keyring else {
        panic!("{found:?}")
    };
    assert!(
        text.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEZQ==\n"),
        "{text}"
    );

    let list = "deb [signed-by=0123456789abcdef0123456789ABCDEF01234567!] http://m.example/d bookworm main";
    let (_folder, root) = apt_root(&[("sources.list", list), ("trusted.gpg.d/a.asc", "x")]);
    let found = find(&wanted(), &places(&root)).unwrap();
    let Keyring::Fingerprints {
        files,
        fingerprints,
    } = &found[0].keyring
    else {
        panic!("{found:?}")
    };
    assert_eq!(fingerprints, &["0123456789ABCDEF0123456789ABCDEF01234567"]);
    assert_eq!(files.len(), 1);
}

#[test]
fn the_pipelines_mirror_comes_first_and_alone() {
    let (_folder, root) = apt_root(&[("sources.list.d/debian.sources", DEB822)]);
    let mirror = |url: &str, suites: &[&str]| Mirror {
        url: url.to_owned(),
        suites: suites.iter().map(|suite| (*suite).to_owned()).collect(),
        components: Vec::new(),
        keyring: Keyring::Files(vec!["/k.gpg".into()]),
        check_valid_until: true,
    };
    let configured = [mirror("http://worker.example/d", &["bookworm"])];
    let own = mirror("http://pipeline.example/d/", &[]);
    let found = find(
        &wanted(),
        &Places {
            mirror: Some(&own),
            configured: &configured,
            apt_root: &root,
        },
    )
    .unwrap();
    assert!(
        found
            .iter()
            .all(|source| source.url == "http://pipeline.example/d")
    );
    assert_eq!(found.iter().filter(|source| source.optional).count(), 2);

    let found = find(
        &wanted(),
        &Places {
            mirror: None,
            configured: &configured,
            apt_root: &root,
        },
    )
    .unwrap();
    assert_eq!(found[0].url, "http://worker.example/d");
    assert_eq!(found[0].components, ["main"]);
    assert_eq!(found[1].url, "http://mirror.example/debian");
}

#[test]
fn a_suite_that_nothing_carries_says_what_to_write() {
    let (_folder, root) = apt_root(&[("sources.list.d/debian.sources", DEB822)]);
    let error = find(
        &Wanted {
            suite: "noble",
            ..wanted()
        },
        &places(&root),
    )
    .unwrap_err();
    let text = error.to_string();
    for part in ["noble", "mirror:", "[[bake.mirrors]]", root.as_str()] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_source_without_any_key_is_refused() {
    let (_folder, root) = apt_root(&[(
        "sources.list",
        "deb [trusted=yes] http://m.example/d bookworm main",
    )]);
    let error = find(&wanted(), &places(&root)).unwrap_err();
    assert!(matches!(error, SourceError::NoKeyring { .. }), "{error}");
}

#[test]
fn a_mirror_without_a_keyring_takes_the_one_that_is_known_for_the_suite() {
    let (_folder, root) = apt_root(&[("sources.list.d/debian.sources", DEB822)]);
    let mirror = Mirror {
        url: "http://pipeline.example/d".to_owned(),
        suites: Vec::new(),
        components: Vec::new(),
        keyring: Keyring::Files(Vec::new()),
        check_valid_until: true,
    };
    let places = Places {
        mirror: Some(&mirror),
        configured: &[],
        apt_root: &root,
    };
    let found = find(&wanted(), &places).unwrap();
    assert!(
        found
            .iter()
            .all(|s| s.keyring == Keyring::Files(vec!["/keys/debian.gpg".into()])),
        "{found:#?}"
    );
    let error = find(
        &Wanted {
            suite: "noble",
            overlays: &[],
            ..wanted()
        },
        &places,
    )
    .unwrap_err();
    assert!(matches!(error, SourceError::NoKeyring { .. }), "{error}");
}
