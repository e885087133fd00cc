//! Watching from the command line while the member that is watched dies: nothing is lost, nothing
//! is told twice.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use oast_proto::v1::{CancelRunRequest, ListRunsRequest, SubmitRunRequest, WatchRequest};
use oast_tests::api::call;
use oast_tests::documents::{PIPELINE, TEAM};
use oast_tests::farm::{Farm, Plan, START, TERM};
use oast_tests::need;
use oast_tests::wait::{seen, until};
use serde_json::Value;
use tonic::Code;

/// Runs between two kills.
const RUNS: usize = 10;

/// A watch in the background whose lines go to a file.
struct Watch {
    child: Child,
    out: std::path::PathBuf,
}

impl Watch {
    /// The member `first` is asked first.
    fn start(farm: &Farm, first: usize, name: &str, words: &[&str]) -> Result<Watch> {
        let mut members = farm.members();
        members.rotate_left(first - 1);
        let out = farm.folder().join(name);
        let child = farm
            .cli()
            .env("OAST_ADDR", &members.join(","))
            .command(words)
            .stdout(File::create(&out)?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Watch { child, out })
    }

    /// What was printed in whole lines.
    fn lines(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.out)?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().context("lines of JSON")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn submit(farm: &Farm, through: usize, id: &str, tree: &str) -> Result<String> {
    let request = SubmitRunRequest {
        request_id: id.to_owned(),
        team: "demo".into(),
        tree: tree.to_owned(),
        ..SubmitRunRequest::default()
    };
    let run = until(id, START, async || {
        let answer = farm
            .api(through)?
            .runs()
            .submit_run(call(request.clone()))
            .await;
        let run = answer.map(|run| run.into_inner().id);
        let why = run.as_ref().err().map(ToString::to_string);
        Ok(seen(run.ok(), why.unwrap_or_default()))
    });
    run.await
}

async fn cancel(farm: &Farm, through: usize, run: &str) -> Result<()> {
    let request = CancelRunRequest {
        request_id: format!("cancel-{run}"),
        run: run.to_owned(),
        reason: "the test says so".into(),
    };
    until("a cancel", START, async || {
        let answer = farm
            .api(through)?
            .runs()
            .cancel_run(call(request.clone()))
            .await;
        let why = answer.as_ref().err().map(ToString::to_string);
        Ok(seen(answer.ok().map(drop), why.unwrap_or_default()))
    })
    .await
}

/// Number and phase of each told change, by run.
fn told(lines: &[Value]) -> Result<BTreeMap<String, Vec<(u64, String)>>> {
    let mut told: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for line in lines {
        let run = &line["run"];
        let id = run["id"].as_str().context("a run")?.to_owned();
        let phase = run["phase"].as_str().context("a phase")?.to_owned();
        let seq = line["seq"].as_u64().context("a number")?;
        told.entry(id).or_default().push((seq, phase));
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_everything_outlives_its_member_and_tells_each_change_once() -> Result<()> {
    let test = "a_watch_of_everything_outlives_its_member_and_tells_each_change_once";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let list = farm
        .api(1)?
        .runs()
        .list_runs(call(ListRunsRequest::default()))
        .await?;
    let from = list.into_inner().seq;
    // The leader itself is watched, and dies first.
    let leader = farm.leader().await?;
    let from_text = from.to_string();
    let words = [
        "watch", "--all", "--kind", "run", "-o", "jsonl", "--from", &from_text,
    ];
    let watch = Watch::start(&farm, leader, "watch.jsonl", &words)?;
    let mut runs = Vec::new();
    let mut dead = leader;
    for round in 0..3 {
        let other = dead % 3 + 1;
        for number in 0..RUNS {
            let id = format!("run-{round}-{number}");
            let run = submit(&farm, other, &id, &tree).await?;
            if number == RUNS / 2 {
                farm.kill(&format!("member-{dead}")).await?;
            }
            cancel(&farm, other, &run).await?;
            runs.push(run);
        }
        farm.begin(&format!("member-{dead}")).await?;
        farm.everybody_answers().await?;
        // The rotation that the client goes through: it is at the next one now.
        dead = other;
    }
    let all = until("every change", START, async || {
        let told = told(&watch.lines()?)?;
        let whole = |run: &String| told.get(run).is_some_and(|changes| changes.len() >= 2);
        let missing = runs.iter().filter(|run| !whole(run)).count();
        Ok(seen(
            (missing == 0).then(|| told.clone()),
            format!("{missing} of {} miss", runs.len()),
        ))
    });
    let all = farm.explain(all.await)?;
    ensure!(
        all.len() == runs.len(),
        "{} runs were told of {}",
        all.len(),
        runs.len()
    );
    for (run, changes) in &all {
        let phases: Vec<&str> = changes.iter().map(|(_, phase)| phase.as_str()).collect();
        ensure!(phases == ["source", "cancelled"], "{run}: {phases:?}");
    }
    let lines = watch.lines()?;
    let numbers: Vec<_> = lines.iter().map(|line| line["seq"].as_u64()).collect();
    ensure!(
        numbers.is_sorted(),
        "changes came out of order: {numbers:?}"
    );

    // A member that was started anew does not have the beginning any more, and says so. It was
    // ended in peace: one that was killed has what it replays from its log.
    farm.end(&format!("member-{dead}"), TERM).await?;
    farm.begin(&format!("member-{dead}")).await?;
    farm.everybody_answers().await?;
    let request = WatchRequest {
        from_seq: from,
        ..WatchRequest::default()
    };
    let old = farm.api(dead)?.changes().watch(request).await;
    match old {
        Err(status) if status.code() == Code::OutOfRange => {}
        other => anyhow::bail!("OUT_OF_RANGE was expected: {:?}", other.map(drop)),
    }
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_one_run_goes_on_at_another_member_and_ends_with_the_run() -> Result<()> {
    let test = "a_watch_of_one_run_goes_on_at_another_member_and_ends_with_the_run";
    let Some(oast) = need::oast(test) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).start().await?;
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let leader = farm.leader().await?;
    let other = leader % 3 + 1;
    let run = submit(&farm, other, "one", &tree).await?;
    let words = ["watch", &run, "-o", "jsonl"];
    let mut watch = Watch::start(&farm, leader, "run.jsonl", &words)?;
    until("the first line", START, async || {
        let lines = watch.lines()?;
        Ok(seen((!lines.is_empty()).then_some(()), "nothing yet"))
    })
    .await?;
    farm.kill(&format!("member-{leader}")).await?;
    cancel(&farm, other, &run).await?;
    until("the end of the watch", START, async || {
        Ok(seen(watch.child.try_wait()?, "it still watches"))
    })
    .await?;
    let lines = watch.lines()?;
    let numbers: Vec<_> = lines.iter().map(|line| line["seq"].as_u64()).collect();
    ensure!(
        numbers.is_sorted_by(|a, b| a < b),
        "told twice: {numbers:?}"
    );
    let last = lines.last().context("a line")?;
    ensure!(last["phase"] == "cancelled", "{last}");
    farm.finish().await
}
