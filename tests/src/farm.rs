//! A farm of real processes in a folder of its own.
//!
//! The processes are children of an init in a PID namespace (`oast_daemon::isolate::Farm`, what
//! quickstart uses too), so nothing outlives the test, whatever happens to it. Members get ports
//! of a locked block, workers what [`Plan`] says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oast_daemon::isolate::{ChildSpec, Farm as Init, FarmEvent, FarmEvents, FarmSpec};
use oast_daemon::random;
use oast_model::digest::Digest;
use oast_proto::v1::{
    ApplyResourceRequest, CreateWorkerTokenRequest, InitFarmRequest, ListPeersRequest,
    ListWorkersRequest, WhoAmIRequest,
};
use tempfile::TempDir;

use crate::api::{Api, call};
use crate::cli::Cli;
use crate::delay::Distance;
use crate::dice::Dice;
use crate::faults::{Disks, Fault};
use crate::ports::Ports;
use crate::power::{Forgetful, Loss};
use crate::wait::{Seen, seen, until};

mod net;

use net::Net;

/// How long a farm may take to elect a leader and to know its workers.
pub const START: Duration = Duration::from_secs(60);
/// Lines of each process's log in a dump.
const DUMP_LINES: usize = 40;
/// Place of the fleet's port in the block; the members are 0 to 2.
const FLEET_PORT: u16 = 10;
const CLOUD_PORT: u16 = 9;
/// First of the members' ports for the farm, when it has TLS.
const FARM_PORT: u16 = 3;
/// First of the members' ports as the others see them, when they are apart.
const FAR_PORT: u16 = 6;
/// SIGKILL.
pub const KILL: i32 = 9;
/// SIGCONT.
pub const GO_ON: i32 = 18;
/// SIGSTOP.
pub const FREEZE: i32 = 19;
/// Folder with the members' faults.
const FAULTS: &str = "faults";

/// What a farm consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    oast: PathBuf,
    members: u16,
    spares: u16,
    workers: Vec<Vec<&'static str>>,
    cloud: bool,
    worker_extra: String,
    member_extra: String,
    cache: Option<PathBuf>,
    tls: Option<String>,
    disks: Disks,
    networks: bool,
    apart: Option<Duration>,
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

/// What is known of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// While it lives; in the numbers of the farm's own PID namespace.
    pub pid: Option<i32>,
    /// How often it was started.
    pub started: u32,
    /// How it ended last.
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

type Lives = Arc<Mutex<BTreeMap<String, Life>>>;

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

