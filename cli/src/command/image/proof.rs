//! `oast image sbom`, `provenance` and `verify`: what others may believe of an image, and why.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ValueEnum;
use oast_attest::key::PublicKey;
use oast_attest::provenance::{self, Statement};
use oast_attest::verify::{Evidence, Proof, verify};
use oast_daemon::exit::Exit;
use oast_proto::v1;
use oast_proto::v1::export_chunk::Content;
use serde::Serialize;

use super::get;
use crate::client::Client;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Output, facts};

/// Largest document that is taken from a farm or a file.
const DOCUMENT_MAX: u64 = 64 << 20;
/// A VHD is the raw disk with a footer of so many bytes.
const FOOTER: u64 = 512;
const MIB: u64 = 1 << 20;
/// Zeros that are hashed at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The form of a bill of material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// CycloneDX 1.6, JSON
    Cyclonedx,
    /// SPDX 2.3, JSON
    Spdx,
}

/// What is verified, and against what.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// web (the newest), web:3 or web@channel; none to judge files without a farm
    #[arg(
        value_name = "NAME[:V|@CHANNEL]",
        required_unless_present = "provenance"
    )]
    version: Option<String>,
    /// The public key that must have signed (PEM); default: the one that the farm shows
    #[arg(long, value_name = "FILE", required_unless_present = "version")]
    key: Option<PathBuf>,
    /// The signed statement, from `oast image provenance`
    #[arg(long, value_name = "FILE", conflicts_with = "version")]
    provenance: Option<PathBuf>,
    /// The disk, raw or VHD, from `oast image export`
    #[arg(long, value_name = "FILE", conflicts_with = "version")]
    disk: Option<PathBuf>,
    /// The CycloneDX bill of material
    #[arg(long, value_name = "FILE", conflicts_with = "version")]
    cyclonedx: Option<PathBuf>,
    /// The SPDX bill of material
    #[arg(long, value_name = "FILE", conflicts_with = "version")]
    spdx: Option<PathBuf>,
    /// Do not read the disk; only the hash that the farm has recorded is compared
    #[arg(long, requires = "version")]
    no_disk: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: Output,
}

/// Prints a document as it is stored, byte for byte.
pub async fn print(connect: &Connect, version: &str, document: &str) -> anyhow::Result<Exit> {
    let client = connect.client()?;
    let version = get(&client, version).await?.version;
    let bytes = document_of(&client, &version, document).await?;
    let mut out = std::io::stdout().lock();
    out.write_all(&bytes)?;
    if out.is_terminal() && !bytes.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(Exit::Ok)
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    verified: bool,
    version: Option<String>,
    key: String,
    /// Whether the key came from the farm that is judged.
    key_of_the_farm: bool,
    proved: Vec<String>,
    statement: Statement,
}

/// Judges an image, of a farm or in files.
pub async fn judge(args: &Verify) -> anyhow::Result<Exit> {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let (version, key, own, proof) = match &args.version {
        Some(version) => {
            let client = args.connect.client()?;
            let found = get(&client, version).await?;
            let (key, own) = match key {
                Some(key) => (key, false),
                None => (farm_key(&client, &found.version).await?, true),
            };
            let proof = of_farm(&client, &found, &key, args.no_disk).await?;
            (Some(found.version), key, own, proof)
        }
        None => {
            let key = key.context("clap wants a key")?;
            (None, key, false, of_files(args, &key)?)
        }
    };
    let verdict = Verdict {
        verified: true,
        version,
        key: key.id(),
        key_of_the_farm: own,
        proved: proof.proved,
        statement: proof.statement,
    };
    let name = verdict.version.clone().unwrap_or_default();
    args.output.one(&name, &verdict, || told(&verdict))?;
    Ok(Exit::Ok)
}

