//! A machine of named lists. Appending is what shows lost, doubled and reordered commands.

use bytes::Bytes;
use imbl::OrdMap;

use crate::consensus::machine::{
    Changes, EncodedCommand, LoadError, Machine, Position, Record, Undecodable, View,
};

const KIND_APPEND: u32 = 1;
const KIND_CLOSE: u32 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Appends to a list; answers with its new length.
    Append { list: u8, value: u64 },
    /// Moves a list to the history; answers with its length.
    Close { list: u8 },
    /// Something that only a newer binary knows.
    FromTheFuture,
}

#[derive(Clone, Debug, Default)]
pub struct Lists {
    lists: OrdMap<u8, Vec<u64>>,
    touched: std::collections::BTreeSet<u8>,
    history: Vec<Vec<u8>>,
    /// As of the last [`Machine::take_changes`], like the ledger's.
    digest: [u8; 32],
    last_now_ms: u64,
}

#[derive(Clone, Debug)]
pub struct ListsView(pub OrdMap<u8, Vec<u64>>, [u8; 32]);

fn bytes(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

fn digest(lists: &OrdMap<u8, Vec<u64>>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (list, values) in lists {
        hasher.update(&[*list]);
        hasher.update(&(values.len() as u64).to_le_bytes());
        hasher.update(&bytes(values));
    }
    *hasher.finalize().as_bytes()
}

impl View for ListsView {
    fn records(&self) -> Box<dyn Iterator<Item = Record> + '_> {
        Box::new(
            self.0
                .iter()
                .map(|(list, values)| (vec![*list], bytes(values))),
        )
    }

    fn digest(&self) -> [u8; 32] {
        self.1
    }
}

impl Machine for Lists {
    type Command = Command;
    type Answer = usize;
    type View = ListsView;

    fn encode(command: &Command) -> EncodedCommand {
        match command {
            Command::Append { list, value } => EncodedCommand {
                kind: KIND_APPEND,
                body: [&[*list][..], &value.to_be_bytes()].concat().into(),
            },
            Command::Close { list } => EncodedCommand {
                kind: KIND_CLOSE,
                body: vec![*list].into(),
            },
            Command::FromTheFuture => EncodedCommand {
                kind: 77,
                body: Bytes::new(),
            },
        }
    }

    fn decode(kind: u32, body: &Bytes) -> Result<Command, Undecodable> {
        match (kind, body.len()) {
            (KIND_APPEND, 9) => Ok(Command::Append {
                list: body[0],
                value: u64::from_be_bytes(body[1..].try_into().unwrap()),
            }),
            (KIND_CLOSE, 1) => Ok(Command::Close { list: body[0] }),
            _ => Err(Undecodable {
                kind,
                problem: "unknown".to_owned(),
            }),
        }
    }

    fn apply(&mut self, at: Position, command: Command) -> usize {
        assert!(at.now_ms >= self.last_now_ms, "time went back at {at:?}");
        self.last_now_ms = at.now_ms;
        match command {
            Command::Append { list, value } => {
                self.touched.insert(list);
                let values = self.lists.entry(list).or_default();
                values.push(value);
                values.len()
            }
            Command::Close { list } => {
                self.touched.insert(list);
                let values = self.lists.remove(&list).unwrap_or_default();
                self.history.push(bytes(&values));
                values.len()
            }
            Command::FromTheFuture => unreachable!(),
        }
    }

    fn take_changes(&mut self) -> Changes {
        self.digest = digest(&self.lists);
        Changes {
            records: std::mem::take(&mut self.touched)
                .into_iter()
                .map(|list| {
                    (
                        vec![list],
                        self.lists.get(&list).map(|values| bytes(values)),
                    )
                })
                .collect(),
            history: std::mem::take(&mut self.history),
            digest: Some(self.digest),
            ..Changes::default()
        }
    }

    fn view(&self) -> ListsView {
        ListsView(self.lists.clone(), self.digest)
    }

    fn load(records: &mut dyn Iterator<Item = Result<Record, String>>) -> Result<Self, LoadError> {
        let mut lists = OrdMap::new();
        for record in records {
            let (key, value) = record.map_err(|problem| LoadError { problem })?;
            let values = value
                .chunks(8)
                .map(|v| u64::from_be_bytes(v.try_into().unwrap()))
                .collect();
            lists.insert(key[0], values);
        }
        Ok(Lists {
            digest: digest(&lists),
            lists,
            ..Lists::default()
        })
    }
}
