//! Bases from a *generated* signed archive that stands for Ubuntu 24.04's, over loopback HTTP.
//!
//! It proves the engine's part on Ubuntu's names and formats, not Ubuntu itself. Without a
//! harness, because the test binary is also the helper that a sandbox re-executes. Needs gpg,
//! gpgv and dpkg; the tests that configure packages need root (or the farm's namespace) and say
//! so when they are left out. `cargo test -p oast-worker --test base [NAME]`.

#![expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test binary without a harness reports on its own streams; its server's threads \
              end with the process"
)]

mod archive;
mod bench;
mod server;

use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archive::{Entry, Package, Publish, Signer};
use bench::{Bench, DATE, dummy, system};
use camino::Utf8Path;
use oast_daemon::clock::SystemClock;
use oast_worker::bake::base::archive::ArchiveError;
use oast_worker::bake::base::fetch::FetchError;
use oast_worker::bake::base::release::ReleaseError;
use oast_worker::bake::base::signature::SignatureError;
use oast_worker::bake::base::source::Keyring;
use oast_worker::bake::base::{self, BaseError, Event, Progress, Stage, distribution};
use server::Fault;
use tokio_util::sync::CancellationToken;

type Test = for<'a> fn(&'a Bench) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), |bench| Box::pin($name(bench)))),*]
    };
}

const TESTS: &[(&str, Test)] = tests![
    a_base_is_resolved_and_then_known_without_asking_again,
    a_changed_release_file_is_refused,
    a_release_file_of_an_unknown_key_is_refused,
    an_expired_release_file_is_refused,
    armoured_keys_and_detached_signatures_serve,
    a_damaged_index_is_refused,
    an_interrupted_fetch_is_continued,
    a_damaged_package_is_refused_and_not_kept,
    an_unreachable_mirror_is_named,
    a_dependency_that_nothing_satisfies_is_named,
    a_package_that_leaves_its_root_is_refused,
    packages_that_ship_the_same_file_are_refused,
];

const ROOT_TESTS: &[(&str, Test)] = tests![
    a_base_is_configured_and_left_clean,
    a_failing_script_is_shown_and_leaves_no_root,
    a_cancelled_build_leaves_no_root,
    a_dropped_build_ends_its_scripts,
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "internal") {
        oast_worker::sandbox::entry();
    }
    let filter = args
        .iter()
        .find(|arg| !arg.starts_with('-'))
        .cloned()
        .unwrap_or_default();
    let runtime = tokio::runtime::Runtime::new()?;
    let bench = Bench::new()?;
    let mut failed = 0;
    let mut run = |name: &str, test: Test| {
        if !name.contains(&filter) {
            return;
        }
        bench.server.clear();
        match runtime.block_on(test(&bench)) {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => {
                println!("test {name} ... FAILED\n{error:?}");
                failed += 1;
            }
        }
    };
    for (name, test) in TESTS {
        run(name, *test);
    }
    for (name, test) in ROOT_TESTS {
        if bench.idmap.is_some() {
            run(name, *test);
        } else {
            println!("test {name} ... SKIPPED: needs root or the farm's namespace");
        }
    }
    ensure!(failed == 0, "{failed} tests failed");
    Ok(())
}

async fn a_base_is_resolved_and_then_known_without_asking_again(bench: &Bench) -> Result<()> {
    let (request, context) = (bench.request("ubuntu"), bench.context("resolve"));
    let resolved = base::resolve(&request, &context).await?;
    let find = |name: &str| {
        resolved
            .packages
            .iter()
            .find(|package| package.name == name)
    };
    ensure!(
        find("dbus").is_some_and(|p| p.version == "1.14.10-4ubuntu4.1"),
        "not the update"
    );
    ensure!(
        find("initramfs-tools").is_none() && find("dash").is_some(),
        "{resolved:#?}"
    );
    ensure!(
        bench
            .server
            .asked()
            .iter()
            .all(|path| !path.ends_with(".deb")),
        "fetched packages"
    );
    bench.server.clear();
    let again = base::resolve(&request, &context).await?;
    ensure!(again == resolved, "another answer");
    // That the archive has no `noble-security` is remembered, too.
    let asked = bench.server.asked();
    ensure!(asked.is_empty(), "asked for {asked:?}");
    Ok(())
}

