//! YAML text to [`Node`]s, within limits.
//!
//! The parser is granit-parser, which gives events with places. What it does not
//! judge is judged here: duplicate keys, keys that are no texts, aliases that
//! grow, and how much a file may hold.

use std::collections::{BTreeMap, BTreeSet};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError};

use super::diagnostic::{Code, Diagnostic, Place, Severity};
use super::node::{Key, Node, Value};

/// The largest file that is read.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// The most values in a file, aliases counted as what they stand for.
pub const NODES_MAX: usize = 400_000;
/// The deepest nesting.
pub const DEPTH_MAX: usize = 64;
/// The most problems that one pass over the text reports.
const PROBLEMS_MAX: usize = 100;

/// The documents of a text.
#[derive(Debug)]
pub struct Parsed {
    /// In order; empty ones are left out.
    pub documents: Vec<Node>,
    /// What is wrong with the text as YAML.
    pub problems: Vec<Diagnostic>,
    /// The text ended early, so what is missing at the end of the last document may yet follow.
    pub cut_short: bool,
}

/// Parses a text. Never fails: what can be read is in the documents, the rest in the problems.
pub fn parse(file: &str, text: &str) -> Parsed {
    let mut builder = Builder {
        file,
        text,
        documents: Vec::new(),
        problems: Vec::new(),
        open: Vec::new(),
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    let cut_short = builder.read().is_err();
    if cut_short {
        builder.close_all();
    }
    Parsed {
        documents: builder.documents,
        problems: builder.problems,
        cut_short,
    }
}

/// A problem has been reported that ends the reading.
struct Stop;

/// A collection whose end has not been seen.
struct Open {
    anchor: usize,
    place: Place,
    value: Value,
    /// The key that waits for its value, in a map.
    key: Option<Key>,
    /// The keys so far, in a map.
    seen: BTreeSet<String>,
}

struct Builder<'t> {
    file: &'t str,
    text: &'t str,
    documents: Vec<Node>,
    problems: Vec<Diagnostic>,
    open: Vec<Open>,
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
}

