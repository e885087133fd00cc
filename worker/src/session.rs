//! The worker's side of the stream to the leader.
//!
//! ```text
//! pick a member -> connect -> Hello{held} --Redirect--> connect to the leader
//!                                |
//!                             Welcome -> loop { messages, heartbeats, reports, observations }
//!                                |                        |
//!                                +---- silence, error ----+--> back off with jitter, for ever
//! ```
//!
//! The stream is level-triggered: whatever was lost with a connection is said again on the next.
//! Messages older than one already seen, by (term, applied), are dropped. Work stops only for
//! tokens that the leader says have ended; the loss of a session stops nothing here, because
//! shared work watches [`Contact`] by itself.

pub mod outbox;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::health::Part;
use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_daemon::telemetry::chain;
use oast_daemon::tls::{self, Dialer};
use oast_model::codec;
use oast_model::ids::Token;
use oast_model::task::Assignment;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::from_worker::Message as Up;
use oast_proto::worker::v1::to_worker::Message as Down;
use oast_proto::worker::v1::workers_client::WorkersClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tracing::{debug, error, info, warn};

use crate::bake::cache::Layers;
use crate::lease::Contact;
use crate::observe::Observer;
use crate::runner::Runner;
use outbox::Outbox;

/// Time for a connection to be made; members are near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time a member may take to say Welcome or Redirect.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause after a failed session.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a new leader is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Redirects followed without a pause; more means that members disagree.
const REDIRECTS_MAX: u32 = 3;
/// Messages that may wait for the network.
const SEND_QUEUE: usize = 64;
/// Time for a message to get into that queue; longer means that the connection is dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats without an answer after which the connection counts as dead.
const UNANSWERED_MAX: u32 = 4;
/// Largest message: a bake's assignment carries its recipe and layers.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// How often reports without an answer are looked at.
const REPEAT_CHECK: Duration = Duration::from_secs(1);
/// Shortest time between two observations that are sent.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(50);
/// Layers named in one heartbeat; beyond it a worker has more than any choice needs.
const CACHED_MAX: usize = 512;
/// Time the last reports may take when the worker stops.
const GOODBYE: Duration = Duration::from_secs(3);

/// What the worker says about itself.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Its name.
    pub name: String,
    /// Of this start.
    pub incarnation: u64,
    /// Where it is.
    pub region: String,
    /// Its machine.
    pub arch: String,
    /// Kinds of task it takes.
    pub capabilities: Vec<String>,
    /// Tasks side by side.
    pub slots: u32,
    /// Providers it reaches.
    pub providers: Vec<String>,
}

/// The session's parts; [`Session::run`] keeps one session after the other.
#[derive(Debug)]
pub struct Session {
    /// Who we are.
    pub introduction: Introduction,
    /// Members to ask.
    pub coordinators: Vec<SocketAddr>,
    /// Our access token, where we have no certificate.
    pub token: Option<Secret<String>>,
    /// How members are called.
    pub dialer: Dialer,
    /// For heartbeats, back-off and contact.
    pub clock: SharedClock,
    /// What runs here.
    pub runner: Runner,
    /// What must reach the log.
    pub outbox: Arc<Outbox>,
    /// What the leader is known to have heard.
    pub contact: Arc<Contact>,
    /// What is seen of fleets.
    pub observer: Observer,
    /// Layers at hand, which the leader considers when it chooses a worker.
    pub layers: Option<Arc<Layers>>,
    /// The channel to the leader while there is one, for other calls.
    pub channel: watch::Sender<Option<Channel>>,
    /// Our line on the health page.
    pub health: Part,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        err: tonic::transport::Error,
    },
    #[error("open a session with {address}")]
    Open {
        address: SocketAddr,
        #[source]
        err: Box<tonic::Status>,
    },
    #[error("the session with {address} broke")]
    Stream {
        address: SocketAddr,
        #[source]
        err: Box<tonic::Status>,
    },
    #[error("{address} ended the session")]
    Closed { address: SocketAddr },
    #[error("{address} is not the leader")]
    Redirected {
        address: SocketAddr,
        leader: Option<SocketAddr>,
    },
    #[error("{address} said nothing for too long")]
    Silent { address: SocketAddr },
    #[error("{address} is an old leader (term {term}, we know {newest})")]
    Old {
        address: SocketAddr,
        term: u64,
        newest: u64,
    },
    #[error("the worker stops")]
    Stopping,
}

