//! The packages of an image, for its record: read from dpkg's own list.

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
    let mut packages: Vec<Package> = status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let value = line.strip_prefix(name)?.strip_prefix(':')?;
                    Some(value.trim().to_owned())
                })
            };
            let state = field("Status")?;
            state.ends_with(" installed").then_some(())?;
            Some(Package {
                name: field("Package")?,
                version: field("Version")?,
                arch: field("Architecture")?,
            })
        })
        .collect();
    packages.sort();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_are_listed() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\n\
            Description: x\n Package: not a field\n\nPackage: gone\nStatus: deinstall ok config-files\n\
            Architecture: all\nVersion: 1\n\nPackage: adduser\nStatus: install ok installed\nArchitecture: all\n\
            Version: 3.1\n";
        let found = installed_packages(status);
        let text: Vec<_> = found
            .iter()
            .map(|p| format!("{} {} {}", p.name, p.version, p.arch))
            .collect();
        assert_eq!(text, ["adduser 3.1 all", "zlib1g 1:1.2 amd64"]);
    }
}
