//! Reads checked values from a tree and collects every problem on the way.
//!
//! The rule of all methods: a problem is reported where it is found and `None`
//! is returned; the caller goes on with the next key, and gives up its own value
//! only at the end. So one pass finds everything.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::str::FromStr;

use super::diagnostic::{Code, Diagnostic, Place, Severity};
use super::node::{Key, Node, Value};
use super::suggest;
use super::yaml::{self, Parsed};
use crate::names::{self, NameError};
use crate::pipeline::inputs::{self, Scope};
use crate::pipeline::rules::Rule;
use crate::units::{Amount, ByteSize, TimeSpan, UnitError};

/// The most problems that are reported for a file; nobody reads further.
pub const PROBLEMS_MAX: usize = 200;

/// The problems so far, and where the reading is.
#[derive(Debug)]
pub struct Reader {
    file: String,
    problems: Vec<Diagnostic>,
    path: Vec<Segment>,
    /// The file's end is missing, so that a key is missing proves nothing.
    cut_short: bool,
    /// The inputs that texts may name.
    pub(crate) scope: Scope,
}

#[derive(Debug)]
enum Segment {
    Key(String),
    Index(usize),
}

impl Reader {
    /// Parses the text and begins with its problems.
    pub fn open(file: &str, text: &str) -> (Self, Vec<Node>) {
        let Parsed {
            documents,
            problems,
            cut_short,
        } = yaml::parse(file, text);
        let reader = Self {
            file: file.to_owned(),
            problems,
            path: Vec::new(),
            cut_short,
            scope: Scope::default(),
        };
        (reader, documents)
    }

