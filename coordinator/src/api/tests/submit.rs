//! Submitting many runs: batches, streams, what is wrong among them.

use std::collections::{BTreeMap, BTreeSet};

use oast_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{ADMIN, Member, refusal};

fn submission(id: &str, tree: &str) -> v1::SubmitRunRequest {
    v1::SubmitRunRequest {
        request_id: id.into(),
        team: "payments".into(),
        tree: tree.into(),
        inputs: [("payload".to_owned(), "x".repeat(256))].into(),
        ..v1::SubmitRunRequest::default()
    }
}

/// Submits all in messages of `of` and returns run or reason by request id.
async fn stream(
    member: &Member,
    submissions: Vec<v1::SubmitRunRequest>,
    of: usize,
) -> BTreeMap<String, Result<String, String>> {
    let messages: Vec<_> = submissions
        .chunks(of)
        .map(|some| v1::SubmitRunsRequest {
            submissions: some.to_vec(),
        })
        .collect();
    let mut runs = member.runs(ADMIN);
    let mut answers = runs
        .submit_runs(tokio_stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    let mut found = BTreeMap::new();
    while let Some(message) = answers.message().await.unwrap() {
        for result in message.results {
            let what = match result.error {
                None => Ok(result.run),
                Some(error) => Err(error.reason),
            };
            let before = found.insert(result.request_id.clone(), what);
            assert_eq!(before, None, "{} was answered twice", result.request_id);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn each_submission_of_a_stream_is_a_run_and_the_wrong_ones_harm_no_other() {
    let member = Member::start().await;
    let tree = member.tree("nothing");
    let mut submissions: Vec<_> = (0..3000)
        .map(|number| submission(&format!("id-{number}"), &tree))
        .collect();
    submissions.insert(7, submission("no-tree", &"0".repeat(64)));
    submissions.insert(1500, submission("", &tree));
    let mut foreign = submission("no-team", &tree);
    foreign.team = "ghosts".into();
    submissions.push(foreign);
    let entries = member.handle.counters().read();
    let found = stream(&member, submissions, 10).await;
    assert_eq!(found.len(), 3003);
    assert_eq!(found["no-tree"], Err("NOT_FOUND".into()));
    assert_eq!(found["no-team"], Err("NOT_FOUND".into()));
    assert_eq!(found[""], Err("INVALID".into()));
    let runs: BTreeSet<_> = found.values().filter_map(|run| run.clone().ok()).collect();
    assert_eq!(runs.len(), 3000, "each has its own run");
    assert_eq!(member.farm.view().runs().len(), 3000);
    // Many submissions share an entry, and so an fsync.
    let count = |name: &str, counters: &[(&'static str, u64)]| {
        let found = counters.iter().find(|(of, _)| *of == name);
        found.map_or(0, |(_, count)| *count)
    };
    let now = member.handle.counters().read();
    let made = count("entries_proposed", &now) - count("entries_proposed", &entries);
    assert!(made < 1000, "{made} entries for 3000 submissions");

    // The same ids again are the same runs.
    let again = (0..50).map(|number| submission(&format!("id-{number}"), &tree));
    let again = stream(&member, again.collect(), 50).await;
    assert!(again.iter().all(|(id, run)| found[id] == *run));
    assert_eq!(member.farm.view().runs().len(), 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_in_its_own_order() {
    let member = Member::start().await;
    let tree = member.tree("nothing");
    let mut submissions: Vec<_> = ["a", "b", "c"].map(|id| submission(id, &tree)).into();
    submissions[1].branch = "\u{7}".into();
    let mut runs = member.runs(ADMIN);
    let asked = v1::SubmitRunsRequest {
        submissions: submissions.clone(),
    };
    let results = runs
        .batch_submit_runs(asked)
        .await
        .unwrap()
        .into_inner()
        .results;
    let ids: Vec<_> = results.iter().map(|one| one.request_id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert!(!results[0].run.is_empty() && results[0].seq > 0);
    let error = results[1].error.clone().expect("a bell is no branch");
    assert_eq!(
        (error.reason.as_str(), error.field.as_str(), error.code),
        ("INVALID", "branch", i32::from(Code::InvalidArgument))
    );
    let many = v1::SubmitRunsRequest {
        submissions: vec![submissions[0].clone(); 1001],
    };
    let refused = refusal(runs.batch_submit_runs(many).await);
    assert_eq!(refused, (Code::InvalidArgument, "INVALID".into()));
    assert_eq!(member.farm.view().runs().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_taken_as_it_is_when_its_submission_is_read() {
    let member = Member::start().await;
    member.see('a').await;
    let branch = |id: &str, branch: &str| v1::SubmitRunRequest {
        request_id: id.into(),
        repository: "web".into(),
        branch: branch.into(),
        ..v1::SubmitRunRequest::default()
    };
    let both = vec![branch("seen", "main"), branch("unseen", "other")];
    let found = stream(&member, both, 2).await;
    assert_eq!(found["unseen"], Err("BRANCH_NOT_SEEN".into()));
    let run = found["seen"].clone().unwrap();
    let asked = v1::GetRunRequest { run };
    let run = member
        .runs(ADMIN)
        .get_run(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((run.branch.as_str(), run.commit), ("main", "a".repeat(40)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_its_streams() {
    let member = Member::start().await;
    let tree = member.tree("nothing");
    let token = member.token("robot", "operator", "payments").await;
    let (sender, messages) = mpsc::channel(1);
    let mut runs = member.runs(&token);
    let one = |id: &str| v1::SubmitRunsRequest {
        submissions: vec![submission(id, &tree)],
    };
    sender.send(one("first")).await.unwrap();
    let mut answers = runs
        .submit_runs(ReceiverStream::new(messages))
        .await
        .unwrap()
        .into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert!(first.results[0].error.is_none(), "{first:?}");
    let revoke = v1::RevokeTokenRequest {
        name: "robot".into(),
    };
    member.operator(ADMIN).revoke_token(revoke).await.unwrap();
    sender.send(one("second")).await.unwrap();
    let ended = refusal(answers.message().await);
    assert_eq!(ended, (Code::Unauthenticated, "UNAUTHENTICATED".into()));
    assert_eq!(member.farm.view().runs().len(), 1);
}
