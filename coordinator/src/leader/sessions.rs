//! The worker's end of the leader: one stream per worker, served by whichever member leads.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use oast_daemon::clock::timeout;
use oast_daemon::task::TaskKind;
use oast_daemon::telemetry::chain;
use oast_daemon::tls::{Name, Role};
use oast_model::bake::BakedImage;
use oast_model::codec;
use oast_model::fleet::Observation;
use oast_model::ids::{Seq, Token};
use oast_model::ledger::Command;
use oast_model::names::{FleetName, WorkerName};
use oast_model::principal::PrincipalKind;
use oast_model::schedule::Session;
use oast_model::task::{Outcome, Output};
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::from_worker::Message as From;
use oast_proto::worker::v1::to_worker::Message as To;
use oast_proto::worker::v1::workers_server::Workers;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Response, Status, Streaming};
use tracing::{info, warn};

use super::Leader;
use super::desk::{Connected, SessionId};
use super::reports::{Reports, Said};
use crate::notary;

/// Messages that may wait for a slow worker before its session is ended.
const OUTBOX: usize = 256;
/// How long a worker may take to say who it is.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Most tasks that a worker may offer to run side by side.
const SLOTS_MAX: u32 = 1024;
/// Most layer keys that are asked for at once.
const KEYS_MAX: usize = 1000;

pub(super) type Outbox = mpsc::Sender<Result<wire::ToWorker, Status>>;

/// The service, on every member.
#[derive(Clone, Debug)]
pub struct WorkerService {
    leader: Arc<Leader>,
}

impl WorkerService {
    /// Serves sessions for `leader`.
    pub fn new(leader: Arc<Leader>) -> WorkerService {
        WorkerService { leader }
    }

    /// Who asks: the worker of the certificate that the connection showed, or, without TLS,
    /// whoever has the workers' token.
    fn authenticate<T>(&self, request: &tonic::Request<T>) -> Result<Option<Name>, Status> {
        let shown = request.extensions().get::<Name>();
        if let Some(worker) = shown.filter(|shown| shown.role() == Role::Worker) {
            return Ok(Some(worker.clone()));
        }
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("a worker's token is needed"))?;
        let hash = blake3::hash(token.as_bytes()).to_hex().to_string();
        let view = self.leader.farm.view();
        match view.token(&hash) {
            Some(known) if known.principal.kind == PrincipalKind::Worker => Ok(None),
            Some(_) => Err(Status::permission_denied("this token is no worker's")),
            // No token is known before the first command, so this one is not wrong yet.
            None if view.farm().name.is_empty() => {
                Err(Status::unavailable("the farm is not initialised yet"))
            }
            None => Err(Status::unauthenticated("this token is not known here")),
        }
    }
}

#[tonic::async_trait]
impl Workers for WorkerService {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<wire::ToWorker, Status>> + Send>>;

    async fn session(
        &self,
        request: tonic::Request<Streaming<wire::FromWorker>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let shown = self.authenticate(&request)?;
        let (to, outbox) = mpsc::channel(OUTBOX);
        let leader = Arc::clone(&self.leader);
        let incoming = request.into_inner();
        self.leader
            .tasks
            .spawn("worker-session", TaskKind::BACKGROUND, async move {
                if let Err(status) = leader.serve_session(shown, incoming, &to).await {
                    // The worker is gone or will read it; either way nothing is left to do.
                    let _ = to.send(Err(status)).await;
                }
            });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbox))))
    }

    async fn find_layers(
        &self,
        request: tonic::Request<wire::FindLayersRequest>,
    ) -> Result<Response<wire::FindLayersResponse>, Status> {
        self.authenticate(&request)?;
        let keys = request.into_inner().keys;
        if keys.len() > KEYS_MAX {
            return Err(Status::invalid_argument(format!(
                "at most {KEYS_MAX} keys at once"
            )));
        }
        let view = self
            .leader
            .farm
            .read()
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let layers = keys
            .iter()
            .filter_map(|key| view.layers().get(&key.parse().ok()?))
            .map(|layer| codec::encode(layer).into())
            .collect();
        Ok(Response::new(wire::FindLayersResponse { layers }))
    }
}

