//! Instances for real: sandboxes over an image's layers, behind the balancer, under clients. Without
//! a harness, because the test binary is also the sandbox's helper (`internal sandbox`), the image's
//! web server (`serve`) and a whole local cloud that is killed (`cloud`).
//!
//! The image is made of this machine's shell and tools, so nothing is downloaded. An image's own init
//! is tried where a Debian image is baked: quickstart as root, and `tests/tests/leftovers.rs`.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a program of its own that measures real time and prints what it found"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::StreamExt;
use oast_artifacts::{ArtifactStore, Digest};
use oast_daemon::clock::{SystemClock, timeout};
use oast_daemon::health::Health;
use oast_daemon::metrics::Metrics;
use oast_daemon::secret::Secret;
use oast_daemon::task::Tasks;
use oast_worker::Process;
use oast_worker::bake::layer::{PackOptions, pack};
use oast_worker::bake::manifest;
use oast_worker::local_cloud::instance::{Options, Sandboxes};
use oast_worker::local_cloud::layers::{PlainFolders, StoreLayers};
use oast_worker::local_cloud::runtime::{LayerSource, Runtime};
use oast_worker::local_cloud::{self, BootPolicy, LocalCloudConfig, Running};
use oast_worker::provider::local::LocalProvider;
use oast_worker::provider::{
    FleetObservation, HealthCheck, ImageRef, InstanceObservation, Phase, Provider, SetSpec, Target,
};
use oast_worker::sandbox::{IdMap, Launcher};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "correct-horse-battery";
const PATIENCE: Duration = Duration::from_secs(60);
/// Program of the image's unit, and what a leftover of it would look like.
const SERVER: &str = "/usr/local/bin/oast-test-server";
const PORT: u16 = 8080;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["internal", ..] => oast_worker::sandbox::entry(),
        ["serve"] => serve(),
        ["cloud", folder, layers] => {
            let cloud = cloud_until_killed(Utf8Path::new(folder), Utf8Path::new(layers));
            runtime()?.block_on(cloud)
        }
        _ => runtime()?.block_on(all()),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

// ---- the image's server ------------------------------------------------------------------------

/// One thread per connection, kept alive for 20 answers; `/crash` ends the process.
fn serve() -> Result<()> {
    let version = fs::read_to_string("/srv/version")?.trim().to_owned();
    let listener = TcpListener::bind(("127.0.0.1", PORT))?;
    for stream in listener.incoming() {
        let (stream, version) = (stream?, version.clone());
        std::thread::spawn(move || answer(stream, &version));
    }
    Ok(())
}

fn answer(stream: TcpStream, version: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    for n in 1..=20 {
        let mut first = String::new();
        reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
        if first.contains("/crash") {
            std::process::exit(3);
        }
        let mut line = String::new();
        while reader.read_line(&mut line).ok()? > 2 {
            line.clear();
        }
        let close = if n == 20 { "Connection: close\r\n" } else { "" };
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let body = format!("{} {version}\n", host.trim());
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}\r\n{body}",
            body.len()
        )
        .ok()?;
    }
    None
}

// ---- the image ---------------------------------------------------------------------------------

const UNIT: &str = "[Unit]\nDescription=test server\n[Service]\nUser=www-data\n\
    RuntimeDirectory=server\nEnvironment=GREETING=\"hello there\"\n\
    ExecStartPre=/bin/sh -c 'test \"$GREETING\" = \"hello there\" && id -un > /run/server/who'\n\
    ExecStart=/usr/local/bin/oast-test-server serve\n[Install]\nWantedBy=multi-user.target\n";

/// Copies programs with the libraries they need.
fn image(folder: &Path, idmap: IdMap) -> Result<()> {
    let base = folder.join("base");
    for name in [
        "usr/bin",
        "usr/local/bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "srv",
        "var",
    ] {
        fs::create_dir_all(base.join(name))?;
    }
    for name in ["bin", "lib", "lib64"] {
        fs::create_dir_all(base.join("usr").join(name))?;
        symlink(Path::new("usr").join(name), base.join(name))?;
    }
    let tools = [
        "sh", "env", "setpriv", "mkdir", "chmod", "chown", "touch", "cat", "sleep", "date", "id",
    ];
    for tool in tools {
        install(&base, &PathBuf::from("/usr/bin").join(tool))?;
    }
    let own = std::env::current_exe()?;
    fs::copy(&own, base.join(SERVER.trim_start_matches('/')))?;
    for library in libraries(&own)? {
        install(&base, &library)?;
    }
    fs::write(
        base.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/srv:/bin/sh\n",
    )?;
    fs::write(base.join("etc/group"), "root:x:0:\nwww-data:x:33:\n")?;
    for (layer, version) in [("app", "1"), ("app2", "2")] {
        let units = folder.join(layer).join("etc/systemd/system");
        let wants = units.join("multi-user.target.wants");
        fs::create_dir_all(&wants)?;
        fs::write(units.join("server.service"), UNIT)?;
        symlink(
            "/etc/systemd/system/server.service",
            wants.join("server.service"),
        )?;
        fs::create_dir_all(folder.join(layer).join("srv"))?;
        fs::write(folder.join(layer).join("srv/version"), version)?;
    }
    let script = format!(
        "chown -hR {0}:{0} '{1}'",
        idmap.host_id(0),
        folder.display()
    );
    ensure!(Command::new("sh").args(["-c", &script]).status()?.success());
    Ok(())
}

