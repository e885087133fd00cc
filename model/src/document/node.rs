//! A YAML value that remembers where it was written.

use super::diagnostic::Place;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it starts, and how much of it a reader should be shown.
    pub place: Place,
}

/// A value as YAML knows it, before anybody expects a type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text, number, truth value or nothing: only the reader's expectation tells.
    Scalar {
        /// After quotes and escapes.
        text: String,
        /// Not in quotes and no block: may be a number, truth value or nothing.
        plain: bool,
    },
    /// `- item`
    List(Vec<Node>),
    /// `key: value`, in the order of the file, keys unique.
    Map(Vec<(Key, Node)>),
}

/// The key of a map's entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// After quotes and escapes.
    pub text: String,
    /// Where it is written.
    pub place: Place,
}

impl Node {
    /// Whether this is YAML's nothing: an empty value, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of a scalar that is something.
    pub fn scalar(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// The value under `key`, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(k, _)| k.text == key)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    /// The kind of value in words, for "expected a map, found a list".
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { plain: true, text } if text.parse::<i64>().is_ok() => "a number",
            Value::Scalar { plain: true, text } if matches!(text.as_str(), "true" | "false") => {
                "a truth value"
            }
            Value::Scalar { .. } => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}
