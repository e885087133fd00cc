//! The balancer against real servers that come, drain and go, under clients that count.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use oast_daemon::clock::SystemClock;
use oast_daemon::task::{TaskKind, Tasks};

use super::super::backend::{AddressDial, Backend, Health};
use super::super::health;
use super::super::spec::HealthCheck;
use super::*;

fn tasks() -> Tasks {
    Tasks::new(SystemClock::shared(), CancellationToken::new())
}

/// An HTTP/1.1 server like the ones people run: it keeps connections alive and closes each after
/// `per_connection` answers by saying so in the last one.
struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    open: Arc<AtomicU64>,
}

impl Server {
    async fn start(tasks: &Tasks, body: &'static str, per_connection: usize) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let open = Arc::new(AtomicU64::new(0));
        let (stopped, counted, all) = (stop.clone(), open.clone(), tasks.clone());
        tasks.spawn("server", TaskKind::BACKGROUND, async move {
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else { continue };
                let (counted, stopped) = (counted.clone(), stopped.clone());
                all.spawn("served", TaskKind::BACKGROUND, async move {
                    counted.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = answer(stream, body, per_connection) => {}
                    }
                    counted.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Server {
            address,
            stop,
            open,
        }
    }

    /// Stops as a killed process does: the port refuses, open connections break.
    fn kill(&self) {
        self.stop.cancel();
    }

    fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }
}

async fn answer(
    mut stream: TcpStream,
    body: &str,
    per_connection: usize,
) -> Result<Infallible, io::Error> {
    let mut buffer = Vec::new();
    for n in 1.. {
        while !buffer.windows(4).any(|w| w == b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        buffer.clear();
        let close = if n == per_connection {
            "Connection: close\r\n"
        } else {
            ""
        };
        let text = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await?;
        if n == per_connection {
            stream.shutdown().await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
    unreachable!("the loop has no end")
}

/// One answer: its body and whether the server will close.
async fn get(stream: &mut TcpStream) -> Result<(String, bool), String> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .await
        .map_err(|e| format!("send: {e}"))?;
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .split("Content-Length: ")
                .nth(1)
                .and_then(|r| r.lines().next());
            let length: usize = length
                .and_then(|l| l.trim().parse().ok())
                .ok_or("no length")?;
            if body.len() >= length {
                return Ok((body.to_owned(), head.contains("Connection: close")));
            }
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err("closed without an answer".to_owned()),
            Ok(_) => {}
            Err(err) => return Err(format!("receive: {err}")),
        }
    }
}

/// One request over a connection of its own. A reset may be seen by any of the calls.
async fn once(address: SocketAddr) -> Result<String, String> {
    let mut stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("connect: {e}"))?;
    get(&mut stream).await.map(|(body, _)| body)
}

struct Client {
    done: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    handle: oast_daemon::task::TaskHandle,
}

impl Client {
    /// Requests without pause; with `keep` over one connection until the server closes it.
    fn start(tasks: &Tasks, address: SocketAddr, keep: bool) -> Client {
        let done = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (counted, failed, stopped) = (done.clone(), failures.clone(), stop.clone());
        let handle = tasks.spawn("client", TaskKind::REQUEST, async move {
            let mut kept: Option<TcpStream> = None;
            while !stopped.load(Ordering::SeqCst) {
                let result = async {
                    let mut stream = match kept.take() {
                        Some(stream) => stream,
                        None => TcpStream::connect(address)
                            .await
                            .map_err(|e| format!("connect: {e}"))?,
                    };
                    let (_, close) = get(&mut stream).await?;
                    Ok::<_, String>((keep && !close).then_some(stream))
                };
                match result.await {
                    Ok(stream) => kept = stream,
                    Err(err) => failed.lock().unwrap().push(err),
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Client {
            done,
            failures,
            stop,
            handle,
        }
    }

    async fn past(&self, more: u64) {
        let until = self.done.load(Ordering::SeqCst) + more;
        wait(|| self.done.load(Ordering::SeqCst) >= until).await;
    }

    async fn end(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.handle.join().await;
        (
            self.done.load(Ordering::SeqCst),
            self.failures.lock().unwrap().clone(),
        )
    }
}

async fn wait(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            SystemClock.sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(&SystemClock, Duration::from_secs(60), waiting)
        .await
        .expect("the level was not reached");
}

struct Set {
    pool: Arc<Pool>,
    address: SocketAddr,
    stop: CancellationToken,
}

async fn balance(tasks: &Tasks) -> Set {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = Arc::new(Pool::new(SystemClock::shared()));
    let stop = CancellationToken::new();
    tasks.spawn(
        "balancer",
        TaskKind::BACKGROUND,
        run(listener, pool.clone(), tasks.clone(), stop.clone()),
    );
    Set {
        pool,
        address,
        stop,
    }
}

impl Set {
    fn add(&self, tasks: &Tasks, id: &str, server: &Server) -> Arc<Backend> {
        let backend = Backend::new(id, false);
        self.pool.add(backend.clone());
        backend.attach(Arc::new(AddressDial(server.address)), 0, 1);
        let check = HealthCheck {
            interval: Duration::from_millis(20),
            ..HealthCheck::default()
        };
        let (_keep, checks) = tokio::sync::watch::channel(check);
        let (verdicts, mut taken) = mpsc::channel(4);
        tasks.spawn("verdicts", TaskKind::BACKGROUND, async move {
            while taken.recv().await.is_some() {}
        });
        tasks.spawn(
            "health",
            TaskKind::BACKGROUND,
            health::run(
                backend.clone(),
                checks,
                verdicts,
                SystemClock::shared(),
                self.stop.clone(),
            ),
        );
        backend
    }
}

/// The goal: a rolling replacement with draining is invisible, to clients that connect anew for
/// each request and to clients that keep connections as long as the server lets them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_replacement_with_draining_fails_no_request() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    let mut old = Vec::new();
    for id in ["0", "1", "2"] {
        let server = Server::start(&tasks, "v1", 25).await;
        let backend = set.add(&tasks, id, &server);
        old.push((server, backend));
    }
    for (_, backend) in &old {
        wait(|| backend.takes_connections()).await;
    }
    let clients: Vec<Client> = [false, false, true, true]
        .map(|keep| Client::start(&tasks, set.address, keep))
        .into();
    for (boot, (server, backend)) in (2..).zip(&old) {
        for client in &clients {
            client.past(50).await;
        }
        backend.set_draining(true);
        backend.idle().await;
        // Drained means that the server may go without anybody noticing.
        backend.detach();
        server.kill();
        let new = Server::start(&tasks, "v2", 25).await;
        backend.attach(Arc::new(AddressDial(new.address)), 0, boot);
        wait(|| backend.health() == Health::Healthy).await;
        backend.set_draining(false);
    }
    let mut requests = 0;
    for client in clients {
        client.past(200).await;
        let (done, failures) = client.end().await;
        assert_eq!(failures, Vec::<String>::new(), "after {done} requests");
        requests += done;
    }
    let counts = set.pool.counts();
    assert!(requests >= 1000, "only {requests} requests");
    assert_eq!(
        (counts.refused, counts.cut, counts.broken),
        (0, 0, 0),
        "{counts:?}"
    );
}

/// The goal: an instance that dies between two health checks costs clients that connect nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_is_dialled_elsewhere_before_any_byte() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    let (dead, alive) = (
        Server::start(&tasks, "dead", 1).await,
        Server::start(&tasks, "alive", 1).await,
    );
    let gone = Backend::new("gone", false);
    let stays = Backend::new("stays", false);
    for (backend, server) in [(&gone, &dead), (&stays, &alive)] {
        set.pool.add(backend.clone());
        backend.attach(Arc::new(AddressDial(server.address)), 0, 1);
        // No health check runs, so that only the balancer itself can notice.
        assert!(backend.set_health(1, Health::Healthy));
    }
    dead.kill();
    wait(|| std::net::TcpStream::connect(dead.address).is_err()).await;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(set.address).await.unwrap();
        assert_eq!(get(&mut stream).await.unwrap().0, "alive");
    }
    assert_eq!(gone.health(), Health::Unhealthy);
    assert_eq!(
        set.pool.counts().redialled,
        1,
        "one refusal is enough to learn it"
    );
}

#[tokio::test]
async fn without_a_healthy_instance_a_connection_is_reset_at_once() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    set.pool.add(Backend::new("0", false));
    let answer = timeout(&SystemClock, Duration::from_secs(5), once(set.address)).await;
    let err = answer.expect("must not hang").unwrap_err();
    assert!(
        err.contains("reset") || err.contains("closed") || err.contains("Broken pipe"),
        "{err}"
    );
    wait(|| set.pool.counts().refused == 1).await;
}

