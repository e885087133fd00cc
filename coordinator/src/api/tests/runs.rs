//! Submitting, listing, uploading.

use oast_model::ids::RunId;
use oast_model::ledger::Answer;
use oast_proto::v1;
use tonic::Code;

use super::{ADMIN, Member, refusal};

fn branch(request_id: &str, branch: &str) -> v1::SubmitRunRequest {
    v1::SubmitRunRequest {
        request_id: request_id.into(),
        repository: "web".into(),
        branch: branch.into(),
        ..v1::SubmitRunRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_is_the_same_run_and_an_unseen_branch_is_none() {
    let member = Member::start().await;
    let mut runs = member.runs(ADMIN);
    let unseen = refusal(runs.submit_run(branch("", "main")).await);
    assert_eq!(unseen, (Code::FailedPrecondition, "BRANCH_NOT_SEEN".into()));
    member.see('a').await;
    let first = runs.submit_run(branch("one", "main")).await.unwrap();
    let first = first.into_inner();
    assert_eq!((first.phase.as_str(), first.commit.len()), ("source", 40));
    assert_eq!(first.tasks[0].waiting, "");
    let asked = v1::GetRunRequest {
        run: first.id.clone(),
    };
    let found = runs.get_run(asked).await.unwrap().into_inner();
    assert_eq!(found.tasks[0].waiting, "no worker is connected");
    let again = runs.submit_run(branch("one", "main")).await.unwrap();
    assert_eq!(again.into_inner().id, first.id);
    let other = runs.submit_run(branch("two", "main")).await.unwrap();
    assert_ne!(other.into_inner().id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_and_ended_runs_are_one_list_in_pages() {
    let member = Member::start().await;
    let mut ids = Vec::new();
    for commit in "abcde".chars() {
        match member.see(commit).await {
            Answer::Run(run) => ids.push(run.to_string()),
            answer => panic!("{answer:?}"),
        }
    }
    let mut runs = member.runs(ADMIN);
    for ended in [0, 3] {
        let cancel = v1::CancelRunRequest {
            run: ids[ended].clone(),
            reason: "enough".into(),
            ..v1::CancelRunRequest::default()
        };
        let run = runs.cancel_run(cancel).await.unwrap().into_inner();
        assert_eq!((run.phase.as_str(), run.ended), ("cancelled", true));
        assert_eq!(run.reason, "cancelled by admin: enough");
    }
    ids.reverse();
    let mut asked = v1::ListRunsRequest {
        page_size: 2,
        ..v1::ListRunsRequest::default()
    };
    let mut seen = Vec::new();
    for size in [2, 2, 1] {
        let page = runs.list_runs(asked.clone()).await.unwrap().into_inner();
        assert_eq!(page.runs.len(), size);
        seen.extend(page.runs.into_iter().map(|run| run.id));
        asked.page_token = page.next_page_token;
    }
    assert_eq!(seen, ids);
    assert_eq!(asked.page_token, "");
    let open = v1::ListRunsRequest {
        open: true,
        ..v1::ListRunsRequest::default()
    };
    let open = runs.list_runs(open).await.unwrap().into_inner().runs;
    assert_eq!(open.len(), 3);
    let wrong = v1::ListRunsRequest {
        page_token: "r-1@ads/true".into(),
        ..v1::ListRunsRequest::default()
    };
    assert_eq!(
        refusal(runs.list_runs(wrong).await).0,
        Code::InvalidArgument
    );
    let ghost = v1::GetRunRequest {
        run: RunId(oast_model::ids::Seq::from_u64(999)).to_string(),
    };
    assert_eq!(refusal(runs.get_run(ghost).await).0, Code::NotFound);
}

fn file(path: &str, mode: u32, size: u64) -> v1::UploadTreeRequest {
    let file = v1::UploadFile {
        path: path.into(),
        mode,
        size,
        symlink: String::new(),
    };
    v1::UploadTreeRequest {
        message: Some(v1::upload_tree_request::Message::File(file)),
    }
}

fn chunk(bytes: Vec<u8>) -> v1::UploadTreeRequest {
    v1::UploadTreeRequest {
        message: Some(v1::upload_tree_request::Message::Chunk(bytes.into())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_tree_is_stored_whole_and_can_be_run() {
    let member = Member::start().await;
    let mut runs = member.runs(ADMIN);
    let large = vec![7; 200 << 10];
    let messages = vec![
        file("bin/start", 0o755, 2),
        chunk(b"#!".to_vec()),
        file("data", 0o644, large.len() as u64),
        chunk(large[..100 << 10].to_vec()),
        chunk(large[100 << 10..].to_vec()),
        file("empty", 0o644, 0),
    ];
    let stored = runs
        .upload_tree(tokio_stream::iter(messages))
        .await
        .unwrap();
    let stored = stored.into_inner();
    assert_eq!(stored.files, 3);
    let tree = member.artifacts.tree(stored.tree.parse().unwrap()).unwrap();
    assert_eq!(
        member.artifacts.read_file(&tree, "data", 1 << 20).unwrap(),
        large
    );
    // Nothing of the upload stays behind.
    let left = std::fs::read_dir(member.artifacts.root().join("tmp")).unwrap();
    assert_eq!(left.count(), 0);
    let submit = |tree: String| v1::SubmitRunRequest {
        team: "payments".into(),
        tree,
        dirty: true,
        ..v1::SubmitRunRequest::default()
    };
    let run = runs
        .submit_run(submit(stored.tree))
        .await
        .unwrap()
        .into_inner();
    assert!(run.dirty);
    assert_eq!(run.team, "payments");
    let absent = refusal(runs.submit_run(submit("0".repeat(64))).await);
    assert_eq!(absent, (Code::NotFound, "NOT_FOUND".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lies_or_climbs_out_is_refused() {
    let member = Member::start().await;
    for messages in [
        vec![file("a", 0o644, 1), chunk(b"ab".to_vec())],
        vec![file("a", 0o644, 3), chunk(b"ab".to_vec())],
        vec![file("../a", 0o644, 0)],
        vec![file("a", 0o644, 0), file("a", 0o644, 0)],
        vec![file("a", 0o644, 0), file("a/b", 0o644, 0)],
        vec![file("a", 0o644, u64::MAX)],
        vec![chunk(b"ab".to_vec())],
    ] {
        let mut runs = member.runs(ADMIN);
        let stored = runs.upload_tree(tokio_stream::iter(messages)).await;
        assert_eq!(refusal(stored).0, Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_urgent_a_run_is_can_be_said_and_a_wrong_word_is_refused() {
    let member = Member::start().await;
    member.see('a').await;
    let mut runs = member.runs(ADMIN);
    let said = |id: &str, how: &str| v1::SubmitRunRequest {
        priority: how.into(),
        ..branch(id, "main")
    };
    for (how, shown) in [("batch", "batch"), ("", "normal")] {
        let run = runs.submit_run(said(how, how)).await.unwrap().into_inner();
        assert_eq!((run.priority.as_str(), run.retry_of.as_str()), (shown, ""));
    }
    let wrong = refusal(runs.submit_run(said("three", "urgent")).await);
    assert_eq!(wrong.0, Code::InvalidArgument);
}