/// What must outlive one session.
#[derive(Debug, Default)]
struct Memory {
    /// Highest (term, applied) seen.
    newest: (u64, u64),
    /// Counts sessions, so that each repeats its reports.
    sessions: u64,
    /// What kind of distrust was met last, so that it is said once.
    distrust: Option<&'static str>,
}

impl Session {
    /// Keeps a session until shutdown, then gives back what is held and says goodbye.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut memory = Memory::default();
        let mut wait = BACKOFF_MIN;
        let mut next = 0;
        let mut leader: Option<SocketAddr> = None;
        let mut redirects = 0;
        while !shutdown.is_cancelled() {
            let address = leader.take().unwrap_or_else(|| {
                let address = self.coordinators[next % self.coordinators.len()];
                next += 1;
                address
            });
            let began = self.clock.monotonic();
            let lost = tokio::select! {
                lost = self.one(address, &mut memory, &shutdown) => lost,
                // Connecting is not worth finishing; an open session says goodbye by itself.
                () = self.gone(&shutdown) => Lost::Stopping,
            };
            self.channel.send_replace(None);
            self.observer.pause();
            self.health.not_ready("no session with the leader");
            match lost {
                Lost::Stopping => break,
                Lost::Redirected {
                    leader: Some(to), ..
                } if redirects < REDIRECTS_MAX => {
                    debug!(%address, leader = %to, "Redirected.");
                    redirects += 1;
                    leader = Some(to);
                    continue;
                }
                other => {
                    let refused = tls::reason(&other).cloned();
                    if let Some(refused) = refused.or_else(|| self.dialer.refusal()) {
                        self.distrusted(address, &refused, &mut memory);
                    }
                    let reason = chain(&other).to_string();
                    debug!(%address, %reason, "No session; will try again.");
                }
            }
            redirects = 0;
            if self.clock.monotonic().saturating_sub(began) > BACKOFF_MAX * 2 {
                wait = BACKOFF_MIN;
            }
            tokio::select! {
                () = self.clock.sleep(jittered(wait)) => {}
                () = shutdown.cancelled() => {}
            }
            wait = (wait * 2).min(BACKOFF_MAX);
        }
        self.runner.drain().await;
    }

    /// One of the two ends does not believe the other: somebody has to do something.
    fn distrusted(&self, address: SocketAddr, refused: &tls::Refused, memory: &mut Memory) {
        let problem = &refused.problem;
        self.health.not_ready(problem.to_string());
        let kind = problem.is_distrust().then(|| problem.label());
        // Each member says the same, as long as it lasts.
        if kind.is_some() && memory.distrust != kind {
            error!(%address, "No connection to the farm: {problem}.");
        }
        memory.distrust = kind.or(memory.distrust);
    }

    /// Ends some time after shutdown, when a goodbye has had its chance.
    async fn gone(&self, shutdown: &CancellationToken) {
        shutdown.cancelled().await;
        self.clock.sleep(GOODBYE + Duration::from_millis(500)).await;
    }

    async fn one(
        &self,
        address: SocketAddr,
        memory: &mut Memory,
        shutdown: &CancellationToken,
    ) -> Lost {
        match self.open(address).await {
            Ok(open) => {
                memory.sessions += 1;
                memory.distrust = None;
                Live {
                    session: self,
                    address,
                    number: memory.sessions,
                    memory,
                    open,
                    ttl: Duration::ZERO,
                    heartbeat: Duration::from_millis(500),
                    heartbeats: Vec::new(),
                    answered: false,
                    beat: 0,
                }
                .run(shutdown)
                .await
            }
            Err(lost) => lost,
        }
    }

    async fn open(&self, address: SocketAddr) -> Result<Open, Lost> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|err| Lost::Connect { address, err })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(4))
            .keep_alive_while_idle(true);
        let connecting = endpoint.connect_with_connector(self.dialer.connector());
        let connecting = timeout(&*self.clock, CONNECT_TIMEOUT, connecting);
        let channel = match connecting.await {
            Ok(done) => done.map_err(|err| Lost::Connect { address, err })?,
            Err(_) => return Err(Lost::Silent { address }),
        };
        let (send, queue) = mpsc::channel(SEND_QUEUE);
        let sent_hello = self.clock.monotonic();
        let hello = Up::Hello(self.hello());
        // The queue is empty, so this cannot wait.
        let _ = send.try_send(wire::FromWorker {
            message: Some(hello),
        });
        let mut client = WorkersClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let request = authorized(self.token.as_ref(), ReceiverStream::new(queue));
        let answer = timeout(&*self.clock, WELCOME_TIMEOUT, client.session(request));
        let stream = match answer.await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                if status.code() == tonic::Code::Unauthenticated
                    || status.code() == tonic::Code::PermissionDenied
                {
                    error!(%address, reason = status.message(), "The farm refuses this worker; it needs a good token in token_file, or a certificate of its own name: `oast worker --join`.");
                }
                return Err(Lost::Open {
                    address,
                    err: Box::new(status),
                });
            }
            Err(_) => return Err(Lost::Silent { address }),
        };
        Ok(Open {
            channel,
            send,
            stream,
            sent_hello,
        })
    }

    fn hello(&self) -> wire::Hello {
        let me = self.introduction.clone();
        wire::Hello {
            name: me.name,
            incarnation: me.incarnation,
            region: me.region,
            arch: me.arch,
            capabilities: me.capabilities,
            slots: me.slots,
            held: self.held(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            providers: me.providers,
        }
    }

    fn cached_layers(&self) -> Vec<String> {
        let mut keys = self
            .layers
            .as_ref()
            .map(|layers| layers.keys())
            .unwrap_or_default();
        keys.truncate(CACHED_MAX);
        keys.iter().map(ToString::to_string).collect()
    }

    /// Tokens of running work and of reports that have no answer yet.
    fn held(&self) -> Vec<u64> {
        let mut held = self.runner.held();
        held.extend(self.outbox.tokens());
        held.sort_unstable();
        held.dedup();
        held.into_iter().map(Token::as_u64).collect()
    }
}

