//! An image's application units, read and run without its init.
//!
//! Application units are the enabled services that are not the base system's own: what a package
//! that the pipeline asked for enabled, and what a step enabled by hand. They are
//! honoured or refused with a line that names the unit and the directive; nothing loses its meaning
//! in silence, except limits and hardening, which are left out. Timers and other non-services are
//! left out too, except sockets, without which their services would not work.
//!
//! Pure reading: `plan` needs folders only, and `Plan::script` is text. Not a second systemd: one
//! start order, no jobs, no targets.

use std::collections::BTreeSet;
use std::fmt;

pub mod tree;

mod file;
mod origin;
mod script;
mod service;

pub use tree::ImageTree;

use file::UnitFile;
use service::Service;

/// Where enabled units are linked, as targets that a server reaches.
const WANTS: [&str; 6] = [
    "/etc/systemd/system/multi-user.target.wants",
    "/etc/systemd/system/multi-user.target.requires",
    "/etc/systemd/system/default.target.wants",
    "/etc/systemd/system/graphical.target.wants",
    "/etc/systemd/system/network-online.target.wants",
    "/etc/systemd/system/sockets.target.wants",
];
/// Where unit files are, the first one wins.
const FOLDERS: [&str; 4] = [
    "/etc/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Most units of an image.
const UNITS_MAX: usize = 64;

/// A unit that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// The unit.
    pub unit: String,
    /// What of it.
    pub directive: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}: {} {}", self.unit, self.directive, self.why)
    }
}

/// Services in the order in which they start.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    services: Vec<Service>,
    /// Enabled units that are not run, with the reason.
    pub left_out: Vec<String>,
}

impl Plan {
    /// The names of the services, in the order in which they start.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|s| s.name.as_str())
    }
}

/// Reads the application units of an image.
///
/// # Errors
/// One of them cannot be honoured, or there is none.
pub fn plan(tree: &ImageTree) -> Result<Plan, Refused> {
    let of_base = enabled(&tree.base());
    let all = enabled(tree);
    let mut ours: Vec<String> = all.difference(&of_base).cloned().collect();
    ours.extend(origin::applications(
        tree,
        all.intersection(&of_base).cloned(),
    ));
    ours.sort();
    let mut plan = Plan::default();
    for name in &ours {
        let refuse = |directive: &str, why: &str| Refused {
            unit: name.clone(),
            directive: directive.to_owned(),
            why: why.to_owned(),
        };
        match name.rsplit_once('.').map(|(_, kind)| kind) {
            Some("service") => {}
            Some("socket") => {
                return Err(refuse(
                    "its kind",
                    "is not honoured without the image's own init",
                ));
            }
            _ => {
                plan.left_out.push(format!(
                    "{name}: only services run without the image's init"
                ));
                continue;
            }
        }
        let Some(file) = load(tree, name).map_err(|why| refuse("its file", &why))? else {
            plan.left_out.push(format!("{name}: masked"));
            continue;
        };
        match Service::read(name, &file, tree)? {
            Some(service) => plan.services.push(service),
            None => plan
                .left_out
                .push(format!("{name}: a condition does not hold")),
        }
    }
    if plan.services.is_empty() || plan.services.len() > UNITS_MAX {
        return Err(Refused {
            unit: "the image".to_owned(),
            directive: format!("{} application units;", plan.services.len()),
            why: format!(
                "1 to {UNITS_MAX} are needed: enable one in a bake step (`systemctl enable NAME`)"
            ),
        });
    }
    order(&mut plan.services);
    Ok(plan)
}

/// Names of the units that are enabled in a tree.
fn enabled(tree: &ImageTree) -> BTreeSet<String> {
    WANTS.iter().flat_map(|folder| tree.list(folder)).collect()
}

/// The unit's assignments with its drop-ins; none when it is masked.
fn load(tree: &ImageTree, name: &str) -> Result<Option<UnitFile>, String> {
    let template = name.split_once('@').and_then(|(prefix, rest)| {
        rest.rsplit_once('.')
            .map(|(_, kind)| format!("{prefix}@.{kind}"))
    });
    let names: Vec<&str> = [Some(name), template.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    for name in &names {
        for folder in FOLDERS {
            let path = format!("{folder}/{name}");
            if tree.is_masked(&path) {
                return Ok(None);
            }
            let Some(text) = tree.read(&path) else {
                continue;
            };
            let mut file = UnitFile::default();
            file.add(&text);
            for dropin in dropins(tree, &names) {
                file.add(&dropin);
            }
            return Ok(Some(file));
        }
    }
    Err(format!("is in none of {}", FOLDERS.join(", ")))
}

/// Texts of the drop-ins in the order of their file names, each name once.
fn dropins(tree: &ImageTree, names: &[&str]) -> Vec<String> {
    let mut found = std::collections::BTreeMap::new();
    for folder in FOLDERS.iter().rev() {
        for name in names.iter().rev() {
            let folder = format!("{folder}/{name}.d");
            for file in tree.list(&folder) {
                if file.ends_with(".conf") {
                    let text = tree.read(&format!("{folder}/{file}")).unwrap_or_default();
                    found.insert(file, text);
                }
            }
        }
    }
    found.into_values().collect()
}

/// Sorts by `After=` among the services themselves; by name where nothing is said. A circle is cut
/// at its first name.
fn order(services: &mut Vec<Service>) {
    let mut rest = std::mem::take(services);
    while !rest.is_empty() {
        let waits = |s: &Service| {
            s.after
                .iter()
                .any(|name| *name != s.name && rest.iter().any(|r| r.name == *name))
        };
        let next = rest.iter().position(|s| !waits(s)).unwrap_or(0);
        services.push(rest.remove(next));
    }
}

#[cfg(test)]
mod tests;
