//! Everything that can happen.

use std::sync::Arc;

use oast_coordinator::consensus::change::{ChangeError, Changed};
use oast_coordinator::consensus::replica::Note;
use oast_coordinator::consensus::roster::Letterhead;
use oast_model::ids::Token;
use oast_model::ledger::Request;
use raft::eraftpb::Message;

use crate::client::{Ask, Reply};
use crate::cloud::{Call, Refusal, Seen};
use crate::disk::Crash;
use crate::fault::Mend;
use crate::member::Waiter;
use crate::queue::Micros;
use crate::stream::{Packet, StreamId};

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A member's beat.
    Tick { member: u64, life: u32 },
    /// A member's disk has answered.
    Ready { member: u64, life: u32 },
    /// A leader's rest is over.
    Office { member: u64, life: u32, wake: u64 },
    /// A member's background work is over.
    Done { member: u64, life: u32, job: u64 },
    /// A decision of a member's office is proposed late, or once more by whoever leads.
    Decision {
        office: Option<(u64, u32)>,
        proposal: Box<(Waiter, Request)>,
    },
    /// A member dies.
    Die { member: u64, life: u32, how: Crash },
    /// A message between members.
    Peer {
        from: u64,
        life: u32,
        departs: Micros,
        letter: Arc<Letterhead>,
        message: Box<Message>,
    },
    /// What a member tells another one beside raft.
    Note {
        letter: Arc<Letterhead>,
        note: Box<Note>,
    },
    /// A member learns that another one does not take what it sends.
    Refused {
        member: u64,
        life: u32,
        why: &'static str,
    },
    /// The operator's next attempt is due.
    Operator { wake: u64 },
    /// The operator's call reaches a member.
    Change { member: u64, call: u64 },
    /// The operator is told what became of a call.
    Changed {
        call: u64,
        result: Box<Result<Changed, ChangeError>>,
    },
    /// A question to a member.
    Ask { member: u64, ask: Box<Ask> },
    /// An answer to a client.
    Reply {
        client: usize,
        call: u64,
        reply: Box<Reply>,
    },
    /// A client goes on.
    Client { client: usize, wake: u64 },
    /// Something on a stream.
    Packet {
        stream: StreamId,
        up: bool,
        packet: Box<Packet>,
    },
    /// A held stream may go on.
    Pump { stream: StreamId },
    /// An end learns that its stream is broken.
    Broken {
        stream: StreamId,
        worker: Option<usize>,
        member: Option<(u64, u32)>,
    },
    /// Something is due at a worker.
    WorkerWake {
        worker: usize,
        start: u32,
        wake: u64,
    },
    /// Work goes on.
    Work {
        worker: usize,
        start: u32,
        token: Token,
    },
    /// A call reaches the cloud.
    CallArrives {
        worker: usize,
        start: u32,
        token: Token,
        place: usize,
        number: u64,
        call: Box<Call>,
    },
    /// The cloud's answer reaches the caller.
    CallAnswered {
        worker: usize,
        start: u32,
        token: Token,
        place: usize,
        number: u64,
        answer: Box<Result<Seen, Refusal>>,
    },
    /// Something goes wrong.
    Fault,
    /// Something works again.
    Mend(Box<Mend>),
    /// Time to heal.
    Heal,
    /// Time to look whether everything has ended.
    Check,
}

/// Numbers that tell one event from another in the trace.
pub fn number_of(event: &Event) -> (u64, u64) {
    match event {
        Event::Tick { member, .. } => (1, *member),
        Event::Ready { member, .. } => (2, *member),
        Event::Office { member, wake, .. } => (3, member << 32 | wake),
        Event::Done { member, job, .. } => (4, member << 32 | job),
        Event::Die { member, .. } => (5, *member),
        Event::Peer {
            from,
            letter,
            message,
            ..
        } => (
            6,
            from << 48
                ^ letter.to << 40
                ^ message.term << 20
                ^ message.index
                ^ (message.commit << 8),
        ),
        Event::Ask { member, ask } => (8, member << 40 | ask.call),
        Event::Reply { client, call, .. } => (9, (*client as u64) << 40 | call),
        Event::Client { client, wake } => (10, (*client as u64) << 32 | wake),
        Event::Packet { stream, up, .. } => (12, stream << 1 | u64::from(*up)),
        Event::Pump { stream } => (13, *stream),
        Event::Broken { stream, .. } => (14, *stream),
        Event::WorkerWake { worker, wake, .. } => (15, (*worker as u64) << 32 | wake),
        Event::Work { worker, token, .. } => (16, (*worker as u64) << 48 ^ token.as_u64()),
        Event::CallArrives { number, token, .. } => (17, number << 24 ^ token.as_u64()),
        Event::CallAnswered { number, token, .. } => (18, number << 24 ^ token.as_u64()),
        Event::Fault => (19, 0),
        Event::Note { letter, note } => (25, letter.from << 48 ^ letter.to << 40 ^ note.wall_ms),
        Event::Refused { member, .. } => (26, *member),
        Event::Operator { wake } => (27, *wake),
        Event::Change { member, call } => (28, member << 40 | call),
        Event::Changed { call, result } => (29, call << 1 | u64::from(result.is_ok())),
        Event::Decision { office, .. } => (30, office.map_or(0, |(member, _)| member)),
        Event::Mend(_) => (21, 0),
        Event::Heal => (22, 0),
        Event::Check => (23, 0),
    }
}
