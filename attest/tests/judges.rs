//! What we write, judged by others: syft and dpkg on the same root, the published CycloneDX schema, SPDX's own validator, and
//! in-toto's and securesystemslib's readers.
//!
//! The judges are Python packages in an environment of their own (`attest/tests/judges/requirements.txt`); `cargo xtask test judges`
//! makes it and says where it is in `OAST_JUDGES`. Without it the tests say so and pass, unless `OAST_REQUIRE_ALL` is set.

#![expect(
    clippy::unwrap_used,
    reason = "a test's own helpers panic as the test does"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use oast_attest::dpkg;
use oast_attest::dsse;
use oast_attest::hash::{Hasher, sha256};
use oast_attest::key::SigningKey;
use oast_attest::licence;
use oast_attest::provenance::{self, Builder, Descriptor, Details, Metadata, Statement};
use oast_attest::sbom::{Bom, CopiedFile, Os, cyclonedx, spdx};

/// The environment's `bin` folder.
fn judges() -> Option<PathBuf> {
    let bin = std::env::var_os("OAST_JUDGES").map(PathBuf::from);
    let reason = "the judges of attestations are not installed; `cargo xtask test judges` does it";
    if bin.is_none() {
        assert!(std::env::var_os("OAST_REQUIRE_ALL").is_none(), "{reason}");
        println!("SKIPPED: {reason}");
        if let Some(list) = std::env::var_os("OAST_SKIP_LOG") {
            let mut list = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(list)
                .unwrap();
            writeln!(list, "{reason}").unwrap();
        }
    }
    bin
}

/// Runs one of the Python judges on a folder of documents.
fn ask(bin: &Path, judge: &str, folder: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judges/judge.py");
    let output = Command::new(bin.join("python"))
        .arg(script)
        .arg(judge)
        .arg(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{judge}: {}{said}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A root with the packages of this machine, or none where this is no Debian. Syft reads nothing else of it.
fn root(folder: &Path) -> Option<Bom> {
    let status = fs::read_to_string("/var/lib/dpkg/status").ok()?;
    let mut packages = dpkg::installed(&status);
    let put = |path: &str, text: &[u8]| {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    put(dpkg::STATUS, status.as_bytes());
    let release = fs::read_to_string("/etc/os-release").unwrap();
    put("etc/os-release", release.as_bytes());
    for package in &mut packages {
        let path = package.copyright_path();
        if let Ok(text) = fs::read_to_string(Path::new("/").join(&path)) {
            package.licence = licence::declared(&package.name, &text);
            put(&path, text.as_bytes());
        }
    }
    let mut hasher = Hasher::default();
    hasher.update(b"<h1>hello</h1>\n");
    Some(Bom {
        image: "web".to_owned(),
        disk: "5a".repeat(32),
        base: "debian-12".to_owned(),
        arch: "amd64".to_owned(),
        os: Os::read(&release),
        packages,
        files: vec![CopiedFile {
            path: "srv/www/a page.html".to_owned(),
            size: 15,
            hashes: hasher.finish(),
        }],
    })
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).unwrap();
}

/// Every package that syft and dpkg-query find, with the same name, version, architecture and package URL, and no other.
#[test]
fn a_bill_has_the_packages_that_syft_and_dpkg_find_and_fits_the_published_schemas() {
    let Some(bin) = judges() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(bom) = root(&folder.path().join("root")) else {
        assert!(
            std::env::var_os("OAST_REQUIRE_ALL").is_none(),
            "this machine has no dpkg"
        );
        return;
    };
    assert!(bom.packages.len() > 50);
    let listed = Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut theirs: Vec<&str> = listed
        .lines()
        .filter(|line| line.as_bytes()[1] == b'i')
        .map(|line| line.split_once('\t').unwrap().1)
        .collect();
    theirs.sort_unstable();
    let mut ours: Vec<String> = bom
        .packages
        .iter()
        .map(|p| {
            [
                p.name.as_str(),
                &p.version,
                &p.arch,
                &p.source,
                &p.source_version,
            ]
            .join("\t")
        })
        .collect();
    ours.sort_unstable();
    assert_eq!(ours, theirs);

    write(folder.path(), "ours.cdx.json", &cyclonedx(&bom));
    write(folder.path(), "ours.spdx.json", &spdx(&bom));
    let scan = format!("dir:{}", folder.path().join("root").display());
    let theirs = format!(
        "cyclonedx-json={}",
        folder.path().join("syft.cdx.json").display()
    );
    let syft = Command::new(bin.join("syft"))
        .args([
            "scan",
            &scan,
            "-q",
            "--select-catalogers",
            "dpkg",
            "-o",
            &theirs,
        ])
        .env("SYFT_CHECK_FOR_APP_UPDATE", "false")
        .output()
        .unwrap();
    assert!(
        syft.status.success(),
        "{}",
        String::from_utf8_lossy(&syft.stderr)
    );
    ask(&bin, "bills", folder.path());
}

/// The readers of the specifications' own authors accept what we sign, and refuse it when a byte is changed.
#[test]
fn provenance_is_read_and_its_signature_accepted_by_in_totos_own_tools() {
    let Some(bin) = judges() else { return };
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::read(&SigningKey::generate().unwrap()).unwrap();
    let mut source = Descriptor::new(
        "source",
        "gitCommit",
        "0123456789abcdef0123456789abcdef01234567",
    );
    source.uri = "git+https://example.org/web@refs/heads/main".to_owned();
    let mut layer = Descriptor::new("layer 1: base debian-12", "oastBlob", "ab".repeat(32));
    layer.annotations.insert("worker".to_owned(), "w1".into());
    let statement = Statement::new(
        vec![
            Descriptor::new(provenance::DISK, "blake3", "5a".repeat(32)),
            Descriptor::new(provenance::CYCLONEDX, "sha256", sha256(b"bill")),
        ],
        [("commit".to_owned(), "0123".into())].into(),
        [("worker".to_owned(), "w1".into())].into(),
        vec![source, layer],
        Details {
            builder: Builder {
                id: "oast://acme".to_owned(),
                version: BTreeMap::from([("oast".to_owned(), "0.1.0".to_owned())]),
            },
            metadata: Metadata {
                invocation_id: "oast://acme/r-1/t-2-0/3".to_owned(),
                started_on: Some("2026-11-23T20:00:00.000Z".to_owned()),
            },
        },
    );
    let envelope = dsse::sign(&key, &statement.to_json());
    write(folder.path(), "envelope.json", &envelope.to_json());
    write(folder.path(), "key.pem", key.public().to_pem().as_bytes());
    ask(&bin, "provenance", folder.path());
}

/// A key that `openssl genpkey` or another tool made signs for us, and ours is read by them.
#[test]
fn keys_are_exchanged_with_other_tools_in_both_directions() {
    let Some(bin) = judges() else { return };
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        "ours.pem",
        SigningKey::generate().unwrap().as_bytes(),
    );
    ask(&bin, "keys", folder.path());
    let text = fs::read_to_string(folder.path().join("theirs.pem")).unwrap();
    let key = SigningKey::read(&text).unwrap();
    let theirs = fs::read_to_string(folder.path().join("theirs.pub.pem")).unwrap();
    assert_eq!(key.public().to_pem().trim(), theirs.trim());
    let ours = fs::read_to_string(folder.path().join("ours.pem")).unwrap();
    let ours = SigningKey::read(&ours).unwrap().public().to_pem();
    let read = fs::read_to_string(folder.path().join("ours.pub.pem")).unwrap();
    assert_eq!(ours.trim(), read.trim());
}