/// Adds the bearer token to a request, if there is one.
pub(crate) fn authorized<T>(token: Option<&Secret<String>>, body: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(body);
    let Some(token) = token else {
        return request;
    };
    let text = format!("Bearer {}", token.expose());
    match MetadataValue::try_from(text) {
        Ok(mut value) => {
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        // The member will refuse the call and name the missing token.
        Err(_) => error!("The access token has characters that no header can carry."),
    }
    request
}

/// Between half and one and a half times `wait`, so that workers do not come back all at once.
fn jittered(wait: Duration) -> Duration {
    let share = u32::try_from(random::number() % 1000).expect("below 1000");
    wait / 2 + wait * share / 1000
}

struct Open {
    channel: Channel,
    send: mpsc::Sender<wire::FromWorker>,
    stream: tonic::Streaming<wire::ToWorker>,
    sent_hello: Duration,
}

/// An open stream.
struct Live<'s> {
    session: &'s Session,
    address: SocketAddr,
    number: u64,
    memory: &'s mut Memory,
    open: Open,
    ttl: Duration,
    heartbeat: Duration,
    /// Heartbeats without an answer: number and when sent.
    heartbeats: Vec<(u64, Duration)>,
    /// This leader answers heartbeats.
    answered: bool,
    beat: u64,
}

