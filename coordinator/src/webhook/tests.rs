//! Deliveries with the shapes that GitHub sends, against a real member.

use oast_proto::v1;

use super::*;
use crate::api::tests::{ADMIN, Member, http};

const PUSH: &str = include_str!("../../testdata/webhook/push.json");
const TAG: &str = include_str!("../../testdata/webhook/push_tag.json");
const DELETED: &str = include_str!("../../testdata/webhook/push_deleted.json");
const PING: &str = include_str!("../../testdata/webhook/ping.json");
const SECRET: &[u8] = b"It's a Secret to Everybody";

fn sign(key: &[u8], payload: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(payload.as_bytes());
    let digits = mac.finalize().into_bytes();
    let hex: String = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{SIGNATURE_PREFIX}{hex}")
}

async fn deliver(
    member: &Member,
    event: &str,
    delivery: &str,
    signature: &str,
    payload: &str,
) -> (u16, String) {
    let headers = [
        ("x-github-event", event),
        ("x-github-delivery", delivery),
        ("x-hub-signature-256", signature),
        ("content-type", "application/json"),
    ];
    http(member, "POST", "/webhook/github/web", &headers, payload).await
}

async fn runs(member: &Member) -> Vec<v1::Run> {
    let asked = v1::ListRunsRequest::default();
    let runs = member.runs(ADMIN).list_runs(asked).await.unwrap();
    runs.into_inner().runs
}

async fn member() -> Member {
    let member = Member::start().await;
    member.secret("hook", SECRET).await;
    member
}

#[test]
fn the_signature_is_the_one_of_githubs_documentation() {
    let expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    assert_eq!(sign(SECRET, "Hello, World!"), expected);
    let signature = parse_signature(expected).unwrap();
    assert!(signed(SECRET, b"Hello, World!", &signature));
    assert!(!signed(SECRET, b"Hello, World?", &signature));
    assert!(!signed(b"another", b"Hello, World!", &signature));
    for wrong in ["", "sha256=", "sha1=757107ea", &expected[..70], "sha256=zz"] {
        assert_eq!(parse_signature(wrong), None, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_starts_one_run_however_often_it_is_delivered() {
    let member = member().await;
    let signature = sign(SECRET, PUSH);
    let (code, first) = deliver(&member, "push", "72d3162e-cc78", &signature, PUSH).await;
    assert_eq!(code, 202, "{first}");
    let (code, again) = deliver(&member, "push", "72d3162e-cc78", &signature, PUSH).await;
    assert_eq!((code, &again), (202, &first));
    let (code, other) = deliver(&member, "push", "another-delivery", &signature, PUSH).await;
    assert_eq!((code, other.as_str()), (202, "nothing new\n"));
    let runs = runs(&member).await;
    assert_eq!(runs.len(), 1);
    assert_eq!(first, format!("run {}\n", runs[0].id));
    assert_eq!(runs[0].commit, "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c");
    assert_eq!(runs[0].cause, "push to main");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_signed_with_the_secret_starts_nothing() {
    let member = member().await;
    let wrong_key = sign(b"guess", PUSH);
    let wrong_body = sign(SECRET, TAG);
    for signature in ["", "sha256=00", &wrong_key, &wrong_body] {
        let (code, _) = deliver(&member, "push", "d1", signature, PUSH).await;
        assert_eq!(code, 401, "{signature}");
    }
    assert!(runs(&member).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_deleted_and_unwatched_branches_and_other_events_start_nothing() {
    let member = member().await;
    let unwatched = PUSH.replace("refs/heads/main", "refs/heads/ann/try");
    for (event, payload, expected) in [
        ("ping", PING, 200),
        ("push", TAG, 202),
        ("push", DELETED, 202),
        ("push", &unwatched, 202),
        ("issues", "{}", 202),
        ("push", "{\"ref\": 1}", 400),
        (
            "push",
            "{\"ref\": \"refs/heads/main\", \"after\": \"HEAD\"}",
            400,
        ),
    ] {
        let signature = sign(SECRET, payload);
        let (code, said) = deliver(&member, event, "d1", &signature, payload).await;
        assert_eq!(code, expected, "{event}: {said}");
    }
    assert!(runs(&member).await.is_empty());
    let (code, said) = http(&member, "POST", "/webhook/github/wob", &[], "").await;
    assert_eq!(code, 404);
    assert!(said.contains("no repository `wob`"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_typed_into_a_pipe_may_end_with_a_line_break() {
    let member = Member::start().await;
    let signature = sign(SECRET, PUSH);
    let (code, said) = deliver(&member, "push", "d1", &signature, PUSH).await;
    assert_eq!(code, 403, "{said}");
    member.secret("hook", &[SECRET, b"\n"].concat()).await;
    let (code, said) = deliver(&member, "push", "d1", &signature, PUSH).await;
    assert_eq!(code, 202, "{said}");
}
