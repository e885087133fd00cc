//! `oast operator pki`: the farm's own authority, on the operator's machine. Talks to no farm.

use std::path::{Path, PathBuf};

use oast_daemon::clock::{Clock, SystemClock};
use oast_daemon::exit::Exit;
use oast_daemon::tls::{
    Authority, Bundle, CA_FILE, Certificate, Files, ISSUER_LIFE, LEAF_LIFE, Lives, ROOT_LIFE,
    folder,
};
use oast_model::units::TimeSpan;
use serde_json::{Map, Value};

use crate::fail::Fail;
use crate::output::{Output, facts, note};

/// The authority with its key.
const AUTHORITY_FILE: &str = "authority.pem";
/// Where the files of members go.
const MEMBERS: &str = "members";

/// Make and look at certificates.
#[derive(Debug, clap::Subcommand)]
pub enum Pki {
    /// Found the farm's authority: a root that signs members' certificates
    Init {
        /// Where it is kept; the key in it belongs offline
        #[arg(long, value_name = "DIR", default_value = "pki")]
        dir: PathBuf,
        /// The farm's name, as in its members' configuration
        #[arg(long, value_name = "FARM", default_value = "oast")]
        name: String,
    },
    /// Sign certificates
    #[command(subcommand)]
    Issue(Issue),
    /// Tell in plain words what is in a file of certificates
    Show {
        /// PEM file
        file: PathBuf,
    },
}

/// For whom a certificate is signed.
#[derive(Debug, clap::Subcommand)]
pub enum Issue {
    /// Make the files of a member: its certificate and what it renews it with
    Member {
        /// Its name, such as m1
        name: String,
        /// Host name or address under which members, workers or people call it; may be repeated
        #[arg(long, value_name = "HOST", required = true)]
        host: Vec<String>,
        /// Where the authority is
        #[arg(long, value_name = "DIR", default_value = "pki")]
        dir: PathBuf,
        /// Where the files go [default: members/NAME beside the authority]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Life of the first certificate; the member renews it by itself [default: 30d]
        #[arg(long, value_name = "TIME")]
        life: Option<TimeSpan>,
        /// Life of what the member signs with [default: 730d]
        #[arg(long, value_name = "TIME")]
        issuer_life: Option<TimeSpan>,
        /// Replace files that are there, for example when the issuer is nearly over
        #[arg(long)]
        replace: bool,
    },
}

/// Founds, signs or shows.
pub fn run(command: &Pki, output: Output) -> anyhow::Result<Exit> {
    match command {
        Pki::Init { dir, name } => init(dir, name, output),
        Pki::Issue(Issue::Member {
            name,
            host,
            dir,
            out,
            life,
            issuer_life,
            replace,
        }) => {
            let out = out.clone().unwrap_or_else(|| dir.join(MEMBERS).join(name));
            let lives = Lives {
                now: SystemClock.wall(),
                leaf: life.map_or(LEAF_LIFE, TimeSpan::duration),
                issuer: issuer_life.map_or(ISSUER_LIFE, TimeSpan::duration),
            };
            issue(dir, name, host, &out, lives, *replace, output)
        }
        Pki::Show { file } => show(file, output),
    }
}

fn init(dir: &Path, name: &str, output: Output) -> anyhow::Result<Exit> {
    let root = Authority::found(name, SystemClock.wall(), ROOT_LIFE)?;
    folder(dir)?;
    let (authority, ca) = (dir.join(AUTHORITY_FILE), dir.join(CA_FILE));
    root.bundle().create(&authority)?;
    let public = Bundle {
        chain: vec![root.certificate().clone()],
        key: None,
    };
    public.replace(&ca)?;
    tell(root.certificate(), output)?;
    note(format!(
        "{} holds the farm's key: whoever has it can be anybody in the farm. Keep it offline; {} is public.",
        authority.display(),
        ca.display()
    ));
    note(format!(
        "Next, for each member: oast operator pki issue member NAME --host HOST --dir {}",
        dir.display()
    ));
    Ok(Exit::Ok)
}

