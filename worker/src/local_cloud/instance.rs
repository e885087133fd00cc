//! Instances as sandboxes: the image's unpacked layers under an overlay, in namespaces of their own.
//!
//! ```text
//! prepare: layers as folders -> upper + work folder -> what will be booted (init or units)
//! start:   sandbox (user, mount, PID, network, UTS, IPC, cgroup) -> dialer into its network
//! stop:    ask (power-off or SIGTERM), then kill the PID namespace, then remove the upper folder
//! ```
//!
//! Boot mode: the image's own init is process 1 where the host gives instances a control group and
//! that init stays up; else the enabled application units are read and run (`units`). Under `auto`
//! an init that ends in its first moments is given up for good and units are used; which mode ran
//! is part of every instance's state. An instance's root is made anew for each boot: what it wrote
//! is gone, as with a reimage.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::future::BoxFuture;

use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::telemetry::chain;

use super::BootPolicy;
use super::backend::Dial;
use super::runtime::{BootError, BootMode, BootSpec, LayerSource, Prepared, Running, Runtime};
use super::spec::Image;
use super::units::{self, ImageTree};
use crate::sandbox::netns::Dialer;
use crate::sandbox::{Cgroup, IdMap, Launcher, Output, Overlay, Root, Sandbox, Spec, cgroup};

mod console;

/// What an image's init is told, as a kernel command line would: in a namespace there is no
/// link that networkd could bring up, so waiting for one would hold back whoever needs the network.
const INIT_ARGUMENTS: [&str; 1] = ["systemd.mask=systemd-networkd-wait-online.service"];

/// Time an instance has for an orderly end before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// An init that ends sooner than this did not boot.
const INIT_PROOF: Duration = Duration::from_millis(250);
/// Second half of instances' addresses is their number; beyond it addresses repeat, which is
/// harmless because each has a network of its own.
const ADDRESS: [u8; 2] = [10, 88];

/// What instances need from the host.
#[derive(Debug)]
pub struct Options {
    /// Starts sandboxes.
    pub launcher: Launcher,
    /// Where layers come from.
    pub layers: Arc<dyn LayerSource>,
    /// Upper folders and consoles of instances.
    pub folder: Utf8PathBuf,
    /// Names the farm's control groups on this machine.
    pub farm: String,
    /// How images are booted.
    pub boot: BootPolicy,
    /// Measures patience.
    pub clock: SharedClock,
    /// The process's register.
    pub tasks: Tasks,
}

/// Runs instances as sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    host: Arc<Host>,
}

#[derive(Debug)]
struct Host {
    launcher: Launcher,
    idmap: IdMap,
    layers: Arc<dyn LayerSource>,
    folder: Utf8PathBuf,
    farm: String,
    boot: BootPolicy,
    clock: SharedClock,
    tasks: Tasks,
    /// Under `auto`: an init was tried here and did not stay up.
    init_failed: AtomicBool,
    /// An init was tried here and stayed up, so that the next ones need no proof.
    init_proven: AtomicBool,
}

impl Sandboxes {
    /// Removes what an earlier process of this data directory left, and is ready to boot.
    ///
    /// # Errors
    /// Leftovers cannot be removed, or `boot: init` is asked of a host that cannot.
    pub fn new(options: Options) -> Result<Sandboxes, BootError> {
        let Options {
            launcher,
            layers,
            folder,
            farm,
            boot,
            clock,
            tasks,
        } = options;
        let groups = cgroup::available();
        if let (BootPolicy::Init, Err(fault)) = (boot, &groups) {
            let reason = format!("{fault}; `boot = \"auto\"` runs the enabled units instead");
            return Err(BootError::system(
                "give an image's init a control group",
                reason,
            ));
        }
        if groups.is_ok() {
            // Only a killed cloud leaves groups behind; their processes are dead with it.
            cgroup::sweep(&farm).map_err(|f| BootError::system("sweep control groups", f))?;
        } else {
            tracing::info!(
                "This host gives instances no control groups; their enabled units are run."
            );
        }
        remove_tree(&folder).map_err(|err| BootError::system(format!("empty {folder}"), err))?;
        let made = std::fs::create_dir_all(&folder);
        made.map_err(|err| BootError::system(format!("make {folder}"), err))?;
        let host = Host {
            idmap: launcher.idmap(),
            launcher,
            layers,
            folder,
            farm,
            boot,
            clock,
            tasks,
            init_failed: AtomicBool::new(groups.is_err()),
            init_proven: AtomicBool::new(false),
        };
        Ok(Sandboxes {
            host: Arc::new(host),
        })
    }
}