/// Packs the layers into an artifact store, as a bake does.
fn stored(folder: &Utf8Path, idmap: IdMap) -> Result<Named> {
    let store = ArtifactStore::open(&folder.join("store"))?;
    let mut digests = BTreeMap::new();
    for name in ["base", "app", "app2"] {
        let options = PackOptions {
            key: Digest::of(name.as_bytes()),
            parent: None,
            host_base: idmap.host_base(),
            clamp_mtime: None,
        };
        let (record, _) = pack(&store, &folder.join("layers").join(name), &options)?;
        digests.insert(name.to_owned(), manifest::put(&store, &record)?.to_string());
    }
    let layers = StoreLayers::open(store, &folder.join("unpacked"), idmap.host_base())?;
    Ok(Named { layers, digests })
}

/// Layers of a store under the names that this test gives them.
#[derive(Debug)]
struct Named {
    layers: StoreLayers,
    digests: BTreeMap<String, String>,
}

impl LayerSource for Named {
    fn roots(&self, layers: &[String]) -> Result<Vec<Utf8PathBuf>, String> {
        let digests: Vec<String> = layers.iter().map(|l| self.digests[l].clone()).collect();
        self.layers.roots(&digests)
    }
}

fn install(base: &Path, file: &Path) -> Result<()> {
    let name = file.strip_prefix("/")?;
    // Through the image's own links (`/lib` is `/usr/lib`).
    let target = base.join(name);
    fs::create_dir_all(target.parent().context("a file has a folder")?)?;
    if !target.exists() {
        fs::copy(file, &target).with_context(|| format!("copy {}", file.display()))?;
        for library in libraries(file)? {
            install(base, &library)?;
        }
    }
    Ok(())
}

fn libraries(file: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd")
        .arg(file)
        .stderr(Stdio::null())
        .output()?
        .stdout;
    let words = String::from_utf8(out)?;
    let paths = words
        .split_whitespace()
        .filter(|w| w.starts_with('/'))
        .map(PathBuf::from);
    Ok(paths.filter(|p| p.exists()).collect())
}

// ---- a local cloud -----------------------------------------------------------------------------

struct Farm {
    cloud: Running,
    process: Process,
    provider: LocalProvider,
}

async fn farm(folder: &Utf8Path, layers: Arc<dyn LayerSource>) -> Result<Farm> {
    let clock = SystemClock::shared();
    let tasks = Tasks::new(clock.clone(), CancellationToken::new());
    let process = Process {
        clock,
        tasks: tasks.clone(),
        metrics: Metrics::new(),
        health: Health::default(),
    };
    fs::create_dir_all(folder)?;
    let token_file = folder.join("token");
    fs::write(&token_file, TOKEN)?;
    let config = LocalCloudConfig {
        listen: "127.0.0.1:0".parse()?,
        data_dir: folder.join("cloud"),
        store_dir: folder.join("store"),
        token_file,
        boot: BootPolicy::Units,
        ..LocalCloudConfig::default()
    };
    let idmap = IdMap::detect()?;
    let runtime = || {
        Ok(Arc::new(Sandboxes::new(Options {
            launcher: Launcher::new("/proc/self/exe", idmap),
            layers,
            folder: folder.join("cloud/instances"),
            farm: config.farm_name(),
            boot: BootPolicy::Units,
            clock: process.clock.clone(),
            tasks,
        })?) as Arc<dyn Runtime>)
    };
    let cloud = local_cloud::start(&config, runtime, &process).await?;
    let provider = LocalProvider::new(
        cloud.address,
        Secret::new(TOKEN.to_owned()),
        process.clock.clone(),
    )?;
    Ok(Farm {
        cloud,
        process,
        provider,
    })
}

