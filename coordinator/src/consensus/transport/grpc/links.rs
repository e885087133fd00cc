//! The side that calls peers: one stream each, kept open, and files on demand.
//!
//! A link's queue is bounded; when it is full the oldest batch goes, because the newest says most
//! and raft repeats what is missing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oast_daemon::clock::SharedClock;
use oast_daemon::task::{TaskKind, Tasks};
use oast_daemon::tls::{self, Dialer};
use oast_proto::peer::v1 as wire;
use oast_proto::peer::v1::peer_client::PeerClient;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Status};

use super::dial::{AddressError, PeerChannel, dial};
use super::{
    MAX_MESSAGE, REFUSAL, Wire, letter_to_wire, note_to_wire, propose_outcome, propose_request,
};
use crate::consensus::counters::{Counters, count};
use crate::consensus::handle::Handle;
use crate::consensus::machine::Machine;
use crate::consensus::replica::{Applied, Note, ProposeError};
use crate::consensus::roster::Letterhead;
use crate::consensus::transport::{FetchError, Transport};
use crate::store::snapshot::SnapshotOffer;

/// How links behave.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// Sent as `authorization` with every call; to be marked as sensitive.
    pub authorization: Option<AsciiMetadataValue>,
    /// How connections are made: in the clear, or with the member's certificate.
    pub dialer: Dialer,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// First pause after a lost connection...
    pub backoff: Duration,
    /// ...which doubles up to this.
    pub backoff_max: Duration,
    /// A silent connection is probed this often and given up after twice this.
    pub keep_alive: Duration,
    /// Bytes that may wait for one peer.
    pub queue_bytes: usize,
    /// Longest wait for a piece of a snapshot or of history.
    pub fetch_timeout: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        LinkOptions {
            authorization: None,
            dialer: Dialer::plain(),
            connect_timeout: Duration::from_secs(1),
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_millis(500),
            keep_alive: Duration::from_secs(2),
            queue_bytes: 64 << 20,
            fetch_timeout: Duration::from_secs(30),
        }
    }
}

/// Bytes after which a batch is sent as it is and another one begun.
const BATCH_BYTES: usize = 4 << 20;
/// What a note counts for in a queue.
const NOTE_BYTES: usize = 256;
/// Batches handed to HTTP/2 before it has taken the first.
const IN_FLIGHT: usize = 4;

struct Queue {
    waiting: Mutex<(VecDeque<(usize, wire::RaftBatch)>, usize)>,
    limit: usize,
    filled: Notify,
}

impl Queue {
    /// Returns how many messages had to go.
    fn push(&self, bytes: usize, batch: wire::RaftBatch) -> u64 {
        let mut guard = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, total) = &mut *guard;
        waiting.push_back((bytes, batch));
        *total += bytes;
        let mut dropped = 0;
        while *total > self.limit && waiting.len() > 1 {
            if let Some((bytes, batch)) = waiting.pop_front() {
                *total -= bytes;
                dropped += batch.messages.len() as u64;
            }
        }
        drop(guard);
        self.filled.notify_one();
        dropped
    }

    fn pop(&self) -> Option<wire::RaftBatch> {
        let mut guard = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, batch) = guard.0.pop_front()?;
        guard.1 -= bytes;
        Some(batch)
    }

    /// Cancel-safe: a batch is taken only at the moment of return.
    async fn next(&self) -> wire::RaftBatch {
        loop {
            let filled = self.filled.notified();
            if let Some(batch) = self.pop() {
                return batch;
            }
            filled.await;
        }
    }
}

#[derive(Clone)]
struct Peer {
    address: String,
    queue: Arc<Queue>,
    channel: PeerChannel,
    /// Ends the link when the member leaves or moves.
    stop: CancellationToken,
}

/// What a link tells its member: the connection to a peer was lost, and why.
type Lost = Arc<dyn Fn(u64, &Status) + Send + Sync>;

