//! Waiting for a condition, never for a time. Whoever waits in vain is told what was seen.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a look brought.
#[derive(Debug)]
pub enum Seen<T> {
    /// What was waited for.
    This(T),
    /// Not yet, and what there is instead.
    NotYet(String),
    /// It will not come any more, and why.
    Never(String),
}

/// A look that found something or has a word for what it saw instead.
pub fn seen<T>(found: Option<T>, instead: impl Display) -> Seen<T> {
    found.map_or_else(|| Seen::NotYet(instead.to_string()), Seen::This)
}

/// Looks until it is there. An error of a look counts as "not yet".
///
/// # Errors
/// It was not there within `limit`; the message has the last look.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        let last = match look().await {
            Ok(Seen::This(found)) => return Ok(found),
            Ok(Seen::NotYet(last)) => last,
            Ok(Seen::Never(why)) => bail!("{what}: {why}"),
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > limit {
            bail!("{what}: not within {limit:?}; last seen: {last}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// [`until`] for things that need no runtime.
///
/// # Errors
/// It was not there within `limit`; the message has the last look.
pub fn until_blocking<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        let last = match look() {
            Ok(Seen::This(found)) => return Ok(found),
            Ok(Seen::NotYet(last)) => last,
            Ok(Seen::Never(why)) => bail!("{what}: {why}"),
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > limit {
            bail!("{what}: not within {limit:?}; last seen: {last}");
        }
        std::thread::sleep(LOOK);
    }
}
