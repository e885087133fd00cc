//! Which of the base's enabled units are applications: a package that the pipeline asked for may
//! enable its service in the base itself.
//!
//! A unit is the system's when its package is one that every system has (by Debian's priority), or
//! one that the engine puts into each base, or when no package owns it.

use std::collections::BTreeMap;

use super::{FOLDERS, ImageTree};
use crate::bake::base::distribution::SYSTEM_PACKAGES;

/// Where dpkg keeps who owns what.
const INFO: &str = "/var/lib/dpkg/info";
const STATUS: &str = "/var/lib/dpkg/status";
/// Priorities of what every system has.
const PRIORITIES: [&str; 3] = ["required", "important", "standard"];

/// Those of `units` that belong to packages beyond the base system.
pub fn applications(tree: &ImageTree, units: impl IntoIterator<Item = String>) -> Vec<String> {
    let base = tree.base();
    let owners = owners(&base);
    let priorities = priorities(&base);
    units
        .into_iter()
        .filter(|unit| {
            owners.get(unit).is_some_and(|package| {
                let common = priorities
                    .get(package)
                    .is_some_and(|priority| PRIORITIES.contains(&priority.as_str()));
                !common && !SYSTEM_PACKAGES.contains(&package.as_str())
            })
        })
        .collect()
}

/// Unit file name to package.
fn owners(tree: &ImageTree) -> BTreeMap<String, String> {
    let mut owners = BTreeMap::new();
    for file in tree.list(INFO) {
        let Some(package) = file.strip_suffix(".list") else {
            continue;
        };
        // `name:arch` where several architectures may be installed.
        let package = package.split(':').next().unwrap_or(package);
        for line in tree
            .read(&format!("{INFO}/{file}"))
            .unwrap_or_default()
            .lines()
        {
            if let Some((folder, name)) = line.rsplit_once('/')
                && FOLDERS.contains(&folder)
            {
                owners.insert(name.to_owned(), package.to_owned());
            }
        }
    }
    owners
}

/// Package to priority.
fn priorities(tree: &ImageTree) -> BTreeMap<String, String> {
    let mut priorities = BTreeMap::new();
    let mut package = "";
    let status = tree.read(STATUS).unwrap_or_default();
    for line in status.lines() {
        if let Some(name) = line.strip_prefix("Package: ") {
            package = name.trim();
        } else if let Some(priority) = line.strip_prefix("Priority: ") {
            priorities.insert(package.to_owned(), priority.trim().to_owned());
        }
    }
    priorities
}
