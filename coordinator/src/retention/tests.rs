//! A keeper over the history of one real member.

use oast_daemon::clock::SystemClock;
use oast_model::ids::RunId;
use oast_model::ledger::Answer;

use super::*;
use crate::api::tests::Member;
use crate::archive::Archive;

#[tokio::test(flavor = "multi_thread")]
async fn what_outlived_its_policy_is_gone_here_and_the_newest_is_there() {
    let member = Member::start().await;
    let mut runs: Vec<RunId> = Vec::new();
    for commit in "abcd".chars() {
        let Answer::Run(run) = member.see(commit).await else {
            panic!("a commit that was not seen before is a run")
        };
        let reason = "enough".to_owned();
        member.lead(Command::CancelRun { run, reason }).await;
        runs.push(run);
    }
    let tasks = Tasks::new(SystemClock::shared(), CancellationToken::new());
    let policy = Retention { runs: 2, days: 1 };
    let keeper = Keeper::new(member.farm.clone(), tasks, policy);
    // A second sweep finds tombstones where the first has been, and nothing more to do.
    for index in ["first", "second"] {
        let view = member.farm.view();
        let mut at = At {
            term: 1,
            sweep: Sweep::begin(&view, &policy),
            next: 1,
        };
        while keeper.piece(&view, &mut at).await.unwrap() {}
        assert_eq!(at.next, 5, "all four records were looked at");
        let folder = member.folder.path().join(index);
        let archive = Archive::open(member.farm.handle().clone(), &folder).unwrap();
        let there: Vec<bool> = runs
            .iter()
            .map(|run| archive.run(*run).unwrap().is_some())
            .collect();
        assert_eq!(there, [false, false, true, true]);
    }
    let view = member.farm.view();
    let kept: Vec<u64> = view.finished().iter().map(|(_, kept)| kept.runs).collect();
    assert_eq!(kept, [2]);
}
