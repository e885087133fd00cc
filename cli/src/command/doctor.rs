//! `oast doctor`: whether this machine can run a farm and talk to one, with one fix for each thing
//! that is missing.
//!
//! What a farm needs is found out by doing it ([`oast_daemon::preflight`]); the rest is looked up.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use oast_daemon::config::process_env;
use oast_daemon::exit::Exit;
use oast_daemon::preflight::{self, Finding, Outcome, Request};
use oast_proto::v1;

use super::block_on;
use crate::context::{Connect, known};
use crate::output::{Format, Output, plain};

/// Disk that a farm with a few images needs.
const DISK_NEEDED: u64 = 6 << 30;
/// Programs that a farm calls, the packages that bring them, and whether it can do without.
const PROGRAMS: [(&str, &str); 7] = [
    ("git", "git"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("resize2fs", "e2fsprogs"),
    ("newuidmap", "uidmap"),
    ("newgidmap", "uidmap"),
];
/// Where administration programs are that PATH of an ordinary user lacks.
const ADMIN_PATH: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Check this machine, with one fix for each thing that is missing
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder where a farm would keep its data
    #[arg(long, value_name = "DIR", default_value = ".oast/quickstart")]
    data: PathBuf,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Checks.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let exe = std::env::current_exe()?;
    let findings = block_on(async {
        let mut findings = machine(&exe, &args.data).await?;
        findings.extend(
            PROGRAMS
                .iter()
                .map(|(name, package)| program(name, package)),
        );
        findings.extend(farm(&args.connect).await);
        Ok(findings)
    })?;
    let bad = !preflight::allows(&findings);
    // One value for a program to read, also when asked for names.
    if args.output.format == Format::Text {
        args.output.one("", &(), || text(&findings))?;
    } else {
        args.output
            .list(&findings, |finding| &finding.name, "", |_| String::new())?;
    }
    Ok(if bad { Exit::Failed } else { Exit::Ok })
}

