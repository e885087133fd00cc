//! What is done to a base, step by step. Part of the checked pipeline; see [`super::definition`]
//! for the promise about stored shapes.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::names::{ChannelName, ImageName, SecretName};
use crate::units::TimeSpan;

/// How long a `run` step may take unless it says otherwise.
pub const RUN_TIMEOUT: TimeSpan = TimeSpan::from_secs(30 * 60);
/// The interpreter of a `run` step unless it says otherwise. `-e`: the first failing command fails the step.
pub const SHELL: &str = "/bin/sh -e";

/// One thing that is done to the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What people see; else a text made from the action.
    #[serde(default)]
    pub name: Option<String>,
    /// What is done.
    pub action: Action,
    /// Where it stands in its file, from 1; 0 when that is not known.
    #[serde(default, skip_serializing_if = "is_default")]
    pub line: u32,
    /// The operator's policy that put it here; none for the pipeline's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Step {
    /// A step that stands in no file.
    pub const fn new(action: Action) -> Self {
        Self {
            name: None,
            action,
            line: 0,
            policy: None,
        }
    }

    /// The name, or the action in a few words; a policy's step says whose it is.
    pub fn title(&self) -> String {
        let title = self.name.clone().unwrap_or_else(|| self.action.to_string());
        match &self.policy {
            Some(policy) => format!("policy {policy}: {title}"),
            None => title,
        }
    }

    /// Where people find it: `line 14 of the pipeline file`. None when that is not known.
    pub fn place(&self) -> Option<String> {
        match (self.line, &self.policy) {
            (0, None) => None,
            (0, Some(policy)) => Some(format!("policy {policy}")),
            (line, None) => Some(format!("line {line} of the pipeline file")),
            (line, Some(policy)) => Some(format!("line {line} of policy {policy}")),
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Runs commands inside the image.
    Run(Run),
    /// Copies files into the image.
    Copy(CopyFiles),
    /// Sets environment variables for the steps after it, not in the image.
    Env(BTreeMap<String, String>),
    /// Sets the folder in which the steps after it run; made when missing.
    Workdir(String),
    /// Sets who runs the steps after it, `user` or `user:group` as the image knows them.
    User(String),
    /// Installs packages of the image's distribution.
    Packages(Packages),
    /// Installs units and says which start.
    Systemd(Systemd),
    /// Plays an Ansible playbook on the image.
    Ansible(Box<Ansible>),
}

impl Action {
    /// The key of the action in the file.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Run(_) => "run",
            Self::Copy(_) => "copy",
            Self::Env(_) => "env",
            Self::Workdir(_) => "workdir",
            Self::User(_) => "user",
            Self::Packages(_) => "packages",
            Self::Systemd(_) => "systemd",
            Self::Ansible(_) => "ansible",
        }
    }

    /// Whether it only sets something for the steps after it, and so has no layer of its own.
    pub const fn is_setting(&self) -> bool {
        matches!(self, Self::Env(_) | Self::Workdir(_) | Self::User(_))
    }

    /// Secrets that the step gets.
    pub fn secrets(&self) -> &[SecretUse] {
        match self {
            Self::Run(run) => &run.secrets,
            Self::Ansible(ansible) => &ansible.secrets,
            _ => &[],
        }
    }

    /// Files and folders of the commit that the step needs.
    pub fn sources(&self) -> Vec<&str> {
        match self {
            Self::Run(run) => run.script.iter().map(String::as_str).collect(),
            Self::Copy(copy) if copy.source == CopySource::Commit => vec![&copy.from],
            Self::Systemd(systemd) => systemd.install.iter().map(String::as_str).collect(),
            Self::Ansible(ansible) => vec![&ansible.playbook, ansible.folder()],
            _ => Vec::new(),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(Run {
                script: Some(script),
                ..
            }) => write!(f, "run {script}"),
            Self::Run(run) => write!(
                f,
                "run {}",
                run.command.trim().lines().next().unwrap_or_default()
            ),
            Self::Copy(copy) => write!(f, "copy {} to {}", copy.from, copy.to),
            Self::Env(env) => {
                let names: Vec<&str> = env.keys().map(String::as_str).collect();
                write!(f, "env {}", names.join(" "))
            }
            Self::Workdir(path) => write!(f, "workdir {path}"),
            Self::User(user) => write!(f, "user {user}"),
            Self::Packages(packages) => write!(f, "packages {}", packages.install.join(" ")),
            Self::Systemd(systemd) => {
                f.write_str("systemd")?;
                for (verb, units) in systemd.verbs() {
                    if !units.is_empty() {
                        write!(f, " {verb} {}", units.join(" "))?;
                    }
                }
                Ok(())
            }
            Self::Ansible(ansible) => write!(f, "ansible {}", ansible.playbook),
        }
    }
}

