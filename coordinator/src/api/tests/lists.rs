//! Pages and filters, over what is open and what is over.

use oast_model::ids::RunId;
use oast_model::ledger::{Answer, Command, Pruned};
use oast_proto::v1;
use tonic::Code;

use super::{ADMIN, Member, refusal};
use crate::archive::Archive;

async fn cancel(member: &Member, run: RunId) {
    let reason = "enough".to_owned();
    member.lead(Command::CancelRun { run, reason }).await;
}

async fn see(member: &Member, branch: &str, commit: char) -> RunId {
    let refs = [(branch.to_owned(), commit.to_string().repeat(40))].into();
    let repository = "web".parse().unwrap();
    match member.lead(Command::ObserveRefs { repository, refs }).await {
        Answer::Run(run) => run,
        answer => panic!("{answer:?}"),
    }
}

async fn ids(member: &Member, asked: v1::ListRunsRequest) -> Vec<String> {
    let list = member.runs(ADMIN).list_runs(asked).await.unwrap();
    let runs = list.into_inner().runs.into_iter();
    runs.map(|run| run.id).collect()
}

fn asked(set: impl FnOnce(&mut v1::ListRunsRequest)) -> v1::ListRunsRequest {
    let mut asked = v1::ListRunsRequest::default();
    set(&mut asked);
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_find_what_is_open_and_what_is_over_alike() {
    let member = Member::start().await;
    let mut runs = Vec::new();
    for (branch, commit) in [("main", 'a'), ("dev", 'b'), ("main", 'c'), ("dev", 'd')] {
        runs.push(see(&member, branch, commit).await);
    }
    cancel(&member, runs[0]).await;
    cancel(&member, runs[3]).await;
    let list = member
        .runs(ADMIN)
        .list_runs(asked(|_| {}))
        .await
        .unwrap()
        .into_inner();
    let began: Vec<u64> = list
        .runs
        .iter()
        .rev()
        .map(|run| run.started_at_ms)
        .collect();
    let rows = [
        (asked(|a| a.branch = "main".into()), vec![2, 0]),
        (asked(|a| a.branch = "gone".into()), vec![]),
        (asked(|a| a.repository = "web".into()), vec![3, 2, 1, 0]),
        (asked(|a| a.commit = "ddddddd".into()), vec![3]),
        (asked(|a| a.commit = "B".repeat(40)), vec![1]),
        (asked(|a| a.phases = vec!["cancelled".into()]), vec![3, 0]),
        (asked(|a| a.phases = vec!["source".into()]), vec![2, 1]),
        (
            asked(|a| a.phases = vec!["source".into(), "cancelled".into()]),
            vec![3, 2, 1, 0],
        ),
        (asked(|a| a.open = true), vec![2, 1]),
        (asked(|a| a.team = "payments".into()), vec![3, 2, 1, 0]),
        (asked(|a| a.pipeline = "web".into()), vec![]),
        (
            asked(|a| {
                a.phases = vec!["cancelled".into()];
                a.branch = "dev".into();
            }),
            vec![3],
        ),
        (asked(|a| a.until_ms = began[0]), vec![]),
    ];
    for (asked, wanted) in rows {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|n: &usize| runs[*n].to_string())
            .collect();
        assert_eq!(ids(&member, asked.clone()).await, wanted, "{asked:?}");
    }
    // Times may be equal on a fast machine, so only the rule is checked.
    let since = ids(&member, asked(|a| a.since_ms = began[2])).await;
    let wanted = list.runs.iter().filter(|run| run.started_at_ms >= began[2]);
    assert_eq!(since, wanted.map(|run| run.id.clone()).collect::<Vec<_>>());
    for wrong in [
        asked(|a| a.phases = vec!["done".into()]),
        asked(|a| a.commit = "abc".into()),
        asked(|a| a.commit = "not hex".into()),
        asked(|a| a.branch = "x".repeat(300)),
    ] {
        let refused = refusal(member.runs(ADMIN).list_runs(wrong).await);
        assert_eq!(refused, (Code::InvalidArgument, "INVALID".into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_where_they_are_while_runs_begin_and_end() {
    let member = Member::start().await;
    let mut wanted = Vec::new();
    for commit in "abcdef".chars() {
        wanted.push(see(&member, "main", commit).await);
    }
    wanted.reverse();
    let mut page = asked(|a| a.page_size = 2);
    let mut seen = Vec::new();
    for turn in 0.. {
        let list = member
            .runs(ADMIN)
            .list_runs(page.clone())
            .await
            .unwrap()
            .into_inner();
        seen.extend(list.runs.into_iter().map(|run| run.id));
        if list.next_page_token.is_empty() {
            break;
        }
        page.page_token = list.next_page_token;
        // A new one comes on top; one of the next page goes to history.
        see(&member, "dev", char::from(b'0' + turn)).await;
        cancel(&member, wanted[2 * usize::from(turn) + 2]).await;
    }
    let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_of_what_is_over_is_made_again_when_it_is_lost() {
    let member = Member::start().await;
    let mut ended = Vec::new();
    for commit in "abc".chars() {
        let run = see(&member, "main", commit).await;
        cancel(&member, run).await;
        ended.push(run);
    }
    let folder = tempfile::tempdir().unwrap();
    let fresh = Archive::open(member.handle.clone(), folder.path()).unwrap();
    for run in &ended {
        let record = fresh.run(*run).unwrap().expect("it is over");
        assert_eq!(record.run.id, *run);
    }
    // Of a history that never was: thrown away.
    drop(fresh);
    let other = Member::start().await;
    let run = see(&other, "dev", 'f').await;
    cancel(&other, run).await;
    let foreign = Archive::open(other.handle.clone(), folder.path()).unwrap();
    let record = foreign.run(run).unwrap().expect("it is over");
    assert_eq!(record.run.id, run);
    assert!(
        foreign
            .run(ended[2])
            .unwrap()
            .is_none_or(|record| record.run.id == run)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_pruned_is_gone_from_lists_and_stays_gone() {
    let member = Member::start().await;
    let mut ended = Vec::new();
    for commit in "abc".chars() {
        let run = see(&member, "main", commit).await;
        cancel(&member, run).await;
        ended.push(run);
    }
    let all = |of: &[RunId]| of.iter().rev().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ids(&member, asked(|_| {})).await, all(&ended));
    let last = ended.pop().unwrap();
    let records = vec![Pruned {
        number: 3,
        kind: b'r',
        id: last.0,
        team: "payments".parse().unwrap(),
    }];
    member.lead(Command::PruneHistory { records }).await;
    for _ in 0..2 {
        assert_eq!(ids(&member, asked(|_| {})).await, all(&ended));
    }
    let get = v1::GetRunRequest {
        run: last.to_string(),
    };
    let gone = refusal(member.runs(ADMIN).get_run(get).await);
    assert_eq!(gone, (Code::NotFound, "NOT_FOUND".into()));
    // An index whose last record was pruned is still the history's own.
    let folder = tempfile::tempdir().unwrap();
    let made = Archive::open(member.handle.clone(), folder.path()).unwrap();
    assert!(made.run(last).unwrap().is_none());
    assert!(made.run(ended[0]).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_may_be_repeated_and_what_ended_otherwise_is_told() {
    let member = Member::start().await;
    let run = see(&member, "main", 'a').await;
    let cancel = |id: &str| v1::CancelRunRequest {
        request_id: id.into(),
        run: run.to_string(),
        reason: "enough".into(),
    };
    let mut runs = member.runs(ADMIN);
    let first = runs.cancel_run(cancel("one")).await.unwrap().into_inner();
    let seq = member.farm.view().farm().history_seq;
    for id in ["one", "two", ""] {
        let again = runs.cancel_run(cancel(id)).await.unwrap().into_inner();
        assert_eq!(again, first, "{id}");
    }
    assert_eq!(member.farm.view().farm().history_seq, seq, "it ended once");
    let ghost = v1::CancelRunRequest {
        run: "r-9999".into(),
        ..v1::CancelRunRequest::default()
    };
    assert_eq!(refusal(runs.cancel_run(ghost).await).0, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_run_is_retried_once_for_each_request_id() {
    let members = Member::farm_of(3).await;
    let (leader, follower) = (&members[0], &members[1]);
    let run = see(leader, "main", 'a').await;
    let retry = |token: &str, id: &str, from: &str| {
        let asked = v1::RetryRunRequest {
            request_id: id.into(),
            run: run.to_string(),
            from_step: from.into(),
        };
        let mut runs = follower.runs(token);
        async move { runs.retry_run(asked).await }
    };
    let open = refusal(retry(ADMIN, "open", "").await);
    assert_eq!(open, (Code::FailedPrecondition, "WRONG_STATE".into()));
    cancel(leader, run).await;
    let viewer = leader.token("ada", "viewer", "payments").await;
    assert_eq!(
        refusal(retry(&viewer, "seen", "").await).0,
        Code::PermissionDenied
    );
    // Its source was never read, so there is no step to begin with.
    let step = refusal(retry(ADMIN, "step", "1").await);
    assert_eq!(step, (Code::InvalidArgument, "INVALID".into()));
    let first = retry(ADMIN, "one", "").await.unwrap().into_inner();
    assert_eq!(
        (first.phase.as_str(), first.commit.as_str()),
        ("source", "a".repeat(40).as_str())
    );
    assert_eq!(first.cause, format!("retry of {run}"));
    let again = retry(ADMIN, "one", "").await.unwrap().into_inner();
    assert_eq!(again.id, first.id);
    let other = retry(ADMIN, "two", "").await.unwrap().into_inner();
    assert_ne!(other.id, first.id);
    let ghost = v1::RetryRunRequest {
        run: "r-9999".into(),
        ..v1::RetryRunRequest::default()
    };
    let ghost = refusal(follower.runs(ADMIN).retry_run(ghost).await);
    assert_eq!(ghost, (Code::NotFound, "NOT_FOUND".into()));
}
