//! Tailing logs.

use oast_artifacts::{LogStream, SegmentKey};
use oast_model::ids::Token;
use oast_model::ledger::{Answer, Command};
use oast_proto::v1;

use super::{ADMIN, Member};

/// Leases the task to a worker and returns the lease.
async fn lease(member: &Member, task: &str, incarnation: u64) -> Token {
    let worker: oast_model::names::WorkerName = "w1".parse().unwrap();
    member
        .lead(Command::BeginIncarnation {
            worker: worker.clone(),
            incarnation,
        })
        .await;
    let grant = Command::GrantLease {
        task: task.parse().unwrap(),
        worker,
        incarnation,
    };
    match member.lead(grant).await {
        Answer::Lease(token) => token,
        answer => panic!("{answer:?}"),
    }
}

fn texts(lines: &v1::LogLines) -> Vec<String> {
    let text = |line: &v1::LogLine| String::from_utf8_lossy(&line.text).into_owned();
    lines.lines.iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_shows_every_attempt_goes_on_where_it_was_and_ends_with_the_run() {
    let member = Member::start().await;
    let Answer::Run(run) = member.see('a').await else {
        panic!("a run begins");
    };
    let mut runs = member.runs(ADMIN);
    let asked = v1::GetRunRequest {
        run: run.to_string(),
    };
    let task = runs.get_run(asked).await.unwrap().into_inner().tasks[0]
        .id
        .clone();
    let key = |token: Token| SegmentKey {
        run: run.to_string(),
        task: task.clone(),
        attempt: token.as_u64(),
    };
    // The first attempt is killed in the middle: its log has no end.
    let first = lease(&member, &task, 1).await;
    let mut killed = member.artifacts.write_log(&key(first)).unwrap();
    killed.append(1_000, 0, LogStream::Stdout, b"one").unwrap();
    let second = lease(&member, &task, 2).await;
    assert!(second > first);
    let mut writer = member.artifacts.write_log(&key(second)).unwrap();
    writer
        .append(2_000, u16::MAX, LogStream::Engine, b"two")
        .unwrap();
    let tail = |after: Vec<v1::LogPosition>| v1::TailLogsRequest {
        run: run.to_string(),
        follow: true,
        after,
        ..v1::TailLogsRequest::default()
    };
    let mut stream = runs.tail_logs(tail(Vec::new())).await.unwrap().into_inner();
    let seen = stream.message().await.unwrap().unwrap();
    assert_eq!(texts(&seen), ["one", "two"]);
    assert_eq!((seen.lines[0].step, seen.lines[1].step), (0, -1));
    assert_eq!(seen.lines[1].stream, "farm");
    drop(stream);

    let mut stream = runs
        .tail_logs(tail(seen.positions))
        .await
        .unwrap()
        .into_inner();
    writer
        .append(3_000, 0, LogStream::Stderr, b"three")
        .unwrap();
    let seen = stream.message().await.unwrap().unwrap();
    assert_eq!(texts(&seen), ["three"]);
    let reason = "enough".into();
    member.lead(Command::CancelRun { run, reason }).await;
    writer.append(4_000, 0, LogStream::Stdout, b"four").unwrap();
    writer.finish(4_001).unwrap();
    let seen = stream.message().await.unwrap().unwrap();
    assert_eq!(texts(&seen), ["four"]);
    assert_eq!(stream.message().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_logs_of_several_tries_come_in_the_order_of_time_each_line_once() {
    let member = Member::start().await;
    let Answer::Run(run) = member.see('a').await else {
        panic!("a run begins");
    };
    let mut runs = member.runs(ADMIN);
    let asked = v1::GetRunRequest {
        run: run.to_string(),
    };
    let task = runs.get_run(asked).await.unwrap().into_inner().tasks[0]
        .id
        .clone();
    let filler = "x".repeat(300);
    for parity in 0..2_u64 {
        let token = lease(&member, &task, parity + 1).await;
        let mut writer = member
            .artifacts
            .write_log(&SegmentKey {
                run: run.to_string(),
                task: task.clone(),
                attempt: token.as_u64(),
            })
            .unwrap();
        for number in (parity..4_000).step_by(2) {
            let text = format!("{number} {filler}");
            writer
                .append(number, 0, LogStream::Stdout, text.as_bytes())
                .unwrap();
        }
        writer.finish(4_000).unwrap();
    }
    let asked = v1::TailLogsRequest {
        run: run.to_string(),
        ..v1::TailLogsRequest::default()
    };
    let mut stream = runs.tail_logs(asked).await.unwrap().into_inner();
    let mut times = Vec::new();
    while let Some(lines) = stream.message().await.unwrap() {
        times.extend(lines.lines.iter().map(|line| line.at_ms));
    }
    assert_eq!(times, (0..4_000).collect::<Vec<_>>());
}
