//! `oast operator snapshot`: the farm's whole ledger in a file, and a farm from such a file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use oast_coordinator::operations::inspect::{Contents, inspect};
use oast_coordinator::operations::restore::{Plan, restore};
use oast_coordinator::store::identity::ClusterId;
use oast_daemon::clock::SystemClock;
use oast_daemon::exit::Exit;
use oast_model::ids::Seq;
use oast_model::time::Timestamp;
use oast_proto::v1;
use tonic::Status;

use crate::client::may_be_tried_again;
use crate::context::Connect;
use crate::fail::Fail;
use crate::output::{Output, facts, note};

/// How often a stream that broke off is begun again, on another member.
const ATTEMPTS: usize = 5;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Save live state and history of the running farm into a file
    ///
    /// In the file: everything that the ledger knows, which is tokens (as hashes), teams,
    /// repositories, fleets, runs, images, rollouts and all finished work. Not in the file:
    /// the artifact store (layers, disks, logs, hosted repositories) and the secrets' values; copy
    /// their folders apart.
    Save {
        /// Where to; must not exist
        file: PathBuf,
        /// Take what the member has without asking a majority, for a farm that lost it
        #[arg(long)]
        without_quorum: bool,
    },
    /// Prove that a file is whole and say what is in it (offline)
    Inspect {
        /// Which
        file: PathBuf,
    },
    /// Make the data directory of a new cluster from a file (offline)
    Restore {
        /// Which
        file: PathBuf,
        /// Data directory of the member; must be absent or empty
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Id of the member
        #[arg(long, value_name = "ID", default_value_t = 1)]
        member: u64,
        /// Ids of all members of the new cluster [default: this one alone]
        #[arg(long, value_name = "IDS", value_delimiter = ',')]
        members: Vec<u64>,
        /// For the second member and on: the cluster id that the first restore printed
        #[arg(long, value_name = "ID")]
        cluster_id: Option<ClusterId>,
    },
}

pub async fn run(command: &Command, connect: &Connect, output: Output) -> anyhow::Result<Exit> {
    match command {
        Command::Save {
            file,
            without_quorum,
        } => save(connect, output, file, *without_quorum).await,
        Command::Inspect { file } => {
            let contents = inspect(file)?;
            show(file, &contents, output)?;
            Ok(Exit::Ok)
        }
        Command::Restore {
            file,
            data_dir,
            member,
            members,
            cluster_id,
        } => {
            let members: BTreeSet<u64> = match members.as_slice() {
                [] => [*member].into(),
                members => members.iter().copied().collect(),
            };
            let plan = Plan {
                file: file.clone(),
                directory: data_dir.clone(),
                member: *member,
                members,
                cluster: cluster_id.clone(),
            };
            restored(&plan, output)
        }
    }
}

async fn save(connect: &Connect, output: Output, file: &Path, stale: bool) -> anyhow::Result<Exit> {
    if file.exists() {
        return Err(Fail::usage(format!("{} exists already", file.display()))
            .hint("name another file: a snapshot never replaces one")
            .into());
    }
    let client = connect.client()?;
    let name = file
        .file_name()
        .ok_or_else(|| Fail::usage("name a file to save into"))?;
    let partial = file.with_file_name(format!("{}.part", name.to_string_lossy()));
    let mut attempt = 1;
    loop {
        let member = client.member().clone();
        match fetch(&member, &partial, stale).await? {
            Ok(()) => break,
            Err(status) if may_be_tried_again(&status) && attempt < ATTEMPTS => {
                attempt += 1;
                client.turn();
            }
            Err(status) => {
                let _ = fs::remove_file(&partial);
                return Err(status.into());
            }
        }
    }
    // Read back from the disk before anybody relies on it.
    let contents = inspect(&partial)?;
    fs::rename(&partial, file).with_context(|| format!("name {}", file.display()))?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .context("sync the folder of the snapshot")?;
    show(file, &contents, output)?;
    Ok(Exit::Ok)
}

