//! A hash over everything that happened, and on request the text of it.

use std::fmt::Arguments;

use crate::queue::Micros;
use crate::rng::mix;

/// What happened, as one number.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    events: u64,
    /// Lines are kept only when somebody will read them.
    lines: Option<Vec<String>>,
}

impl Trace {
    /// A trace; with its text when `text`.
    pub fn new(text: bool) -> Trace {
        Trace {
            hash: 0,
            events: 0,
            lines: text.then(Vec::new),
        }
    }

    /// Notes an event by numbers that tell it from others.
    pub fn note(&mut self, at: Micros, what: u64, detail: u64) {
        self.events += 1;
        self.hash = mix(self.hash ^ mix(at) ^ mix(what << 56 ^ detail).rotate_left(17));
    }

    /// Whether anybody reads the lines.
    pub fn reads(&self) -> bool {
        self.lines.is_some()
    }

    /// Writes a line, if anybody reads.
    pub fn say(&mut self, at: Micros, text: Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            lines.push(format!("{seconds:4}.{micros:06} {text}"));
        }
    }

    /// The hash of everything noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many events were noted.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines that were kept.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}
