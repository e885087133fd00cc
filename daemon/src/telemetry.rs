//! Logging: one subscriber per process, and the walk along an error's causes.
//!
//! The level comes from configuration (`log.filter`) or `OAST_LOG`, in the syntax of
//! `tracing_subscriber`'s `EnvFilter`. Text is for people, JSON for collectors; both go to stderr
//! or to one file that is appended to. Rotation is left to the system (the file is opened once).

use std::error::Error;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use serde::Deserialize;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What is logged when nobody said otherwise: our own routine work and others' warnings.
pub const DEFAULT_FILTER: &str = "warn,oast=info,oast_coordinator=info,oast_worker=info,\
                                  oast_artifacts=info,oast_daemon=info";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One object per line, for collectors.
    Json,
}

/// The `[log]` table of a daemon's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Which events are written, e.g. `info` or `warn,oast_worker=debug`. `OAST_LOG` overrides it.
    /// Default: [`DEFAULT_FILTER`].
    pub filter: String,
    /// `text` (default) or `json`.
    pub format: Format,
    /// A file to append to instead of stderr.
    pub file: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            filter: DEFAULT_FILTER.to_owned(),
            format: Format::default(),
            file: None,
        }
    }
}

/// Logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("log filter {filter:?} is not valid (example: \"info,oast_worker=debug\")")]
    Filter {
        /// As given.
        filter: String,
        #[source]
        err: ParseError,
    },
    /// The file cannot be opened for appending.
    #[error("cannot append to log file {}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// Somebody was first.
    #[error("logging was started twice in this process")]
    Twice,
}

/// Starts logging for the rest of the process.
///
/// # Errors
/// A bad filter, a file that cannot be opened, or a second call.
pub fn init(log: &Log) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|err| LogError::Filter {
            filter: log.filter.clone(),
            err,
        })?;
    let (writer, colour) = match &log.file {
        None => {
            let colour = io::IsTerminal::is_terminal(&io::stderr());
            (BoxMakeWriter::new(io::stderr), colour)
        }
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.map_err(|err| LogError::File {
                path: path.clone(),
                err,
            })?;
            (BoxMakeWriter::new(Mutex::new(file)), false)
        }
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    let started = match log.format {
        Format::Text => builder.with_ansi(colour).with_target(false).try_init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .try_init(),
    };
    started.map_err(|_| LogError::Twice)
}

/// Longest chain that is printed; longer ones are almost surely cycles of our own making.
const CHAIN_LIMIT: usize = 16;

/// Shows an error and its causes on one line, joined by ": ".
///
/// Errors of this code base do not repeat their source in `Display`, so this is the one place
/// where the whole story becomes text: call it where an error is logged or answered, once.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

/// See [`chain`].
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        for _ in 0..CHAIN_LIMIT {
            let Some(error) = cause else { return Ok(()) };
            let text = error.to_string();
            // Foreign errors often print their source already; saying it twice is noise.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        f.write_str(": ...")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the log")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("disk is full")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("again: {0}")]
    struct Repeats(#[source] Inner);

    #[test]
    fn chain_joins_causes_and_does_not_repeat_them() {
        assert_eq!(
            chain(&Outer(Inner)).to_string(),
            "cannot open the log: disk is full"
        );
        assert_eq!(chain(&Repeats(Inner)).to_string(), "again: disk is full");
    }

    #[test]
    fn an_unknown_log_key_is_an_error_and_the_defaults_are_stated() {
        assert!(toml::from_str::<Log>("levle = \"info\"").is_err());
        let log: Log = toml::from_str("format = \"json\"").expect("valid");
        assert_eq!(
            (log.format, log.filter.as_str()),
            (Format::Json, DEFAULT_FILTER)
        );
        EnvFilter::builder()
            .parse(DEFAULT_FILTER)
            .expect("the default filter is valid");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let log = Log {
            filter: "oast=loud".to_owned(),
            ..Log::default()
        };
        let error = init(&log).expect_err("not a level");
        assert!(error.to_string().contains("\"oast=loud\""), "{error}");
    }
}
