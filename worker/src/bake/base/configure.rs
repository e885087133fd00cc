//! Configures unpacked packages, and leaves a clean image behind.
//!
//! Maintainer scripts are the distribution's programs, so they run confined: [`Confined`] is a
//! namespace sandbox in the worker. dpkg itself decides the order and does the work; the engine
//! only supplies what dpkg would have done before (`preinst` scripts, in one process instead of
//! one per package) and takes away what must not be in an image.
//!
//! There is no initial ramdisk maker in the base: the engine makes the ramdisk itself when it
//! writes the disk. A stand-in package provides `linux-initramfs-tool`, so that the kernel's
//! dependency holds for apt, too.

use std::fmt::Write as _;
use std::io;

use camino::Utf8Path;
use tokio_util::sync::CancellationToken;

use super::database::{self, DatabaseError, StandIn};
use super::index::Stanzas;
use super::tree::{Attributes, Tree};
use super::unpack::Unpacked;

/// Stands for the ramdisk maker that kernels depend on.
pub const RAMDISK: StandIn = StandIn {
    name: "oast-initramfs",
    provides: "linux-initramfs-tool",
    summary: "the initial ramdisk is made when the image's disk is written",
};

/// Names that the solver takes as given because of the stand-ins.
pub const PROVIDED: &[&str] = &[RAMDISK.provides];

/// Runs programs of an image with the image as their root and nothing else in reach.
pub trait Confined: Send + Sync {
    /// Runs a program to its end. Blocks; ends early when the bake is cancelled.
    fn run(&self, command: &ConfinedCommand<'_>) -> Result<ConfinedOutput, ConfineError>;
}

/// One program to run.
#[derive(Clone, Copy, Debug)]
pub struct ConfinedCommand<'a> {
    /// The image's root; written in place.
    pub root: &'a Utf8Path,
    /// An empty folder on the same file system, for the sandbox's own use (an overlay's work
    /// folder, for one); removed afterwards.
    pub scratch: &'a Utf8Path,
    pub argv: &'a [&'a str],
    pub env: &'a [(&'a str, &'a str)],
    /// Ends the program early.
    pub cancel: &'a CancellationToken,
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct ConfinedOutput {
    /// Exit status; 128 + number for a signal.
    pub status: i32,
    /// Standard output and error, perhaps only their end.
    pub output: Vec<u8>,
}

/// A sandbox that could not be made, as opposed to a program that failed in it.
#[derive(Debug, thiserror::Error)]
#[error("run {program} confined: {reason}")]
pub struct ConfineError {
    pub program: String,
    pub reason: String,
}

/// Packages that cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("configure the base system: {what} ended with status {status}:\n{output}")]
    Failed {
        what: &'static str,
        status: i32,
        output: String,
    },
    #[error("configure the base system: {packages} stayed unconfigured:\n{output}")]
    Incomplete { packages: String, output: String },
    #[error("configure the base system: write /{path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// What to configure and where.
#[derive(Clone, Copy)]
pub struct Configure<'a> {
    pub tree: &'a Tree,
    pub root: &'a Utf8Path,
    pub scratch: &'a Utf8Path,
    pub confined: &'a dyn Confined,
    pub cancel: &'a CancellationToken,
    pub modified: i64,
}

impl std::fmt::Debug for Configure<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configure")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// Lines of a failed program's output that its error repeats.
const OUTPUT_LINES: usize = 40;

const POLICY: &str = "usr/sbin/policy-rc.d";

/// The environment of maintainer scripts.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LC_ALL", "C"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("DEBCONF_NOWARNINGS", "yes"),
    ("SYSTEMD_OFFLINE", "1"),
    ("DPKG_ROOT", ""),
    ("DPKG_ADMINDIR", "/var/lib/dpkg"),
];

/// Scripts that must run first: users and groups, then the files that name them.
const FIRST: &[&str] = &["base-passwd", "base-files"];