/// One attempt. The outer error is ours, the inner one the farm's.
async fn fetch(
    member: &crate::client::Member,
    partial: &Path,
    stale: bool,
) -> anyhow::Result<Result<(), Status>> {
    let request = v1::SaveSnapshotRequest { stale };
    let mut parts = match member.operator().save_snapshot(request).await {
        Ok(parts) => parts.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let writing = || format!("write {}", partial.display());
    let mut file = File::create(partial).with_context(writing)?;
    loop {
        match parts.message().await {
            Ok(Some(part)) => file.write_all(&part.data).with_context(writing)?,
            Ok(None) => break,
            Err(status) => return Ok(Err(status)),
        }
    }
    file.sync_all().with_context(writing)?;
    Ok(Ok(()))
}

fn show(file: &Path, contents: &Contents, output: Output) -> anyhow::Result<()> {
    let header = &contents.header;
    let seq = Seq::from_u64(header.seq);
    let json = serde_json::json!({
        "file": file,
        "farm": header.farm,
        "cluster": header.cluster,
        "index": header.mark.position.index,
        "term": header.mark.position.term,
        "epoch": seq.epoch(),
        "seq": seq.to_string(),
        "clusterVersion": header.cluster_version,
        "madeAtMs": header.made_at_ms,
        "madeBy": header.made_by,
        "member": header.member,
        "voters": header.voters,
        "tables": contents.tables,
        "history": contents.history.last,
        "bytes": contents.length,
        "checksum": hex(&contents.checksum),
        "digest": hex(&header.digest),
    });
    output.one(&file.display().to_string(), &json, || {
        let tables: Vec<String> = contents
            .tables
            .iter()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let position = header.mark.position;
        facts(&[
            ("farm", header.farm.clone()),
            ("cluster", header.cluster.clone()),
            (
                "position",
                format!(
                    "entry {} of term {}, number {seq}",
                    position.index, position.term
                ),
            ),
            ("epoch", seq.epoch().to_string()),
            ("cluster version", header.cluster_version.to_string()),
            (
                "made",
                format!(
                    "{} by member {} with oast {}",
                    Timestamp::from_millis(header.made_at_ms),
                    header.member,
                    header.made_by
                ),
            ),
            ("live records", tables.join(", ")),
            (
                "finished",
                format!("{} records of history", contents.history.last),
            ),
            ("size", format!("{} bytes", contents.length)),
            (
                "checksum",
                format!("{} (verified)", hex(&contents.checksum)),
            ),
            (
                "digest",
                format!("{} (verified)", hex(&header.digest[..16])),
            ),
        ])
    })?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn restored(plan: &Plan, output: Output) -> anyhow::Result<Exit> {
    let made = restore(plan, &SystemClock)?;
    let cluster = made.cluster.to_string();
    let json = serde_json::json!({
        "dataDir": plan.directory,
        "cluster": cluster,
        "member": plan.member,
        "members": plan.members,
        "epoch": made.cluster.epoch,
        "kept": made.kept.to_string(),
        "begun": made.begun.to_string(),
    });
    output.one(&cluster, &json, || {
        facts(&[
            ("data directory", plan.directory.display().to_string()),
            ("cluster", cluster.clone()),
            ("restored to", format!("number {}", made.kept)),
            ("goes on from", format!("number {}", made.begun)),
        ])
    })?;
    if output.is_text() {
        let ids: Vec<String> = plan.members.iter().map(ToString::to_string).collect();
        let others = plan.members.iter().filter(|id| **id != plan.member);
        if plan.cluster.is_none() {
            for id in others {
                note(format!(
                    "Member {id}: oast operator snapshot restore FILE --data-dir DIR --member {id} --members {} --cluster-id {cluster}",
                    ids.join(",")
                ));
            }
        }
        note(
            "The artifact store and the secrets are not in the file. Never start a member of the old cluster again.",
        );
    }
    Ok(Exit::Ok)
}
