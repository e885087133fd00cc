//! Rules about other people's crates, read from the same deny.toml that cargo-deny uses.
//!
//! cargo-deny is not on every machine and its advisory database has to be downloaded; licences,
//! duplicates and sources need neither, so they are checked here on every machine.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::{Table, Value};

use super::{Problem, Text, licence};
use crate::workspace::Workspace;

#[derive(Deserialize)]
struct Deny {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    /// `name@version`.
    #[serde(rename = "crate")]
    spec: String,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Sources {
    #[serde(rename = "allow-registry")]
    registries: Vec<String>,
}

/// What cargo calls crates.io in its metadata, whichever mirror serves it.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Where crates.io is named in deny.toml.
const CRATES_IO_URL: &str = "https://github.com/rust-lang/crates.io-index";

/// Checks licences, duplicates and sources of the resolved graph.
pub fn rules(workspace: &Workspace) -> Result<Vec<Problem>> {
    let text = std::fs::read_to_string(workspace.root.join("deny.toml"))
        .context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("cannot read deny.toml")?;
    let mut problems = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in workspace
        .packages
        .iter()
        .filter(|package| package.source.is_some())
    {
        let place = format!("{} {}", package.name, package.version);
        versions
            .entry(&package.name)
            .or_default()
            .insert(&package.version);
        let source = package.source.as_deref().unwrap_or_default();
        let crates_io = deny
            .sources
            .registries
            .iter()
            .any(|url| url == CRATES_IO_URL);
        if !(source == CRATES_IO && crates_io) {
            problems.push(Problem::new(
                &place,
                format!("comes from {source}, not from crates.io"),
            ));
        }
        let expression = package.license.as_deref().unwrap_or_default();
        let exceptions = deny
            .licenses
            .exceptions
            .iter()
            .filter(|e| e.name == package.name);
        let extra: Vec<&String> = exceptions.flat_map(|exception| &exception.allow).collect();
        let allowed = |name: &str| {
            deny.licenses
                .allow
                .iter()
                .chain(extra.iter().copied())
                .any(|known| known == name)
        };
        if !licence::satisfied(expression, &allowed) {
            let what = format!("licence `{expression}` is not in deny.toml's list");
            problems.push(Problem::new(&place, what));
        }
    }
    problems.extend(duplicates(&versions, &deny.bans.skip));
    Ok(problems)
}

/// Every version but one of a crate needs a skip with a reason, and every skip a duplicate.
fn duplicates(versions: &BTreeMap<&str, BTreeSet<&str>>, skips: &[Skip]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let skipped: BTreeSet<(&str, &str)> = skips
        .iter()
        .filter_map(|skip| skip.spec.split_once('@'))
        .collect();
    for (name, found) in versions.iter().filter(|(_, found)| found.len() > 1) {
        let left: Vec<&&str> = found
            .iter()
            .filter(|v| !skipped.contains(&(*name, **v)))
            .collect();
        if left.len() > 1 {
            let what = format!(
                "versions {found:?}: align them, or skip all but one in deny.toml with the reason"
            );
            problems.push(Problem::new(*name, what));
        }
    }
    for skip in skips {
        if skip.reason.trim().is_empty() {
            problems.push(Problem::new(
                "deny.toml",
                format!("skip {} has no reason", skip.spec),
            ));
        }
        let needed = skip.spec.split_once('@').is_some_and(|(name, version)| {
            versions
                .get(name)
                .is_some_and(|found| found.len() > 1 && found.contains(version))
        });
        if !needed {
            let what = format!("skip {} is not needed any more: remove it", skip.spec);
            problems.push(Problem::new("deny.toml", what));
        }
    }
    problems
}

/// A member adds no features or versions of its own to a shared dependency: cargo would compile
/// that dependency once for `cargo run` and again for the tests.
pub fn manifests(texts: &[Text]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let members = texts.iter().filter(|file| {
        file.path
            .file_name()
            .is_some_and(|name| name == "Cargo.toml")
            && file.path.components().count() == 2
    });
    for manifest in members {
        let place = manifest.path.display().to_string();
        let table: Table = match manifest.text.parse() {
            Ok(table) => table,
            Err(error) => {
                problems.push(Problem::new(place, error.to_string()));
                continue;
            }
        };
        // A workspace of its own, as the fuzz targets are, is not compiled with the farm.
        if table.contains_key("workspace") {
            continue;
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let entries = table.get(section).and_then(Value::as_table);
            for (name, entry) in entries.into_iter().flatten() {
                let keys: Vec<&str> = entry
                    .as_table()
                    .map(|t| t.keys().map(String::as_str).collect())
                    .unwrap_or_default();
                let bad = keys
                    .iter()
                    .find(|key| !matches!(**key, "workspace" | "optional"));
                if bad.is_some() || entry.is_str() {
                    let what = format!(
                        "{name}: version and features belong into [workspace.dependencies], else it is compiled twice"
                    );
                    problems.push(Problem::new(&place, what));
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(spec: &str) -> Skip {
        Skip {
            spec: spec.to_owned(),
            reason: "because".to_owned(),
        }
    }

    #[test]
    fn a_duplicate_needs_a_skip_and_a_skip_needs_a_duplicate() {
        let versions = BTreeMap::from([("syn", BTreeSet::from(["1.0.0", "2.0.0"]))]);
        assert_eq!(duplicates(&versions, &[]).len(), 1);
        assert_eq!(duplicates(&versions, &[skip("syn@1.0.0")]), []);
        let found = duplicates(&versions, &[skip("syn@1.0.0"), skip("heck@0.4.1")]);
        assert_eq!(
            found[0].what,
            "skip heck@0.4.1 is not needed any more: remove it"
        );
    }

    #[test]
    fn a_member_may_not_add_features() {
        let manifest = |text: &str| Text {
            path: "a/Cargo.toml".into(),
            text: text.to_owned(),
        };
        let bad = manifest("[dependencies]\ntokio = { workspace = true, features = [\"full\"] }\n");
        assert_eq!(manifests(&[bad]).len(), 1);
        let good = manifest("[dependencies]\ntokio.workspace = true\n");
        assert_eq!(manifests(&[good]), []);
        let apart = manifest("[workspace]\n[dependencies]\nanyhow = \"1\"\n");
        assert_eq!(manifests(&[apart]), []);
    }
}
