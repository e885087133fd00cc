//! Places between two writes, where a test lets the process die.
//!
//! A write that must be atomic with another one is found by killing the process between them, at
//! every place there is. Outside of this crate's tests a point is nothing.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

/// Points passed since [`arm`], from 1.
#[cfg(test)]
static PASSED: AtomicU64 = AtomicU64::new(0);
/// The point that is not survived; 0 for none.
#[cfg(test)]
static LAST: AtomicU64 = AtomicU64::new(0);

/// A write has just been done, or is about to be.
#[inline]
pub(crate) fn point(what: &'static str) {
    #[cfg(test)]
    if LAST.load(Ordering::Relaxed) == PASSED.fetch_add(1, Ordering::Relaxed) + 1 {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "dies at: {what}");
        std::process::abort();
    }
    #[cfg(not(test))]
    let _ = what;
}

/// Counts from here on and dies at point `last`; never, when it is 0.
#[cfg(test)]
pub(crate) fn arm(last: u64) {
    PASSED.store(0, Ordering::Relaxed);
    LAST.store(last, Ordering::Relaxed);
}

/// Points passed since [`arm`].
#[cfg(test)]
pub(crate) fn passed() -> u64 {
    PASSED.load(Ordering::Relaxed)
}