impl Configure<'_> {
    /// Configures all packages. `packages` are in dpkg's database already.
    pub fn run(&self, packages: &[Unpacked]) -> Result<(), ConfigureError> {
        self.prepare(packages)?;
        let script = preinst_script(packages)?;
        if !script.is_empty() {
            self.confined("the preinst scripts", &["/bin/sh", "-c", &script])?;
        }
        let output = self.confined(
            "dpkg --configure",
            &[
                "/usr/bin/dpkg",
                "--configure",
                "--pending",
                "--force-unsafe-io",
                "--force-confold",
                // Scripts of essential packages may need each other before dpkg's order is up.
                "--force-depends",
            ],
        )?;
        self.check(&output)?;
        self.confined("systemctl enable", &["/bin/sh", "-c", ENABLE])?;
        self.clean()
    }

    /// Supplies what scripts take for granted before the first of them has run.
    fn prepare(&self, packages: &[Unpacked]) -> Result<(), ConfigureError> {
        // No service starts while an image is made (101: forbidden by policy).
        self.write(POLICY, "#!/bin/sh\nexit 101\n", 0o755)?;
        let shipped = |path: &[u8]| {
            packages
                .iter()
                .any(|package| package.paths.iter().any(|known| known == path))
        };
        // The link that the awk alternative will have; scripts use awk before mawk's own has run.
        if shipped(b"usr/bin/mawk") && !shipped(b"usr/bin/awk") {
            self.link("usr/bin/awk", "/etc/alternatives/awk")?;
            self.link("etc/alternatives/awk", "/usr/bin/mawk")?;
        }
        if !shipped(b"bin/sh") && !shipped(b"usr/bin/sh") {
            self.link("usr/bin/sh", "dash")?;
        }
        // Scripts that look for a machine's identity or name servers find empty ones.
        self.write("etc/machine-id", "", 0o444)?;
        if !shipped(b"etc/hosts") {
            self.write("etc/hosts", HOSTS, 0o644)?;
        }
        self.write(NETWORK, NETWORK_TEXT, 0o644)?;
        self.write("etc/default/locale", "LANG=C.UTF-8\n", 0o644)
    }

    /// Every package must be installed; dpkg's exit code alone does not say so.
    fn check(&self, output: &str) -> Result<(), ConfigureError> {
        let path = "var/lib/dpkg/status";
        let read = |source| ConfigureError::Write {
            path: path.to_owned(),
            source,
        };
        let status = self.tree.read(path).map_err(read)?.unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        let left: Vec<_> = Stanzas::new(&status)
            .filter(|stanza| stanza.get("Status") != Some("install ok installed"))
            .map(|stanza| stanza.get("Package").unwrap_or_default().to_owned())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(ConfigureError::Incomplete {
            packages: left.join(", "),
            output: last_lines(output),
        })
    }

    /// Removes what belongs to the making of the image or to one machine.
    fn clean(&self) -> Result<(), ConfigureError> {
        for path in [
            POLICY,
            "etc/group-",
            "etc/gshadow-",
            "etc/passwd-",
            "etc/shadow-",
            "etc/subgid-",
            "etc/subuid-",
            "etc/.pwd.lock",
            // Made by the kernel's scripts for a ramdisk that is not there.
            "initrd.img",
            "initrd.img.old",
            "vmlinuz.old",
            "var/cache/ldconfig/aux-cache",
            "var/lib/dpkg/status-old",
            "var/lib/dpkg/available-old",
            "var/lib/dpkg/diversions-old",
            "var/lib/dpkg/statoverride-old",
            "var/lib/systemd/random-seed",
            "var/lib/systemd/credential.secret",
            "var/log/alternatives.log",
            "var/log/dpkg.log",
            "var/log/bootstrap.log",
        ] {
            self.tree
                .remove(path)
                .map_err(|source| ConfigureError::Write {
                    path: path.to_owned(),
                    source,
                })?;
        }
        let folder = "var/cache/debconf";
        self.tree
            .remove_files(folder, |name| name.ends_with("-old"))
            .map_err(|source| ConfigureError::Write {
                path: folder.to_owned(),
                source,
            })?;
        // Empty, not absent: the first boot gives the machine its identity.
        self.write("etc/machine-id", "", 0o444)?;
        self.link("var/lib/dbus/machine-id", "/etc/machine-id")
    }

    fn confined(&self, what: &'static str, argv: &[&str]) -> Result<String, ConfigureError> {
        let command = ConfinedCommand {
            root: self.root,
            scratch: self.scratch,
            argv,
            env: ENVIRONMENT,
            cancel: self.cancel,
        };
        let made = |source| ConfigureError::Write {
            path: self.scratch.to_string(),
            source,
        };
        // The work folder of an overlay belongs to the sandbox's root, so it is made anew.
        match std::fs::remove_dir_all(self.scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(made(error)),
            _ => std::fs::create_dir_all(self.scratch).map_err(made)?,
        }
        let result = self.confined.run(&command);
        let _ = std::fs::remove_dir_all(self.scratch);
        let output = result?;
        let text = String::from_utf8_lossy(&output.output).into_owned();
        tracing::debug!(what, status = output.status, "A confined program ended.");
        if output.status != 0 {
            return Err(ConfigureError::Failed {
                what,
                status: output.status,
                output: last_lines(&text),
            });
        }
        Ok(text)
    }

    fn write(&self, path: &str, text: &str, mode: u32) -> Result<(), ConfigureError> {
        self.tree
            .write(path, text.as_bytes(), Attributes::root(mode, self.modified))
            .map_err(|source| ConfigureError::Write {
                path: path.to_owned(),
                source,
            })
    }

    fn link(&self, path: &str, target: &str) -> Result<(), ConfigureError> {
        self.tree
            .link(path, target, self.modified)
            .map_err(|source| ConfigureError::Write {
                path: path.to_owned(),
                source,
            })
    }
}

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

const NETWORK: &str = "etc/systemd/network/80-dhcp.network";
const NETWORK_TEXT: &str = "[Match]\nType=ether\nKind=!*\n\n[Network]\nDHCP=yes\n";

/// Without `/run/systemd` the command only makes links; a base without networkd does without.
const ENABLE: &str = "if [ -e /usr/lib/systemd/system/systemd-networkd.service ] || \
                      [ -e /lib/systemd/system/systemd-networkd.service ]; then \
                      systemctl enable systemd-networkd.service; fi";

/// One shell program that runs every `preinst` as dpkg would.
fn preinst_script(packages: &[Unpacked]) -> Result<String, ConfigureError> {
    let mut with_script: Vec<_> = packages
        .iter()
        .filter(|package| package.control.contains_key("preinst"))
        .collect();
    with_script.sort_by_key(|package| {
        let first = FIRST.iter().position(|name| *name == package.name);
        (first.unwrap_or(FIRST.len()), package.name.clone())
    });
    let mut script = String::new();
    for package in with_script {
        let text = database::control_text(package)?;
        let stanza = Stanzas::new(text).next();
        let architecture = stanza
            .as_ref()
            .and_then(|s| s.get("Architecture"))
            .unwrap_or("all")
            .to_owned();
        let (name, stem) = (&package.name, database::stem(package, text));
        let _ = writeln!(
            script,
            "DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE={name} \
             DPKG_MAINTSCRIPT_ARCH={architecture} DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 \
             /var/lib/dpkg/info/{stem}.preinst install || \
             {{ echo 'the preinst script of {name} failed'; exit 1; }}"
        );
    }
    Ok(script)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(OUTPUT_LINES)..].join("\n")
}