/// Connections to all peers, whoever they are at the moment.
pub struct Links {
    own: u64,
    peers: Mutex<BTreeMap<u64, Peer>>,
    lost: Lost,
    runtime: tokio::runtime::Handle,
    options: LinkOptions,
    tasks: Tasks,
    clock: SharedClock,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

fn client(channel: &PeerChannel) -> PeerClient<PeerChannel> {
    PeerClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

impl Links {
    /// Links without peers yet: [`Transport::members`] says who they are. Must be called inside
    /// the runtime.
    #[must_use]
    pub fn start<M: Machine>(
        handle: &Handle<M>,
        options: LinkOptions,
        tasks: &Tasks,
        clock: &SharedClock,
    ) -> Arc<Self> {
        let owner = handle.clone();
        Arc::new(Links {
            own: handle.member(),
            peers: Mutex::default(),
            lost: Arc::new(move |member, status| {
                owner.unreachable(member);
                let code = status.metadata().get(REFUSAL);
                if let Some(code) = code.and_then(|code| code.to_str().ok()) {
                    owner.refused(member, code);
                }
            }),
            runtime: tokio::runtime::Handle::current(),
            options,
            tasks: tasks.clone(),
            clock: clock.clone(),
            counters: handle.counters(),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<u64, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, member: u64, address: &str) -> Result<Peer, AddressError> {
        // The driver's thread is none of the runtime's.
        let _inside = self.runtime.enter();
        let channel = dial(address, &self.options)?;
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            limit: self.options.queue_bytes,
            filled: Notify::new(),
        });
        let link = Link {
            member,
            queue: queue.clone(),
            channel: channel.clone(),
            options: self.options.clone(),
            clock: self.clock.clone(),
        };
        let (lost, stop) = (self.lost.clone(), CancellationToken::new());
        let stopped = stop.clone();
        self.tasks
            .spawn("peer-link", TaskKind::BACKGROUND, async move {
                tokio::select! {
                    biased;
                    () = stopped.cancelled() => {}
                    () = link.run(move |member, status| lost(member, status)) => {}
                }
            });
        Ok(Peer {
            address: address.to_owned(),
            queue,
            channel,
            stop,
        })
    }

    fn peer(&self, member: u64) -> Result<Peer, FetchError> {
        self.peers()
            .get(&member)
            .cloned()
            .ok_or_else(|| FetchError::Interrupted {
                member,
                problem: "the group has no such member".to_owned(),
            })
    }

    /// Carries a command to another member, which is thought to lead.
    ///
    /// # Errors
    /// [`ProposeError`]; a connection that breaks leaves the outcome unknown.
    pub async fn propose_at<M: Wire>(
        &self,
        letter: Letterhead,
        command: &M::Command,
    ) -> Result<Applied<M::Answer>, ProposeError> {
        let Ok(peer) = self.peer(letter.to) else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        let request = propose_request::<M>(letter, command);
        match client(&peer.channel).propose(request).await {
            Ok(response) => propose_outcome::<M>(response.into_inner()),
            // Refused before it was proposed.
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(ProposeError::NotLeader { leader: None })
            }
            Err(status) => {
                tracing::debug!(%status, "A command was carried to the leader without an answer.");
                Err(ProposeError::Unknown)
            }
        }
    }
}

impl Transport for Links {
    fn members(&self, addresses: &BTreeMap<u64, String>) {
        let mut peers = self.peers();
        peers.retain(|member, peer| {
            let stays = addresses.get(member) == Some(&peer.address);
            if !stays {
                peer.stop.cancel();
            }
            stays
        });
        for (member, address) in addresses {
            if *member == self.own || peers.contains_key(member) {
                continue;
            }
            match self.begin(*member, address) {
                Ok(peer) => {
                    peers.insert(*member, peer);
                }
                Err(error) => {
                    let error = crate::consensus::chain(&error);
                    tracing::error!(member, error, "A member cannot be reached.");
                }
            }
        }
    }

    fn note(&self, letter: Letterhead, note: Note) {
        let Ok(peer) = self.peer(letter.to) else {
            return;
        };
        let batch = wire::RaftBatch {
            letter: Some(letter_to_wire(letter)),
            messages: Vec::new(),
            note: Some(note_to_wire(note)),
        };
        // A note weighs little and carries no message that could be missed.
        peer.queue.push(NOTE_BYTES, batch);
    }

    fn send(&self, letter: Letterhead, messages: Vec<Message>) {
        let Ok(peer) = self.peer(letter.to) else {
            return;
        };
        let letter = letter_to_wire(letter);
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut dropped = 0;
        let mut push = |messages: Vec<bytes::Bytes>, bytes| {
            let batch = wire::RaftBatch {
                letter: Some(letter.clone()),
                messages,
                note: None,
            };
            dropped += peer.queue.push(bytes, batch);
        };
        for message in messages {
            match message.write_to_bytes() {
                Ok(encoded) => {
                    bytes += encoded.len();
                    batch.push(bytes::Bytes::from(encoded));
                }
                Err(error) => tracing::error!(%error, "A raft message cannot be encoded."),
            }
            if bytes >= BATCH_BYTES {
                push(std::mem::take(&mut batch), std::mem::take(&mut bytes));
            }
        }
        if !batch.is_empty() {
            push(batch, bytes);
        }
        if dropped > 0 {
            count(&self.counters.messages_dropped, dropped);
        }
    }