fn told(verdict: &Verdict) -> String {
    let mut text = String::new();
    for line in &verdict.proved {
        let _ = writeln!(text, "proved: {line}");
    }
    if verdict.key_of_the_farm {
        text += "The key is the one that this farm shows: it proves that nothing was changed since. Give --key FILE to prove who signed.\n";
    }
    text.push('\n');
    let build = &verdict.statement.predicate.build_definition;
    let said = |from: &std::collections::BTreeMap<String, serde_json::Value>, key: &str| match from
        .get(key)
    {
        None | Some(serde_json::Value::Null) => String::new(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let details = &verdict.statement.predicate.run_details;
    text += &facts(&[
        ("Signed by", details.builder.id.clone()),
        ("Repository", said(&build.external_parameters, "repository")),
        ("Commit", said(&build.external_parameters, "commit")),
        ("Base", said(&build.external_parameters, "base")),
        ("Worker", said(&build.internal_parameters, "worker")),
        ("Bake", details.metadata.invocation_id.clone()),
        ("Inputs", build.resolved_dependencies.len().to_string()),
    ]);
    text
}

/// One sentence about a version whose signature and bills of material were judged with the farm's own key.
///
/// # Errors
/// They do not hold.
pub async fn vouched(client: &Client, version: &str) -> anyhow::Result<String> {
    let found = get(client, version).await?;
    let key = farm_key(client, version).await?;
    let proof = of_farm(client, &found, &key, true).await?;
    let statement = &proof.statement.predicate;
    Ok(format!(
        "{version} is signed by {}: {} packages in its SBOM, {} inputs by digest (oast image verify {version})",
        statement.run_details.builder.id,
        found.package_count,
        statement.build_definition.resolved_dependencies.len(),
    ))
}

async fn farm_key(client: &Client, version: &str) -> anyhow::Result<PublicKey> {
    let pem = document_of(client, version, "key").await?;
    let pem = String::from_utf8(pem).context("the farm's key is no text")?;
    PublicKey::read(&pem).context("read the farm's key")
}

async fn of_farm(
    client: &Client,
    version: &v1::ImageVersion,
    key: &PublicKey,
    no_disk: bool,
) -> anyhow::Result<Proof> {
    let name = &version.version;
    let envelope = document_of(client, name, "provenance").await?;
    let cyclonedx = document_of(client, name, "cyclonedx").await?;
    let spdx = document_of(client, name, "spdx").await?;
    let bills = [
        (provenance::CYCLONEDX, cyclonedx.as_slice()),
        (provenance::SPDX, spdx.as_slice()),
    ];
    // What is judged is what the farm hands out, not what it says of it.
    let disk = match no_disk {
        true => version.digest.clone(),
        false => hash_of_export(client, name).await?,
    };
    proved(
        name,
        Evidence {
            envelope: &envelope,
            key,
            disk: Some(&disk),
            bills: &bills,
        },
    )
}

fn of_files(args: &Verify, key: &PublicKey) -> anyhow::Result<Proof> {
    let file = args
        .provenance
        .as_deref()
        .context("clap wants a statement")?;
    let envelope = read(file)?;
    let disk = args.disk.as_deref().map(hash_of_file).transpose()?;
    let mut files = Vec::new();
    for (name, file) in [
        (provenance::CYCLONEDX, &args.cyclonedx),
        (provenance::SPDX, &args.spdx),
    ] {
        if let Some(file) = file {
            files.push((name, read(file)?));
        }
    }
    let bills: Vec<(&'static str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    proved(
        &file.display().to_string(),
        Evidence {
            envelope: &envelope,
            key,
            disk: disk.as_deref(),
            bills: &bills,
        },
    )
}

fn proved(what: &str, evidence: Evidence<'_>) -> anyhow::Result<Proof> {
    verify(evidence).map_err(|err| {
        Fail::failed(format!("{what} is not proved: {err}"))
            .hint("do not use it before that is explained; `oast image show` names the run that made it")
            .into()
    })
}

async fn document_of(client: &Client, version: &str, document: &str) -> anyhow::Result<Vec<u8>> {
    let request = v1::ReadDocumentRequest {
        version: version.to_owned(),
        document: document.to_owned(),
    };
    let (mut stream, _) = client
        .open(|member| {
            let request = request.clone();
            async move { member.images().read_document(request).await }
        })
        .await?;
    let mut header = None;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        match chunk.content {
            Some(Content::Header(first)) => header = Some(first),
            Some(Content::Data(data)) => bytes.extend_from_slice(&data),
            Some(Content::ZeroBytes(_)) | None => {}
        }
        anyhow::ensure!(
            bytes.len() as u64 <= DOCUMENT_MAX,
            "the farm sends more than a document has"
        );
    }
    let header = header.context("the farm sent no header before the document")?;
    anyhow::ensure!(
        header.size == bytes.len() as u64 && header.digest == blake3::hash(&bytes).to_string(),
        "the document did not arrive as it was sent; try again"
    );
    Ok(bytes)
}

/// blake3 of the raw disk as the farm hands it out; nothing is written.
async fn hash_of_export(client: &Client, version: &str) -> anyhow::Result<String> {
    let request = v1::ExportImageRequest {
        version: version.to_owned(),
        format: "raw".to_owned(),
    };
    let (mut stream, _) = client
        .open(|member| {
            let request = request.clone();
            async move { member.images().export_image(request).await }
        })
        .await?;
    let mut hasher = blake3::Hasher::new();
    while let Some(chunk) = stream.message().await? {
        match chunk.content {
            Some(Content::Data(data)) => drop(hasher.update(&data)),
            Some(Content::ZeroBytes(count)) => {
                let mut left = count;
                while left > 0 {
                    let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
                    hasher.update(&ZEROS[..some]);
                    left -= some as u64;
                }
            }
            Some(Content::Header(_)) | None => {}
        }
    }
    Ok(hasher.finalize().to_string())
}

/// blake3 of a disk in a file; a VHD's footer is not part of the disk.
fn hash_of_file(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let len = file.metadata()?.len();
    let disk = match len % MIB {
        FOOTER => len - FOOTER,
        _ => len,
    };
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut file.take(disk), &mut hasher)
        .with_context(|| format!("read {}", path.display()))?;
    Ok(hasher.finalize().to_string())
}

fn read_key(path: &Path) -> anyhow::Result<PublicKey> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    PublicKey::read(&text)
        .map_err(|err| Fail::usage(format!("{} is no public key: {err}", path.display())).into())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("read {}", path.display()))?;
    anyhow::ensure!(
        bytes.len() as u64 <= DOCUMENT_MAX,
        "{} is too large for a document",
        path.display()
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_footer_of_a_vhd_is_not_hashed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (raw, vhd) = (folder.path().join("raw"), folder.path().join("vhd"));
        let mut disk = vec![7; usize::try_from(MIB).expect("small")];
        std::fs::write(&raw, &disk).expect("written");
        disk.extend([1; 512]);
        std::fs::write(&vhd, &disk).expect("written");
        let hash = hash_of_file(&raw).expect("a hash");
        assert_eq!(hash, hash_of_file(&vhd).expect("a hash"));
        std::fs::write(&raw, [7; 513]).expect("written");
        assert_ne!(hash, hash_of_file(&raw).expect("a hash"));
    }
}
