//! A checked pipeline, as the ledger stores it and the workers obey it.
//!
//! Records outlive the program that wrote them: every field has a name, new
//! fields get `#[serde(default)]`, and a variant is never given a new meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::names::{
    ChannelName, FleetName, ImageName, PipelineName, RegionName, SecretName, TeamName,
};
pub use crate::pipeline::step::*;
use crate::priority::Priority;
use crate::units::{Amount, ByteSize, TimeSpan};

/// How long a booted image may take to pass its checks unless it says otherwise.
pub const BOOT_TIMEOUT: TimeSpan = TimeSpan::from_secs(3 * 60);
/// How long one request of a gate or check may take unless it says otherwise.
pub const REQUEST_TIMEOUT: TimeSpan = TimeSpan::from_secs(2);
/// How long a replaced instance may take to become healthy unless the strategy says otherwise.
pub const HEALTHY_DEADLINE: TimeSpan = TimeSpan::from_secs(5 * 60);
/// Where the pipeline file stands in a repository unless the repository says otherwise.
pub const PIPELINE_PATH: &str = "oast.yaml";

/// A checked pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pipeline {
    /// The version of the format.
    pub api_version: ApiVersion,
    /// Unique in its team.
    pub name: PipelineName,
    /// The owner; its grants decide who may run this and which fleets it may touch.
    pub team: TeamName,
    /// What a run may be given, by name.
    #[serde(default)]
    pub inputs: BTreeMap<String, Input>,
    /// What starts a run by itself.
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    /// How the image is made.
    pub bake: Bake,
    /// What the image must pass before it is published, in order.
    #[serde(default)]
    pub test: Vec<Test>,
    /// The name and channel under which the image is published.
    pub publish: Publish,
    /// The fleets that get the image, in order.
    #[serde(default)]
    pub rollout: Vec<Rollout>,
    /// How urgent its runs are, unless whoever starts one says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Which of its runs may go on side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
}

/// Runs of a team that name the same group go on one after the other, or a few at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concurrency {
    /// The group's name, the team's own.
    pub group: String,
    /// How many of its runs may have begun and not ended. At least 1.
    pub max: u32,
    /// Whether a newer run ends the older ones instead of waiting for them.
    #[serde(default)]
    pub cancel_in_progress: bool,
}

/// The version of a file's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApiVersion {
    /// The first.
    #[serde(rename = "oast/v1")]
    V1,
}

impl ApiVersion {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "oast/v1",
        }
    }
}

/// A value that a run may be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What values are accepted.
    pub kind: InputKind,
    /// The value when a run gives none. Has the type of `kind`.
    #[serde(default)]
    pub default: Option<InputValue>,
    /// Whether a run must give a value. Never together with a default.
    #[serde(default)]
    pub required: bool,
    /// What people are told.
    #[serde(default)]
    pub description: Option<String>,
}

/// The type of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputKind {
    /// Any text.
    String,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Number,
}

impl InputKind {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Bool => "bool",
            Self::Number => "number",
        }
    }
}

/// The value of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputValue {
    /// Any text.
    String(String),
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Number(i64),
}

impl InputValue {
    /// The type that this value has.
    pub const fn kind(&self) -> InputKind {
        match self {
            Self::String(_) => InputKind::String,
            Self::Bool(_) => InputKind::Bool,
            Self::Number(_) => InputKind::Number,
        }
    }
}

impl fmt::Display for InputValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => f.write_str(text),
            Self::Bool(yes) => write!(f, "{yes}"),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// What starts a run by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// A push to a repository that has this pipeline.
    Git(GitTrigger),
    /// A calendar.
    Cron(CronTrigger),
}

/// A push that starts a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitTrigger {
    /// Globs of branch names; empty means every branch.
    #[serde(default)]
    pub branches: Vec<String>,
    /// Globs of changed files, of which one must match; empty means every file.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// A calendar that starts runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronTrigger {
    /// The five fields, checked.
    pub cron: String,
    /// The zone in which the fields are read, such as `UTC` or `Europe/Berlin`.
    pub timezone: String,
}

