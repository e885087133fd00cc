//! How the rest of the coordinator talks to its member of the group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use arc_swap::ArcSwap;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::{mpsc, oneshot, watch};

use super::change::{Change, ChangeError, Changed};
use super::counters::{Counters, count};
use super::machine::{EncodedCommand, Machine};
use super::replica::{Applied, Note, ProposeError, ReadError, Role, Status};
use super::roster::{Letterhead, Roster, Stranger};
use crate::store::snapshot::{Shelf, SnapshotError, SnapshotOffer};
use crate::store::space::{Gauge, Space};
use crate::store::state::{HistoryReader, HistoryTail, Mark, StateError};

/// The state after an applied entry. What an acknowledged command did is visible in the view
/// published at the time of the acknowledgement.
#[derive(Debug)]
pub struct Published<V> {
    /// The state.
    pub view: V,
    /// How far it was applied.
    pub mark: Mark,
    /// End of the history that belongs to it.
    pub history: HistoryTail,
}

pub(crate) type ProposeReply<M> =
    oneshot::Sender<Result<Applied<<M as Machine>::Answer>, ProposeError>>;

/// What became of one of many commands that were proposed together, under its caller's number.
pub type Outcome<M> = (u64, Result<Applied<<M as Machine>::Answer>, ProposeError>);

/// Commands that are proposed together. Those that nobody took have an outcome all the same.
pub(crate) struct Many<M: Machine> {
    commands: Vec<(u64, EncodedCommand)>,
    reply: mpsc::Sender<Outcome<M>>,
}

impl<M: Machine> Many<M> {
    pub(crate) fn take(&mut self) -> (Vec<(u64, EncodedCommand)>, &mpsc::Sender<Outcome<M>>) {
        (std::mem::take(&mut self.commands), &self.reply)
    }

    fn refuse(&mut self, error: ProposeError) {
        for (number, _) in self.commands.drain(..) {
            // A caller that has gone does not want to know.
            let _ = self.reply.try_send((number, Err(error)));
        }
    }
}

impl<M: Machine> Drop for Many<M> {
    fn drop(&mut self) {
        self.refuse(ProposeError::Stopped);
    }
}

/// Everything the driver's thread reacts to.
pub(crate) enum Event<M: Machine> {
    ProposeMany(Many<M>),
    Propose {
        command: EncodedCommand,
        reply: ProposeReply<M>,
    },
    Read {
        reply: oneshot::Sender<Result<u64, ReadError>>,
    },
    Receive(Vec<Message>),
    LearnStamps(BTreeMap<u64, u64>),
    Unreachable(u64),
    Campaign,
    Transfer(u64),
    Change {
        request_id: String,
        change: Change,
        reply: oneshot::Sender<Result<Changed, ChangeError>>,
    },
    /// A member said what the group does not know of it yet.
    Introduce {
        member: u64,
        stamp: u64,
        address: String,
    },
    Hear {
        from: u64,
        note: Note,
    },
    /// Background work has finished; its result is in the driver's inbox.
    Wake,
    /// This member must stop for good, and why.
    Halt(String),
    Stop,
}

/// What the driver's thread and the handles share.
pub(crate) struct Shared<M: Machine> {
    pub(crate) queue: SyncSender<Event<M>>,
    pub(crate) roster: Roster,
    pub(crate) published: ArcSwap<Published<M::View>>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) shelf: Shelf,
    pub(crate) history: ArcSwap<HistoryHolder>,
    pub(crate) counters: Arc<Counters>,
}

/// Whether taking this message would fill our disk.
fn brings(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppend => !message.get_entries().is_empty(),
        MessageType::MsgSnapshot => true,
        _ => false,
    }
}

/// A sized box for a reader, as [`ArcSwap`] wants it.
pub(crate) struct HistoryHolder(pub(crate) Arc<dyn HistoryReader>);

/// Bytes of a snapshot file that a peer gets in one piece.
pub const PIECE_BYTES: usize = 1 << 20;
/// Bytes of history that a peer gets at once.
pub const HISTORY_BYTES: usize = 1 << 20;

/// A batch is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The sender is refused.
    #[error(transparent)]
    Stranger(Stranger),
    /// Our driver has ended; the sender has to find whoever comes after us.
    #[error("take a batch: this member is stopping")]
    Stopped,
}

/// A peer's request for a file that is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The peer is refused.
    #[error(transparent)]
    Stranger(Stranger),
    /// It is no longer here.
    #[error("serve a snapshot: it is no longer here")]
    Gone,
    /// The file cannot be read.
    #[error("serve a snapshot")]
    Snapshot(#[source] SnapshotError),
    /// The history cannot be read.
    #[error("serve history")]
    State(#[source] StateError),
}

/// A member of the group. Cheap to clone; usable from any thread.
pub struct Handle<M: Machine> {
    shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle {
            shared: self.shared.clone(),
        }
    }
}

impl<M: Machine> std::fmt::Debug for Handle<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("member", &self.member())
            .finish_non_exhaustive()
    }
}

