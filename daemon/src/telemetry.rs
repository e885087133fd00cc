//! Logging: one subscriber per process, and the walk along an error's causes.

use std::error::Error;
use std::fmt;

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
        write!(f, "{}", self.0)?;
        let mut last = self.0.to_string();
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
