//! Several members: every call through any of them, reads as old as was allowed, nothing lost when
//! the leader goes.

use std::collections::BTreeSet;
use std::time::Duration;

use oast_daemon::clock::{Clock, SystemClock, timeout};
use oast_model::bake::{BakedImage, Bills};
use oast_model::digest::Digest;
use oast_model::fleet::Observation;
use oast_model::ledger::{Answer, Command, Request as Write};
use oast_model::pipeline::Arch;
use oast_model::principal::Principal;
use oast_model::task::{Outcome, Output, Report, SourceOutput};
use oast_proto::v1;
use oast_proto::v1::export_chunk::Content;
use tonic::{Code, Request};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::{ADMIN, FLEET, Member, PATIENCE, refusal};

const BILL: &[u8] = b"{}";
const PIPELINE: &str = "apiVersion: oast/v1\nname: web\nteam: payments\nbake:\n  from: debian-12\n  steps:\n    - run: \"true\"\npublish: { image: web, channel: candidate }\nrollout:\n  - fleet: web-prod\n";

/// Takes the run's newest task and brings its result.
async fn work(member: &Member, run: &str, outcome: Outcome) {
    let worker: oast_model::names::WorkerName = "w1".parse().unwrap();
    let view = member.farm.view();
    let task = view
        .run_record(run.parse().unwrap())
        .unwrap()
        .tasks
        .pop()
        .unwrap()
        .id;
    let incarnation = 1;
    let grant = Command::GrantLease {
        task,
        worker,
        incarnation,
    };
    let Answer::Lease(token) = member.lead(grant).await else {
        panic!("a lease");
    };
    let report = Box::new(Report::Finished(outcome));
    let request = Write {
        principal: Principal::worker("w1"),
        request_id: None,
        command: Command::Report { token, report },
    };
    member.farm.write(&request).await.unwrap();
}

/// Brings a run of `main` to a published version whose disk is `disk`.
async fn publish(leader: &Member, commit: char, disk: &[u8]) -> String {
    let begin = Command::BeginIncarnation {
        worker: "w1".parse().unwrap(),
        incarnation: 1,
    };
    leader.lead(begin).await;
    let Answer::Run(run) = leader.see(commit).await else {
        panic!("a run begins");
    };
    let run = run.to_string();
    let stored = leader.artifacts.put_bytes(disk).unwrap();
    let packages = leader.artifacts.put_bytes(b"[]").unwrap();
    let pipeline = oast_model::pipeline::parse("oast.yaml", PIPELINE)
        .value
        .unwrap();
    let source = SourceOutput {
        tree: Digest::of(b"tree"),
        pipeline,
        subject: None,
        author: None,
    };
    let image = BakedImage {
        base: "debian-12".into(),
        arch: Arch::Amd64,
        layers: Vec::new(),
        disk: stored.blob,
        disk_size: disk.len() as u64,
        disk_digest: Digest::of(disk),
        packages: packages.blob,
        package_count: 0,
        bills: Some(Bills {
            cyclonedx: leader.artifacts.put_bytes(BILL).unwrap().blob,
            spdx: Digest::of(b"not in the store"),
        }),
        provenance: None,
    };
    for output in [
        Output::Source(Box::new(source)),
        Output::Baked(image),
        Output::Published,
    ] {
        work(leader, &run, Outcome::Succeeded(Box::new(output))).await;
    }
    run
}

