//! What the processes of a farm are started with: configurations, certificates, tokens.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use oast_daemon::isolate::ChildSpec;
use oast_proto::v1::CreateWorkerTokenRequest;

use super::{CLOUD_PORT, FARM_PORT, FAULTS, Farm};
use crate::api::call;
use crate::cli::Cli;

impl Farm {
    /// The farm's authority and its members' files, by the commands that an operator types.
    pub(super) fn make_certificates(&self) -> Result<()> {
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

    pub(super) fn child(&self, name: &str) -> Result<ChildSpec> {
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

    pub(super) fn path(&self, parts: &str) -> String {
        self.folder().join(parts).display().to_string()
    }

    pub(super) fn write_configs(&self) -> Result<()> {
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
