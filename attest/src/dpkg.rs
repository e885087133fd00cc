//! The packages of a Debian or Ubuntu root, from dpkg's own list.

use std::collections::BTreeMap;

use crate::licence::Licence;

/// Where dpkg lists what is installed.
pub const STATUS: &str = "var/lib/dpkg/status";

/// One installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// As dpkg compares it.
    pub version: String,
    /// `all`, or a machine.
    pub arch: String,
    /// The source package that it was built from.
    pub source: String,
    /// That source's version; often, not always, the package's own.
    pub source_version: String,
    /// Who keeps it in the distribution.
    pub maintainer: String,
    /// What its copyright file declares, where a machine can read that.
    pub licence: Option<Licence>,
}

impl Package {
    /// Where the package describes its licence, below the root.
    pub fn copyright_path(&self) -> String {
        format!("usr/share/doc/{}/copyright", self.name)
    }
}

/// The installed packages in a `status` file, sorted by name, architecture and version. Removed ones whose configuration
/// stayed are left out.
pub fn installed(status: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = stanzas(status)
        .into_iter()
        .filter_map(|stanza| {
            stanza
                .get("status")?
                .ends_with(" installed")
                .then_some(())?;
            let take = |name: &str| stanza.get(name).cloned();
            let name = take("package")?;
            let version = take("version")?;
            let (source, source_version) = match stanza.get("source") {
                None => (name.clone(), version.clone()),
                Some(text) => match text.split_once(" (") {
                    None => (text.clone(), version.clone()),
                    Some((source, rest)) => {
                        (source.to_owned(), rest.trim_end_matches(')').to_owned())
                    }
                },
            };
            Some(Package {
                arch: take("architecture")?,
                source,
                source_version,
                maintainer: take("maintainer").unwrap_or_default(),
                licence: None,
                name,
                version,
            })
        })
        .collect();
    let key = |package: &Package| {
        let Package {
            name,
            arch,
            version,
            ..
        } = package;
        (name.clone(), arch.clone(), version.clone())
    };
    packages.sort_by_cached_key(key);
    packages
}

/// The paragraphs of a control file. Names of fields are in lower case; of a field with several lines the first one
/// is kept, which is all that is read here.
pub(crate) fn stanzas(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut stanzas = Vec::new();
    let mut stanza = BTreeMap::new();
    // The empty line at the end closes the last one.
    for line in text.lines().chain([""]) {
        if line.trim().is_empty() {
            if !stanza.is_empty() {
                stanzas.push(std::mem::take(&mut stanza));
            }
        } else if !line.starts_with([' ', '\t', '#'])
            && let Some((name, value)) = line.split_once(':')
        {
            stanza
                .entry(name.to_ascii_lowercase())
                .or_insert_with(|| value.trim().to_owned());
        }
    }
    stanzas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_are_listed_with_their_sources() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\n\
            Source: zlib (1:1.1)\nDescription: x\n Package: not a field\n\nPackage: gone\n\
            Status: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\nPackage: libc-bin\n\
            Status: hold ok installed\nArchitecture: amd64\nVersion: 2.36\nSource: glibc\n\nPackage: adduser\n\
            Status: install ok installed\nArchitecture: all\nVersion: 3.1";
        let found = installed(status);
        let text: Vec<_> = found
            .iter()
            .map(|p| {
                let Package {
                    name,
                    version,
                    arch,
                    source,
                    source_version,
                    ..
                } = p;
                format!("{name} {version} {arch} from {source} {source_version}")
            })
            .collect();
        assert_eq!(
            text,
            [
                "adduser 3.1 all from adduser 3.1",
                "libc-bin 2.36 amd64 from glibc 2.36",
                "zlib1g 1:1.2 amd64 from zlib 1:1.1",
            ]
        );
    }

    #[test]
    fn a_torn_list_gives_what_is_whole_in_it() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\nPackage: b\nStat";
        assert_eq!(installed(status).len(), 1);
        assert_eq!(installed("\n\n:\n::\n"), []);
    }
}
