//! One problem in a file: what, where, and what to do about it.
//!
//! A diagnostic is plain data, because it also travels in the ledger as the
//! reason of a failed run. Drawing it with the source around it is the CLI's
//! matter; [`Diagnostic`]'s `Display` is the one-line form that editors match.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What sort of problem it is. The texts are stable and listed in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each code's meaning is the text that `explain` returns"
)]
pub enum Code {
    #[serde(rename = "OAST-P0001")]
    Syntax,
    #[serde(rename = "OAST-P0002")]
    Tab,
    #[serde(rename = "OAST-P0003")]
    DuplicateKey,
    #[serde(rename = "OAST-P0004")]
    TooLarge,
    #[serde(rename = "OAST-P0005")]
    Alias,
    #[serde(rename = "OAST-P0006")]
    Documents,
    #[serde(rename = "OAST-P0007")]
    Unreadable,
    #[serde(rename = "OAST-P0101")]
    UnknownKey,
    #[serde(rename = "OAST-P0102")]
    MissingKey,
    #[serde(rename = "OAST-P0103")]
    WrongType,
    #[serde(rename = "OAST-P0104")]
    NoChoice,
    #[serde(rename = "OAST-P0105")]
    SeveralChoices,
    #[serde(rename = "OAST-P0106")]
    UnknownValue,
    #[serde(rename = "OAST-P0107")]
    OutOfRange,
    #[serde(rename = "OAST-P0201")]
    Name,
    #[serde(rename = "OAST-P0202")]
    Duration,
    #[serde(rename = "OAST-P0203")]
    Size,
    #[serde(rename = "OAST-P0204")]
    Amount,
    #[serde(rename = "OAST-P0205")]
    Path,
    #[serde(rename = "OAST-P0206")]
    Glob,
    #[serde(rename = "OAST-P0207")]
    Cron,
    #[serde(rename = "OAST-P0208")]
    Timezone,
    #[serde(rename = "OAST-P0209")]
    Address,
    #[serde(rename = "OAST-P0210")]
    Secret,
    #[serde(rename = "OAST-P0211")]
    Text,
    #[serde(rename = "OAST-P0301")]
    UnknownInput,
    #[serde(rename = "OAST-P0302")]
    Expression,
    #[serde(rename = "OAST-P0303")]
    InputNotHere,
    #[serde(rename = "OAST-P0304")]
    InputInCommand,
    #[serde(rename = "OAST-P0305")]
    InputDeclaration,
    #[serde(rename = "OAST-P0401")]
    Contradiction,
    #[serde(rename = "OAST-P0501")]
    ComesLater,
    /// Written by a newer program.
    #[serde(other, rename = "OAST-P0000")]
    Other,
}

impl Code {
    /// Every code of this program, in order.
    pub const ALL: [Code; 32] = [
        Code::Syntax,
        Code::Tab,
        Code::DuplicateKey,
        Code::TooLarge,
        Code::Alias,
        Code::Documents,
        Code::Unreadable,
        Code::UnknownKey,
        Code::MissingKey,
        Code::WrongType,
        Code::NoChoice,
        Code::SeveralChoices,
        Code::UnknownValue,
        Code::OutOfRange,
        Code::Name,
        Code::Duration,
        Code::Size,
        Code::Amount,
        Code::Path,
        Code::Glob,
        Code::Cron,
        Code::Timezone,
        Code::Address,
        Code::Secret,
        Code::Text,
        Code::UnknownInput,
        Code::Expression,
        Code::InputNotHere,
        Code::InputInCommand,
        Code::InputDeclaration,
        Code::Contradiction,
        Code::ComesLater,
    ];

    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "OAST-P0001",
            Self::Tab => "OAST-P0002",
            Self::DuplicateKey => "OAST-P0003",
            Self::TooLarge => "OAST-P0004",
            Self::Alias => "OAST-P0005",
            Self::Documents => "OAST-P0006",
            Self::Unreadable => "OAST-P0007",
            Self::UnknownKey => "OAST-P0101",
            Self::MissingKey => "OAST-P0102",
            Self::WrongType => "OAST-P0103",
            Self::NoChoice => "OAST-P0104",
            Self::SeveralChoices => "OAST-P0105",
            Self::UnknownValue => "OAST-P0106",
            Self::OutOfRange => "OAST-P0107",
            Self::Name => "OAST-P0201",
            Self::Duration => "OAST-P0202",
            Self::Size => "OAST-P0203",
            Self::Amount => "OAST-P0204",
            Self::Path => "OAST-P0205",
            Self::Glob => "OAST-P0206",
            Self::Cron => "OAST-P0207",
            Self::Timezone => "OAST-P0208",
            Self::Address => "OAST-P0209",
            Self::Secret => "OAST-P0210",
            Self::Text => "OAST-P0211",
            Self::UnknownInput => "OAST-P0301",
            Self::Expression => "OAST-P0302",
            Self::InputNotHere => "OAST-P0303",
            Self::InputInCommand => "OAST-P0304",
            Self::InputDeclaration => "OAST-P0305",
            Self::Contradiction => "OAST-P0401",
            Self::ComesLater => "OAST-P0501",
            Self::Other => "OAST-P0000",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the file can be used in spite of the problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

impl Severity {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Place {
    /// Bytes before it.
    pub offset: usize,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Its length in bytes, within its first line.
    pub length: usize,
}

/// One problem in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// What sort of problem.
    pub code: Code,
    /// Whether the file can be used.
    pub severity: Severity,
    /// The file as its reader named it.
    pub file: String,
    /// Where in the file.
    pub place: Place,
    /// Where in the document, such as `bake.steps[2].run`; empty for the whole.
    #[serde(default)]
    pub path: String,
    /// What is wrong, without a full stop.
    pub message: String,
    /// What to do about it, when that is known.
    #[serde(default)]
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    /// `file:line:column: error[code]: message`, on one line whatever the message holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column, .. } = self.place;
        let severity = self.severity.as_str();
        write!(
            f,
            "{}:{line}:{column}: {severity}[{}]: {}",
            self.file,
            self.code,
            one_line(&self.message)
        )
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_stored_as_its_text_and_a_newer_one_can_be_read() {
        for code in Code::ALL {
            let json = serde_json::to_string(&code).expect("json");
            assert_eq!(json, format!("{:?}", code.as_str()));
            assert_eq!(serde_json::from_str::<Code>(&json).expect("read"), code);
        }
        assert_eq!(
            serde_json::from_str::<Code>("\"OAST-P9999\"").expect("read"),
            Code::Other
        );
    }
}