async fn a_changed_release_file_is_refused(bench: &Bench) -> Result<()> {
    bench.publish("changed", Vec::new())?;
    let path = bench.web("changed/dists/noble/InRelease");
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, text.replace("Origin: Test", "Origin: Evil"))?;
    let error = base::resolve(&bench.request("changed"), &bench.context("changed")).await;
    let Err(BaseError::Archive(ArchiveError::Release(ReleaseError::Signature {
        source: SignatureError::Bad { what, .. },
    }))) = &error
    else {
        bail!("{error:?}")
    };
    ensure!(what.ends_with("/changed/dists/noble/InRelease"), "{what}");
    // Text around the signed part must not be believed either.
    std::fs::write(&path, format!("Origin: Evil\n\n{text}"))?;
    let error = base::resolve(&bench.request("changed"), &bench.context("changed")).await;
    ensure!(error.is_err(), "believed unsigned text");
    Ok(())
}

async fn a_release_file_of_an_unknown_key_is_refused(bench: &Bench) -> Result<()> {
    let stranger = Signer::new()?;
    let path = bench.path("stranger.gpg");
    stranger.export(path.as_std_path())?;
    let mut request = bench.request("ubuntu");
    if let Some(mirror) = &mut request.mirror {
        mirror.keyring = Keyring::Files(vec![path.clone()]);
    }
    let error = base::resolve(&request, &bench.context("stranger"))
        .await
        .unwrap_err();
    let BaseError::Archive(ArchiveError::Release(ReleaseError::Signature {
        source: SignatureError::Untrusted { keyring, .. },
    })) = &error
    else {
        bail!("{error:?}")
    };
    ensure!(keyring == path.as_str(), "{error}");
    Ok(())
}

async fn an_expired_release_file_is_refused(bench: &Bench) -> Result<()> {
    Publish {
        suite: "noble",
        packages: &system()?,
        signer: &bench.signer,
        date: DATE,
        valid_until: Some("Fri, 02 Jan 2026 00:00:00 UTC"),
        detached: false,
    }
    .write(&bench.web("expired"))?;
    let mut request = bench.request("expired");
    let error = base::resolve(&request, &bench.context("expired"))
        .await
        .unwrap_err();
    ensure!(
        matches!(
            &error,
            BaseError::Archive(ArchiveError::Release(ReleaseError::Expired { valid_until, .. }))
                if valid_until.starts_with("Fri, 02 Jan")
        ),
        "{error:?}"
    );
    if let Some(mirror) = &mut request.mirror {
        mirror.check_valid_until = false;
    }
    base::resolve(&request, &bench.context("expired")).await?;
    Ok(())
}

async fn armoured_keys_and_detached_signatures_serve(bench: &Bench) -> Result<()> {
    Publish {
        suite: "noble",
        packages: &system()?,
        signer: &bench.signer,
        date: DATE,
        valid_until: None,
        detached: true,
    }
    .write(&bench.web("detached"))?;
    let mut request = bench.request("detached");
    if let Some(mirror) = &mut request.mirror {
        mirror.keyring = Keyring::Files(vec![bench.path("key.asc")]);
    }
    base::resolve(&request, &bench.context("detached")).await?;
    if let Some(mirror) = &mut request.mirror {
        mirror.keyring = Keyring::Inline(std::fs::read_to_string(bench.path("key.asc"))?);
    }
    base::resolve(&request, &bench.context("detached-inline")).await?;
    Ok(())
}