    /// Every problem, in the order of the file.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.problems.sort_by_key(|p| (p.place.offset, p.code));
        self.problems.truncate(PROBLEMS_MAX);
        self.problems
    }

    /// Whether an error was reported, so that no value may come of this.
    pub fn failed(&self) -> bool {
        self.problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// Adds an error without a hint.
    pub fn error(&mut self, code: Code, place: Place, message: impl Into<String>) {
        self.report(Severity::Error, code, place, message.into(), None);
    }

    /// Adds an error with a hint.
    pub fn error_hint(
        &mut self,
        code: Code,
        place: Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(
            Severity::Error,
            code,
            place,
            message.into(),
            Some(hint.into()),
        );
    }

    /// Adds a warning.
    pub fn warn(
        &mut self,
        code: Code,
        place: Place,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(
            Severity::Warning,
            code,
            place,
            message.into(),
            Some(hint.into()),
        );
    }

    fn report(
        &mut self,
        severity: Severity,
        code: Code,
        place: Place,
        message: String,
        hint: Option<String>,
    ) {
        // Beyond the limit the file is hopeless; twice the limit keeps the first by place.
        if self.problems.len() < 2 * PROBLEMS_MAX {
            let (file, path) = (self.file.clone(), self.path());
            self.problems.push(Diagnostic {
                code,
                severity,
                file,
                place,
                path,
                message,
                hint,
            });
        }
    }

    /// Where the reading is, such as `bake.steps[2].run`.
    pub fn path(&self) -> String {
        let mut path = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) if path.is_empty() => path.push_str(key),
                Segment::Key(key) => {
                    path.push('.');
                    path.push_str(key);
                }
                // Writing to a String cannot fail.
                Segment::Index(index) => drop(write!(path, "[{index}]")),
            }
        }
        path
    }

    fn within<T>(&mut self, segment: Segment, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(segment);
        let value = read(self);
        self.path.pop();
        value
    }

    /// A map, whose keys are then asked for one by one.
    pub fn map<'n>(&mut self, node: &'n Node, what: &'static str) -> Option<Fields<'n>> {
        match &node.value {
            Value::Map(entries) => Some(Fields {
                what,
                place: node.place,
                entries,
                known: Vec::new(),
                missing: Vec::new(),
                unchosen: None,
            }),
            _ => {
                let message = format!("{what} is a map of keys and values, found {}", node.kind());
                self.error(Code::WrongType, node.place, message);
                None
            }
        }
    }

    /// A list, each item read in turn. `None` when this is no list or an item is bad.
    pub fn list<T>(
        &mut self,
        node: &Node,
        mut read: impl FnMut(&mut Self, &Node) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = &node.value else {
            let hint = match &node.value {
                Value::Scalar { text, .. } if !node.is_null() => format!("write [{text}]"),
                _ => "start each item with `- `".to_owned(),
            };
            let message = format!("expected a list, found {}", node.kind());
            self.error_hint(Code::WrongType, node.place, message, hint);
            return None;
        };
        let read: Vec<Option<T>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.within(Segment::Index(index), |r| read(r, item)))
            .collect();
        read.into_iter().collect()
    }

    /// A map whose keys are names chosen by the user.
    pub fn table<T>(
        &mut self,
        node: &Node,
        what: &str,
        mut read: impl FnMut(&mut Self, &Key, &Node) -> Option<T>,
    ) -> Option<BTreeMap<String, T>> {
        let Value::Map(entries) = &node.value else {
            let message = format!("{what} is a map of names and values, found {}", node.kind());
            self.error(Code::WrongType, node.place, message);
            return None;
        };
        let read: Vec<Option<(String, T)>> = entries
            .iter()
            .map(|(key, value)| {
                let value = self.within(Segment::Key(key.text.clone()), |r| read(r, key, value));
                value.map(|value| (key.text.clone(), value))
            })
            .collect();
        read.into_iter().collect()
    }

    /// Any text; numbers and truth values count as the text that they are. Inputs may stand in it.
    pub fn text(&mut self, node: &Node) -> Option<String> {
        let text = self.scalar(node, "a text")?;
        inputs::check(self, node, text);
        Some(text.to_owned())
    }

    /// A text that follows a rule. With inputs in it, it is judged when they are filled in.
    pub fn ruled(&mut self, node: &Node, rule: Rule) -> Option<String> {
        let text = self.text(node)?;
        if inputs::mentions(&text) {
            return Some(text);
        }
        match rule.judge(&text) {
            Ok(()) => Some(text),
            Err(wrong) => {
                let message = format!("`{}` {wrong}", shorten(&without_credentials(&text)));
                self.error(rule.code(), node.place, message);
                None
            }
        }
    }

    /// A text that must be the same for every run.
    pub fn fixed<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let text = self.scalar(node, what)?;
        if inputs::mentions(text) {
            let message = format!("{what} cannot depend on an input");
            let hint = "it must be known before a run starts; inputs may stand in commands, env, paths, packages and addresses";
            self.error_hint(Code::InputNotHere, node.place, message, hint);
            return None;
        }
        Some(text)
    }

    fn scalar<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let text = node.scalar();
        if text.is_none() {
            self.wrong_type(node, what);
        }
        text
    }

    /// `true` or `false`.
    pub fn truth(&mut self, node: &Node) -> Option<bool> {
        match self.scalar(node, "true or false")? {
            "true" => Some(true),
            "false" => Some(false),
            other => {
                let message = format!("expected true or false, found `{other}`");
                let hint = match other.to_ascii_lowercase().as_str() {
                    "yes" | "on" | "y" | "true" => Some("true"),
                    "no" | "off" | "n" | "false" => Some("false"),
                    _ => None,
                };
                match hint {
                    Some(hint) => self.error_hint(
                        Code::WrongType,
                        node.place,
                        message,
                        format!("write {hint}"),
                    ),
                    None => self.error(Code::WrongType, node.place, message),
                }
                None
            }
        }
    }

    /// A whole number within limits, both included.
    pub fn number(&mut self, node: &Node, what: &str, least: u32, most: u32) -> Option<u32> {
        let text = self.fixed(node, what)?;
        let Ok(number) = text.parse::<i64>() else {
            let message = format!("{what} is a whole number, found `{}`", shorten(text));
            self.error(Code::WrongType, node.place, message);
            return None;
        };
        match u32::try_from(number) {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                let message = format!("{what} is between {least} and {most}, found {number}");
                self.error(Code::OutOfRange, node.place, message);
                None
            }
        }
    }

    /// A port.
    pub fn port(&mut self, node: &Node) -> Option<u16> {
        self.number(node, "a port", 1, u32::from(u16::MAX))
            .and_then(|port| u16::try_from(port).ok())
    }

    /// A name of some kind.
    pub fn name<T: FromStr<Err = NameError>>(&mut self, node: &Node, what: &str) -> Option<T> {
        let text = self.fixed(node, what)?;
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                let message = format!("`{}` is not {what}: {error}", shorten(text));
                match respell(text) {
                    Some(better) => {
                        self.error_hint(
                            Code::Name,
                            node.place,
                            message,
                            format!("did you mean `{better}`?"),
                        );
                    }
                    None => self.error(Code::Name, node.place, message),
                }
                None
            }
        }
    }

    /// A length of time within limits, both included.
    pub fn span(
        &mut self,
        node: &Node,
        what: &str,
        least: TimeSpan,
        most: TimeSpan,
    ) -> Option<TimeSpan> {
        let text = self.fixed(node, what)?;
        let span: TimeSpan = self.unit(node, Code::Duration, text)?;
        if (least..=most).contains(&span) {
            return Some(span);
        }
        let message = format!("{what} is between {least} and {most}, found {span}");
        self.error(Code::OutOfRange, node.place, message);
        None
    }

    /// A number of bytes.
    pub fn size(&mut self, node: &Node, what: &str) -> Option<ByteSize> {
        let text = self.fixed(node, what)?;
        self.unit(node, Code::Size, text)
    }

    /// A count or percentage.
    pub fn amount(&mut self, node: &Node, what: &str) -> Option<Amount> {
        let text = self.fixed(node, what)?;
        self.unit(node, Code::Amount, text)
    }

    fn unit<T: FromStr<Err = UnitError>>(
        &mut self,
        node: &Node,
        code: Code,
        text: &str,
    ) -> Option<T> {
        let error = match text.parse() {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let message = format!("`{}` cannot be read: {error}", shorten(text));
        self.error(code, node.place, message);
        None
    }

    /// One of a few words.
    pub fn choice<T: Copy>(
        &mut self,
        node: &Node,
        what: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let text = self.fixed(node, what)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words = || choices.iter().map(|(word, _)| *word);
        let message = format!("`{}` is not {what}", shorten(text));
        let hint = match suggest::nearest(text, words()) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("one of: {}", words().collect::<Vec<_>>().join(", ")),
        };
        self.error_hint(Code::UnknownValue, node.place, message, hint);
        None
    }

    /// A text that some other type can be parsed from.
    pub fn parsed<T: FromStr<Err: Display>>(
        &mut self,
        node: &Node,
        code: Code,
        what: &str,
    ) -> Option<T> {
        let text = self.fixed(node, what)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(
                    code,
                    node.place,
                    format!("`{}` is not {what}: {error}", shorten(text)),
                );
                None
            }
        }
    }

    /// Reports that something else was expected.
    pub fn wrong_type(&mut self, node: &Node, expected: &str) {
        let message = format!("expected {expected}, found {}", node.kind());
        self.error(Code::WrongType, node.place, message);
    }
}

