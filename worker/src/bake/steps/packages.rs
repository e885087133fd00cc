//! `packages`: installed by the image's own apt, from files that the engine fetched and verified.

use oast_model::pipeline::{Network, Packages, Run};

use super::run::Found;
use crate::sandbox::Bind;

/// Where sources, lists and package files are inside.
const APT: &str = "/run/oast-apt";

/// Says it itself: the shell's own words would not name the way out.
const NEEDED: &str = "command -v apt-get >/dev/null || \
     { echo 'the image has no apt-get: packages are for Debian and Ubuntu; use run' >&2; exit 1; }\n";

/// No service starts while packages are installed (101: forbidden by policy).
const QUIET: &str = "policy=/usr/sbin/policy-rc.d\n\
     [ -e $policy ] || { printf '#!/bin/sh\\nexit 101\\n' > $policy; chmod 755 $policy; ours=1; }\n";

/// What belongs to the making of the image and not to the image.
const CLEAN: &str = "[ -z \"$ours\" ] || rm -f $policy\n\
     rm -f /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
     /var/log/alternatives.log /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- \
     /etc/subuid- /etc/subgid-\n";

/// Prints which files apt will need.
pub fn question(packages: &Packages) -> Run {
    let apt = apt(packages);
    offline(format!(
        "{NEEDED}{apt} -qq --print-uris -y install -- {}\n",
        names(packages)
    ))
}

/// Installs from the files that are there now.
pub fn install(packages: &Packages) -> Run {
    let apt = apt(packages);
    offline(format!(
        "{QUIET}{apt} -q -y --no-download install -- {}\n{CLEAN}",
        names(packages)
    ))
}

/// What both find: the folder of apt's sources, lists and files.
pub fn found(folder: &camino::Utf8Path) -> Found {
    Found {
        binds: vec![Bind::writable(folder.as_std_path(), APT)],
        ..Found::default()
    }
}

fn offline(command: String) -> Run {
    Run {
        network: Network::None,
        ..Run::new(command)
    }
}

/// The rules of package names leave nothing that a shell would read.
fn names(packages: &Packages) -> String {
    let quoted = packages.install.iter().map(|name| format!("'{name}'"));
    quoted.collect::<Vec<_>>().join(" ")
}

fn apt(packages: &Packages) -> String {
    let recommends = packages.recommends;
    let options = [
        format!("Dir::Etc::SourceList={APT}/etc/apt/sources.list"),
        format!("Dir::Etc::SourceParts={APT}/etc/apt/sources.list.d"),
        format!("Dir::State::Lists={APT}/var/lib/apt/lists"),
        format!("Dir::Cache={APT}/cache"),
        format!("Dir::Log={APT}/cache/archives/log"),
        // The sandbox's root is no root of the machine.
        "APT::Sandbox::User=root".to_owned(),
        format!("APT::Install-Recommends={recommends}"),
        "Acquire::Languages=none".to_owned(),
        // What is asked for is named by a digest that is worth something.
        "Acquire::ForceHash=SHA256".to_owned(),
        "Dpkg::Use-Pty=0".to_owned(),
        "Dpkg::Options::=--force-confold".to_owned(),
        "Dpkg::Options::=--force-unsafe-io".to_owned(),
        format!("Dpkg::Options::=--log={APT}/cache/archives/log/dpkg.log"),
    ];
    let options = options.iter().map(|option| format!(" -o {option}"));
    format!("apt-get{}", options.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_commands_ask_for_the_same() {
        let packages = Packages {
            install: vec!["jq".to_owned(), "curl=7.88.1-10".to_owned()],
            recommends: false,
        };
        for run in [question(&packages), install(&packages)] {
            assert!(run.command.contains("install -- 'jq' 'curl=7.88.1-10'\n"));
            assert!(run.command.contains("-o APT::Install-Recommends=false"));
            assert_eq!(run.network, Network::None);
        }
    }
}
