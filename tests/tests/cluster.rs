//! Three members and workers as real processes: what was acknowledged stays, everywhere, whoever
//! is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use oast_proto::v1::{
    ApplyResourceRequest, CancelRunRequest, CreateTokenRequest, GetRunRequest, ListPeersRequest,
    ListResourcesRequest, ListRunsRequest, Run, SetSecretRequest, SubmitRunRequest,
    WatchRunRequest, WhoAmIRequest,
};
use oast_tests::api::{Api, call};
use oast_tests::documents::{PIPELINE, TEAM};
use oast_tests::farm::{Farm, Plan, START};
use oast_tests::git::{Copy, Remote};
use oast_tests::need;
use oast_tests::wait::{seen, until};
use tonic::{Code, Status};

/// Runs that are submitted while leaders die.
const SUBMISSIONS: usize = 60;

macro_rules! farm {
    ($plan:expr, $test:literal) => {{
        let Some(oast) = need::oast($test) else {
            return Ok(());
        };
        let plan: fn(Plan) -> Plan = $plan;
        plan(Plan::new(&oast)).start().await?
    }};
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_is_shown_applied_and_read_on_every_member() -> Result<()> {
    let farm = farm!(
        |plan| plan,
        "a_resource_is_shown_applied_and_read_on_every_member"
    );
    let leader = farm.leader().await?;
    let follower = leader % 3 + 1;
    // Through a follower: the write goes on to the leader.
    let api = farm.api(follower)?;
    let shown = apply(&api, TEAM, true, -1).await?;
    ensure!(shown.created && shown.revision == 0, "{shown:?}");
    ensure!(
        shown.changes.iter().any(|change| change.after == "first"),
        "{shown:?}"
    );
    ensure!(
        resources(&api).await?.is_empty(),
        "looking must not change anything"
    );

    let made = apply(&api, TEAM, false, 0).await?;
    ensure!(made.created && made.revision > 0, "{made:?}");
    let second = TEAM.replace("first", "second");
    let shown = apply(&api, &second, true, -1).await?;
    let change = shown.changes.first().context("a difference")?;
    ensure!(
        (change.before.as_str(), change.after.as_str()) == ("first", "second"),
        "{shown:?}"
    );
    ensure!(shown.revision == made.revision, "{shown:?}");
    let changed = apply(&api, &second, false, i64::try_from(made.revision)?).await?;
    ensure!(changed.revision > made.revision, "{changed:?}");
    // What was shown against an older revision is refused.
    let stale = apply(&api, TEAM, false, i64::try_from(made.revision)?).await;
    expect(stale, Code::Aborted)?;
    for id in 1..=3 {
        let all = resources(&farm.api(id)?).await?;
        ensure!(
            all == BTreeMap::from([("demo".into(), changed.revision)]),
            "{id}: {all:?}"
        );
    }
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_and_teams_bound_what_a_token_may_do() -> Result<()> {
    let farm = farm!(|plan| plan, "roles_and_teams_bound_what_a_token_may_do");
    farm.apply(TEAM).await?;
    farm.apply(&TEAM.replace("demo", "other")).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let mut tokens = BTreeMap::new();
    for (name, role, team) in [
        ("viewer", "viewer", ""),
        ("operator", "operator", ""),
        ("boss", "admin", ""),
        ("bound", "operator", "demo"),
        ("elsewhere", "operator", "other"),
    ] {
        let request = CreateTokenRequest {
            request_id: name.into(),
            name: name.into(),
            role: role.into(),
            team: team.into(),
        };
        let made = farm.api(1)?.operator().create_token(call(request)).await?;
        tokens.insert(name, made.into_inner().token);
    }
    let worker = farm.token("worker").to_owned();
    let rows: [(&str, &str, [Code; 4]); 8] = {
        use Code::{Ok, PermissionDenied as No, Unauthenticated as Who};
        //                                  read  run  secret  team
        [
            ("viewer", &tokens["viewer"], [Ok, No, No, No]),
            ("operator", &tokens["operator"], [Ok, Ok, No, No]),
            ("boss", &tokens["boss"], [Ok, Ok, Ok, Ok]),
            ("bound", &tokens["bound"], [Ok, Ok, No, No]),
            ("elsewhere", &tokens["elsewhere"], [Ok, No, No, No]),
            ("worker", &worker, [Ok, No, No, No]),
            ("wrong", "not-a-token", [Who; 4]),
            ("none", "", [Who; 4]),
        ]
    };
    for (place, (name, token, wanted)) in rows.into_iter().enumerate() {
        let token = (name != "none").then_some(token);
        let api = farm.api_as(place % 3 + 1, token)?;
        let found = [
            code(api.runs().list_runs(call(ListRunsRequest::default())).await),
            code(submit(&api, name, &tree).await),
            code(
                api.resources()
                    .set_secret(call(SetSecretRequest {
                        request_id: format!("secret-{name}"),
                        team: "demo".into(),
                        name: "key".into(),
                        value: b"hush".to_vec().into(),
                    }))
                    .await,
            ),
            code(apply(&api, &TEAM.replace("first", name), false, -1).await),
        ];
        ensure!(found == wanted, "{name}: {found:?}, wanted {wanted:?}");
    }
    for name in farm.names() {
        ensure!(!farm.log(&name).contains("hush"), "{name} logs secrets");
        let leaked = tokens
            .values()
            .any(|token| farm.log(&name).contains(token.as_str()));
        ensure!(!leaked, "{name} logs tokens");
    }
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_once_after_leaders_were_killed() -> Result<()> {
    let farm = farm!(
        |plan| plan,
        "what_was_acknowledged_is_there_once_after_leaders_were_killed"
    );
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let submitting = async {
        let mut acknowledged = BTreeMap::new();
        for number in 0..SUBMISSIONS {
            let id = format!("request-{number}");
            acknowledged.insert(id.clone(), submit_until_known(&farm, &id, &tree).await?);
        }
        anyhow::Ok(acknowledged)
    };
    let killing = async {
        for _ in 0..2 {
            let leader = farm.leader().await?;
            let name = format!("member-{leader}");
            farm.kill(&name).await?;
            farm.leader_but(leader).await?;
            farm.begin(&name).await?;
        }
        anyhow::Ok(())
    };
    let (acknowledged, killed) = tokio::join!(submitting, killing);
    killed?;
    let acknowledged = farm.explain(acknowledged)?;
    let ids: BTreeSet<&String> = acknowledged.values().collect();
    ensure!(ids.len() == SUBMISSIONS, "two requests got one run");
    farm.everybody_answers().await?;
    for id in 1..=3 {
        let runs = run_ids(&farm.api(id)?).await?;
        ensure!(
            runs.iter().collect::<BTreeSet<_>>() == ids,
            "member {id} has {}",
            runs.len()
        );
    }
    // The answers are remembered: the same requests are the same runs, now and for the next leader.
    let (first, run) = acknowledged.first_key_value().context("requests")?;
    ensure!(submit(&farm.api(2)?, first, &tree).await?.id == *run);

    // All at once, and everything is there again.
    for id in 1..=3 {
        farm.kill(&format!("member-{id}")).await?;
    }
    for id in 1..=3 {
        farm.begin(&format!("member-{id}")).await?;
    }
    farm.everybody_answers().await?;
    for id in 1..=3 {
        let runs = run_ids(&farm.api(id)?).await?;
        ensure!(
            runs.iter().collect::<BTreeSet<_>>() == ids,
            "member {id} after the restart"
        );
        ensure!(resources(&farm.api(id)?).await?.len() == 1);
    }
    ensure!(submit(&farm.api(3)?, first, &tree).await?.id == *run);
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_at_another_member_where_it_stopped() -> Result<()> {
    let farm = farm!(
        |plan| plan,
        "a_watch_goes_on_at_another_member_where_it_stopped"
    );
    farm.apply(TEAM).await?;
    let tree = farm.api(1)?.upload(&[("oast.yaml", PIPELINE)]).await?;
    let run = submit(&farm.api(1)?, "one", &tree).await?;
    let watch = |id: usize, after_seq: u64| {
        let request = WatchRunRequest {
            run: run.id.clone(),
            after_seq,
        };
        let api = farm.api(id);
        async move { anyhow::Ok(api?.runs().watch_run(request).await?.into_inner()) }
    };
    let first = watch(1, 0)
        .await?
        .message()
        .await?
        .context("the run as it is")?;
    ensure!(first.id == run.id && !first.ended, "{first:?}");
    let mut later = watch(2, first.seq).await?;
    let quiet = tokio::time::timeout(Duration::from_millis(300), later.message()).await;
    ensure!(
        quiet.is_err(),
        "nothing new happened, and it said {quiet:?}"
    );
    let cancel = CancelRunRequest {
        request_id: "cancel".into(),
        run: run.id.clone(),
        reason: "the test says so".into(),
    };
    farm.api(3)?.runs().cancel_run(call(cancel)).await?;
    let next = tokio::time::timeout(START, later.message())
        .await??
        .context("the change")?;
    ensure!(
        next.seq > first.seq && next.phase == "cancelled",
        "{next:?}"
    );
    let end = tokio::time::timeout(START, later.message()).await??;
    ensure!(end.is_none(), "a watch ends with its run: {end:?}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_task_goes_on_under_a_higher_token() -> Result<()> {
    let test = "a_killed_workers_task_goes_on_under_a_higher_token";
    if !need::have(need::program("git"), "git", test) {
        return Ok(());
    }
    let farm = farm!(
        |plan| plan.worker(&["source"]),
        "a_killed_workers_task_goes_on_under_a_higher_token"
    );
    let remote = Remote::start()?;
    remote.hold(true);
    let copy = Copy::new()?;
    copy.commit("first", &[("oast.yaml", PIPELINE)])?;
    copy.git(&[
        "push",
        "--quiet",
        &remote.folder().display().to_string(),
        "HEAD:main",
    ])?;
    farm.apply(TEAM).await?;
    farm.apply(&repository("web", &remote.url(), "  poll: 5s\n"))
        .await?;
    let first = attempt(&farm, 0).await?;
    farm.kill("worker-1").await?;
    farm.begin("worker-1").await?;
    // A new incarnation ends its predecessor's leases at once, and a leader's death ends none.
    let second = attempt(&farm, first).await?;
    let leader = farm.leader().await?;
    farm.kill(&format!("member-{leader}")).await?;
    farm.leader_but(leader).await?;
    remote.hold(false);
    let run = until("the source is read", START, async || {
        let run = only_run(&farm).await?;
        let done = run
            .tasks
            .iter()
            .any(|task| task.kind == "source" && task.phase == "succeeded");
        Ok(seen(done.then(|| run.clone()), format!("{:?}", run.tasks)))
    });
    let run = farm.explain(run.await)?;
    let task = run
        .tasks
        .iter()
        .find(|task| task.kind == "source")
        .context("a source task")?;
    let tokens: Vec<u64> = task.attempts.iter().map(|attempt| attempt.token).collect();
    ensure!(tokens == [first, second], "{tokens:?}");
    ensure!(
        run.subject == "first" && run.author.contains("Ann"),
        "{run:?}"
    );
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_is_not_let_back() -> Result<()> {
    let farm = farm!(|plan| plan, "a_member_that_lost_its_disk_is_not_let_back");
    farm.apply(TEAM).await?;
    let leader = farm.leader().await?;
    let lost = leader % 3 + 1;
    let name = format!("member-{lost}");
    farm.kill(&name).await?;
    std::fs::remove_dir_all(farm.folder().join(&name))?;
    farm.begin(&name).await?;
    let ended = farm.ended(&name).await?;
    ensure!(ended.code != Some(0), "{ended:?}");
    let log = farm.log(&name);
    ensure!(
        log.contains("must stop") || log.contains("error:"),
        "it did not say why: {log}"
    );
    // The others go on, and their majority still decides.
    farm.apply(&TEAM.replace("first", "second")).await?;
    let peers = farm
        .api(leader)?
        .operator()
        .list_peers(call(ListPeersRequest::default()))
        .await?;
    ensure!(peers.into_inner().leader != lost as u64);
    farm.finish().await
}

fn repository(name: &str, url: &str, more: &str) -> String {
    format!(
        "apiVersion: oast/v1\nkind: Repository\nname: {name}\nspec:\n  team: demo\n  url: {url}\n  branches: [main]\n{more}"
    )
}

async fn apply(
    api: &Api,
    document: &str,
    validate_only: bool,
    expected_revision: i64,
) -> Result<oast_proto::v1::ApplyResourceResponse, Status> {
    let request = ApplyResourceRequest {
        request_id: oast_daemon::random::request_id(),
        document: document.to_owned(),
        validate_only,
        expected_revision,
    };
    let applied = api.resources().apply_resource(call(request)).await;
    applied.map(tonic::Response::into_inner)
}

async fn resources(api: &Api) -> Result<BTreeMap<String, u64>> {
    let request = ListResourcesRequest::default();
    let list = api
        .resources()
        .list_resources(call(request))
        .await?
        .into_inner();
    Ok(list
        .resources
        .into_iter()
        .map(|one| (one.name, one.revision))
        .collect())
}

async fn submit(api: &Api, request_id: &str, tree: &str) -> Result<Run, Status> {
    let request = SubmitRunRequest {
        request_id: request_id.to_owned(),
        team: "demo".into(),
        tree: tree.to_owned(),
        ..SubmitRunRequest::default()
    };
    api.runs()
        .submit_run(call(request))
        .await
        .map(tonic::Response::into_inner)
}

/// As a careful client does it: the same id again, at another member, until there is an answer.
async fn submit_until_known(farm: &Farm, request_id: &str, tree: &str) -> Result<String> {
    let mut turn = request_id.len();
    let known = until(request_id, START, async || {
        turn += 1;
        let answer = submit(&farm.api(turn % 3 + 1)?, request_id, tree).await;
        let answer = answer.map_err(|status| status.to_string());
        Ok(seen(
            answer.clone().ok().map(|run| run.id),
            answer.err().unwrap_or_default(),
        ))
    });
    known.await
}

async fn run_ids(api: &Api) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut page_token = String::new();
    loop {
        // Small pages, so that paging is used.
        let request = ListRunsRequest {
            page_size: 7,
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

async fn only_run(farm: &Farm) -> Result<Run> {
    let leader = farm.leader().await?;
    let api = farm.api(leader)?;
    let list = api
        .runs()
        .list_runs(call(ListRunsRequest::default()))
        .await?
        .into_inner();
    let [run] = list.runs.as_slice() else {
        bail!("{} runs", list.runs.len())
    };
    let request = GetRunRequest {
        run: run.id.clone(),
    };
    Ok(api.runs().get_run(call(request)).await?.into_inner())
}

/// The token of the source task's running attempt, once it is above `above`.
async fn attempt(farm: &Farm, above: u64) -> Result<u64> {
    let found = until("an attempt at the source", START, async || {
        let run = only_run(farm).await?;
        let attempts = run.tasks.iter().flat_map(|task| &task.attempts);
        let running = attempts.filter(|attempt| attempt.ended_at_ms == 0);
        let token = running
            .map(|attempt| attempt.token)
            .find(|token| *token > above);
        Ok(seen(token, format!("{:?}", run.tasks)))
    });
    farm.explain(found.await)
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

fn expect<T: std::fmt::Debug>(answer: Result<T, Status>, wanted: Code) -> Result<()> {
    match answer {
        Err(status) if status.code() == wanted => Ok(()),
        other => bail!("{wanted:?} was expected: {other:?}"),
    }
}

/// Anybody may ask who they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_says_who_it_is() -> Result<()> {
    let farm = farm!(|plan| plan.members(1), "a_token_says_who_it_is");
    let who = farm
        .api(1)?
        .operator()
        .who_am_i(call(WhoAmIRequest {}))
        .await?
        .into_inner();
    ensure!(who.role == "admin" && who.farm == "test", "{who:?}");
    farm.finish().await
}
