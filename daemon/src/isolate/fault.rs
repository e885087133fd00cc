//! A system call that failed, said so that a person can act on it.
//!
//! Everything below the namespaces reports through [`Fault`]: which call, on what, with which errno. A fault crosses
//! process boundaries as JSON (a sandbox's init tells its monitor, the monitor tells the worker), so it carries plain
//! data and no source chain. It does not decide what to do about it: [`crate::preflight`] maps faults to fixes.

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One failed call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The call and what it was for, for example `mount overlay`.
    pub call: String,
    /// The file, folder or address it was about.
    pub path: Option<String>,
    /// The kernel's answer; 0 when our own check refused before the kernel could.
    pub errno: i32,
    /// What our own check has to say, or a hint that the errno alone does not give.
    pub detail: Option<String>,
}

impl Fault {
    /// A refusal of our own, before or apart from any system call.
    pub fn refused(
        call: impl Into<String>,
        path: impl AsRef<Path>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            call: call.into(),
            path: Some(shown(path.as_ref())),
            errno: 0,
            detail: Some(detail.into()),
        }
    }

    /// The same fault with a remark for the reader.
    #[must_use]
    pub fn hint(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn from_io(call: impl Into<String>, path: Option<&Path>, error: &io::Error) -> Self {
        let detail = error.raw_os_error().is_none().then(|| error.to_string());
        Self {
            call: call.into(),
            path: path.map(shown),
            errno: error.raw_os_error().unwrap_or(0),
            detail,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if let Some(path) = &self.path {
            write!(f, " {path}")?;
        }
        if self.errno != 0 {
            write!(f, ": {}", io::Error::from_raw_os_error(self.errno))?;
        }
        match &self.detail {
            Some(detail) if self.errno != 0 => write!(f, " ({detail})"),
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Gives a failed call its name and place.
pub trait Named<T> {
    fn named(self, call: &str) -> Result<T, Fault>;
    fn at(self, call: &str, path: impl AsRef<Path>) -> Result<T, Fault>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, call: &str) -> Result<T, Fault> {
        self.map_err(|error| Fault::from_io(call, None, &error))
    }

    fn at(self, call: &str, path: impl AsRef<Path>) -> Result<T, Fault> {
        self.map_err(|error| Fault::from_io(call, Some(path.as_ref()), &error))
    }
}

impl<T> Named<T> for rustix::io::Result<T> {
    fn named(self, call: &str) -> Result<T, Fault> {
        self.map_err(|errno| Fault::from_io(call, None, &errno.into()))
    }

    fn at(self, call: &str, path: impl AsRef<Path>) -> Result<T, Fault> {
        self.map_err(|errno| Fault::from_io(call, Some(path.as_ref()), &errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_the_call_the_place_and_the_reason() {
        let failed: Result<(), Fault> =
            Err(rustix::io::Errno::PERM).at("mount overlay", "/srv/root");
        let text = failed.expect_err("it failed").to_string();
        assert_eq!(
            text,
            "mount overlay /srv/root: Operation not permitted (os error 1)"
        );
        let refused = Fault::refused("check upper", "/srv/up", "owned by uid 0");
        assert_eq!(refused.to_string(), "check upper /srv/up: owned by uid 0");
    }
}
