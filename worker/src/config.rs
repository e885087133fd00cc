//! What `oast worker` is told: who it is, where its folders are, what it may do.
//!
//! Read once by [`oast_daemon::config`]; every field says its meaning, unit, default and limits.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::config::{ByteSize, EnvKey, EnvKind, Problems, TimeSpan, Validate};
use oast_daemon::serve::Limits;
use oast_daemon::telemetry::Log;
use oast_model::names;
use serde::Deserialize;

/// Every kind of task there is.
pub const CAPABILITIES: [&str; 5] = ["source", "bake", "test", "publish", "batch"];
/// More tasks side by side than this only wait for each other.
pub const SLOTS_MAX: u32 = 256;
/// A cache that does not hold one image makes every bake begin at its base.
const LAYER_CACHE_MIN: u64 = 1 << 30;

/// Environment variables of `oast worker`.
pub const ENV: [EnvKey; 6] = [
    EnvKey {
        var: "OAST_LOG",
        field: "log.filter",
        kind: EnvKind::Text,
    },
    EnvKey {
        var: "OAST_WORKER_NAME",
        field: "name",
        kind: EnvKind::Text,
    },
    EnvKey {
        var: "OAST_WORKER_DATA_DIR",
        field: "data_dir",
        kind: EnvKind::Text,
    },
    EnvKey {
        var: "OAST_WORKER_STORE_DIR",
        field: "store_dir",
        kind: EnvKind::Text,
    },
    EnvKey {
        var: "OAST_WORKER_COORDINATORS",
        field: "coordinators",
        kind: EnvKind::Toml,
    },
    EnvKey {
        var: "OAST_WORKER_TLS_DIR",
        field: "tls.dir",
        kind: EnvKind::Text,
    },
];

/// The configuration of a worker.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Unique in the farm; follows the rule of names. No default.
    pub name: String,
    /// Caches, locks and work in progress. Owned by one worker at a time. No default.
    pub data_dir: Utf8PathBuf,
    /// The artifact store, shared with the members. No default.
    pub store_dir: Utf8PathBuf,
    /// Addresses of members, at least one; the worker finds the leader from any of them.
    pub coordinators: Vec<SocketAddr>,
    /// A file with the worker's access token, for a farm without TLS. No default.
    pub token_file: Utf8PathBuf,
    /// The worker's certificate, for a farm with TLS: then no token is needed.
    pub tls: Option<Tls>,
    /// The region it works in; none for a farm in one place.
    pub region: Option<String>,
    /// Tasks side by side; batches, which mostly wait, are not counted. Default 2, 1 to 256.
    pub slots: u32,
    /// Kinds of task it takes. Default: all.
    pub capabilities: Vec<String>,
    /// Where `/metrics` and `/healthz` are answered; loopback only. Default 127.0.0.1:0 (the
    /// kernel chooses).
    pub listen: SocketAddr,
    /// The local cloud, where there is one.
    pub local_cloud: Option<LocalCloud>,
    /// How images are made.
    pub bake: BakeConfig,
    /// How sources are fetched.
    pub source: SourceConfig,
    /// The Prometheus server that gates without an address of their own ask. Default none.
    pub prometheus: Option<String>,
    /// Time kept between the last change of a batch and the end of its lease. Default 1s; at
    /// most half of the farm's lease time is used.
    pub lease_margin: TimeSpan,
    /// The program that becomes the helper of sandboxes: this one. Default /proc/self/exe.
    pub helper: Utf8PathBuf,
    /// Bounds of the port.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// The worker's certificate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Folder with ca.pem and identity.pem, which `oast worker --join` makes. Owned by this worker,
    /// which renews the certificate in it.
    pub dir: Utf8PathBuf,
}

/// How the local cloud is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCloud {
    /// Its control API.
    pub address: SocketAddr,
    /// A file with the token for it.
    pub token_file: Utf8PathBuf,
}