/// How an image is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bake {
    /// What the first step finds.
    pub from: Base,
    /// What makes the image.
    #[serde(default)]
    pub engine: Engine,
    /// The machine that the image is for.
    #[serde(default)]
    pub arch: Arch,
    /// Where the base's packages come from; else the worker's configuration decides.
    #[serde(default)]
    pub mirror: Option<Mirror>,
    /// The image's own package sources, one line of `sources.list` each.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Packages that the base is made with, besides the system itself.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The disk that is made at the end.
    #[serde(default)]
    pub disk: Disk,
    /// Environment of every step.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What is done to the base, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
}

impl Bake {
    /// Images that the recipe names, each with its channel, each once.
    pub fn images(&self) -> std::collections::BTreeSet<(&ImageName, &ChannelName)> {
        let base = match &self.from {
            Base::Image { image, channel } => Some((image, channel)),
            _ => None,
        };
        let copied = self.steps.iter().filter_map(|step| match &step.action {
            Action::Copy(CopyFiles {
                source: CopySource::Image { image, channel },
                ..
            }) => Some((image, channel)),
            _ => None,
        });
        base.into_iter().chain(copied).collect()
    }
}

/// What the first step finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// A system made from the packages of a distribution.
    Distribution {
        /// Which distribution.
        distribution: Distribution,
        /// Its release, such as `12` or `24.04`.
        release: String,
    },
    /// The newest version of another image in a channel.
    Image {
        /// The image.
        image: ImageName,
        /// Its channel.
        channel: ChannelName,
    },
    /// A file that somebody made with other tools.
    File(BaseFile),
}

/// A root file system that somebody made with other tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFile {
    /// What is in the file.
    pub format: FileFormat,
    /// Where it is.
    pub place: FilePlace,
}

/// What a base file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// A tar archive of a root file system, perhaps compressed.
    Rootfs,
    /// A tar archive of an OCI image layout, or what `docker save` writes.
    Oci,
}

impl FileFormat {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rootfs => "rootfs",
            Self::Oci => "oci",
        }
    }
}

/// Where a base file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilePlace {
    /// In the commit.
    Path(String),
    /// On the web.
    Url {
        /// Its address.
        url: String,
        /// Lower-case hexadecimal SHA-256.
        sha256: String,
    },
}

/// A distribution whose packages make a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// Debian GNU/Linux.
    Debian,
    /// Ubuntu.
    Ubuntu,
}

impl Distribution {
    /// As it stands in a file and in `os-release`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }
}

/// The releases that a base can be made from: distribution, release, suite.
pub const RELEASES: [(Distribution, &str, &str); 4] = [
    (Distribution::Debian, "12", "bookworm"),
    (Distribution::Debian, "13", "trixie"),
    (Distribution::Ubuntu, "22.04", "jammy"),
    (Distribution::Ubuntu, "24.04", "noble"),
];

impl Base {
    /// The archive's name of the release, such as `bookworm`; none for an image or a file.
    pub fn suite(&self) -> Option<&'static str> {
        let Self::Distribution {
            distribution,
            release,
        } = self
        else {
            return None;
        };
        RELEASES
            .iter()
            .find(|(d, r, _)| d == distribution && r == release)
            .map(|(_, _, suite)| *suite)
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Distribution {
                distribution,
                release,
            } => write!(f, "{}-{release}", distribution.as_str()),
            Self::Image { image, channel } => write!(f, "{image}@{channel}"),
            Self::File(file) => match &file.place {
                FilePlace::Path(path) => write!(f, "{} {path}", file.format.as_str()),
                FilePlace::Url { url, .. } => write!(f, "{} {url}", file.format.as_str()),
            },
        }
    }
}

/// What makes the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Layers in namespaces on the worker, then a disk; no virtual machine.
    #[default]
    Disk,
}

/// A machine architecture, as Debian names it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86.
    #[default]
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// As it stands in a file and in a package index.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// Where the base's packages come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The archive's address, the folder that holds `dists/`.
    pub url: String,
    /// Parts of the archive; empty means `main`.
    #[serde(default)]
    pub components: Vec<String>,
    /// A file in the repository with the keys that sign the archive; else the worker's keyring.
    #[serde(default)]
    pub keyring: Option<String>,
}

/// The disk that is made at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Its size; else the smallest that fits the content with room to boot.
    #[serde(default)]
    pub size: Option<ByteSize>,
}

/// A secret in a team's keeping, by name. The value is never in the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Which secret of the team.
    pub secret: SecretName,
}

/// What an image must pass before it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// The disk and the files in it are sound; nothing is started.
    Static(StaticTest),
    /// The image is started and checked from inside and outside.
    Boot(BootTest),
}

