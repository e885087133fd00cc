//! Installs Debian packages without ever removing or downgrading one.
//!
//! A package whose ordinary version would break an installed newer one (qemu-system-x86 beside a
//! qemu-utils from backports) is taken from the release's backports. Those are named in a sources
//! folder of our own for the one call; the machine's configuration is left as it is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{found, output, shown, succeeds};

/// Where apt reads its sources.
const PARTS: &str = "/etc/apt/sources.list.d";

/// The right to install packages.
pub struct Apt {
    sudo: bool,
    updated: bool,
    backports: Option<PathBuf>,
}

impl Apt {
    /// Says whether we may: apt is here, and we are root or sudo asks for no password.
    pub fn allowed() -> Result<Apt, &'static str> {
        if !found("apt-get") {
            return Err("this machine has no apt-get; install the packages by its own means");
        }
        let root = output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0");
        let sudo = !root && output(Command::new("sudo").args(["-n", "true"])).is_ok();
        match root || sudo {
            true => Ok(Apt {
                sudo,
                updated: false,
                backports: None,
            }),
            false => Err("neither root nor sudo without a password; install the packages by hand"),
        }
    }

    /// Installs one package by the first way that removes and downgrades nothing.
    pub fn install(&mut self, package: &str) -> Result<()> {
        if !self.updated {
            self.privileged(&["apt-get", "update", "-q"], None)?;
            self.updated = true;
        }
        let plain = [
            "-y",
            "--no-remove",
            "--no-install-recommends",
            "install",
            package,
        ];
        if harmless(&plain, None)? {
            return self.privileged(&[&["apt-get", "-q"], &plain[..]].concat(), None);
        }
        let suite = format!("{}-backports", os_release("VERSION_CODENAME")?);
        println!("test: {package} would replace something newer; trying {suite}");
        let parts = self.backports(&suite)?;
        let target = format!("--target-release={suite}");
        let backported = [&[target.as_str()], &plain[..]].concat();
        if !harmless(&backported, Some(&parts))? {
            bail!("every way to install it would remove or downgrade an installed package");
        }
        self.privileged(
            &[&["apt-get", "-q"], &backported[..]].concat(),
            Some(&parts),
        )
    }

    /// A sources folder that also names `suite`, read once per run.
    fn backports(&mut self, suite: &str) -> Result<PathBuf> {
        if let Some(parts) = &self.backports {
            return Ok(parts.clone());
        }
        if os_release("ID")? != "debian" {
            bail!("only Debian's backports are known here");
        }
        let parts = std::env::temp_dir().join(format!("oast-xtask-sources-{}", std::process::id()));
        std::fs::create_dir_all(&parts)?;
        for entry in std::fs::read_dir(PARTS).into_iter().flatten().flatten() {
            std::fs::copy(entry.path(), parts.join(entry.file_name()))?;
        }
        let line = format!(
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {suite} main\n",
            archive(suite.trim_end_matches("-backports"))?
        );
        std::fs::write(parts.join("oast-backports.list"), line)?;
        self.privileged(&["apt-get", "update", "-q"], Some(&parts))?;
        self.backports = Some(parts.clone());
        Ok(parts)
    }

    fn privileged(&self, words: &[&str], parts: Option<&Path>) -> Result<()> {
        let mut command = match self.sudo {
            true => Command::new("sudo"),
            false => Command::new("env"),
        };
        if self.sudo {
            command.args(["-n", "env"]);
        }
        command
            .arg("DEBIAN_FRONTEND=noninteractive")
            .args(words)
            .args(with_parts(parts));
        println!("test: {}", shown(&command));
        match succeeds(&mut command)? {
            true => Ok(()),
            false => bail!("`{}` failed", shown(&command)),
        }
    }
}

impl Drop for Apt {
    fn drop(&mut self) {
        if let Some(parts) = &self.backports {
            // A leftover folder of sources is litter, not a fault.
            let _ = std::fs::remove_dir_all(parts);
        }
    }
}

fn with_parts(parts: Option<&Path>) -> Vec<String> {
    let option = |parts: &Path| {
        vec![
            "-o".to_owned(),
            format!("Dir::Etc::sourceparts={}", parts.display()),
        ]
    };
    parts.map(option).unwrap_or_default()
}

/// Whether apt's own simulation removes and downgrades nothing.
fn harmless(args: &[&str], parts: Option<&Path>) -> Result<bool> {
    let mut simulation = Command::new("apt-get");
    simulation
        .arg("--simulate")
        .args(args)
        .args(with_parts(parts));
    let out = simulation.output().context("cannot start apt-get")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let removes = text.lines().any(|line| line.starts_with("Remv "));
    Ok(out.status.success() && !removes && !text.contains("DOWNGRADED"))
}

/// The address of the archive that carries `suite`, from apt's own configuration.
fn archive(suite: &str) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]);
    let text = output(&mut command)?;
    let uri = text
        .lines()
        .find_map(|line| line.strip_suffix(suite).map(str::trim));
    Ok(uri
        .with_context(|| format!("apt has no source for {suite}"))?
        .to_owned())
}

/// One value of /etc/os-release.
fn os_release(key: &str) -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    Ok(value
        .with_context(|| format!("/etc/os-release has no {key}"))?
        .trim_matches('"')
        .to_owned())
}