impl Leader {
    async fn serve_session(
        self: &Arc<Self>,
        shown: Option<Name>,
        mut incoming: Streaming<wire::FromWorker>,
        to: &Outbox,
    ) -> Result<(), Status> {
        let Some(term) = self.farm.leading() else {
            let leader = self.farm.leader_address().unwrap_or_default();
            return say(to, To::Redirect(wire::Redirect { leader })).await;
        };
        let hello = match timeout(&*self.clock, HELLO_DEADLINE, incoming.next()).await {
            Ok(Some(Ok(wire::FromWorker {
                message: Some(From::Hello(hello)),
            }))) => hello,
            Ok(Some(Err(status))) => return Err(status),
            Ok(None) => return Ok(()),
            _ => return Err(Status::invalid_argument("a session begins with Hello")),
        };
        let worker = WorkerName::new(hello.name.clone())
            .map_err(|err| Status::invalid_argument(err.to_string()))?;
        if let Some(shown) = shown
            && shown.name() != worker.as_str()
        {
            let message = format!(
                "this connection shows the certificate of {}, and the worker calls itself `{worker}`: each has a certificate of its own",
                shown.short()
            );
            return Err(Status::permission_denied(message));
        }
        let incarnation = hello.incarnation;
        // In the log before anything is granted to it: its predecessor's leases end here.
        let command = Command::BeginIncarnation {
            worker: worker.clone(),
            incarnation,
        };
        self.farm
            .lead(command)
            .await
            .map_err(|err| Status::unavailable(err.to_string()))?;
        let id = self.admit(term, hello, worker.clone(), to)?;
        info!(worker_id = %worker, incarnation, "Worker connected.");
        let welcome = wire::Welcome {
            term,
            applied: self.farm.view().seq().as_u64(),
            heartbeat_ms: millis(self.options.heartbeat),
            lease_ttl_ms: millis(self.options.lease_ttl),
        };
        say(to, To::Welcome(welcome)).await?;
        self.wake.notify_one();
        let result = self.listen(id, &worker, incoming, to).await;
        self.office().disconnect(id);
        self.outboxes().remove(&id);
        self.wake.notify_one();
        info!(worker_id = %worker, incarnation, "Worker's session ended.");
        result
    }

    fn admit(
        self: &Arc<Self>,
        term: u64,
        hello: wire::Hello,
        worker: WorkerName,
        to: &Outbox,
    ) -> Result<SessionId, Status> {
        let session = Session {
            worker,
            incarnation: hello.incarnation,
            region: hello.region,
            arch: hello.arch,
            capabilities: hello.capabilities.into_iter().collect(),
            providers: hello.providers.into_iter().collect(),
            slots: hello.slots.min(SLOTS_MAX),
            cached: BTreeSet::new(),
            cordoned: false,
        };
        let connected = Connected {
            session,
            version: hello.version,
            connected_at: self.clock.wall(),
            told: hello.held.into_iter().map(Seq::from_u64).collect(),
            watching: Vec::new(),
        };
        let now = self.clock.monotonic();
        let mut office = self.office();
        let admitted = office.admit(term, self.farm.leading(), connected, now);
        if let Some(id) = admitted {
            // Under the office's lock, so that no turn finds the session without its outbox.
            self.outboxes().insert(id, to.clone());
        }
        self.perform(office.take_acts());
        admitted.ok_or_else(|| Status::unavailable("the leader changed"))
    }

