use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream as StdStream};

use axum::Extension;
use axum::routing::get;
use tokio::sync::Notify;

use super::*;
use crate::clock::SystemClock;
use crate::health::{self, Health};
use crate::task::Unclean;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn serving() -> Serving {
    let clock = SystemClock::shared();
    Serving {
        limits: Limits {
            drain: TimeSpan::from_millis(200),
            ..Limits::default()
        },
        clock: clock.clone(),
        tasks: Tasks::new(clock, CancellationToken::new()),
        metrics: Metrics::new(),
    }
}

/// One HTTP/1.1 request; the whole answer as text.
async fn ask(address: SocketAddr, path: &'static str) -> String {
    tokio::task::spawn_blocking(move || {
        let mut stream = StdStream::connect(address).expect("the port answers");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .expect("the request is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    })
    .await
    .expect("the client ran")
}

#[test]
fn an_address_that_others_can_reach_is_refused_with_the_way_out() {
    for address in ["0.0.0.0:7443", "192.0.2.1:7443", "[::]:7443"] {
        let error = Port::bind(address.parse().expect("an address")).expect_err("exposed");
        let text = error.to_string();
        assert!(text.starts_with(&format!("refusing to listen on {address}: without TLS")));
        assert!(
            text.contains(
                "write 127.0.0.1:7443 or [::1]:7443, or give it TLS: `oast operator pki init`"
            ),
            "{text}"
        );
    }
}

#[test]
fn an_occupied_port_names_its_holder() {
    let held = Port::bind(LOOPBACK).expect("a free port");
    let error = Port::bind(held.address()).expect_err("held");
    let text = error.to_string();
    assert!(
        text.contains(&format!("port {} on 127.0.0.1", held.address().port())),
        "{text}"
    );
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
}

#[test]
fn limits_must_make_sense_together() {
    let mut problems = Problems::default();
    Limits::default().validate(&mut problems);
    assert_eq!(format!("{problems:?}"), "Problems([])");
    let bad = Limits {
        keepalive_timeout: TimeSpan::from_secs(20),
        max_streams: 0,
        ..Limits::default()
    };
    bad.validate(&mut problems);
    let text = format!("{problems:?}");
    assert!(
        text.contains("max_streams") && text.contains("keepalive_timeout"),
        "{text}"
    );
}

#[tokio::test]
async fn one_port_serves_pages_and_counts_them() {
    let with = serving();
    let health = Health::default();
    let raft = health.part("raft");
    let peer = |Extension(peer): Extension<Peer>| async move { peer.0.ip().to_string() };
    let router = health::routes(with.metrics.clone(), health).route("/peer", get(peer));
    let port = Port::bind(LOOPBACK).expect("a free port");
    let address = port.address();
    port.serve(router, &with)
        .expect("the runtime takes the socket");

    assert!(ask(address, "/peer").await.ends_with("127.0.0.1"));
    let answer = ask(address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.ends_with("failing\nraft: not ready: starting\n"),
        "{answer}"
    );
    assert!(ask(address, "/healthz").await.starts_with("HTTP/1.1 200 "));
    raft.ready();
    assert!(ask(address, "/readyz").await.ends_with("ok\nraft: ready\n"));
    assert!(ask(address, "/nothing").await.starts_with("HTTP/1.1 404 "));

    let text = ask(address, "/metrics").await;
    assert!(
        text.contains("content-type: text/plain; version=0.0.4"),
        "{text}"
    );
    assert!(
        text.contains("oast_http_requests_total{code=\"4xx\",kind=\"page\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("oast_http_connections 1\n"), "{text}");

    with.tasks.cancelled().cancel();
    assert_eq!(
        with.tasks.finish(Duration::from_secs(5)).await,
        Ok::<(), Unclean>(())
    );
}

#[tokio::test]
async fn the_same_port_speaks_http_2_and_counts_grpc_apart() {
    let with = serving();
    let port = Port::bind(LOOPBACK).expect("a free port");
    let address = port.address();
    let router = Router::new().route("/oast.v1.Runs/Get", get(|| async { "frame" }));
    port.serve(router, &with).expect("serving");

    let stream = TcpStream::connect(address).await.expect("the port answers");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await.expect("prior knowledge is accepted");
    let driver = with.tasks.spawn("client", TaskKind::REQUEST, connection);
    let request = Request::get(format!("http://{address}/oast.v1.Runs/Get"))
        .header(CONTENT_TYPE, "application/grpc")
        .body(axum::body::Body::empty())
        .expect("a valid request");
    let answer = client.send_request(request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.version(), axum::http::Version::HTTP_2);
    let text = with.metrics.render();
    assert!(
        text.contains("oast_http_requests_total{code=\"2xx\",kind=\"grpc\"} 1\n"),
        "{text}"
    );

    // Shutdown says GOAWAY, so the client's side of the connection ends without an error.
    drop(answer);
    with.tasks.cancelled().cancel();
    assert_eq!(driver.join().await, crate::task::Outcome::Done);
    assert_eq!(with.tasks.finish(Duration::from_secs(5)).await, Ok(()));
}

#[tokio::test]
async fn shutdown_lets_an_open_request_finish_and_closes_the_port() {
    let with = serving();
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (begun.clone(), go.clone());
    let slow = move || async move {
        tell.notify_one();
        wait.notified().await;
        "finished"
    };
    let port = Port::bind(LOOPBACK).expect("a free port");
    let address = port.address();
    let accept = port
        .serve(Router::new().route("/slow", get(slow)), &with)
        .expect("serving");

    let client = ask(address, "/slow");
    let driver = async {
        begun.notified().await;
        with.tasks.cancelled().cancel();
        accept.join().await;
        go.notify_one();
    };
    let (answer, ()) = tokio::join!(client, driver);
    assert!(answer.ends_with("finished"), "{answer}");
    assert!(StdStream::connect(address).is_err());
}

#[tokio::test]
async fn a_request_that_never_ends_is_dropped_at_the_drain_deadline() {
    let with = serving();
    let begun = Arc::new(Notify::new());
    let tell = begun.clone();
    let stuck = move || async move {
        tell.notify_one();
        std::future::pending::<()>().await;
    };
    let port = Port::bind(LOOPBACK).expect("a free port");
    let address = port.address();
    port.serve(Router::new().route("/stuck", get(stuck)), &with)
        .expect("serving");
    let client = ask(address, "/stuck");
    let driver = async {
        begun.notified().await;
        with.tasks.cancelled().cancel();
        with.tasks.finish(Duration::from_secs(5)).await
    };
    let (answer, ended) = tokio::join!(client, driver);
    assert_eq!(ended, Ok(()));
    assert_eq!(answer, "");
}
