//! `oast operator recover`: a farm that lost the majority of its members for good.

use std::path::PathBuf;

use oast_coordinator::operations::recover::{Found, look, recover};
use oast_daemon::clock::SystemClock;
use oast_daemon::exit::Exit;

use crate::fail::Fail;
use crate::output::{Output, facts, note};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory of a stopped member
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Make it the only member, although what only the lost members had is gone for good
    #[arg(long)]
    i_accept_that_acknowledged_writes_may_be_lost: bool,
}

pub fn run(args: &Args, output: Output) -> anyhow::Result<Exit> {
    if !args.i_accept_that_acknowledged_writes_may_be_lost {
        let found = look(&args.data_dir, &SystemClock)?;
        let json = serde_json::json!({
            "cluster": found.cluster,
            "member": found.member,
            "term": found.last.term,
            "last": found.last.index,
            "commit": found.commit,
            "voters": found.voters,
        });
        output.one(&found.member.to_string(), &json, || facts(&lines(&found)))?;
        return Err(Fail::usage("nothing was changed")
            .hint(
                "compare all members that are left and recover the one with the highest last entry (term first), with --i-accept-that-acknowledged-writes-may-be-lost",
            )
            .into());
    }
    let done = recover(&args.data_dir, &SystemClock)?;
    let cluster = done.cluster.to_string();
    let json = serde_json::json!({
        "cluster": cluster,
        "member": done.found.member,
        "before": done.found.cluster,
        "epoch": done.cluster.epoch,
        "kept": done.kept.to_string(),
        "begun": done.begun.to_string(),
        "historyLost": done.history_lost,
    });
    output.one(&cluster, &json, || {
        let mut shown = lines(&done.found);
        shown.push(("new cluster", cluster.clone()));
        shown.push(("goes on from", format!("number {}", done.begun)));
        facts(&shown)
    })?;
    if output.is_text() {
        if done.history_lost > 0 {
            note(format!(
                "{} records of finished work were only on the lost members.",
                done.history_lost
            ));
        }
        note(format!(
            "Member {} is the only voter now. Start it, then add new members: oast operator raft add-learner HOST:PORT",
            done.found.member
        ));
    }
    Ok(Exit::Ok)
}

fn lines(found: &Found) -> Vec<(&'static str, String)> {
    let voters: Vec<String> = found.voters.iter().map(ToString::to_string).collect();
    vec![
        ("cluster", found.cluster.clone()),
        ("member", found.member.to_string()),
        (
            "last entry",
            format!("{} of term {}", found.last.index, found.last.term),
        ),
        ("known committed", found.commit.to_string()),
        ("voters", voters.join(", ")),
    ]
}