impl Builder<'_> {
    fn read(&mut self) -> Result<(), Stop> {
        if self.text.len() > FILE_BYTES_MAX {
            let message = format!(
                "the file has {} bytes, at most {FILE_BYTES_MAX} are read",
                self.text.len()
            );
            self.report(
                Code::TooLarge,
                Place {
                    line: 1,
                    column: 1,
                    ..Place::default()
                },
                message,
                None,
            );
            return Err(Stop);
        }
        let text = self.text;
        for event in Parser::new_from_str(text) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    self.syntax(&error);
                    return Err(Stop);
                }
            };
            let range = span.byte_range().unwrap_or(0..0);
            let place = self.place(range.start, range.end, span.start.line(), span.start.col());
            match event {
                Event::Scalar(value, style, anchor, _tag) => {
                    let plain = style == ScalarStyle::Plain;
                    let node = Node {
                        value: Value::Scalar {
                            text: value.into_owned(),
                            plain,
                        },
                        place,
                    };
                    self.count(1, place)?;
                    self.remember(anchor, &node)?;
                    self.put(node)?;
                }
                Event::SequenceStart(_, anchor, _) => {
                    self.begin(anchor, place, Value::List(Vec::new()))?
                }
                Event::MappingStart(_, anchor, _) => {
                    self.begin(anchor, place, Value::Map(Vec::new()))?
                }
                Event::SequenceEnd | Event::MappingEnd => self.end()?,
                Event::Alias(anchor) => {
                    // Counted before it is copied: the limit is what keeps the copies small.
                    let Some(size) = self.anchors.get(&anchor).map(|(_, size)| *size) else {
                        let message =
                            "an alias cannot stand inside the value that it names".to_owned();
                        self.report(Code::Alias, place, message, None);
                        return Err(Stop);
                    };
                    self.count(size, place)?;
                    let node = self.anchors[&anchor].0.clone();
                    self.put(node)?;
                }
                Event::DocumentEnd => self.anchors.clear(),
                _ => {}
            }
        }
        Ok(())
    }

    fn begin(&mut self, anchor: usize, place: Place, value: Value) -> Result<(), Stop> {
        self.count(1, place)?;
        if self.open.len() == DEPTH_MAX {
            let message = format!("values are nested more than {DEPTH_MAX} deep");
            self.report(Code::TooLarge, place, message, None);
            return Err(Stop);
        }
        self.open.push(Open {
            anchor,
            place,
            value,
            key: None,
            seen: BTreeSet::new(),
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Stop> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let node = Node {
            value: open.value,
            place: open.place,
        };
        self.remember(open.anchor, &node)?;
        self.put(node)
    }

    /// Gives a finished value to what it belongs to.
    fn put(&mut self, node: Node) -> Result<(), Stop> {
        let Some(parent) = self.open.last_mut() else {
            if !node.is_null() {
                self.documents.push(node);
            }
            return Ok(());
        };
        match &mut parent.value {
            Value::List(items) => items.push(node),
            Value::Scalar { .. } => unreachable!("a scalar is never open"),
            Value::Map(entries) => match parent.key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => {
                        parent.key = Some(Key {
                            text,
                            place: node.place,
                        })
                    }
                    _ => {
                        let message = "a key must be a text".to_owned();
                        self.report(Code::Syntax, node.place, message, None);
                        return Err(Stop);
                    }
                },
                Some(key) => {
                    if parent.seen.insert(key.text.clone()) {
                        entries.push((key, node));
                    } else if self.problems.len() < PROBLEMS_MAX {
                        // The search is linear, so only as many as are reported are made.
                        let first = entries
                            .iter()
                            .find(|(k, _)| k.text == key.text)
                            .map_or(0, |(k, _)| k.place.line);
                        let message = format!("the key `{}` stands here a second time", key.text);
                        let hint =
                            format!("it was first given on line {first}: keep one of the two");
                        self.report(Code::DuplicateKey, key.place, message, Some(hint));
                    }
                }
            },
        }
        Ok(())
    }

    /// Ends every open collection, so that the part that was read can be checked.
    fn close_all(&mut self) {
        while let Some(mut open) = self.open.pop() {
            // A key whose value was not read says nothing.
            open.key = None;
            let node = Node {
                value: open.value,
                place: open.place,
            };
            if self.put(node).is_err() {
                self.open.clear();
            }
        }
    }

    /// Keeps a copy for aliases. Copies count as values too, or anchors within anchors would pile up.
    fn remember(&mut self, anchor: usize, node: &Node) -> Result<(), Stop> {
        if anchor != 0 {
            let size = size(node);
            self.count(size, node.place)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Stop> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            let message = format!(
                "the file has more than {NODES_MAX} values, aliases counted as what they stand for"
            );
            self.report(Code::TooLarge, place, message, None);
            return Err(Stop);
        }
        Ok(())
    }

    fn place(&self, start: usize, end: usize, line: usize, column: usize) -> Place {
        let rest = self.text.get(start..end.max(start)).unwrap_or_default();
        let first_line = rest
            .split(['\n', '\r'])
            .next()
            .unwrap_or_default()
            .trim_end();
        Place {
            offset: start.min(self.text.len()),
            line,
            column: column + 1,
            length: first_line.len(),
        }
    }

    fn syntax(&mut self, error: &ScanError) {
        let marker = error.marker();
        let offset = marker.byte_offset().unwrap_or(0);
        let place = self.place(offset, offset, marker.line(), marker.col());
        let line_text = self
            .text
            .lines()
            .nth(marker.line().saturating_sub(1))
            .unwrap_or_default();
        let indent_has_tab = line_text.len() != line_text.trim_start().len()
            && line_text[..line_text.len() - line_text.trim_start().len()].contains('\t');
        let tab = indent_has_tab
            || matches!(
                error.kind(),
                ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation
            );
        if tab {
            let column = line_text
                .chars()
                .position(|c| c == '\t')
                .map_or(place.column, |i| i + 1);
            let place = Place {
                column,
                length: 1,
                ..place
            };
            let offset = self
                .text
                .lines()
                .take(marker.line().saturating_sub(1))
                .map(|l| l.len() + 1)
                .sum::<usize>();
            let place = Place {
                offset: (offset + column - 1).min(self.text.len()),
                ..place
            };
            let hint = Some("YAML indents with spaces: replace each tab by two spaces".to_owned());
            self.report(Code::Tab, place, "a tab cannot indent".to_owned(), hint);
            return;
        }
        let hint = match error.kind() {
            ErrorKind::UnknownAnchor => {
                Some("a text that starts with `*` needs quotes: \"*...\"".to_owned())
            }
            _ if line_text.trim_start().starts_with(['%', '@', '`'])
                || line_text.contains(": @") =>
            {
                Some("a text that starts with this character needs quotes".to_owned())
            }
            _ if line_text.matches(": ").count() > 1 && !line_text.contains('{') => {
                Some("a text that has `: ` in it needs quotes".to_owned())
            }
            _ => None,
        };
        let code = if matches!(error.kind(), ErrorKind::UnknownAnchor) {
            Code::Alias
        } else {
            Code::Syntax
        };
        self.report(
            code,
            place,
            format!("this is not YAML: {}", error.info()),
            hint,
        );
    }

    fn report(&mut self, code: Code, place: Place, message: String, hint: Option<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Diagnostic {
                code,
                severity: Severity::Error,
                file: self.file.to_owned(),
                place,
                path: String::new(),
                message,
                hint,
            });
        }
    }
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 1,
        Value::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Map(entries) => {
            1 + entries
                .iter()
                .map(|(_, value)| 1 + size(value))
                .sum::<usize>()
        }
    }
}
