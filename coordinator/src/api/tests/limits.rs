//! What is wrong is refused with a precise reason and changes nothing; what takes too long ends.

use std::time::Duration;

use axum::http::HeaderMap;
use oast_proto::v1;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::{ADMIN, Member, WORKER, refusal};

/// One bad request: what it is, its refusal, the field that is named.
type Row = (
    &'static str,
    Result<(), Status>,
    Code,
    &'static str,
    &'static str,
);

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_name_what_is_wrong_and_change_nothing() {
    let member = Member::start().await;
    member.see('a').await;
    let tree = member.tree("nothing");
    let submit = |set: &dyn Fn(&mut v1::SubmitRunRequest)| {
        let mut asked = v1::SubmitRunRequest {
            request_id: "id".into(),
            team: "payments".into(),
            tree: tree.clone(),
            ..v1::SubmitRunRequest::default()
        };
        set(&mut asked);
        let mut runs = member.runs(ADMIN);
        async move { runs.submit_run(asked).await.map(drop) }
    };
    let many = || (0..300).map(|n| (n.to_string(), String::new())).collect();
    let large = || [("x".to_owned(), "y".repeat(65 << 10))].into();
    let huge = || [("x".to_owned(), "y".repeat(5 << 20))].into();
    let invalid = Code::InvalidArgument;
    let before = member.farm.view().digest();
    let (seq, runs) = (member.farm.view().seq(), member.farm.view().runs().len());
    let rows: Vec<Row> = vec![
        (
            "id too long",
            submit(&|a| a.request_id = "x".repeat(129)).await,
            invalid,
            "INVALID",
            "request_id",
        ),
        (
            "id with a line break",
            submit(&|a| a.request_id = "a\nb".into()).await,
            invalid,
            "INVALID",
            "request_id",
        ),
        (
            "team is no name",
            submit(&|a| a.team = "No Name".into()).await,
            invalid,
            "INVALID",
            "team",
        ),
        (
            "path climbs out",
            submit(&|a| a.path = "../x".into()).await,
            invalid,
            "INVALID",
            "path",
        ),
        (
            "tree is no digest",
            submit(&|a| a.tree = "xyz".into()).await,
            invalid,
            "INVALID",
            "tree",
        ),
        (
            "commit is no commit",
            submit(&|a| a.commit = "zz".into()).await,
            invalid,
            "INVALID",
            "commit",
        ),
        (
            "too many inputs",
            submit(&|a| a.inputs = many()).await,
            invalid,
            "INVALID",
            "inputs",
        ),
        (
            "inputs too large",
            submit(&|a| a.inputs = large()).await,
            invalid,
            "INVALID",
            "inputs",
        ),
        (
            "nothing to run",
            submit(&|a| a.tree.clear()).await,
            invalid,
            "INVALID",
            "repository",
        ),
        (
            "ghost team",
            submit(&|a| a.team = "ghosts".into()).await,
            Code::NotFound,
            "NOT_FOUND",
            "",
        ),
        // Refused before the farm sees it: more than a message may have.
        (
            "huge message",
            submit(&|a| a.inputs = huge()).await,
            Code::OutOfRange,
            "",
            "",
        ),
    ];
    for (what, result, code, reason, field) in rows {
        let status = result.expect_err(what);
        let details = status.get_error_details();
        assert_eq!(status.code(), code, "{what}: {status:?}");
        let said = details.error_info().map_or("", |info| info.reason.as_str());
        assert_eq!(said, reason, "{what}");
        let fields = details
            .bad_request()
            .map(|bad| bad.field_violations.clone());
        let named = fields.unwrap_or_default().first().map(|f| f.field.clone());
        assert_eq!(named.unwrap_or_default(), field, "{what}");
    }
    let view = member.farm.view();
    assert_eq!((view.digest(), view.runs().len()), (before, runs));
    assert_eq!(view.seq(), seq, "nothing of it reached the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_request_gets_its_first_answer_and_changes_nothing() {
    let member = Member::start().await;
    let tree = member.tree("nothing");
    let submit = |token: String, id: &str, input: &str| {
        let asked = v1::SubmitRunRequest {
            request_id: id.into(),
            team: "payments".into(),
            tree: tree.clone(),
            inputs: [("input".to_owned(), input.to_owned())].into(),
            ..v1::SubmitRunRequest::default()
        };
        let mut runs = member.runs(&token);
        async move { runs.submit_run(asked).await.unwrap().into_inner().id }
    };
    let cancel = |id: &str, run: &str| {
        let asked = v1::CancelRunRequest {
            request_id: id.into(),
            run: run.into(),
            reason: "enough".into(),
        };
        let mut runs = member.runs(ADMIN);
        async move { runs.cancel_run(asked).await.map(drop) }
    };
    let admin = || ADMIN.to_owned();
    let first = submit(admin(), "one", "a").await;
    let second = submit(admin(), "two", "a").await;
    cancel("cancel", &first).await.unwrap();

    let state = || {
        let view = member.farm.view();
        let runs = view.runs().iter().map(|(_, run)| run.clone());
        (runs.collect::<Vec<_>>(), view.farm().history_seq)
    };
    let before = state();
    assert_eq!(submit(admin(), "one", "a").await, first);
    assert_eq!(submit(admin(), "two", "changed on the way").await, second);
    cancel("cancel", &first).await.unwrap();
    // An id that was used for something else is told, and does nothing.
    let reused = refusal(cancel("cancel", &second).await);
    assert_eq!(
        reused,
        (Code::FailedPrecondition, "REQUEST_ID_REUSED".into())
    );
    let reused = refusal(cancel("two", &second).await);
    assert_eq!(reused.0, Code::FailedPrecondition);
    assert_eq!(state(), before);

    // Ids are each principal's own.
    let robot = member.token("robot", "operator", "payments").await;
    let third = submit(robot, "one", "a").await;
    assert_ne!(third, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_token_or_with_a_wrong_one_is_let_in_anywhere() {
    let member = Member::start().await;
    let seq = member.farm.view().seq();
    let long = "x".repeat(4096);
    for token in ["", "guess", "oast_", long.as_str()] {
        let refused = |result: Result<(), Status>| {
            let (code, reason) = refusal(result);
            assert_eq!(
                (code, reason.as_str()),
                (Code::Unauthenticated, "UNAUTHENTICATED")
            );
        };
        let none = tokio_stream::empty::<v1::SubmitRunsRequest>;
        refused(
            member
                .runs(token)
                .list_runs(v1::ListRunsRequest::default())
                .await
                .map(drop),
        );
        refused(member.runs(token).submit_runs(none()).await.map(drop));
        refused(
            member
                .changes(token)
                .watch(v1::WatchRequest::default())
                .await
                .map(drop),
        );
        refused(
            member
                .images(token)
                .list_images(v1::ListImagesRequest::default())
                .await
                .map(drop),
        );
        refused(
            member
                .operator(token)
                .list_workers(v1::ListWorkersRequest::default())
                .await
                .map(drop),
        );
    }
    // A worker's token reports work and starts none.
    let tree = member.tree("nothing");
    let asked = v1::SubmitRunsRequest {
        submissions: vec![v1::SubmitRunRequest {
            request_id: "id".into(),
            team: "payments".into(),
            tree,
            ..v1::SubmitRunRequest::default()
        }],
    };
    let answer = member.runs(WORKER).batch_submit_runs(asked).await.unwrap();
    let error = answer.into_inner().results[0].error.clone().unwrap();
    assert_eq!((error.code, error.reason.as_str()), (7, "DENIED"));
    assert_eq!(
        member.farm.view().seq(),
        seq,
        "nothing of it reached the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_is_refused_and_the_member_goes_on() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let member = Member::start().await;
    let seq = member.farm.view().seq();
    let pieces: [&[u8]; 4] = [
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        // The preface of HTTP/2, then frames that are none.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"POST /oast.v1.Runs/SubmitRun HTTP/1.1\r\nhost: x\r\ncontent-type: application/grpc\r\ncontent-length: 5\r\n\r\nabcde",
    ];
    for piece in pieces {
        let mut stream = tokio::net::TcpStream::connect(member.address)
            .await
            .unwrap();
        // It may hang up before it has read everything.
        let _ = stream.write_all(piece).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
    }
    // A message that is none, in a frame that is one.
    let mut grpc = tonic::client::Grpc::new(member.channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(Garbage(vec![0xff; 64]));
    let token = format!("Bearer {ADMIN}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    let path = "/oast.v1.Runs/SubmitRun".parse().unwrap();
    let answer = grpc.unary(request, path, tonic_prost_codec()).await;
    assert!(answer.is_err(), "garbage is no submission");
    assert_eq!(member.farm.view().seq(), seq);
    member
        .runs(ADMIN)
        .list_runs(v1::ListRunsRequest::default())
        .await
        .unwrap();
}

/// Bytes that pretend to be a message.
#[derive(Debug)]
struct Garbage(Vec<u8>);

#[derive(Debug, Default)]
struct RawCodec;

fn tonic_prost_codec() -> RawCodec {
    RawCodec
}

impl tonic::codec::Codec for RawCodec {
    type Encode = Garbage;
    type Decode = ();
    type Encoder = RawCodec;
    type Decoder = RawCodec;

    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }

    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Garbage;
    type Error = Status;

    fn encode(
        &mut self,
        item: Garbage,
        to: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item.0);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let rest = bytes::Buf::remaining(from);
        bytes::Buf::advance(from, rest);
        Ok(Some(()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_with_its_deadline_and_says_so() {
    // Two of three are gone: nobody can decide anything.
    let mut members = Member::farm_of(3).await;
    let rest = members.split_off(1);
    drop(rest);
    let member = &members[0];
    let asked = || {
        let mut request = Request::new(v1::CreateTokenRequest {
            name: "late".into(),
            role: "viewer".into(),
            ..v1::CreateTokenRequest::default()
        });
        // Not by `set_timeout`: the client's own timer must not be the one that ends it.
        let soon = "300m".parse().unwrap();
        request.metadata_mut().insert("grpc-timeout", soon);
        request
    };
    let status = member
        .operator(ADMIN)
        .create_token(asked())
        .await
        .expect_err("nobody decides");
    // By itself the write would be tried for ten seconds, and then say so.
    let late = matches!(
        status.code(),
        Code::DeadlineExceeded | Code::Cancelled | Code::Unavailable
    );
    assert!(
        late && !status.message().contains("within 10000 ms"),
        "{status:?}"
    );
    let mut wrong = asked();
    wrong
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    let status = member
        .operator(ADMIN)
        .create_token(wrong)
        .await
        .expect_err("no time");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

#[test]
fn deadlines_are_read_as_grpc_writes_them() {
    let read = |text: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        super::auth::grpc_timeout(&headers).map_err(|status| status.code())
    };
    assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
    assert_eq!(read("1H"), Ok(Some(Duration::from_secs(3600))));
    assert_eq!(read("99999999S"), Ok(Some(Duration::from_secs(99_999_999))));
    for wrong in ["", "5", "S", "-1S", "123456789S", "1x", "\u{b5}"] {
        assert_eq!(read(wrong), Err(Code::InvalidArgument), "{wrong}");
    }
}