async fn cloud_until_killed(folder: &Utf8Path, layers: &Utf8Path) -> Result<()> {
    let farm = farm(folder, Arc::new(PlainFolders(layers.to_owned()))).await?;
    farm.fill(2).await?;
    println!("serving");
    std::future::pending().await
}

impl Farm {
    fn spec(&self) -> Result<SetSpec> {
        Ok(SetSpec {
            name: "web".to_owned(),
            fleet: "prod".to_owned(),
            listen: "127.0.0.1:0".parse()?,
            service_port: PORT,
            health: HealthCheck {
                path: "/".to_owned(),
                status: 200,
                interval: Duration::from_millis(100),
                timeout: Duration::from_secs(1),
                healthy_after: 2,
                unhealthy_after: 2,
            },
            drain_timeout: Duration::from_secs(5),
            model: None,
            tags: BTreeMap::new(),
        })
    }

    async fn fill(&self, count: usize) -> Result<SocketAddr> {
        let set = self.provider.ensure_set("set", &self.spec()?).await?;
        for id in 0..count {
            self.provider
                .create(&target("create", id), &version("app"))
                .await?;
        }
        self.wait(|f| serving(f) == count).await?;
        set.address.context("the set has no address")
    }

    async fn wait(&self, done: impl Fn(&FleetObservation) -> bool) -> Result<FleetObservation> {
        let mut newest = None;
        let mut seen = self.provider.watch("prod");
        let waiting = async {
            while let Some(item) = seen.next().await {
                let fleet = item?;
                if done(&fleet) {
                    return Ok(fleet);
                }
                newest = Some(fleet);
            }
            bail!("the stream has no end")
        };
        match timeout(&SystemClock, PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => bail!("not reached, in the end: {newest:#?}"),
        }
    }

    async fn end(self) -> Result<()> {
        self.process.tasks.cancelled().cancel();
        self.process.tasks.finish(PATIENCE).await?;
        self.cloud.ended().await;
        Ok(())
    }

    /// Replaces every instance as a rollout's batches of one do.
    async fn roll(&self, count: usize, layer: &str) -> Result<Duration> {
        let began = Instant::now();
        for id in 0..count {
            let image = version(layer);
            self.provider
                .drain(&target(&format!("drain-{layer}"), id))
                .await?;
            let fleet = self.wait(|f| one(f, id).is_some_and(|i| i.drained)).await?;
            let mut reimage = target(&format!("reimage-{layer}"), id);
            reimage.if_match = one(&fleet, id).map(|i| i.etag.clone());
            self.provider.reimage(&reimage, &image).await?;
            self.wait(|f| {
                one(f, id).is_some_and(|i| {
                    i.image == image
                        && i.phase == Phase::Running
                        && i.health == oast_worker::provider::Health::Healthy
                })
            })
            .await?;
            self.provider
                .undrain(&target(&format!("undrain-{layer}"), id))
                .await?;
            self.wait(|f| one(f, id).is_some_and(InstanceObservation::is_serving))
                .await?;
        }
        Ok(began.elapsed())
    }
}

fn one(fleet: &FleetObservation, id: usize) -> Option<&InstanceObservation> {
    fleet.instance("web", &id.to_string())
}

fn serving(fleet: &FleetObservation) -> usize {
    fleet
        .sets
        .iter()
        .flat_map(|s| &s.instances)
        .filter(|i| i.is_serving())
        .count()
}

fn version(layer: &str) -> ImageRef {
    ImageRef {
        name: "web".to_owned(),
        version: layer.to_owned(),
        layers: vec!["base".to_owned(), layer.to_owned()],
        base_layers: 1,
    }
}

fn target(operation: &str, id: usize) -> Target {
    Target {
        operation_id: format!("{operation}-{id}"),
        caller_token: "test".to_owned(),
        set: "web".to_owned(),
        id: id.to_string(),
        if_match: None,
    }
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece)?;
        text.extend_from_slice(&piece[..n]);
        let so_far = String::from_utf8_lossy(&text);
        let Some((head, body)) = so_far.split_once("\r\n\r\n") else {
            ensure!(n > 0, "closed early: {so_far:?}");
            continue;
        };
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("Content-Length: "));
        let length: usize = length.context("no length")?.parse()?;
        if body.len() >= length {
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            return Ok(body.trim().to_owned());
        }
        ensure!(n > 0, "closed early: {so_far:?}");
    }
}

