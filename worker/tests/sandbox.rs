//! The sandbox for real: namespaces, mounts and processes of this machine. Without a harness, because the test binary
//! is also the helper that a sandbox re-executes (`internal sandbox`), which must have one thread.
//!
//! Runs as root; as an ordinary user through the farm namespace. The sandbox's root is an overlay over a few empty
//! folders with this machine's `/usr` bound in, so nothing needs to be downloaded.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use oast_worker::sandbox::{
    Bind, Exit, IdMap, InitMode, Launcher, Network, Output, Overlay, Root, Spec,
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "internal") {
        oast_worker::sandbox::entry();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let bench = Bench::new()?;
    runtime.block_on(bench.all())
}

struct Bench {
    folder: PathBuf,
    launcher: Launcher,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("oast-sandbox-test-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let idmap = IdMap::detect()?;
        let root = Some(idmap.host_id(0));
        for name in [
            "", "etc", "root", "var", "usr", "proc", "sys", "dev", "run", "tmp",
        ] {
            let made = folder.join("base").join(name);
            fs::create_dir(&made)?;
            std::os::unix::fs::chown(&made, root, root)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(
                Path::new("usr").join(name),
                folder.join("base").join(name),
            )?;
        }
        Ok(Self {
            folder,
            launcher: Launcher::new("/proc/self/exe", idmap),
        })
    }

    fn overlay(&self, name: &str) -> Result<Root> {
        Ok(Root::Overlay(Overlay::prepare(
            &self.folder.join(name),
            vec![self.folder.join("base")],
            self.launcher.idmap(),
        )?))
    }

    fn shell(&self, name: &str, script: &str) -> Result<Spec> {
        let mut spec = Spec::step(self.overlay(name)?, ["sh", "-c", script]);
        spec.binds.push(Bind::read_only("/usr", "/usr"));
        Ok(spec)
    }

    async fn all(&self) -> Result<()> {
        self.prints_and_exit_codes_come_through()
            .await
            .context("prints_and_exit_codes_come_through")?;
        println!("ok");
        let start = Instant::now();
        for i in 0..20 {
            let spec = self.shell(&format!("bench{i}"), "exit 0")?;
            self.launcher.run(spec, 100).await?;
        }
        println!("spawn: {:?}", start.elapsed() / 20);
        Ok(())
    }

    async fn prints_and_exit_codes_come_through(&self) -> Result<()> {
        let spec = self.shell("print", "id -u; touch /etc/made; echo bad >&2; exit 7")?;
        let done = self.launcher.run(spec, 100_000).await?;
        println!("{}", String::from_utf8_lossy(&done.stdout));
        println!("{}", String::from_utf8_lossy(&done.stderr));
        println!("{:?}", done.exit);
        let made = fs::metadata(self.folder.join("print/upper/etc/made"))?;
        ensure!(made.uid() == self.launcher.idmap().host_id(0));
        Ok(())
    }
}
