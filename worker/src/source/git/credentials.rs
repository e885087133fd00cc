//! Handing a credential to git without writing it down anywhere.
//!
//! The value lies in a file in this process's memory. Git asks a two-line helper script, which
//! knows only the number of that file; nobody but this user can open it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use camino::Utf8Path;

use super::process::{Process, ProcessError, memory_file};

/// The user name that token-only credentials go with; hosts that take tokens ignore it.
const TOKEN_USER: &str = "x-access-token";

/// A repository's credential.
#[derive(Debug)]
pub(super) enum Credentials {
    /// For http and https.
    Password { user: OwnedFd, password: OwnedFd },
    /// For ssh: a private key.
    Key { key: OwnedFd },
}

/// A credential that git could not use.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    #[error("keep the credential of the repository in memory")]
    Memory(#[source] std::io::Error),
}

impl Credentials {
    /// `user:password` or a token alone for http; a private key for ssh.
    pub(super) fn new(value: &str, url: &str) -> Result<Credentials, CredentialError> {
        let keep = |text: &str| memory_file(text.as_bytes()).map_err(CredentialError::Memory);
        let http = url.starts_with("http://") || url.starts_with("https://");
        if !http {
            // A key file must end with a line break, or ssh calls it invalid.
            let key = keep(&format!("{}\n", value.trim_end()))?;
            rustix::fs::fchmod(&key, rustix::fs::Mode::RUSR)
                .map_err(|errno| CredentialError::Memory(errno.into()))?;
            return Ok(Credentials::Key { key });
        }
        let value = value.trim();
        let (user, password) = value.split_once(':').unwrap_or((TOKEN_USER, value));
        Ok(Credentials::Password {
            user: keep(user)?,
            password: keep(password)?,
        })
    }

    /// Lets the process use it. `folder` gets the helper script, which holds no secret.
    pub(super) fn give(
        &self,
        process: &mut Process,
        folder: &Utf8Path,
    ) -> Result<(), ProcessError> {
        match self {
            Credentials::Password { user, password } => {
                let helper = folder.join("home").join("askpass");
                write_helper(&helper).map_err(ProcessError::Talk)?;
                process.env("GIT_ASKPASS", helper.as_str());
                process.env("OAST_GIT_USER", open_file(user));
                process.env("OAST_GIT_PASSWORD", open_file(password));
                for fd in [user, password] {
                    process.keep(fd.try_clone().map_err(ProcessError::Talk)?);
                }
            }
            Credentials::Key { key } => {
                let hosts = folder.join("home").join("known_hosts");
                let command = format!(
                    "ssh -F /dev/null -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none \
                     -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile='{hosts}' -i {}",
                    open_file(key)
                );
                process.env("GIT_SSH_COMMAND", command);
                process.keep(key.try_clone().map_err(ProcessError::Talk)?);
            }
        }
        Ok(())
    }
}

/// Where another process of this user finds our open file.
fn open_file(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

fn write_helper(path: &Utf8Path) -> std::io::Result<()> {
    use std::io::Write;
    const SCRIPT: &str = "#!/bin/sh\n\
        case \"$1\" in Username*) cat \"$OAST_GIT_USER\" ;; *) cat \"$OAST_GIT_PASSWORD\" ;; esac\n";
    if std::fs::read_to_string(path).is_ok_and(|text| text == SCRIPT) {
        return Ok(());
    }
    // Renamed into place: another fetch may be running the old one.
    let fresh = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o700)
        .open(&fresh)?;
    file.write_all(SCRIPT.as_bytes())?;
    drop(file);
    std::fs::rename(&fresh, path)
}