async fn a_damaged_index_is_refused(bench: &Bench) -> Result<()> {
    bench.publish("index", Vec::new())?;
    let architecture = distribution::native_architecture();
    let folder = bench
        .web("index")
        .join(format!("dists/noble/main/binary-{architecture}"));
    for entry in std::fs::read_dir(folder.join("by-hash/SHA256"))? {
        let path = entry?.path();
        let served = format!("/{}", path.strip_prefix(bench.web(""))?.display());
        bench.server.fault(&served, Fault::Damage);
    }
    let error = base::resolve(&bench.request("index"), &bench.context("index"))
        .await
        .unwrap_err();
    let BaseError::Archive(ArchiveError::Fetch(FetchError::Mismatch { url, .. })) = &error else {
        bail!("{error:?}")
    };
    ensure!(url.contains("/by-hash/SHA256/"), "{url}");
    Ok(())
}

fn kernel_path() -> &'static str {
    "/ubuntu/pool/libc6_2.39-0ubuntu8.deb"
}

async fn an_interrupted_fetch_is_continued(bench: &Bench) -> Result<()> {
    bench
        .server
        .fault(kernel_path(), Fault::TruncateOnce(100_000));
    let context = bench.context("resume");
    let request = bench.request("ubuntu");
    base::tools(&request, &context, &["libc6"]).await?;
    let state = bench.server.state.lock().unwrap();
    let ranges: Vec<_> = state
        .requests
        .iter()
        .filter(|(path, _)| path == kernel_path())
        .map(|(_, range)| range.clone())
        .collect();
    ensure!(
        ranges == [None, Some("bytes=100000-".to_owned())],
        "{ranges:?}"
    );
    Ok(())
}

async fn a_damaged_package_is_refused_and_not_kept(bench: &Bench) -> Result<()> {
    bench.server.fault(kernel_path(), Fault::Damage);
    let (request, context) = (bench.request("ubuntu"), bench.context("damage"));
    let error = base::tools(&request, &context, &["libc6"])
        .await
        .unwrap_err();
    let BaseError::Fetch(FetchError::Mismatch { url, .. }) = &error else {
        bail!("{error:?}")
    };
    ensure!(url.ends_with(kernel_path()), "{url}");
    bench.server.clear();
    base::tools(&request, &context, &["libc6"]).await?;
    // What is stored is hashed again: a damaged store heals.
    let bytes: Vec<_> = walk(context.cache_dir.join("files").as_std_path())?;
    for path in &bytes {
        std::fs::write(path, "damaged")?;
    }
    std::fs::remove_dir_all(context.cache_dir.join("tools"))?;
    base::tools(&request, &context, &["libc6"]).await?;
    Ok(())
}

async fn an_unreachable_mirror_is_named(bench: &Bench) -> Result<()> {
    let mut request = bench.request("ubuntu");
    if let Some(mirror) = &mut request.mirror {
        // Bound and dropped, so nobody listens there.
        let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        mirror.url = format!("http://{free}/ubuntu");
    }
    let error = base::resolve(&request, &bench.context("nobody"))
        .await
        .unwrap_err();
    let BaseError::Archive(ArchiveError::Release(ReleaseError::Fetch {
        source:
            FetchError::Unreachable {
                url,
                attempts,
                reason,
            },
        ..
    })) = &error
    else {
        bail!("{error:?}")
    };
    ensure!(
        url.ends_with("/dists/noble/InRelease") && *attempts == 2,
        "{error:?}"
    );
    ensure!(reason.to_lowercase().contains("refused"), "{reason}");
    // A server in trouble is asked again, then reported with its answer.
    bench
        .server
        .fault("/ubuntu/dists/noble/InRelease", Fault::Status(503));
    let error = base::resolve(&bench.request("ubuntu"), &bench.context("trouble"))
        .await
        .unwrap_err();
    let asked = bench.server.state.lock().unwrap().requests.len();
    ensure!(
        asked >= 2 && format!("{error:?}").contains("503"),
        "{asked}: {error:?}"
    );
    Ok(())
}

