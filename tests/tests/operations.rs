//! What operators do to a farm of real processes: save, restore, recover, upgrade.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_proto::v1::{GetVersionRequest, ListRunsRequest, SubmitRunRequest, WatchRunRequest};
use oast_tests::api::{Api, call};
use oast_tests::documents::{PIPELINE, TEAM};
use oast_tests::farm::{Farm, KILL, Plan, START};
use oast_tests::need;
use oast_tests::wait::{seen, until};
use serde_json::Value;
use tonic::{Code, Status};

/// Lets a member behave like one of an older version.
const OLDER: &str = "cluster_version_cap = 1\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_farm_has_what_was_saved_and_never_repeats_a_number() -> Result<()> {
    let test = "a_restored_farm_has_what_was_saved_and_never_repeats_a_number";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let mut kept = BTreeSet::new();
    for number in 0..10 {
        kept.insert(submit(&farm, &format!("kept-{number}"), &tree).await?.0);
    }
    let (watched, before) = submit(&farm, "watched", &tree).await?;
    kept.insert(watched.clone());
    let file = farm.folder().join("farm.oast").display().to_string();
    let follower = farm.leader().await? % 3 + 1;
    let cli = farm.cli();
    cli.clone()
        .env("OAST_ADDR", &farm.members()[follower - 1])
        .good(&["operator", "snapshot", "save", &file])?;
    let shown = json(&cli.good(&["operator", "snapshot", "inspect", &file, "-o", "json"])?)?;
    ensure!(
        shown["tables"]["runs"] == 11 && shown["farm"] == "test",
        "{shown}"
    );
    // A file is never replaced, and only an administrator gets one.
    cli.run(&["operator", "snapshot", "save", &file])?
        .failed(64, &["exists already"])?;
    cli.clone()
        .env("OAST_TOKEN", farm.token("worker"))
        .run(&["operator", "snapshot", "save", &format!("{file}2")])?
        .failed(4, &["manage resources"])?;

    // The farm works on, and all of it is lost.
    let mut lost = Vec::new();
    for number in 0..5 {
        lost.push(submit(&farm, &format!("lost-{number}"), &tree).await?);
    }
    let highest = lost.iter().map(|(_, seq)| *seq).max().context("runs")?;
    for id in 1..=3 {
        farm.kill(&format!("member-{id}")).await?;
        fs::rename(data(&farm, id), farm.folder().join(format!("old-{id}")))?;
    }
    let restore = |id: usize, more: &[&str]| {
        let (directory, id) = (data(&farm, id).display().to_string(), id.to_string());
        let mut words = vec!["operator", "snapshot", "restore", &file];
        words.extend([
            "--data-dir",
            &directory,
            "--member",
            &id,
            "--members",
            "1,2,3",
        ]);
        words.extend(more);
        cli.run(&words)
    };
    let made = restore(1, &["-o", "json"])?;
    let made = json(&made.out).with_context(|| format!("{made:?}"))?;
    let cluster = made["cluster"].as_str().context("an id")?.to_owned();
    for id in [2, 3] {
        let done = restore(id, &["--cluster-id", &cluster])?;
        ensure!(done.code == 0, "{done:?}");
    }
    restore(3, &["--cluster-id", &cluster])?.failed(1, &["not empty"])?;
    for id in 1..=3 {
        farm.begin(&format!("member-{id}")).await?;
    }
    farm.everybody_answers().await?;
    for id in 1..=3 {
        let runs = run_ids(&farm.api(id)?).await?;
        ensure!(runs == kept, "member {id}: {runs:?}, wanted {kept:?}");
    }
    let (_, fresh) = submit(&farm, "fresh", &tree).await?;
    ensure!(fresh > highest, "{fresh} after {highest}");
    // The same request id as before the loss: what was lost is done again, what was kept is not.
    ensure!(submit(&farm, "kept-3", &tree).await?.1 < before);
    ensure!(submit(&farm, "lost-3", &tree).await?.1 > highest);

    // A watch that saw what was lost is told so; one that did not goes on.
    let watch = |after_seq| {
        let request = WatchRunRequest {
            run: watched.clone(),
            after_seq,
        };
        let api = farm.api(2);
        async move {
            let mut runs = api?.runs().watch_run(request).await?.into_inner();
            anyhow::Ok(tokio::time::timeout(Duration::from_millis(500), runs.message()).await)
        }
    };
    let quiet = watch(before).await?;
    ensure!(quiet.is_err(), "nothing new happened: {quiet:?}");
    let refused = watch(highest).await?.context("an answer")?;
    let refused = refused.err().context("a refusal")?;
    ensure!(
        refused.code() == Code::OutOfRange && refused.message().contains("from another epoch"),
        "{refused:?}"
    );

    // A member of what the farm was before is not listened to.
    farm.kill("member-3").await?;
    fs::rename(data(&farm, 3), farm.folder().join("new-3"))?;
    fs::rename(farm.folder().join("old-3"), data(&farm, 3))?;
    farm.begin("member-3").await?;
    let said = until("member 3 is refused", START, async || {
        let log = farm.log("member-3");
        let refused = log.contains("belongs to farm");
        Ok(seen(refused.then_some(()), log))
    });
    farm.explain(said.await)?;
    ensure!(submit(&farm, "after", &tree).await?.1 > fresh);
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_goes_on_after_the_majority_was_lost() -> Result<()> {
    let test = "one_member_goes_on_after_the_majority_was_lost";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).spares(1).start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let mut kept = BTreeSet::new();
    let mut highest = 0;
    for number in 0..10 {
        let (run, seq) = submit(&farm, &format!("kept-{number}"), &tree).await?;
        kept.insert(run);
        highest = highest.max(seq);
    }
    farm.everybody_answers().await?;
    let cli = farm.cli();
    let directory = data(&farm, 2).display().to_string();
    let recover = ["operator", "recover", "--data-dir", &directory];
    let loud = "--i-accept-that-acknowledged-writes-may-be-lost";
    // Not while it runs.
    cli.run(&[&recover[..], &[loud]].concat())?
        .failed(1, &["in use by coordinator"])?;
    for id in 1..=3 {
        farm.kill(&format!("member-{id}")).await?;
    }
    // Without the flag it looks, and changes nothing.
    cli.run(&recover)?
        .failed(64, &["nothing was changed", loud, "last entry"])?;
    let done = json(&cli.good(&[&recover[..], &[loud, "-o", "json"]].concat())?)?;
    ensure!(done["member"] == 2 && done["before"] == "test", "{done}");
    farm.begin("member-2").await?;
    let api = farm.api(2)?;
    let alone = until("member 2 leads alone", START, async || {
        let runs = run_ids(&api).await;
        Ok(seen(runs.as_ref().ok().cloned(), format!("{runs:?}")))
    });
    let runs = farm.explain(alone.await)?;
    ensure!(runs == kept, "{runs:?}, wanted {kept:?}");
    // Old members come back, and are a majority of what the farm was.
    farm.begin("member-1").await?;
    farm.begin("member-3").await?;
    for number in 0..3 {
        let request = request(&format!("fresh-{number}"), &tree);
        let fresh = api.runs().submit_run(call(request)).await?.into_inner();
        ensure!(fresh.seq > highest, "{} after {highest}", fresh.seq);
        kept.insert(fresh.id);
    }
    // A new member joins what the farm is now, whoever of the old ones it asks first, under an id
    // that nobody had.
    let alone = cli.clone().env("OAST_ADDR", &farm.address(2));
    alone.good(&["operator", "raft", "add-learner", &farm.address(4)])?;
    farm.begin("member-4").await?;
    let joined = until("member 4 votes", START, async || {
        let done = alone.run(&["operator", "raft", "promote", "4"])?;
        Ok(seen((done.code == 0).then_some(()), done.said()))
    });
    farm.explain(joined.await)?;
    let status = json(&alone.good(&["operator", "raft", "status", "-o", "json"])?)?;
    ensure!(
        status["farm"] == done["cluster"] && status["voters"] == serde_json::json!([2, 4]),
        "{status}"
    );
    let runs = run_ids(&farm.api(4)?).await?;
    ensure!(runs == kept, "member 4: {runs:?}, wanted {kept:?}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_upgraded_one_by_one_under_load_and_the_version_rises_after_the_last()
-> Result<()> {
    let test = "members_are_upgraded_one_by_one_under_load";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).member_extra(OLDER).start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    let load = async {
        let mut acknowledged = BTreeSet::new();
        while !stopped() {
            let id = format!("request-{}", acknowledged.len());
            let (run, _) = submit(&farm, &id, &tree).await?;
            ensure!(acknowledged.insert(run), "two requests got one run");
        }
        anyhow::Ok(acknowledged)
    };
    let upgrade = async {
        until_version(&farm, 1).await?;
        // The leader goes last.
        let leader = farm.leader().await?;
        for id in [leader % 3 + 1, (leader + 1) % 3 + 1, leader] {
            ensure!(
                version(&farm, id).await?.0 == 1,
                "it rose before member {id}"
            );
            let name = format!("member-{id}");
            farm.end(&name, KILL).await?;
            let config = farm.folder().join(format!("config/{name}.toml"));
            let text = fs::read_to_string(&config)?;
            ensure!(text.contains(OLDER));
            fs::write(&config, text.replace(OLDER, ""))?;
            farm.begin(&name).await?;
            farm.everybody_answers().await?;
        }
        until_version(&farm, 2).await
    };
    let upgrading = async {
        let upgraded = upgrade.await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        upgraded
    };
    let (acknowledged, upgraded) = tokio::join!(load, upgrading);
    farm.explain(upgraded)?;
    let acknowledged = farm.explain(acknowledged)?;
    ensure!(acknowledged.len() > 3, "no load: {acknowledged:?}");
    for id in 1..=3 {
        let runs = run_ids(&farm.api(id)?).await?;
        ensure!(runs == acknowledged, "member {id} has {}", runs.len());
    }
    // There is no way back: an older member says so and does not run.
    farm.kill("member-1").await?;
    let config = farm.folder().join("config/member-1.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("{OLDER}{text}"))?;
    farm.begin("member-1").await?;
    farm.ended("member-1").await?;
    let log = farm.log("member-1");
    ensure!(log.contains("supports up to 1"), "{log}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_version_waits_for_the_operator() -> Result<()> {
    let Some(oast) = need::oast("a_held_version_waits_for_the_operator") else {
        return Ok(());
    };
    let farm = Plan::new(&oast)
        .members(1)
        .member_extra(OLDER)
        .start()
        .await?;
    until_version(&farm, 1).await?;
    let cli = farm.cli();
    cli.good(&["operator", "version", "hold"])?;
    farm.kill("member-1").await?;
    let config = farm.folder().join("config/member-1.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace(OLDER, ""))?;
    farm.begin("member-1").await?;
    farm.everybody_answers().await?;
    let shown = json(&cli.good(&["operator", "version", "show", "-o", "json"])?)?;
    ensure!(
        shown["version"] == 1 && shown["held"] == true && shown["next"] == 2,
        "{shown}"
    );
    cli.good(&["operator", "version", "finalize"])?;
    until_version(&farm, 2).await?;
    farm.finish().await
}

async fn version(farm: &Farm, id: usize) -> Result<(u32, u32)> {
    let api = farm.api(id)?;
    let answer = api.operator().get_version(call(GetVersionRequest {})).await;
    let found = answer?.into_inner();
    Ok((found.version, found.next))
}

async fn until_version(farm: &Farm, wanted: u32) -> Result<()> {
    let reached = until("the cluster version", START, async || {
        let leader = farm.leader().await?;
        let found = version(farm, leader).await;
        let there = matches!(&found, Ok((version, _)) if *version == wanted);
        Ok(seen(there.then_some(()), format!("{found:?}")))
    });
    farm.explain(reached.await)
}

fn data(farm: &Farm, id: usize) -> PathBuf {
    farm.folder().join(format!("member-{id}"))
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

fn request(request_id: &str, tree: &str) -> SubmitRunRequest {
    SubmitRunRequest {
        request_id: request_id.to_owned(),
        team: "demo".into(),
        tree: tree.to_owned(),
        ..SubmitRunRequest::default()
    }
}

/// As a careful client does it: the same id again, at another member, until there is an answer.
/// Returns the run and the number that it began with.
async fn submit(farm: &Farm, request_id: &str, tree: &str) -> Result<(String, u64)> {
    let mut turn = request_id.len();
    let known = until(request_id, START, async || {
        turn += 1;
        let api = farm.api(turn % farm.members().len() + 1)?;
        let answer = api.runs().submit_run(call(request(request_id, tree))).await;
        let answer = answer.map(tonic::Response::into_inner);
        Ok(match answer {
            Ok(run) => seen(Some((run.id, run.seq)), String::new()),
            Err(status) => seen(None, refused(&status)),
        })
    });
    farm.explain(known.await)
}

fn refused(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

async fn run_ids(api: &Api) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = ListRunsRequest {
            page_size: 100,
            page_token,
            ..ListRunsRequest::default()
        };
        let list = api.runs().list_runs(call(request)).await?.into_inner();
        ids.extend(list.runs.into_iter().map(|run| run.id));
        if list.next_page_token.is_empty() {
            return Ok(ids);
        }
        page_token = list.next_page_token;
    }
}
