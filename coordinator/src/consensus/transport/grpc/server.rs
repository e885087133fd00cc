//! The side that peers call.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use oast_proto::peer::v1 as wire;
use oast_proto::peer::v1::peer_server;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::{
    MAX_MESSAGE, PROPOSE_MANY_MAX, REFUSAL, Wire, letter_from_wire, message_from_wire,
    note_from_wire, outcome_to_wire,
};
use crate::consensus::chain;
use crate::consensus::change::{Change, ChangeError, is_address};
use crate::consensus::handle::{Handle, ReceiveError, ServeError};
use crate::consensus::machine::EncodedCommand;
use crate::consensus::replica::ProposeError;
use crate::consensus::roster::Stranger;
use crate::store::identity::farm_of;
use crate::store::log::LogPosition;
use crate::store::snapshot::SnapshotOffer;

/// The `oast.peer.v1.Peer` service of one member.
#[derive(Debug)]
pub struct PeerServer<M: Wire> {
    handle: Handle<M>,
}

impl<M: Wire> PeerServer<M> {
    /// A tonic service to be added to the member's server.
    #[must_use]
    pub fn service(handle: Handle<M>) -> peer_server::PeerServer<Self> {
        peer_server::PeerServer::new(PeerServer { handle })
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

/// What nobody could apply must not reach the log, where it would stop every member.
fn checked<M: Wire>(command: wire::LoggedCommand) -> Result<EncodedCommand, Status> {
    M::decode(command.kind, &command.body)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(EncodedCommand {
        kind: command.kind,
        body: command.body,
    })
}

/// The sender learns by the code what to do about it.
fn stranger(from: u64, stranger: &Stranger) -> Status {
    tracing::warn!(from, %stranger, "A peer is refused.");
    let mut status = Status::failed_precondition(stranger.to_string());
    status
        .metadata_mut()
        .insert(REFUSAL, MetadataValue::from_static(stranger.code()));
    status
}

fn refused(error: &ServeError) -> Status {
    match error {
        ServeError::Stranger(stranger) => Status::failed_precondition(stranger.to_string()),
        ServeError::Gone => Status::not_found(error.to_string()),
        ServeError::Snapshot(_) | ServeError::State(_) => Status::internal(chain(error)),
    }
}

#[tonic::async_trait]
impl<M: Wire> peer_server::Peer for PeerServer<M> {
    async fn deliver(
        &self,
        request: Request<Streaming<wire::RaftBatch>>,
    ) -> Result<Response<wire::DeliverSummary>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            let letter = letter_from_wire(batch.letter);
            let messages: Option<Vec<_>> = batch
                .messages
                .iter()
                .map(|bytes| message_from_wire(bytes))
                .collect();
            let messages = messages
                .ok_or_else(|| Status::invalid_argument("a raft message cannot be read"))?;
            self.handle
                .receive(&letter, messages)
                .map_err(|error| match &error {
                    ReceiveError::Stranger(who) => stranger(letter.from, who),
                    ReceiveError::Stopped => Status::unavailable(error.to_string()),
                })?;
            if let Some(note) = batch.note {
                self.handle
                    .hear(&letter, note_from_wire(&note))
                    .map_err(|who| stranger(letter.from, &who))?;
            }
        }
        Ok(Response::new(wire::DeliverSummary {}))
    }

    type FetchSnapshotStream =
        Pin<Box<dyn Stream<Item = Result<wire::SnapshotChunk, Status>> + Send>>;

    async fn fetch_snapshot(
        &self,
        request: Request<wire::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let request = request.into_inner();
        let letter = letter_from_wire(request.letter);
        let offer = SnapshotOffer {
            position: LogPosition {
                index: request.index,
                term: request.term,
            },
            length: request.length,
            checksum: request
                .checksum
                .as_ref()
                .try_into()
                .map_err(|_| Status::invalid_argument("the checksum must have 32 bytes"))?,
        };
        let handle = self.handle.clone();
        let pieces = stream::try_unfold(request.offset, move |offset| {
            let piece = handle.snapshot_piece(&letter, &offer, offset);
            async move {
                let data = piece.map_err(|error| refused(&error))?;
                if data.is_empty() {
                    return Ok(None);
                }
                let next = offset + data.len() as u64;
                let chunk = wire::SnapshotChunk {
                    checksum: blake3::hash(&data).as_bytes().to_vec().into(),
                    data: data.into(),
                };
                Ok(Some((chunk, next)))
            }
        });
        Ok(Response::new(pieces.boxed()))
    }

