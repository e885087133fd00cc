//! Members that cannot be trusted any more stop and say what to do; the others go on, and take a new
//! one in.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oast_proto::v1::{
    ApplyResourceRequest, CancelRunRequest, ListPeersRequest, ListResourcesRequest,
    ListRunsRequest, Peer, SubmitRunRequest,
};
use oast_tests::api::{Api, call};
use oast_tests::documents::PIPELINE;
use oast_tests::farm::{Farm, Plan, START, TERM};
use oast_tests::faults::{EIO, ENOSPC, EROFS, Fault};
use oast_tests::need;
use oast_tests::wait::{seen, until};

fn team(name: &str) -> String {
    format!("apiVersion: oast/v1\nkind: Team\nname: {name}\nspec: {{}}\n")
}

/// Writes through members other than `not` until one acknowledges.
async fn write(farm: &Farm, name: &str, not: usize) -> Result<()> {
    let mut turn = 0;
    let request = ApplyResourceRequest {
        request_id: name.to_owned(),
        document: team(name),
        validate_only: false,
        expected_revision: -1,
    };
    let written = until(name, START, async || {
        turn += 1;
        let id = turn % 3 + 1;
        if id == not {
            return Ok(seen(None, "somebody else's turn"));
        }
        let mut resources = farm.api(id)?.resources();
        let answer = resources.apply_resource(call(request.clone())).await;
        Ok(seen(answer.as_ref().ok().map(drop), format!("{answer:?}")))
    });
    farm.explain(written.await)
}

async fn names(api: &Api) -> Result<Vec<String>> {
    let list = ListResourcesRequest::default();
    let list = api.resources().list_resources(call(list)).await?;
    let resources = list.into_inner().resources.into_iter();
    Ok(resources.map(|resource| resource.name).collect())
}

/// Waits until member `id` shows everything.
async fn shows(farm: &Farm, id: usize, wanted: &[&str]) -> Result<()> {
    let shown = until("everything is shown", START, async || {
        let found = names(&farm.api(id)?).await.unwrap_or_default();
        let all = wanted
            .iter()
            .all(|name| found.iter().any(|there| there == name));
        Ok(seen(all.then_some(()), format!("{found:?}")))
    });
    farm.explain(shown.await)
}

/// Waits until a member has ended by itself, and checks what it said last.
async fn stopped(farm: &Farm, name: &str, parts: &[&str]) -> Result<()> {
    let ended = farm.ended(name).await?;
    ensure!(ended.code != Some(0), "{name} ended as if all was well");
    let log = farm.log(name);
    let last: String = log.lines().rev().take(40).collect::<Vec<_>>().join("\n");
    for part in parts {
        ensure!(last.contains(part), "{name} did not say `{part}`: {log}");
    }
    Ok(())
}

fn folder(farm: &Farm, id: usize) -> PathBuf {
    farm.folder().join(format!("member-{id}"))
}

