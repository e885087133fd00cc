//! The distributions that the engine knows by name, as data.
//!
//! The host names below are what an *image* of the distribution has in its own package sources:
//! the public names that everybody's Debian or Ubuntu machine carries. They are never used to
//! fetch anything for a bake; where packages come from is decided in [`super::source`].

/// A distribution release that a pipeline can name in `from:`.
#[derive(Debug, PartialEq, Eq)]
pub struct Distribution {
    /// What the pipeline writes, e.g. `debian-12`.
    pub name: &'static str,
    /// The suite that everything is taken from, e.g. `bookworm`.
    pub suite: &'static str,
    /// Suites laid over it where a source carries them.
    pub overlays: &'static [&'static str],
    /// Components taken when a mirror names none.
    pub components: &'static [&'static str],
    /// The package sources of the image, unless the pipeline gives its own.
    pub image_sources: &'static [ImageSource],
    /// Installed beside the essential and required packages.
    pub packages: &'static [&'static str],
    /// Taken where a dependency leaves a choice. The root is made merged, so the package that
    /// merges an old system (and drags in all of Perl for it) has nothing to do.
    pub preferred: &'static [&'static str],
    /// The kernel's package on each architecture, by the machine's Debian architecture name.
    pub kernels: &'static [(&'static str, &'static str)],
    /// Directories of `/` that are links into `/usr`.
    pub merged: &'static [&'static str],
}

/// One deb822 stanza of the image's own package sources.
#[derive(Debug, PartialEq, Eq)]
pub struct ImageSource {
    pub uri: &'static str,
    pub suites: &'static [&'static str],
    pub components: &'static [&'static str],
    /// The keyring, as a path inside the image.
    pub signed_by: &'static str,
}

/// What makes a minimal system a bootable one that can install packages. Certificates of public
/// authorities are left to pipelines (`packages: [ca-certificates]`), as in container images: the
/// archives are reached over HTTP and signed, and their scripts take a third of configuring.
pub const SYSTEM_PACKAGES: &[&str] = &[
    "apt",
    "dbus",
    "e2fsprogs",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];

/// Ubuntu 22.04 has the resolver inside the `systemd` package.
const PACKAGES_JAMMY: &[&str] = &[
    "apt",
    "dbus",
    "e2fsprogs",
    "systemd",
    "systemd-sysv",
    "udev",
];

const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];

const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UBUNTU_KEYRING: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";

const DEBIAN_KERNELS: &[(&str, &str)] = &[
    ("amd64", "linux-image-cloud-amd64"),
    ("arm64", "linux-image-cloud-arm64"),
];
const UBUNTU_KERNELS: &[(&str, &str)] = &[
    ("amd64", "linux-image-virtual"),
    ("arm64", "linux-image-virtual"),
];

static DISTRIBUTIONS: &[Distribution] = &[
    Distribution {
        name: "debian-12",
        suite: "bookworm",
        overlays: &["bookworm-updates", "bookworm-security"],
        components: &["main"],
        image_sources: &[
            ImageSource {
                uri: "http://deb.debian.org/debian",
                suites: &["bookworm", "bookworm-updates"],
                components: &["main"],
                signed_by: DEBIAN_KEYRING,
            },
            ImageSource {
                uri: "http://deb.debian.org/debian-security",
                suites: &["bookworm-security"],
                components: &["main"],
                signed_by: DEBIAN_KEYRING,
            },
        ],
        packages: SYSTEM_PACKAGES,
        preferred: &["usr-is-merged"],
        kernels: DEBIAN_KERNELS,
        merged: MERGED,
    },
    Distribution {
        name: "debian-13",
        suite: "trixie",
        overlays: &["trixie-updates", "trixie-security"],
        components: &["main"],
        image_sources: &[
            ImageSource {
                uri: "http://deb.debian.org/debian",
                suites: &["trixie", "trixie-updates"],
                components: &["main"],
                signed_by: DEBIAN_KEYRING,
            },
            ImageSource {
                uri: "http://deb.debian.org/debian-security",
                suites: &["trixie-security"],
                components: &["main"],
                signed_by: DEBIAN_KEYRING,
            },
        ],
        packages: SYSTEM_PACKAGES,
        preferred: &["usr-is-merged"],
        kernels: DEBIAN_KERNELS,
        merged: MERGED,
    },
    Distribution {
        name: "ubuntu-22.04",
        suite: "jammy",
        overlays: &["jammy-updates", "jammy-security"],
        components: &["main", "universe"],
        image_sources: &[ImageSource {
            uri: "http://archive.ubuntu.com/ubuntu",
            suites: &["jammy", "jammy-updates", "jammy-security"],
            components: &["main", "universe"],
            signed_by: UBUNTU_KEYRING,
        }],
        packages: PACKAGES_JAMMY,
        preferred: &["usr-is-merged"],
        kernels: UBUNTU_KERNELS,
        merged: MERGED,
    },
    Distribution {
        name: "ubuntu-24.04",
        suite: "noble",
        overlays: &["noble-updates", "noble-security"],
        components: &["main", "universe"],
        image_sources: &[ImageSource {
            uri: "http://archive.ubuntu.com/ubuntu",
            suites: &["noble", "noble-updates", "noble-security"],
            components: &["main", "universe"],
            signed_by: UBUNTU_KEYRING,
        }],
        packages: SYSTEM_PACKAGES,
        preferred: &["usr-is-merged"],
        kernels: UBUNTU_KERNELS,
        merged: MERGED,
    },
];

impl Distribution {
    /// Finds a distribution by the name that pipelines use.
    pub fn find(name: &str) -> Option<&'static Self> {
        DISTRIBUTIONS.iter().find(|known| known.name == name)
    }

    /// Every name that [`Distribution::find`] knows, for messages and the schema.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DISTRIBUTIONS.iter().map(|known| known.name)
    }

    /// The kernel's package for an architecture, if the distribution has one.
    pub fn kernel(&self, architecture: &str) -> Option<&'static str> {
        self.kernels
            .iter()
            .find(|(known, _)| *known == architecture)
            .map(|(_, name)| *name)
    }
}

/// Debian's name of the architecture that this program was compiled for.
pub fn native_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "riscv64" => "riscv64",
        "s390x" => "s390x",
        "powerpc64" => "ppc64el",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_distribution_has_sources_for_its_own_suites() {
        for name in Distribution::names() {
            let distribution = Distribution::find(name).unwrap();
            let suites: Vec<_> = distribution
                .image_sources
                .iter()
                .flat_map(|source| source.suites)
                .collect();
            assert!(suites.contains(&&distribution.suite), "{name}");
            for overlay in distribution.overlays {
                assert!(suites.contains(&overlay), "{name}: {overlay}");
            }
            assert!(distribution.kernel("amd64").is_some(), "{name}");
        }
        assert!(Distribution::find("debian-3").is_none());
    }
}