impl Runtime for Sandboxes {
    fn prepare(&self, spec: BootSpec) -> BoxFuture<'_, Result<Box<dyn Prepared>, BootError>> {
        let host = Arc::clone(&self.host);
        Box::pin(async move {
            let tasks = host.tasks.clone();
            let ready = tasks
                .blocking("prepare instance", move || Ready::make(host, spec))
                .await;
            let ready = ready.map_err(|lost| BootError::system("prepare the instance", lost))??;
            Ok(Box::new(ready) as Box<dyn Prepared>)
        })
    }

    fn prefetch<'a>(&'a self, image: &'a Image) -> BoxFuture<'a, Result<(), BootError>> {
        let (host, image) = (Arc::clone(&self.host), image.clone());
        Box::pin(async move {
            let tasks = host.tasks.clone();
            let fetched = tasks
                .blocking("unpack layers", move || host.roots(&image))
                .await;
            fetched
                .map_err(|lost| BootError::system("unpack layers", lost))?
                .map(drop)
        })
    }

    fn forget<'a>(&'a self, set: &'a str, id: &'a str) -> BoxFuture<'a, ()> {
        let folder = self.host.folder.join(set).join(id);
        Box::pin(self.host.discard(folder))
    }
}

impl Host {
    fn roots(&self, image: &Image) -> Result<Vec<Utf8PathBuf>, BootError> {
        self.layers
            .roots(&image.layers)
            .map_err(|reason| BootError::Layers {
                image: format!("{}:{}", image.name, image.version),
                reason,
            })
    }

    /// Removes a folder off the async threads. What cannot be removed is said and swept at the
    /// next start.
    fn discard(&self, folder: Utf8PathBuf) -> BoxFuture<'static, ()> {
        let tasks = self.tasks.clone();
        Box::pin(async move {
            let path = folder.clone();
            let removed = tasks
                .blocking("remove root", move || remove_tree(&path))
                .await;
            if let Ok(Err(err)) = removed {
                tracing::warn!(%folder, %err, "Root of an instance could not be removed.");
            }
        })
    }
}

