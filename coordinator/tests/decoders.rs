//! Mutated bytes at every decoder: no panic, and no more memory than the bytes justify.
//!
//! The same entry points as the fuzz targets in `fuzz/`, bounded, from a printed seed, in every test
//! run. Inputs begin as what an earlier build wrote (`testdata/ledger/`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;

use oast_coordinator::decoders::{self, Decoder};

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

/// Whole inputs that a decoder takes.
fn inputs(name: &str) -> Vec<Vec<u8>> {
    let entries = || {
        let bytes = recorded("entries-1.bin");
        let (mut entries, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let length: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes");
            let end = at + 4 + u32::from_le_bytes(length) as usize;
            entries.push(bytes[at + 4..end].to_vec());
            at = end;
        }
        entries
    };
    match name {
        "log_entry" => entries(),
        "backup" => vec![recorded("farm-1.oast")],
        "snapshot" => vec![recorded("snap-1.oast")],
        // A log entry is protobuf with nested messages and MessagePack inside: as good a beginning
        // as any for the others, which must refuse it.
        _ => entries(),
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

#[test]
fn recorded_bytes_are_taken_whole() {
    for (name, decode) in decoders::ALL {
        if matches!(name, "log_entry" | "backup" | "snapshot") {
            for input in inputs(name) {
                assert!(decode(&input), "{name}");
            }
        }
    }
}
