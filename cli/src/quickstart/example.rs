//! The example of `examples/web`, carried in the binary, and what each push changes of it.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

macro_rules! files {
    ($($path:literal $mode:literal;)*) => {
        &[$(($path, $mode, include_bytes!(concat!("../../../examples/web/", $path)))),*]
    };
}

/// Every file of the example with its mode.
const FILES: &[(&str, u32, &[u8])] = files! {
    "oast.yaml" 0o644;
    "web/bin/web-banner" 0o755;
    "web/nginx/site.conf" 0o644;
    "web/site/index.html" 0o644;
    "web/site/style.css" 0o644;
    "web/site/version" 0o644;
    "web/units/web-banner.service" 0o644;
};

/// What the farm must know first.
const FARM: &str = include_str!("../../../examples/web/farm.yaml");

/// The page that is broken on purpose: it is served, and says nothing.
const BROKEN_PAGE: &str = "<!doctype html>\n<title>Oast</title>\n";

/// The line of `oast.yaml` before which the slow steps are put.
const SLOW_BEFORE: &str = "    - name: site\n";

/// Seconds that each slow step takes.
pub const SLOW_SECONDS: u32 = 3;

/// Names of the slow steps.
pub const SLOW_STEPS: [&str; 3] = ["slow-1", "slow-2", "slow-3"];

/// The farm's resources, with the fleet on `listen` and the repository added.
pub fn resources(listen: SocketAddr, repository: &str) -> Vec<String> {
    let farm = FARM.replace("127.0.0.1:8080", &listen.to_string());
    let mut documents: Vec<String> = farm
        .split("\n---\n")
        .map(|document| {
            document.lines().filter(|line| !line.starts_with('#')).fold(
                String::new(),
                |mut text, line| {
                    text.push_str(line);
                    text.push('\n');
                    text
                },
            )
        })
        .collect();
    documents.push(repository.to_owned());
    documents
}

/// Writes the example into a folder.
pub fn write(folder: &Path) -> io::Result<()> {
    for (path, mode, content) in FILES {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// The number that the site names; 0 where there is no site yet.
pub fn version(folder: &Path) -> u32 {
    let text = std::fs::read_to_string(folder.join("web/site/version"));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// The site names another version.
pub fn set_version(folder: &Path, version: &str) -> io::Result<()> {
    std::fs::write(folder.join("web/site/version"), format!("{version}\n"))
}

/// The page is served and its gate shuts.
pub fn break_page(folder: &Path) -> io::Result<()> {
    std::fs::write(folder.join("web/site/index.html"), BROKEN_PAGE)
}

/// The page is as the example has it.
pub fn mend_page(folder: &Path) -> io::Result<()> {
    let page = FILES
        .iter()
        .find(|(path, _, _)| *path == "web/site/index.html");
    let (_, _, content) = page.expect("the page is in the list");
    std::fs::write(folder.join("web/site/index.html"), content)
}

/// Adds steps that take their time and tell the counter when they end. The run's mark in the
/// command keeps an earlier quickstart's layers from being taken.
pub fn add_slow_steps(folder: &Path, counter: SocketAddr, mark: &str) -> io::Result<()> {
    let path = folder.join("oast.yaml");
    let text = std::fs::read_to_string(&path)?;
    let clean = without_slow_steps(&text);
    let mut steps = String::new();
    for name in SLOW_STEPS {
        steps.push_str(&slow_step(name, counter, mark));
    }
    std::fs::write(
        path,
        clean.replacen(SLOW_BEFORE, &format!("{steps}{SLOW_BEFORE}"), 1),
    )
}

/// The proxy is the only way out of a step; bash can speak enough HTTP to use it.
fn slow_step(name: &str, counter: SocketAddr, mark: &str) -> String {
    format!(
        "    - name: {name}\n      run:\n        shell: /bin/bash -e\n        command: |\n\
         \x20         echo \"{mark}: this takes {SLOW_SECONDS} seconds\"\n\
         \x20         for second in $(seq {SLOW_SECONDS}); do sleep 1; echo \"second $second\"; done\n\
         \x20         exec 3<>/dev/tcp/127.0.0.1/${{http_proxy##*:}}\n\
         \x20         printf 'GET http://{counter}/{name} HTTP/1.0\\r\\n\\r\\n' >&3\n\
         \x20         head -n 1 <&3 | grep -q ' 200 '\n"
    )
}

fn without_slow_steps(text: &str) -> String {
    let mut kept = String::new();
    let mut slow = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("    - name: ") {
            slow = SLOW_STEPS.contains(&name);
        }
        if !slow {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_steps_come_and_go_and_the_file_stays_valid() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path()).expect("written");
        let path = folder.path().join("oast.yaml");
        let before = std::fs::read_to_string(&path).expect("text");
        let counter = "127.0.0.1:4000".parse().expect("an address");
        for mark in ["a", "b"] {
            add_slow_steps(folder.path(), counter, mark).expect("written");
        }
        let with = std::fs::read_to_string(&path).expect("text");
        let checked = oast_model::pipeline::check::parse("oast.yaml", &with);
        let pipeline = checked.value.expect("valid");
        let titles: Vec<String> = pipeline
            .bake
            .steps
            .iter()
            .map(|step| step.title())
            .collect();
        assert_eq!(
            titles
                .iter()
                .filter(|title| title.starts_with("slow-"))
                .count(),
            3,
            "{titles:?}"
        );
        assert_eq!(without_slow_steps(&with), before);
    }
}
