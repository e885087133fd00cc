//! dpkg's database for packages that the engine has unpacked.
//!
//! dpkg finds every package in the state `unpacked`, as if it had unpacked them itself, and
//! configures them; afterwards the image's own dpkg and apt work as on any machine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use super::index::Stanzas;
use super::tree::{Attributes, Tree};
use super::unpack::Unpacked;

const ADMIN: &str = "var/lib/dpkg";

/// A package that stands for something that the engine does itself, so that the dependencies of
/// real packages on it hold: apt refuses to work on a system with broken dependencies.
#[derive(Clone, Copy, Debug)]
pub struct StandIn {
    pub name: &'static str,
    pub provides: &'static str,
    pub summary: &'static str,
}

/// A database that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("write dpkg's database: /{path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("write dpkg's database: the control file of {package} is not UTF-8 text")]
    NotText { package: String },
}

/// Writes the database of a root.
pub fn write(
    tree: &Tree,
    packages: &[Unpacked],
    stand_ins: &[StandIn],
    modified: i64,
) -> Result<(), DatabaseError> {
    let writer = Writer { tree, modified };
    for folder in ["alternatives", "info", "parts", "triggers", "updates"] {
        let path = format!("{ADMIN}/{folder}");
        tree.make_folders(path.as_bytes())
            .map_err(|source| DatabaseError::Write { path, source })?;
    }
    let mut status = String::new();
    let mut triggers = Triggers::default();
    for package in packages {
        let text = control_text(package)?;
        let stem = stem(package, text);
        writer.info(&stem, package)?;
        triggers.read(&stem, package);
        add_status(&mut status, text, package);
    }
    for stand_in in stand_ins {
        writer.file(&format!("info/{}.list", stand_in.name), b"/.\n", 0o644)?;
        writer.file(&format!("info/{}.md5sums", stand_in.name), b"", 0o644)?;
        status.push_str(&stand_in.status());
    }
    writer.file("status", status.as_bytes(), 0o644)?;
    for empty in [
        "available",
        "diversions",
        "statoverride",
        "triggers/Unincorp",
    ] {
        writer.file(empty, b"", 0o644)?;
    }
    // Without this dpkg takes `name:arch.list` files for damage.
    writer.file("info/format", b"1\n", 0o644)?;
    writer.file("triggers/File", triggers.files.as_bytes(), 0o644)?;
    for (name, text) in &triggers.named {
        writer.file(&format!("triggers/{name}"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Name of the package's files in `info/`: packages that can be installed for several
/// architectures at once carry theirs.
pub fn stem(package: &Unpacked, control: &str) -> String {
    let stanza = Stanzas::new(control).next();
    let field = |key: &str| stanza.as_ref().and_then(|s| s.get(key)).unwrap_or_default();
    if field("Multi-Arch") == "same" {
        format!("{}:{}", package.name, field("Architecture"))
    } else {
        package.name.clone()
    }
}

/// The package's control file.
pub fn control_text(package: &Unpacked) -> Result<&str, DatabaseError> {
    let bytes = package
        .control
        .get("control")
        .map(Vec::as_slice)
        .unwrap_or_default();
    std::str::from_utf8(bytes).map_err(|_| DatabaseError::NotText {
        package: package.name.clone(),
    })
}

struct Writer<'a> {
    tree: &'a Tree,
    modified: i64,
}

impl Writer<'_> {
    fn file(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), DatabaseError> {
        let path = format!("{ADMIN}/{name}");
        self.tree
            .write(&path, bytes, Attributes::root(mode, self.modified))
            .map_err(|source| DatabaseError::Write { path, source })
    }

    fn info(&self, stem: &str, package: &Unpacked) -> Result<(), DatabaseError> {
        let mut list = b"/.\n".to_vec();
        for path in &package.paths {
            list.push(b'/');
            list.extend_from_slice(path);
            list.push(b'\n');
        }
        self.file(&format!("info/{stem}.list"), &list, 0o644)?;
        for (name, bytes) in &package.control {
            if name == "control" {
                continue;
            }
            let script = matches!(
                name.as_str(),
                "preinst" | "postinst" | "prerm" | "postrm" | "config"
            );
            self.file(
                &format!("info/{stem}.{name}"),
                bytes,
                if script { 0o755 } else { 0o644 },
            )?;
        }
        Ok(())
    }
}

/// Writes one stanza of the status file: the control file, its state, its configuration files.
fn add_status(status: &mut String, control: &str, package: &Unpacked) {
    let mut lines = control.trim_end().lines();
    status.push_str(lines.next().unwrap_or_default());
    status.push_str("\nStatus: install ok unpacked\n");
    for line in lines {
        status.push_str(line);
        status.push('\n');
    }
    if !package.conffiles.is_empty() {
        status.push_str("Conffiles:\n");
        for (path, digest) in &package.conffiles {
            status.push_str(" /");
            status.push_str(&String::from_utf8_lossy(path));
            status.push(' ');
            status.push_str(digest);
            status.push('\n');
        }
    }
    status.push('\n');
}

impl StandIn {
    fn status(&self) -> String {
        format!(
            "Package: {}\nStatus: install ok installed\nPriority: optional\nSection: admin\n\
             Maintainer: Oast <root@localhost>\nArchitecture: all\nVersion: 1\nProvides: {}\n\
             Description: {}\n\n",
            self.name, self.provides, self.summary
        )
    }
}

/// Which package wants to be told about what, in the form dpkg keeps it.
#[derive(Default)]
struct Triggers {
    files: String,
    named: BTreeMap<String, String>,
}

impl Triggers {
    fn read(&mut self, stem: &str, package: &Unpacked) {
        let Some(text) = package.control.get("triggers") else {
            return;
        };
        for line in String::from_utf8_lossy(text).lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else {
                continue;
            };
            let suffix = match directive {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            if trigger.starts_with('/') {
                let _ = writeln!(self.files, "{trigger} {stem}{suffix}");
            } else if !trigger.contains('/') {
                let lines = self.named.entry(trigger.to_owned()).or_default();
                let _ = writeln!(lines, "{stem}{suffix}");
            }
        }
    }
}
