//! A member's end of the workers' streams, as `leader/sessions.rs` serves it: Hello is recorded in
//! the log before anything is granted, then one message after the other; a report holds up what
//! was said after it until it has its answer.

use std::collections::BTreeSet;

use oast_coordinator::consensus::machine::Machine as _;
use oast_coordinator::consensus::replica::{Applied, ProposeError};
use oast_coordinator::leader::desk::Connected;
use oast_model::codec;
use oast_model::ids::Token;
use oast_model::ledger::{Applied as Decided, Command, Rejected, Request};
use oast_model::principal::Principal;
use oast_model::schedule::Session;
use oast_model::task::Report;
use oast_proto::worker::v1 as wire;

use crate::drive::Proposals;
use crate::machine::SimMachine;
use crate::member::{Node, Reception, Waiter};
use crate::recipe::REGIONS;
use crate::stream::{Down, StreamId, Up};
use crate::world::World;

impl World {
    /// A worker said something.
    pub fn said(
        &mut self,
        id: u64,
        node: &mut Node,
        stream: StreamId,
        up: Up,
        proposals: &mut Proposals,
    ) {
        if let Up::Hello { .. } = up {
            self.greeted(id, node, stream, up, proposals);
            return;
        }
        let Some(reception) = node.receptions.get_mut(&stream) else {
            return;
        };
        reception.queue.push_back(up);
        self.listen(id, node, stream, proposals);
    }

    fn greeted(
        &mut self,
        id: u64,
        node: &mut Node,
        stream: StreamId,
        up: Up,
        proposals: &mut Proposals,
    ) {
        let Some(term) = node.leading else {
            let leader = node.replica.leader().filter(|leader| *leader != id);
            self.say_down(stream, Down::Redirect(leader));
            self.close_down(stream);
            return;
        };
        let Up::Hello {
            name, incarnation, ..
        } = &up
        else {
            return;
        };
        let request = Request {
            principal: Principal::farm(),
            request_id: None,
            command: Command::BeginIncarnation {
                worker: name.clone(),
                incarnation: *incarnation,
            },
        };
        node.receptions.insert(
            stream,
            Reception {
                waits: true,
                hello: Some(up),
                ..Reception::default()
            },
        );
        let ticket = node.ticket(Waiter::Hello(stream, term));
        proposals.push((ticket, SimMachine::encode(&request)));
    }

    /// The worker's start is in the log, or is not.
    pub fn admit(&mut self, id: u64, node: &mut Node, stream: StreamId, term: u64, recorded: bool) {
        let hello = node
            .receptions
            .get_mut(&stream)
            .and_then(|reception| reception.hello.take());
        let Some(Up::Hello {
            name,
            incarnation,
            slots,
            provider,
            held,
        }) = hello
        else {
            return;
        };
        let kinds = ["source", "bake", "test", "publish", "batch"];
        let kinds = kinds
            .into_iter()
            .filter(|kind| provider || *kind != "batch");
        let worker = self.streams.get(&stream).map_or(0, |stream| stream.worker);
        let session = Session {
            worker: name,
            incarnation,
            // Every region that a run may publish in has a worker.
            region: format!("region-{}", worker % REGIONS),
            arch: "amd64".to_owned(),
            capabilities: kinds.map(str::to_owned).collect(),
            providers: provider.then(|| "local".to_owned()).into_iter().collect(),
            slots,
            cached: BTreeSet::new(),
            cordoned: false,
        };
        let now = self.now;
        let member = self.member(id);
        let (now, wall) = (member.monotonic(now), member.wall(now));
        let connected = Connected {
            session,
            version: "sim".to_owned(),
            connected_at: wall,
            told: held.into_iter().collect(),
            watching: Vec::new(),
        };
        let admitted = match recorded {
            true => node.office.admit(term, node.leading, connected, now),
            false => None,
        };
        self.perform(node);
        let Some(session) = admitted else {
            node.receptions.remove(&stream);
            self.close_down(stream);
            return;
        };
        node.streams.insert(session, stream);
        if let Some(reception) = node.receptions.get_mut(&stream) {
            reception.session = Some(session);
            reception.waits = false;
        }
        let welcome = Down::Welcome {
            term,
            applied: node.view.seq().as_u64(),
            ttl: self.plan.lease_ttl,
            heartbeat: self.plan.heartbeat,
        };
        self.say_down(stream, welcome);
        node.look = true;
        self.listen_later(id, node, stream);
    }

