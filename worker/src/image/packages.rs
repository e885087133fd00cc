//! The packages of an image, for its record: read from dpkg's own list.

use oast_attest::dpkg;
use serde::{Deserialize, Serialize};

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub arch: String,
}

/// The installed packages in a `/var/lib/dpkg/status`, sorted. Removed ones whose configuration stayed are left out.
pub fn installed_packages(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = dpkg::installed(status)
        .into_iter()
        .map(|package| Package {
            name: package.name,
            version: package.version,
            arch: package.arch,
        })
        .collect();
    packages.sort();
    packages
}
