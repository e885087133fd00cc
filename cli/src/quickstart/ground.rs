//! The ground a quickstart farm stands on: folders, tokens, certificates, configuration files, ports.
//!
//! Members and workers speak mutual TLS as on a real farm; people's ports stay `http://` on
//! loopback, so that browsers and Git need to be told nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oast_artifacts::ArtifactStore;
use oast_daemon::clock::{Clock, SystemClock};
use oast_daemon::isolate::{ChildSpec, Farm};
use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_daemon::tls::{Authority, Bundle, Files, Lives, ROOT_LIFE, folder};
use oast_model::digest::Digest;

/// Members of the group.
pub const MEMBERS: u16 = 3;
/// Workers.
pub const WORKERS: u16 = 2;
/// A killed worker's leases are free again after this.
pub const LEASE_TTL: &str = "3s";
/// Time between two heartbeats of a worker.
const HEARTBEAT: &str = "500ms";
/// Distance of the fleet's own port from the first member's, unless it is given.
const FLEET_PORT_OFFSET: u16 = 637;
/// The farm's name.
const FARM: &str = "quickstart";
/// The farm's authority with its key: here everything is on one machine.
const AUTHORITY: &str = "tls/authority.pem";
/// Kept from the environment for the daemons.
const ENV_KEPT: [&str; 6] = [
    "PATH",
    "HOME",
    "LANG",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Ground {
    root: PathBuf,
    exe: PathBuf,
    base_port: u16,
}

/// A port that somebody else uses, found before anything was started.
#[derive(Debug, thiserror::Error)]
#[error(
    "port {port} on 127.0.0.1 is in use: stop what holds it, or choose others with --port-base"
)]
pub struct PortTaken {
    port: u16,
}

impl Ground {
    /// Folders under `root`; ports from `base_port` on.
    pub fn new(root: PathBuf, exe: PathBuf, base_port: u16) -> Ground {
        Ground {
            root,
            exe,
            base_port,
        }
    }

    /// The folder with everything.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names the farm's control groups: two quickstarts on one machine must not meet.
    pub fn farm(&self) -> String {
        let digest = Digest::of(self.root.display().to_string().as_bytes());
        format!("oast-quickstart-{}", digest.short())
    }

    /// This program's own file.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The user's repository.
    pub fn repository(&self) -> PathBuf {
        self.root.join("repository")
    }

    /// A process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Addresses of the members.
    pub fn members(&self) -> Vec<String> {
        (1..=MEMBERS)
            .map(|id| self.member(id).to_string())
            .collect()
    }

    fn member(&self, id: u16) -> SocketAddr {
        self.loopback(id - 1)
    }

    fn cloud(&self) -> SocketAddr {
        self.loopback(MEMBERS)
    }

    fn worker_port(&self, number: u16) -> SocketAddr {
        self.loopback(MEMBERS + number)
    }

    /// Where a member answers other members and workers.
    fn farm_port(&self, id: u16) -> SocketAddr {
        self.loopback(MEMBERS + WORKERS + id)
    }

    /// The address under which the fleet is served.
    pub fn fleet(&self) -> SocketAddr {
        self.loopback(FLEET_PORT_OFFSET)
    }

