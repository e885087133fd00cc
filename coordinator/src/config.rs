//! The configuration of a member: `oast coordinator --config FILE`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use oast_daemon::config::{ByteSize, Problems, TimeSpan, Validate};
use oast_daemon::serve::Limits;
use oast_daemon::telemetry::Log;
use oast_daemon::tls::LEAF_LIFE;
use oast_model::ledger::VERSION;
use oast_model::resource::Retention;
use oast_model::resource::check::{DAYS_KEPT_MAX, RUNS_KEPT_MAX};
use oast_model::retention::{DAYS_KEPT, RUNS_KEPT};
use oast_model::schedule::RESERVE;
use serde::Deserialize;

use crate::consensus::change::is_address;

/// Smallest reserve: opening log and state writes about a megabyte.
const DISK_RESERVE_MIN: u64 = 4 << 20;

/// The configuration file of a member, in TOML.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Name of the farm; the same on every member. Members of another farm are refused.
    pub farm: String,
    /// Our id in the group, from 1. Never used again for another data directory. Not together
    /// with `join`: then the group gives the id.
    pub member: u64,
    /// Every member of the farm's first configuration by id, as `host:port`; the same list on
    /// each of them, this member included. With `tls` these are the farm's ports, `tls.listen`. Of
    /// use only until the farm has begun: from then on the group itself keeps the list.
    pub peers: BTreeMap<String, String>,
    /// Members of a running farm as `host:port`; one that answers is enough. Instead of `member`
    /// and `peers`, for a member that was added with `oast operator raft add-learner`.
    pub join: Vec<String>,
    /// Where the other members reach this one, `host:port`. Default: our entry in `peers`, else
    /// `tls.listen`, else `listen`.
    pub advertise: Option<String>,
    /// Address of the port for people: API, pages, Git, webhooks. Without `tls` it is the port for
    /// workers and peers too, and must be a loopback address.
    pub listen: SocketAddr,
    /// Transport security. Default none: everything on one machine.
    pub tls: Option<Tls>,
    /// Folder of this member alone: log, state, snapshots.
    pub data_dir: PathBuf,
    /// Folder of the artifact store, shared with the workers and the other members.
    pub store_dir: PathBuf,
    /// Folder of the Git repositories that the farm itself serves, shared by the members.
    /// Default: `git` in `store_dir`.
    pub git_dir: Option<PathBuf>,
    /// Folder of secrets' values, shared by the members. Default: `secrets` in `store_dir`.
    pub secrets_dir: Option<PathBuf>,
    /// File with the key that signs where images came from: ed25519, PKCS #8 PEM, the same on every member. Default:
    /// `farm-signing.pem` in `secrets_dir`, made by the first member.
    pub signing_key_file: Option<PathBuf>,
    /// File with the secret that members show each other and that allows `InitFarm`.
    pub peer_token_file: PathBuf,
    /// Silence after which a worker's lease is taken away. Default 15s; 1s to 10m.
    pub lease_ttl: TimeSpan,
    /// Time between a worker's heartbeats. Default 2s; at most a third of `lease_ttl`.
    pub heartbeat: TimeSpan,
    /// Slots kept free for rollbacks and repairs, of those that can carry out batches. Default 1;
    /// never more than a quarter of them, so a farm of three slots keeps none. The same on every
    /// member.
    pub reserve_slots: u32,
    /// Finished runs of a team that are kept, unless the team's `retention` says otherwise.
    /// Default 10000; 1 to 10000000.
    pub retention_runs: u32,
    /// Days for which they are kept. Default 90; 1 to 3650.
    pub retention_days: u32,
    /// Raft's unit of time. Default 50ms; 10ms to 1s. The same on every member.
    pub tick: TimeSpan,
    /// Room that is kept free on the file system of `data_dir`. With less the member takes no writes,
    /// below a quarter of it it follows no further; a quarter is set aside as a file so that the
    /// member can start with a full disk. Default 256MiB; at least 4MiB.
    pub disk_reserve: ByteSize,
    /// Highest cluster version that this member says it supports, for a rolling upgrade that is
    /// to be finished later. Default: what the binary supports; lower values behave like an older one.
    pub cluster_version_cap: Option<u32>,
    /// Logging.
    pub log: Log,
    /// Bounds of the port.
    pub limits: Limits,
}

/// Transport security of a member.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Folder with ca.pem, identity.pem and issuer.pem, as `oast operator pki issue member` makes
    /// them; with people.pem the port for people shows that certificate instead.
    pub dir: PathBuf,
    /// Address of the farm's port, for members and workers, who show certificates.
    pub listen: SocketAddr,
    /// Whether people's port speaks TLS. Default `tls`; `plain` on loopback only.
    #[serde(default)]
    pub people: People,
    /// Life of the certificates that this member signs, its own and workers'. They are renewed at
    /// two thirds of it. Default 30d; 5s to 365d.
    #[serde(default = "leaf_life")]
    pub life: TimeSpan,
}

/// How people's port is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum People {
    /// With `https://`.
    #[default]
    Tls,
    /// With `http://`, from this machine only.
    Plain,
}

fn leaf_life() -> TimeSpan {
    TimeSpan::from_secs(LEAF_LIFE.as_secs())
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        CoordinatorConfig {
            farm: String::new(),
            member: 0,
            peers: BTreeMap::new(),
            join: Vec::new(),
            advertise: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 7443)),
            tls: None,
            data_dir: PathBuf::from("/var/lib/oast/coordinator"),
            store_dir: PathBuf::from("/var/lib/oast/store"),
            git_dir: None,
            secrets_dir: None,
            signing_key_file: None,
            peer_token_file: PathBuf::from("/etc/oast/peer.token"),
            lease_ttl: TimeSpan::from_secs(15),
            heartbeat: TimeSpan::from_secs(2),
            reserve_slots: RESERVE,
            retention_runs: RUNS_KEPT,
            retention_days: DAYS_KEPT,
            tick: TimeSpan::from_millis(50),
            disk_reserve: ByteSize::from_bytes(256 << 20),
            cluster_version_cap: None,
            log: Log::default(),
            limits: Limits::default(),
        }
    }
}