fn issue(
    dir: &Path,
    name: &str,
    hosts: &[String],
    out: &Path,
    lives: Lives,
    replace: bool,
    output: Output,
) -> anyhow::Result<Exit> {
    let path = dir.join(AUTHORITY_FILE);
    if !path.exists() {
        let message = format!("there is no authority in {}", dir.display());
        let hint = "oast operator pki init makes one; --dir says where it is";
        return Err(Fail::new(Exit::NotFound, message).hint(hint).into());
    }
    let root = Authority::from_bundle(&Bundle::read(&path)?)?;
    let files = Files::member(&root, name, hosts, lives)?;
    if replace {
        files.replace(out)?;
    } else {
        files.create(out)?;
    }
    if let Some(certificate) = files.certificate() {
        tell(certificate, output)?;
    }
    note(format!(
        "Move the files of {} to the member, readable by it alone, and name their folder in its configuration: [tls] dir = ...",
        out.display()
    ));
    Ok(Exit::Ok)
}

fn show(file: &Path, output: Output) -> anyhow::Result<Exit> {
    let bundle = Bundle::read(file)?;
    for (place, certificate) in bundle.chain.iter().enumerate() {
        if place > 0 && output.is_text() {
            note("");
        }
        tell(certificate, output)?;
    }
    if bundle.key.is_some() {
        note("The file holds a private key too, which is not shown.");
    } else if bundle.chain.is_empty() {
        note("The file holds no certificate.");
    }
    Ok(Exit::Ok)
}

fn tell(certificate: &Certificate, output: Output) -> anyhow::Result<()> {
    let words = certificate.words(SystemClock.wall());
    let json: Map<String, Value> = words
        .iter()
        .map(|(what, text)| (camel(what), Value::from(text.as_str())))
        .collect();
    let pairs: Vec<(&str, String)> = words;
    output.one(certificate.subject_name(), &json, || facts(&pairs))?;
    Ok(())
}

/// "Valid until" as `validUntil`.
fn camel(words: &str) -> String {
    let mut out = String::new();
    for word in words.split(' ') {
        let word = word.to_lowercase();
        match (out.is_empty(), word.split_at_checked(1)) {
            (false, Some((first, rest))) => {
                out.push_str(&first.to_uppercase());
                out.push_str(rest);
            }
            _ => out.push_str(&word),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_words_as_keys() {
        assert_eq!(camel("Valid until"), "validUntil");
        assert_eq!(camel("Answers for hosts"), "answersForHosts");
        assert_eq!(camel("Key"), "key");
    }

    #[test]
    fn a_member_gets_its_files_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let (dir, out) = (folder.path().join("pki"), folder.path().join("m1"));
        let output = Output::default();
        let lives = Lives::usual(SystemClock.wall());
        let hosts = ["m1.example".to_owned(), "10.0.0.1".to_owned()];
        let early = issue(&dir, "m1", &hosts, &out, lives, false, output);
        assert!(
            early
                .expect_err("no authority")
                .to_string()
                .contains("there is no authority")
        );
        init(&dir, "acme", output).expect("founded");
        assert!(
            init(&dir, "acme", output)
                .expect_err("twice")
                .to_string()
                .contains("not overwritten")
        );
        issue(&dir, "m1", &hosts, &out, lives, false, output).expect("issued");
        assert!(issue(&dir, "m1", &hosts, &out, lives, false, output).is_err());
        issue(&dir, "m1", &hosts, &out, lives, true, output).expect("replaced on request");
        let read = Bundle::read(&out.join("identity.pem")).expect("its files");
        let name = read.chain[0].name().expect("a name").to_string();
        assert_eq!(name, "oast://acme/member/m1");
        assert_eq!(read.chain[0].hosts(), hosts);
        show(&out.join("identity.pem"), output).expect("shown");
        let bad = issue(&dir, "M1", &hosts, &out, lives, true, output);
        assert!(
            bad.expect_err("no name")
                .to_string()
                .contains("cannot be used")
        );
    }
}
