//! Members join, vote, lead, die and leave while writes go on: what was acknowledged is there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oast_proto::v1::{ApplyResourceRequest, ListPeersRequest, ListResourcesRequest, Peer};
use oast_tests::api::call;
use oast_tests::cli::Cli;
use oast_tests::farm::{Farm, Plan, START};
use oast_tests::need;
use oast_tests::wait::{seen, until};

/// The exit code of a call that the farm refused.
const REFUSED: &[&str] = &["error["];

fn team(number: u32) -> String {
    format!(
        "apiVersion: oast/v1\nkind: Team\nname: team-{number}\nspec:\n  description: written while members change\n"
    )
}

/// Writes teams one after the other through whoever answers, until it is told to stop; returns how
/// many were acknowledged, which is also the number of the first that was not tried.
async fn write(farm: &Farm, stop: &AtomicBool) -> Result<u32> {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return Ok(number);
        }
        let request = ApplyResourceRequest {
            request_id: format!("team-{number}"),
            document: team(number),
            validate_only: false,
            expected_revision: -1,
        };
        let mut turn = 0;
        until(&request.request_id, START, async || {
            turn += 1;
            let api = farm.api(turn % 4 + 1)?;
            let answer = api.resources().apply_resource(call(request.clone())).await;
            Ok(seen(answer.as_ref().ok().map(drop), format!("{answer:?}")))
        })
        .await?;
    }
    unreachable!("the numbers do not end")
}

async fn peers(farm: &Farm, asked: usize) -> Result<Vec<Peer>> {
    let request = ListPeersRequest { from_leader: true };
    let answer = farm
        .api(asked)?
        .operator()
        .list_peers(call(request))
        .await?;
    Ok(answer.into_inner().peers)
}

/// A command that must say no, for a reason that it names.
fn refused(cli: &Cli, words: &[&str], reason: &str) -> Result<()> {
    let done = cli.run(words)?;
    ensure!(done.code != 0, "`oast {}` was not refused", words.join(" "));
    for part in REFUSED.iter().chain([&reason]) {
        ensure!(
            done.said().contains(part),
            "`{part}` is missing in {}",
            done.said()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_and_every_acknowledged_write_stays() -> Result<()> {
    const TEST: &str = "members_come_and_go_and_every_acknowledged_write_stays";
    let Some(oast) = need::oast(TEST) else {
        return Ok(());
    };
    let farm = Plan::new(&oast).spares(1).start().await?;
    let stop = AtomicBool::new(false);
    let (written, changed) = tokio::join!(write(&farm, &stop), async {
        let changed = change(&farm).await;
        stop.store(true, Ordering::Relaxed);
        changed
    });
    let removed = farm.explain(changed)?;
    let written = farm.explain(written)?;
    ensure!(written > 0, "nothing was written");
    println!("{written} writes acknowledged while the members changed");
    for id in (1..=4).filter(|id| *id != removed) {
        let list = ListResourcesRequest::default();
        let list = farm.api(id)?.resources().list_resources(call(list)).await?;
        let found: BTreeSet<String> = list
            .into_inner()
            .resources
            .into_iter()
            .map(|resource| resource.name)
            .collect();
        let lost: Vec<u32> = (0..written)
            .filter(|number| !found.contains(&format!("team-{number}")))
            .collect();
        ensure!(lost.is_empty(), "member {id} lost {lost:?}");
    }
    farm.finish().await
}

/// Returns who was removed.
async fn change(farm: &Farm) -> Result<usize> {
    let all: Vec<String> = (1..=4).map(|id| farm.address(id)).collect();
    let cli = farm.cli().env("OAST_ADDR", &all.join(","));
    let raft =
        |words: &[&str]| -> Result<String> { cli.good(&[&["operator", "raft"], words].concat()) };
    let fourth = farm.address(4);

    // It may be started before its address is added: it waits.
    farm.begin("member-4").await?;
    refused(
        &cli,
        &["operator", "raft", "promote", "4"],
        "no such member",
    )?;
    let id = raft(&["add-learner", &fourth, "-o", "name"])?;
    ensure!(id.trim() == "4", "{id}");
    refused(
        &cli,
        &["operator", "raft", "add-learner", &fourth],
        "remove that member first",
    )?;
    refused(
        &cli,
        &["operator", "raft", "transfer-leader", "4"],
        "promote it first",
    )?;
    until("member 4 follows", START, async || {
        let peers = peers(farm, 1).await?;
        let fourth = peers.iter().find(|peer| peer.id == 4);
        let follows = fourth.filter(|p| p.joined && p.answers && p.matched > 0 && p.lag < 500);
        Ok(seen(follows.map(drop), format!("{peers:?}")))
    })
    .await?;
    raft(&["promote", "4"])?;
    let shown = raft(&["list-peers", "-o", "json"])?;
    ensure!(shown.matches("\"voter\": true").count() == 4, "{shown}");

    let old = farm.leader().await?;
    let leads = raft(&["transfer-leader", "4", "-o", "name"])?;
    ensure!(leads.trim() == "4", "{leads}");
    ensure!(farm.leader().await? == 4, "member 4 does not lead");

    // An old one dies and leaves; its place is taken already.
    farm.kill(&format!("member-{old}")).await?;
    let old_id = old.to_string();
    let question = cli.run(&["operator", "raft", "remove-peer", &old_id])?;
    ensure!(
        question.code != 0 && question.said().contains("--yes"),
        "{question:?}"
    );
    raft(&["remove-peer", &old_id, "--yes"])?;
    refused(
        &cli,
        &["operator", "raft", "remove-peer", &old_id, "--yes"],
        "an id is never used again",
    )?;

    // With one of three silent, a second one cannot be taken out.
    let rest: Vec<usize> = (1..=3).filter(|id| *id != old).collect();
    farm.kill(&format!("member-{}", rest[0])).await?;
    let silent = rest[0].to_string();
    until("its silence is noticed", START, async || {
        let said = cli.run(&["operator", "raft", "transfer-leader", &silent])?;
        let noticed = said.said().contains("not answered lately");
        Ok(seen(noticed.then_some(()), said.said()))
    })
    .await?;
    let healthy = rest[1].to_string();
    refused(
        &cli,
        &["operator", "raft", "remove-peer", &healthy, "--yes"],
        "start the others first",
    )?;
    farm.begin(&format!("member-{}", rest[0])).await?;

    // The removed one comes back with everything it had, and is told to go.
    let name = format!("member-{old}");
    farm.begin(&name).await?;
    farm.ended(&name).await?;
    let log = farm.log(&name);
    ensure!(log.contains("it was removed from the group"), "{log}");

    let status = raft(&["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_str(&status).context("status as JSON")?;
    ensure!(status["changing"] == false, "{status}");
    ensure!(
        status["voters"].as_array().map(Vec::len) == Some(3),
        "{status}"
    );
    // Clocks of one machine agree.
    until(
        "the clocks are compared",
        Duration::from_secs(30),
        async || {
            let peers = peers(farm, 4).await?;
            let measured = peers
                .iter()
                .all(|peer| peer.clock_ms.is_some_and(|ms| ms.abs() < 500));
            Ok(seen(measured.then_some(()), format!("{peers:?}")))
        },
    )
    .await?;
    farm.everybody_answers().await?;
    Ok(old)
}
