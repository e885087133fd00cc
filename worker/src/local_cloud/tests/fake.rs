//! A runtime whose instances are small HTTP servers in the test process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use oast_daemon::task::{TaskKind, Tasks};

use crate::local_cloud::backend::{AddressDial, Dial};
use crate::local_cloud::runtime::{BootError, BootMode, BootSpec, Prepared, Running, Runtime};
use crate::local_cloud::spec::Image;

/// What happened, in order, as `verb set/id#boot version`.
pub type Journal = Arc<Mutex<Vec<String>>>;

#[derive(Clone, Debug)]
pub struct Fake {
    pub tasks: Tasks,
    pub journal: Journal,
    crashes: Arc<Mutex<BTreeMap<String, CancellationToken>>>,
}

impl Fake {
    pub fn new(tasks: &Tasks) -> Fake {
        Fake {
            tasks: tasks.clone(),
            journal: Journal::default(),
            crashes: Arc::default(),
        }
    }

    /// Ends an instance's main process as a crash does.
    pub fn crash(&self, set: &str, id: &str) {
        self.crashes.lock().unwrap()[&format!("{set}/{id}")].cancel();
    }

    pub fn journal(&self) -> Vec<String> {
        self.journal.lock().unwrap().clone()
    }

    fn note(&self, verb: &str, spec: &BootSpec) {
        let line = format!(
            "{verb} {}/{}#{} {}",
            spec.set, spec.id, spec.boot, spec.image.version
        );
        self.journal.lock().unwrap().push(line);
    }
}

impl Runtime for Fake {
    fn prepare(&self, spec: BootSpec) -> BoxFuture<'_, Result<Box<dyn Prepared>, BootError>> {
        Box::pin(async move {
            if spec.image.version == "unbootable" {
                return Err(BootError::Refused("this image does not boot".to_owned()));
            }
            self.note("prepare", &spec);
            Ok(Box::new(Ready {
                fake: self.clone(),
                spec,
            }) as Box<dyn Prepared>)
        })
    }

    fn prefetch<'a>(&'a self, _image: &'a Image) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async { Ok(()) })
    }

    fn forget<'a>(&'a self, set: &'a str, id: &'a str) -> BoxFuture<'a, ()> {
        self.journal
            .lock()
            .unwrap()
            .push(format!("forget {set}/{id}"));
        Box::pin(async {})
    }
}

struct Ready {
    fake: Fake,
    spec: BootSpec,
}

impl Prepared for Ready {
    fn start(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Running>, BootError>> {
        Box::pin(async move {
            let Ready { fake, spec } = *self;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (stop, crash) = (CancellationToken::new(), CancellationToken::new());
            let name = format!("{}/{}", spec.set, spec.id);
            fake.crashes.lock().unwrap().insert(name, crash.clone());
            // "sick" images answer, but not with what the health check wants.
            let status = if spec.image.version == "sick" {
                "500 Sick"
            } else {
                "200 OK"
            };
            let body = format!("{} {}", spec.id, spec.image.version);
            let text = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let serve = serve(listener, text);
            let (stopped, crashed) = (stop.clone(), crash.clone());
            fake.tasks
                .spawn("fake instance", TaskKind::BACKGROUND, async move {
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        () = crashed.cancelled() => {}
                        () = serve => {}
                    }
                });
            fake.note("start", &spec);
            Ok(Box::new(Live {
                fake,
                spec,
                address,
                stop,
                crash,
            }) as Box<dyn Running>)
        })
    }
}

async fn serve(listener: TcpListener, text: String) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await;
        let _ = stream.write_all(text.as_bytes()).await;
    }
}

struct Live {
    fake: Fake,
    spec: BootSpec,
    address: SocketAddr,
    stop: CancellationToken,
    crash: CancellationToken,
}

impl Running for Live {
    fn dial(&self) -> Arc<dyn Dial> {
        Arc::new(AddressDial(self.address))
    }

    fn mode(&self) -> BootMode {
        BootMode::Units
    }

    fn ended(&mut self) -> BoxFuture<'_, String> {
        Box::pin(async {
            self.crash.cancelled().await;
            "killed by signal 9".to_owned()
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.stop.cancel();
            self.fake.note("stop", &self.spec);
        })
    }
}