    fn fetch_snapshot(
        &self,
        letter: Letterhead,
        offer: &SnapshotOffer,
        offset: u64,
        sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), FetchError> {
        let member = letter.to;
        let peer = self.peer(member)?;
        let request = wire::FetchSnapshotRequest {
            letter: Some(letter_to_wire(letter)),
            index: offer.position.index,
            term: offer.position.term,
            length: offer.length,
            checksum: offer.checksum.to_vec().into(),
            offset,
        };
        let failed = |status: Status| match status.code() {
            Code::NotFound => FetchError::Gone { member },
            _ => FetchError::Interrupted {
                member,
                problem: status.to_string(),
            },
        };
        self.runtime.block_on(async {
            let late = || Status::deadline_exceeded("no piece came in time");
            let wait = self.options.fetch_timeout;
            let mut client = client(&peer.channel);
            let call = limited(wait, client.fetch_snapshot(request)).await;
            let mut pieces = call
                .ok_or_else(late)
                .and_then(|r| r)
                .map_err(failed)?
                .into_inner();
            loop {
                let piece = limited(wait, pieces.message()).await;
                let Some(piece) = piece.ok_or_else(late).and_then(|r| r).map_err(failed)? else {
                    return Ok(());
                };
                let sum = blake3::hash(&piece.data);
                if !piece.checksum.is_empty() && sum.as_bytes()[..] != piece.checksum[..] {
                    return Err(FetchError::Interrupted {
                        member,
                        problem: "a piece was damaged on its way".to_owned(),
                    });
                }
                sink(&piece.data).map_err(|error| FetchError::Interrupted {
                    member,
                    problem: error.to_string(),
                })?;
            }
        })
    }

    fn fetch_history(
        &self,
        letter: Letterhead,
        first: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, FetchError> {
        let member = letter.to;
        let peer = self.peer(member)?;
        let request = wire::FetchHistoryRequest {
            letter: Some(letter_to_wire(letter)),
            first,
            max_bytes: max_bytes as u64,
        };
        let mut client = client(&peer.channel);
        let answer = self
            .runtime
            .block_on(limited(
                self.options.fetch_timeout,
                client.fetch_history(request),
            ))
            .unwrap_or_else(|| Err(Status::deadline_exceeded("no answer in time")));
        match answer {
            Ok(response) => Ok(response
                .into_inner()
                .records
                .into_iter()
                .map(|record| record.to_vec())
                .collect()),
            Err(status) => Err(FetchError::Interrupted {
                member,
                problem: status.to_string(),
            }),
        }
    }
}

/// Follows the real clock: it guards a real connection.
pub(super) async fn limited<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    oast_daemon::clock::timeout(&oast_daemon::clock::SystemClock, limit, work)
        .await
        .ok()
}

struct Link {
    member: u64,
    queue: Arc<Queue>,
    channel: PeerChannel,
    options: LinkOptions,
    clock: SharedClock,
}

impl Link {
    /// Keeps a stream open until the task is dropped; no error ends it.
    async fn run(self, lost: impl Fn(u64, &Status)) {
        let member = self.member;
        let mut backoff = self.options.backoff;
        let mut connected = true;
        let mut distrusted = None;
        loop {
            // A first batch is needed to know that there is something to say.
            let first = self.queue.next().await;
            let began = self.clock.monotonic();
            let status = self.stream(first).await;
            lost(member, &status);
            if self.clock.monotonic().saturating_sub(began) > self.options.backoff_max {
                backoff = self.options.backoff;
                connected = true;
                distrusted = None;
            }
            // Once per outage, not once per attempt.
            if connected {
                tracing::info!(member, %status, "The connection to a peer is lost.");
                connected = false;
            }
            self.distrust(&status, &mut distrusted);
            self.clock.sleep(backoff).await;
            backoff = (backoff * 2).min(self.options.backoff_max);
        }
    }

    /// Says once why two members do not believe each other: it lasts until somebody acts.
    fn distrust(&self, status: &Status, said: &mut Option<&'static str>) {
        let refused = tls::reason(status).cloned();
        let Some(refused) = refused.or_else(|| self.options.dialer.refusal()) else {
            return;
        };
        let kind = refused.problem.label();
        if refused.problem.is_distrust() && *said != Some(kind) {
            *said = Some(kind);
            tracing::error!(
                address = refused.address,
                "No connection to a member: {}.",
                refused.problem
            );
        }
    }

    /// Ends when the connection does.
    async fn stream(&self, first: wire::RaftBatch) -> Status {
        let (batches, stream) = mpsc::channel(IN_FLIGHT);
        let mut client = client(&self.channel);
        let call = client.deliver(ReceiverStream::new(stream));
        let mut call = std::pin::pin!(call);
        let feed = async {
            let mut batch = first;
            while batches.send(batch).await.is_ok() {
                batch = self.queue.next().await;
            }
        };
        tokio::select! {
            // The end of the call says why; the feed only notices that it ended.
            biased;
            ended = &mut call => match ended {
                Ok(_) => Status::unavailable("the peer ended the stream"),
                Err(status) => status,
            },
            () = feed => Status::unavailable("the stream broke"),
        }
    }
}
