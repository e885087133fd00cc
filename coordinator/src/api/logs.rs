//! Logs of a run from the artifact store, which every member can read.
//!
//! Each attempt of each task has a segment of its own. They are read side by side and their lines
//! sent in the order of time; a segment that has more to come holds later lines of the others
//! back until it was read further, as long as that more is already written.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use oast_artifacts::{LogReader, LogRecord, LogStream, MAX_PAYLOAD_BYTES, SegmentKey};
use oast_model::ids::{RunId, TaskId};
use oast_model::task::Task;
use oast_proto::v1;
use tonic::Status;

use super::runs::{optional_name, parse};
use super::{Answers, Api, status};

/// Bytes of one segment read at once.
const READ_BYTES: usize = 128 << 10;
/// A read that is shorter than the limit by less than this may have been cut.
const LARGEST_RECORD: u64 = MAX_PAYLOAD_BYTES as u64 + 64;
/// Lines in one message.
const LINES_MAX: usize = 500;
/// Bytes of lines in one message, well below what a client accepts.
const MESSAGE_BYTES: usize = 1 << 20;
/// Pause between two looks at logs that may grow.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long after a run's end a writer may still bring its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Most positions that a client may send.
const POSITIONS_MAX: usize = 10_000;
/// The step of lines that belong to the task itself.
const NO_STEP: u16 = u16::MAX;

type Key = (TaskId, u64);

struct Segment {
    reader: LogReader,
    offset: u64,
    ended: bool,
}

/// What one look found: lines with where they are from, and segments that have more.
struct Look {
    lines: Vec<(Key, LogRecord)>,
    /// Lines later than this wait for the next look.
    until: u64,
    more: bool,
}