async fn listen(mut events: FarmEvents, lives: Lives) {
    while let Ok(Some(event)) = events.next().await {
        let mut lives = lives.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            FarmEvent::Started { name, pid } => {
                let life = lives.entry(name).or_default();
                life.pid = Some(pid);
                life.started += 1;
            }
            FarmEvent::Ended {
                name, code, signal, ..
            } => {
                let life = lives.entry(name).or_default();
                life.pid = None;
                (life.code, life.signal) = (code, signal);
            }
            FarmEvent::NotStarted { name, fault } => println!("{name} was not started: {fault}"),
            FarmEvent::Failed(fault) => println!("the farm could not be made: {fault}"),
            FarmEvent::Ready { .. } => {}
        }
    }
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

    /// A process's log.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.folder().join("logs").join(format!("{name}.log"))
    }

    /// What is known of a process.
    #[must_use]
    pub fn life(&self, name: &str) -> Life {
        let lives = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        lives.get(name).copied().unwrap_or_default()
    }

    /// Starts a process that does not run.
    ///
    /// # Errors
    /// The init is gone.
    pub async fn begin(&self, name: &str) -> Result<()> {
        let before = self.life(name).started;
        self.init.spawn(self.child(name)?)?;
        let what = format!("the start of {name}");
        let started = until(&what, START, async || {
            let life = self.life(name);
            Ok(seen(
                (life.started > before).then_some(()),
                format!("{life:?}"),
            ))
        });
        started.await
    }

    /// Sends a signal to a process that lives and waits for nothing.
    ///
    /// # Errors
    /// It does not live, or the init is gone.
    pub fn signal(&self, name: &str, signal: i32) -> Result<()> {
        ensure!(self.life(name).pid.is_some(), "{name} does not run");
        self.init.kill(name, signal)?;
        Ok(())
    }

    /// Kills a process and waits until it is dead.
    ///
    /// # Errors
    /// It did not die, or the init is gone.
    pub async fn kill(&self, name: &str) -> Result<()> {
        self.end(name, KILL).await
    }

    /// Sends a signal that ends a process and waits until it is dead.
    ///
    /// # Errors
    /// It did not die, or the init is gone.
    pub async fn end(&self, name: &str, signal: i32) -> Result<()> {
        ensure!(self.life(name).pid.is_some(), "{name} does not run");
        self.init.kill(name, signal)?;
        let what = format!("the end of {name}");
        let dead = until(&what, START, async || {
            let life = self.life(name);
            Ok(seen(life.pid.is_none().then_some(()), format!("{life:?}")))
        });
        let dead = dead.await;
        self.explain(dead)
    }

    /// Makes the disk of a member fail from now on, with this error number, or not any more.
    ///
    /// # Errors
    /// The farm was not made for that.
    pub fn fault(&self, name: &str, fault: Option<(Fault, i32)>) -> Result<()> {
        ensure!(
            self.plan.disks == Disks::Faulty,
            "this farm's disks are healthy"
        );
        let control = self.folder().join(FAULTS).join(name);
        match fault {
            // In one step: the member reads the file whenever it uses its disk.
            Some((fault, number)) => {
                let order = fault.order(number, &self.folder().join(name));
                let draft = control.with_extension("draft");
                fs::write(&draft, order)?;
                fs::rename(draft, control)?;
            }
            None => fs::remove_file(control)?,
        }
        Ok(())
    }

    /// Makes the data of a dead member what its disk shows after a power loss.
    ///
    /// # Errors
    /// It lives, or the farm was not made for that.
    pub fn lose_power(&self, name: &str, dice: &mut Dice) -> Result<Loss> {
        ensure!(
            self.plan.disks == Disks::Forgetful,
            "this farm's disks forget nothing"
        );
        ensure!(self.life(name).pid.is_none(), "{name} runs");
        let kept = self.folder().join(FAULTS).join(name);
        Forgetful::new(&self.folder().join(name), &kept)?.lose_power(dice)
    }

    /// Waits until a process has ended by itself.
    ///
    /// # Errors
    /// It still runs.
    pub async fn ended(&self, name: &str) -> Result<Life> {
        let what = format!("the end of {name}");
        let ended = until(&what, START, async || {
            let life = self.life(name);
            let ended = life.started > 0 && life.pid.is_none();
            Ok(seen(ended.then_some(life), format!("{life:?}")))
        });
        let ended = ended.await;
        self.explain(ended)
    }

    /// Adds the ends of all logs to an error.
    ///
    /// # Errors
    /// The one that it was given.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let mut text = format!("{error:#}");
            for name in self.names() {
                let log = self.log(&name);
                let lines: Vec<&str> = log.lines().collect();
                let end = &lines[lines.len().saturating_sub(DUMP_LINES)..];
                let _ = write!(
                    text,
                    "\n--- {name}: {:?}\n{}",
                    self.life(&name),
                    end.join("\n")
                );
            }
            anyhow::anyhow!(text)
        })
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

    /// A process that was started runs no more.
    fn somebody_ended(&self) -> bool {
        let lives = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        lives.values().any(|life| life.pid.is_none())
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

    /// The farm's authority and its members' files, by the commands that an operator types.
    fn make_certificates(&self) -> Result<()> {
        let Some(life) = &self.plan.tls else {
            return Ok(());
        };
        let cli = Cli::new(&self.plan.oast, &self.folder().join("home"));
        let pki = self.path("pki");
        cli.good(&["operator", "pki", "init", "--name", "test", "--dir", &pki])?;
        for id in 1..=self.plan.members {
            let name = format!("m{id}");
            let out = self.path(&format!("tls/member-{id}"));
            cli.good(&[
                "operator",
                "pki",
                "issue",
                "member",
                &name,
                "--host",
                "127.0.0.1",
                "--dir",
                &pki,
                "--out",
                &out,
                "--life",
                life,
            ])?;
        }
        Ok(())
    }

    /// Makes a token for one worker; the next start of it joins with it.
    ///
    /// # Errors
    /// The farm made none.
    pub async fn make_join_token(&self, worker: &str) -> Result<()> {
        let request = CreateWorkerTokenRequest {
            worker: worker.to_owned(),
            ttl_ms: 0,
        };
        let api = self.api(1)?;
        let made = api.worker_tokens().create_worker_token(call(request)).await;
        let made = made.context("make a join token")?.into_inner();
        fs::write(self.folder().join("tokens/ca-hash"), &made.ca_hash)?;
        let path = self.folder().join("tokens").join(format!("join-{worker}"));
        fs::write(path, &made.token).context("keep a join token")
    }

    fn child(&self, name: &str) -> Result<ChildSpec> {
        let verb = match name.split('-').next() {
            Some("member") => "coordinator",
            Some("worker") => "worker",
            _ => "local-cloud",
        };
        let kept = ["PATH", "http_proxy", "https_proxy", "no_proxy", "OAST_LOG"];
        let faults = match verb {
            "coordinator" => {
                let data = self.folder().join(name);
                let disks = self.plan.disks;
                disks.environment(&self.folder().join(FAULTS), &data)?
            }
            _ => Vec::new(),
        };
        let env = kept
            .into_iter()
            .filter_map(|key| Some((key, std::env::var(key).ok()?)))
            .chain([("HOME", self.path("home"))])
            .map(|(key, value)| (key.to_owned(), value))
            .chain(faults)
            .collect();
        let mut argv = Vec::new();
        if let (Some(net), Some(("member", id))) = (&self.net, name.split_once('-')) {
            argv.extend(net.inside(id.parse()?)?);
        }
        argv.extend([
            self.plan.oast.display().to_string(),
            verb.to_owned(),
            "--config".to_owned(),
            self.path(&format!("config/{name}.toml")),
        ]);
        let token = self.path(&format!("tokens/join-{name}"));
        if let (true, Ok(pin)) = (
            Path::new(&token).exists(),
            fs::read_to_string(self.folder().join("tokens/ca-hash")),
        ) {
            argv.extend(["--join".to_owned(), format!("@{token}")]);
            argv.extend(["--ca-hash".to_owned(), pin]);
        }
        Ok(ChildSpec {
            name: name.to_owned(),
            argv,
            env,
            log: self.log_path(name),
        })
    }

    fn path(&self, parts: &str) -> String {
        self.folder().join(parts).display().to_string()
    }

    fn write_configs(&self) -> Result<()> {
        for id in 1..=self.plan.members + self.plan.spares {
            self.write_config(&format!("member-{id}"), &self.member_config(id))?;
        }
        for (place, capabilities) in self.plan.workers.iter().enumerate() {
            let name = format!("worker-{}", place + 1);
            let config = self.worker_config(&name, capabilities);
            if let Some(cache) = &self.plan.cache {
                share_packages(cache, &self.folder().join(&name))?;
            }
            self.write_config(&name, &config)?;
        }
        if self.plan.cloud {
            let config = format!(
                "farm = \"{}\"\nlisten = \"{}\"\ndata_dir = \"{}\"\nstore_dir = \"{}\"\ntoken_file = \"{}\"\n",
                self.name,
                self.ports.at(CLOUD_PORT),
                self.path("cloud"),
                self.path("store"),
                self.path("tokens/cloud"),
            );
            self.write_config("local-cloud", &config)?;
        }
        Ok(())
    }

    fn write_config(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.folder().join(format!("config/{name}.toml")), text)
            .with_context(|| format!("write the configuration of {name}"))
    }

    fn member_config(&self, id: u16) -> String {
        let peers = (1..=self.plan.members).fold(String::new(), |mut text, peer| {
            // Writing to a String does not fail.
            let address = &self.farm_ports()[usize::from(peer - 1)];
            let _ = writeln!(text, "{peer} = \"{address}\"");
            text
        });
        let tls = match &self.plan.tls {
            None => String::new(),
            Some(life) => format!(
                "\n[tls]\ndir = \"{}\"\nlisten = \"{}\"\npeople = \"plain\"\nlife = \"{life}\"\n",
                self.path(&format!("tls/member-{id}")),
                self.ports.at(FARM_PORT + id - 1),
            ),
        };
        let (who, peers) = if id > self.plan.members {
            (format!("join = {:?}\n", self.farm_ports()), String::new())
        } else {
            (format!("member = {id}\n"), format!("\n[peers]\n{peers}"))
        };
        format!(
            "farm = \"test\"\n{who}listen = \"{}\"\ndata_dir = \"{}\"\nstore_dir = \"{}\"\n\
             peer_token_file = \"{}\"\nlease_ttl = \"3s\"\nheartbeat = \"500ms\"\n{}{peers}{tls}",
            self.ports.at(id - 1),
            self.path(&format!("member-{id}")),
            self.path("store"),
            self.path("tokens/peer"),
            self.plan.member_extra,
        )
    }

    fn worker_config(&self, name: &str, capabilities: &[&str]) -> String {
        let members = self.farm_ports();
        let mut text = format!(
            "name = \"{name}\"\ndata_dir = \"{}\"\nstore_dir = \"{}\"\ncoordinators = {members:?}\n\
             token_file = \"{}\"\ncapabilities = {capabilities:?}\n",
            self.path(name),
            self.path("store"),
            self.path("tokens/worker"),
        );
        if self.plan.tls.is_some() {
            let _ = write!(
                text,
                "[tls]\ndir = \"{}\"\n",
                self.path(&format!("tls/{name}"))
            );
        }
        if self.plan.cloud {
            let _ = write!(
                text,
                "[local_cloud]\naddress = \"{}\"\ntoken_file = \"{}\"\n",
                self.ports.at(CLOUD_PORT),
                self.path("tokens/cloud"),
            );
        }
        text.push_str(&self.plan.worker_extra);
        text
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

/// The files that a worker fetched, which are named by their digests, lie behind a link in a folder
/// that outlives the farm.
fn share_packages(cache: &Path, worker: &Path) -> Result<()> {
    let packages = cache.join("packages");
    fs::create_dir_all(&packages)?;
    fs::create_dir_all(worker.join("base"))?;
    let link = worker.join("base/files");
    std::os::unix::fs::symlink(&packages, &link).with_context(|| format!("make {}", link.display()))
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
