//! Following everything: every change once, from any position, or a precise reason why not.

use std::collections::BTreeMap;

use oast_model::ids::Seq;
use oast_model::ledger::{Answer, Command};
use oast_proto::v1;
use oast_proto::v1::change::What;
use tonic::{Code, Streaming};
use tonic_types::StatusExt;

use super::{ADMIN, FLEET, Member, refusal};

async fn watch(
    member: &Member,
    from_seq: u64,
    filter: v1::WatchFilter,
) -> Result<Streaming<v1::WatchResponse>, tonic::Status> {
    let asked = v1::WatchRequest {
        from_seq,
        filter: Some(filter),
    };
    let answer = member.changes(ADMIN).watch(asked).await?;
    Ok(answer.into_inner())
}

/// What a change is about, in a word.
fn word(change: &v1::Change) -> String {
    match change.what.as_ref().expect("a change has something") {
        What::Run(run) => format!("{} {}", run.id, run.phase),
        What::Rollout(rollout) => format!("{} {}", rollout.id, rollout.phase),
        What::Fleet(fleet) => format!("fleet {}", fleet.name),
        What::DeletedFleet(name) => format!("gone {name}"),
    }
}

/// Changes until the watch is as far as `until`, and where it then is.
async fn told(stream: &mut Streaming<v1::WatchResponse>, until: Seq) -> (Vec<String>, u64) {
    let mut words = Vec::new();
    let mut last = 0;
    loop {
        let message = stream.message().await.unwrap().expect("a watch has no end");
        for change in &message.changes {
            assert!(
                change.seq > last && change.seq <= message.seq,
                "{message:?}"
            );
            words.push(word(change));
        }
        if let Some(change) = message.changes.last() {
            last = change.seq - 1;
        }
        if message.seq >= until.as_u64() {
            return (words, message.seq);
        }
    }
}

async fn run(member: &Member, commit: char) -> oast_model::ids::RunId {
    match member.see(commit).await {
        Answer::Run(run) => run,
        answer => panic!("{answer:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_comes_once_and_a_watch_goes_on_behind_any_position() {
    let member = Member::start().await;
    let from = member.farm.view().seq();
    let mut live = watch(&member, 0, v1::WatchFilter::default()).await.unwrap();
    // It says first where it begins.
    let begin = live.message().await.unwrap().unwrap();
    assert_eq!((begin.seq, begin.changes.len()), (from.as_u64(), 0));
    let first = run(&member, 'a').await;
    let second = run(&member, 'b').await;
    member.apply(FLEET).await.unwrap();
    let reason = "enough".to_owned();
    member.lead(Command::CancelRun { run: first, reason }).await;
    let none = FLEET.replace("count: 3", "count: 0");
    member.apply(&none).await.unwrap();
    let delete = v1::DeleteResourceRequest {
        kind: "Fleet".into(),
        name: "web-prod".into(),
        ..v1::DeleteResourceRequest::default()
    };
    member
        .resources(ADMIN)
        .delete_resource(delete)
        .await
        .unwrap();
    let until = member.farm.view().seq();
    let wanted = [
        format!("{first} source"),
        format!("{second} source"),
        "fleet web-prod".to_owned(),
        format!("{first} cancelled"),
        "fleet web-prod".to_owned(),
        "gone web-prod".to_owned(),
    ];
    assert_eq!(told(&mut live, until).await.0, wanted);

    // From every position the rest comes, and nothing else.
    let mut by_position = BTreeMap::new();
    for from in from.as_u64()..=until.as_u64() {
        let mut resumed = watch(&member, from, v1::WatchFilter::default())
            .await
            .unwrap();
        let (rest, at) = told(&mut resumed, until).await;
        assert!(wanted.ends_with(&rest), "{from}: {rest:?}");
        assert_eq!(at, until.as_u64());
        by_position.insert(from, rest.len());
    }
    assert_eq!(by_position[&from.as_u64()], wanted.len());
    assert_eq!(by_position[&until.as_u64()], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_leaves_the_rest_out_and_says_how_far_it_is_all_the_same() {
    let member = Member::start().await;
    member
        .apply("apiVersion: oast/v1\nkind: Team\nname: ads\nspec: {}\n")
        .await
        .unwrap();
    let ads = member.token("ada", "viewer", "ads").await;
    let from = member.farm.view().seq().as_u64();
    let web = run(&member, 'a').await;
    member.apply(FLEET).await.unwrap();
    let until = member.farm.view().seq();
    let rows = [
        (
            v1::WatchFilter::default(),
            vec![format!("{web} source"), "fleet web-prod".into()],
        ),
        (
            filter(|f| f.kinds = vec!["fleet".into()]),
            vec!["fleet web-prod".into()],
        ),
        (filter(|f| f.kinds = vec!["rollout".into()]), vec![]),
        (filter(|f| f.team = "ads".into()), vec![]),
        (
            filter(|f| f.repository = "web".into()),
            vec![format!("{web} source")],
        ),
        (filter(|f| f.branch = "other".into()), vec![]),
        (
            filter(|f| f.run = web.to_string()),
            vec![format!("{web} source")],
        ),
        (
            filter(|f| f.fleet = "web-prod".into()),
            vec!["fleet web-prod".into()],
        ),
    ];
    for (filter, wanted) in rows {
        let mut stream = watch(&member, from, filter.clone()).await.unwrap();
        let (found, at) = told(&mut stream, until).await;
        assert_eq!((found, at), (wanted, until.as_u64()), "{filter:?}");
    }
    // Another team's changes are not even hinted at.
    let asked = v1::WatchRequest {
        from_seq: from,
        filter: None,
    };
    let mut stream = member
        .changes(&ads)
        .watch(asked)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(told(&mut stream, until).await, (Vec::new(), until.as_u64()));
    let wrong = watch(&member, 0, filter(|f| f.kinds = vec!["task".into()])).await;
    assert_eq!(refusal(wrong.map(drop)).0, Code::InvalidArgument);
}

fn filter(set: impl FnOnce(&mut v1::WatchFilter)) -> v1::WatchFilter {
    let mut filter = v1::WatchFilter::default();
    set(&mut filter);
    filter
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_cannot_be_served_are_refused_with_what_can_be() {
    let member = Member::start().await;
    let newest = member.farm.view().seq().as_u64();
    let rows = [
        (newest + 1_000_000, "FUTURE"),
        ((1 << 48) | 5, "ANOTHER_EPOCH"),
    ];
    for (from, reason) in rows {
        let status = match watch(&member, from, v1::WatchFilter::default()).await {
            Err(status) => status,
            Ok(_) => panic!("{reason} was expected"),
        };
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!(
            (status.code(), info.reason.as_str()),
            (Code::OutOfRange, reason)
        );
        assert_eq!(info.metadata["newest_seq"], newest.to_string());
    }
}
