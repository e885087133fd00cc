//! Pages over a real member.

use oast_artifacts::{LogStream, SegmentKey};
use oast_model::fleet::{InstanceState, InstanceView, Observation};
use oast_model::ledger::{Answer, Command};

use super::*;
use crate::api::tests::{FLEET, Member, http};

#[test]
fn only_names_of_this_machine_are_answered() {
    for good in [
        "127.0.0.1:7443",
        "localhost",
        "LOCALHOST:1",
        "[::1]:7443",
        "127.0.0.9",
    ] {
        assert!(is_loopback(good), "{good}");
    }
    for bad in [
        "",
        "rebind.example:7443",
        "127.0.0.1.example",
        "10.0.0.1:7443",
        "[::2]:1",
    ] {
        assert!(!is_loopback(bad), "{bad}");
    }
}

fn instance(number: u32, version: &str, healthy: bool) -> InstanceView {
    InstanceView {
        name: format!("a-{number}").parse().unwrap(),
        version: Some(version.parse().unwrap()),
        state: InstanceState::Running,
        healthy,
        in_rotation: healthy,
        direct: None,
        replaced: 0,
        note: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_show_fleets_runs_and_a_live_log_to_readers_without_a_token() {
    let member = Member::start().await;
    member.apply(FLEET).await.unwrap();
    *member.eye.seen.lock().unwrap() = Some(Observation {
        instances: vec![instance(0, "web:3", true), instance(1, "web:2", false)],
        ..Observation::default()
    });
    let Answer::Run(run) = member.see('a').await else {
        panic!("a run begins");
    };
    let (code, page) = http(&member, "GET", "/", &[], "").await;
    assert_eq!(code, 200, "{page}");
    for part in [
        "web-prod",
        "1 of 3 serving",
        "a-0: web:3, serving",
        "a-1: web:2, unhealthy",
    ] {
        assert!(page.contains(part), "{part} in {page}");
    }
    assert!(page.contains("a-2: no version, missing"));
    assert!(page.contains(&format!("href=\"/runs/{run}\"")));

    let worker: oast_model::names::WorkerName = "w1".parse().unwrap();
    let task = member.farm.view().runs().get(&run).unwrap().tasks[0];
    let incarnation = 1;
    let begin = Command::BeginIncarnation {
        worker: worker.clone(),
        incarnation,
    };
    member.lead(begin).await;
    let grant = Command::GrantLease {
        task,
        worker,
        incarnation,
    };
    let Answer::Lease(token) = member.lead(grant).await else {
        panic!("a lease begins");
    };
    let key = SegmentKey {
        run: run.to_string(),
        task: task.to_string(),
        attempt: token.as_u64(),
    };
    let mut writer = member.artifacts.write_log(&key).unwrap();
    let nasty = b"\x1b[31m<script>alert(1)</script>";
    writer
        .append(3_723_000, 0, LogStream::Stderr, nasty)
        .unwrap();
    let (code, page) = http(&member, "GET", &format!("/runs/{run}"), &[], "").await;
    assert_eq!(code, 200);
    assert!(page.contains("w1") && page.contains("● running"), "{page}");
    // Escaped, and without the terminal's colours.
    assert!(
        page.contains("<i>01:02:03</i>&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{page}"
    );

    let reason = "enough <b>".into();
    member.lead(Command::CancelRun { run, reason }).await;
    writer.finish(3_724_000).unwrap();
    let lines = format!("/runs/{run}/log?lines");
    let (code, log) = http(&member, "GET", &lines, &[], "").await;
    assert_eq!(code, 200);
    assert!(log.contains("\"stream\":\"err\""), "{log}");
    let (_, text) = http(&member, "GET", &format!("/runs/{run}/log"), &[], "").await;
    assert!(text.contains("01:02:03 <script>"), "{text}");
    let (_, page) = http(&member, "GET", &format!("/runs/{run}"), &[], "").await;
    assert!(page.contains("data-ended=\"yes\"") && page.contains("enough &lt;b&gt;"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_have_no_inline_code_and_other_hosts_get_none() {
    let member = Member::start().await;
    let (code, page) = http(&member, "GET", "/", &[], "").await;
    assert_eq!(code, 200);
    assert!(
        page.contains("content-security-policy: default-src 'self';"),
        "{page}"
    );
    assert!(!page.contains("style=") && !page.contains("onclick") && !page.contains("<style"));
    for asset in ["oast.css", "oast.js", "oast.svg"] {
        let (code, _) = http(&member, "GET", &format!("/assets/{asset}"), &[], "").await;
        assert_eq!(code, 200, "{asset}");
    }
    for absent in ["/assets/none", "/runs/r-999", "/runs/nonsense", "/nothing"] {
        let (code, _) = http(&member, "GET", absent, &[], "").await;
        assert_eq!(code, 404, "{absent}");
    }
    let strange = [("host", "rebind.example")];
    let (code, _) = http(&member, "GET", "/", &strange, "").await;
    assert_eq!(code, 421);
}
