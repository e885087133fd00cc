//! The farm's ledger as the members of the simulation run it: the real one, with a place to plant
//! bugs in.

use std::ops::Deref;

use bytes::Bytes;
use oast_coordinator::consensus::ledger::{LedgerMachine, LedgerView};
use oast_coordinator::consensus::machine::{
    Changes, EncodedCommand, LoadError, Machine, Position, Record, Undecodable, View,
};
use oast_model::ids::Token;
use oast_model::ledger::{Applied, Command, Ledger, Request};
use oast_model::principal::Principal;

use crate::bugs::{self, Bug, planted};

/// Tag of the table of remembered requests, first byte of its keys.
const REQUESTS_TAG: u8 = 16;

/// The ledger, with or without a planted bug.
#[derive(Debug)]
pub struct SimMachine(LedgerMachine);

/// Its view.
#[derive(Clone, Debug)]
pub struct SimView(LedgerView);

impl Deref for SimView {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.0
    }
}

impl View for SimView {
    fn records(&self) -> Box<dyn Iterator<Item = Record> + '_> {
        if planted(Bug::SnapshotWithoutRequests) {
            let kept = |record: &Record| record.0.first() != Some(&REQUESTS_TAG);
            return Box::new(self.0.records().filter(kept));
        }
        View::records(&self.0)
    }

    /// What a snapshot of this view announces.
    fn digest(&self) -> [u8; 32] {
        if planted(Bug::SnapshotWithoutRequests) {
            // Whoever forgot the table has forgotten it in the digest as well.
            let mut records = View::records(self).map(Ok);
            return SimMachine::load(&mut records).map_or([0; 32], |m| m.view().exact());
        }
        self.exact()
    }
}

impl SimView {
    /// The digest of all records, whatever is planted.
    pub fn exact(&self) -> [u8; 32] {
        View::digest(&self.0)
    }
}

impl SimMachine {
    /// The state before the first command.
    pub fn empty() -> SimMachine {
        SimMachine::load(&mut std::iter::empty()).expect("no records are a good state")
    }

    fn live_token(&self, view: &Ledger, ended: Token) -> Option<(Token, String)> {
        let task = view
            .tasks()
            .iter()
            .find(|(_, task)| task.attempts.iter().any(|attempt| attempt.token == ended))?;
        let token = task.1.token()?;
        let lease = view.leases().get(&token)?;
        Some((token, lease.worker.to_string()))
    }

    /// What a buggy ledger would have made of the command.
    fn twist(&mut self, at: Position, request: &mut Request) {
        if planted(Bug::NoDedup) {
            request.request_id = None;
        }
        if planted(Bug::StaleTokenAccepted)
            && let Command::Report { token, .. } = &mut request.command
        {
            let view = self.0.view();
            if view.leases().get(token).is_none()
                && let Some((live, worker)) = self.live_token(&view, *token)
            {
                *token = live;
                request.principal = Principal::worker(&worker);
            }
        }
        if planted(Bug::TwoLeases)
            && let Command::GrantLease { task, .. } = &request.command
        {
            let view = self.0.view();
            if let Some(token) = view.tasks().get(task).and_then(|task| task.token()) {
                let reason = "planted".to_owned();
                let end = Request {
                    principal: Principal::farm(),
                    request_id: None,
                    command: Command::ExpireLease { token, reason },
                };
                self.0.apply(at, end);
            }
        }
    }
}

impl Machine for SimMachine {
    type Command = Request;
    type Answer = Applied;
    type View = SimView;

    fn encode(command: &Request) -> EncodedCommand {
        LedgerMachine::encode(command)
    }

    fn decode(kind: u32, body: &Bytes) -> Result<Request, Undecodable> {
        LedgerMachine::decode(kind, body)
    }

    fn apply(&mut self, mut at: Position, mut command: Request) -> Applied {
        self.twist(at, &mut command);
        if planted(Bug::ApplyOrder) && bugs::member() == 2 && at.ordinal > 0 {
            // Stands for anything that depends on who applies: here, what the clock says.
            at.now_ms += u64::from(at.ordinal);
        }
        self.0.apply(at, command)
    }

    fn take_changes(&mut self) -> Changes {
        self.0.take_changes()
    }

    fn view(&self) -> SimView {
        SimView(self.0.view())
    }

    fn load(
        records: &mut dyn Iterator<Item = Result<Record, String>>,
    ) -> Result<SimMachine, LoadError> {
        LedgerMachine::load(records).map(SimMachine)
    }
}
