//! The command line as a user types it, in an environment of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::{seen, until_blocking};

/// How long a command may take unless it is told otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// How to call `oast`.
#[derive(Clone, Debug)]
pub struct Cli {
    oast: PathBuf,
    env: BTreeMap<String, String>,
    folder: PathBuf,
    limit: Duration,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Done {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Cli {
    /// With nothing in the environment but a home folder and the way to programs.
    #[must_use]
    pub fn new(oast: &Path, home: &Path) -> Cli {
        let kept = ["PATH", "http_proxy", "https_proxy", "no_proxy"];
        let env = kept
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), std::env::var(key).ok()?)))
            .chain([
                ("HOME".to_owned(), home.display().to_string()),
                ("LANG".to_owned(), "C.UTF-8".to_owned()),
            ])
            .collect();
        Cli {
            oast: oast.to_owned(),
            env,
            folder: home.to_owned(),
            limit: LIMIT,
        }
    }

    /// One more variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Cli {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Where it is called.
    #[must_use]
    pub fn at(mut self, folder: &Path) -> Cli {
        self.folder = folder.to_owned();
        self
    }

    /// How long each call may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Cli {
        self.limit = limit;
        self
    }

    /// The command, for callers that start it themselves.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.oast);
        command
            .args(words)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    /// Calls it and waits.
    ///
    /// # Errors
    /// It could not be started or did not end in time.
    pub fn run(&self, words: &[&str]) -> Result<Done> {
        // Files rather than pipes: nothing that it leaves behind can hold us up.
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut child = self
            .command(words)
            .stdout(out.try_clone()?)
            .stderr(err.try_clone()?)
            .spawn()
            .with_context(|| format!("start {}", self.oast.display()))?;
        let what = format!("the end of `oast {}`", words.join(" "));
        let ended = until_blocking(&what, self.limit, || {
            Ok(seen(child.try_wait()?, "still running"))
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let (out, err) = (read(out)?, read(err)?);
        let status = ended.with_context(|| format!("it said\n{out}\n{err}"))?;
        Ok(Done {
            code: status.code().unwrap_or(-1),
            out,
            err,
        })
    }

    /// Calls it and expects success.
    ///
    /// # Errors
    /// It did not succeed; with what it said.
    pub fn good(&self, words: &[&str]) -> Result<String> {
        let done = self.run(words)?;
        ensure!(done.code == 0, "`oast {}`: {done:?}", words.join(" "));
        Ok(done.out)
    }
}

fn read(mut file: std::fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Done {
    /// Everything that was said.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    /// It failed with that code, and what it said has each of the parts and no panic.
    ///
    /// # Errors
    /// It did otherwise; with what it said.
    pub fn failed(&self, code: i32, parts: &[&str]) -> Result<()> {
        ensure!(self.code == code, "exit code {code} was expected: {self:?}");
        let said = self.said();
        for part in parts {
            ensure!(said.contains(part), "`{part}` is missing in: {said}");
        }
        for word in ["panicked", "RUST_BACKTRACE", "Some(", "Err("] {
            ensure!(
                !said.contains(word),
                "`{word}` is no word for users: {said}"
            );
        }
        Ok(())
    }
}
