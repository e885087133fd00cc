//! What a member does beside consensus and office: raises the cluster version when it leads and
//! everybody supports more, as `operations/version.rs` does it, and takes no more than its disk can
//! hold, as `consensus/handle.rs` and `operations/space.rs` do it.

use oast_coordinator::consensus::replica::ProposeError;
use oast_coordinator::leader::office::Key;
use oast_coordinator::operations::space::heir;
use oast_coordinator::operations::version::reachable;
use oast_coordinator::store::space::Space;
use oast_model::ledger::{Command, Request};
use oast_model::principal::Principal;
use raft::eraftpb::{Message, MessageType};

use crate::bugs::{Bug, planted};
use crate::drive::Proposals;
use crate::event::Event;
use crate::member::{Input, Node, Waiter};
use crate::queue::{MS, Micros};
use crate::world::World;

/// Between two looks at the version and at the disk.
pub const LOOK: Micros = 200 * MS;

/// Whether taking this message would fill the disk.
pub fn brings(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppend => !message.get_entries().is_empty(),
        MessageType::MsgSnapshot => true,
        _ => false,
    }
}

impl World {
    /// Looks after the cluster version and the disk.
    pub fn keep(&mut self, id: u64, node: &mut Node) {
        let (supports, space) = (self.member(id).supports, self.member(id).space);
        let farm = node.view.farm();
        if farm.version > supports && !self.operator.removes(id) {
            let version = farm.version;
            self.violate(format!(
                "the farm went on to version {version}, member {id} supports {supports}"
            ));
            return;
        }
        if node.leading.is_none() {
            return;
        }
        let status = node.replica.status();
        if space != Space::Room {
            if let Some(heir) = heir(&status, |member| node.roster.has_room(member)) {
                self.coverage.fault("leader stepped aside");
                node.inbox.push(Input::Transfer(heir));
            }
            return;
        }
        let heard = node.roster.supported();
        let members = status.voters.iter().chain(&status.learners);
        let members = members.map(|member| (*member, heard.get(member).copied()));
        let to = match planted(Bug::VersionGuessed) {
            true => supports,
            false => reachable(&members.collect()).min(supports),
        };
        if !farm.name.is_empty() && !farm.version_held && to > farm.version {
            let request = Request {
                principal: Principal::farm(),
                request_id: None,
                command: Command::RaiseVersion { to },
            };
            let proposal = Box::new((Waiter::Nobody, request));
            node.inbox.push(Input::Propose(proposal));
        }
    }

    /// The office has decided something, which is proposed: at once as a rule.
    pub fn decided(&mut self, node: &mut Node, key: Key, request: Request) {
        // Seldom decisions more often, so that each is seen.
        let (again, late) = match request.command {
            // That somebody is silent is nothing that another leader could know.
            Command::ExpireLease { .. } => (0, 120),
            Command::FireCron { .. } => (300, 15),
            Command::ConcludeRollout { .. } | Command::BeginBatch(_) => (30, 30),
            _ => (8, 15),
        };
        if !self.healing && self.dice.chance(again) {
            // Whoever leads then proposes what was decided on an older state.
            self.coverage.fault("decision repeated");
            let proposal = Box::new((Waiter::Nobody, request.clone()));
            let at = self.now + self.dice.skewed(5 * MS, 8_000 * MS);
            let office = None;
            self.queue.put(at, Event::Decision { office, proposal });
        }
        let proposal = Box::new((Waiter::Office(key), request));
        if self.healing || !self.dice.chance(late) {
            node.inbox.push(Input::Propose(proposal));
            return;
        }
        // The driver is held up.
        self.coverage.fault("decision delayed");
        let at = self.now + self.dice.skewed(5 * MS, 2_000 * MS);
        let office = Some((node.id, self.member(node.id).life));
        self.queue.put(at, Event::Decision { office, proposal });
    }

    /// Proposals of a member that has no room.
    pub fn refuse(&mut self, id: u64, node: &mut Node, proposals: &mut Proposals) {
        for (ticket, _) in std::mem::take(proposals) {
            if let Some(waiter) = node.waiters.remove(&ticket) {
                self.coverage.fault("write refused for lack of room");
                self.answered(id, node, waiter, Err(ProposeError::NoSpace));
            }
        }
    }
}