async fn machine(exe: &Path, data: &Path) -> anyhow::Result<Vec<Finding>> {
    let made = make(data);
    if let Err((at, err)) = &made {
        let fix = "choose a folder that you may write to with --data DIR";
        return Ok(vec![finding(
            "data folder",
            Outcome::Failed,
            format!("mkdir {}: {err}", at.display()),
            Some(fix),
        )]);
    }
    let data = data.canonicalize()?;
    let found = preflight::run(
        exe,
        Request {
            data: data.clone(),
            free_bytes: DISK_NEEDED,
        },
    )
    .await;
    for folder in made.unwrap_or_default().iter().rev() {
        // Only what was made here; what is no longer empty stays.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(found?)
}

/// Makes the folder and returns those that were not there, outermost first.
fn make(folder: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let missing: Vec<PathBuf> = folder
        .ancestors()
        .filter(|part| !part.as_os_str().is_empty())
        .take_while(|part| !part.exists())
        .map(Path::to_owned)
        .collect();
    let mut made = Vec::new();
    for part in missing.into_iter().rev() {
        std::fs::create_dir(&part).map_err(|err| (part.clone(), err))?;
        made.push(part);
    }
    Ok(made)
}

fn program(name: &str, package: &str) -> Finding {
    let path = process_env("PATH").unwrap_or_default();
    let folders = path
        .split(':')
        .filter(|folder| !folder.is_empty())
        .chain(ADMIN_PATH);
    let found = folders
        .map(|folder| Path::new(folder).join(name))
        .find(|file| file.is_file());
    let root = rustix::process::geteuid().is_root();
    match found {
        Some(file) => {
            let version = if name == "git" {
                version_of(&file)
            } else {
                file.display().to_string()
            };
            finding(name, Outcome::Passed, version, None)
        }
        None if package == "uidmap" && root => {
            finding(name, Outcome::Passed, "not needed by root".to_owned(), None)
        }
        None => {
            let fix = format!("sudo apt install {package}");
            finding(
                name,
                Outcome::Failed,
                "not found in PATH".to_owned(),
                Some(&fix),
            )
        }
    }
}

fn version_of(file: &Path) -> String {
    let said = Command::new(file)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    match said {
        Ok(said) if said.status.success() => {
            String::from_utf8_lossy(&said.stdout).trim().to_owned()
        }
        _ => file.display().to_string(),
    }
}

/// The farm that commands would talk to, if one is known.
async fn farm(connect: &Connect) -> Vec<Finding> {
    let client = match connect.client() {
        Ok(client) => client,
        Err(err) => {
            let none = known().is_ok_and(|known| known.is_empty());
            let outcome = if none {
                Outcome::Skipped
            } else {
                Outcome::Limited
            };
            let fix =
                "`oast quickstart` starts a farm; `oast context use NAME` chooses a known one";
            let why = if none {
                "none is known yet".to_owned()
            } else {
                format!("{err:#}")
            };
            return vec![finding("farm", outcome, why, Some(fix))];
        }
    };
    let members = client.addresses().join(", ");
    let answer = client
        .call(|member| async move { member.operator().who_am_i(v1::WhoAmIRequest {}).await })
        .await;
    match answer {
        Ok(who) => {
            let said = format!(
                "{} at {members}, you are {} ({})",
                who.farm, who.name, who.role
            );
            let own = env!("CARGO_PKG_VERSION");
            let version = if who.version.is_empty() || who.version == own {
                finding("farm version", Outcome::Passed, own.to_owned(), None)
            } else {
                let differ = format!("the farm has {}, this program is {own}", who.version);
                finding(
                    "farm version",
                    Outcome::Limited,
                    differ,
                    Some("use the farm's version of oast"),
                )
            };
            vec![finding("farm", Outcome::Passed, said, None), version]
        }
        Err(status) => {
            let fix = match status.code() {
                tonic::Code::Unauthenticated => {
                    "choose a context with a good token, or set OAST_TOKEN"
                }
                _ => "`oast quickstart` starts a farm; `oast context use NAME` chooses another",
            };
            // The machine is good: only the farm that was used last is not there now.
            let why = format!("{members}: {}", plain(status.message()));
            vec![finding("farm", Outcome::Limited, why, Some(fix))]
        }
    }
}

fn finding(name: &str, outcome: Outcome, call: String, fix: Option<&str>) -> Finding {
    Finding {
        name: name.to_owned(),
        outcome,
        call,
        errno: 0,
        fix: fix.map(str::to_owned),
    }
}

fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (colour, word) = match finding.outcome {
            Outcome::Passed => (32, "ok     "),
            Outcome::Limited => (33, "limited"),
            Outcome::Failed => (31, "FAILED "),
            Outcome::Skipped => (2, "skipped"),
        };
        let _ = writeln!(
            text,
            "\u{1b}[{colour}m{word}\u{1b}[0m  {:width$}  {}",
            finding.name,
            plain(&finding.call)
        );
        if let Some(fix) = &finding.fix {
            let _ = writeln!(
                text,
                "         fix: {}",
                plain(fix).replace('\n', "\n              ")
            );
        }
    }
    let failed = findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Failed)
        .count();
    let verdict = match failed {
        0 => "This machine can run a farm: oast quickstart".to_owned(),
        1 => "1 thing is missing: see its fix above.".to_owned(),
        many => format!("{many} things are missing: see their fixes above."),
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_thing_has_its_fix_below_it() {
        let findings = [
            finding("git", Outcome::Passed, "git version 2".into(), None),
            finding(
                "newuidmap",
                Outcome::Failed,
                "not found in PATH".into(),
                Some("sudo apt install uidmap"),
            ),
        ];
        assert_eq!(
            plain(&text(&findings)),
            "ok       git        git version 2\nFAILED   newuidmap  not found in PATH\n         fix: sudo apt install uidmap\n\n1 thing is missing: see its fix above.\n"
        );
    }

    #[test]
    fn folders_that_were_made_are_known() {
        let root = tempfile::tempdir().expect("a folder");
        let made = make(&root.path().join("a/b")).expect("made");
        assert_eq!(made, [root.path().join("a"), root.path().join("a/b")]);
        assert!(make(&root.path().join("a/b")).expect("there").is_empty());
    }
}