impl<M: Machine> Handle<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>) -> Self {
        Handle { shared }
    }

    /// Our raft id.
    #[must_use]
    pub fn member(&self) -> u64 {
        self.shared.roster.identity().member
    }

    /// Proposes a command and waits until it is applied here.
    ///
    /// Dropping the future gives up the answer, not the command.
    ///
    /// # Errors
    /// [`ProposeError`]; only [`ProposeError::Unknown`] and [`ProposeError::Stopped`] leave open
    /// whether the command was applied.
    pub async fn propose(&self, command: &M::Command) -> Result<Applied<M::Answer>, ProposeError> {
        self.propose_encoded(M::encode(command)).await
    }

    /// [`Handle::propose`] for a command that is encoded already. It must be one that
    /// [`Machine::decode`] takes: any other stops every member.
    pub(crate) async fn propose_encoded(
        &self,
        command: EncodedCommand,
    ) -> Result<Applied<M::Answer>, ProposeError> {
        if self.shared.roster.space() != Space::Room {
            count(&self.shared.counters.proposals_refused, 1);
            return Err(ProposeError::NoSpace);
        }
        let (reply, answer) = oneshot::channel();
        let event = Event::Propose { command, reply };
        match self.shared.queue.try_send(event) {
            Ok(()) => answer.await.unwrap_or(Err(ProposeError::Stopped)),
            Err(TrySendError::Full(_)) => {
                count(&self.shared.counters.proposals_overloaded, 1);
                Err(ProposeError::Overloaded)
            }
            Err(TrySendError::Disconnected(_)) => Err(ProposeError::Stopped),
        }
    }

    /// Proposes many commands as one event, so that they share log entries and their fsync. The
    /// outcome of each goes to `outcomes` under its number, in the order of completion. Nothing
    /// here waits: `outcomes` has room for every command that is under way, and one without room
    /// is never told.
    ///
    /// Every command must be one that [`Machine::decode`] takes: any other stops every member.
    pub(crate) fn propose_many(
        &self,
        commands: Vec<(u64, EncodedCommand)>,
        outcomes: &mpsc::Sender<Outcome<M>>,
    ) {
        let mut many = Many {
            commands,
            reply: outcomes.clone(),
        };
        if self.shared.roster.space() != Space::Room {
            let refused = many.commands.len() as u64;
            count(&self.shared.counters.proposals_refused, refused);
            many.refuse(ProposeError::NoSpace);
            return;
        }
        // With an error of another kind the commands are dropped, which tells each proposer.
        if let Err(TrySendError::Full(Event::ProposeMany(mut many))) =
            self.shared.queue.try_send(Event::ProposeMany(many))
        {
            let refused = many.commands.len() as u64;
            count(&self.shared.counters.proposals_overloaded, refused);
            many.refuse(ProposeError::Overloaded);
        }
    }

    /// Waits until [`Handle::view`] shows at least everything that was acknowledged anywhere
    /// before the call. Works on every member.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_barrier(&self) -> Result<u64, ReadError> {
        let (reply, answer) = oneshot::channel();
        match self.shared.queue.try_send(Event::Read { reply }) {
            Ok(()) => answer.await.unwrap_or(Err(ReadError::Stopped)),
            Err(TrySendError::Full(_)) => Err(ReadError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(ReadError::Stopped),
        }
    }

    /// The newest state here; stale by as much as this member is behind.
    #[must_use]
    pub fn view(&self) -> Arc<Published<M::View>> {
        self.shared.published.load_full()
    }

    /// Changes whenever [`Handle::view`] does: the applied index.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    /// What this member knows about itself and the group.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// The term in which this member leads with the full state, if it does.
    #[must_use]
    pub fn leading(&self) -> Option<u64> {
        let status = self.shared.status.borrow();
        (status.role == Role::Leader).then_some(status.term)
    }

    /// The letterhead for a request of ours to a peer.
    #[must_use]
    pub fn letterhead(&self, to: u64) -> Letterhead {
        self.shared.roster.letterhead(to)
    }

    /// The highest cluster version that each member supports, as far as it was heard of.
    #[must_use]
    pub fn supported_versions(&self) -> BTreeMap<u64, u32> {
        self.shared.roster.supported()
    }

    /// Whether this peer said last that it has room on its disk.
    #[must_use]
    pub fn has_room(&self, member: u64) -> bool {
        self.shared.roster.has_room(member)
    }

    /// How much room we have ourselves.
    #[must_use]
    pub fn space(&self) -> Space {
        self.shared.roster.space()
    }

    /// From now on this gauge decides what is taken.
    pub fn watch_space(&self, gauge: Gauge) {
        self.shared.roster.watch_space(gauge);
    }

    /// Stops this member for good: it must not go on, and `reason` says why.
    pub fn halt(&self, reason: String) {
        self.tell(Event::Halt(reason));
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// The history on this member.
    #[must_use]
    pub fn history(&self) -> Arc<dyn HistoryReader> {
        self.shared.history.load().0.clone()
    }

    /// Stands for election now. Best effort.
    pub fn campaign(&self) {
        self.tell(Event::Campaign);
    }

    /// Hands leadership to another member if we have it. Best effort; watch [`Handle::status`].
    pub fn transfer_leadership(&self, to: u64) {
        self.tell(Event::Transfer(to));
    }

    /// Changes the group, if this member leads. Returns when the change is in force. Repeated with
    /// the same `request_id`, it answers the same.
    ///
    /// # Errors
    /// [`ChangeError`]; only [`ChangeError::Unknown`] and [`ChangeError::Stopped`] leave open
    /// whether it comes into force.
    pub async fn change(&self, request_id: &str, change: Change) -> Result<Changed, ChangeError> {
        let (reply, answer) = oneshot::channel();
        let event = Event::Change {
            request_id: request_id.to_owned(),
            change,
            reply,
        };
        match self.shared.queue.try_send(event) {
            Ok(()) => answer.await.unwrap_or(Err(ChangeError::Stopped)),
            Err(TrySendError::Full(_)) => Err(ChangeError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(ChangeError::Stopped),
        }
    }

    /// Farm that this member belongs to.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.shared.roster.identity().cluster
    }

    /// Takes a note from a peer.
    ///
    /// # Errors
    /// [`Stranger`].
    pub fn hear(&self, letter: &Letterhead, note: Note) -> Result<(), Stranger> {
        self.admit(letter)?;
        let from = letter.from;
        self.tell(Event::Hear { from, note });
        Ok(())
    }

    /// A peer does not accept us, for the reason with this [`Stranger::code`].
    pub fn refused(&self, by: u64, code: &str) {
        let member = self.member();
        let reason = match code {
            "removed" => super::replica::ReplicaError::Removed { member }.to_string(),
            "remade" => Stranger::WeAreRemade { ours: member }.to_string(),
            _ => return,
        };
        tracing::error!(by, reason, "A peer does not accept this member any more.");
        self.tell(Event::Halt(reason));
    }

    /// Takes a batch from the network. What does not fit into the queue is dropped.
    ///
    /// # Errors
    /// [`ReceiveError`]; the connection is to be closed with it.
    pub fn receive(&self, letter: &Letterhead, messages: Vec<Message>) -> Result<(), ReceiveError> {
        self.admit(letter).map_err(ReceiveError::Stranger)?;
        // On a full disk we follow no further: to the others that is a bad connection.
        let full = self.shared.roster.space() == Space::Full;
        let messages: Vec<Message> = messages
            .into_iter()
            .filter(|message| message.from == letter.from)
            .filter(|message| !(full && brings(message)))
            .collect();
        let count_of = messages.len() as u64;
        match self.shared.queue.try_send(Event::Receive(messages)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                count(&self.shared.counters.messages_dropped, count_of);
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => Err(ReceiveError::Stopped),
        }
    }

    /// Checks who writes, and remembers what the letter says about others.
    pub(crate) fn admit(&self, letter: &Letterhead) -> Result<(), Stranger> {
        match self.shared.roster.admit(letter) {
            Ok(news) => {
                if !news.stamps.is_empty() {
                    self.tell(Event::LearnStamps(news.stamps));
                }
                if news.introduce {
                    self.tell(Event::Introduce {
                        member: letter.from,
                        stamp: letter.stamp,
                        address: letter.address.clone(),
                    });
                }
                Ok(())
            }
            Err(stranger) => {
                count(&self.shared.counters.batches_refused, 1);
                if matches!(stranger, Stranger::WeAreRemade { .. }) {
                    self.tell(Event::Halt(stranger.to_string()));
                }
                Err(stranger)
            }
        }
    }

    /// The transport lost its connection to a peer.
    pub fn unreachable(&self, member: u64) {
        self.tell(Event::Unreachable(member));
    }

    /// A piece of a snapshot file for a peer; empty at its end.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn snapshot_piece(
        &self,
        letter: &Letterhead,
        offer: &SnapshotOffer,
        offset: u64,
    ) -> Result<Vec<u8>, ServeError> {
        self.admit(letter).map_err(ServeError::Stranger)?;
        self.shared
            .shelf
            .read(offer, offset, PIECE_BYTES)
            .map_err(ServeError::Snapshot)?
            .inspect(|piece| {
                let bytes = piece.len() as u64;
                count(&self.shared.counters.snapshot_bytes_sent, bytes);
            })
            .ok_or(ServeError::Gone)
    }

    /// History records for a peer; empty if we do not have `first`.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn history_piece(
        &self,
        letter: &Letterhead,
        first: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, ServeError> {
        self.admit(letter).map_err(ServeError::Stranger)?;
        self.history()
            .read(first, max_bytes.min(HISTORY_BYTES))
            .map_err(ServeError::State)
    }

    /// Asks the driver to end. Waiting callers get [`ProposeError::Stopped`].
    pub fn stop(&self) {
        self.tell(Event::Stop);
    }

    /// Best effort: a full queue means that the driver has more important things to do.
    fn tell(&self, event: Event<M>) {
        let important = matches!(event, Event::Stop | Event::Halt(_));
        match self.shared.queue.try_send(event) {
            Err(TrySendError::Full(event)) if important => {
                // The driver empties its queue all the time, so this waits for moments.
                let _ = self.shared.queue.send(event);
            }
            _ => {}
        }
    }
}
