//! Makes a base system in a folder and prints how long each part took.
//!
//! `cargo run -p oast-worker --release --example base -- debian-12 CACHE ROOT [PACKAGE...]`, as
//! root. Maintainer scripts run in the worker's sandbox, whose helper is this same program.

#![expect(
    clippy::disallowed_macros,
    reason = "an example talks to the person who runs it"
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::clock::SystemClock;
use oast_worker::bake::base::confine::Sandboxed;
use oast_worker::bake::base::{
    self, BaseContext, BaseError, BaseRequest, Event, Progress, distribution, fetch,
};
use oast_worker::sandbox::{IdMap, Launcher};
use tokio_util::sync::CancellationToken;

struct Print;

impl Progress for Print {
    fn event(&self, event: Event) {
        if let Event::Ended { stage, took } = event {
            println!("{stage:?}: {:.2} s", took.as_secs_f64());
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // A sandbox's helper must have one thread, so this comes before the runtime.
    if args.first().is_some_and(|arg| arg == "internal") {
        oast_worker::sandbox::entry();
    }
    let [distribution, cache, root, packages @ ..] = args.as_slice() else {
        eprintln!("usage: base DISTRIBUTION CACHE ROOT [PACKAGE...]");
        return ExitCode::from(2);
    };
    let request = BaseRequest {
        distribution: distribution.clone(),
        architecture: distribution::native_architecture().to_owned(),
        packages: packages.to_vec(),
        kernel: true,
        sources: Vec::new(),
        mirror: None,
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    match runtime.block_on(make(&request, cache, root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = std::error::Error::source(&*error);
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

async fn make(
    request: &BaseRequest,
    cache: &str,
    root: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let idmap = IdMap::detect()?;
    let cancel = CancellationToken::new();
    let launcher = Launcher::new("/proc/self/exe", idmap);
    let runtime = tokio::runtime::Handle::current();
    let context = BaseContext {
        cache_dir: Utf8PathBuf::from(cache),
        apt_root: "/etc/apt".into(),
        mirrors: Vec::new(),
        fetch: fetch::FetchOptions::default(),
        index_max_age: Duration::from_secs(3600),
        confined: Arc::new(Sandboxed::new(launcher, runtime)),
        clock: SystemClock::shared(),
        progress: Arc::new(Print),
        host_base: idmap.host_base(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        cancel,
    };
    let stop = context.cancel.clone();
    let work = base::build(request, &context, Utf8Path::new(root));
    tokio::pin!(work);
    let base = tokio::select! {
        base = &mut work => base?,
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            work.await?;
            return Err(BaseError::Cancelled.into());
        }
    };
    println!("{} packages in {}", base.resolved.packages.len(), base.root);
    println!("index digest {}", base.resolved.index_digest);
    println!("closure digest {}", base.resolved.closure_digest);
    let tools = base::tools(request, &context, &["systemd-boot-efi", "busybox-static"]).await?;
    println!("tools in {tools}");
    Ok(())
}
