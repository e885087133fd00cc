//! Microsoft's own Python client, `azure-mgmt-compute`, judges the simulator.
//!
//! Each test serves a fresh cloud at 600 times the speed and runs one script of `tests/sdk/`
//! against it. The script drives the client and its pollers, and at the end every answer that the
//! cloud gave must be within the published contract. `cargo xtask test azure-sim` installs the
//! client and says where in `OAST_AZURE_SDK`; without it the tests say that they are skipped.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use oast_azure_sim::serve::{Sim, Tls, serve};
use oast_azure_sim::time::Pace;
use oast_azure_sim::world::Settings;

/// The environment's `bin` folder, or a skipped test.
fn sdk() -> Option<PathBuf> {
    if let Some(bin) = std::env::var_os("OAST_AZURE_SDK") {
        return Some(PathBuf::from(bin));
    }
    assert!(
        std::env::var_os("OAST_REQUIRE_ALL").is_none(),
        "OAST_AZURE_SDK is not set, and nothing may be skipped"
    );
    if let Some(log) = std::env::var_os("OAST_SKIP_LOG") {
        let file = std::fs::File::options().create(true).append(true).open(log);
        let line = "azure-sim: the Python client is not installed (OAST_AZURE_SDK)\n";
        // Saying so is all that can be done here.
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
    eprintln!("skipped: OAST_AZURE_SDK is not set");
    None
}

fn judged(script: &str, https: bool) {
    let Some(bin) = sdk() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let settings = Settings {
        pace: Pace::Scaled(600),
        ..Settings::default()
    };
    let sim = Sim::new(settings);
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let folder = tempfile::tempdir().expect("a folder");
    let mut python = Command::new(bin.join("python"));
    let tls = https.then(|| Tls::new().expect("keys"));
    if let Some(tls) = &tls {
        let file = tls.write_authority(folder.path()).expect("a file");
        python.env("SIM_CA", file);
    }
    let address = runtime
        .block_on(serve(sim.clone(), anywhere, tls))
        .expect("a port");
    let url = match https {
        true => format!("https://localhost:{}", address.port()),
        false => format!("http://{address}"),
    };
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    let ended = python
        .arg(place.join(script))
        .env("SIM_URL", url)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python runs");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{script}: {said}");
    let world = sim.world();
    assert_eq!(world.violations(), Vec::<String>::new());
}

#[test]
fn disks_and_snapshots_are_found_to_be_azures() {
    judged("disks.py", false);
}

#[test]
fn disks_and_snapshots_are_found_to_be_azures_under_tls() {
    judged("disks.py", true);
}

#[test]
fn galleries_and_versions_are_found_to_be_azures() {
    judged("galleries.py", false);
}

#[test]
fn machines_and_images_are_found_to_be_azures() {
    judged("machines.py", false);
}

#[test]
fn scale_sets_and_rolling_upgrades_are_found_to_be_azures() {
    judged("sets.py", false);
}