/// A map's entries, asked for by key; [`Fields::done`] then judges the rest.
#[derive(Debug)]
pub struct Fields<'n> {
    what: &'static str,
    /// Where the map starts.
    pub place: Place,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
    missing: Vec<&'static str>,
    unchosen: Option<&'static [&'static str]>,
}

impl<'n> Fields<'n> {
    /// The value of a key that may be left out. The outer `None`: bad; the inner: left out.
    pub fn optional<T>(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &'n Node) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.peek(key) {
            None => Some(None),
            Some(node) => reader
                .within(Segment::Key(key.to_owned()), |r| read(r, node))
                .map(Some),
        }
    }

    /// The value of a key that may be left out, or what then holds.
    pub fn or<T>(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        default: T,
        read: impl FnOnce(&mut Reader, &'n Node) -> Option<T>,
    ) -> Option<T> {
        self.optional(reader, key, read)
            .map(|value| value.unwrap_or(default))
    }

    /// The value of a key that must be there.
    pub fn required<T>(
        &mut self,
        reader: &mut Reader,
        key: &'static str,
        read: impl FnOnce(&mut Reader, &'n Node) -> Option<T>,
    ) -> Option<T> {
        if let Some(node) = self.peek(key) {
            return reader.within(Segment::Key(key.to_owned()), |r| read(r, node));
        }
        // Reported by `done`: a misspelt key is that, and not also missing.
        self.missing.push(key);
        None
    }

    /// The value of a key as it stands, remembered as known.
    pub fn peek(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        self.entries
            .iter()
            .find(|(k, _)| k.text == key)
            .map(|(_, node)| node)
    }

    /// The one of several keys that is there. None or more than one is reported.
    pub fn one_of(
        &mut self,
        reader: &mut Reader,
        keys: &'static [&'static str],
    ) -> Option<(&'static str, &'n Node)> {
        self.known.extend(keys);
        // In the order of the file, so that it is the later one that is said to be too much.
        let entries = self.entries;
        let mut found = entries.iter().filter_map(|(k, node)| {
            keys.iter()
                .find(|key| **key == k.text)
                .map(|key| (*key, k, node))
        });
        let Some((key, _, node)) = found.next() else {
            self.unchosen = Some(keys);
            return None;
        };
        for (other, place, _) in found {
            let message = format!(
                "{} is one thing: `{key}` is already there, so `{other}` cannot be",
                self.what
            );
            reader.error_hint(
                Code::SeveralChoices,
                place.place,
                message,
                "start a new item with `- `",
            );
        }
        // With several the first is read all the same, for what else is wrong in it.
        Some((key, node))
    }

    /// Goes into a key's value that [`Self::one_of`] found.
    pub fn inside<T>(
        reader: &mut Reader,
        key: &'static str,
        read: impl FnOnce(&mut Reader) -> T,
    ) -> T {
        reader.within(Segment::Key(key.to_owned()), read)
    }

    /// Reports the keys that nobody asked for. `elsewhere` may know better than the nearest word.
    pub fn done(self, reader: &mut Reader, elsewhere: impl Fn(&str) -> Option<&'static str>) {
        let mut meant: Vec<&str> = Vec::new();
        let mut strangers = false;
        for (key, _) in self.entries {
            if self.known.contains(&key.text.as_str()) {
                continue;
            }
            strangers = true;
            let message = format!("{} has no key `{}`", self.what, shorten(&key.text));
            let hint = match (
                elsewhere(&key.text),
                suggest::nearest(&key.text, self.known.iter().copied()),
            ) {
                (Some(hint), _) => {
                    // "the key is `from`" says what is missing, too.
                    let named =
                        |key: &&&'static str| hint.starts_with(&format!("the key is `{key}`"));
                    meant.extend(self.missing.iter().find(named));
                    hint.to_owned()
                }
                (None, _) if key.text == "<<" => {
                    "merge keys are not YAML 1.2: write the keys out".to_owned()
                }
                (None, Some(word)) => {
                    meant.push(word);
                    format!("did you mean `{word}`?")
                }
                (None, None) => format!("it has {}", listed(&self.known)),
            };
            reader.error_hint(Code::UnknownKey, key.place, message, hint);
        }
        if reader.cut_short {
            return;
        }
        for key in self.missing.iter().filter(|key| !meant.contains(key)) {
            let message = format!("{} needs the key `{key}`", self.what);
            reader.error(Code::MissingKey, self.place, message);
        }
        // A stranger was probably meant to be the one, and has been reported.
        if let Some(keys) = self.unchosen.filter(|_| !strangers) {
            let message = format!("{} needs one of the keys {}", self.what, listed(keys));
            reader.error(Code::NoChoice, self.place, message);
        }
    }
}

fn listed(keys: &[&str]) -> String {
    keys.iter()
        .map(|key| format!("`{key}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A text that is safe to show in a message of one line.
pub fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN)
        .collect();
    if text.chars().count() > SHOWN {
        format!("{line}...")
    } else {
        line
    }
}

/// An address without what stands before its `@`, because problems are stored and shown to many.
fn without_credentials(text: &str) -> String {
    match text
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?)))
    {
        Some((scheme, (_, host))) => format!("{scheme}://***@{host}"),
        None => text.to_owned(),
    }
}

/// The name that was probably meant: lower case, hyphens for what is not allowed.
fn respell(text: &str) -> Option<String> {
    let lower: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let name = lower.trim_matches('-');
    (names::check(name).is_ok() && name != text).then(|| name.to_owned())
}
