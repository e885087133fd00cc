//! A daemon's configuration: one TOML file, a few environment variables, no surprises.
//!
//! Reading is a pure function of the file's text and of a [`Lookup`], so a test passes a map.
//! Every configuration struct follows the same habits:
//!
//! - `#[serde(deny_unknown_fields, default)]`, so that a typing error is an error;
//! - durations and sizes as [`TimeSpan`] and [`ByteSize`] (`"30s"`, `"4GiB"`), never bare integers;
//! - each field's documentation says meaning, unit, default and limits;
//! - limits live in a struct called `Limits`, and [`Validate`] also checks relations between
//!   fields, reporting every problem at once.
//!
//! An error names the file, the line and the column, or the environment variable.

use std::fmt;
use std::path::{Path, PathBuf};

pub use oast_model::units::{ByteSize, TimeSpan};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Where environment variables come from: the process, or a test's map.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process environment. Variables that are not UTF-8 count as unset.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "this module is where the environment is read"
)]
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// An environment variable that stands for one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvKey {
    /// The variable, e.g. `OAST_LOG`.
    pub var: &'static str,
    /// The field it overrides, with dots between tables, e.g. `log.filter`.
    pub field: &'static str,
    /// How its text is read.
    pub kind: EnvKind,
}

/// How the text of an environment variable becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvKind {
    /// As it stands: strings, paths, addresses, durations, sizes.
    Text,
    /// As the right side of a TOML line: numbers, booleans, lists.
    Toml,
}

/// The variables every daemon understands.
pub const COMMON_ENV: [EnvKey; 1] = [EnvKey {
    var: "OAST_LOG",
    field: "log.filter",
    kind: EnvKind::Text,
}];

/// Checks what the types cannot: limits and relations between fields.
pub trait Validate {
    /// Adds every problem it finds.
    fn validate(&self, problems: &mut Problems);
}

/// What [`Validate`] found, each with the field it is about.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Notes `why` about `field` unless `holds`.
    pub fn require(&mut self, holds: bool, field: &str, why: impl fmt::Display) {
        if !holds {
            self.0.push(format!("{field}: {why}"));
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        err: std::io::Error,
    },
    /// The text is not what the daemon expects. `place` is `file:line:column` where known.
    #[error("{place}: {message}")]
    Parse {
        /// Where.
        place: String,
        /// What.
        message: String,
    },
    /// A variable cannot be read as its kind.
    #[error("environment variable {var}={text:?} for {field}: {message}")]
    Env {
        /// The variable.
        var: &'static str,
        /// The field it stands for.
        field: &'static str,
        /// Its text.
        text: String,
        /// What is wrong with it.
        message: String,
    },
    /// Everything parsed but it does not make sense together.
    #[error("{place}: {}", problems.join("; "))]
    Invalid {
        /// The file, or words for "no file".
        place: String,
        /// Each problem with its field.
        problems: Vec<String>,
    },
}

/// Reads the file at `path` (if one is given) and lays the environment over it.
///
/// # Errors
/// See [`ConfigError`]; each variant names the place.
pub fn load<T: DeserializeOwned + Validate>(
    path: Option<&Path>,
    keys: &[EnvKey],
    env: Lookup<'_>,
) -> Result<T, ConfigError> {
    let Some(path) = path else {
        return parse("", "defaults", keys, env);
    };
    let text = std::fs::read_to_string(path).map_err(|err| ConfigError::Read {
        path: path.to_owned(),
        err,
    })?;
    parse(&text, &path.display().to_string(), keys, env)
}

/// The pure half of [`load`]: `text` called `name` in messages.
///
/// # Errors
/// As [`load`], except for reading.
pub fn parse<T: DeserializeOwned + Validate>(
    text: &str,
    name: &str,
    keys: &[EnvKey],
    env: Lookup<'_>,
) -> Result<T, ConfigError> {
    let alone = toml::from_str::<T>(text);
    let overrides: Vec<(EnvKey, String)> = keys
        .iter()
        .filter_map(|key| Some((*key, env(key.var)?)))
        .collect();
    let value = if overrides.is_empty() {
        alone.map_err(|err| located(&err, text, name))?
    } else {
        let mut table: Table = text.parse().map_err(|err| located(&err, text, name))?;
        for (key, given) in &overrides {
            lay_over(&mut table, key, given)?;
        }
        table.try_into::<T>().map_err(|merged| {
            // Spans are lost in the merged table. When the file alone fails the same way, that
            // is the place; otherwise a variable brought it.
            match alone {
                Err(err) if err.message() == merged.message() => located(&err, text, name),
                _ => ConfigError::Parse {
                    place: format!("{name} with {}", variables(&overrides)),
                    message: merged.message().to_owned(),
                },
            }
        })?
    };
    let mut problems = Problems::default();
    value.validate(&mut problems);
    if problems.0.is_empty() {
        return Ok(value);
    }
    let place = match overrides.as_slice() {
        [] => name.to_owned(),
        some => format!("{name} with {}", variables(some)),
    };
    Err(ConfigError::Invalid {
        place,
        problems: problems.0,
    })
}

fn variables(overrides: &[(EnvKey, String)]) -> String {
    let names: Vec<&str> = overrides.iter().map(|(key, _)| key.var).collect();
    names.join(", ")
}

/// Writes one variable's value into the table, making tables on the way.
fn lay_over(table: &mut Table, key: &EnvKey, given: &str) -> Result<(), ConfigError> {
    let wrong = |message: String| ConfigError::Env {
        var: key.var,
        field: key.field,
        text: given.to_owned(),
        message,
    };
    let value = match key.kind {
        EnvKind::Text => Value::String(given.to_owned()),
        EnvKind::Toml => {
            let line = format!("v = {given}");
            let mut parsed: Table = line
                .parse()
                .map_err(|err: toml::de::Error| wrong(err.message().trim().to_owned()))?;
            parsed
                .remove("v")
                .ok_or_else(|| wrong("more than one value".to_owned()))?
        }
    };
    let mut here = table;
    let mut path = key.field.split('.').peekable();
    while let Some(part) = path.next() {
        if path.peek().is_none() {
            here.insert(part.to_owned(), value);
            return Ok(());
        }
        let next = here
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()));
        here = next
            .as_table_mut()
            .ok_or_else(|| wrong(format!("{part} is not a table")))?;
    }
    Ok(())
}

/// Turns the parser's byte range into `file:line:column`.
fn located(err: &toml::de::Error, text: &str, name: &str) -> ConfigError {
    let place = match err.span() {
        Some(span) => {
            let before = &text[..text.floor_char_boundary(span.start)];
            let line = before.matches('\n').count() + 1;
            let start = before.rfind('\n').map_or(0, |at| at + 1);
            let column = before[start..].chars().count() + 1;
            format!("{name}:{line}:{column}")
        }
        None => name.to_owned(),
    };
    ConfigError::Parse {
        place,
        message: err.message().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests;
