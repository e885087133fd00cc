//! Which farm the command line talks to: flags, then environment, then the current context.
//!
//! `$XDG_CONFIG_HOME/oast/config.toml` (else `~/.config/oast/config.toml`) holds named contexts;
//! it is readable by its owner alone because it holds tokens.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use oast_daemon::config::process_env;
use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_daemon::tls::{Bundle, certificates};
use oast_model::units::TimeSpan;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Stale};
use crate::reach::Reach;

/// Flags of every command that talks to a farm.
#[derive(Args, Clone, Debug, Default)]
pub struct Connect {
    /// Context to use instead of the current one [env: OAST_CONTEXT].
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Members, host:port, separated by commas [env: OAST_ADDR].
    #[arg(long, global = true, value_name = "ADDRS", value_delimiter = ',')]
    addr: Vec<String>,
    /// File with the authority of the farm's certificates (PEM) [env: OAST_CA].
    #[arg(long, global = true, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Team to act for [env: OAST_TEAM].
    #[arg(long, global = true, value_name = "TEAM")]
    team: Option<String>,
    /// Let a member that is behind answer, at most this much behind if a time is said
    #[arg(long, global = true, value_name = "MAX_AGE", num_args = 0..=1, require_equals = true,
        default_missing_value = "any", value_parser = stale)]
    stale: Option<Stale>,
}

/// `any` or a time.
fn stale(text: &str) -> Result<Stale, String> {
    if text == "any" {
        return Ok(Stale::Any);
    }
    let age: TimeSpan = text
        .parse()
        .map_err(|why| format!("{why}; write --stale=5s, or --stale for any age"))?;
    Ok(Stale::For(age.duration()))
}

/// The file of contexts.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Contexts {
    current: Option<String>,
    contexts: BTreeMap<String, Entry>,
}

/// One farm.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct Entry {
    addresses: Vec<String>,
    token: Option<String>,
    team: Option<String>,
    /// The farm's authorities as PEM text.
    ca: Option<String>,
}

impl Connect {
    /// A client for the farm that the flags, the environment or the context name.
    pub fn client(&self) -> anyhow::Result<Client> {
        let entry = self.entry()?;
        let token = process_env("OAST_TOKEN").or(entry.token).map(Secret::new);
        let said = self
            .ca
            .clone()
            .or_else(|| process_env("OAST_CA").map(PathBuf::from));
        let ca = match said {
            Some(file) => Some(authority(&file)?),
            None => entry.ca,
        };
        let reach = match ca {
            Some(pem) => Reach::trusting(&pem)?,
            None => Reach::default(),
        };
        let client = Client::reaching(&entry.addresses, token.as_ref(), &reach)?;
        Ok(client.accepting(self.stale))
    }

    /// The team that the flag or the environment names, without the context's own.
    pub fn said_team(&self) -> Option<String> {
        self.team
            .clone()
            .or_else(|| process_env("OAST_TEAM"))
            .filter(|team| !team.is_empty())
    }

    /// The team to act for, if one is said anywhere.
    pub fn team(&self) -> anyhow::Result<Option<String>> {
        Ok(match self.said_team() {
            Some(team) => Some(team),
            None => self.entry()?.team,
        })
    }

    fn entry(&self) -> anyhow::Result<Entry> {
        let mut entry = self.named()?;
        let addresses = if self.addr.is_empty() {
            process_env("OAST_ADDR")
                .map(|text| text.split(',').map(|part| part.trim().to_owned()).collect())
                .unwrap_or_default()
        } else {
            self.addr.clone()
        };
        if !addresses.is_empty() {
            entry.addresses = addresses;
        }
        Ok(entry)
    }

    fn named(&self) -> anyhow::Result<Entry> {
        let file = read(&path()?)?;
        let wanted = self.context.clone().or_else(|| process_env("OAST_CONTEXT"));
        let Some(name) = wanted.as_ref().or(file.current.as_ref()) else {
            return Ok(Entry::default());
        };
        match file.contexts.get(name) {
            Some(entry) => Ok(entry.clone()),
            None => {
                let known: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
                bail!(
                    "there is no context `{name}`; known are: {}",
                    known.join(", ")
                )
            }
        }
    }
}

/// Keeps a farm under a name and makes it the current one.
pub fn remember(
    name: &str,
    addresses: &[String],
    token: &Secret<String>,
    team: Option<&str>,
    ca: Option<String>,
) -> anyhow::Result<()> {
    let path = path()?;
    let mut file = read(&path)?;
    let entry = Entry {
        addresses: addresses.to_vec(),
        token: Some(token.expose().clone()),
        team: team.map(str::to_owned),
        ca,
    };
    file.contexts.insert(name.to_owned(), entry);
    file.current = Some(name.to_owned());
    write(&path, &file)
}

/// Reads a file of authorities, without anything else that may be in it.
pub fn authority(file: &Path) -> anyhow::Result<String> {
    let bundle = Bundle::read(file)?;
    if bundle.chain.is_empty() {
        bail!(
            "{} holds no certificate: ca.pem of a member is what is needed",
            file.display()
        );
    }
    Ok(certificates(&bundle.chain))
}

/// A farm as it is kept, without its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name here.
    pub name: String,
    /// Whether commands talk to it.
    pub current: bool,
    /// Its members.
    pub addresses: Vec<String>,
    /// Team to act for.
    pub team: Option<String>,
    /// Whether a token is kept with it.
    pub has_token: bool,
    /// Whether its authority is kept with it.
    pub has_ca: bool,
}

/// Every farm that is kept, by name.
pub fn known() -> anyhow::Result<Vec<Known>> {
    let file = read(&path()?)?;
    let current = process_env("OAST_CONTEXT").or(file.current);
    let all = file.contexts.into_iter().map(|(name, entry)| Known {
        current: current.as_ref() == Some(&name),
        name,
        addresses: entry.addresses,
        team: entry.team,
        has_token: entry.token.is_some(),
        has_ca: entry.ca.is_some(),
    });
    Ok(all.collect())
}

/// Makes a kept farm the current one. False when there is none of that name.
pub fn select(name: &str) -> anyhow::Result<bool> {
    let path = path()?;
    let mut file = read(&path)?;
    if !file.contexts.contains_key(name) {
        return Ok(false);
    }
    file.current = Some(name.to_owned());
    write(&path, &file)?;
    Ok(true)
}

/// Where contexts are kept.
pub fn path() -> anyhow::Result<PathBuf> {
    if let Some(folder) = process_env("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()) {
        return Ok(Path::new(&folder).join("oast/config.toml"));
    }
    match process_env("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(Path::new(&home).join(".config/oast/config.toml")),
        None => {
            bail!("neither HOME nor XDG_CONFIG_HOME is set: say where with --addr and OAST_TOKEN")
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Contexts> {
    match fs::read_to_string(path) {
        Ok(text) => {
            toml::from_str(&text).with_context(|| format!("read contexts from {}", path.display()))
        }
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(Contexts::default()),
        Err(err) => Err(err).with_context(|| format!("read {}", path.display())),
    }
}

/// Whole or not at all: a draft that is renamed.
fn write(path: &Path, file: &Contexts) -> anyhow::Result<()> {
    let folder = path.parent().context("the context file is in a folder")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("make {}", folder.display()))?;
    let draft = folder.join(format!(".config-{:016x}", random::number()));
    let text = toml::to_string(file)?;
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .with_context(|| format!("write {}", draft.display()))?;
    out.write_all(text.as_bytes())?;
    fs::rename(&draft, path).with_context(|| format!("write {}", path.display()))
}
