//! What a farm consists of, and its start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use oast_daemon::isolate::{Farm as Init, FarmSpec};
use oast_daemon::random;
use oast_model::digest::Digest;

use super::net::Net;
use super::process::listen;
use super::{FAR_PORT, FAULTS, Farm};
use crate::delay::Distance;
use crate::faults::Disks;
use crate::ports::Ports;

/// What a farm consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) oast: PathBuf,
    pub(super) members: u16,
    pub(super) spares: u16,
    pub(super) workers: Vec<Vec<&'static str>>,
    pub(super) cloud: bool,
    pub(super) worker_extra: String,
    pub(super) member_extra: String,
    pub(super) cache: Option<PathBuf>,
    pub(super) tls: Option<String>,
    pub(super) disks: Disks,
    pub(super) networks: bool,
    pub(super) apart: Option<Duration>,
}

impl Plan {
    /// Three members and nothing else.
    #[must_use]
    pub fn new(oast: &Path) -> Plan {
        Plan {
            oast: oast.to_owned(),
            members: 3,
            spares: 0,
            workers: Vec::new(),
            cloud: false,
            worker_extra: String::new(),
            member_extra: String::new(),
            cache: None,
            tls: None,
            disks: Disks::Healthy,
            networks: false,
            apart: None,
        }
    }

    /// Certificates that live this long (`30d`, `8s`), between members and workers; the workers
    /// join with one-time tokens. People's ports stay plain.
    #[must_use]
    pub fn tls(mut self, life: &str) -> Plan {
        self.tls = Some(life.to_owned());
        self
    }

    /// That many members.
    #[must_use]
    pub fn members(mut self, members: u16) -> Plan {
        self.members = members;
        self
    }

    /// That many members more that are not started: they are to join later.
    #[must_use]
    pub fn spares(mut self, spares: u16) -> Plan {
        self.spares = spares;
        self
    }

    /// One more worker, for these kinds of task.
    #[must_use]
    pub fn worker(mut self, capabilities: &[&'static str]) -> Plan {
        self.workers.push(capabilities.to_vec());
        self
    }

    /// The local cloud too.
    #[must_use]
    pub fn cloud(mut self) -> Plan {
        self.cloud = true;
        self
    }

    /// Lines at the end of each worker's configuration.
    #[must_use]
    pub fn worker_extra(mut self, toml: &str) -> Plan {
        self.worker_extra = toml.to_owned();
        self
    }

    /// Lines for each member's configuration, outside of any table.
    #[must_use]
    pub fn member_extra(mut self, toml: &str) -> Plan {
        self.member_extra = toml.to_owned();
        self
    }

    /// Packages that workers fetched stay in this folder for the next farm.
    #[must_use]
    pub fn package_cache(mut self, folder: PathBuf) -> Plan {
        self.cache = Some(folder);
        self
    }

    /// The members' disks can be made to fail, see [`Farm::fault`]. Needs a C compiler.
    #[must_use]
    pub fn faulty_disks(mut self) -> Plan {
        self.disks = Disks::Faulty;
        self
    }

    /// The members' disks can lose what was not synced, see [`Farm::lose_power`]. Needs a C compiler.
    #[must_use]
    pub fn forgetful_disks(mut self) -> Plan {
        self.disks = Disks::Forgetful;
        self
    }

    /// Each member in a network of its own, see [`Farm::cut`]. Needs root and `nft`; not with TLS.
    #[must_use]
    pub fn networks(mut self) -> Plan {
        self.networks = true;
        self
    }

    /// What members and workers send to a member arrives so much later, as if each member was in a
    /// region of its own. Not with TLS.
    #[must_use]
    pub fn apart(mut self, one_way: Duration) -> Plan {
        self.apart = Some(one_way);
        self
    }

    /// Starts everything and waits until the farm has a leader and all its workers.
    ///
    /// # Errors
    /// With the ends of all logs.
    pub async fn start(self) -> Result<Farm> {
        let farm = self.spawn().await?;
        let up = farm.set_up().await;
        farm.explain(up)?;
        Ok(farm)
    }

    /// Starts everything and waits for nothing.
    ///
    /// # Errors
    /// The folder or the init could not be made.
    pub async fn spawn(self) -> Result<Farm> {
        let folder = tempfile::Builder::new().prefix("oast-test-").tempdir()?;
        let ports = Ports::block()?;
        for name in ["logs", "config", "store", "tokens", "home"] {
            fs::create_dir(folder.path().join(name))?;
        }
        self.disks.prepare(&folder.path().join(FAULTS))?;
        let mut tokens = BTreeMap::new();
        for name in ["admin", "worker", "cloud", "peer"] {
            let token = random::token().expose().clone();
            fs::write(folder.path().join("tokens").join(name), &token)?;
            tokens.insert(name.to_owned(), token);
        }
        let farm = format!(
            "oast-test-{}",
            Digest::of(folder.path().as_os_str().as_encoded_bytes()).short()
        );
        let spec = FarmSpec {
            exe: self.oast.clone(),
            farm: farm.clone(),
        };
        let (init, events) = Init::start(spec).await.context("start the farm's init")?;
        let life = Arc::new(Mutex::new(BTreeMap::new()));
        let listener = tokio::task::spawn(listen(events, Arc::clone(&life)));
        let mut farm = Farm {
            plan: self,
            name: farm,
            ports,
            net: None,
            distances: Vec::new(),
            tokens,
            init,
            life,
            listener,
            folder,
        };
        if farm.plan.networks {
            farm.net = Some(Net::make(&farm).await?);
        }
        if let Some(one_way) = farm.plan.apart {
            for offset in 0..farm.plan.members {
                let (near, far) = (farm.ports.at(FAR_PORT + offset), farm.ports.at(offset));
                let distance = Distance::between(near, far, one_way).await?;
                farm.distances.push(distance);
            }
        }
        farm.write_configs()?;
        farm.make_certificates()?;
        for name in farm.names() {
            // Workers of a farm with TLS need a token first, which a named farm makes.
            if farm.plan.tls.is_none() || !name.starts_with("worker") {
                farm.begin(&name).await?;
            }
        }
        Ok(farm)
    }
}
