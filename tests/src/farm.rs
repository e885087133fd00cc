//! A farm of real processes in a folder of its own.
//!
//! The processes are children of an init in a PID namespace (`oast_daemon::isolate::Farm`, what
//! quickstart uses too), so nothing outlives the test, whatever happens to it. Members get ports
//! of a locked block, workers what [`Plan`] says.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oast_daemon::isolate::Farm as Init;
use oast_daemon::random;
use oast_model::digest::Digest;
use oast_proto::v1::{
    ApplyResourceRequest, InitFarmRequest, ListPeersRequest, ListWorkersRequest, WhoAmIRequest,
};
use tempfile::TempDir;

use crate::api::{Api, call};
use crate::cli::Cli;
use crate::delay::Distance;
use crate::ports::Ports;
use crate::wait::{Seen, seen, until};

mod config;
mod net;
mod plan;
mod process;

use net::Net;
pub use plan::Plan;
pub use process::Life;
use process::Lives;

/// How long a farm may take to elect a leader and to know its workers.
pub const START: Duration = Duration::from_secs(60);
/// Place of the fleet's port in the block; the members are 0 to 2.
const FLEET_PORT: u16 = 10;
const CLOUD_PORT: u16 = 9;
/// First of the members' ports for the farm, when it has TLS.
const FARM_PORT: u16 = 3;
/// First of the members' ports as the others see them, when they are apart.
const FAR_PORT: u16 = 6;
/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGTERM.
pub const TERM: i32 = 15;
/// SIGCONT.
pub const GO_ON: i32 = 18;
/// SIGSTOP.
pub const FREEZE: i32 = 19;
/// Folder with the members' faults.
const FAULTS: &str = "faults";

/// A running farm. Dropping it ends every process.
#[derive(Debug)]
pub struct Farm {
    plan: Plan,
    name: String,
    ports: Ports,
    net: Option<Net>,
    distances: Vec<Distance>,
    tokens: BTreeMap<String, String>,
    init: Init,
    life: Lives,
    listener: tokio::task::JoinHandle<()>,
    // Last, so that it is removed when everything else is gone.
    folder: TempDir,
}