/// A test that starts nothing. It has no settings yet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StaticTest {}

/// A test that starts the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTest {
    /// All checks must have passed by then.
    pub timeout: TimeSpan,
    /// What is checked, in order.
    #[serde(default)]
    pub checks: Vec<Check>,
}

/// One thing that is checked on a started image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// A page is served.
    Http(HttpCheck),
    /// A port accepts a connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// A command inside the image ends with status 0.
    Command(String),
    /// A unit is active.
    SystemdUnit(String),
    /// A file exists, and has a text in it when one is given.
    File {
        /// Its path in the image.
        path: String,
        /// What must be in it.
        #[serde(default)]
        contains: Option<String>,
    },
}

/// A page that must be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// The port; a gate without one asks the port that the fleet serves.
    #[serde(default)]
    pub port: Option<u16>,
    /// Path and query.
    pub path: String,
    /// The status that is good.
    pub status: u16,
    /// A text that must be in the body.
    #[serde(default)]
    pub contains: Option<String>,
    /// How long one request may take.
    pub timeout: TimeSpan,
}

/// The name and channel under which an image is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The lineage that gets a new version.
    pub image: ImageName,
    /// The channel that then points to it.
    pub channel: ChannelName,
    /// Where copies are made; empty means where it was baked.
    #[serde(default)]
    pub regions: Vec<RegionName>,
}

/// One fleet that gets the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The fleet.
    pub fleet: FleetName,
    /// How many instances at a time, and how long to wait.
    pub strategy: Strategy,
    /// What must be good after each batch.
    #[serde(default)]
    pub gates: Vec<Gate>,
    /// What happens when it is not.
    pub on_failure: OnFailure,
}

/// How many instances at a time, and how long to wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategy {
    /// The first batch.
    pub canary: Amount,
    /// Each batch after it.
    pub batch: Amount,
    /// How many of the fleet may be out of service at once, whoever took them out.
    pub max_unavailable: Amount,
    /// How many extra instances may exist meanwhile.
    pub max_surge: Amount,
    /// How long a batch must stay healthy before the next.
    pub soak: TimeSpan,
    /// How long a replaced instance may take to become healthy.
    pub healthy_deadline: TimeSpan,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            canary: Amount::Count(1),
            batch: Amount::Percent(25),
            max_unavailable: Amount::Count(1),
            max_surge: Amount::Count(0),
            soak: TimeSpan::from_secs(30),
            healthy_deadline: HEALTHY_DEADLINE,
        }
    }
}

/// A condition that must be good before the next batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Every replaced instance serves this page.
    Http(HttpCheck),
    /// A metric stays within limits.
    Prometheus(PrometheusGate),
}

/// A metric that must stay within limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrometheusGate {
    /// The server's address; else the farm's.
    #[serde(default)]
    pub url: Option<String>,
    /// PromQL with one value.
    pub query: String,
    /// The smallest good value, a decimal number as written.
    #[serde(default)]
    pub min: Option<Decimal>,
    /// The largest good value, a decimal number as written.
    #[serde(default)]
    pub max: Option<Decimal>,
    /// How long it must be good.
    #[serde(default)]
    pub hold: TimeSpan,
}

/// What happens when a rollout's gate shuts or its instances do not get healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Everything replaced goes back to the version before.
    #[default]
    Rollback,
    /// The rollout stops where it is and waits for a person.
    Pause,
}

impl OnFailure {
    /// As it stands in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Pause => "pause",
        }
    }
}

/// A decimal number, kept as it was written: a float has no total equality and
/// would not print the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Decimal(String);

impl Decimal {
    /// The nearest float.
    pub fn value(&self) -> f64 {
        self.0
            .parse()
            .expect("a Decimal is checked when it is made")
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text is not a decimal number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number: {0:?}")]
pub struct NotDecimal(pub String);

impl FromStr for Decimal {
    type Err = NotDecimal;

    fn from_str(text: &str) -> Result<Self, NotDecimal> {
        match text.parse::<f64>() {
            Ok(value)
                if value.is_finite()
                    && text
                        .starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(NotDecimal(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Decimal {
    type Error = NotDecimal;
    fn try_from(text: String) -> Result<Self, NotDecimal> {
        text.parse()
    }
}

impl From<Decimal> for String {
    fn from(decimal: Decimal) -> String {
        decimal.0
    }
}