/// How images are made.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BakeConfig {
    /// Archives that carry suites, in the order they are asked.
    pub mirrors: Vec<Mirror>,
    /// The machine's apt configuration, asked last. Default /etc/apt.
    pub apt_root: Utf8PathBuf,
    /// The HTTP proxy for package downloads; else what the environment says.
    pub http_proxy: Option<String>,
    /// Hosts that steps may reach through the engine's proxy besides public ones, such as a
    /// mirror in a private network. Farm and link-local addresses are refused all the same.
    pub proxy_allow: Vec<String>,
    /// Addresses that steps may not reach besides those always refused.
    pub proxy_deny: Vec<SocketAddr>,
    /// Whether `network: host` is allowed in steps. Default false.
    pub allow_host_network: bool,
    /// Downloaded packages kept at most. Default 4GiB.
    pub package_cache: ByteSize,
    /// Unpacked layers and disks kept at most, together; those unused for longest go first, and what
    /// a task uses stays. One bake's own must fit beside it for a while. Default 20GiB, at least 1GiB.
    pub layer_cache: ByteSize,
    /// Folders that `run` steps keep from one bake to the next, all together. Default 4GiB.
    pub step_caches: ByteSize,
    /// What one step may print at most before the rest is dropped is the log's own limit; this is
    /// how much of its last output a failure shows, in lines. Default 20, at most 200.
    pub failure_lines: u32,
}

impl Default for BakeConfig {
    fn default() -> Self {
        BakeConfig {
            mirrors: Vec::new(),
            apt_root: Utf8PathBuf::from("/etc/apt"),
            http_proxy: None,
            proxy_allow: Vec::new(),
            proxy_deny: Vec::new(),
            allow_host_network: false,
            package_cache: ByteSize::from_bytes(4 << 30),
            layer_cache: ByteSize::from_bytes(20 << 30),
            step_caches: ByteSize::from_bytes(4 << 30),
            failure_lines: 20,
        }
    }
}

/// An archive of packages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The folder that holds `dists/`.
    pub url: String,
    /// Suites that it carries; empty means any that it turns out to have.
    #[serde(default)]
    pub suites: Vec<String>,
    /// Components to take; empty means the distribution's usual ones.
    #[serde(default)]
    pub components: Vec<String>,
    /// Files with the keys that sign it.
    pub keyrings: Vec<Utf8PathBuf>,
    /// Whether an expired release file is an error. Default true.
    #[serde(default = "yes")]
    pub check_valid_until: bool,
}

fn yes() -> bool {
    true
}

/// How sources are fetched.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceConfig {
    /// The git program. Default `git`, found in PATH.
    pub git: Utf8PathBuf,
    /// Whether repositories may be folders of this machine (`file://`, paths). Default false.
    pub allow_file: bool,
    /// Time one fetch may take. Default 10m.
    pub timeout: TimeSpan,
    /// Largest source tree. Default 2GiB.
    pub tree_max: ByteSize,
    /// A file of policies: steps that are put into every pipeline (`oast schema policy`). Read for
    /// every run, so a change needs no restart. Give all workers the same. Default none.
    pub policy_file: Option<Utf8PathBuf>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig {
            git: Utf8PathBuf::from("git"),
            allow_file: false,
            timeout: TimeSpan::from_secs(600),
            tree_max: ByteSize::from_bytes(2 << 30),
            policy_file: None,
        }
    }
}