impl Farm {
    /// The folder with everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Names the farm's control groups.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ports that are the farm's.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Addresses of the members, first member first.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        (1..=usize::from(self.plan.members))
            .map(|id| self.address(id))
            .collect()
    }

    /// Where members answer members and workers, first member first; as [`Farm::members`] without
    /// TLS.
    #[must_use]
    pub fn farm_ports(&self) -> Vec<String> {
        let first = match (&self.plan.tls, self.plan.apart) {
            (None, None) => return self.members(),
            (Some(_), _) => FARM_PORT,
            (None, Some(_)) => FAR_PORT,
        };
        (0..self.plan.members)
            .map(|offset| self.ports.at(first + offset).to_string())
            .collect()
    }

    /// Where a fleet of the test may listen.
    #[must_use]
    pub fn fleet_address(&self) -> String {
        self.ports.at(FLEET_PORT).to_string()
    }

    /// `admin`, `worker`, `cloud` or `peer`.
    ///
    /// # Panics
    /// There is no such token.
    #[must_use]
    pub fn token(&self, name: &str) -> &str {
        self.tokens.get(name).expect("a token of every farm")
    }

    /// Member `id` (from 1) with the administrator's token.
    ///
    /// # Errors
    /// There is no such member.
    pub fn api(&self, id: usize) -> Result<Api> {
        self.api_as(id, Some(self.token("admin")))
    }

    /// Member `id` (from 1) with any token.
    ///
    /// # Errors
    /// There is no such member.
    pub fn api_as(&self, id: usize, token: Option<&str>) -> Result<Api> {
        ensure!((1..=self.slots()).contains(&id), "no such member");
        Api::new(&self.address(id), token)
    }

    /// Where member `id` (from 1) is, also a spare one.
    #[must_use]
    pub fn address(&self, id: usize) -> String {
        let offset = u16::try_from(id.wrapping_sub(1)).unwrap_or(0);
        let own = self.ports.at(offset);
        match &self.net {
            Some(net) => format!("{}:{}", net.address(id), own.port()),
            None => own.to_string(),
        }
    }

    /// Members and spare ones.
    fn slots(&self) -> usize {
        usize::from(self.plan.members + self.plan.spares)
    }

    /// The command line, for this farm and with the administrator's token.
    #[must_use]
    pub fn cli(&self) -> Cli {
        Cli::new(&self.plan.oast, &self.folder().join("home"))
            .env("OAST_ADDR", &self.members().join(","))
            .env("OAST_TOKEN", self.token("admin"))
    }

    /// Names of all processes.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let members = (1..=self.plan.members).map(|id| format!("member-{id}"));
        let cloud = self.plan.cloud.then(|| "local-cloud".to_owned());
        let workers = (1..=self.plan.workers.len()).map(|number| format!("worker-{number}"));
        members.chain(cloud).chain(workers).collect()
    }

    /// The member that leads, from 1, as a living member says.
    ///
    /// # Errors
    /// Nobody leads in time.
    pub async fn leader(&self) -> Result<usize> {
        self.leader_but(0).await
    }

    /// The member that leads, if it is not `other`.
    ///
    /// # Errors
    /// Nobody else leads in time.
    pub async fn leader_but(&self, other: usize) -> Result<usize> {
        let leader = until("a leader", START, async || {
            for id in 1..=self.slots() {
                if self.life(&format!("member-{id}")).pid.is_none() {
                    continue;
                }
                let peers = self
                    .api(id)?
                    .operator()
                    .list_peers(call(ListPeersRequest::default()))
                    .await;
                let Ok(peers) = peers else { continue };
                let leader = usize::try_from(peers.into_inner().leader)?;
                let lives = self.life(&format!("member-{leader}")).pid.is_some();
                if leader != 0 && leader != other && lives {
                    return Ok(Seen::This(leader));
                }
            }
            Ok(Seen::NotYet("nobody leads".into()))
        });
        let leader = leader.await;
        self.explain(leader)
    }

    /// Applies a resource document.
    ///
    /// # Errors
    /// It was refused.
    pub async fn apply(&self, document: &str) -> Result<()> {
        let request = ApplyResourceRequest {
            request_id: random::request_id(),
            document: document.to_owned(),
            validate_only: false,
            expected_revision: -1,
        };
        let leader = self.leader().await?;
        let applied = self
            .api(leader)?
            .resources()
            .apply_resource(call(request))
            .await;
        applied.map(drop).context("apply a resource")
    }

    async fn set_up(&self) -> Result<()> {
        let hash = |name: &str| Digest::of(self.token(name).as_bytes()).to_string();
        let request = InitFarmRequest {
            name: "test".into(),
            bootstrap: self.token("peer").to_owned(),
            admin_hash: hash("admin"),
            worker_hash: hash("worker"),
        };
        until("the farm takes its name", START, async || {
            let answer = self
                .api(1)?
                .operator()
                .init_farm(call(request.clone()))
                .await;
            Ok(match answer {
                Ok(_) => Seen::This(true),
                Err(_) if self.somebody_ended() => Seen::This(false),
                Err(status) => Seen::NotYet(status.to_string()),
            })
        })
        .await
        .and_then(|up| {
            ensure!(up, "a process ended while the farm was started");
            Ok(())
        })?;
        self.everybody_answers().await?;
        if self.plan.tls.is_some() {
            for number in 1..=self.plan.workers.len() {
                let name = format!("worker-{number}");
                self.make_join_token(&name).await?;
                self.begin(&name).await?;
            }
        }
        let wanted = self.plan.workers.len();
        until("every worker is connected", START, async || {
            let list = self
                .api(1)?
                .operator()
                .list_workers(call(ListWorkersRequest::default()))
                .await?;
            let workers = list.into_inner().workers;
            Ok(seen(
                (workers.len() == wanted).then_some(()),
                format!("{workers:?}"),
            ))
        })
        .await
    }

    /// Waits until every member that lives answers a linearizable call.
    ///
    /// # Errors
    /// One does not.
    pub async fn everybody_answers(&self) -> Result<()> {
        for id in 1..=usize::from(self.plan.members) {
            if self.life(&format!("member-{id}")).started > 0
                && self.life(&format!("member-{id}")).pid.is_none()
            {
                continue;
            }
            let what = format!("member {id} answers");
            let answers = until(&what, START, async || {
                let api = self.api(id)?;
                let who = api.operator().who_am_i(call(WhoAmIRequest {})).await?;
                let list = oast_proto::v1::ListResourcesRequest::default();
                api.resources().list_resources(call(list)).await?;
                let farm = who.into_inner().farm;
                Ok(seen((farm == "test").then_some(()), farm))
            });
            let answers = answers.await;
            self.explain(answers)?;
        }
        Ok(())
    }

    /// Ends everything in order and waits for it.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn finish(self) -> Result<()> {
        self.init.shutdown(Duration::from_secs(5))?;
        let Farm {
            listener,
            folder,
            plan,
            ..
        } = self;
        match tokio::time::timeout(START, listener).await {
            Ok(_) => {}
            Err(_) => bail!("the farm did not end within {START:?}"),
        }
        remove(&plan.oast, folder)
    }
}

/// Mapped users' files, which only the farm's own root can remove.
fn remove(oast: &Path, folder: TempDir) -> Result<()> {
    let path = folder.keep();
    let removed = std::process::Command::new(oast)
        .args(["internal", "farm-remove"])
        .arg(&path)
        .status()?;
    ensure!(
        removed.success() && !path.exists(),
        "{} could not be removed",
        path.display()
    );
    Ok(())
}