/// Requests from another thread until stopped: how many, and which failed.
struct Client {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Client {
    fn start(address: SocketAddr) -> Client {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                failures.extend(get(address, "/").err().map(|e| format!("{e:#}")));
                counted.fetch_add(1, Ordering::SeqCst);
            }
            failures
        });
        Client { stop, done, thread }
    }

    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let failures = self.thread.join().ok().context("the client panicked")?;
        let done = self.done.load(Ordering::SeqCst);
        ensure!(
            failures.is_empty(),
            "{} of {done} failed: {:?}",
            failures.len(),
            failures.first()
        );
        Ok(done)
    }
}

// ---- the tests ---------------------------------------------------------------------------------

async fn all() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let folder = Utf8PathBuf::from_path_buf(folder.path().to_owned())
        .map_err(|p| anyhow::anyhow!("{} is not UTF-8", p.display()))?;
    image(folder.join("layers").as_std_path(), IdMap::detect()?)?;
    units_of_an_image_run_and_are_replaced_without_a_failed_request(&folder).await?;
    println!("ok: units_of_an_image_run_and_are_replaced_without_a_failed_request");
    let layers = folder.join("layers");
    nothing_is_left_of_a_killed_cloud(&folder.join("killed"), &layers)?;
    println!("ok: nothing_is_left_of_a_killed_cloud");
    Ok(())
}

async fn units_of_an_image_run_and_are_replaced_without_a_failed_request(
    folder: &Utf8Path,
) -> Result<()> {
    let layers = Arc::new(stored(folder, IdMap::detect()?)?);
    let farm = farm(&folder.join("units"), layers).await?;
    let began = Instant::now();
    let address = farm.fill(3).await?;
    println!("3 instances serve after {:?}", began.elapsed());
    let fleet = farm.provider.observe("prod").await?;
    for id in 0..3 {
        let direct = one(&fleet, id)
            .and_then(|i| i.direct)
            .context("a direct address")?;
        ensure!(
            get(direct, "/")? == format!("web-{id} 1"),
            "{}",
            get(direct, "/")?
        );
        let note = one(&fleet, id).map(|i| i.note.clone());
        ensure!(note.as_deref() == Some("enabled units"), "{note:?}");
    }
    let client = Client::start(address);
    let took = farm.roll(3, "app2").await?;
    let requests = client.end()?;
    println!("3 instances replaced in {took:?}, {requests} requests, none failed");
    for id in 0..3 {
        let fleet = farm.provider.observe("prod").await?;
        let instance = one(&fleet, id).context("the instance")?;
        ensure!(instance.replaced == 1, "{instance:?}");
        ensure!(get(instance.direct.context("direct")?, "/")? == format!("web-{id} 2"));
    }
    // A crash of the service is the end of the instance, with the unit's name, until it is restarted.
    let direct = one(&fleet, 1)
        .and_then(|i| i.direct)
        .context("a direct address")?;
    ensure!(get(direct, "/crash").is_err());
    let fleet = farm
        .wait(|f| one(f, 1).is_some_and(|i| i.phase == Phase::Stopped))
        .await?;
    let note = one(&fleet, 1).map(|i| i.note.clone()).unwrap_or_default();
    ensure!(note.contains("server.service ended with code 3"), "{note}");
    farm.provider.restart(&target("restart", 1)).await?;
    farm.wait(|f| serving(f) == 3).await?;
    farm.end().await?;
    ensure!(leftovers(SERVER)?.is_empty(), "{:?}", leftovers(SERVER)?);
    Ok(())
}

fn nothing_is_left_of_a_killed_cloud(place: &Utf8Path, layers: &Utf8Path) -> Result<()> {
    let mut cloud = Command::new(std::env::current_exe()?)
        .args(["cloud", place.as_str(), layers.as_str()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(cloud.stdout.take().context("stdout")?).read_line(&mut line)?;
    ensure!(line == "serving\n", "{line:?}");
    ensure!(!leftovers(SERVER)?.is_empty(), "its servers run");
    let group = LocalCloudConfig {
        data_dir: place.join("cloud"),
        ..LocalCloudConfig::default()
    };
    let group = format!("/sys/fs/cgroup/unified/oast-{}", group.farm_name());
    let grouped = Path::new(&group).exists();
    cloud.kill()?;
    cloud.wait()?;
    let began = Instant::now();
    while !leftovers(SERVER)?.is_empty() || Path::new(&group).exists() {
        ensure!(
            began.elapsed() < PATIENCE,
            "left: {:?}, {group}",
            leftovers(SERVER)?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    println!(
        "a killed cloud's instances are gone after {:?} (control groups: {grouped})",
        began.elapsed()
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(place.as_str()), "a mount is left");
    Ok(())
}

/// Command lines of live processes that contain `text`.
fn leftovers(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) {
            found.push(line);
        }
    }
    Ok(found)
}
