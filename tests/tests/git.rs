//! From Git to a run: a push to the farm's own address, a remote that is watched, a webhook.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use oast_proto::v1::{CreateTokenRequest, ListRunsRequest, Run, SetSecretRequest};
use oast_tests::api::call;
use oast_tests::documents::{PIPELINE, TEAM};
use oast_tests::farm::{Farm, Plan, START};
use oast_tests::git::{Copy, Remote};
use oast_tests::wait::{seen, until};
use oast_tests::{http, need};
use sha2::Sha256;

const KEY: &[u8] = b"It's a Secret to Everybody";

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_any_member_starts_a_run_of_what_was_pushed() -> Result<()> {
    let Some(oast) = need::oast("a_push_to_any_member_starts_a_run_of_what_was_pushed") else {
        return Ok(());
    };
    let farm = Plan::new(&oast).worker(&["source"]).start().await?;
    farm.apply(TEAM).await?;
    farm.apply(&repository("farm:web", "")).await?;
    let operator = token(&farm, "operator").await?;
    let viewer = token(&farm, "viewer").await?;
    let copy = Copy::new()?;
    let first = copy.commit("first", &[("oast.yaml", PIPELINE)])?;

    // Who may only look cannot push, and neither can a stranger.
    for (name, token) in [("viewer", viewer.as_str()), ("stranger", "no-such-token")] {
        let url = address(&farm, 1, token)?;
        ensure!(
            copy.git(&["push", &url, "HEAD:main"]).is_err(),
            "{name} could push"
        );
    }
    ensure!(runs(&farm).await?.is_empty());

    copy.git(&[
        "push",
        "--quiet",
        &address(&farm, 2, &operator)?,
        "HEAD:main",
    ])?;
    let run = source_read(&farm, &first).await?;
    ensure!(
        run.subject == "first" && run.branch == "main" && run.pipeline == "web",
        "{run:?}"
    );
    // Another member serves what this one took, also to who may only look.
    let url = address(&farm, 3, &viewer)?;
    let listed = copy.git(&["ls-remote", &url, "refs/heads/main"])?;
    ensure!(listed.starts_with(&first), "{listed}");

    // A branch that the repository does not watch starts nothing; the leader's death loses nothing.
    let second = copy.commit("second", &[("page", "2")])?;
    copy.git(&[
        "push",
        "--quiet",
        &address(&farm, 1, &operator)?,
        "HEAD:try",
    ])?;
    let leader = farm.leader().await?;
    farm.kill(&format!("member-{leader}")).await?;
    let other = farm.leader_but(leader).await?;
    copy.git(&[
        "push",
        "--quiet",
        &address(&farm, other, &operator)?,
        "HEAD:main",
    ])?;
    source_read(&farm, &second).await?;
    let all = runs(&farm).await?;
    ensure!(all.len() == 2, "{all:?}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_remote_starts_a_run_for_each_commit() -> Result<()> {
    let Some(oast) = need::oast("a_watched_remote_starts_a_run_for_each_commit") else {
        return Ok(());
    };
    let farm = Plan::new(&oast).worker(&["source"]).start().await?;
    let remote = Remote::start()?;
    let bare = remote.folder().display().to_string();
    let copy = Copy::new()?;
    let first = copy.commit("first", &[("oast.yaml", PIPELINE)])?;
    copy.git(&["push", "--quiet", &bare, "HEAD:main"])?;
    farm.apply(TEAM).await?;
    farm.apply(&repository(&remote.url(), "  poll: 5s\n"))
        .await?;
    source_read(&farm, &first).await?;
    let second = copy.commit("second", &[("page", "2")])?;
    copy.git(&["push", "--quiet", &bare, "HEAD:main"])?;
    source_read(&farm, &second).await?;
    let seen: BTreeSet<String> = runs(&farm)
        .await?
        .into_iter()
        .map(|run| run.commit)
        .collect();
    ensure!(seen == BTreeSet::from([first, second]), "{seen:?}");
    farm.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_counts_once_and_only_when_it_is_signed() -> Result<()> {
    let Some(oast) = need::oast("a_delivery_counts_once_and_only_when_it_is_signed") else {
        return Ok(());
    };
    let farm = Plan::new(&oast).start().await?;
    farm.apply(TEAM).await?;
    farm.apply(&repository(
        "https://git.example/acme/web.git",
        "  webhookSecret: { secret: hook }\n",
    ))
    .await?;
    let secret = SetSecretRequest {
        request_id: "hook".into(),
        team: "demo".into(),
        name: "hook".into(),
        value: KEY.to_vec().into(),
    };
    farm.api(1)?.resources().set_secret(call(secret)).await?;
    // The shape that GitHub sends, cut to what stands at the top of it.
    let push = r#"{"ref":"refs/heads/main","before":"6113728f27ae82c7b1a177c8d03f9e96e0adf246","after":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c","created":false,"deleted":false,"forced":false,"repository":{"id":35129377,"full_name":"acme/web"},"pusher":{"name":"ann"},"head_commit":{"id":"0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c","message":"Update README.md"}}"#;
    let deliver = |member: usize, event: &str, delivery: &str, signature: &str, body: &str| {
        let headers = [
            ("X-GitHub-Event", event),
            ("X-GitHub-Delivery", delivery),
            ("X-Hub-Signature-256", signature),
            ("Content-Type", "application/json"),
        ];
        let address = farm.members()[member - 1].clone();
        http::post(&address, "/webhook/github/web", &headers, body.as_bytes())
    };
    let good = sign(KEY, push);
    for wrong in [
        "sha256=00".to_owned(),
        sign(b"guess", push),
        sign(KEY, "{}"),
    ] {
        let answer = deliver(1, "push", "d-1", &wrong, push)?;
        ensure!(answer.status == 401, "{answer:?}");
    }
    ensure!(runs(&farm).await?.is_empty());
    ensure!(deliver(2, "ping", "d-0", &sign(KEY, "{}"), "{}")?.status == 200);
    // Delivered to one member, and again to the others.
    for member in [1, 2, 3] {
        let answer = deliver(member, "push", "d-1", &good, push)?;
        ensure!(answer.status == 202, "{answer:?}");
    }
    let all = runs(&farm).await?;
    ensure!(
        all.len() == 1 && all[0].commit.starts_with("0d1a26e6"),
        "{all:?}"
    );
    farm.finish().await
}

fn repository(url: &str, more: &str) -> String {
    format!(
        "apiVersion: oast/v1\nkind: Repository\nname: web\nspec:\n  team: demo\n  url: {url}\n  branches: [main]\n{more}"
    )
}

fn address(farm: &Farm, member: usize, token: &str) -> Result<String> {
    let members = farm.members();
    Ok(format!(
        "http://you:{token}@{}/git/web.git",
        members[member - 1]
    ))
}

fn sign(key: &[u8], body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length is taken");
    mac.update(body.as_bytes());
    let digest = mac.finalize().into_bytes();
    digest.iter().fold("sha256=".to_owned(), |mut text, byte| {
        use std::fmt::Write as _;
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn token(farm: &Farm, role: &str) -> Result<String> {
    let request = CreateTokenRequest {
        request_id: role.into(),
        name: format!("a-{role}"),
        role: role.into(),
        team: String::new(),
    };
    let made = farm.api(1)?.operator().create_token(call(request)).await?;
    Ok(made.into_inner().token)
}

async fn runs(farm: &Farm) -> Result<Vec<Run>> {
    let leader = farm.leader().await?;
    let request = call(ListRunsRequest::default());
    let list = farm.api(leader)?.runs().list_runs(request).await?;
    Ok(list.into_inner().runs)
}

async fn source_read(farm: &Farm, commit: &str) -> Result<Run> {
    let found = until("the run of the commit", START, async || {
        let all = runs(farm).await?;
        // The title is known once a worker has read the source.
        let run = all
            .iter()
            .find(|run| run.commit == commit && !run.subject.is_empty());
        Ok(seen(run.cloned(), format!("{all:?}")))
    });
    farm.explain(found.await)
}
