//! Secrets' values: files outside of the replicated state, in a folder that all members share.
//!
//! The ledger knows that a secret exists and since when; the value is one file, readable by the
//! daemon's user alone. A later store (a key vault) takes this module's place.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oast_daemon::random;
use oast_daemon::secret::Secret;
use oast_model::names::{SecretName, TeamName};
use oast_model::pipeline::SecretRef;
use oast_model::task::{Assignment, Origin, Work};

/// Largest value of a secret in bytes.
pub const SECRET_MAX: usize = 64 << 10;

/// The folder.
#[derive(Clone, Debug)]
pub struct Secrets {
    folder: Arc<Path>,
}

/// A secret could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Too large, or empty.
    #[error("a secret has 1 to {SECRET_MAX} bytes, this has {0}")]
    Size(usize),
    /// Not written.
    #[error("keep the secret in {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// Not read.
    #[error("read the secret {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        #[source]
        err: io::Error,
    },
    /// A worker can only be given text.
    #[error("secret `{0}` is no text, which a task cannot be given")]
    NotText(SecretName),
}

impl Secrets {
    /// Uses a folder, made when it is missing.
    ///
    /// # Errors
    /// [`SecretError::Write`].
    pub fn open(folder: &Path) -> Result<Secrets, SecretError> {
        make_folder(folder)?;
        Ok(Secrets {
            folder: folder.into(),
        })
    }

    /// Keeps a value in place of an older one; durable when it returns.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn set(&self, team: &TeamName, name: &SecretName, value: &[u8]) -> Result<(), SecretError> {
        if value.is_empty() || value.len() > SECRET_MAX {
            return Err(SecretError::Size(value.len()));
        }
        let folder = self.folder.join(team.as_str());
        make_folder(&folder)?;
        let path = folder.join(name.as_str());
        // Names never begin with a dot, so this is nobody's secret.
        let draft = folder.join(format!(".{name}-{:016x}", random::number()));
        let write = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(value)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            fs::File::open(&folder)?.sync_all()
        };
        write().map_err(|err| {
            // Best effort: a draft is harmless, and the error that matters is the first one.
            let _ = fs::remove_file(&draft);
            SecretError::Write {
                path: path.clone(),
                err,
            }
        })
    }

    /// A value, if there is one.
    ///
    /// # Errors
    /// [`SecretError::Read`].
    pub fn get(
        &self,
        team: &TeamName,
        name: &SecretName,
    ) -> Result<Option<Secret<Vec<u8>>>, SecretError> {
        let path = self.folder.join(team.as_str()).join(name.as_str());
        match fs::read(&path) {
            Ok(value) => Ok(Some(Secret::new(value))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(SecretError::Read { path, err }),
        }
    }

    /// Adds the values of the secrets that an assignment names. One that is missing is left
    /// out: the worker then says which step wants it.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn fill(&self, assignment: &mut Assignment) -> Result<(), SecretError> {
        for name in wanted(&assignment.work) {
            let Some(value) = self.get(&assignment.team, &name)? else {
                continue;
            };
            let text = std::str::from_utf8(value.expose())
                .map_err(|_| SecretError::NotText(name.clone()))?;
            assignment.secrets.insert(name.to_string(), text.to_owned());
        }
        Ok(())
    }
}

fn wanted(work: &Work) -> Vec<SecretName> {
    match work {
        Work::Source {
            origin:
                Origin::Git {
                    credentials: Some(SecretRef { secret }),
                    ..
                },
            ..
        } => {
            vec![secret.clone()]
        }
        Work::Bake { bake, .. } => bake
            .steps
            .iter()
            .flat_map(|step| step.action.secrets())
            .map(|secret| secret.name.clone())
            .collect(),
        _ => Vec::new(),
    }
}

fn make_folder(folder: &Path) -> Result<(), SecretError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|err| SecretError::Write {
            path: folder.into(),
            err,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_and_only_by_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets = Secrets::open(&folder.path().join("secrets")).expect("a store");
        let (team, name) = (
            TeamName::new("payments").expect("a name"),
            SecretName::new("git").expect("a name"),
        );
        assert!(secrets.get(&team, &name).expect("readable").is_none());
        secrets.set(&team, &name, b"first").expect("kept");
        secrets.set(&team, &name, b"second").expect("kept");
        let value = secrets.get(&team, &name).expect("readable").expect("there");
        assert_eq!(value.expose(), b"second");
        assert!(matches!(
            secrets.set(&team, &name, b""),
            Err(SecretError::Size(0))
        ));
        let file = folder.path().join("secrets/payments/git");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(file).expect("a file").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}
