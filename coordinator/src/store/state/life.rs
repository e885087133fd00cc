//! Whether a state on disk may be believed.
//!
//! sled keeps its promises when its process is killed: the kernel has what was written. It does not
//! when the machine goes down. What it had not synced is then on the disk in part and in no order,
//! and such remains take synced records with them: the tree does not open, or opens with other records.
//! A state is therefore believed only by the boot of the machine that wrote it, unless it was closed in
//! peace; else it is made again from the snapshot file and the log, which are. The same is true for the
//! index of finished runs (`crate::archive`), which is made again from the history.
//!
//! ```text
//! (no file) ──open──> opening ──opened──> open ──close──> (no file)
//!                        │                  └─ another boot: not believed; its history is tried
//!                        └─ found by the next start: it died of it; nothing of it is touched again
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use super::super::disk::{self, DiskError};

const NAME: &str = "life";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// How far the last life of a state came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Open,
}

impl Stage {
    fn as_str(self) -> &'static str {
        match self {
            Stage::Opening => "opening",
            Stage::Open => "open",
        }
    }
}

/// What is known of a state that was not closed in peace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Closed in peace, or its process was killed.
    Whole,
    /// The machine went down while it was open.
    Torn,
    /// A process died while it opened it.
    Deadly,
}

/// The file that says what a state is going through.
pub(crate) struct Life {
    path: PathBuf,
    boot: String,
}

impl Life {
    pub(crate) fn of(directory: &Path) -> Life {
        // A system that does not say how often it booted is believed to have booted once.
        let boot = fs::read_to_string(BOOT).unwrap_or_default();
        Life {
            path: directory.join(NAME),
            boot: boot.trim().to_owned(),
        }
    }

    pub(crate) fn trust(&self) -> Result<Trust, DiskError> {
        let Some(text) = disk::read_text(&self.path)? else {
            return Ok(Trust::Whole);
        };
        let (stage, boot) = text.trim_end().split_once(' ').unwrap_or_default();
        Ok(if stage != Stage::Open.as_str() {
            Trust::Deadly
        } else if boot != self.boot {
            Trust::Torn
        } else {
            Trust::Whole
        })
    }

    pub(crate) fn opening(&self) -> Result<(), DiskError> {
        self.write(Stage::Opening)
    }

    pub(crate) fn opened(&self) -> Result<(), DiskError> {
        self.write(Stage::Open)
    }

    /// Everything in it is durable, and nobody writes any more.
    pub(crate) fn closed(&self) -> Result<(), DiskError> {
        disk::remove(&self.path)
    }

    fn write(&self, stage: Stage) -> Result<(), DiskError> {
        let text = format!("{} {}\n", stage.as_str(), self.boot);
        disk::replace(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_believed_after_peace_and_after_a_kill_and_not_after_another_boot() {
        let folder = tempfile::tempdir().unwrap();
        let life = Life::of(folder.path());
        assert_eq!(life.trust().unwrap(), Trust::Whole, "never opened");
        life.opening().unwrap();
        assert_eq!(life.trust().unwrap(), Trust::Deadly);
        life.opened().unwrap();
        assert_eq!(life.trust().unwrap(), Trust::Whole, "killed");
        let later = Life {
            boot: "later".to_owned(),
            ..Life::of(folder.path())
        };
        assert_eq!(later.trust().unwrap(), Trust::Torn);
        life.closed().unwrap();
        assert_eq!(later.trust().unwrap(), Trust::Whole, "closed in peace");
        fs::write(folder.path().join(NAME), "").unwrap();
        assert_eq!(life.trust().unwrap(), Trust::Deadly, "no life has no words");
    }
}
