//! A git process that sees nothing of the machine's users and never asks anybody.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// A git command with an empty home. The child dies with the future that drives it.
pub fn git(home: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for name in ["PATH", "http_proxy", "https_proxy", "no_proxy"] {
        if let Some(value) = oast_daemon::config::process_env(name) {
            command.env(name, value);
        }
    }
    command
}

/// Git ended with an error, or could not be started.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// Not started.
    #[error("start git: is it installed on the members?")]
    Start(#[source] std::io::Error),
    /// Too slow.
    #[error("git {0} did not end in time")]
    Slow(String),
    /// Ended with an error.
    #[error("git {verb}: {said}")]
    Failed {
        /// What it was asked.
        verb: String,
        /// The last line that it said.
        said: String,
    },
}

/// Runs git to its end and returns what it printed.
pub async fn output<I, S>(mut command: Command, arguments: I) -> Result<Vec<u8>, GitError>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let arguments: Vec<S> = arguments.into_iter().collect();
    let verb = arguments
        .iter()
        .map(|argument| argument.as_ref().to_string_lossy().into_owned())
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let output = command
        .args(&arguments)
        .output()
        .await
        .map_err(GitError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no reason given");
    let said = oast_daemon::secret::redact(last).into_owned();
    Err(GitError::Failed { verb, said })
}

/// Branch to commit, from lines of `<commit> refs/heads/<branch>`.
pub fn parse_heads(lines: &[u8]) -> std::collections::BTreeMap<String, String> {
    String::from_utf8_lossy(lines)
        .lines()
        .filter_map(|line| {
            let (commit, name) = line.split_once([' ', '\t'])?;
            let branch = name.trim().strip_prefix("refs/heads/")?;
            Some((branch.to_owned(), commit.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_branches_are_heads() {
        let text = b"aa\trefs/heads/main\nbb\trefs/heads/a/b\ncc\trefs/tags/v1\nnoise\n";
        let heads = parse_heads(text);
        assert_eq!(heads.len(), 2);
        assert_eq!(heads["a/b"], "bb");
    }
}