    async fn fetch_history(
        &self,
        request: Request<wire::FetchHistoryRequest>,
    ) -> Result<Response<wire::FetchHistoryResponse>, Status> {
        let request = request.into_inner();
        let letter = letter_from_wire(request.letter);
        let max_bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
        let records = self
            .handle
            .history_piece(&letter, request.first, max_bytes)
            .map_err(|error| refused(&error))?;
        let records = records.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::FetchHistoryResponse { records }))
    }

    async fn propose(
        &self,
        request: Request<wire::ProposeRequest>,
    ) -> Result<Response<wire::ProposeResponse>, Status> {
        let request = request.into_inner();
        let letter = letter_from_wire(request.letter);
        self.handle
            .admit(&letter)
            .map_err(|s| Status::failed_precondition(s.to_string()))?;
        let command = request
            .command
            .ok_or_else(|| Status::invalid_argument("the command is missing"))?;
        let outcome = self.handle.propose_encoded(checked::<M>(command)?).await;
        Ok(Response::new(outcome_to_wire::<M>(outcome)))
    }

    async fn propose_many(
        &self,
        request: Request<wire::ProposeManyRequest>,
    ) -> Result<Response<wire::ProposeManyResponse>, Status> {
        let request = request.into_inner();
        let letter = letter_from_wire(request.letter);
        self.handle
            .admit(&letter)
            .map_err(|s| Status::failed_precondition(s.to_string()))?;
        let count = request.commands.len();
        if count > PROPOSE_MANY_MAX {
            return Err(Status::invalid_argument(format!(
                "at most {PROPOSE_MANY_MAX} commands at once, not {count}"
            )));
        }
        let commands = (0..)
            .zip(request.commands)
            .map(|(number, command)| Ok((number, checked::<M>(command)?)))
            .collect::<Result<Vec<_>, Status>>()?;
        let (sender, mut receiver) = tokio::sync::mpsc::channel(count.max(1));
        self.handle.propose_many(commands, &sender);
        drop(sender);
        let mut outcomes: Vec<_> = std::iter::repeat_with(|| None).take(count).collect();
        while let Some((number, outcome)) = receiver.recv().await {
            let place = usize::try_from(number).ok();
            if let Some(place) = place.and_then(|place| outcomes.get_mut(place)) {
                *place = Some(outcome);
            }
        }
        let outcomes = outcomes
            .into_iter()
            .map(|outcome| outcome_to_wire::<M>(outcome.unwrap_or(Err(ProposeError::Stopped))));
        Ok(Response::new(wire::ProposeManyResponse {
            outcomes: outcomes.collect(),
        }))
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let request = request.into_inner();
        let outcome = self.bind(request).await;
        let cluster_id = match &outcome {
            wire::join_response::Outcome::Member(_) => self.handle.cluster().to_owned(),
            wire::join_response::Outcome::Refused(_) => String::new(),
        };
        Ok(Response::new(wire::JoinResponse {
            cluster_id,
            outcome: Some(outcome),
        }))
    }
}

impl<M: Wire> PeerServer<M> {
    async fn bind(&self, request: wire::JoinRequest) -> wire::join_response::Outcome {
        use wire::join_response::Outcome;

        let refused = |problem: String, retry: bool| wire::JoinRefused {
            problem,
            retry,
            leader: String::new(),
        };
        let wire::JoinRequest {
            cluster_id,
            address,
            stamp,
        } = request;
        let farm = farm_of(self.handle.cluster());
        if cluster_id != farm {
            let problem = format!(
                "join farm {cluster_id}: this is farm {farm}; check `farm` and `join` in the configuration"
            );
            return Outcome::Refused(refused(problem, false));
        }
        if !is_address(&address) || stamp == 0 {
            let problem = format!("join at `{address}`: that is no host:port");
            return Outcome::Refused(refused(problem, false));
        }
        match self
            .handle
            .change("", Change::Join { address, stamp })
            .await
        {
            Ok(changed) => match changed.members.first() {
                Some(member) => Outcome::Member(*member),
                None => Outcome::Refused(refused("the group named no member".to_owned(), true)),
            },
            Err(error) => {
                let retry = !matches!(error, ChangeError::AnotherDirectory { .. });
                let leader = match &error {
                    ChangeError::NotLeader { leader } => self.address_of(*leader),
                    _ => String::new(),
                };
                Outcome::Refused(wire::JoinRefused {
                    leader,
                    ..refused(error.to_string(), retry)
                })
            }
        }
    }

    /// Empty when it is not known.
    fn address_of(&self, member: Option<u64>) -> String {
        let status = self.handle.status();
        let status = status.borrow();
        let record = member.and_then(|member| status.members.get(&member));
        record.map(|r| r.address.clone()).unwrap_or_default()
    }
}
