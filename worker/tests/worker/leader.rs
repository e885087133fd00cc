//! A leader for tests: speaks the worker's language over real connections and remembers
//! everything it was told. It decides nothing; the test says what is assigned and what ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use oast_model::bake::Layer;
use oast_model::codec;
use oast_model::fleet::{Observation, Watch};
use oast_model::ids::Token;
use oast_model::task::{Assignment, Outcome, Report};
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::from_worker::Message as Up;
use oast_proto::worker::v1::to_worker::Message as Down;
use oast_proto::worker::v1::workers_server::{Workers, WorkersServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub const TOKEN: &str = "correct-horse-battery";
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct State {
    /// Where a follower sends workers; none on the leader.
    redirect: Option<SocketAddr>,
    term: u64,
    applied: u64,
    /// The newest session's way down.
    down: Option<mpsc::Sender<Result<wire::ToWorker, Status>>>,
    hellos: Vec<wire::Hello>,
    held: Vec<u64>,
    reports: Vec<(u64, u64, Report)>,
    /// Every copy of a report that came, by number.
    copies: BTreeMap<u64, u32>,
    /// Reports are kept but not answered.
    silent: bool,
    layers: BTreeMap<String, Layer>,
    observations: Vec<(String, Observation)>,
}

/// A member. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Leader {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    pub address: SocketAddr,
}

impl Leader {
    pub async fn start(redirect: Option<SocketAddr>, term: u64) -> Result<Leader> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let leader = Leader {
            state: Arc::new(Mutex::new(State {
                redirect,
                term,
                ..State::default()
            })),
            changed: Arc::new(watch::Sender::new(0)),
            address: listener.local_addr()?,
        };
        let service = WorkersServer::new(leader.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Ok(leader)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let result = act(&mut self.state.lock().expect("no test panics with it"));
        self.changed.send_modify(|count| *count += 1);
        result
    }

    /// Waits until something is so.
    pub async fn until<T>(&self, what: &str, mut so: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                if let Some(value) = so(self) {
                    return value;
                }
                let _ = changed.changed().await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(value) => Ok(value),
            Err(_) => bail!("{what}: did not come; reports {:#?}", self.reports()),
        }
    }

    pub fn hellos(&self) -> Vec<wire::Hello> {
        self.state.lock().expect("whole").hellos.clone()
    }

    pub fn held(&self) -> Vec<u64> {
        self.state.lock().expect("whole").held.clone()
    }

    pub fn reports(&self) -> Vec<(u64, u64, Report)> {
        self.state.lock().expect("whole").reports.clone()
    }

    pub fn copies(&self) -> BTreeMap<u64, u32> {
        self.state.lock().expect("whole").copies.clone()
    }

    pub fn observations(&self) -> Vec<(String, Observation)> {
        self.state.lock().expect("whole").observations.clone()
    }

    /// Answers no report from now on, or all again.
    pub fn silent(&self, silent: bool) {
        self.with(|state| state.silent = silent);
    }

    /// Ends the session as a dying leader would.
    pub fn hang_up(&self) {
        self.with(|state| state.down = None);
    }

    async fn say(&self, message: Down) -> Result<()> {
        let down = self.until("a session", |leader| {
            leader.state.lock().expect("whole").down.clone()
        });
        let message = wire::ToWorker {
            message: Some(message),
        };
        down.await?.send(Ok(message)).await?;
        Ok(())
    }

    pub async fn assign(&self, assignment: &Assignment) -> Result<()> {
        let begin = wire::Assignment {
            token: assignment.token.as_u64(),
            spec: codec::encode(assignment).into(),
        };
        self.assignments(vec![begin], Vec::new(), None).await
    }

    pub async fn end(&self, token: Token, at: Option<(u64, u64)>) -> Result<()> {
        self.assignments(Vec::new(), vec![token.as_u64()], at).await
    }

    async fn assignments(
        &self,
        begin: Vec<wire::Assignment>,
        ended: Vec<u64>,
        at: Option<(u64, u64)>,
    ) -> Result<()> {
        let (term, applied) = self.with(|state| {
            state.applied += 1;
            at.unwrap_or((state.term, state.applied))
        });
        self.say(Down::Assignments(wire::Assignments {
            term,
            applied,
            begin,
            ended,
        }))
        .await
    }

    pub async fn observe(&self, fleet: &str, spec: &Watch) -> Result<()> {
        let fleet = wire::ObserveFleet {
            fleet: fleet.to_owned(),
            spec: codec::encode(spec).into(),
        };
        let fleets = vec![fleet];
        self.say(Down::Observe(wire::Observe { fleets })).await
    }

    /// Waits for the end of an attempt.
    pub async fn outcome(&self, token: Token) -> Result<Outcome> {
        self.until(&format!("the end of {token}"), |leader| {
            leader.reports().into_iter().find_map(|(_, of, report)| {
                match (of == token.as_u64(), report) {
                    (true, Report::Finished(outcome)) => Some(outcome),
                    _ => None,
                }
            })
        })
        .await
    }

    fn take(&self, message: Up) -> Option<Down> {
        self.with(|state| match message {
            Up::Heartbeat(beat) => {
                state.held = beat.held;
                Some(Down::Alive(wire::Alive {
                    number: beat.number,
                }))
            }
            Up::Report(report) => {
                let copies = state.copies.entry(report.number).or_default();
                *copies += 1;
                if *copies == 1 {
                    let body: Report = codec::decode(&report.body).expect("a report");
                    if let Report::StepFinished { layer, .. } = &body {
                        state.layers.insert(layer.key.to_string(), layer.clone());
                    }
                    state.reports.push((report.number, report.token, body));
                }
                (!state.silent).then(|| {
                    Down::Ack(wire::Ack {
                        number: report.number,
                        seq: 1000 + report.number,
                        refused: String::new(),
                    })
                })
            }
            Up::Observation(observation) => {
                let body = codec::decode(&observation.body).expect("an observation");
                state.observations.push((observation.fleet, body));
                None
            }
            Up::Hello(_) => None,
        })
    }
}

