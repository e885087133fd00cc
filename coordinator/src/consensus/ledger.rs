//! The farm's ledger as the replicated machine.
//!
//! Commands stand in the log as MessagePack of [`Request`] under the command's kind; the
//! ledger decides, this only carries between the two vocabularies.

use std::ops::Deref;

use bytes::Bytes;
use oast_model::codec;
use oast_model::ids::Seq;
use oast_model::ledger::{
    Answer, Applied, Command, HistoryRecord, Ledger, Rejected, Request, VERSION,
};
use oast_model::names::{FleetName, TeamName};
use oast_model::resource::ResourceKind;
use oast_model::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::machine::{
    Changes, EncodedCommand, LoadError, Machine, Position, Record, Undecodable, View,
};
use super::transport::grpc::Wire;
use crate::feed::Feed;

/// The ledger and nothing else.
#[derive(Debug)]
pub struct LedgerMachine {
    ledger: Ledger,
    feed: Feed,
}

impl LedgerMachine {
    /// Goes on in a new epoch; see [`Ledger::begin_epoch`].
    pub(crate) fn begin_epoch(&mut self, epoch: u64) {
        self.ledger.begin_epoch(epoch);
    }
}

/// The ledger at one position, shared with every reader, and what changed last.
#[derive(Clone, Debug)]
pub struct LedgerView {
    ledger: Ledger,
    feed: Feed,
}

impl LedgerView {
    /// The newest changes.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }
}

impl Deref for LedgerView {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl View for LedgerView {
    fn records(&self) -> Box<dyn Iterator<Item = Record> + '_> {
        Box::new(self.ledger.records())
    }

    fn digest(&self) -> [u8; 32] {
        digest(&self.ledger)
    }
}

fn digest(ledger: &Ledger) -> [u8; 32] {
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(&ledger.digest().to_bytes());
    digest
}

/// A record of what is over, as the history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archived {
    /// When it went to history.
    pub seq: Seq,
    /// `r` for a run, `o` for a rollout.
    pub kind: u8,
    /// The sequence in its id.
    pub id: Seq,
    /// The encoded record.
    pub bytes: Vec<u8>,
}

impl From<HistoryRecord> for Archived {
    fn from(record: HistoryRecord) -> Archived {
        let HistoryRecord {
            seq,
            kind,
            id,
            bytes,
        } = record;
        Archived {
            seq,
            kind,
            id,
            bytes,
        }
    }
}

impl Machine for LedgerMachine {
    type Command = Request;
    type Answer = Applied;
    type View = LedgerView;

    fn encode(command: &Request) -> EncodedCommand {
        EncodedCommand {
            kind: command.command.kind(),
            body: codec::encode(command).into(),
        }
    }

    fn decode(kind: u32, body: &Bytes) -> Result<Request, Undecodable> {
        if kind == 0 || kind > Command::LAST_KIND {
            let problem = format!("kinds up to {} are known", Command::LAST_KIND);
            return Err(Undecodable { kind, problem });
        }
        let request: Request = codec::decode(body).map_err(|err| Undecodable {
            kind,
            problem: super::chain(&err),
        })?;
        if request.command.kind() != kind {
            let problem = format!("its body is of kind {}", request.command.kind());
            return Err(Undecodable { kind, problem });
        }
        if let Command::RaiseVersion { to } = request.command
            && to > VERSION
        {
            let problem = format!(
                "it raises the cluster version to {to}, versions up to {VERSION} are known"
            );
            return Err(Undecodable { kind, problem });
        }
        Ok(request)
    }

    fn apply(&mut self, at: Position, command: Request) -> Applied {
        let doomed = doomed_fleet(&self.ledger, &command.command);
        let now = Timestamp::from_millis(at.now_ms);
        let applied = self.ledger.apply(now, command);
        self.feed
            .note(&self.ledger, applied.seq, &applied.effects, doomed);
        applied
    }

    fn take_changes(&mut self) -> Changes {
        let changes = self.ledger.drain();
        Changes {
            records: changes
                .records
                .into_iter()
                .map(|change| (change.key, change.value))
                .collect(),
            history: changes
                .history
                .into_iter()
                .map(|record| codec::encode(&Archived::from(record)))
                .collect(),
            pruned: changes.pruned,
            digest: Some(digest(&self.ledger)),
        }
    }

    fn view(&self) -> LedgerView {
        LedgerView {
            ledger: self.ledger.clone(),
            feed: self.feed.clone(),
        }
    }

    fn load(
        records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<LedgerMachine, LoadError> {
        let mut ledger = Ledger::for_loading();
        let mut any = false;
        for record in records {
            let (key, value) = record.map_err(|problem| LoadError { problem })?;
            ledger.load(&key, &value).map_err(|err| LoadError {
                problem: super::chain(&err),
            })?;
            any = true;
        }
        if !any {
            ledger = Ledger::new();
        } else if !ledger.has_farm() {
            let problem = "the farm's own record is missing".to_owned();
            return Err(LoadError { problem });
        }
        ledger.finish_loading();
        let feed = Feed::new(ledger.seq());
        Ok(LedgerMachine { ledger, feed })
    }
}

/// The fleet that a command would delete, while it can still be seen.
fn doomed_fleet(ledger: &Ledger, command: &Command) -> Option<(FleetName, TeamName)> {
    let Command::DeleteResource {
        kind: ResourceKind::Fleet,
        name,
    } = command
    else {
        return None;
    };
    let fleet = ledger.fleets().get(name.as_str())?;
    Some((fleet.spec.name.clone(), fleet.spec.team.clone()))
}

impl Wire for LedgerMachine {
    fn encode_answer(answer: &Applied) -> Vec<u8> {
        // Effects stay with the leader: only it may act on them.
        codec::encode(&(answer.seq, &answer.result))
    }

    fn decode_answer(bytes: &[u8]) -> Result<Applied, String> {
        let (seq, result): (Seq, Result<Answer, Rejected>) =
            codec::decode(bytes).map_err(|err| super::chain(&err))?;
        Ok(Applied {
            seq,
            result,
            effects: Vec::new(),
        })
    }
}
