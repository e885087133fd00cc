//! Watches: level-triggered, resumable, ending.

use oast_model::fleet::{InstanceState, InstanceView, Observation};
use oast_model::ledger::{Answer, Command};
use oast_proto::v1;
use tonic::Code;

use super::{ADMIN, FLEET, Member, refusal};

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sends_each_change_once_resumes_behind_it_and_ends_with_the_run() {
    let member = Member::start().await;
    let Answer::Run(run) = member.see('a').await else {
        panic!("a run begins");
    };
    let watch = |after_seq| v1::WatchRunRequest {
        run: run.to_string(),
        after_seq,
    };
    let mut runs = member.runs(ADMIN);
    let mut stream = runs.watch_run(watch(0)).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_eq!(first.phase, "source");
    let task = first.tasks[0].id.parse().unwrap();
    let worker: oast_model::names::WorkerName = "w1".parse().unwrap();
    let incarnation = 1;
    member
        .lead(Command::BeginIncarnation {
            worker: worker.clone(),
            incarnation,
        })
        .await;
    // The lease changes the run although only its task is written.
    member
        .lead(Command::GrantLease {
            task,
            worker,
            incarnation,
        })
        .await;
    let second = stream.message().await.unwrap().unwrap();
    assert!(second.seq > first.seq);
    assert_eq!(second.tasks[0].phase, "running");
    drop(stream);

    let mut stream = runs
        .watch_run(watch(second.seq))
        .await
        .unwrap()
        .into_inner();
    let reason = "enough".into();
    member.lead(Command::CancelRun { run, reason }).await;
    let last = stream.message().await.unwrap().unwrap();
    assert!(last.ended && last.seq > second.seq);
    assert_eq!(stream.message().await.unwrap(), None);
    // It is history now, and a watch that knows its end ends at once.
    let mut stream = runs.watch_run(watch(last.seq)).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_shown_again_when_an_observation_changes() {
    let member = Member::start().await;
    let asked = || v1::GetFleetRequest {
        fleet: "web-prod".into(),
    };
    let mut fleets = member.fleets(ADMIN);
    assert_eq!(refusal(fleets.watch_fleet(asked()).await).0, Code::NotFound);
    member.apply(FLEET).await.unwrap();
    let mut stream = fleets.watch_fleet(asked()).await.unwrap().into_inner();
    let blind = stream.message().await.unwrap().unwrap();
    assert!(!blind.observed && blind.instances.is_empty());
    let instance = InstanceView {
        name: "a-0".parse().unwrap(),
        version: Some("web:3".parse().unwrap()),
        state: InstanceState::Running,
        healthy: true,
        in_rotation: true,
        direct: None,
        replaced: 1,
        note: String::new(),
    };
    *member.eye.seen.lock().unwrap() = Some(Observation {
        instances: vec![instance],
        ..Observation::default()
    });
    let seen = stream.message().await.unwrap().unwrap();
    let states: Vec<_> = seen.instances.iter().map(|i| i.state.as_str()).collect();
    assert_eq!(states, ["running", "missing", "missing"]);
    assert_eq!(seen.instances[0].version, "web:3");
    let listed = fleets.list_fleets(v1::ListFleetsRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().fleets, [seen]);
}