/// What a member hands out as documents of the newest version.
async fn documents(member: &Member) {
    let read = async |document: &str| {
        let request = v1::ReadDocumentRequest {
            version: "web".into(),
            document: document.into(),
        };
        let mut chunks = member
            .images(ADMIN)
            .read_document(request)
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            match chunk.content.unwrap() {
                Content::Header(header) => assert_eq!(header.digest.len(), 64),
                Content::Data(data) => bytes.extend_from_slice(&data),
                Content::ZeroBytes(_) => panic!("a document has no holes"),
            }
        }
        Ok::<_, tonic::Status>(bytes)
    };
    assert_eq!(read("cyclonedx").await.unwrap(), BILL);
    let key = String::from_utf8(read("key").await.unwrap()).unwrap();
    assert!(oast_attest::key::PublicKey::read(&key).is_ok(), "{key}");
    let none = read("provenance").await.unwrap_err();
    assert_eq!(none.code(), Code::FailedPrecondition);
    assert_eq!(
        read("shadow").await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(read("spdx").await.unwrap_err().code(), Code::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_fleets_and_rollouts_are_served_and_steered_through_a_follower() {
    let members = Member::farm_of(3).await;
    let (leader, follower) = (&members[0], &members[1]);
    leader.apply(FLEET).await.unwrap();
    let disk = vec![7; 1 << 20];
    let run = publish(leader, 'a', &disk).await;

    // The store is shared by the members of a farm; here each has its own.
    follower.artifacts.put_bytes(&disk).unwrap();
    follower.artifacts.put_bytes(b"[]").unwrap();
    follower.artifacts.put_bytes(BILL).unwrap();
    documents(follower).await;
    let version = v1::GetImageVersionRequest {
        version: "web".into(),
    };
    let version = follower
        .images(ADMIN)
        .get_image_version(version)
        .await
        .unwrap();
    assert_eq!(version.into_inner().run, run);
    let export = v1::ExportImageRequest {
        version: "web@candidate".into(),
        format: "raw".into(),
    };
    let mut chunks = follower
        .images(ADMIN)
        .export_image(export)
        .await
        .unwrap()
        .into_inner();
    let (mut size, mut bytes) = (0, Vec::new());
    while let Some(chunk) = chunks.message().await.unwrap() {
        match chunk.content.unwrap() {
            Content::Header(header) => size = header.size,
            Content::Data(data) => bytes.extend_from_slice(&data),
            Content::ZeroBytes(count) => bytes.resize(bytes.len() + count as usize, 0),
        }
    }
    assert_eq!((size, bytes == disk), (disk.len() as u64, true));
    let list = v1::ListImagesRequest {
        versions: 1,
        ..v1::ListImagesRequest::default()
    };
    let images = follower
        .images(ADMIN)
        .list_images(list)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (images.images.len(), images.images[0].version_count),
        (1, 1)
    );

    // What instances do is in the leader's memory; the follower asks it.
    *leader.eye.seen.lock().unwrap() = Some(Observation::default());
    let asked = || v1::GetFleetRequest {
        fleet: "web-prod".into(),
    };
    let fleet = follower
        .fleets(ADMIN)
        .get_fleet(asked())
        .await
        .unwrap()
        .into_inner();
    assert!(fleet.observed, "{fleet:?}");
    let mut watched = follower
        .fleets(ADMIN)
        .watch_fleet(asked())
        .await
        .unwrap()
        .into_inner();
    assert!(watched.message().await.unwrap().unwrap().observed);
    let id = fleet.active_rollout;
    let get = v1::GetRolloutRequest {
        rollout: id.clone(),
    };
    let rollout = follower
        .fleets(ADMIN)
        .get_rollout(get)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((rollout.to.as_str(), rollout.ended), ("web:1", false));
    let watch = |after_seq| v1::WatchRolloutRequest {
        rollout: id.clone(),
        after_seq,
    };
    let mut changes = follower
        .fleets(ADMIN)
        .watch_rollout(watch(rollout.seq))
        .await
        .unwrap()
        .into_inner();
    let abort = v1::AbortRolloutRequest {
        request_id: "abort".into(),
        rollout: id.clone(),
        reason: "the test says so".into(),
    };
    let aborted = follower
        .fleets(ADMIN)
        .abort_rollout(abort.clone())
        .await
        .unwrap();
    let again = members[2].fleets(ADMIN).abort_rollout(abort).await.unwrap();
    assert_eq!(aborted.into_inner().phase, again.into_inner().phase);
    let change = changes.message().await.unwrap().unwrap();
    assert!(
        change.seq > rollout.seq,
        "nothing that was known is said again"
    );
    let list = v1::ListRolloutsRequest {
        fleet: "web-prod".into(),
        ..v1::ListRolloutsRequest::default()
    };
    let listed = follower
        .fleets(ADMIN)
        .list_rollouts(list)
        .await
        .unwrap()
        .into_inner();
    let ids: Vec<_> = listed.rollouts.into_iter().map(|one| one.id).collect();
    assert_eq!(ids, [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_one_follower_is_read_through_the_other_at_once() {
    let members = Member::farm_of(3).await;
    let tree = members[1].tree("nothing");
    for number in 0..20 {
        let asked = v1::SubmitRunRequest {
            request_id: format!("id-{number}"),
            team: "payments".into(),
            tree: tree.clone(),
            ..v1::SubmitRunRequest::default()
        };
        let run = members[1]
            .runs(ADMIN)
            .submit_run(asked)
            .await
            .unwrap()
            .into_inner();
        let get = v1::GetRunRequest {
            run: run.id.clone(),
        };
        let read = members[2].runs(ADMIN).get_run(get).await.unwrap();
        let seq = read
            .metadata()
            .get("oast-applied-seq")
            .unwrap()
            .to_str()
            .unwrap();
        assert!(seq.parse::<u64>().unwrap() >= run.seq);
        assert!(read.metadata().get("oast-staleness-ms").is_none());
        assert_eq!(read.into_inner().tasks[0].waiting, "no worker is connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_alone_answers_as_old_as_it_is_allowed_and_says_how_old() {
    let mut members = Member::farm_of(3).await;
    let rest = members.split_off(1);
    let member = &members[0];
    let list = |staleness: &'static str| {
        let mut request = Request::new(v1::ListRunsRequest::default());
        let value = staleness.parse().unwrap();
        request
            .metadata_mut()
            .insert("oast-max-staleness-ms", value);
        request
    };
    let fresh = member.runs(ADMIN).list_runs(list("60000")).await.unwrap();
    assert!(fresh.metadata().get("oast-staleness-ms").is_some());
    drop(rest);
    // Until the member is older than a millisecond, which it is soon and stays.
    let clock = SystemClock;
    let old = async {
        loop {
            let age = member.farm.age();
            if age.is_some_and(|age| age > Duration::from_millis(1500)) {
                return;
            }
            clock.sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(&clock, PATIENCE, old)
        .await
        .expect("nobody refreshes it");
    let refused = refusal(member.runs(ADMIN).list_runs(list("1000")).await);
    assert_eq!(refused, (Code::Unavailable, "STALE".into()));
    let any = member.runs(ADMIN).list_runs(list("any")).await.unwrap();
    let said = any
        .metadata()
        .get("oast-staleness-ms")
        .unwrap()
        .to_str()
        .unwrap();
    assert!(said.parse::<u64>().unwrap() >= 1500, "{said}");
    assert_eq!(
        refusal(member.runs(ADMIN).list_runs(list("soon")).await),
        (Code::InvalidArgument, "INVALID".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_through_a_follower_outlives_the_leader_and_loses_nothing() {
    let mut members = Member::farm_of(3).await;
    let tree = members[1].tree("nothing");
    let messages: Vec<_> = (0..400)
        .map(|message| v1::SubmitRunsRequest {
            submissions: (0..5)
                .map(|part| v1::SubmitRunRequest {
                    request_id: format!("id-{message}-{part}"),
                    team: "payments".into(),
                    tree: tree.clone(),
                    ..v1::SubmitRunRequest::default()
                })
                .collect(),
        })
        .collect();
    let mut answers = members[1]
        .runs(ADMIN)
        .submit_runs(tokio_stream::iter(messages))
        .await
        .unwrap()
        .into_inner();
    let mut runs = BTreeSet::new();
    let mut answered = 0;
    while let Some(message) = answers.message().await.unwrap() {
        for result in message.results {
            assert_eq!(result.error, None, "{}", result.request_id);
            runs.insert(result.run);
            answered += 1;
        }
        if answered >= 200 {
            members[0].kill();
        }
    }
    assert_eq!((answered, runs.len()), (2000, 2000));
    let view = members[2].farm.read().await.unwrap();
    assert_eq!(view.runs().len(), 2000, "each is there once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_healthy_while_it_knows_a_leader_and_needs_no_token_to_say_so() {
    let mut members = Member::farm_of(3).await;
    let rest = members.split_off(1);
    let mut health = HealthClient::new(members[0].channel.clone());
    for service in ["", "oast.v1.Runs", "oast.v1.Changes"] {
        let asked = HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(asked).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let asked = HealthCheckRequest {
        service: String::new(),
    };
    let mut watch = health.watch(asked).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    drop(rest);
    let change = timeout(&SystemClock, PATIENCE, watch.message()).await;
    let change = change.expect("it gives up its lead").unwrap().unwrap();
    assert_eq!(change.status(), ServingStatus::NotServing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_passed_on_is_not_passed_on_again() {
    let members = Member::farm_of(3).await;
    let mut request = Request::new(v1::ListWorkersRequest::default());
    request
        .metadata_mut()
        .insert("oast-hops", "1".parse().unwrap());
    let refused = refusal(members[1].operator(ADMIN).list_workers(request).await);
    assert_eq!(refused, (Code::Unavailable, "NO_LEADER".into()));
    let asked = v1::ListWorkersRequest::default();
    members[1]
        .operator(ADMIN)
        .list_workers(asked)
        .await
        .unwrap();
}