fn remove_tree(folder: &Utf8Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// A boot that is ready.
struct Ready {
    host: Arc<Host>,
    spec: BootSpec,
    folder: Utf8PathBuf,
    lowers: Vec<PathBuf>,
    tree: ImageTree,
    /// What to do without the image's init; its refusal counts only if it comes to that.
    units: Result<String, BootError>,
    has_init: bool,
    started: bool,
}

impl Ready {
    fn make(host: Arc<Host>, spec: BootSpec) -> Result<Ready, BootError> {
        let roots = host.roots(&spec.image)?;
        let folder = host
            .folder
            .join(&spec.set)
            .join(&spec.id)
            .join(format!("boot-{}", spec.boot));
        // Left by a boot of this number before the cloud restarted.
        remove_tree(&folder).map_err(|err| BootError::system(format!("empty {folder}"), err))?;
        let tree = ImageTree::new(roots.clone(), spec.image.base_layers);
        let has_init = tree.exists("/sbin/init");
        let units = units::plan(&tree)
            .map_err(|refused| BootError::Refused(refused.to_string()))
            .and_then(|plan| plan.script().map_err(|r| BootError::Refused(r.to_string())));
        let lowers: Vec<PathBuf> = roots.iter().rev().map(|r| r.clone().into()).collect();
        let ready = Ready {
            host,
            spec,
            folder,
            lowers,
            tree,
            units,
            has_init,
            started: false,
        };
        if ready.mode() == BootMode::Units {
            // Refused before the old boot is stopped.
            ready.script()?;
        }
        Ok(ready)
    }

    fn mode(&self) -> BootMode {
        match self.host.boot {
            BootPolicy::Units => BootMode::Units,
            BootPolicy::Init => BootMode::Init,
            BootPolicy::Auto if self.has_init && !self.host.init_failed.load(Ordering::Acquire) => {
                BootMode::Init
            }
            BootPolicy::Auto => BootMode::Units,
        }
    }

    fn script(&self) -> Result<&str, BootError> {
        match &self.units {
            Ok(script) => Ok(script),
            Err(err) => Err(BootError::Refused(err.to_string())),
        }
    }

    fn sandbox(&self, mode: BootMode) -> Result<Spec, BootError> {
        let upper = self.folder.join(match mode {
            BootMode::Init => "init",
            BootMode::Units => "units",
        });
        let overlay = Overlay::prepare(upper.as_std_path(), self.lowers.clone(), self.host.idmap)
            .map_err(|fault| BootError::system("make the instance's root", fault))?;
        let hostname = hostname(&self.spec.set, &self.spec.id);
        personalize(&overlay, &hostname, self.host.idmap)
            .map_err(|err| BootError::system("write the instance's host name", err))?;
        let root = Root::Overlay(overlay);
        let mut spec = match mode {
            BootMode::Init => {
                let name = format!("{hostname}-{}", self.spec.boot);
                let group = Cgroup {
                    farm: self.host.farm.clone(),
                    name,
                };
                let mut spec = Spec::instance(root, &hostname, group);
                spec.command.extend(INIT_ARGUMENTS.map(str::to_owned));
                spec
            }
            BootMode::Units => {
                let mut spec = Spec::step(root, ["/bin/sh", "-c", self.script()?]);
                spec.hostname = hostname;
                spec
            }
        };
        let [high, low] = u16::try_from(self.spec.number % 0xfffe + 1)
            .unwrap_or(1)
            .to_be_bytes();
        spec.addresses = vec![Ipv4Addr::new(ADDRESS[0], ADDRESS[1], high, low)];
        Ok(spec)
    }

    async fn boot(&self, mode: BootMode) -> Result<Live, BootError> {
        let spec = self.sandbox(mode)?;
        let failed = |doing: &str, err: &(dyn std::error::Error + 'static)| {
            BootError::system(doing, chain(err))
        };
        let mut sandbox = self
            .host
            .launcher
            .spawn(spec, Output::Pipes)
            .await
            .map_err(|err| failed("start the instance", &err))?;
        let console = self.folder.with_file_name("console.log");
        let tail = console::keep(&self.host.tasks, &mut sandbox, console);
        let namespace = sandbox.namespace.take();
        let namespace = namespace.ok_or_else(|| {
            BootError::system("start the instance", tail.words("it ended at once"))
        })?;
        let dialer = Dialer::enter(namespace)
            .await
            .map_err(|err| failed("enter the instance's network", &err))?;
        Ok(Live {
            host: Arc::clone(&self.host),
            folder: self.folder.clone(),
            sandbox,
            dialer: Arc::new(dialer),
            mode,
            tail,
        })
    }
}

/// The kernel takes 64 bytes; of a long set name the end is cut, never the id.
fn hostname(set: &str, id: &str) -> String {
    const LONGEST: usize = 63;
    let cut = set.len().min(LONGEST.saturating_sub(id.len() + 1));
    format!("{}-{id}", set[..cut].trim_end_matches('-'))
}

/// Files that differ between instances of one image.
fn personalize(overlay: &Overlay, hostname: &str, idmap: IdMap) -> std::io::Result<()> {
    let etc = overlay.upper.join("etc");
    std::fs::create_dir_all(&etc)?;
    let root = Some(idmap.host_id(0));
    std::os::unix::fs::chown(&etc, root, root)?;
    let files = [
        ("hostname", format!("{hostname}\n")),
        (
            "hosts",
            format!("127.0.0.1 localhost {hostname}\n::1 localhost\n"),
        ),
        // Empty: the image's init makes one of its own; nobody shares an identity.
        ("machine-id", String::new()),
    ];
    for (name, text) in files {
        let path = etc.join(name);
        std::fs::write(&path, text)?;
        std::os::unix::fs::chown(&path, root, root)?;
    }
    Ok(())
}

impl Prepared for Ready {
    fn start(mut self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Running>, BootError>> {
        Box::pin(async move {
            self.started = true;
            let mode = self.mode();
            let fall_back = self.host.boot == BootPolicy::Auto
                && mode == BootMode::Init
                && !self.host.init_proven.load(Ordering::Acquire);
            let first = match self.boot(mode).await {
                Ok(live) if fall_back => live.proven().await,
                other => other,
            };
            let live = match first {
                Err(err) if fall_back => {
                    tracing::warn!(%err, "The image's init does not run here; enabled units are used from now on.");
                    self.host.init_failed.store(true, Ordering::Release);
                    self.boot(BootMode::Units).await?
                }
                other => other?,
            };
            debug_assert!(self.tree.exists("/"), "an image has a root");
            Ok(Box::new(live) as Box<dyn Running>)
        })
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if !self.started {
            // Never booted: nothing is mounted there.
            let _ = remove_tree(&self.folder);
        }
    }
}

/// A boot that runs.
#[derive(Debug)]
struct Live {
    host: Arc<Host>,
    folder: Utf8PathBuf,
    sandbox: Sandbox,
    dialer: Arc<Dialer>,
    mode: BootMode,
    tail: console::Tail,
}

impl Live {
    /// Waits until an init has stayed up for a moment.
    async fn proven(mut self) -> Result<Live, BootError> {
        match timeout(&*self.host.clock, INIT_PROOF, self.sandbox.wait()).await {
            Err(_still_up) => {
                self.host.init_proven.store(true, Ordering::Release);
                Ok(self)
            }
            Ok(Ok(exit)) => {
                let words = self.tail.words(&exit.to_string());
                Err(BootError::system("boot the image's init", words))
            }
            Ok(Err(err)) => Err(BootError::system("boot the image's init", chain(&err))),
        }
    }
}

impl Running for Live {
    fn dial(&self) -> Arc<dyn Dial> {
        Arc::clone(&self.dialer) as Arc<dyn Dial>
    }

    fn mode(&self) -> BootMode {
        self.mode
    }

    fn ended(&mut self) -> BoxFuture<'_, String> {
        Box::pin(async move {
            match self.sandbox.wait().await {
                Ok(exit) => self.tail.words(&exit.to_string()),
                Err(err) => chain(&err).to_string(),
            }
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Live {
                host,
                folder,
                mut sandbox,
                ..
            } = *self;
            sandbox.stop();
            if timeout(&*host.clock, STOP_GRACE, sandbox.wait())
                .await
                .is_err()
            {
                sandbox.kill();
                if let Err(err) = sandbox.wait().await {
                    tracing::warn!(%folder, err = %chain(&err), "Instance did not end in order.");
                }
            }
            drop(sandbox);
            // Beside the next boot: removing thousands of files must not lengthen the gap.
            let discard = host.discard(folder);
            host.tasks.spawn("discard root", TaskKind::REQUEST, discard);
        })
    }
}