impl CoordinatorConfig {
    /// Peers by number. Only of a valid configuration.
    pub fn peers_by_id(&self) -> BTreeMap<u64, String> {
        self.peers
            .iter()
            .filter_map(|(id, address)| Some((id.parse().ok()?, address.clone())))
            .collect()
    }

    /// How long finished work is kept.
    pub fn retention(&self) -> Retention {
        Retention {
            runs: self.retention_runs,
            days: self.retention_days,
        }
    }

    /// The highest cluster version that this member supports.
    pub fn supported_version(&self) -> u32 {
        self.cluster_version_cap.unwrap_or(VERSION).min(VERSION)
    }

    /// Where hosted repositories are.
    pub fn git_dir(&self) -> PathBuf {
        self.git_dir
            .clone()
            .unwrap_or_else(|| self.store_dir.join("git"))
    }

    /// Where secrets' values are.
    pub fn secrets_dir(&self) -> PathBuf {
        self.secrets_dir
            .clone()
            .unwrap_or_else(|| self.store_dir.join("secrets"))
    }
}

impl Validate for CoordinatorConfig {
    fn validate(&self, problems: &mut Problems) {
        let named = oast_model::names::check(&self.farm);
        problems.require(
            named.is_ok(),
            "farm",
            "must be a name such as `acme` (a-z, 0-9, -)",
        );
        if self.join.is_empty() {
            problems.require(
                self.member > 0,
                "member",
                "must be at least 1 (or use `join`)",
            );
            problems.require(
                self.peers.contains_key(&self.member.to_string()),
                "peers",
                format!("must contain this member, {}", self.member),
            );
        } else {
            problems.require(
                self.member == 0 && self.peers.is_empty(),
                "join",
                "cannot be used together with `member` and `peers`: the group gives the id",
            );
        }
        problems.require(
            self.disk_reserve.bytes() >= DISK_RESERVE_MIN,
            "disk_reserve",
            "must be at least 4MiB",
        );
        problems.require(
            self.cluster_version_cap != Some(0),
            "cluster_version_cap",
            "must be at least 1",
        );
        for (id, address) in &self.peers {
            let number = id.parse::<u64>().is_ok_and(|id| id > 0);
            problems.require(
                number,
                "peers",
                format!("`{id}` is no member id: use 1, 2, 3 ..."),
            );
            problems.require(
                is_address(address),
                "peers",
                format!("`{address}` is no host:port"),
            );
        }
        for (field, addresses) in [
            ("join", self.join.as_slice()),
            ("advertise", self.advertise.as_slice()),
        ] {
            for address in addresses {
                let problem = format!("`{address}` is no host:port");
                problems.require(is_address(address), field, problem);
            }
        }
        let ttl = self.lease_ttl.as_millis();
        problems.require(
            (1_000..=600_000).contains(&ttl),
            "lease_ttl",
            "must be between 1s and 10m",
        );
        let beat = self.heartbeat.as_millis();
        problems.require(
            beat > 0 && beat * 3 <= ttl,
            "heartbeat",
            format!("must be at most a third of lease_ttl ({})", self.lease_ttl),
        );
        problems.require(
            (1..=RUNS_KEPT_MAX).contains(&self.retention_runs),
            "retention_runs",
            format!("must be between 1 and {RUNS_KEPT_MAX}"),
        );
        problems.require(
            (1..=DAYS_KEPT_MAX).contains(&self.retention_days),
            "retention_days",
            format!("must be between 1 and {DAYS_KEPT_MAX}"),
        );
        let tick = self.tick.as_millis();
        problems.require(
            (10..=1_000).contains(&tick),
            "tick",
            "must be between 10ms and 1s",
        );
        if let Some(tls) = &self.tls {
            problems.require(
                tls.listen.port() == 0 || tls.listen != self.listen,
                "tls.listen",
                "must be another address than listen: workers show certificates, people tokens",
            );
            problems.require(
                (5_000..=365 * 86_400_000).contains(&tls.life.as_millis()),
                "tls.life",
                "must be between 5s and 365d",
            );
        }
        self.limits.validate(problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oast_daemon::config::parse;

    #[test]
    fn a_member_that_joins_needs_only_one_other_and_no_id() {
        let text = "farm = 'acme'\njoin = ['10.0.0.1:7443']\nadvertise = '10.0.0.4:7443'\n";
        let config = parse::<CoordinatorConfig>(text, "c.toml", &[], &|_| None).expect("good");
        assert_eq!(config.join, ["10.0.0.1:7443"]);
        let both = format!("{text}member = 4\n");
        let error = parse::<CoordinatorConfig>(&both, "c.toml", &[], &|_| None)
            .expect_err("two ways to an id")
            .to_string();
        assert!(error.contains("join:"), "{error}");
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let text = "farm = 'A'\nlease_ttl = '2s'\nheartbeat = '1s'\n[peers]\nx = 'here'\n";
        let error = parse::<CoordinatorConfig>(text, "c.toml", &[], &|_| None)
            .expect_err("nothing of it is right")
            .to_string();
        for part in [
            "farm:",
            "member:",
            "`x` is no member id",
            "`here` is no host:port",
            "heartbeat:",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
