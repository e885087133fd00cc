//! Makes a base system in a folder and prints how long each part took.
//!
//! `cargo run -p oast-worker --release --example base -- debian-12 CACHE ROOT`, as root. The
//! maintainer scripts run in a chroot in private namespaces here, not in the worker's sandbox.

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use oast_daemon::clock::SystemClock;
use oast_worker::bake::base::configure::{ConfineError, Confined, ConfinedCommand, ConfinedOutput};
use oast_worker::bake::base::{self, BaseContext, BaseRequest, Event, Progress, distribution};

struct Chroot;

impl Confined for Chroot {
    fn run(&self, command: &ConfinedCommand<'_>) -> Result<ConfinedOutput, ConfineError> {
        let fail = |error: std::io::Error| ConfineError {
            program: command.argv.join(" "),
            reason: error.to_string(),
        };
        // A volatile overlay over nothing, with the root as its upper folder: dpkg's many syncs
        // cost nothing, and what is written is in the root itself.
        let script = r#"upper=$1; work=$2; root=$2/m; shift 2
mkdir -p "$work/l" "$work/w" "$root" &&
mount -t overlay overlay -o "lowerdir=$work/l,upperdir=$upper,workdir=$work/w,volatile" "$root" &&
mount -t proc proc "$root/proc" && mount -t sysfs -o ro sys "$root/sys" && mount --rbind /dev "$root/dev" &&
mount -t tmpfs tmpfs "$root/run" && mount -t tmpfs tmpfs "$root/tmp" && exec chroot "$root" "$@" 2>&1"#;
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--uts",
                "--fork",
                "--kill-child",
                "sh",
            ])
            .args([
                "-c",
                script,
                "sh",
                command.root.as_str(),
                command.scratch.as_str(),
            ])
            .args(command.argv)
            .env_clear()
            .envs(command.env.iter().copied())
            .output()
            .map_err(fail)?;
        let mut text = output.stdout;
        text.extend(output.stderr);
        Ok(ConfinedOutput {
            status: output.status.code().unwrap_or(128),
            output: text,
        })
    }
}

struct Print;

impl Progress for Print {
    fn event(&self, event: Event) {
        if let Event::Ended { stage, took } = event {
            println!("{stage:?}: {:.2} s", took.as_secs_f64());
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [distribution, cache, root] = args.as_slice() else {
        eprintln!("usage: base DISTRIBUTION CACHE ROOT");
        return ExitCode::from(2);
    };
    let request = BaseRequest {
        distribution: distribution.clone(),
        architecture: distribution::native_architecture().to_owned(),
        packages: Vec::new(),
        kernel: true,
        sources: Vec::new(),
        mirror: None,
    };
    let context = BaseContext {
        cache_dir: Utf8PathBuf::from(cache),
        apt_root: "/etc/apt".into(),
        mirrors: Vec::new(),
        fetch: base::fetch::FetchOptions::default(),
        index_max_age: Duration::from_secs(3600),
        confined: Arc::new(Chroot),
        clock: SystemClock::shared(),
        progress: Arc::new(Print),
        host_base: 0,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        cancel: tokio_util::sync::CancellationToken::new(),
    };
    match base::build(&request, &context, Utf8Path::new(root)).await {
        Ok(base) => {
            println!("{} packages in {}", base.resolved.packages.len(), base.root);
            println!("index digest {}", base.resolved.index_digest);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}
