//! `oast worker --join`: from a one-time token to a certificate.
//!
//! ```text
//! key and request id, kept in joining.pem -> pinned TLS to a member -> Join{token, request}
//!     -> ca.pem, identity.pem -> joining.pem is removed
//! ```
//!
//! The key never leaves this machine. Key and request id are on disk before the first call, so a
//! worker that dies, or whose answer is lost, asks the same again and gets the same certificate
//! although the token is dead by then.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oast_daemon::clock::{SharedClock, timeout};
use oast_daemon::secret::Secret;
use oast_daemon::tls::{
    Bundle, CA_FILE, Certificate, DialError, Dialer, FileError, Files, IDENTITY_FILE, Key,
    KeyError, Name, Problem, Role, folder, request,
};
use oast_model::digest::Digest;
use oast_model::time::Timestamp;
use oast_proto::worker::v1 as wire;
use oast_proto::worker::v1::certificates_client::CertificatesClient;
use tonic::Code;

use crate::renew::{Unreachable, certificates, channel};

/// Key of a join that has no answer yet.
const JOINING_FILE: &str = "joining.pem";
/// Time for one member to answer.
const ANSWER: Duration = Duration::from_secs(15);
/// How long members are asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(500);

/// What a join needs.
#[derive(Debug)]
pub struct Join {
    /// The one-time token.
    pub token: Secret<String>,
    /// Pin of the farm's authority.
    pub ca_hash: String,
    /// The farm's ports of some members.
    pub coordinators: Vec<SocketAddr>,
    /// The worker's name.
    pub worker: String,
    /// Where certificate and key go.
    pub folder: PathBuf,
}

/// The worker did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The pin.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Who answers is not who was meant.
    #[error("{address} cannot be trusted: {problem}")]
    Distrust {
        /// Who.
        address: SocketAddr,
        /// Why.
        problem: Problem,
    },
    /// The farm said no.
    #[error("{address} refuses: {reason}")]
    Refused {
        /// Who.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Nobody answered.
    #[error("no member answered within {PATIENCE:?}: {last}")]
    Silent {
        /// What was tried last.
        last: String,
    },
    /// What came back cannot be ours.
    #[error("{address} sent a certificate that is not the one asked for: {why}")]
    Wrong {
        /// Who.
        address: SocketAddr,
        /// Why.
        why: String,
    },
}

/// What one member said.
enum Said {
    Joined(Files),
    /// Another may know better, or the same one later.
    Later(String),
}

