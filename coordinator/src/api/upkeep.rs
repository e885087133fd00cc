//! Looking after the farm as a whole: its snapshot as a stream, its cluster version.

use std::io::{self, Write};

use oast_model::ledger::Command;
use oast_model::principal::Verb;
use oast_proto::v1;
use oast_proto::v1::operator_client::OperatorClient;
use tonic::{Code, Response, Status};

use super::auth::Caller;
use super::{Answers, Api, Sender, status};
use crate::operations::save::{Maker, SaveError, save};
use crate::operations::version;

/// Bytes of a snapshot that travel in one message.
const PART_BYTES: usize = 256 << 10;

/// Collects what is written into messages of a stream. Waits when the client is slow.
struct Parts {
    sender: Sender<v1::SnapshotPart>,
    waiting: Vec<u8>,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let data = std::mem::take(&mut self.waiting).into();
        self.sender
            .blocking_send(Ok(v1::SnapshotPart { data }))
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone"))
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        if self.waiting.len() >= PART_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.send()
    }
}

impl Api {
    /// The snapshot of everything that was acknowledged before the call, or of what this member
    /// has.
    pub(super) async fn snapshot(
        &self,
        caller: &Caller,
        stale: bool,
    ) -> Result<Response<Answers<v1::SnapshotPart>>, Status> {
        caller.may(Verb::Manage, None)?;
        if !stale {
            self.farm.read().await?;
        }
        let handle = self.farm.handle().clone();
        let now_ms = self.farm.clock().wall().as_millis();
        let api = self.clone();
        Ok(Response::new(self.stream(
            "save-snapshot",
            |sender| async move {
                let written = api.blocking("save-snapshot", move || {
                    let status = handle.status().borrow().clone();
                    let maker = Maker {
                        status: &status,
                        now_ms,
                    };
                    let parts = Parts {
                        sender,
                        waiting: Vec::new(),
                    };
                    let mut parts = save(&handle.view(), &*handle.history(), &maker, parts)?;
                    parts.flush().map_err(SaveError::Write)
                });
                written.await?.map_err(|err| not_saved(&err))
            },
        )))
    }

    /// The cluster version as the leader sees it.
    pub(super) async fn version(
        &self,
        caller: &Caller,
    ) -> Result<Response<v1::FarmVersion>, Status> {
        caller.may(Verb::View, None)?;
        if let Some(leader) = self.elsewhere(caller)? {
            let asked = self.pass_on(v1::GetVersionRequest {}, caller)?;
            return OperatorClient::new(leader).get_version(asked).await;
        }
        let view = self.farm.read().await?;
        let farm = view.farm();
        let members = version::members(&self.farm);
        Ok(Response::new(v1::FarmVersion {
            version: farm.version,
            held: farm.version_held,
            next: version::reachable(&members).max(farm.version),
            members: members
                .into_iter()
                .map(|(member, supported)| v1::MemberVersion {
                    member,
                    supported: supported.unwrap_or(0),
                })
                .collect(),
        }))
    }

    /// Holds the version or lets it go.
    pub(super) async fn hold(
        &self,
        caller: &Caller,
        asked: v1::HoldVersionRequest,
    ) -> Result<Response<v1::FarmVersion>, Status> {
        let id = Some(asked.request_id).filter(|id| !id.is_empty());
        let command = Command::HoldVersion { held: asked.held };
        self.write(caller, id, command).await?;
        self.version(caller).await
    }
}

fn not_saved(err: &SaveError) -> Status {
    match err {
        SaveError::Empty => status::error(Code::FailedPrecondition, "WRONG_STATE", err.to_string()),
        SaveError::Incomplete { .. } => {
            status::error(Code::Unavailable, "INCOMPLETE", err.to_string())
        }
        err => status::internal(err),
    }
}