impl Live<'_> {
    async fn run(mut self, shutdown: &CancellationToken) -> Lost {
        match self.welcome().await {
            Ok(()) => {}
            Err(lost) => return lost,
        }
        let session = self.session;
        info!(address = %self.address, term = self.memory.newest.0, "Session with the leader.");
        session.health.ready();
        session
            .channel
            .send_replace(Some(self.open.channel.clone()));
        session.observer.resume();
        let mut next_beat = session.clock.monotonic();
        let mut next_repeat = next_beat + REPEAT_CHECK;
        let mut next_observation = next_beat;
        let mut leaving = false;
        let mut left_by = Duration::MAX;
        loop {
            let now = session.clock.monotonic();
            let watch_fleets = now >= next_observation;
            let woken = tokio::select! {
                // Biased: what the leader says comes first, an end of a lease above all; then
                // heartbeats, which keep leases; reports and observations can wait a moment.
                biased;
                message = self.open.stream.message() => Woken::Message(message),
                () = session.clock.sleep_until(next_beat) => Woken::Beat,
                () = session.clock.sleep_until(next_repeat) => Woken::Reports,
                () = session.outbox.due() => Woken::Reports,
                () = session.observer.changed(), if watch_fleets => Woken::Observations,
                () = session.clock.sleep_until(next_observation), if !watch_fleets => Woken::Nothing,
                () = shutdown.cancelled(), if !leaving => Woken::Shutdown,
                () = session.outbox.empty(), if leaving => return Lost::Stopping,
                () = session.clock.sleep_until(left_by), if leaving => return Lost::Stopping,
            };
            let went = match woken {
                Woken::Message(Ok(Some(message))) => self.take(message).await,
                Woken::Message(Ok(None)) => Err(Lost::Closed {
                    address: self.address,
                }),
                Woken::Message(Err(status)) => Err(Lost::Stream {
                    address: self.address,
                    err: Box::new(status),
                }),
                Woken::Beat => {
                    next_beat = now + self.heartbeat;
                    self.beat().await
                }
                Woken::Reports => {
                    next_repeat = session.clock.monotonic() + REPEAT_CHECK;
                    self.reports().await
                }
                Woken::Observations => {
                    next_observation = session.clock.monotonic() + OBSERVE_INTERVAL;
                    self.observations().await
                }
                Woken::Shutdown => {
                    leaving = true;
                    left_by = session.clock.monotonic() + GOODBYE;
                    session.runner.drain().await;
                    Ok(())
                }
                Woken::Nothing => Ok(()),
            };
            if let Err(lost) = went {
                warn!(address = %self.address, reason = %chain(&lost), "The session with the leader has ended.");
                return lost;
            }
        }
    }

    /// The first message decides whether this member leads.
    async fn welcome(&mut self) -> Result<(), Lost> {
        let address = self.address;
        let first = timeout(
            &*self.session.clock,
            WELCOME_TIMEOUT,
            self.open.stream.message(),
        );
        let message = match first.await {
            Ok(Ok(Some(message))) => message.message,
            Ok(Ok(None)) => return Err(Lost::Closed { address }),
            Ok(Err(status)) => {
                return Err(Lost::Stream {
                    address,
                    err: Box::new(status),
                });
            }
            Err(_) => return Err(Lost::Silent { address }),
        };
        match message {
            Some(Down::Welcome(welcome)) => {
                let newest = self.memory.newest;
                if (welcome.term, welcome.applied) < newest {
                    return Err(Lost::Old {
                        address,
                        term: welcome.term,
                        newest: newest.0,
                    });
                }
                self.memory.newest = (welcome.term, welcome.applied);
                self.ttl = Duration::from_millis(u64::from(welcome.lease_ttl_ms));
                self.heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms.max(10)));
                Ok(())
            }
            Some(Down::Redirect(redirect)) => Err(Lost::Redirected {
                address,
                leader: redirect.leader.parse().ok(),
            }),
            _ => Err(Lost::Closed { address }),
        }
    }

    async fn take(&mut self, message: wire::ToWorker) -> Result<(), Lost> {
        let session = self.session;
        match message.message {
            Some(Down::Assignments(assignments)) => {
                let at = (assignments.term, assignments.applied);
                if at < self.memory.newest {
                    debug!(term = at.0, applied = at.1, "Dropped an older message.");
                    return Ok(());
                }
                self.memory.newest = at;
                for token in assignments.ended {
                    let token = Token::from_u64(token);
                    session.runner.end(token);
                    session.outbox.discard(token);
                }
                for assignment in assignments.begin {
                    match codec::decode::<Assignment>(&assignment.spec) {
                        Ok(assignment) => session.runner.begin(assignment),
                        Err(err) => {
                            error!(lease_token = assignment.token, error = %chain(&err), "An assignment cannot be read; this worker is older than the leader.");
                        }
                    }
                }
                // Only now: the leader has answered our Hello with everything that had ended.
                session.contact.heard(self.open.sent_hello, self.ttl);
            }
            Some(Down::Ack(ack)) => {
                let refused = ack.seq == 0;
                if let Some(settled) = session.outbox.settle(ack.number, refused) {
                    if settled.unwanted {
                        warn!(lease_token = %settled.token, reason = ack.refused, "A report was refused; its work stops.");
                        session.runner.end(settled.token);
                    }
                    if let Some(sent) = settled.sent {
                        session.contact.heard(sent, self.ttl);
                    }
                }
            }
            Some(Down::Alive(alive)) => {
                self.answered = true;
                if let Some((_, sent)) = self
                    .heartbeats
                    .iter()
                    .find(|(number, _)| *number == alive.number)
                {
                    session.contact.heard(*sent, self.ttl);
                }
                self.heartbeats.retain(|(number, _)| *number > alive.number);
            }
            Some(Down::Observe(observe)) => session.observer.watch(observe.fleets),
            Some(Down::Redirect(redirect)) => {
                return Err(Lost::Redirected {
                    address: self.address,
                    leader: redirect.leader.parse().ok(),
                });
            }
            Some(Down::Welcome(_)) | None => {}
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), Lost> {
        let unanswered = u32::try_from(self.heartbeats.len()).unwrap_or(u32::MAX);
        if self.answered && unanswered >= UNANSWERED_MAX {
            return Err(Lost::Silent {
                address: self.address,
            });
        }
        self.beat += 1;
        self.heartbeats
            .push((self.beat, self.session.clock.monotonic()));
        if !self.answered {
            // A leader that never answers must not make this grow.
            let old = self.heartbeats.len().saturating_sub(64);
            self.heartbeats.drain(..old);
        }
        let heartbeat = wire::Heartbeat {
            held: self.session.held(),
            cached_layers: self.session.cached_layers(),
            number: self.beat,
        };
        self.send(Up::Heartbeat(heartbeat)).await
    }

    async fn reports(&mut self) -> Result<(), Lost> {
        let now = self.session.clock.monotonic();
        for report in self.session.outbox.take_due(self.number, now) {
            self.send(Up::Report(report)).await?;
        }
        Ok(())
    }

    async fn observations(&mut self) -> Result<(), Lost> {
        for observation in self.session.observer.take() {
            self.send(Up::Observation(observation)).await?;
        }
        Ok(())
    }

    async fn send(&mut self, message: Up) -> Result<(), Lost> {
        let address = self.address;
        let message = wire::FromWorker {
            message: Some(message),
        };
        let sending = self.open.send.send(message);
        match timeout(&*self.session.clock, SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Lost::Closed { address }),
            Err(_) => Err(Lost::Silent { address }),
        }
    }
}

enum Woken {
    Message(Result<Option<wire::ToWorker>, tonic::Status>),
    Beat,
    Reports,
    Observations,
    Shutdown,
    Nothing,
}