async fn a_dependency_that_nothing_satisfies_is_named(bench: &Bench) -> Result<()> {
    let mut request = bench.request("ubuntu");
    request.packages = vec!["nginx".to_owned()];
    let error = base::resolve(&request, &bench.context("unknown"))
        .await
        .unwrap_err()
        .to_string();
    ensure!(error.contains("find package nginx"), "{error}");
    let broken = dummy("nginx", "1").field("Depends", "libssl3 (>= 3.0)");
    bench.publish("unsatisfiable", vec![broken])?;
    let mut request = bench.request("unsatisfiable");
    request.packages = vec!["nginx".to_owned()];
    let error = base::resolve(&request, &bench.context("unsatisfiable"))
        .await
        .unwrap_err()
        .to_string();
    ensure!(
        error.contains("install nginx: nothing satisfies `libssl3 (>= 3.0)`"),
        "{error}"
    );
    Ok(())
}

async fn a_package_that_leaves_its_root_is_refused(bench: &Bench) -> Result<()> {
    for (name, path) in [("up", "./usr/../../escaped"), ("absolute", "/escaped")] {
        let evil = Package::new("evil", "1").entry(path, Entry::Raw(b"x".to_vec()));
        bench.publish(name, vec![evil])?;
        let request = bench.request(name);
        let error = base::tools(&request, &bench.context(name), &["evil"])
            .await
            .unwrap_err();
        ensure!(
            error.to_string().contains("the package is refused"),
            "{error:?}"
        );
    }
    ensure!(
        !bench.path("escaped").exists() && !Path::new("/escaped").exists(),
        "it escaped"
    );
    Ok(())
}

async fn packages_that_ship_the_same_file_are_refused(bench: &Bench) -> Result<()> {
    let file = "usr/share/both";
    bench.publish(
        "both",
        vec![
            Package::new("one", "1").file(file, "one"),
            Package::new("two", "1").file(file, "two"),
            Package::new("three", "1")
                .field("Replaces", "one (<< 2)")
                .file(file, "three"),
        ],
    )?;
    let (request, context) = (bench.request("both"), bench.context("both"));
    let error = base::tools(&request, &context, &["one", "two"])
        .await
        .unwrap_err();
    ensure!(
        error.to_string().contains("neither replaces the other"),
        "{error:?}"
    );
    for names in [["one", "three"], ["three", "one"]] {
        let folder = base::tools(&request, &context, &names).await?;
        ensure!(
            std::fs::read_to_string(folder.join(file))? == "three",
            "the wrong one won"
        );
    }
    Ok(())
}

async fn a_base_is_configured_and_left_clean(bench: &Bench) -> Result<()> {
    let request = bench.request("ubuntu");
    let base = bench.build(&request, "whole").await?;
    let root = &base.root;
    let read = |path: &str| -> Result<String> {
        std::fs::read_to_string(root.join(path)).with_context(|| path.to_owned())
    };
    let status = read("var/lib/dpkg/status")?;
    ensure!(!status.contains("unpacked"), "{status}");
    ensure!(
        status.contains("Package: oast-initramfs\n"),
        "no stand-in for the ramdisk maker"
    );
    ensure!(status.contains("Conffiles:\n /etc/issue "), "{status}");
    ensure!(
        read("etc/passwd")?.starts_with("root:"),
        "the preinst did not run"
    );
    ensure!(
        read("boot/postinst-ran")? == "made\n",
        "the postinst did not run"
    );
    ensure!(
        read("etc/machine-id")?.is_empty(),
        "the machine already has an identity"
    );
    ensure!(
        read("etc/apt/sources.list.d/ubuntu.sources")?.contains("noble-security"),
        "sources"
    );
    let lists: Vec<_> = walk(root.join("var/lib/apt/lists").as_std_path())?
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    let architecture = distribution::native_architecture();
    for name in [
        "archive.ubuntu.com_ubuntu_dists_noble_InRelease".to_owned(),
        format!("archive.ubuntu.com_ubuntu_dists_noble_main_binary-{architecture}_Packages.zst"),
    ] {
        ensure!(lists.contains(&name), "{lists:?}");
    }
    for gone in [
        "usr/sbin/policy-rc.d",
        "var/lib/dpkg/status-old",
        "var/log/dpkg.log",
    ] {
        ensure!(!root.join(gone).exists(), "{gone} was left behind");
    }
    // The merged root holds what was shipped as /bin and /lib64, and links keep their meaning.
    ensure!(
        std::fs::read_link(root.join("bin"))? == Path::new("usr/bin"),
        "/bin"
    );
    let (first, second) = (
        root.join("usr/bin/first").metadata()?,
        root.join("usr/bin/second").metadata()?,
    );
    ensure!(
        first.ino() == second.ino() && first.mode() & 0o7777 == 0o4755,
        "{first:?}"
    );
    ensure!(
        root.join("tmp").metadata()?.mode() & 0o7777 == 0o1777,
        "/tmp"
    );
    let host_base = bench.context("whole").host_base;
    for path in walk(root.as_std_path())? {
        let owner = path.symlink_metadata()?.uid();
        ensure!(
            owner >= host_base && owner - host_base < 65_536,
            "{} is {owner}'s",
            path.display()
        );
    }
    // A second base from the same cache asks for no package.
    bench.server.clear();
    let context = bench.context("whole");
    let again = base::build(&request, &context, &bench.path("whole-again.root")).await?;
    ensure!(again.resolved == base.resolved, "another answer");
    let asked = bench.server.asked();
    ensure!(
        asked.iter().all(|path| path.contains("noble-security")),
        "asked for {asked:?}"
    );
    Ok(())
}

