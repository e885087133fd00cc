//! Members of one process, connected by a network that loses and reorders from a seed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft::eraftpb::Message;

use super::{FetchError, Transport};
use crate::consensus::core::mix;
use crate::consensus::handle::{Handle, ReceiveError};
use crate::consensus::machine::Machine;
use crate::consensus::replica::Note;
use crate::consensus::roster::Letterhead;
use crate::store::snapshot::SnapshotOffer;

/// How bad the network is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Of 1,000 batches this many are lost.
    pub lost_per_mille: u64,
    /// Of 1,000 batches this many are held back until the next one to the same member.
    pub late_per_mille: u64,
}

struct State<M: Machine> {
    members: BTreeMap<u64, Handle<M>>,
    cut: BTreeSet<(u64, u64)>,
    late: BTreeMap<u64, Vec<(Letterhead, Vec<Message>)>>,
    weather: Weather,
    random: u64,
    /// Bytes after which every transfer of a file is cut.
    cut_after: Option<usize>,
}

/// The network; members join with [`MemoryNetwork::join`].
pub struct MemoryNetwork<M: Machine> {
    state: Mutex<State<M>>,
}

impl<M: Machine> std::fmt::Debug for MemoryNetwork<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryNetwork")
    }
}

impl<M: Machine> MemoryNetwork<M> {
    /// A network in fair weather.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(MemoryNetwork {
            state: Mutex::new(State {
                members: BTreeMap::new(),
                cut: BTreeSet::new(),
                late: BTreeMap::new(),
                weather: Weather::default(),
                random: seed,
                cut_after: None,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects a member, replacing an earlier life of it.
    pub fn join(&self, handle: Handle<M>) {
        self.state().members.insert(handle.member(), handle);
    }

    /// Disconnects a member that is gone.
    pub fn leave(&self, member: u64) {
        self.state().members.remove(&member);
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// From now on transfers of files are cut after so many bytes, or not any more.
    pub fn cut_files_after(&self, bytes: Option<usize>) {
        self.state().cut_after = bytes;
    }

    /// Cuts or mends both directions between two members.
    pub fn cut(&self, a: u64, b: u64, cut: bool) {
        let mut state = self.state();
        for pair in [(a, b), (b, a)] {
            if cut {
                state.cut.insert(pair);
            } else {
                state.cut.remove(&pair);
            }
        }
    }

    /// Lets the sender know, as a connection that ends would.
    fn refuse(&self, letter: &Letterhead, refused: &ReceiveError) {
        tracing::warn!(%refused, "A batch was refused.");
        let sender = self.state().members.get(&letter.from).cloned();
        if let (Some(sender), ReceiveError::Stranger(stranger)) = (sender, refused) {
            sender.refused(letter.to, stranger.code());
        }
    }

    fn peer(&self, letter: &Letterhead) -> Result<Handle<M>, FetchError> {
        let state = self.state();
        let cut = state.cut.contains(&(letter.from, letter.to));
        state
            .members
            .get(&letter.to)
            .filter(|_| !cut)
            .cloned()
            .ok_or_else(|| FetchError::Interrupted {
                member: letter.to,
                problem: "unreachable".to_owned(),
            })
    }
}

impl<M: Machine> Transport for MemoryNetwork<M> {
    fn send(&self, letter: Letterhead, messages: Vec<Message>) {
        let mut state = self.state();
        state.random = mix(state.random);
        let dice = state.random % 1000;
        let cut = state.cut.contains(&(letter.from, letter.to));
        let Weather {
            lost_per_mille,
            late_per_mille,
        } = state.weather;
        if cut || dice < lost_per_mille {
            return;
        }
        let to = letter.to;
        if dice < lost_per_mille + late_per_mille {
            state.late.entry(to).or_default().push((letter, messages));
            return;
        }
        let Some(member) = state.members.get(&to).cloned() else {
            return;
        };
        let late = state.late.remove(&to).unwrap_or_default();
        drop(state);
        for (letter, messages) in std::iter::once((letter, messages)).chain(late) {
            if let Err(refused) = member.receive(&letter, messages) {
                self.refuse(&letter, &refused);
            }
        }
    }

    fn note(&self, letter: Letterhead, note: Note) {
        if let Ok(member) = self.peer(&letter)
            && let Err(stranger) = member.hear(&letter, note)
        {
            self.refuse(&letter, &ReceiveError::Stranger(stranger));
        }
    }

    fn members(&self, _addresses: &BTreeMap<u64, String>) {
        // Everybody is here under their id.
    }

    fn fetch_snapshot(
        &self,
        letter: Letterhead,
        offer: &SnapshotOffer,
        mut offset: u64,
        sink: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), FetchError> {
        let member = letter.to;
        let interrupted = |problem: String| FetchError::Interrupted { member, problem };
        loop {
            let piece = self
                .peer(&letter)?
                .snapshot_piece(&letter, offer, offset)
                .map_err(|error| interrupted(error.to_string()))?;
            if piece.is_empty() {
                return Ok(());
            }
            let cut_after = self.state().cut_after;
            let piece = match cut_after {
                Some(bytes) if bytes < piece.len() => &piece[..bytes],
                _ => &piece[..],
            };
            offset += piece.len() as u64;
            sink(piece).map_err(|error| interrupted(error.to_string()))?;
            if cut_after.is_some() {
                return Err(interrupted("the transfer was cut".to_owned()));
            }
        }
    }

    fn fetch_history(
        &self,
        letter: Letterhead,
        first: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, FetchError> {
        self.peer(&letter)?
            .history_piece(&letter, first, max_bytes)
            .map_err(|error| FetchError::Interrupted {
                member: letter.to,
                problem: error.to_string(),
            })
    }
}