async fn peers(farm: &Farm, asked: usize) -> Result<Vec<Peer>> {
    let request = ListPeersRequest { from_leader: true };
    let mut operator = farm.api(asked)?.operator();
    Ok(operator.list_peers(call(request)).await?.into_inner().peers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_bad_disk_says_what_to_do_and_comes_back_when_it_is_mended() -> Result<()> {
    const TEST: &str = "a_member_with_a_bad_disk_says_what_to_do_and_comes_back_when_it_is_mended";
    let Some(oast) = need::oast(TEST) else {
        return Ok(());
    };
    if !need::have(need::program("cc"), "a C compiler", TEST) {
        return Ok(());
    }
    let farm = Plan::new(&oast).faulty_disks().start().await?;
    let mut written = Vec::new();
    for (name, fault, parts) in [
        (
            "after-a-failed-fsync",
            Fault::Sync,
            ["did not keep the raft log", "start the member again"],
        ),
        (
            "after-a-failed-write",
            Fault::Write,
            ["Check the disk and make room", "start the member again"],
        ),
    ] {
        // The leader: what it was about to acknowledge must come through the others.
        let victim = farm.leader().await?;
        let member = format!("member-{victim}");
        farm.fault(&member, Some((fault, EIO)))?;
        write(&farm, name, victim).await?;
        written.push(name);
        farm.explain(stopped(&farm, &member, &parts).await)?;
        farm.fault(&member, None)?;
        farm.begin(&member).await?;
        shows(&farm, victim, &written).await?;
    }

    // Read-only from the start.
    let victim = farm.leader().await? % 3 + 1;
    let member = format!("member-{victim}");
    farm.kill(&member).await?;
    farm.fault(&member, Some((Fault::Change, EROFS)))?;
    farm.begin(&member).await?;
    let parts = ["Read-only file system", "see that it can be written"];
    farm.explain(stopped(&farm, &member, &parts).await)?;
    write(&farm, "without-the-read-only-one", victim).await?;
    written.push("without-the-read-only-one");
    farm.fault(&member, None)?;
    farm.begin(&member).await?;
    shows(&farm, victim, &written).await?;
    farm.everybody_answers().await?;
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_index_could_not_be_written_stops_and_shows_finished_runs_afterwards()
-> Result<()> {
    const TEST: &str = "a_member_whose_index_could_not_be_written_stops";
    let Some(oast) = need::oast(TEST) else {
        return Ok(());
    };
    if !need::have(need::program("cc"), "a C compiler", TEST) {
        return Ok(());
    }
    let farm = Plan::new(&oast).faulty_disks().start().await?;
    write(&farm, "demo", 0).await?;
    let victim = farm.leader().await? % 3 + 1;
    let member = format!("member-{victim}");
    let index = folder(&farm, victim).join("index");
    farm.fault_below(&member, &index, Some((Fault::Write, ENOSPC)))?;
    // What ends goes to the history, and with the next look from there to the index.
    let api = farm.api(victim % 3 + 1)?;
    let tree = api.upload(&[("oast.yaml", PIPELINE)]).await?;
    let mut ended = Vec::new();
    let stops = until("the member stops", START, async || {
        let request_id = format!("run-{}", ended.len());
        let request = SubmitRunRequest {
            request_id,
            team: "demo".into(),
            tree: tree.clone(),
            ..SubmitRunRequest::default()
        };
        let run = api.runs().submit_run(call(request)).await?.into_inner().id;
        let request = CancelRunRequest {
            request_id: format!("cancel-{run}"),
            run: run.clone(),
            ..CancelRunRequest::default()
        };
        api.runs().cancel_run(call(request)).await?;
        ended.push(run);
        let _ = runs(&farm, victim).await;
        let stopped = farm.life(&member).pid.is_none();
        Ok(seen(stopped.then_some(()), "it runs"))
    });
    farm.explain(stops.await)?;
    let parts = ["use the index of finished runs", "start the member again"];
    farm.explain(stopped(&farm, &member, &parts).await)?;
    farm.fault_below(&member, &index, None)?;
    farm.begin(&member).await?;
    farm.everybody_answers().await?;
    ended.sort_unstable();
    let shown = farm.explain(runs(&farm, victim).await)?;
    ensure!(shown == ended, "{shown:?}, wanted {ended:?}");
    // In peace it is closed so that it is believed whatever comes.
    farm.end(&member, TERM).await?;
    ensure!(index.join("db").exists() && !index.join("life").exists());
    farm.finish().await
}

/// The newest runs as one member shows them.
async fn runs(farm: &Farm, id: usize) -> Result<Vec<String>> {
    let request = ListRunsRequest {
        page_size: 100,
        ..ListRunsRequest::default()
    };
    let list = farm.api(id)?.runs().list_runs(call(request)).await?;
    let runs = list.into_inner().runs.into_iter();
    let mut ids: Vec<String> = runs.map(|run| run.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Overwrites a part of the first file with this ending.
fn damage(folder: &Path, ending: &str) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|found| found == ending));
    files.sort();
    let file = files.first().context("a file to damage")?;
    let mut bytes = fs::read(file)?;
    let end = bytes.len().min(64);
    bytes[..end].fill(0x55);
    fs::write(file, bytes)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_log_is_replaced_in_a_running_farm() -> Result<()> {
    const TEST: &str = "a_member_that_lost_its_log_is_replaced_in_a_running_farm";
    let Some(oast) = need::oast(TEST) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).spares(1).start().await?;
    write(&farm, "before", 0).await?;
    let leader = farm.leader().await?;
    let victim = leader % 3 + 1;
    let member = format!("member-{victim}");
    farm.kill(&member).await?;

    damage(&folder(&farm, victim).join("raft"), "raftlog")?;
    farm.begin(&member).await?;
    let parts = ["remove this member and add it again under a new id"];
    farm.explain(stopped(&farm, &member, &parts).await)?;
    fs::remove_dir_all(folder(&farm, victim).join("raft"))?;
    farm.begin(&member).await?;
    let parts = ["its raft log is gone", "add it again under a new id"];
    farm.explain(stopped(&farm, &member, &parts).await)?;
    fs::remove_dir_all(folder(&farm, victim))?;
    farm.begin(&member).await?;
    let parts = ["made anew", "add it again under a new id"];
    farm.explain(stopped(&farm, &member, &parts).await)?;
    write(&farm, "without-it", victim).await?;

    // What the message says, in the words of docs/operating.md.
    let all: Vec<String> = (1..=4).map(|id| farm.address(id)).collect();
    let cli = farm.cli().env("OAST_ADDR", &all.join(","));
    let fourth = farm.address(4);
    let added = cli.good(&["operator", "raft", "add-learner", &fourth, "-o", "name"])?;
    ensure!(added.trim() == "4", "{added}");
    farm.begin("member-4").await?;
    let follows = until("member 4 follows", START, async || {
        let peers = peers(&farm, leader).await?;
        let fourth = peers.iter().find(|peer| peer.id == 4);
        let follows = fourth.filter(|p| p.joined && p.answers && p.matched > 0 && p.lag < 500);
        Ok(seen(follows.map(drop), format!("{peers:?}")))
    });
    farm.explain(follows.await)?;
    let old = victim.to_string();
    cli.good(&["operator", "raft", "promote", "4", "--replace", &old])?;
    let mut voters: Vec<u64> = peers(&farm, leader)
        .await?
        .iter()
        .filter(|peer| peer.voter)
        .map(|peer| peer.id)
        .collect();
    voters.sort_unstable();
    let wanted: Vec<u64> = (1..=4).filter(|id| *id != victim as u64).collect();
    ensure!(voters == wanted, "{voters:?}");

    // The new one counts: with it and one of the old ones there is a majority.
    let silent = (1..=3).find(|id| *id != victim && *id != leader);
    let silent = silent.context("a third member")?;
    farm.kill(&format!("member-{silent}")).await?;
    write(&farm, "with-the-new-one", victim).await?;
    shows(&farm, 4, &["before", "without-it", "with-the-new-one"]).await?;
    farm.begin(&format!("member-{silent}")).await?;
    // Its wiped predecessor is told that it has no place any more.
    farm.begin(&member).await?;
    farm.explain(stopped(&farm, &member, &["was removed from the group"]).await)?;
    farm.finish().await
}
