//! One generated archive, served for all tests, and the smallest system that it can hold.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use camino::Utf8PathBuf;
use oast_daemon::clock::SystemClock;
use oast_worker::bake::base::configure::{ConfineError, Confined, ConfinedCommand, ConfinedOutput};
use oast_worker::bake::base::confine::Sandboxed;
use oast_worker::bake::base::fetch::FetchOptions;
use oast_worker::bake::base::source::{Keyring, Mirror};
use oast_worker::bake::base::{self, BaseContext, BaseError, BaseRequest, distribution};
use oast_worker::sandbox::{IdMap, Launcher};
use tokio_util::sync::CancellationToken;

use crate::archive::{Entry, Package, Publish, Signer, programs};
use crate::server::Server;

pub const DATE: &str = "Thu, 01 Jan 2026 00:00:00 UTC";

/// One archive for all tests; each has a cache of its own.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub signer: Signer,
    pub server: Server,
    pub idmap: Option<IdMap>,
}

impl Bench {
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("oast-base-test-")
            .tempdir()?;
        // The sandbox's root is an ordinary id that must be able to walk in.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
        let signer = Signer::new()?;
        signer.export(&folder.path().join("key.gpg"))?;
        signer.export(&folder.path().join("key.asc"))?;
        let web = folder.path().join("web");
        let publish = |suite, packages: &[Package]| {
            Publish {
                suite,
                packages,
                signer: &signer,
                date: DATE,
                valid_until: None,
                detached: false,
            }
            .write(&web.join("ubuntu"))
        };
        publish("noble", &system()?)?;
        publish(
            "noble-updates",
            &[dummy("dbus", "1.14.10-4ubuntu4.1").compressed("xz")],
        )?;
        let server = Server::start(web)?;
        Ok(Self {
            folder,
            signer,
            server,
            idmap: IdMap::detect().ok(),
        })
    }

    /// Publishes another archive that has `extra` beside the system.
    pub fn publish(&self, name: &str, extra: Vec<Package>) -> Result<()> {
        let mut packages = system()?;
        packages.extend(extra);
        Publish {
            suite: "noble",
            packages: &packages,
            signer: &self.signer,
            date: DATE,
            valid_until: None,
            detached: false,
        }
        .write(&self.web(name))
    }

    pub fn web(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("web").join(name)
    }

    pub fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join(name)).expect("a UTF-8 folder")
    }

    pub fn request(&self, archive: &str) -> BaseRequest {
        BaseRequest {
            distribution: "ubuntu-24.04".to_owned(),
            architecture: distribution::native_architecture().to_owned(),
            packages: Vec::new(),
            kernel: true,
            sources: Vec::new(),
            mirror: Some(Mirror {
                url: format!("{}/{archive}", self.server.url),
                suites: Vec::new(),
                components: vec!["main".to_owned()],
                keyring: Keyring::Files(vec![self.path("key.gpg")]),
                check_valid_until: true,
            }),
        }
    }

    pub fn context(&self, cache: &str) -> BaseContext {
        let cancel = CancellationToken::new();
        let confined: Arc<dyn Confined> = match self.idmap {
            None => Arc::new(Nothing),
            Some(idmap) => Arc::new(Sandboxed::new(
                Launcher::new("/proc/self/exe", idmap),
                tokio::runtime::Handle::current(),
            )),
        };
        BaseContext {
            cache_dir: self.path(cache),
            apt_root: self.path("no-apt"),
            mirrors: Vec::new(),
            fetch: FetchOptions {
                attempts: 2,
                backoff: Duration::from_millis(1),
                ..FetchOptions::default()
            },
            index_max_age: Duration::from_secs(600),
            confined,
            clock: SystemClock::shared(),
            progress: Arc::new(()),
            host_base: self
                .idmap
                .map_or_else(|| rustix::process::getuid().as_raw(), IdMap::host_base),
            threads: 2,
            cancel,
        }
    }

    pub async fn build(&self, request: &BaseRequest, name: &str) -> Result<base::Base, BaseError> {
        base::build(
            request,
            &self.context(name),
            &self.path(&format!("{name}.root")),
        )
        .await
    }
}