impl Default for WorkerConfig {
    fn default() -> Self {
        WorkerConfig {
            name: String::new(),
            data_dir: Utf8PathBuf::new(),
            store_dir: Utf8PathBuf::new(),
            coordinators: Vec::new(),
            token_file: Utf8PathBuf::new(),
            tls: None,
            region: None,
            slots: 2,
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            local_cloud: None,
            bake: BakeConfig::default(),
            source: SourceConfig::default(),
            prometheus: None,
            lease_margin: TimeSpan::from_secs(1),
            helper: Utf8PathBuf::from("/proc/self/exe"),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl WorkerConfig {
    /// Addresses that no step may reach: the farm's own.
    pub fn farm_addresses(&self) -> Vec<SocketAddr> {
        let cloud = self.local_cloud.iter().map(|cloud| cloud.address);
        self.coordinators
            .iter()
            .copied()
            .chain(cloud)
            .chain(self.bake.proxy_deny.iter().copied())
            .collect()
    }

    /// A folder of the data directory.
    pub fn folder(&self, name: &str) -> Utf8PathBuf {
        self.data_dir.join(name)
    }
}

impl Validate for WorkerConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(why) = names::check(&self.name) {
            problems.require(false, "name", why);
        }
        for (field, path) in [("data_dir", &self.data_dir), ("store_dir", &self.store_dir)] {
            problems.require(path.is_absolute(), field, "must be an absolute path");
        }
        let token = !self.token_file.as_str().is_empty();
        problems.require(
            token || self.tls.is_some(),
            "token_file",
            "must name a file, unless the worker has a certificate: [tls] dir = ...",
        );
        if let Some(tls) = &self.tls {
            problems.require(tls.dir.is_absolute(), "tls.dir", "must be an absolute path");
        }
        let some = !self.coordinators.is_empty();
        problems.require(some, "coordinators", "must have at least one address");
        if let Some(region) = &self.region
            && let Err(why) = names::check(region)
        {
            problems.require(false, "region", why);
        }
        problems.require(
            (1..=SLOTS_MAX).contains(&self.slots),
            "slots",
            format!("must be 1 to {SLOTS_MAX}"),
        );
        for capability in &self.capabilities {
            problems.require(
                CAPABILITIES.contains(&capability.as_str()),
                "capabilities",
                format!("{capability:?} is none of {}", CAPABILITIES.join(", ")),
            );
        }
        problems.require(
            self.bake.failure_lines <= 200,
            "bake.failure_lines",
            "must be 200 or less",
        );
        problems.require(
            self.bake.layer_cache.bytes() >= LAYER_CACHE_MIN,
            "bake.layer_cache",
            "must be 1GiB or more: less does not hold one image",
        );
        for mirror in &self.bake.mirrors {
            problems.require(
                !mirror.keyrings.is_empty(),
                "bake.mirrors",
                format!(
                    "{} needs keyrings, or nothing it says can be believed",
                    mirror.url
                ),
            );
        }
        self.limits.validate(problems);
    }
}

/// The values of secrets by name.
pub type Secrets = BTreeMap<String, String>;

/// Reads a token file: the first line without the spaces around it.
///
/// # Errors
/// With the file's name, when it cannot be read or is empty.
pub fn read_token(file: &Utf8Path) -> Result<oast_daemon::secret::Secret<String>, TokenError> {
    let text = std::fs::read_to_string(file).map_err(|err| TokenError::Read {
        file: file.to_owned(),
        err,
    })?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(oast_daemon::secret::Secret::new(token.to_owned())),
        _ => Err(TokenError::Empty {
            file: file.to_owned(),
        }),
    }
}

/// A token file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {file}")]
    Read {
        /// Which.
        file: Utf8PathBuf,
        #[source]
        err: std::io::Error,
    },
    /// It has nothing in it.
    #[error("the token file {file} is empty; write an access token into it")]
    Empty {
        /// Which.
        file: Utf8PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "w1"
data_dir = "/var/lib/oast/w1"
store_dir = "/var/lib/oast/store"
coordinators = ["127.0.0.1:7443"]
token_file = "/etc/oast/w1.token"
"#;

    fn parse(text: &str) -> Result<WorkerConfig, oast_daemon::config::ConfigError> {
        oast_daemon::config::parse(text, "worker.toml", &ENV, &|_| None)
    }

    #[test]
    fn five_lines_are_enough() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.slots, 2);
        assert_eq!(config.capabilities, CAPABILITIES);
        assert!(!config.source.allow_file);
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let error = parse("slots = 0\ncapabilities = [\"bakes\"]").unwrap_err();
        let text = error.to_string();
        for field in ["name:", "data_dir:", "coordinators:", "slots:", "bakes"] {
            assert!(text.contains(field), "{field} is not in {text}");
        }
    }
}
