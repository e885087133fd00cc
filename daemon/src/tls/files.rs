//! Everything that one member or worker needs in its folder, made in one go beside the root.

use std::path::Path;
use std::time::Duration;

use oast_model::time::Timestamp;

use super::authority::{Authority, ISSUER_LIFE, IssueError, LEAF_LIFE, Order};
use super::certificate::Certificate;
use super::identity::{CA_FILE, IDENTITY_FILE, ISSUER_FILE};
use super::key::{Key, PublicKey};
use super::name::{Name, Role};
use super::pem::{Bundle, FileError, folder};

/// For how long, counted from when.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    /// Now.
    pub now: Timestamp,
    /// Of the certificate that is shown.
    pub leaf: Duration,
    /// Of a member's issuer.
    pub issuer: Duration,
}

impl Lives {
    /// The usual ones.
    #[must_use]
    pub fn usual(now: Timestamp) -> Lives {
        Lives {
            now,
            leaf: LEAF_LIFE,
            issuer: ISSUER_LIFE,
        }
    }
}

/// The files of one process.
#[derive(Clone, Debug)]
pub struct Files {
    ca: Bundle,
    identity: Bundle,
    issuer: Option<Bundle>,
}

impl Files {
    /// For a member that answers for `hosts`.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn member(
        root: &Authority,
        name: &str,
        hosts: &[String],
        lives: Lives,
    ) -> Result<Files, IssueError> {
        let issuer = root.delegate(name, lives.now, lives.issuer)?;
        let (key, signed) = sign(&issuer, Role::Member, name, hosts, lives)?;
        Ok(Files {
            ca: roots(root.certificate()),
            identity: Bundle {
                chain: vec![signed, issuer.certificate().clone()],
                key: Some(key),
            },
            issuer: Some(issuer.bundle()),
        })
    }

    /// For a worker, without a join token: for who holds the root and makes both ends.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn worker(root: &Authority, name: &str, lives: Lives) -> Result<Files, IssueError> {
        let (key, signed) = sign(root, Role::Worker, name, &[], lives)?;
        Ok(Files {
            ca: roots(root.certificate()),
            identity: Bundle {
                chain: vec![signed],
                key: Some(key),
            },
            issuer: None,
        })
    }

    /// For who got its certificate from a member.
    #[must_use]
    pub fn joined(roots: Vec<Certificate>, key: Key, chain: Vec<Certificate>) -> Files {
        Files {
            ca: Bundle {
                chain: roots,
                key: None,
            },
            identity: Bundle {
                chain,
                key: Some(key),
            },
            issuer: None,
        }
    }

    /// The certificate that is shown.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.identity.chain.first()
    }

    fn parts(&self) -> impl Iterator<Item = (&'static str, &Bundle)> {
        [(CA_FILE, &self.ca), (IDENTITY_FILE, &self.identity)]
            .into_iter()
            .chain(self.issuer.as_ref().map(|issuer| (ISSUER_FILE, issuer)))
    }

    /// Writes them into a folder that has none of them.
    ///
    /// # Errors
    /// [`FileError::Exists`] before anything is written, or what went wrong in writing.
    pub fn create(&self, into: &Path) -> Result<(), FileError> {
        folder(into)?;
        for (file, _) in self.parts() {
            let path = into.join(file);
            if path.exists() {
                return Err(FileError::Exists { path });
            }
        }
        self.parts()
            .try_for_each(|(file, bundle)| bundle.create(&into.join(file)))
    }

    /// Writes them in the place of those that may be there. Who we are comes last: whoever
    /// reads in between finds the old certificate beside an authority that knows it.
    ///
    /// # Errors
    /// What went wrong in writing.
    pub fn replace(&self, into: &Path) -> Result<(), FileError> {
        folder(into)?;
        let mut parts: Vec<_> = self.parts().collect();
        parts.sort_by_key(|(file, _)| *file == IDENTITY_FILE);
        parts
            .into_iter()
            .try_for_each(|(file, bundle)| bundle.replace(&into.join(file)))
    }
}

fn roots(root: &Certificate) -> Bundle {
    Bundle {
        chain: vec![root.clone()],
        key: None,
    }
}

fn sign(
    authority: &Authority,
    role: Role,
    name: &str,
    hosts: &[String],
    lives: Lives,
) -> Result<(Key, Certificate), IssueError> {
    let key = Key::generate()?;
    let order = Order {
        name: Name::new(authority.name().farm(), role, name)?,
        hosts: hosts.to_vec(),
        key: PublicKey::read(&key.public()?).map_err(IssueError::ReadBack)?,
        now: lives.now,
        life: lives.leaf,
    };
    let signed = authority.issue(&order)?;
    Ok((key, signed))
}
