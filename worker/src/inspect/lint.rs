//! Whether a cloud takes an image: rules over a read-only view of its disk.
//!
//! ```text
//! lint(disk) --media, boot, storage, identity, provision--> findings (rule, place, reason, way out)
//!                                                     '---> what it fits: generations, security types, controllers
//! ```
//!
//! An **error** keeps an Azure machine from being made or started, or hands one machine's identity to all. A **warning** is something that Azure's own guide
//! wants and that costs somebody a night later. The rules are Azure's documented ones for Linux images that are brought along; nothing here asks Azure.

mod boot;
mod identity;
mod kernel;
mod media;
mod provision;
mod storage;

use serde::Serialize;

use super::disk::Disk;
use super::ext4::ReadError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does not work, or is unsafe.
    Error,
    /// It works less well.
    Warning,
}

/// Something that is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Name of the rule.
    pub rule: &'static str,
    /// Where in the image.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl Finding {
    fn error(
        rule: &'static str,
        place: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding {
            severity: Severity::Error,
            rule,
            place: place.into(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    fn warning(
        rule: &'static str,
        place: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding {
            severity: Severity::Warning,
            ..Finding::error(rule, place, reason, fix)
        }
    }
}

/// Whether an image fits a choice that Azure gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Azure's word.
    pub name: &'static str,
    /// Whether it does.
    pub fits: bool,
    /// Why not, or under which condition.
    pub why: String,
}

impl Fit {
    fn yes(name: &'static str, why: impl Into<String>) -> Fit {
        Fit {
            name,
            fits: true,
            why: why.into(),
        }
    }

    fn no(name: &'static str, why: impl Into<String>) -> Fit {
        Fit {
            fits: false,
            ..Fit::yes(name, why)
        }
    }
}

/// What is known of an image after all rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
    /// `hyperVGeneration`.
    pub generations: Vec<Fit>,
    /// `securityType`.
    pub security_types: Vec<Fit>,
    /// `osState`.
    pub os_states: Vec<Fit>,
    /// `diskControllerTypes`.
    pub controllers: Vec<Fit>,
}

impl Report {
    /// Whether there is an error.
    pub fn has_errors(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }
}

/// A family of rules about what is on the root.
type Rule = fn(&Disk) -> Result<Vec<Finding>, ReadError>;
const RULES: [(&str, Rule); 2] = [("storage", storage::look), ("identity", identity::look)];

/// How the file comes to Azure, which decides what its form must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    AsIs,
    /// Through an export, which makes the VHD.
    Exported,
}

/// Judges an image for Azure.
pub fn azure(disk: &Disk, way: Way) -> Report {
    let mut findings = media::look(disk, way);
    let boot = boot::look(disk, &mut findings);
    let mut provisioned = false;
    match &disk.root {
        Err(why) => findings.push(Finding::warning(
            "root-readable",
            "root file system",
            format!("it was not looked into: {why}"),
            "what is said here is only what can be seen from outside; check identity, swap, agent and drivers yourself",
        )),
        Ok(root) => {
            if !root.is_clean() {
                findings.push(Finding::warning(
                    "root-clean",
                    "root file system",
                    "it was not unmounted; its journal may hold changes that were not looked at",
                    "shut the machine down before its disk is taken, or run e2fsck on it",
                ));
            }
            for (name, rule) in RULES {
                findings.extend(rule(disk).unwrap_or_else(|err| vec![unreadable(name, &err)]));
            }
            match provision::look(disk) {
                Ok((found, agent)) => {
                    findings.extend(found);
                    provisioned = agent;
                }
                Err(err) => findings.push(unreadable("provisioning", &err)),
            }
        }
    }
    findings.sort_by(|a, b| (a.severity, a.rule, &a.place).cmp(&(b.severity, b.rule, &b.place)));
    Report {
        findings,
        generations: boot.generations(),
        security_types: boot.security_types(),
        os_states: os_states(provisioned),
        controllers: boot.controllers(),
    }
}

fn unreadable(what: &str, err: &ReadError) -> Finding {
    Finding::error(
        "root-readable",
        "root file system",
        format!("what belongs to {what} cannot be read: {err}"),
        "check the file system with e2fsck -fn, and make the image anew",
    )
}

fn os_states(agent: bool) -> Vec<Fit> {
    vec![
        match agent {
            true => Fit::yes("Generalized", ""),
            false => Fit::no(
                "Generalized",
                "nothing in it reports to Azure that it is ready, so a deployment would time out",
            ),
        },
        Fit::yes(
            "Specialized",
            "machines get no user, key or name from Azure; they are as the image is",
        ),
    ]
}