impl Join {
    /// Whether this folder has a certificate already that is not over at `now`: then a join has
    /// nothing to do.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn is_done(folder: &Path, now: Timestamp) -> Result<bool, FileError> {
        let path = folder.join(IDENTITY_FILE);
        if !path.exists() || !folder.join(CA_FILE).exists() {
            return Ok(false);
        }
        let bundle = Bundle::read(&path)?;
        let over = |own: &Certificate| now > own.not_after();
        Ok(bundle.chain.first().is_some_and(|own| !over(own)))
    }

    /// Joins, and writes what came of it.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn run(&self, clock: &SharedClock) -> Result<(), JoinError> {
        let dialer = Dialer::pinned(&self.ca_hash, clock.clone())?;
        let key = self.key()?;
        let asked = wire::JoinRequest {
            token: self.token.expose().clone(),
            worker: self.worker.clone(),
            request_id: request_id(&key)?,
            request: request::make(&key, &self.worker)?.into(),
        };
        let end = clock.monotonic() + PATIENCE;
        let mut last = "no address was given".to_owned();
        loop {
            for address in &self.coordinators {
                let said =
                    timeout(&**clock, ANSWER, self.ask(*address, &dialer, &asked, &key)).await;
                match said {
                    Ok(Ok(Said::Joined(files))) => {
                        // There may be an older one, whose time is over.
                        files.replace(&self.folder)?;
                        // Its key is in identity.pem now.
                        let _ = std::fs::remove_file(self.folder.join(JOINING_FILE));
                        return Ok(());
                    }
                    Ok(Ok(Said::Later(why))) => last = format!("{address}: {why}"),
                    Ok(Err(err)) => return Err(err),
                    Err(late) => last = format!("{address}: {late}"),
                }
            }
            if clock.monotonic() >= end {
                return Err(JoinError::Silent { last });
            }
            clock.sleep(PAUSE).await;
        }
    }

    /// The key of an earlier try, or a new one; on disk before anybody is asked.
    fn key(&self) -> Result<Key, JoinError> {
        folder(&self.folder)?;
        let path = self.folder.join(JOINING_FILE);
        if path.exists() {
            let bundle = Bundle::read(&path)?;
            if let Some(key) = bundle.key {
                return Ok(key);
            }
        }
        let key = Key::generate()?;
        let bundle = Bundle {
            chain: Vec::new(),
            key: Some(key.clone()),
        };
        bundle.replace(&path)?;
        Ok(key)
    }

    async fn ask(
        &self,
        address: SocketAddr,
        dialer: &Dialer,
        asked: &wire::JoinRequest,
        key: &Key,
    ) -> Result<Said, JoinError> {
        let channel = match channel(address, dialer).await {
            Ok(channel) => channel,
            Err(Unreachable::Distrust(problem)) => {
                return Err(JoinError::Distrust { address, problem });
            }
            Err(Unreachable::Other(why)) => return Ok(Said::Later(why)),
        };
        let answer = match CertificatesClient::new(channel).join(asked.clone()).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let reason = status.message().to_owned();
                return match status.code() {
                    Code::Unauthenticated
                    | Code::PermissionDenied
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::Unimplemented => Err(JoinError::Refused { address, reason }),
                    _ => Ok(Said::Later(reason)),
                };
            }
        };
        let wrong = |why: String| JoinError::Wrong { address, why };
        let chain = certificates(&answer.chain).map_err(wrong)?;
        let roots = certificates(&answer.authorities).map_err(wrong)?;
        self.check(&chain, &roots, key).map_err(wrong)?;
        Ok(Said::Joined(Files::joined(roots, key.clone(), chain)))
    }

    /// The pin was checked when the connection was made; this is that we got what we asked for.
    fn check(&self, chain: &[Certificate], roots: &[Certificate], key: &Key) -> Result<(), String> {
        let Some(own) = chain.first() else {
            return Err("it is empty".to_owned());
        };
        if key.public().ok().as_deref() != Some(own.public_key()) {
            return Err("it is for another key".to_owned());
        }
        let name = own.name();
        let ours = |name: &Name| name.role() == Role::Worker && name.name() == self.worker;
        if !name.as_ref().is_some_and(ours) {
            return Err("it is for another name".to_owned());
        }
        if !roots.iter().any(|root| root.pin() == self.ca_hash) {
            return Err(format!(
                "no authority with the pin {} came with it",
                self.ca_hash
            ));
        }
        Ok(())
    }
}

/// Follows from the key, so that a second try with the same key is the same request.
fn request_id(key: &Key) -> Result<String, KeyError> {
    Ok(format!("join-{}", Digest::of(&key.public()?)))
}

#[cfg(test)]
mod tests {
    use oast_daemon::tls::{Authority, LEAF_LIFE, Lives, ROOT_LIFE};

    use super::*;

    #[test]
    fn a_worker_whose_certificate_is_over_joins_again_and_one_with_a_good_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Timestamp::from_millis(1_800_000_000_000);
        let done = |at| Join::is_done(folder.path(), at);
        assert!(!done(now).expect("empty"));
        let root = Authority::found("acme", now, ROOT_LIFE).expect("a root");
        let files = Files::worker(&root, "w1", Lives::usual(now)).expect("signed");
        files.create(folder.path()).expect("files");
        assert!(done(now + LEAF_LIFE / 2).expect("readable"));
        assert!(!done(now + LEAF_LIFE * 2).expect("readable"));
        std::fs::write(folder.path().join(IDENTITY_FILE), "rubbish").expect("written");
        assert!(done(now).is_err(), "somebody has to look at it");
    }

    #[test]
    fn a_second_try_is_the_same_request() {
        let folder = tempfile::tempdir().expect("a folder");
        let join = Join {
            token: Secret::new("t".to_owned()),
            ca_hash: String::new(),
            coordinators: Vec::new(),
            worker: "w1".to_owned(),
            folder: folder.path().join("tls"),
        };
        let first = join.key().expect("a key");
        let second = join.key().expect("the same");
        assert_eq!(
            request_id(&first).expect("an id"),
            request_id(&second).expect("an id")
        );
    }
}