    /// Goes on with what was said meanwhile; a report is proposed in the next turn.
    fn listen_later(&mut self, id: u64, node: &mut Node, stream: StreamId) {
        let mut proposals = Proposals::new();
        self.listen(id, node, stream, &mut proposals);
        node.late_proposals.append(&mut proposals);
        if !node.late_proposals.is_empty() {
            node.inbox.push(crate::member::Input::Tick);
        }
    }

    fn listen(&mut self, id: u64, node: &mut Node, stream: StreamId, proposals: &mut Proposals) {
        let now = self.now;
        let now = self.member(id).monotonic(now);
        loop {
            let Some(reception) = node.receptions.get_mut(&stream) else {
                return;
            };
            if reception.waits {
                return;
            }
            let (Some(up), Some(session)) = (reception.queue.pop_front(), reception.session) else {
                return;
            };
            if !node.office.hear(session, now) {
                self.end_reception(node, stream);
                return;
            }
            match up {
                Up::Hello { .. } => {}
                Up::Heartbeat { number, cached } => {
                    node.office
                        .note_cache(session, cached.into_iter().collect());
                    self.say_down(stream, Down::Alive(number));
                }
                Up::Observation(fleet, seen) => {
                    node.office.observe(session, fleet, seen);
                    node.look = true;
                }
                Up::Report(report) => {
                    reception.waits = true;
                    let request = report_request(node.office.desk(), session, &report);
                    let Some(request) = request else {
                        self.end_reception(node, stream);
                        return;
                    };
                    let ticket = node.ticket(Waiter::Report(stream, report.number));
                    proposals.push((ticket, SimMachine::encode(&request)));
                }
            }
        }
    }

    /// A report has its answer. Without one the session ends: the worker repeats it elsewhere.
    pub fn recorded(
        &mut self,
        id: u64,
        node: &mut Node,
        stream: StreamId,
        number: u64,
        result: Result<Applied<Decided>, ProposeError>,
    ) {
        let Some(reception) = node.receptions.get_mut(&stream) else {
            return;
        };
        reception.waits = false;
        let Ok(applied) = result else {
            self.end_reception(node, stream);
            return;
        };
        let refused = applied.answer.result.is_err();
        if matches!(applied.answer.result, Err(Rejected::StaleToken { .. })) {
            self.coverage.fault("late report refused");
        }
        self.say_down(stream, Down::Ack { number, refused });
        node.look = true;
        self.listen_later(id, node, stream);
    }

    fn end_reception(&mut self, node: &mut Node, stream: StreamId) {
        self.close_down(stream);
        self.reception_lost(node, stream);
    }

    /// A stream is over.
    pub fn reception_lost(&mut self, node: &mut Node, stream: StreamId) {
        let Some(reception) = node.receptions.remove(&stream) else {
            return;
        };
        if let Some(session) = reception.session {
            node.office.disconnect(session);
            node.streams.remove(&session);
            node.look = true;
        }
    }
}

fn report_request(
    desk: &oast_coordinator::leader::desk::Desk,
    session: u64,
    report: &wire::Report,
) -> Option<Request> {
    let (_, connected) = desk.sessions().find(|(id, _)| *id == session)?;
    let body: Report = codec::decode(&report.body).ok()?;
    Some(Request {
        principal: Principal::worker(connected.session.worker.as_str()),
        request_id: None,
        command: Command::Report {
            token: Token::from_u64(report.token),
            report: Box::new(body),
        },
    })
}