async fn a_failing_script_is_shown_and_leaves_no_root(bench: &Bench) -> Result<()> {
    let broken = dummy("broken", "1").script("postinst", "#!/bin/sh\necho out of luck\nexit 3\n");
    bench.publish("failing", vec![broken])?;
    let mut request = bench.request("failing");
    request.packages = vec!["broken".to_owned()];
    let error = bench
        .build(&request, "failing")
        .await
        .unwrap_err()
        .to_string();
    ensure!(
        error.contains("out of luck") && error.contains("broken"),
        "{error}"
    );
    ensure!(!bench.path("failing.root").exists(), "half a root was left");
    ensure!(
        !bench.path("failing.root.scratch").exists(),
        "the work folder was left"
    );
    Ok(())
}

/// Cancels as soon as a stage begins.
struct CancelAt(Stage, CancellationToken);

impl Progress for CancelAt {
    fn event(&self, event: Event) {
        if event == Event::Began(self.0) {
            self.1.cancel();
        }
    }
}

async fn a_cancelled_build_leaves_no_root(bench: &Bench) -> Result<()> {
    for stage in [Stage::Fetch, Stage::Unpack, Stage::Configure] {
        let mut context = bench.context("cancelled");
        context.progress = Arc::new(CancelAt(stage, context.cancel.clone()));
        let root: &Utf8Path = &bench.path("cancelled.root");
        let error = base::build(&bench.request("ubuntu"), &context, root)
            .await
            .unwrap_err();
        ensure!(
            error.to_string().contains("cancelled"),
            "{stage:?}: {error:?}"
        );
        ensure!(!root.exists(), "{stage:?}: half a root was left");
    }
    Ok(())
}

/// A script that would run for minutes ends when nobody waits for the base any more.
async fn a_dropped_build_ends_its_scripts(bench: &Bench) -> Result<()> {
    let slow = dummy("slow", "1").script(
        "postinst",
        "#!/bin/sh\necho x > /started\nwhile :; do :; done\n",
    );
    bench.publish("slow", vec![slow])?;
    let mut request = bench.request("slow");
    request.packages = vec!["slow".to_owned()];
    let context = bench.context("slow");
    let root = bench.path("slow.root");
    let started = root.join("started");
    let build = base::build(&request, &context, &root);
    tokio::select! {
        result = build => bail!("it ended: {result:?}"),
        () = until(|| started.exists()) => {}
    }
    // The future is gone; the blocking task notices and takes the root with it.
    until(|| !root.exists()).await;
    Ok(())
}

/// Waits for a level; the caller's test hangs visibly if it never comes.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        SystemClock::shared().sleep(Duration::from_millis(10)).await;
    }
}

/// Every file below a folder.
fn walk(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            found.extend(walk(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