impl Api {
    /// Streams the lines of a run's logs.
    pub(super) fn tail(
        &self,
        run: RunId,
        asked: v1::TailLogsRequest,
    ) -> Result<Answers<v1::LogLines>, Status> {
        let only = optional_name::<TaskId>("task", &asked.task)?;
        if asked.after.len() > POSITIONS_MAX {
            return Err(status::invalid("after", "too many positions"));
        }
        let mut after = BTreeMap::new();
        for position in &asked.after {
            let task = parse::<TaskId>("after", &position.task)?;
            after.insert((task, position.token), position.offset);
        }
        let api = self.clone();
        Ok(self.stream("tail-logs", move |sender| async move {
            let mut segments: BTreeMap<Key, Segment> = BTreeMap::new();
            let clock = api.farm.clock().clone();
            let mut over_at = None;
            loop {
                // The state first: what was written before the run ended is then found.
                let (attempts, over) = api.attempts(run, only)?;
                for key in attempts {
                    if let Entry::Vacant(place) = segments.entry(key) {
                        let offset = after.get(&key).copied().unwrap_or(0);
                        place.insert(api.segment(run, key, offset)?);
                    }
                }
                let read = api.blocking("read-logs", move || {
                    let look = look(&mut segments);
                    (segments, look)
                });
                let (back, found) = read.await?;
                segments = back;
                let found = found?;
                let (sent, more) = (!found.lines.is_empty(), found.more);
                for message in messages(found, &mut segments) {
                    if sender.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
                if sent || more {
                    continue;
                }
                if !asked.follow {
                    return Ok(());
                }
                if over {
                    let now = clock.monotonic();
                    let since = *over_at.get_or_insert(now);
                    let all = segments.values().all(|segment| segment.ended);
                    if all || now.saturating_sub(since) >= LAST_LINES {
                        return Ok(());
                    }
                }
                clock.sleep(LOOK_PAUSE).await;
            }
        }))
    }

    /// Attempts of the run's tasks, those of its rollouts included, and whether the run ended.
    fn attempts(&self, id: RunId, only: Option<TaskId>) -> Result<(BTreeSet<Key>, bool), Status> {
        let view = self.farm.view();
        let record = self.find_run(&view, id)?;
        let record = record.ok_or_else(|| status::not_found("run", id))?;
        let mut keys = BTreeSet::new();
        let mut add = |tasks: &[Task]| {
            for task in tasks
                .iter()
                .filter(|task| only.is_none_or(|id| task.id == id))
            {
                let tokens = task.attempts.iter();
                keys.extend(tokens.map(|attempt| (task.id, attempt.token.as_u64())));
            }
        };
        add(&record.tasks);
        for rollout in &record.run.rollouts {
            if let Some(rollout) = self.find_rollout(&view, *rollout)? {
                add(&rollout.tasks);
            }
        }
        Ok((keys, record.run.ended()))
    }

    fn segment(&self, run: RunId, (task, token): Key, offset: u64) -> Result<Segment, Status> {
        let key = SegmentKey {
            run: run.to_string(),
            task: task.to_string(),
            attempt: token,
        };
        let reader = self.artifacts.read_log(&key);
        Ok(Segment {
            reader: reader.map_err(|err| status::internal(&err))?,
            offset,
            ended: false,
        })
    }
}

fn look(segments: &mut BTreeMap<Key, Segment>) -> Result<Look, Status> {
    let mut look = Look {
        lines: Vec::new(),
        until: u64::MAX,
        more: false,
    };
    for (key, segment) in segments.iter_mut().filter(|(_, segment)| !segment.ended) {
        let found = segment.reader.read(segment.offset, READ_BYTES);
        let found = found.map_err(|err| status::internal(&err))?;
        if found.records.is_empty() {
            segment.ended = found.ended;
            continue;
        }
        let bytes: u64 = found.records.iter().map(LogRecord::stored_bytes).sum();
        // Nearly a full read: there is probably more, and it may be older than others' lines.
        if bytes + LARGEST_RECORD >= READ_BYTES as u64 {
            // The latest of them, not the last: a clock may have gone back in between.
            let latest = found.records.iter().map(|record| record.time_ms).max();
            look.until = look.until.min(latest.unwrap_or(u64::MAX));
            look.more = true;
        }
        look.lines
            .extend(found.records.into_iter().map(|record| (*key, record)));
    }
    // Stable, so that lines of one segment keep their order even if its clock went back.
    look.lines.sort_by_key(|(_, record)| record.time_ms);
    Ok(look)
}

/// Cuts what was found into messages and moves the positions along.
fn messages(look: Look, segments: &mut BTreeMap<Key, Segment>) -> Vec<v1::LogLines> {
    let mut messages = Vec::new();
    let mut lines = Vec::new();
    let mut touched = BTreeSet::new();
    let mut held = BTreeSet::new();
    let mut bytes = 0;
    for (key, record) in look.lines {
        // Once a line of a segment waits, so do all that follow it there.
        if record.time_ms > look.until || held.contains(&key) {
            held.insert(key);
            continue;
        }
        let Some(segment) = segments.get_mut(&key) else {
            continue;
        };
        segment.offset += record.stored_bytes();
        touched.insert(key);
        bytes += record.payload.len();
        lines.push(line(key.0, record));
        if lines.len() >= LINES_MAX || bytes >= MESSAGE_BYTES {
            let lines = std::mem::take(&mut lines);
            messages.push(message(lines, std::mem::take(&mut touched), segments));
            bytes = 0;
        }
    }
    if !lines.is_empty() {
        messages.push(message(lines, touched, segments));
    }
    messages
}

fn message(
    lines: Vec<v1::LogLine>,
    touched: BTreeSet<Key>,
    segments: &BTreeMap<Key, Segment>,
) -> v1::LogLines {
    let positions = touched.into_iter().filter_map(|key| {
        Some(v1::LogPosition {
            task: key.0.to_string(),
            token: key.1,
            offset: segments.get(&key)?.offset,
        })
    });
    v1::LogLines {
        lines,
        positions: positions.collect(),
    }
}

fn line(task: TaskId, record: LogRecord) -> v1::LogLine {
    let stream = match record.stream {
        LogStream::Stdout => "out",
        LogStream::Stderr => "err",
        LogStream::Engine | LogStream::End => "farm",
    };
    v1::LogLine {
        at_ms: record.time_ms,
        task: task.to_string(),
        step: if record.step == NO_STEP {
            -1
        } else {
            i32::from(record.step)
        },
        stream: stream.to_owned(),
        text: record.payload.into(),
    }
}