    fn loopback(&self, offset: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base_port.saturating_add(offset)))
    }

    /// Every address must be free now.
    pub fn check_ports(&self) -> Result<(), PortTaken> {
        let mut addresses: Vec<SocketAddr> = (1..=MEMBERS).map(|id| self.member(id)).collect();
        addresses.extend((1..=MEMBERS).map(|id| self.farm_port(id)));
        addresses.push(self.cloud());
        addresses.extend((1..=WORKERS).map(|number| self.worker_port(number)));
        addresses.push(self.fleet());
        for address in addresses {
            if TcpListener::bind(address).is_err() {
                return Err(PortTaken {
                    port: address.port(),
                });
            }
        }
        Ok(())
    }

    /// Makes folders, tokens, certificates and configuration files. Tokens and the authority that
    /// are there already stay.
    pub fn prepare(&self, counter: SocketAddr) -> anyhow::Result<()> {
        for folder in ["logs", "config", "store", "tokens"] {
            let path = self.root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
        }
        // Before the processes, which begin at the same time and not all of which may make it.
        let store = camino::Utf8PathBuf::try_from(self.root.join("store"))?;
        ArtifactStore::open(&store).context("make the artifact store")?;
        for name in ["admin", "you", "worker", "cloud", "peer"] {
            self.make_token(name)?;
        }
        self.make_certificates()
            .context("make the farm's certificates")?;
        for id in 1..=MEMBERS {
            self.write_config(&format!("member-{id}"), &self.member_config(id))?;
        }
        for number in 1..=WORKERS {
            self.write_config(
                &format!("worker-{number}"),
                &self.worker_config(number, counter),
            )?;
        }
        self.write_config("local-cloud", &self.cloud_config())
    }

    /// Fresh ones at every start: an old farm's may be over, and making them costs nothing.
    fn make_certificates(&self) -> anyhow::Result<()> {
        let lives = Lives::usual(SystemClock.wall());
        let path = self.root.join(AUTHORITY);
        folder(&self.root.join("tls"))?;
        let kept = if path.exists() {
            Some(Authority::from_bundle(&Bundle::read(&path)?)?)
        } else {
            None
        };
        let good = |kept: &Authority| kept.certificate().not_after() > lives.now + lives.issuer;
        let authority = match kept.filter(good) {
            Some(kept) => kept,
            None => {
                let made = Authority::found(FARM, lives.now, ROOT_LIFE)?;
                made.bundle().replace(&path)?;
                made
            }
        };
        let hosts = [Ipv4Addr::LOCALHOST.to_string()];
        for id in 1..=MEMBERS {
            let name = format!("member-{id}");
            let files = Files::member(&authority, &name, &hosts, lives)?;
            files.replace(&self.tls_path(&name))?;
        }
        for number in 1..=WORKERS {
            let name = format!("worker-{number}");
            let files = Files::worker(&authority, &name, lives)?;
            files.replace(&self.tls_path(&name))?;
        }
        Ok(())
    }

    fn tls_path(&self, name: &str) -> PathBuf {
        self.root.join("tls").join(name)
    }

    fn token_path(&self, name: &str) -> PathBuf {
        self.root.join("tokens").join(name)
    }

    fn make_token(&self, name: &str) -> anyhow::Result<()> {
        let path = self.token_path(name);
        let made = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            Ok(mut file) => file
                .write_all(random::token().expose().as_bytes())
                .with_context(|| format!("write {}", path.display())),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(err) => Err(err).with_context(|| format!("write {}", path.display())),
        }
    }

    /// A token that was made by [`Ground::prepare`].
    pub fn token(&self, name: &str) -> anyhow::Result<Secret<String>> {
        let path = self.token_path(name);
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if text.trim().is_empty() {
            bail!("{} is empty: start again with --clean", path.display());
        }
        Ok(Secret::new(text.trim().to_owned()))
    }

    /// Keeps a token that the farm made.
    pub fn keep_token(&self, name: &str, token: &str) -> anyhow::Result<()> {
        let path = self.token_path(name);
        fs::write(&path, token).with_context(|| format!("write {}", path.display()))
    }

    fn config_path(&self, name: &str) -> PathBuf {
        self.root.join("config").join(format!("{name}.toml"))
    }

    fn write_config(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.config_path(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn path(&self, parts: &str) -> String {
        toml::Value::from(self.root.join(parts).display().to_string()).to_string()
    }

    fn member_config(&self, id: u16) -> String {
        let peers: String = (1..=MEMBERS).fold(String::new(), |mut text, peer| {
            use std::fmt::Write as _;
            // Writing to a String does not fail.
            let _ = writeln!(text, "{peer} = \"{}\"", self.farm_port(peer));
            text
        });
        format!(
            "farm = \"{FARM}\"\nmember = {id}\nlisten = \"{}\"\ndata_dir = {}\nstore_dir = {}\n\
             peer_token_file = {}\nlease_ttl = \"{LEASE_TTL}\"\nheartbeat = \"{HEARTBEAT}\"\n\n[peers]\n{peers}\n\
             [tls]\ndir = {}\nlisten = \"{}\"\npeople = \"plain\"\n",
            self.member(id),
            self.path(&format!("members/{id}")),
            self.path("store"),
            self.path("tokens/peer"),
            self.path(&format!("tls/member-{id}")),
            self.farm_port(id),
        )
    }

    fn worker_config(&self, number: u16, counter: SocketAddr) -> String {
        let quoted = |addresses: Vec<SocketAddr>| {
            let texts: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
            texts.join(", ")
        };
        let coordinators = quoted((1..=MEMBERS).map(|id| self.farm_port(id)).collect());
        let denied = quoted((1..=MEMBERS).map(|id| self.member(id)).collect());
        format!(
            "name = \"worker-{number}\"\ndata_dir = {}\nstore_dir = {}\ncoordinators = [{coordinators}]\n\
             listen = \"{}\"\nslots = 2\n\n\
             [local_cloud]\naddress = \"{}\"\ntoken_file = {}\n\n\
             [bake]\nproxy_allow = [\"{counter}\"]\nproxy_deny = [{denied}]\n\n[tls]\ndir = {}\n",
            self.path(&format!("workers/{number}")),
            self.path("store"),
            self.worker_port(number),
            self.cloud(),
            self.path("tokens/cloud"),
            self.path(&format!("tls/worker-{number}")),
        )
    }

    fn cloud_config(&self) -> String {
        format!(
            "farm = \"{}\"\nlisten = \"{}\"\ndata_dir = {}\nstore_dir = {}\ntoken_file = {}\n",
            self.farm(),
            self.cloud(),
            self.path("cloud"),
            self.path("store"),
            self.path("tokens/cloud"),
        )
    }

    /// Names of all processes in the order of their start.
    pub fn processes() -> Vec<String> {
        let members = (1..=MEMBERS).map(|id| format!("member-{id}"));
        let workers = (1..=WORKERS).map(|number| format!("worker-{number}"));
        members
            .chain(["local-cloud".to_owned()])
            .chain(workers)
            .collect()
    }

    /// Starts every process of the farm.
    pub fn start(&self, farm: &Farm) -> anyhow::Result<()> {
        for name in Ground::processes() {
            farm.spawn(self.child(&name))?;
        }
        Ok(())
    }

    fn child(&self, name: &str) -> ChildSpec {
        let verb = if name.starts_with("member") {
            "coordinator"
        } else if name.starts_with("worker") {
            "worker"
        } else {
            "local-cloud"
        };
        let env: BTreeMap<String, String> = ENV_KEPT
            .iter()
            .chain(&["OAST_LOG", "TMPDIR"])
            .filter_map(|name| Some(((*name).to_owned(), oast_daemon::config::process_env(name)?)))
            .collect();
        ChildSpec {
            name: name.to_owned(),
            argv: vec![
                self.exe.display().to_string(),
                verb.to_owned(),
                "--config".to_owned(),
                self.config_path(name).display().to_string(),
            ],
            env,
            log: self.log(name),
        }
    }
}

/// The last lines of a log, for an error message.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
