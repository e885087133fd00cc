//! Package URLs, as scanners match them against advisories.

use std::fmt::Write as _;

use super::Os;
use crate::dpkg::Package;

/// `pkg:deb/debian/zlib1g@1:1.2.13?arch=amd64&distro=debian-12&upstream=zlib`. The source package is named where it is another
/// one, because advisories speak of sources.
pub fn purl(os: &Os, package: &Package) -> String {
    let mut url = format!(
        "pkg:deb/{}/{}@{}?arch={}&distro={}",
        encoded(&os.id),
        encoded(&package.name),
        encoded(&package.version),
        encoded(&package.arch),
        encoded(&os.distro()),
    );
    let Package {
        source,
        source_version,
        ..
    } = package;
    let other_version = *source_version != package.version;
    if *source != package.name || other_version {
        let _ = write!(url, "&upstream={}", encoded(source));
        if other_version {
            let _ = write!(url, "%40{}", encoded(source_version));
        }
    }
    url
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                out.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}
