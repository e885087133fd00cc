use super::*;
use crate::dpkg;
use crate::hash::Hasher;

fn bom() -> Bom {
    let status = "Package: libstdc++6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:12.2+b1\n\
        Source: gcc-12 (12.2)\nMaintainer: A <a@b.c>\n\nPackage: adduser\nStatus: install ok installed\n\
        Architecture: all\nVersion: 3.1~x\n";
    let mut packages = dpkg::installed(status);
    packages[0].licence = crate::licence::declared(
        "adduser",
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ and odd\n",
    );
    Bom {
        image: "web".to_owned(),
        disk: "00".repeat(32),
        base: "debian-12".to_owned(),
        arch: "amd64".to_owned(),
        os: Os::read("PRETTY_NAME=\"Debian 12\"\nID=debian\nVERSION_ID='12'\n"),
        packages,
        files: vec![CopiedFile {
            path: "srv/a b".to_owned(),
            size: 0,
            hashes: Hasher::default().finish(),
        }],
    }
}

#[test]
fn package_urls_name_the_source_and_escape_what_they_must() {
    let bom = bom();
    let urls: Vec<String> = bom.packages.iter().map(|p| purl(&bom.os, p)).collect();
    assert_eq!(
        urls,
        [
            "pkg:deb/debian/adduser@3.1~x?arch=all&distro=debian-12",
            "pkg:deb/debian/libstdc%2B%2B6@1:12.2%2Bb1?arch=amd64&distro=debian-12&upstream=gcc-12%4012.2",
        ]
    );
}

#[test]
fn equal_images_have_equal_documents_and_a_change_changes_their_identity() {
    let mut other = bom();
    for make in [cyclonedx, spdx] {
        assert_eq!(make(&bom()), make(&bom()));
    }
    other.packages[0].version = "4".to_owned();
    let field = |bytes: Vec<u8>, name: &str| {
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        value[name].as_str().unwrap().to_owned()
    };
    assert_ne!(
        field(cyclonedx(&bom()), "serialNumber"),
        field(cyclonedx(&other), "serialNumber")
    );
    assert_ne!(
        field(spdx(&bom()), "documentNamespace"),
        field(spdx(&other), "documentNamespace")
    );
}

#[test]
fn a_system_without_a_name_is_linux() {
    assert_eq!(Os::read("").distro(), "linux");
    assert_eq!(Os::read("ID=debian\n").distro(), "debian");
}
