//! What an envelope proves of a disk and its bills of material.

use crate::dsse::{Envelope, EnvelopeError};
use crate::hash::sha256;
use crate::key::PublicKey;
use crate::provenance::{self, Statement, StatementError};

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The envelope, as JSON.
    pub envelope: &'a [u8],
    /// The key that must have signed it.
    pub key: &'a PublicKey,
    /// blake3 of the raw disk, as hashed by whoever asks; none when there is no disk to judge.
    pub disk: Option<&'a str>,
    /// Bills of material, each with its subject's name.
    pub bills: &'a [(&'static str, &'a [u8])],
}

/// What was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// What was signed.
    pub statement: Statement,
    /// One sentence for each thing that was proved, in order.
    pub proved: Vec<String>,
}

/// Why nothing is proved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The signature.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What was signed.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// The statement is of other things.
    #[error("the statement says nothing of {0}: it belongs to something else")]
    NoSubject(&'static str),
    /// The thing is another one.
    #[error(
        "{name} is not what was signed: its {algorithm} is {found}, the statement says {signed}"
    )]
    Differs {
        /// Which.
        name: &'static str,
        /// Of which hash.
        algorithm: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        signed: String,
    },
}

/// Judges the evidence; the first thing that does not hold is the error.
///
/// # Errors
/// [`VerifyError`].
pub fn verify(evidence: Evidence<'_>) -> Result<Proof, VerifyError> {
    let payload = Envelope::read(evidence.envelope)?.open(evidence.key)?;
    let statement = Statement::read(&payload)?;
    let builder = &statement.predicate.run_details.builder.id;
    let key = evidence.key.id();
    let mut proved = vec![format!("{builder} signed the provenance with key {key}")];
    let same = |name, algorithm, found: &str| match statement.digest(name, algorithm) {
        None => Err(VerifyError::NoSubject(name)),
        Some(signed) if signed == found => Ok(()),
        Some(signed) => Err(VerifyError::Differs {
            name,
            algorithm,
            found: found.to_owned(),
            signed: signed.to_owned(),
        }),
    };
    if let Some(disk) = evidence.disk {
        same(provenance::DISK, "blake3", disk)?;
        proved.push(format!(
            "the disk is the one that was signed: blake3 {disk}"
        ));
    }
    for (name, bytes) in evidence.bills {
        let found = sha256(bytes);
        same(name, "sha256", &found)?;
        proved.push(format!("{name} is the one that was signed: sha256 {found}"));
    }
    Ok(Proof { statement, proved })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::dsse::sign;
    use crate::key::SigningKey;
    use crate::provenance::{Builder, Descriptor, Details, Metadata};

    fn statement() -> Statement {
        let subject = vec![
            Descriptor::new(provenance::DISK, "blake3", "aa"),
            Descriptor::new(provenance::SPDX, "sha256", sha256(b"bill")),
        ];
        let builder = Builder {
            id: "oast://acme".to_owned(),
            version: BTreeMap::new(),
        };
        let details = Details {
            builder,
            metadata: Metadata::default(),
        };
        Statement::new(
            subject,
            BTreeMap::new(),
            BTreeMap::new(),
            Vec::new(),
            details,
        )
    }

    #[test]
    fn each_part_is_proved_and_each_change_is_found() {
        let key = SigningKey::read(&SigningKey::generate().unwrap()).unwrap();
        let envelope = sign(&key, &statement().to_json()).to_json();
        let good = Evidence {
            envelope: &envelope,
            key: &key.public(),
            disk: Some("aa"),
            bills: &[(provenance::SPDX, b"bill")],
        };
        let proof = verify(good).unwrap();
        assert_eq!(proof.statement, statement());
        assert_eq!(proof.proved.len(), 3);

        let disk = verify(Evidence {
            disk: Some("ab"),
            ..good
        });
        assert!(matches!(
            disk,
            Err(VerifyError::Differs {
                name: "disk.raw",
                ..
            })
        ));
        let bill = verify(Evidence {
            bills: &[(provenance::SPDX, b"hill")],
            ..good
        });
        assert!(matches!(
            bill,
            Err(VerifyError::Differs {
                name: "sbom.spdx.json",
                ..
            })
        ));
        let none = verify(Evidence {
            bills: &[(provenance::CYCLONEDX, b"bill")],
            ..good
        });
        assert_eq!(none, Err(VerifyError::NoSubject("sbom.cdx.json")));
        let other = SigningKey::read(&SigningKey::generate().unwrap()).unwrap();
        let other = verify(Evidence {
            key: &other.public(),
            ..good
        });
        assert!(matches!(other, Err(VerifyError::Envelope(_))));
    }

    #[test]
    fn a_statement_of_another_kind_proves_nothing() {
        let key = SigningKey::read(&SigningKey::generate().unwrap()).unwrap();
        let text = String::from_utf8(statement().to_json()).unwrap();
        let text = text.replace("slsa.dev/provenance/v1", "slsa.dev/verification_summary/v1");
        let envelope = sign(&key, text.as_bytes()).to_json();
        let evidence = Evidence {
            envelope: &envelope,
            key: &key.public(),
            disk: None,
            bills: &[],
        };
        assert!(matches!(
            verify(evidence),
            Err(VerifyError::Statement(StatementError::Kind(_)))
        ));
    }
}