/// The goal: an idle kept-alive connection survives a drain until the time-out, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed_at_the_cut_and_not_before() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    let server = Server::start(&tasks, "v1", 1000).await;
    let backend = set.add(&tasks, "0", &server);
    wait(|| backend.takes_connections()).await;
    let mut idle = TcpStream::connect(set.address).await.unwrap();
    get(&mut idle).await.unwrap();
    backend.set_draining(true);
    assert!(once(set.address).await.is_err(), "a new one is refused");
    // Still served: draining alone closes nothing.
    get(&mut idle).await.unwrap();
    assert_eq!(backend.active(), 1);
    backend.cut();
    backend.idle().await;
    let mut rest = Vec::new();
    assert_eq!(
        idle.read_to_end(&mut rest).await.unwrap(),
        0,
        "an orderly close"
    );
    assert_eq!(set.pool.counts().cut, 1);
    wait(|| server.open() == 0).await;
}

/// The goal: a cut does not take an answer away that is still being worked on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_flight_at_the_cut_is_still_answered() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Backend::new("0", false);
    set.pool.add(backend.clone());
    backend.attach(Arc::new(AddressDial(listener.local_addr().unwrap())), 0, 1);
    assert!(backend.set_health(1, Health::Healthy));
    let client = tasks.job("client", once(set.address));
    let (mut served, _) = listener.accept().await.unwrap();
    served.readable().await.unwrap();
    backend.set_draining(true);
    backend.cut();
    // Much longer than the quiet that an answered connection is cut after.
    SystemClock.sleep(QUIET * 3).await;
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
    served.write_all(answer).await.unwrap();
    assert_eq!(client.value().await.unwrap(), Ok("late".to_owned()));
    backend.idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_where_the_fewest_are() {
    let tasks = tasks();
    let set = balance(&tasks).await;
    let mut servers = Vec::new();
    for id in ["0", "1", "2"] {
        let server = Server::start(&tasks, "v", 1000).await;
        let backend = set.add(&tasks, id, &server);
        wait(|| backend.takes_connections()).await;
        servers.push((server, backend));
    }
    let mut held = Vec::new();
    for _ in 0..9 {
        let mut stream = TcpStream::connect(set.address).await.unwrap();
        get(&mut stream).await.unwrap();
        held.push(stream);
    }
    let active: Vec<u32> = servers.iter().map(|(_, b)| b.active()).collect();
    assert_eq!(active, [3, 3, 3]);
}

#[tokio::test]
async fn a_port_in_use_says_so_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let err = bind(taken.local_addr().unwrap()).await.unwrap_err();
    assert!(
        err.to_string().contains("another program listens there"),
        "{err}"
    );
}