    async fn listen(
        self: &Arc<Self>,
        id: SessionId,
        worker: &WorkerName,
        mut incoming: Streaming<wire::FromWorker>,
        to: &Outbox,
    ) -> Result<(), Status> {
        let mut reports = Reports::of(worker);
        let mut open = true;
        while open || reports.pending() {
            reports.propose(self.farm.handle());
            let message = tokio::select! {
                // Biased: acknowledgements make room, and there is an end to them.
                biased;
                acks = reports.settle(), if reports.under_way() => {
                    for ack in acks? {
                        say(to, To::Ack(ack)).await?;
                    }
                    self.wake.notify_one();
                    continue;
                }
                message = incoming.next(), if open && reports.has_room() => message,
            };
            let Some(message) = message else {
                open = false;
                continue;
            };
            let Some(message) = message?.message else {
                continue;
            };
            if !self.office().hear(id, self.clock.monotonic()) {
                return Err(Status::unavailable(
                    "this session was replaced or the leader changed",
                ));
            }
            match message {
                From::Hello(_) => return Err(Status::invalid_argument("Hello comes once")),
                From::Heartbeat(beat) => {
                    let cached = beat
                        .cached_layers
                        .iter()
                        .filter_map(|key| key.parse().ok())
                        .collect();
                    self.office().note_cache(id, cached);
                    say(
                        to,
                        To::Alive(wire::Alive {
                            number: beat.number,
                        }),
                    )
                    .await?;
                }
                From::Report(report) => {
                    let mut said = Said::read(&report)?;
                    if let Some(image) = said.image().cloned() {
                        // What the ledger knows of the layers is signed, so it must know all of them.
                        while !reports.idle() {
                            reports.propose(self.farm.handle());
                            for ack in reports.settle().await? {
                                say(to, To::Ack(ack)).await?;
                            }
                        }
                        said.end(self.vouch(worker, said.token(), image).await);
                    }
                    reports.push(said);
                }
                From::Observation(observation) => self.note_observation(id, observation),
            }
        }
        Ok(())
    }

    /// A bake's ending with the signed statement of where the image came from. Without a signature it is no image: that is our
    /// fault, so the task is tried again.
    async fn vouch(&self, worker: &WorkerName, token: Token, mut image: BakedImage) -> Outcome {
        image.provenance = None;
        let view = self.farm.view();
        if !view.has_version(notary::SINCE) {
            // A member of the version before would forget it, and its state would differ.
            image.bills = None;
            return Outcome::Succeeded(Box::new(Output::Baked(image)));
        }
        let case = notary::case(&view, token, worker, &image);
        drop(view);
        // None: the lease is over, and the ledger refuses the report.
        if let Some(case) = case {
            let (notary, baked) = (self.notary.clone(), image.clone());
            let signing = self
                .tasks
                .blocking("vouch", move || notary.vouch(case, &baked));
            let signed = match signing.await {
                Ok(Ok(address)) => Ok(address),
                Ok(Err(err)) => Err(chain(&err).to_string()),
                Err(lost) => Err(chain(&lost).to_string()),
            };
            match signed {
                Ok(address) => image.provenance = Some(address),
                Err(why) => {
                    let reason = format!("sign the image's provenance: {why}");
                    warn!(worker_id = %worker, lease_token = %token, reason, "An image was not signed.");
                    return Outcome::Errored { reason };
                }
            }
        }
        Outcome::Succeeded(Box::new(Output::Baked(image)))
    }

    fn note_observation(&self, id: SessionId, message: wire::Observation) {
        let (Ok(fleet), Ok(observation)) = (
            FleetName::new(message.fleet),
            codec::decode::<Observation>(&message.body),
        ) else {
            warn!("An observation could not be read.");
            return;
        };
        self.office().observe(id, fleet, observation);
        self.wake.notify_one();
    }
}

async fn say(to: &Outbox, message: To) -> Result<(), Status> {
    to.send(Ok(wire::ToWorker {
        message: Some(message),
    }))
    .await
    .map_err(|_| Status::cancelled("the worker left"))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
