//! [`Confined`] by the worker's sandbox.
//!
//! The root is mounted as the upper folder of a volatile overlay over an empty one: everything is
//! written into the root itself, but dpkg's hundreds of syncs cost nothing. A crash in between
//! loses the root, which was unfinished anyway.

use std::io::{Read, Seek, SeekFrom};

use tokio::runtime::Handle;

use super::configure::{ConfineError, Confined, ConfinedCommand, ConfinedOutput};
use crate::sandbox::{Exit, Launcher, Output, Overlay, Root, Spec};

/// How much of the end of a program's output is kept.
const OUTPUT_BYTES_MAX: u64 = 256 << 10;

/// Runs maintainer scripts in sandboxes without a network.
#[derive(Debug)]
pub struct Sandboxed {
    launcher: Launcher,
    runtime: Handle,
}

impl Sandboxed {
    /// `runtime` drives the sandboxes; [`Confined::run`] blocks a thread outside of its workers.
    pub fn new(launcher: Launcher, runtime: Handle) -> Self {
        Self { launcher, runtime }
    }

    async fn end(
        &self,
        command: &ConfinedCommand<'_>,
        output: std::fs::File,
    ) -> Result<i32, Box<dyn std::error::Error + Send + Sync>> {
        let owner = Some(self.launcher.idmap().host_id(0));
        // The lower folder stays empty; it only has to be there.
        let lower = tempfile::tempdir()?;
        for folder in [lower.path(), command.scratch.as_std_path()] {
            std::os::unix::fs::chown(folder, owner, owner)?;
        }
        let overlay = Overlay {
            lowers: vec![lower.path().to_owned()],
            upper: command.root.as_std_path().to_owned(),
            work: command.scratch.as_std_path().to_owned(),
            volatile: true,
        };
        let argv = command.argv.iter().copied();
        let mut spec = Spec::step(Root::Overlay(overlay), argv);
        spec.env = command
            .env
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let mut sandbox = self.launcher.spawn(spec, Output::File(output)).await?;
        let exit = tokio::select! {
            biased;
            exit = sandbox.wait() => exit?,
            () = command.cancel.cancelled() => {
                sandbox.kill();
                sandbox.wait().await?;
                return Err("the bake was cancelled".into());
            }
        };
        Ok(match exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        })
    }
}

impl Confined for Sandboxed {
    fn run(&self, command: &ConfinedCommand<'_>) -> Result<ConfinedOutput, ConfineError> {
        let program = command.argv.first().copied().unwrap_or_default();
        let fail = |error: Box<dyn std::error::Error + Send + Sync>| {
            let mut reason = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                reason.push_str(": ");
                reason.push_str(&cause.to_string());
                source = cause.source();
            }
            ConfineError {
                program: program.to_owned(),
                reason,
            }
        };
        let mut file = tempfile::tempfile().map_err(|error| fail(error.into()))?;
        let to_file = file.try_clone().map_err(|error| fail(error.into()))?;
        let status = self
            .runtime
            .block_on(self.end(command, to_file))
            .map_err(fail)?;
        let tail = (|| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
            let mut output = Vec::new();
            file.read_to_end(&mut output)?;
            Ok::<_, std::io::Error>(output)
        })();
        Ok(ConfinedOutput {
            status,
            output: tail.map_err(|error| fail(error.into()))?,
        })
    }
}