/// For tests that never come to configuring.
struct Nothing;

impl Confined for Nothing {
    fn run(&self, command: &ConfinedCommand<'_>) -> Result<ConfinedOutput, ConfineError> {
        Err(ConfineError {
            program: command.argv.join(" "),
            reason: "needs root".to_owned(),
        })
    }
}

pub fn dummy(name: &str, version: &str) -> Package {
    Package::new(name, version).file(&format!("usr/share/doc/{name}/copyright"), name)
}

/// The smallest set of packages that answers to Ubuntu's names and can configure itself.
pub fn system() -> Result<Vec<Package>> {
    let mut libraries = Package::new("libc6", "2.39-0ubuntu8").compressed("xz");
    let dpkg = programs(
        Package::new("dpkg", "1.22.6ubuntu6")
            .essential()
            .field("Pre-Depends", "libc6 (>= 2.34)"),
        &mut libraries,
        &[
            "dpkg",
            "dpkg-deb",
            "dpkg-split",
            "start-stop-daemon",
            "diff",
            "tar",
        ],
    )?;
    let shell = programs(
        Package::new("dash", "0.5.12-6ubuntu5")
            .essential()
            .field("Pre-Depends", "libc6"),
        &mut libraries,
        &["dash"],
    )?
    .compressed("gz");
    let tools = programs(
        Package::new("coreutils", "9.4-3ubuntu6")
            .essential()
            .field("Depends", "libc6"),
        &mut libraries,
        &["cat", "rm", "ldconfig"],
    )?;
    let files = Package::new("base-files", "13ubuntu10")
        .essential()
        .field("Provides", "usr-is-merged")
        .entry("bin", Entry::Link("usr/bin".to_owned()))
        .entry("tmp", Entry::Folder(0o1777))
        .entry("dev", Entry::Folder(0o755))
        .entry("proc", Entry::Folder(0o755))
        .entry("sys", Entry::Folder(0o755))
        .entry("run", Entry::Folder(0o755))
        .entry(
            "etc/issue",
            Entry::File(b"Ubuntu 24.04 LTS\n".to_vec(), 0o644),
        )
        .script("conffiles", "/etc/issue\n")
        .entry(
            "usr/bin/first",
            Entry::File(b"#!/bin/sh\n".to_vec(), 0o4755),
        )
        .entry(
            "usr/bin/second",
            Entry::HardLink("./usr/bin/first".to_owned()),
        );
    let passwd = Package::new("base-passwd", "3.6.3").essential().script(
        "preinst",
        "#!/bin/sh\n[ \"$1\" = install ] && [ \"$DPKG_MAINTSCRIPT_PACKAGE\" = base-passwd ] || exit 1\n\
         echo 'root:*:0:0:root:/root:/bin/sh' > /etc/passwd\necho 'root:*:0:' > /etc/group\n",
    );
    let kernel = Package::new("linux-image-6.8.0-1-generic", "6.8.0-1.1")
        .field(
            "Depends",
            "initramfs-tools (>= 0.142) | linux-initramfs-tool",
        )
        .file("boot/vmlinuz-6.8.0-1-generic", "kernel")
        .script("postinst", "#!/bin/sh\necho made > /boot/postinst-ran\n");
    let mut packages = vec![
        libraries,
        dpkg,
        shell,
        tools,
        files,
        passwd,
        kernel,
        Package::new("linux-image-virtual", "6.8.0-1.1")
            .field("Depends", "linux-image-6.8.0-1-generic"),
    ];
    for name in [
        "apt",
        "ca-certificates",
        "dbus",
        "e2fsprogs",
        "systemd",
        "systemd-resolved",
        "udev",
    ] {
        packages.push(dummy(name, "1"));
    }
    packages.push(dummy("systemd-sysv", "1").field("Depends", "systemd"));
    Ok(packages)
}
