//! Every kind of step through a whole worker and its real sandboxes: what it makes, what it leaves
//! out, what is not done again, and what people read when it fails. Without a harness, because the
//! test binary is also the worker (`worker CONFIG`) and the helper of its sandboxes (`internal sandbox`).
//!
//! The bakes need packages of Debian 12 from this machine's apt sources; without them, or with
//! `OAST_TEST_OFFLINE` set, all is skipped, and says so. `OAST_TEST_ONLY` picks scenarios by a part of their name.

mod bases;
mod bench;
#[path = "../worker/farm.rs"]
#[expect(dead_code, reason = "the worker's own test uses the rest")]
mod farm;
#[path = "../worker/leader.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod leader;
mod settings;
mod software;
mod web;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use bench::Bench;
use camino::Utf8Path;
use farm::{apt_has, runtime, worker};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["internal", ..] => oast_worker::sandbox::entry(),
        ["worker", config] => {
            oast_daemon::isolate::enter()?;
            worker(Path::new(config))
        }
        _ => {
            oast_daemon::isolate::enter()?;
            runtime()?.block_on(all())
        }
    }
}

macro_rules! scenarios {
    ($bench:expr, $($name:path),* $(,)?) => {
        let only = std::env::var("OAST_TEST_ONLY").unwrap_or_default();
        $(
            if stringify!($name).contains(&only) {
                $name($bench).await.with_context(|| stringify!($name))?;
                println!("ok: {}", stringify!($name));
            }
        )*
    };
}

async fn all() -> Result<()> {
    if std::env::var_os("OAST_TEST_OFFLINE").is_some() || !apt_has("bookworm") {
        println!(
            "SKIPPED: steps need Debian 12 in this machine's apt sources (and OAST_TEST_OFFLINE unset)"
        );
        return Ok(());
    }
    let folder = tempfile::Builder::new().prefix("oast-steps-").tempdir()?;
    let root = Utf8Path::from_path(folder.path()).context("a UTF-8 path")?;
    // Sandboxes' mapped root passes through it.
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root, fs::Permissions::from_mode(0o711))?;
    let bench = Bench::new(root).await?;
    scenarios!(
        &bench,
        settings::scripts_run_as_the_user_in_the_folder,
        settings::a_failure_names_the_step_and_its_line,
        settings::kept_folders_are_the_owners_and_in_no_layer,
        settings::a_failed_try_leaves_nothing_behind,
        settings::secrets_are_in_no_layer_and_no_log,
        settings::units_start_without_a_running_systemd,
        software::packages_come_from_the_engine_and_leave_nothing_else,
        software::a_playbook_is_played_without_ansible_in_the_image,
        software::the_example_of_a_golden_image_bakes,
        web::a_file_of_the_web_is_what_its_digest_says,
        web::a_pipeline_cannot_reach_what_trusts_the_worker,
        bases::a_root_file_system_is_a_base,
        bases::an_oci_image_of_the_web_is_a_base,
        bases::an_image_is_a_base_and_a_source_of_copies,
        bases::a_policy_is_in_every_pipeline_and_out_of_its_reach,
    );
    Ok(())
}