/// Commands that run inside the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The text that the shell reads. Empty with a script.
    pub command: String,
    /// The interpreter and its arguments, split at spaces. A script with a `#!` line of its own
    /// runs by that when this is [`SHELL`].
    pub shell: String,
    /// After this the step has failed.
    pub timeout: TimeSpan,
    /// How often a failed command is tried again, from the parent layer each time.
    #[serde(default)]
    pub retries: u32,
    /// What the step may reach.
    #[serde(default)]
    pub network: Network,
    /// Secrets that the step gets; never part of a layer.
    #[serde(default)]
    pub secrets: Vec<SecretUse>,
    /// A file of the commit that is run in place of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// What the script is called with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Folders that the worker keeps from one bake to the next; never part of a layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<String>,
}

impl Run {
    /// A command with everything else at its default.
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            shell: SHELL.to_owned(),
            timeout: RUN_TIMEOUT,
            retries: 0,
            network: Network::default(),
            secrets: Vec::new(),
            script: None,
            args: Vec::new(),
            caches: Vec::new(),
        }
    }
}

/// What a step may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing but itself.
    None,
    /// Public addresses through the engine's proxy; never the farm or the machine.
    #[default]
    Proxy,
    /// Whatever the worker reaches. Needs the operator's policy.
    Host,
}

impl Network {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Proxy => "proxy",
            Self::Host => "host",
        }
    }
}

/// A secret that a step gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Which secret of the team.
    pub name: SecretName,
    /// How the step finds it.
    pub delivery: SecretDelivery,
}

/// How a step finds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretDelivery {
    /// In this environment variable.
    Env(String),
    /// In a file of this name in memory, gone when the step ends.
    File(String),
}

/// Files that are copied into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFiles {
    /// A file or folder: relative to the top of the repository, an address, or a path in the other image.
    pub from: String,
    /// A path in the image; the content of a folder lands in it.
    pub to: String,
    /// Permission bits of the copied files; else those of the repository. Folders get `x` where they have `r`.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Owner of what is copied, `user` or `user:group` as the image knows them; else root.
    #[serde(default)]
    pub owner: Option<String>,
    /// What `from` is looked up in.
    #[serde(default, skip_serializing_if = "is_default")]
    pub source: CopySource,
}

/// What the files of a `copy` are looked up in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopySource {
    /// The commit.
    #[default]
    Commit,
    /// The web: one file with this content.
    Url {
        /// Lower-case hexadecimal SHA-256.
        sha256: String,
    },
    /// The newest version of an image in a channel.
    Image {
        /// The image, of the same team.
        image: ImageName,
        /// Its channel.
        channel: ChannelName,
    },
}

/// Packages that are installed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages {
    /// Their names, perhaps as `name=version`.
    pub install: Vec<String>,
    /// Whether packages that these recommend come with them.
    #[serde(default)]
    pub recommends: bool,
}

/// Units that are installed and what starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Systemd {
    /// Unit files of the commit, which land in `/etc/systemd/system`.
    #[serde(default)]
    pub install: Vec<String>,
    /// Units that start at boot.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Units that do not.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Units that nothing can start.
    #[serde(default)]
    pub mask: Vec<String>,
    /// Units that can be started again.
    #[serde(default)]
    pub unmask: Vec<String>,
    /// The target that boots.
    #[serde(default)]
    pub default: Option<String>,
}

impl Systemd {
    /// What is done with which units, in the order in which it is done.
    pub fn verbs(&self) -> [(&'static str, &[String]); 6] {
        [
            ("install", &self.install),
            ("unmask", &self.unmask),
            ("disable", &self.disable),
            ("enable", &self.enable),
            ("mask", &self.mask),
            ("set-default", self.default.as_slice()),
        ]
    }
}

/// A playbook that is played on the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ansible {
    /// The playbook in the commit.
    pub playbook: String,
    /// The folder of the commit that the play sees, with roles and files; else the playbook's own.
    #[serde(default)]
    pub folder: Option<String>,
    /// Extra variables.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// Only tasks with one of these tags; empty means all.
    #[serde(default)]
    pub tags: Vec<String>,
    /// After this the step has failed.
    pub timeout: TimeSpan,
    /// What the play may reach.
    #[serde(default)]
    pub network: Network,
    /// Secrets that the play gets; never part of a layer.
    #[serde(default)]
    pub secrets: Vec<SecretUse>,
}

impl Ansible {
    /// The folder of the commit that the play sees.
    pub fn folder(&self) -> &str {
        match &self.folder {
            Some(folder) => folder,
            None => self
                .playbook
                .rsplit_once('/')
                .map_or(".", |(folder, _)| folder),
        }
    }
}
