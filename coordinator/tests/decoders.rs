//! Mutated bytes at every decoder: no panic, and no more memory than the bytes justify.
//!
//! The same entry points as the fuzz targets in `fuzz/`, bounded, from a printed seed, in every test
//! run. Inputs begin as what an earlier build wrote (`testdata/ledger/`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

use oast_coordinator::consensus::entry;
use oast_coordinator::decoders::{self, Decoder};
use oast_coordinator::store::identity::Identity;
use oast_coordinator::store::log::{LogMeta, LogPosition};
use oast_coordinator::store::members::Members;
use oast_coordinator::store::snapshot::SnapshotOffer;
use oast_model::codec;
use oast_model::ids::Seq;
use oast_model::ledger::{Answer, Rejected};
use oast_proto::peer::v1 as wire;
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, Message, MessageType};

/// Mutated inputs for each decoder.
const ROUNDS: u64 = 3_000;
/// Bytes that one decoder may have taken at once: a multiple of its input, and a floor for readers.
const FLOOR: usize = 4 << 20;
const PER_BYTE: usize = 64;

/// Counts what this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes on to the system's allocator unchanged; only numbers are kept beside it,
// in thread-local cells that allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get() + layout.size();
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: `place` came from `alloc` above, so from the system.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).expect("below a usize")
    }
}

/// One to four of: a flipped bit, a wild byte, a wild length, a cut, a repeated or a removed stretch.
fn mutate(random: &mut Random, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(64)).min(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = 0xff,
            2 => {
                let wild = [u32::MAX - 1, 256 << 20, 1 << 31, 0][random.below(4)];
                for (place, byte) in bytes[at..].iter_mut().zip(wild.to_le_bytes()) {
                    *place = byte;
                }
            }
            3 => bytes.truncate(at),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => drop(bytes.drain(at..end)),
        }
    }
    bytes
}

fn recorded(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/ledger");
    std::fs::read(folder.join(name)).expect("the recording is part of the repository")
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Log entries, as an earlier build encoded them.
fn entries() -> Vec<Vec<u8>> {
    let bytes = recorded("entries-1.bin");
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let end = at + 4 + number(&bytes, at) as usize;
        entries.push(bytes[at + 4..end].to_vec());
        at = end;
    }
    entries
}

/// The commands in them, each behind its kind.
fn commands() -> Vec<Vec<u8>> {
    let decoded = entries()
        .into_iter()
        .map(|entry| entry::decode(1, entry.into()));
    let commands = decoded.flat_map(|entry| entry.expect("recorded").commands);
    let joined = commands.map(|logged| {
        let kind = u8::try_from(logged.kind).expect("a small number");
        [&[kind], &logged.body[..]].concat()
    });
    joined.collect()
}

/// What a leader sends for each of them.
fn batches() -> Vec<Vec<u8>> {
    let append = |(index, data): (u64, Vec<u8>)| Message {
        msg_type: MessageType::MsgAppend,
        from: 1,
        to: 2,
        term: 7,
        index,
        entries: vec![Entry {
            index,
            term: 7,
            data: data.into(),
            ..Entry::default()
        }]
        .into(),
        ..Message::default()
    };
    let messages = (1..).zip(entries()).map(append);
    let batch = |message: Message| {
        let letter = wire::Letterhead {
            cluster_id: "test".into(),
            from: 1,
            to: 2,
            stamp: 11,
            known_stamps: [(1, 11), (2, 12)].into(),
            address: "127.0.0.1:7443".into(),
            ..wire::Letterhead::default()
        };
        wire::RaftBatch {
            letter: Some(letter),
            messages: vec![message.write_to_bytes().expect("it is complete").into()],
            note: Some(wire::Note {
                wall_ms: 1,
                digest: vec![7; 32].into(),
                ..wire::Note::default()
            }),
        }
    };
    messages
        .map(|message| batch(message).encode_to_vec())
        .collect()
}

fn log_meta() -> Vec<u8> {
    let address = |id| (id, format!("member-{id}:7443"));
    let meta = LogMeta {
        identity: Identity {
            cluster: "test.28123456.0f3a11c2".into(),
            member: 1,
            stamp: 11,
        },
        known_stamps: [(2, 12)].into(),
        conf_state: ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        },
        members: Members::founders(&(1..=3).map(address).collect()),
        conf_index: 5,
        truncated: LogPosition { index: 4, term: 2 },
        state_dir: "state-1".into(),
    };
    meta.encode()
}

/// Whole inputs that a decoder takes.
fn inputs(name: &str) -> Vec<Vec<u8>> {
    match name {
        "log_entry" => entries(),
        "command" => commands(),
        "answer" => {
            let refused = (Seq::from_u64(9), Err(Rejected::WrongState("no".into())));
            let done: (Seq, Result<Answer, Rejected>) = (Seq::from_u64(8), Ok(Answer::Done));
            vec![
                codec::encode(&done),
                codec::encode::<(Seq, Result<Answer, Rejected>)>(&refused),
            ]
        }
        "backup" => vec![recorded("farm-1.oast")],
        "snapshot_file" => vec![recorded("snap-1.oast")],
        "peer_batch" => batches(),
        "offer" => {
            let position = LogPosition { index: 9, term: 2 };
            vec![
                SnapshotOffer {
                    position,
                    length: 4711,
                    checksum: [7; 32],
                }
                .encode(),
            ]
        }
        "log_meta" => vec![log_meta(), b"test.28123456.0f3a11c2".to_vec()],
        other => panic!("{other} has no input that it takes"),
    }
}

fn check((name, decode): Decoder, bytes: &[u8]) {
    HELD.set(0);
    PEAK.set(0);
    let _ = decode(bytes);
    let limit = FLOOR + PER_BYTE * bytes.len();
    let peak = PEAK.get();
    assert!(
        peak <= limit,
        "{name} took {peak} bytes for {} bytes of input",
        bytes.len()
    );
}

#[expect(clippy::disallowed_macros, reason = "the test harness captures it")]
fn say(line: &str) {
    println!("{line}");
}

#[test]
fn mutated_bytes_neither_stop_a_member_nor_eat_its_memory() {
    let seed = 0x0a57;
    say(&format!("seed {seed}"));
    let mut random = Random(seed);
    for decoder in decoders::ALL {
        let inputs = inputs(decoder.0);
        for input in &inputs {
            check(decoder, input);
        }
        for _ in 0..ROUNDS {
            let input = &inputs[random.below(inputs.len())];
            check(decoder, &mutate(&mut random, input));
        }
        // And bytes of no origin at all.
        for length in 0..200 {
            let noise: Vec<u8> = (0..length)
                .map(|_| random.next().to_le_bytes()[0])
                .collect();
            check(decoder, &noise);
        }
    }
}

/// With a folder in `OAST_CORPUS`, as `cargo xtask fuzz` sets it, what fuzzing begins with is written there.
#[test]
fn good_bytes_are_taken_whole() {
    let corpus = std::env::var_os("OAST_CORPUS").map(PathBuf::from);
    for (name, decode) in decoders::ALL {
        for (number, input) in inputs(name).into_iter().enumerate() {
            assert!(decode(&input), "{name} {number}");
            if let Some(corpus) = &corpus {
                let folder = corpus.join(name);
                std::fs::create_dir_all(&folder).expect("a folder");
                std::fs::write(folder.join(format!("good-{number}")), input).expect("written");
            }
        }
    }
}