#[tonic::async_trait]
impl Workers for Leader {
    type SessionStream = ReceiverStream<Result<wire::ToWorker, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let bearer = request.metadata().get("authorization");
        if bearer.and_then(|value| value.to_str().ok()) != Some(&format!("Bearer {TOKEN}")) {
            return Err(Status::unauthenticated("who are you?"));
        }
        let mut up = request.into_inner();
        let (down, stream) = mpsc::channel(64);
        let Some(Up::Hello(hello)) = up.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (redirect, term, applied) =
            self.with(|state| (state.redirect, state.term, state.applied));
        let say = async |message| {
            let message = wire::ToWorker {
                message: Some(message),
            };
            let _ = down.send(Ok(message)).await;
        };
        if let Some(leader) = redirect {
            say(Down::Redirect(wire::Redirect {
                leader: leader.to_string(),
            }))
            .await;
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        say(Down::Welcome(wire::Welcome {
            term,
            applied,
            heartbeat_ms: 50,
            lease_ttl_ms: 2000,
        }))
        .await;
        say(Down::Assignments(wire::Assignments {
            term,
            applied,
            begin: Vec::new(),
            ended: Vec::new(),
        }))
        .await;
        // Only now may the test speak: whatever it says comes after the welcome.
        self.with(|state| {
            // Numbers count within an incarnation.
            if state.hellos.last().map(|last| last.incarnation) != Some(hello.incarnation) {
                state.copies.clear();
            }
            state.hellos.push(hello);
            state.down = Some(down.clone());
        });
        let weak = down.downgrade();
        drop(down);
        let leader = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let Some(message) = message.message else {
                    continue;
                };
                let answer = leader.take(message);
                // Gone when the test hung up.
                let Some(down) = weak.upgrade() else { return };
                if let Some(answer) = answer {
                    let message = wire::ToWorker {
                        message: Some(answer),
                    };
                    let _ = down.send(Ok(message)).await;
                }
            }
            // The worker is gone; whoever speaks next waits for its successor.
            if let Some(gone) = weak.upgrade() {
                leader.with(|state| {
                    if state
                        .down
                        .as_ref()
                        .is_some_and(|down| down.same_channel(&gone))
                    {
                        state.down = None;
                    }
                });
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn find_layers(
        &self,
        request: Request<wire::FindLayersRequest>,
    ) -> Result<Response<wire::FindLayersResponse>, Status> {
        let keys = request.into_inner().keys;
        let layers = self.with(|state| {
            let known = keys.iter().filter_map(|key| state.layers.get(key));
            known.map(|layer| codec::encode(layer).into()).collect()
        });
        Ok(Response::new(wire::FindLayersResponse { layers }))
    }
}
