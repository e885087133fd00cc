//! Members and workers as real processes that believe nobody without a certificate.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use oast_daemon::clock::{Clock, SystemClock};
use oast_daemon::tls::{Authority, Bundle, CA_FILE, Files, Lives, ROOT_LIFE};
use oast_proto::v1::{
    GetRunRequest, ListWorkerTokensRequest, ListWorkersRequest, Run, SubmitRunRequest,
};
use oast_tests::api::{Api, call};
use oast_tests::cli::Cli;
use oast_tests::documents::TEAM;
use oast_tests::farm::{Farm, Plan, START};
use oast_tests::need;
use oast_tests::wait::{seen, until};
use tonic::Code;

/// No pipeline: a worker finds that out, so that a run ends after one task and needs no network.
const NO_PIPELINE: &str = "apiVersion: oast/v1\nname: web\n";
/// Life of certificates in the test of renewals; a third of it is how late a renewal may be.
const LIFE: &str = "15s";
/// Renewals that every process must have made under load.
const RENEWALS: f64 = 2.0;

#[tokio::test(flavor = "multi_thread")]
async fn runs_complete_over_mutual_tls_and_strangers_are_refused() -> Result<()> {
    let Some(oast) = need::oast("runs_complete_over_mutual_tls_and_strangers_are_refused") else {
        return Ok(());
    };
    let plan = Plan::new(&oast)
        .tls("30d")
        .worker(&["source"])
        .worker(&["source"]);
    let farm = plan.start().await?;
    farm.apply(TEAM).await?;
    // Through a follower, so that the write is passed on over the farm's port.
    let leader = farm.leader().await?;
    let api = farm.api(leader % 3 + 1)?;
    let run = finished(&farm, &api, "first").await?;
    ensure!(run.phase == "failed", "{run:?}");
    for id in 1..=3 {
        let listed = farm
            .api(id)?
            .operator()
            .list_workers(call(ListWorkersRequest::default()))
            .await?;
        let names: Vec<String> = listed
            .into_inner()
            .workers
            .into_iter()
            .map(|w| w.name)
            .collect();
        ensure!(names.len() == 2, "member {id}: {names:?}");
    }

    // Each token is dead, and says so, whoever shows it.
    let tokens = api
        .worker_tokens()
        .list_worker_tokens(call(ListWorkerTokensRequest {}))
        .await?;
    let used: Vec<String> = tokens
        .into_inner()
        .tokens
        .into_iter()
        .map(|t| t.used_by)
        .collect();
    ensure!(
        used.contains(&"worker-1".to_owned()) && used.contains(&"worker-2".to_owned()),
        "{used:?}"
    );
    let thief = Thief::new(&farm, "thief")?;
    let said = thief.join(
        &format!("@{}", path(&farm, "tokens/join-worker-1")),
        &pin(&farm)?,
    )?;
    said.failed(
        1,
        &[
            "was used by worker `worker-1`",
            "oast operator worker-token create",
        ],
    )?;
    // A pin of another authority ends it before the token is sent.
    let other = format!("sha256:{}", "0".repeat(64));
    let said = Thief::new(&farm, "lost")?.join("oast_unknown", &other)?;
    said.failed(1, &["no root with the pin sha256:0000"])?;

    // Another farm's worker with a certificate that is as good, but not ours: it does not believe
    // us; and one that believes everybody is told by us.
    let said = [
        ("foreign", "belongs to the farm `test`, this is `evil`"),
        (
            "gullible",
            "the other end does not know who signed the certificate",
        ),
    ];
    for (name, words) in said {
        farm.explain(told(&farm, name, words).await)?;
    }

    // A client without a certificate, on the farm's port.
    let port = farm.farm_ports()[0].clone();
    let text = plain(&port)?;
    ensure!(text.contains("this port speaks TLS only"), "{text}");
    let ca = path(&farm, "pki/ca.pem");
    let said = farm
        .cli()
        .env("OAST_ADDR", &format!("https://{port}"))
        .run(&["whoami", "--ca", &ca])?;
    said.failed(4, &["this port is for members and workers of the farm"])?;
    // And without the authority.
    let said = farm
        .cli()
        .env("OAST_ADDR", &format!("https://{port}"))
        .run(&["whoami"])?;
    ensure!(said.code != 0, "{said:?}");
    let hint = "oast context set NAME --addr ADDRESS --ca FILE";
    ensure!(said.said().contains(hint), "{said:?}");

    for name in farm.names() {
        let log = farm.log(&name);
        ensure!(!log.contains("PRIVATE KEY"), "{name} logs keys");
        for token in [
            "tokens/join-worker-1",
            "tokens/join-worker-2",
            "tokens/peer",
        ] {
            let token = std::fs::read_to_string(farm.folder().join(token))?;
            ensure!(!log.contains(token.trim()), "{name} logs tokens");
        }
    }
    let refused = metric(&farm.members()[0], "oast_tls_handshake_failures_total")?;
    ensure!(refused.values().sum::<f64>() >= 1.0, "{refused:?}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_under_load_and_nothing_is_interrupted() -> Result<()> {
    let Some(oast) = need::oast("certificates_are_renewed_under_load_and_nothing_is_interrupted")
    else {
        return Ok(());
    };
    let plan = Plan::new(&oast)
        .tls(LIFE)
        .worker(&["source"])
        .worker(&["source"]);
    let farm = plan.start().await?;
    farm.apply(TEAM).await?;
    let leader = farm.leader().await?;
    let api = farm.api(leader)?;
    let mut runs = 0;
    loop {
        runs += 1;
        let run = finished(&farm, &api, &format!("request-{runs}")).await?;
        let attempts: usize = run.tasks.iter().map(|task| task.attempts.len()).sum();
        ensure!(attempts == 1, "a lease was lost: {run:?}");
        let mut least = f64::MAX;
        for address in addresses(&farm)? {
            let renewals = metric(&address, "oast_tls_renewals_total")?;
            ensure!(!renewals.contains_key("failed"), "{address}: {renewals:?}");
            least = least.min(renewals.get("renewed").copied().unwrap_or(0.0));
        }
        if least >= RENEWALS {
            break;
        }
    }
    println!("{runs} runs while every process renewed {RENEWALS} times");
    ensure!(farm.leader().await? == leader, "the leader was lost");
    for name in farm.names() {
        let log = farm.log(&name);
        for bad in [
            "The connection to a peer is lost",
            "The session with the leader has ended",
        ] {
            ensure!(!log.contains(bad), "{name}: {log}");
        }
    }
    // The files of an operator are taken too, without a restart.
    let cli = Cli::new(&oast, &farm.folder().join("home"));
    let (pki, out) = (path(&farm, "pki"), path(&farm, "tls/member-1"));
    cli.good(&[
        "operator",
        "pki",
        "issue",
        "member",
        "m1",
        "--host",
        "127.0.0.1",
        "--host",
        "m1.test",
        "--dir",
        &pki,
        "--out",
        &out,
        "--life",
        "1h",
        "--replace",
    ])?;
    let taken = until("the new files are in use", START, async || {
        let log = farm.log("member-1");
        Ok(seen(
            log.contains("the new ones are in use").then_some(()),
            log,
        ))
    });
    farm.explain(taken.await)?;
    finished(&farm, &api, "last").await?;
    farm.finish().await
}

/// Somebody who has a token that is not theirs.
struct Thief {
    cli: Cli,
    config: String,
}

impl Thief {
    fn new(farm: &Farm, name: &str) -> Result<Thief> {
        let config = farm.folder().join(format!("config/{name}.toml"));
        std::fs::write(&config, worker(farm, name))?;
        Ok(Thief {
            cli: farm.cli(),
            config: config.display().to_string(),
        })
    }

    fn join(&self, token: &str, pin: &str) -> Result<oast_tests::cli::Done> {
        self.cli.run(&[
            "worker",
            "--config",
            &self.config,
            "--join",
            token,
            "--ca-hash",
            pin,
        ])
    }
}

fn worker(farm: &Farm, name: &str) -> String {
    format!(
        "name = \"{name}\"\ndata_dir = \"{}\"\nstore_dir = \"{}\"\ncoordinators = {:?}\n\n[tls]\ndir = \"{}\"\n",
        path(farm, name),
        path(farm, "store"),
        farm.farm_ports(),
        path(farm, &format!("tls/{name}")),
    )
}

/// Runs a worker with a certificate of another root until its log says these words.
async fn told(farm: &Farm, name: &str, words: &str) -> Result<()> {
    foreign_worker(farm, name)?;
    let config = path(farm, &format!("config/{name}.toml"));
    let log = std::fs::File::create(farm.folder().join(format!("logs/{name}.log")))?;
    let cli = farm.cli();
    let mut command = cli.command(&["worker", "--config", &config]);
    let mut child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
    let told = until("the worker is told why", START, async || {
        let log = farm.log(name);
        Ok(seen(log.contains(words).then_some(()), log))
    });
    let told = told.await;
    child.kill()?;
    child.wait()?;
    told
}

/// The files of a worker of the farm `evil`; or of one whose root has our farm's name, and who
/// believes our root too.
fn foreign_worker(farm: &Farm, name: &str) -> Result<()> {
    let now = SystemClock.wall();
    let gullible = name == "gullible";
    let root = Authority::found(if gullible { "test" } else { "evil" }, now, ROOT_LIFE)?;
    let files = Files::worker(&root, name, Lives::usual(now))?;
    let folder = farm.folder().join("tls").join(name);
    files.create(&folder)?;
    if gullible {
        let mut both = Bundle::read(&farm.folder().join("pki").join(CA_FILE))?;
        both.chain.push(root.certificate().clone());
        both.replace(&folder.join(CA_FILE))?;
    }
    let config = farm.folder().join(format!("config/{name}.toml"));
    std::fs::write(config, worker(farm, name))?;
    Ok(())
}

fn path(farm: &Farm, parts: &str) -> String {
    farm.folder().join(parts).display().to_string()
}

fn pin(farm: &Farm) -> Result<String> {
    std::fs::read_to_string(farm.folder().join("tokens/ca-hash")).context("the farm's pin")
}

/// Submits a run and waits until it is over.
async fn finished(farm: &Farm, api: &Api, request_id: &str) -> Result<Run> {
    let tree = api.upload(&[("oast.yaml", NO_PIPELINE)]).await?;
    let request = SubmitRunRequest {
        request_id: request_id.to_owned(),
        team: "demo".into(),
        tree,
        ..SubmitRunRequest::default()
    };
    let run = api.runs().submit_run(call(request)).await?.into_inner();
    let over = until("the end of a run", START, async || {
        let request = GetRunRequest {
            run: run.id.clone(),
        };
        let run = match api.runs().get_run(call(request)).await {
            Ok(run) => run.into_inner(),
            Err(status) if status.code() == Code::Unavailable => {
                return Ok(seen(None, status.to_string()));
            }
            Err(status) => return Err(status.into()),
        };
        let over = run.ended_at_ms != 0;
        Ok(seen(over.then(|| run.clone()), format!("{run:?}")))
    });
    farm.explain(over.await)
}

/// Where `/metrics` of every process is.
fn addresses(farm: &Farm) -> Result<Vec<String>> {
    let mut all = farm.members();
    for name in farm
        .names()
        .iter()
        .filter(|name| name.starts_with("worker"))
    {
        let address = std::fs::read_to_string(farm.folder().join(name).join("address"))?;
        all.push(address.trim().to_owned());
    }
    Ok(all)
}

/// Values of a metric with one label, by the label's value.
fn metric(address: &str, name: &str) -> Result<BTreeMap<String, f64>> {
    let text = get(address, "/metrics")?;
    let mut found = BTreeMap::new();
    for line in text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")))
    {
        let label = line.split('"').nth(1).context("a label")?;
        let value = line.rsplit(' ').next().context("a value")?.parse()?;
        found.insert(label.to_owned(), value);
    }
    Ok(found)
}

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// What somebody reads who speaks HTTP without TLS.
fn plain(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let mut bytes = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut bytes);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
